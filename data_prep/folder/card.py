"""What a prepared folder holds, and what it says of itself: stats.json and README.md."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from datasets import Image
from jinja2 import Environment, FileSystemLoader

from common.labels.encoding import encode_paths
from common.model.hierarchy import Hierarchy
from common.system.files import atomic_write
from data_prep.rows.row_set import RowSet

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


@dataclass
class Content:
    """What a prepared folder will hold.

    Args:
        title, text: of the data set card; paragraphs about where the data come from and how they were prepared.
        columns: of the folder besides the images: level columns, group column, and others to keep.
        divide: gives rows their splits, and may leave some out; called for all rows first, to find mistakes early,
            and then for those with good images.
        levels: the level columns, coarse to fine; none for masks.
        tree: the label tree if it is given; else the rows span it.
        root: folder of the images, without symbolic links; empty if the rows' source holds them.
    """

    title: str
    text: str
    rows: RowSet
    columns: Sequence[str]
    divide: Callable[[RowSet], None]
    levels: Sequence[str] = ()
    tree: Hierarchy | None = None
    group_column: str | None = None
    root: str = ""


def describe(rows: pd.DataFrame, stored: pd.DataFrame, content: Content, tree: Hierarchy | None) -> dict[str, Any]:
    """The statistics of a split: of its rows, and of what is known of the image of each."""
    facts: dict[str, Any] = {"num_images": len(rows)}
    if content.group_column:
        facts["num_groups"] = int(rows[content.group_column].nunique())
    if content.levels:
        facts["levels"] = _label_counts(rows, tree)
    pixels = sum((Counter(json.loads(text)) for text in stored["pixels"]), Counter())
    if pixels:
        names = dict(enumerate(tree.leaf_names())) if tree else {}
        facts["pixels"] = {names.get(int(value), value): pixels[value] for value in sorted(pixels, key=int)}
    sizes = stored[["width", "height"]].agg(["min", "max"])
    facts["image_sizes"] = {f"{which}_{side}": int(sizes[side][which]) for side in sizes for which in sizes.index}
    if stored["num_bytes"].any():
        facts["num_bytes"] = int(stored["num_bytes"].sum())
    return facts


def _label_counts(part: pd.DataFrame, tree: Hierarchy) -> dict[str, Any]:
    """Per level: images with a label there, how often each class occurs, and the imbalance ratio."""
    labels = encode_paths(tree, {level: part[level].tolist() for level in tree.levels})
    found = {}
    for depth, level in enumerate(tree.levels):
        names = tree.display_names(depth)
        numbers = Counter(labels[:, depth].tolist())
        counts = {names[label]: numbers[label] for label in sorted(numbers) if label >= 0}
        found[level] = {
            "num_labelled": sum(counts.values()),
            "num_classes": len(counts),
            "imbalance_ratio": round(max(counts.values(), default=0) / min(counts.values(), default=1), 2),
            "counts": counts,
        }
    return found


def write_card(
    path: Path, content: Content, masks: bool, features: Mapping[str, Any], stats: Mapping[str, Any]
) -> None:
    """Write the data set card: YAML for the Hub, then text, tables and notes for people."""
    total = sum(split["num_images"] for split in stats["splits"].values())
    front = {
        "pretty_name": content.title,
        "task_categories": ["image-segmentation" if masks else "image-classification"],
        "size_categories": [next((name for limit, name in SIZES if total < limit), "1M<n<10M")],
    }
    kinds = {name: "image" if isinstance(feature, Image) else feature.dtype for name, feature in features.items()}
    folder = FileSystemLoader(Path(__file__).parent)
    template = Environment(loader=folder, trim_blocks=True, keep_trailing_newline=True).get_template("card.md")
    about = {"front": yaml.safe_dump(front, sort_keys=False, allow_unicode=True), "content": content}
    with atomic_write(path, sync=True) as file:
        file.write(template.render(**about, stats=stats, kinds=kinds))
