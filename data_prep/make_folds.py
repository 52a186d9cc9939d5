"""Folds for cross-validation that keep groups together: leave one value of a column out, or K random folds.

    python data_prep/make_folds.py --dataset_name data/artefact --leave_out content --group_column id --output_dir DIR
    python data_prep/make_folds.py --train_file a.csv --num_folds 5 --group_column tree --output_dir DIR

All splits of the data set are pooled. Each fold is a folder that the trainers take as --dataset_name, with the splits
train, validation and test; it names rows of the original data set and copies no image. Validation is a part of what is
not in test, by groups too. Groups that reach into a left-out part from outside are left out of training.

Augmented copies, named <id>_aug<N> in --id_column (by default the group column), belong to <id>'s group and are only
in train. Writes folds.json, too: how many rows, groups and classes each part has.
"""

from __future__ import annotations

import re
import shutil
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: Python then looks for modules beside this file, not in the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import pandas as pd

from common.data.drawing import draw_splits, number_groups
from common.data.prepared import write_selection
from common.labels.hierarchy_files import load_hierarchy
from common.run.command import run
from common.system.files import atomic_folder, write_json
from data_prep.parts.columns import AUGMENTED, SPLITS
from data_prep.parts.inputs import Inputs, hierarchy_beside, input_parser, open_inputs

NOWHERE = -1


def make_folds(
    groups: np.ndarray,
    classes: np.ndarray,
    augmented: np.ndarray,
    *,
    values: Sequence[Any] | None = None,
    num_folds: int | None = None,
    validation_share: float = 0.15,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Which part each row is in, per fold.

    Args:
        groups: int (rows,), the number of each row's group; a group is in one part of a fold only.
        classes: int (rows,), to be spread evenly. Of those that training lacks, validation has no rows, and the test
            part of a random fold neither: no model can know them. A value that is left out is tested whole.
        augmented: bool (rows,); such rows are in train or nowhere.
        values: a value a row; each is the test part of a fold, but for blank ones.
        num_folds: without values, the number of random folds.
        validation_share: of what is not in the test part.
        seed: of what is random.

    Returns:
        Name of the fold -> int64 (rows,): index in SPLITS, or NOWHERE.

    Raises:
        ValueError: there are too few values or groups, or a part would be empty.
    """
    if values is not None:
        names = sorted({str(value) for value in values if value not in (None, "")})
        if len(names) < 2:
            raise ValueError(f"One value ({names}) makes no folds (--leave_out).")
        tests = {name: np.array([str(value) == name for value in values]) for name in names}
    else:
        num_groups = len(np.unique(groups))
        if not num_folds or not 2 <= num_folds <= num_groups:
            raise ValueError(f"{num_folds} folds of {num_groups} groups: it takes at least 2, and a group for each.")
        part = draw_splits(groups, classes, (1 / num_folds,) * (num_folds - 1), seed)
        tests = {str(fold): part == fold for fold in range(num_folds)}
    folds, (train, validation, heldout) = {}, range(len(SPLITS))
    for number, (name, test) in enumerate(tests.items()):
        rest = np.flatnonzero(~np.isin(groups, groups[test]))
        parts = np.where(test, heldout, NOWHERE)
        own, numbered = np.unique(groups[rest], return_inverse=True)
        if len(own) >= 2:
            share = max(validation_share, 1 / len(own))  # one group at least
            parts[rest] = draw_splits(numbered, classes[rest], (share,), seed + number)
        parts[augmented & (parts != train)] = NOWHERE
        unknown = ~np.isin(classes, classes[parts == train])
        parts[unknown & ((parts == validation) | ((parts == heldout) & (values is None)))] = NOWHERE
        missing = [split for index, split in enumerate(SPLITS) if not (parts == index).any()]
        if missing:
            raise ValueError(f"Fold {name}: nothing is left for {' and '.join(missing)}; there are too few groups.")
        folds[name] = parts
    return folds


def _read(inputs: Inputs, column: str | None) -> list[Any] | None:
    """A column of all splits together."""
    return [cell for cells in inputs.cells(column).values() for cell in cells] if column else None


def _groups(inputs: Inputs) -> tuple[np.ndarray, np.ndarray]:
    """Number of each row's group, and whether it is an augmented copy."""
    args, num_rows = inputs.args, sum(map(len, inputs.splits.values()))
    ids, groups = _read(inputs, args.id_column), _read(inputs, args.group_column)
    names = [name or "" for name in ids or groups or [None] * num_rows]
    augmented = np.array([bool(re.search(args.augmented_pattern, name)) for name in names])
    originals, owners = (
        [re.sub(args.augmented_pattern, "", name or "") or None for name in column]
        for column in (names, groups or names)
    )
    numbers = number_groups(owners)
    first: dict[str, int] = {}
    for name, number in zip(originals, numbers, strict=True):
        if name and first.setdefault(name, number) != number:
            raise ValueError(f"{name!r} of column {args.id_column} is in two groups of {args.group_column}.")
    return numbers, augmented


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line. Raises ValueError for anything that the user can fix."""
    parser = input_parser(__doc__, groups=True)
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--leave_out", metavar="COLUMN", help="a fold for each value of this column")
    kind.add_argument("--num_folds", type=int, help="random folds of groups")
    parser.add_argument("--id_column", help="column in which augmented copies are named <id>_aug<N>")
    parser.add_argument("--augmented_pattern", default=AUGMENTED, help=f"what ends such a name; {AUGMENTED}")
    parser.add_argument("--stratify_by", nargs="+", default=[], metavar="COLUMN", help="classes to spread evenly")
    parser.add_argument("--validation_share", type=float, default=0.15, help="of what is not in the test part")
    parser.add_argument("--hierarchy", help="label tree for the folds; by default the one that lies beside the data")
    parser.add_argument("--seed", type=int, default=0, help="of what is random")
    parser.add_argument("--output_dir", required=True, help="new folder for the folds")
    args = parser.parse_args(argv)
    if not 0 < args.validation_share < 1:
        raise ValueError(f"--validation_share must be between 0 and 1, not {args.validation_share}.")
    try:
        re.compile(args.augmented_pattern)
    except re.error as error:
        raise ValueError(f"--augmented_pattern {args.augmented_pattern}: {error}.") from error
    inputs = open_inputs(args)
    groups, augmented = _groups(inputs)
    columns = {column: _read(inputs, column) for column in args.stratify_by}
    classes = (
        pd.DataFrame(columns).groupby(args.stratify_by, dropna=False).ngroup().to_numpy() if columns else 0 * groups
    )
    values = _read(inputs, args.leave_out)
    options = {"num_folds": args.num_folds, "validation_share": args.validation_share, "seed": args.seed}
    folds = make_folds(groups, classes, augmented, values=values, **options)
    named = {}
    for value, parts in folds.items():  # letters of any script stay, such as content_Line_art; the rest becomes _
        words = (args.leave_out or "fold", unicodedata.normalize("NFC", value))
        named["_".join(re.sub(r"[^\w-]+", "_", word) for word in words)] = parts
    if len(named) < len(folds):
        raise ValueError(f"Values of {args.leave_out} differ only by what a folder's name cannot hold: {list(folds)}.")
    hierarchy = Path(args.hierarchy) if args.hierarchy else hierarchy_beside(args)
    if hierarchy:
        load_hierarchy(hierarchy)

    source, summary = inputs.source(), {}
    places = [(split, int(number)) for split, numbers in inputs.numbers.items() for number in numbers]
    with atomic_folder(args.output_dir) as folder:
        for name, parts in named.items():
            rows = {split: np.flatnonzero(parts == index) for index, split in enumerate(SPLITS)}
            summary[name] = {"num_rows_left_out": int((parts == NOWHERE).sum())}
            for split, own in rows.items():
                num_groups, num_classes = len(np.unique(groups[own])), len(np.unique(classes[own]))
                summary[name][split] = {"num_rows": len(own), "num_groups": num_groups, "num_classes": num_classes}
            (folder / name).mkdir()
            write_selection(
                folder / name, source, {split: [places[row] for row in own] for split, own in rows.items()}
            )
            if hierarchy:
                shutil.copyfile(hierarchy, folder / name / f"hierarchy{hierarchy.suffix}")
        write_json(folder / "folds.json", summary)
    for name, parts in summary.items():
        counts = ", ".join(f"{split} {parts[split]['num_rows']}" for split in SPLITS)
        print(f"{name}: {counts} rows; {parts['num_rows_left_out']} left out")
    print(f"{len(named)} folds in {args.output_dir}")


if __name__ == "__main__":
    run(main)
