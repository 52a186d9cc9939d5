"""Predictions of whole images, one line each: written as tables, and counted."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..system.files import atomic_write


@contextmanager
def line_writer(path: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A function that adds a line to a CSV or JSON lines file, by the file's suffix."""
    with atomic_write(path) as file:
        table: csv.DictWriter | None = None

        def add(line: Mapping[str, Any]) -> None:
            nonlocal table
            if path.suffix == ".jsonl":
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                return
            cells = flat_line(line)
            if table is None:
                table = csv.DictWriter(file, list(cells))
                table.writeheader()
            table.writerow(cells)

        yield add


def flat_line(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line as cells of a table: LEVEL and LEVEL_probability, top1 and top1_probability, answer, answer_level, ..."""
    cells = {name: value for name, value in line.items() if name not in ("levels", "top", "answer")}
    answer = line.get("answer")
    if answer is not None:
        cells |= {"answer" if name == "text" else f"answer_{name}": value for name, value in answer.items()}
    for level, entry in line["levels"].items():
        column = f"{level} (level)" if level in cells else level  # a level may be called group
        cells |= {column if name == "name" else f"{column}_{name}": value for name, value in entry.items()}
    for place, entry in enumerate(line["top"], 1):
        cells |= {f"top{place}": entry["leaf"], f"top{place}_probability": entry["probability"]}
    return cells


def doubt(line: Mapping[str, Any]) -> dict[str, Any] | None:
    """Why to look at an image's label, and how much: the model is sure of another, or unsure where there is none."""
    levels, judged = line["levels"], [entry.get("right") for entry in line["levels"].values()]
    if True in judged and False not in judged:
        return None
    wrong = [(entry["probability"], level) for level, entry in levels.items() if entry.get("right") is False]
    score, level = max(wrong) if wrong else (1 - line["top"][0]["probability"], list(levels)[-1])
    place = {"row": line["row"], "image": line["image"], "level": level, "predicted": levels[level]["name"]}
    return {"reason": "mislabelled" if wrong else "unlabelled", "score": round(score, 6), **place}


Counts = Counter[tuple[str, str | None, bool | None]]
"""Of images or groups: ``path`` or ``answer``, the level, and whether it is right (``None``: nobody knows)"""


def count_line(counts: Counts, line: Mapping[str, Any]) -> None:
    """Count one image or group."""
    counts["all", None, None] += 1
    counts.update(("path", level, entry.get("right")) for level, entry in line["levels"].items())
    if (answer := line.get("answer")) is not None:
        counts["answer", answer["level"], answer.get("right")] += 1


def shares(counts: Counts, levels: Sequence[str]) -> dict[str, Any]:
    """Shares, per level and over all; ``None`` where there is nothing to divide by.

    ``coverage`` is the share answered at exactly this level, ``precision`` the share of right ones among answers
    with a known label, ``accuracy`` that of the best path at the level, answered or not.
    """
    num = counts["all", None, None]

    def sums(what: str, chosen: Sequence[str]) -> tuple[int, int, int]:
        unknown, wrong, right = (sum(counts[what, level, known] for level in chosen) for known in (None, False, True))
        return unknown + wrong + right, wrong + right, right

    def answered(chosen: Sequence[str]) -> dict[str, Any]:
        total, judged, right = sums("answer", chosen)
        coverage, precision = _share(total, num), _share(right, judged)
        return {"num_answered": total, "coverage": coverage, "num_judged": judged, "precision": precision}

    result: dict[str, Any] = {"num": num}
    paths = {level: sums("path", [level]) for level in levels}
    if any(judged for _, judged, _ in paths.values()):
        result["accuracy"] = {level: _share(right, judged) for level, (_, judged, right) in paths.items()}
    if any(what == "answer" for what, _, _ in counts):
        result["answers"] = {**{level: answered([level]) for level in levels}, "all": answered(levels)}
    return result


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def counts_table(name: str, counts: Mapping[str, Any]) -> list[str]:
    """What :func:`shares` returns as lines of text; none if there is no share in it."""
    accuracy, answers = counts.get("accuracy", {}), counts.get("answers", {})
    if not accuracy and not answers:
        return []
    rows = [[name, "accuracy", *(["answered", "coverage", "judged", "precision"] if answers else [])]]
    for level in {**accuracy, **answers}:
        rows.append([level, _shown(accuracy.get(level)), *map(_shown, answers.get(level, {}).values())])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def _shown(value: float | int | None) -> str:
    if isinstance(value, float):
        return f"{100 * value:.2f}%"
    return "-" if value is None else f"{value:,}"
