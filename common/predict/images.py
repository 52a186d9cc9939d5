"""Saved models for whole images on new images: paths, probabilities, back-off, and groups of photographs."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from ..data.rows import ImageRows, Samples
from ..files import replaced_file
from ..images.transforms import EvaluationTransform, Normalize
from ..metrics.backoff import answer_levels, answer_text, is_right, path_probabilities
from ..model.hierarchy import Hierarchy
from ..model.modeling import LabelTreeForImageClassification
from .predictor import Predictor, ShownImages

FORMATS = ("csv", "jsonl")


class ClassPredictor(Predictor):
    """What is predicted of whole images.

    Args:
        model: as training saved it.
        accelerator: knows the device and the precision.
        decoding: see :meth:`common.model.heads.LevelHeads.path_scores`.
        top_k: how many of the most probable leaves are listed.
        formats: of the tables, see :data:`FORMATS`.
        thresholds: per level, for back-off (:func:`common.metrics.backoff.answer_levels`); ``None`` for no answers.
        groups: of every row, for answers about several photographs of one thing.
        labels: int64 (rows, levels), see :func:`common.metrics.backoff.find_labels`; ``None`` if nothing is known.
    """

    largest_part = 512

    def __init__(
        self,
        model: LabelTreeForImageClassification,
        accelerator: Accelerator,
        *,
        decoding: str,
        top_k: int,
        formats: Sequence[str] = ("csv",),
        thresholds: Sequence[float | None] | None = None,
        groups: Sequence[str | None] | None = None,
        labels: np.ndarray | None = None,
    ) -> None:
        self.model, self.accelerator, self.heads = model, accelerator, model.heads
        self.decoding, self.formats, self.thresholds = decoding, list(formats), thresholds
        self.groups, self.labels = groups, labels
        self.hierarchy: Hierarchy = model.hierarchy
        self.top_k = min(top_k, self.hierarchy.num_leaves)
        self.names = [self.hierarchy.display_names(level) for level in range(self.hierarchy.num_levels)]
        self.leaf_names = self.hierarchy.leaf_names()
        spec = model.config.backbone
        self.normalize = Normalize(spec["mean"], spec["std"]).to(accelerator.device)
        self.kept: list[tuple[int, torch.Tensor]] = []

    def settings(self) -> dict[str, Any]:
        return {"--format": self.formats, "--top_k": self.top_k, "the thresholds of answers": self.thresholds}

    def samples(self, images: ImageRows) -> Samples:
        spec, evaluation = self.model.config.backbone, self.model.config.evaluation
        transform = EvaluationTransform(
            spec["image_size"],
            resize_mode=evaluation["resize_mode"],
            crop_pct=evaluation["crop_pct"],
            interpolation=spec["interpolation"],
        )
        return ShownImages(images, lambda image: {"pixels": transform(image)})

    @torch.inference_mode()
    def predict(self, batch: Mapping[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
        pixels = self.normalize(batch["pixels"].to(self.accelerator.device, non_blocking=True))
        with self.accelerator.autocast():
            logits = self.model(pixels, logits_only=True)
        rows = batch["rows"].tolist()
        if self.groups is not None:
            self.kept += zip(rows, self.heads.normalized(logits).cpu(), strict=True)
        labels = None if self.labels is None else self.labels[rows]
        lines = self.describe(logits, labels)
        heads = [{"kind": "image", "row": row, "image": name} for row, name in zip(rows, names, strict=True)]
        if self.groups is not None:
            heads = [{**head, "group": self.groups[head["row"]]} for head in heads]
        return [{**head, **line} for head, line in zip(heads, lines, strict=True)]

    def finish_part(self) -> list[dict[str, Any]]:
        """Lines for the groups of a part: what the mean of its photographs' probabilities says.

        The mean of probabilities, not of their logarithms: one photograph on which nothing can be seen then cannot
        veto what the others show, and the levels of the tree still agree with each other.
        """
        members: dict[str, list[tuple[int, torch.Tensor]]] = {}
        for row, log_probs in sorted(self.kept, key=lambda entry: entry[0]):
            if self.groups[row] is not None:
                members.setdefault(self.groups[row], []).append((row, log_probs))
        self.kept = []
        if not members:
            return []
        means = [torch.stack([part for _, part in group]).logsumexp(0) for group in members.values()]
        first = [group[0][0] for group in members.values()]
        lines = self.describe(torch.stack(means), None if self.labels is None else self.labels[first])
        return [
            {"kind": "group", "group": name, "num_images": len(rows), **line}
            for (name, rows), line in zip(members.items(), lines, strict=True)
        ]

    def describe(self, logits: torch.Tensor, labels: np.ndarray | None) -> list[dict[str, Any]]:
        """Logits (n, outputs) in words: path, probabilities, most probable leaves, and the answer."""
        log_probs = self.heads.log_probs(logits)
        path = self.hierarchy.lift(self.heads.path_scores(logits, log_probs, self.decoding).argmax(1))
        top = self.heads.leaf_logits(logits).float().softmax(1).topk(self.top_k)
        chosen = path_probabilities(log_probs, path).cpu().numpy()
        paths = torch.stack(path, 1).cpu().numpy()
        leaves, shares = top.indices.tolist(), top.values.tolist()
        judged = None if labels is None else is_right(paths, labels)
        answered = None if self.thresholds is None else answer_levels(chosen, paths, self.thresholds)
        lines = []
        for index in range(len(paths)):
            verdict = None if judged is None else (judged[0][index], judged[1][index])
            line = {"levels": self._levels(paths[index], chosen[index], verdict)}
            line["top"] = [
                {"leaf": self.leaf_names[leaf], "probability": round(share, 6)}
                for leaf, share in zip(leaves[index], shares[index], strict=True)
            ]
            if answered is not None:
                line["answer"] = self._answer(paths[index], chosen[index], int(answered[index]), verdict)
            lines.append(line)
        return lines

    def _levels(self, path: np.ndarray, chosen: np.ndarray, verdict: Any) -> dict[str, Any]:
        levels = {}
        for level, name in enumerate(self.hierarchy.levels):
            label = int(path[level])
            entry: dict[str, Any] = {
                "name": None if label < 0 else self.names[level][label],
                "probability": round(float(chosen[level]), 6),
            }
            if verdict is not None:
                entry["right"] = bool(verdict[1][level]) if verdict[0][level] else None
            levels[name] = entry
        return levels

    def _answer(self, path: np.ndarray, chosen: np.ndarray, level: int, verdict: Any) -> dict[str, Any]:
        answer: dict[str, Any] = {
            "level": None if level < 0 else self.hierarchy.levels[level],
            "text": answer_text(self.hierarchy, path.tolist(), level),
            "probability": None if level < 0 else round(float(chosen[level]), 6),
        }
        if verdict is not None:
            answer["right"] = bool(verdict[1][level]) if level >= 0 and verdict[0][level] else None
        return answer

    def merge(self, lines: Iterable[Mapping[str, Any]], output_dir: Path) -> dict[str, Any]:
        """Write predictions.*, with groups also groups.*, and return what summary.json says of them."""
        kinds = ("image",) if self.groups is None else ("image", "group")
        counts = {kind: AnswerCounts(self.hierarchy.levels) for kind in kinds}
        with ExitStack() as stack:
            writers = {
                kind: [stack.enter_context(LineWriter(output_dir / f"{FILES[kind]}.{form}")) for form in self.formats]
                for kind in kinds
            }
            for line in lines:
                counts[line["kind"]].add(line)
                for writer in writers[line["kind"]]:
                    writer.add({name: value for name, value in line.items() if name != "kind"})
        return {FILES[kind]: counts[kind].compute() for kind in kinds}

    def describe_results(self, results: Mapping[str, Any]) -> list[str]:
        return [line for name, counts in results.items() for line in counts_table(name, counts)]


FILES = {"image": "predictions", "group": "groups"}


class AnswerCounts:
    """How many were answered at which level, and how many of those that labels can judge are right."""

    def __init__(self, levels: Sequence[str]) -> None:
        self.levels = levels
        self.num = 0
        self.counts = {level: dict.fromkeys(("answered", "judged", "right"), 0) for level in levels}
        self.paths = {level: dict.fromkeys(("judged", "right"), 0) for level in levels}
        self.has_answers = False

    def add(self, line: Mapping[str, Any]) -> None:
        """Count one image or group."""
        self.num += 1
        for level, entry in line["levels"].items():
            self._judge(self.paths[level], entry)
        answer = line.get("answer")
        if answer is not None:
            self.has_answers = True
            if answer["level"] is not None:
                self.counts[answer["level"]]["answered"] += 1
                self._judge(self.counts[answer["level"]], answer)

    @staticmethod
    def _judge(counts: dict[str, int], entry: Mapping[str, Any]) -> None:
        if entry.get("right") is not None:
            counts["judged"] += 1
            counts["right"] += entry["right"]

    def compute(self) -> dict[str, Any]:
        """Shares, per level and over all; ``None`` where there is nothing to divide by.

        ``coverage`` is the share answered at exactly this level, ``precision`` the share right of those answered
        that labels can judge, ``accuracy`` that of the best path at the level, answered or not.
        """
        result: dict[str, Any] = {"num": self.num}
        if any(counts["judged"] for counts in self.paths.values()):
            result["accuracy"] = {
                level: _share(counts["right"], counts["judged"]) for level, counts in self.paths.items()
            }
        if self.has_answers:
            rows = {**self.counts, "all": {key: sum(row[key] for row in self.counts.values()) for key in COUNTED}}
            result["answers"] = {
                name: {
                    "num_answered": row["answered"],
                    "coverage": _share(row["answered"], self.num),
                    "num_judged": row["judged"],
                    "precision": _share(row["right"], row["judged"]),
                }
                for name, row in rows.items()
            }
        return result


def counts_table(name: str, counts: Mapping[str, Any]) -> list[str]:
    """What :meth:`AnswerCounts.compute` returns as lines of text."""
    rows = [[name, "accuracy"], *([level, share] for level, share in counts.get("accuracy", {}).items())]
    if "answers" in counts:
        rows[0] += ["answered", "coverage", "judged", "precision"]
        for level, row in counts["answers"].items():
            here = next((cells for cells in rows if cells[0] == level), None)
            if here is None:
                rows.append(here := [level, None])
            here += [row["num_answered"], row["coverage"], row["num_judged"], row["precision"]]
    if len(rows) == 1:
        return []
    shown = [[_shown(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in shown]


def _shown(cell: Any) -> str:
    if isinstance(cell, float):
        return f"{100 * cell:.2f}%"
    return "-" if cell is None else f"{cell:,}" if isinstance(cell, int) else cell


COUNTED = ("answered", "judged", "right")


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


class LineWriter:
    """A CSV or JSON lines file that is written line by line, and whole or absent in the end."""

    def __init__(self, path: Path) -> None:
        self.path, self.file = path, replaced_file(path)
        self.columns: list[str] | None = None

    def __enter__(self) -> LineWriter:
        self.stream = self.file.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.file.__exit__(*error)

    def add(self, line: Mapping[str, Any]) -> None:
        """Write one line."""
        if self.path.suffix == ".jsonl":
            self.stream.write(json.dumps(line, ensure_ascii=False) + "\n")
            return
        cells = flat_line(line)
        writer = csv.writer(self.stream)
        if self.columns is None:
            self.columns = list(cells)
            writer.writerow(self.columns)
        writer.writerow(["" if cells[column] is None else cells[column] for column in self.columns])


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
