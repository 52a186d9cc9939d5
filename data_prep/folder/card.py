"""stats.json and README.md of a prepared folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from common.data.problems import Problem
from common.files import atomic_write
from common.labels.encoding import encode_paths
from common.model.hierarchy import Hierarchy
from data_prep.parts.columns import SPLIT

from .plan import Plan, Results
from .shards import span

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def describe(
    plan: Plan, results: Results, frame: pd.DataFrame, tree: Hierarchy | None, problems: Sequence[Problem]
) -> dict[str, Any]:
    """The statistics of a prepared folder.

    Args:
        plan: what it was to hold.
        results: every shard, and what became of it.
        frame: the rows that are left, with split and labels.
        tree: the label tree, or ``None``.
        problems: rows that were left out.
    """
    splits = {}
    for split in frame[SPLIT].unique():
        part = frame[frame[SPLIT] == split]
        shards = [result for shard, result in results if shard.split == split]
        (min_width, min_height), (max_width, max_height) = span([size for result in shards for size in result.sizes])
        pixels = sum((result.pixels for result in shards), Counter())
        num_bytes = sum(result.num_bytes for result in shards)
        facts = splits[split] = {"num_images": len(part)}
        if plan.content.group_column:
            facts["num_groups"] = int(part[plan.content.group_column].nunique())
        if plan.content.levels:
            facts["levels"] = _label_counts(part, tree)
        if pixels:
            facts["pixels"] = _pixel_counts(pixels, tree)
        facts["image_sizes"] = {
            "min_width": min_width,
            "max_width": max_width,
            "min_height": min_height,
            "max_height": max_height,
        }
        if num_bytes:
            facts["num_bytes"] = num_bytes
    return {
        "splits": splits,
        "num_classes": dict(zip(tree.levels, tree.num_classes, strict=True)) if tree else {},
        "left_out": dict(sorted(Counter(problem.kind for problem in problems).items())),
    }


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


def _pixel_counts(pixels: Mapping[str, int], tree: Hierarchy | None) -> dict[str, int]:
    names = dict(enumerate(tree.leaf_names())) if tree else {}
    return {names.get(int(value), value): pixels[value] for value in sorted(pixels, key=int)}


def write_card(path: Path, plan: Plan, stats: Mapping[str, Any]) -> None:
    """Write the data set card: YAML for the Hub, then text, tables and notes for people."""
    content, notes = plan.content, stats["notes"]
    total = sum(split["num_images"] for split in stats["splits"].values())
    front = {
        "pretty_name": content.title,
        "task_categories": ["image-segmentation" if plan.store.mask_column else "image-classification"],
        "size_categories": [next((name for limit, name in SIZES if total < limit), "1M<n<10M")],
    }
    columns = [
        f"`{name}` ({'image' if type(feature).__name__ == 'Image' else feature.dtype})"
        for name, feature in plan.features.items()
    ]
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n\n# {content.title}",
        content.text,
        _splits_table(stats),
        *([_levels_table(stats, content.levels)] if content.levels else []),
        f"Columns: {', '.join(columns)}.",
        "Read it with `datasets.load_from_disk`. `hierarchy.json` is the label tree, `stats.json` has all counts, "
        "`problems.csv` lists rows that were left out, `prepared.json` how the folder was made.",
    ]
    if stats["left_out"]:
        parts.append("Left out: " + ", ".join(f"{count} {kind}" for kind, count in stats["left_out"].items()) + ".")
    if notes:
        shown = "\n".join(f"- {note}" for note in notes[:50])
        parts.append(f"Notes:\n\n{shown}" + (f"\n- and {len(notes) - 50} more in `stats.json`" if notes[50:] else ""))
    with atomic_write(path, sync=True) as file:
        file.write("\n\n".join(part.strip() for part in parts) + "\n")


def _splits_table(stats: Mapping[str, Any]) -> str:
    lines = ["| split | images | groups | width | height |", "|---|--:|--:|--:|--:|"]
    for split, entry in stats["splits"].items():
        sizes = entry["image_sizes"]
        spans = [f"{sizes[f'min_{side}']} to {sizes[f'max_{side}']}" for side in ("width", "height")]
        lines.append(f"| {split} | {entry['num_images']} | {entry.get('num_groups', '')} | {' | '.join(spans)} |")
    return "\n".join(lines)


def _levels_table(stats: Mapping[str, Any], levels: Sequence[str]) -> str:
    splits = stats["splits"]
    lines = [
        "| level | classes | " + " | ".join(f"labelled, {split}" for split in splits) + " | imbalance, train |",
        "|---|--:|" + "--:|" * (len(splits) + 1),
    ]
    for level in levels:
        entries = [split["levels"][level] for split in splits.values()]
        labelled = " | ".join(str(entry["num_labelled"]) for entry in entries)
        lines.append(f"| {level} | {stats['num_classes'][level]} | {labelled} | {entries[0]['imbalance_ratio']} |")
    return "\n".join(lines)
