"""The numbers of an evaluation as all_results.json holds them: names, comparison, tables of text."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

LOWER_IS_BETTER = {"loss", "ece", "tree_inconsistency", "hierarchical_distance", "mean_cost"}


def flatten(results: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Nested results as (dotted name, number), without intervals, which are no measures of their own."""
    for key, value in results.items():
        if key == "intervals":
            continue
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def check_metric_name(name: str, known: Sequence[str]) -> None:
    """ValueError, with the nearest name, if ``--metric_for_best_model`` names none of the results."""
    if name not in known:
        near = get_close_matches(name, known, 1, 0.8)
        hint = f"Did you mean {near[0]}?" if near else f"The names are as {known[0]} and {known[-1]}: docs/metrics.md."
        raise ValueError(f"--metric_for_best_model {name} is not among the results. {hint}")


def is_better(name: str, value: float, best: float | None) -> bool:
    """Whether ``value`` of the metric ``name`` improves on ``best``; NaN never does."""
    lower = name.rpartition(".")[2] in LOWER_IS_BETTER
    return not math.isnan(value) and (best is None or (value < best if lower else value > best))


def results_table(results: Mapping[str, Any]) -> str:
    """The evaluation as text: a row a level, and the measures of complete paths for both decodings."""
    rows = level_rows(results)
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    for label, measures in path_measures(results).items():
        lines.append(f"{label}: {'  '.join(f'{words} {value}' for words, value in measures)}")
    if "loss" in results:
        lines.append(f"loss {results['loss']:.4f}  images {results['num_samples']}")
    if "unknown" in results:
        lines.append(f"unknown: {'  '.join(f'{name} {value:.3g}' for name, value in flatten(results['unknown']))}")
    if "observations" in results:
        together = results["observations"]
        lines += [f"the images of {together['num_samples']:,} observations together:", results_table(together)]
    return "\n".join(lines)


def level_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """A header, then a row a level."""
    levels = results["levels"]
    columns = [name for name, value in next(iter(levels.values())).items() if not isinstance(value, Mapping)]
    rows = [
        [level, *(cell(name, row[name]) + interval_text(results, level, name) for name in columns)]
        for level, row in levels.items()
    ]
    return [["level", *columns], *rows]


def interval_text(results: Mapping[str, Any], *keys: str) -> str:
    """The bootstrap interval of a share, as `` [41.0, 52.3]`` in percent; nothing where there is none.

    ``keys`` are a level and a measure, or ``full_path_accuracy``.
    """
    bounds = results.get("intervals", {})
    for key in keys:
        bounds = (bounds or {}).get(key)
    if bounds is None or any(bound is None or math.isnan(bound) for bound in bounds):
        return ""
    return f" [{', '.join(f'{100 * bound:.1f}' for bound in bounds)}]"


def path_measures(results: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """Per decoding, the measures of complete paths as (words, value)."""
    return {
        label: [
            (words, cell(key, results[name][key]) + (interval_text(results, key) if name == "path" else ""))
            for key, words in MEASURES.items()
            if key in results[name]
        ]
        for name, label in (("path", "best path"), ("argmax", "per-level argmax"), ("costs", "answers"))
        if name in results
    }


MEASURES = {
    "full_path_accuracy": "full path",
    "tree_inconsistency": "not in the tree",
    "hierarchical_distance": "hierarchical distance",
    "mean_cost": "mean cost",
    "not_answered": "not answered",
    **{f"track_{number}": f"FungiCLEF track {number}" for number in (1, 2, 3, 4)},
}


def in_words(measure: str) -> str:
    """A measure's name for people: ``mean_iou`` is mean IoU."""
    words = {"iou": "IoU", "f1": "F1", "ece": "ECE", "cldice": "clDice", "num": "number"}
    return " ".join(words.get(word, re.sub(r"^top(?=\d)", "top-", word)) for word in measure.split("_"))


def cell(name: str, value: float | None) -> str:
    """A value as text, by its measure's name; NaN may have become None on the way through a file."""
    value = math.nan if value is None else value
    if name.startswith("num_"):
        return f"{value:,}"
    plain = name in {"ece", "hierarchical_distance", "mean_cost"} or name.startswith("track_")
    return f"{value:.3f}" if plain else f"{100 * value:.2f}%"
