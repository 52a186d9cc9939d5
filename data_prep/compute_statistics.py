"""Count labels or pixels per class, compute class weights by every method, and measure images' sizes and colours.

    python data_prep/compute_statistics.py --dataset_name DIR --level_columns family genus species --output_dir DIR
    python data_prep/compute_statistics.py --dataset_name DIR --mask_column mask --output_dir DIR

Writes statistics.json and tail.png, a picture of how unequal the classes are. Labels are counted in all rows; pixels
of masks, sizes and colours in --num_images rows of each split, spread evenly (0 for all). Class weights are those that
training with --class_weighting would use, as far as all rows are counted.
"""

from __future__ import annotations

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

from common.data.masks import MaskReader
from common.data.rows import ImageRows
from common.images.files import BAD_IMAGE
from common.losses.class_weights import CLASS_WEIGHTINGS, class_weights, count_labels
from common.model.hierarchy import Hierarchy
from common.report.figures import new_figure, save_figure
from common.run.command import run
from common.system.files import atomic_write
from data_prep.parts.inputs import input_parser, open_inputs, read_masks
from data_prep.parts.parallel import map_rows, work_folder


@dataclass
class Measurer:
    """Measures rows of a split, and of their masks if there are some."""

    images: ImageRows
    masks: ImageRows | None
    reader: MaskReader | None

    def measure(self, row: int) -> dict[str, np.ndarray]:
        """Of one row ``size`` (2,), width and height; ``sums`` (2, 3), of each channel in 0..1 and of its square; and
        ``pixels`` (leaves,), of its mask. All are 0 for a row that does not decode.
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
        """What stands in for a row that does not decode, or ended its process."""
        leaves = self.reader.num_leaves if self.reader else 0
        return {"size": np.zeros(2, np.int64), "sums": np.zeros((2, 3)), "pixels": np.zeros(leaves, np.int64)}


def describe_images(size: np.ndarray, sums: np.ndarray) -> dict[str, Any]:
    """Sizes, and mean and standard deviation of each channel over all pixels, of what :class:`Measurer` found."""
    good = size[:, 0] > 0
    size, sums = size[good], sums[good]
    facts: dict[str, Any] = {"num_measured": len(size), "num_broken": int((~good).sum())}
    if not len(size):
        return facts
    width, height = size.T
    num_pixels = size.prod(1)
    measures = {"width": width, "height": height, "megapixels": num_pixels / 1e6, "aspect_ratio": width / height}
    for name, values in measures.items():
        quantiles = np.quantile(values, [0, 0.05, 0.5, 0.95, 1]).round(4).tolist()
        facts[name] = dict(zip(("min", "5%", "median", "95%", "max"), quantiles, strict=True))
    mean, square = sums.sum(0) / num_pixels.sum()
    std = np.sqrt(np.maximum(square - mean**2, 0))
    return {**facts, "mean": mean.round(6).tolist(), "std": std.round(6).tolist()}


def describe_counts(counts: Sequence[torch.Tensor], hierarchy: Hierarchy, max_ratio: float) -> dict[str, Any]:
    """Of each level: ``counts`` (classes,) and weights, the imbalance ratio, and classes that do not occur."""
    levels = {}
    for level, name in enumerate(hierarchy.levels):
        count = counts[level]
        named = dict(zip(hierarchy.display_names(level), count.tolist(), strict=True))
        occurring = count[count > 0]
        weights = {
            method: class_weights(count, method, max_ratio).double().numpy().round(6).tolist()
            for method in CLASS_WEIGHTINGS
            if method != "none"
        }
        levels[name] = {
            "num_classes": len(named),
            "num_labelled": int(count.sum()),
            "imbalance_ratio": round(float(occurring.max() / occurring.min()), 3) if len(occurring) else None,
            "absent": [name for name, number in named.items() if not number],
            "counts": named,
            "class_weights": {method: dict(zip(named, found, strict=True)) for method, found in weights.items()},
        }
    return levels


def draw_tail(path: Path, counts: Mapping[str, Sequence[float]], unit: str) -> None:
    """Draw the counts of each level's classes, from the commonest to the rarest, on logarithmic axes, as PNG."""
    figure = new_figure(8, 5, layout="constrained")
    axes = figure.add_subplot()
    for level, values in counts.items():
        values = sorted((value for value in values if value > 0), reverse=True)
        label = f"{level}: {len(values)} classes"
        if values:
            label += f", {values[0] / values[-1]:,.0f} to 1"
        marker = "o" if len(values) <= 60 else None
        axes.plot(range(1, len(values) + 1), values, marker=marker, markersize=4, label=label)
    axes.set(xscale="log", yscale="log", xlabel="class, from the commonest on", ylabel=unit)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line. Raises ValueError for anything that the user can fix."""
    parser = input_parser(__doc__, masks=True, labels=True, num_proc=True)
    parser.add_argument("--num_images", type=int, default=10_000, help="to decode in each split; 0 for all")
    parser.add_argument("--class_weight_max_ratio", type=float, default=100.0, help="as in training")
    parser.add_argument("--output_dir", required=True, help="folder for the results")
    args = parser.parse_args(argv)
    if args.class_weight_max_ratio < 1 or args.num_images < 0:
        raise ValueError("--class_weight_max_ratio must be at least 1, and --num_images at least 0.")
    inputs = open_inputs(args)
    tree, reader = read_masks(args)
    hierarchy, labels = (tree, {}) if tree else inputs.labels()
    masks = inputs.images(args.mask_column) if tree else {}
    counted, splits = "pixels" if tree else "images", {}
    output = Path(args.output_dir)
    settings = inputs.settings("statistics", tree and (tree.to_dict(), reader.palette), args.num_images)
    with work_folder(output, settings) as folder:
        for split, images in inputs.images().items():
            rows = np.linspace(0, len(images) - 1, min(args.num_images or len(images), len(images))).astype(int)
            measurer = Measurer(images, masks.get(split), reader)
            how = {"num_proc": args.num_proc, "chunk_rows": 64}
            found = map_rows(measurer.measure, measurer.nothing, np.unique(rows), folder, split, **how)
            if tree:
                counts = hierarchy.count_lifted(torch.from_numpy(found["pixels"].sum(0)))
            else:
                counts = count_labels(torch.from_numpy(labels[split]), hierarchy)
            splits[split] = {
                "num_rows": len(images),
                "images": describe_images(found["size"], found["sums"]),
                "levels": describe_counts(counts, hierarchy, args.class_weight_max_ratio),
            }
        first = next(iter(splits))
        levels = splits[first]["levels"]
        tails = {level: list(facts["counts"].values()) for level, facts in levels.items()}
        output.mkdir(parents=True, exist_ok=True)
        draw_tail(output / "tail.png", tails, f"{counted} ({first})")
        with atomic_write(output / "statistics.json") as file:
            file.write(json.dumps({"counted": counted, "splits": splits}, indent=1, ensure_ascii=False) + "\n")
    for split, facts in splits.items():
        images = facts["images"]
        print(f"{split}: {facts['num_rows']} rows, {images['num_measured']} measured, {images['num_broken']} broken")
    for level, facts in levels.items():
        print(f"{first} {level}: {facts['num_classes']} classes, imbalance {facts['imbalance_ratio']}")
    print(f"Statistics are in {output / 'statistics.json'}")


if __name__ == "__main__":
    run(main)
