"""Make a small data set of the commonest classes, with a few images each, for trying things out.

    python data_prep/make_subset.py --dataset_name DIR --level_columns family genus species --output_dir DIR
        --num_classes 50 --num_train_per_class 10 --num_validation_per_class 2 --num_test_per_class 2

Images come from the split of the same name; a split that the data set lacks is taken from train. No group is in two
splits. The same seed gives the same subset. The new folder holds the images themselves and hierarchy.json, the label
tree of the classes chosen.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: Python then looks for modules beside this file, not in the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from datasets import Dataset, DatasetDict, Image, Value

from common.data.rows import ImageRows
from common.labels.table import hierarchy_from_paths
from common.run.command import run
from common.system.files import atomic_folder
from data_prep.parts.columns import SPLITS
from data_prep.parts.inputs import input_parser, open_inputs


def choose_subset(
    labels: Mapping[str, np.ndarray],
    groups: Mapping[str, Sequence[Any]],
    num_classes: int,
    num_per_class: Mapping[str, int],
    seed: int = 0,
) -> tuple[dict[str, list[tuple[str, int]]], list[int]]:
    """Choose rows of the commonest classes of train.

    Args:
        labels: int64 (rows,) of each split, a class or negative; needs ``train``.
        groups: of each split, a value a row; may be empty.
        num_per_class: images of each class that each new split gets, if there are so many.

    Returns:
        (split, row) of each new split, in order of the rows, and the classes, in order.

    Raises:
        ValueError: there are fewer classes.
    """
    counts = np.bincount(labels["train"][labels["train"] >= 0])
    if (counts > 0).sum() < num_classes:
        raise ValueError(f"Training has {(counts > 0).sum()} classes, not {num_classes} (--num_classes).")
    classes = np.sort(np.argsort(-counts, kind="stable")[:num_classes]).tolist()
    random = np.random.default_rng(seed)
    side: dict[Any, str] = {}  # the split that a group, or a row without one, is in
    chosen: dict[str, list[tuple[str, int]]] = {split: [] for split, number in num_per_class.items() if number}
    for split in chosen:
        pool = split if split in labels else "train"
        for label in classes:
            rows = np.flatnonzero(labels[pool] == label)
            keys = [(groups[pool][row] if pool in groups else None) or (pool, row) for row in rows.tolist()]
            order = random.permutation(len(rows)).tolist()
            first = dict(zip(reversed(keys), reversed(order), strict=True))
            taken = 0
            # Group by group, so that few groups are used up and others are left for the other splits.
            for position in sorted(range(len(rows)), key=lambda at: (first[keys[at]], order[at])):
                if taken < num_per_class[split] and side.setdefault(keys[position], split) == split:
                    chosen[split].append((pool, int(rows[position])))
                    taken += 1
    return {split: sorted(places) for split, places in chosen.items()}, classes


def with_images(dataset: Dataset, images: ImageRows) -> Dataset:
    """The rows with images that ``save_to_disk`` copies the files of; ValueError for paths that leave the root."""
    if not isinstance(dataset.features[images.column], Value):
        return dataset
    paths = [os.path.realpath(images.checked(source)) for source in images.encoded(range(len(images)))]
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        raise ValueError(f"{len(missing)} images are not there, the first is {missing[0]}; see check_images.py.")
    cells = [{"bytes": None, "path": path} for path in paths]
    others = dataset.remove_columns(images.column)
    return others.add_column(images.column, cells, feature=Image()).select_columns(dataset.column_names)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line. Raises ValueError for anything that the user can fix."""
    parser = input_parser(__doc__, labels=True, groups=True)
    parser.add_argument("--num_classes", type=int, default=50, help="the commonest ones")
    for split, number in zip(SPLITS, (10, 2, 2), strict=True):
        parser.add_argument(f"--num_{split}_per_class", type=int, default=number, help="images; 0 for no such split")
    parser.add_argument("--seed", type=int, default=0, help="of the choice")
    parser.add_argument("--output_dir", required=True, help="new folder for the subset")
    args = parser.parse_args(argv)
    wanted = {split: getattr(args, f"num_{split}_per_class") for split in SPLITS}
    if args.num_classes < 1 or min(wanted.values()) < 0 or not wanted["train"]:
        raise ValueError("--num_classes and --num_train_per_class must be at least 1, the others at least 0.")
    inputs = open_inputs(args)
    if "train" not in inputs.splits:
        raise ValueError(f"No split 'train' in the data set; there are: {', '.join(inputs.splits)}.")
    inputs.splits = DatasetDict({split: inputs.splits[split] for split in SPLITS if split in inputs.splits})
    hierarchy, labels = inputs.labels()
    labels = {split: found[:, -1] for split, found in labels.items()}
    groups = inputs.cells(args.group_column)
    chosen, classes = choose_subset(labels, groups, args.num_classes, wanted, args.seed)
    empty = [split for split, places in chosen.items() if not places]
    if empty:
        raise ValueError(f"No image is left for {' and '.join(empty)}: too few groups, or no such classes there.")
    images, subset = inputs.images(), DatasetDict()
    with atomic_folder(args.output_dir) as folder:
        for split, places in chosen.items():
            pool = places[0][0]
            part = inputs.splits[pool].select([row for _, row in places])
            subset[split] = with_images(part, ImageRows(part, images[pool].column, pool, images[pool].root))
        subset.save_to_disk(folder)
        paths = [hierarchy.path_names(hierarchy.num_levels - 1, label) for label in classes]
        hierarchy_from_paths(hierarchy.levels, paths, sort=False).save(folder / "hierarchy.json")
    for split, places in chosen.items():
        short = "" if len(places) == wanted[split] * len(classes) else f" of {wanted[split] * len(classes)} wanted"
        print(f"{split}: {len(places)} images{short}")
    print(f"{len(classes)} classes; the subset is in {args.output_dir}")


if __name__ == "__main__":
    run(main)
