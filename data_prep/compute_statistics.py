"""Count labels or pixels per class, weigh classes by every method, and measure sizes and colours of the images.

    python data_prep/compute_statistics.py --dataset_name DIR --level_columns family genus species --output_dir DIR
    python data_prep/compute_statistics.py --dataset_name DIR --mask_column mask --output_dir DIR

Writes statistics.json and tail.png, a picture of how unequal the classes are. Labels are counted in all rows; pixels
of masks, sizes and colours in --num_images rows of each split, spread evenly (0 for all). Class weights are those that
training with --class_weighting would use, as far as all rows are counted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: Python then looks for modules beside this file, not in the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from matplotlib.figure import Figure

from common.data.masks import MaskReader
from common.data.rows import ImageRows
from common.files import replaced_file
from common.images.files import BAD_IMAGE
from common.losses.class_weights import CLASS_WEIGHTINGS, class_weights, count_labels
from common.model.hierarchy import Hierarchy
from data_prep.parts.inputs import (
    Inputs,
    add_inputs,
    add_labels,
    add_num_proc,
    add_palette,
    label_columns,
    open_inputs,
    read_masks,
)
from data_prep.parts.parallel import map_rows, work_folder


@dataclass
class Measurer:
    """Measures rows of a split.

    Args:
        images: to decode.
        masks, reader: of the same rows, or ``None``.
        rows: the numbers of those to measure.
    """

    images: ImageRows
    masks: ImageRows | None
    reader: MaskReader | None
    rows: np.ndarray

    def measure(self, row: int) -> dict[str, np.ndarray]:
        """Of one row ``size`` (2,), width and height; ``sums`` (2, 3), of each channel in 0..1 and of its square; and
        ``pixels`` (leaves,). All are 0 for a row that does not decode.
        """
        found = self.nothing(row)
        try:
            colours = np.asarray(self.images.load(row, self.images.encoded([row])[0]))
            if self.masks is not None:
                values = self.reader(self.masks.checked(self.masks.encoded([row])[0]))
                found["pixels"] = np.bincount(values.ravel(), minlength=256)[: self.reader.num_leaves]
        except (*BAD_IMAGE, MemoryError):
            return found
        counts = np.stack([np.bincount(colours[..., channel].ravel(), minlength=256) for channel in range(3)])
        levels = np.arange(256) / 255
        return found | {"size": colours.shape[1::-1], "sums": np.stack([counts @ levels, counts @ levels**2])}

    def nothing(self, row: int) -> dict[str, np.ndarray]:
        """What stands for a row that does not decode, or ended its process."""
        leaves = self.reader.num_leaves if self.reader else 0
        return {"size": np.zeros(2, np.int64), "sums": np.zeros((2, 3)), "pixels": np.zeros(leaves, np.int64)}


def describe_images(size: np.ndarray, sums: np.ndarray) -> dict[str, Any]:
    """Sizes, and mean and standard deviation of each channel over all pixels, of what :class:`Measurer` found."""
    good = size[:, 0] > 0
    size, sums = size[good], sums[good]
    facts: dict[str, Any] = {"num_measured": len(size), "num_broken": int((~good).sum())}
    if not len(size):
        return facts
    for name, values in (
        ("width", size[:, 0]),
        ("height", size[:, 1]),
        ("megapixels", size.prod(1) / 1e6),
        ("aspect_ratio", size[:, 0] / size[:, 1]),
    ):
        quantiles = np.quantile(values, [0, 0.05, 0.5, 0.95, 1]).round(4).tolist()
        facts[name] = dict(zip(("min", "5%", "median", "95%", "max"), quantiles, strict=True))
    num_pixels = size.prod(1).sum()
    mean = sums[:, 0].sum(0) / num_pixels
    variance = sums[:, 1].sum(0) / num_pixels - mean**2
    return {**facts, "mean": mean.round(6).tolist(), "std": np.sqrt(np.maximum(variance, 0)).round(6).tolist()}


def describe_counts(counts: Sequence[torch.Tensor], hierarchy: Hierarchy, max_ratio: float) -> dict[str, Any]:
    """Of each level: counts and weights of its classes, the imbalance ratio, and classes that do not occur.

    Args:
        counts: per level (classes,).
        hierarchy: has the names.
        max_ratio: largest class weight over the smallest.
    """
    levels = {}
    for level, name in enumerate(hierarchy.levels):
        names, count = hierarchy.display_names(level), counts[level]
        occurring = count[count > 0]
        methods = [method for method in CLASS_WEIGHTINGS if method != "none"]
        weights = {method: class_weights(count, method, max_ratio).double() for method in methods}
        levels[name] = {
            "num_classes": len(names),
            "num_labelled": int(count.sum()),
            "imbalance_ratio": round(float(occurring.max() / occurring.min()), 3) if len(occurring) else None,
            "absent": [names[index] for index in torch.nonzero(count == 0).flatten().tolist()],
            "counts": dict(zip(names, count.tolist(), strict=True)),
            "class_weights": {
                method: dict(zip(names, [round(value, 6) for value in values.tolist()], strict=True))
                for method, values in weights.items()
            },
        }
    return levels


def draw_tail(path: Path, counts: Mapping[str, np.ndarray], unit: str) -> None:
    """Draw the counts of each level's classes, from the commonest to the rarest, on logarithmic axes.

    Args:
        path: of the PNG file.
        counts: level -> (classes,).
        unit: what is counted.
    """
    figure = Figure(figsize=(8, 5), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for level, values in counts.items():
        values = np.sort(values[values > 0])[::-1]
        marker = "o" if len(values) <= 60 else None
        label = f"{level}: {len(values)} classes"
        if len(values):
            label += f", {values[0] / values[-1]:,.0f} to 1"
        axes.plot(np.arange(1, len(values) + 1), values, marker=marker, markersize=4, label=label)
    axes.set(xscale="log", yscale="log", xlabel="class, from the commonest on", ylabel=unit)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    axes.legend()
    with replaced_file(path, "wb") as file:
        figure.savefig(file)


def compute_statistics(
    work: Mapping[str, Measurer],
    labels: Mapping[str, np.ndarray],
    hierarchy: Hierarchy,
    folder: Path,
    *,
    num_proc: int = 0,
    max_ratio: float = 100.0,
) -> dict[str, Any]:
    """What statistics.json holds.

    Args:
        work: what to measure in each split.
        labels: of each split int64 (rows, levels); empty if labels are the masks' pixels.
        hierarchy: of the labels.
        folder: for unfinished work.
        num_proc: processes; 0 for this one.
        max_ratio: largest class weight over the smallest.
    """
    result: dict[str, Any] = {"counted": "images" if labels else "pixels", "splits": {}}
    for split, measurer in work.items():
        how = {"num_proc": num_proc, "chunk_rows": 64}
        found = map_rows(measurer.measure, measurer.nothing, measurer.rows, folder, split, **how)
        if labels:
            counts = count_labels(torch.from_numpy(labels[split]), hierarchy)
        else:
            counts = hierarchy.count_lifted(torch.from_numpy(found["pixels"].sum(0)))
        result["splits"][split] = {
            "num_rows": len(measurer.images),
            "images": describe_images(found["size"], found["sums"]),
            "levels": describe_counts(counts, hierarchy, max_ratio),
        }
    return result


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_inputs(parser, masks=True)
    add_labels(parser)
    add_palette(parser)
    parser.add_argument("--num_images", type=int, default=10_000, help="to decode in each split; 0 for all")
    parser.add_argument("--class_weight_max_ratio", type=float, default=100.0, help="as in training")
    parser.add_argument("--output_dir", required=True, help="folder for the results")
    add_num_proc(parser)
    return parser


def _labels(args: argparse.Namespace, inputs: Inputs) -> tuple[Hierarchy, dict[str, np.ndarray]]:
    """The tree and every row's labels, from columns."""
    columns, first = label_columns(args), next(iter(inputs.splits))
    for split, dataset in inputs.splits.items():
        columns.check(dataset, split)
    hierarchy, report = columns.read_hierarchy(inputs.splits[first])
    for line in report:
        print(f"label tree: {line}", file=sys.stderr)
    return hierarchy, {split: columns.read_labels(data, hierarchy, split) for split, data in inputs.splits.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line. Raises ValueError for anything that the user can fix."""
    args = _parser().parse_args(argv)
    if args.class_weight_max_ratio < 1 or args.num_images < 0:
        raise ValueError("--class_weight_max_ratio must be at least 1, and --num_images at least 0.")
    inputs = open_inputs(args)
    tree, reader = read_masks(args)
    hierarchy, labels = (tree, {}) if tree else _labels(args, inputs)
    images, masks = inputs.images(), inputs.images(args.mask_column) if tree else {}
    work = {}
    for split, rows in images.items():
        most = min(args.num_images or len(rows), len(rows))
        chosen = np.unique(np.linspace(0, len(rows) - 1, most).astype(int))
        work[split] = Measurer(rows, masks.get(split), reader, chosen)
    output = Path(args.output_dir)
    settings = inputs.settings("statistics", tree and (tree.to_dict(), reader.palette), args.num_images)
    with work_folder(output, settings) as folder:
        ratio = args.class_weight_max_ratio
        result = compute_statistics(work, labels, hierarchy, folder, num_proc=args.num_proc, max_ratio=ratio)
        output.mkdir(parents=True, exist_ok=True)
        first = next(iter(work))
        levels = result["splits"][first]["levels"]
        tails = {level: np.array(list(facts["counts"].values())) for level, facts in levels.items()}
        draw_tail(output / "tail.png", tails, f"{result['counted']} ({first})")
        with replaced_file(output / "statistics.json") as file:
            file.write(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    for split, facts in result["splits"].items():
        images = facts["images"]
        print(f"{split}: {facts['num_rows']} rows, {images['num_measured']} measured, {images['num_broken']} broken")
    for level, facts in levels.items():
        print(f"{first} {level}: {facts['num_classes']} classes, imbalance {facts['imbalance_ratio']}")
    print(f"Statistics are in {output / 'statistics.json'}")


if __name__ == "__main__":
    from common.run.command import run

    run(main)
