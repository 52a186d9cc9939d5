"""Predictions for whole images: paths, probabilities, back-off, and groups of photographs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from ..images.transforms import EvaluationTransform, Normalize
from ..metrics.backoff import is_right
from ..model.hierarchy import Hierarchy
from ..model.modeling import LabelTreeForImageClassification
from .lines import AnswerCounts, counts_table, line_writer
from .views import averaged, shown_size

FORMATS = ("csv", "jsonl")
FILES = {"image": "predictions", "group": "groups"}


class ClassPredictor:
    """Predicts classes of whole images, and writes them as tables.

    Args:
        model: as training saved it.
        accelerator: knows the device and the precision.
        batch_size: images in a forward pass.
        top_k: how many of the most probable leaves are listed.
        formats: of the tables, see :data:`FORMATS`.
        thresholds: per level, for back-off (:func:`common.model.answers.answer_levels`); ``None`` for no answers.
        groups: of every row, for answers about several photographs of one thing.
        labels: int64 (rows, levels), see :func:`common.metrics.backoff.find_labels`; ``None`` if nothing is known.

    Attributes:
        largest_part: images in a part, see :func:`common.predict.parts.plan_parts`.
        transform: encoded image -> what the model is shown.
    """

    largest_part = 512

    def __init__(
        self,
        model: LabelTreeForImageClassification,
        accelerator: Accelerator,
        *,
        batch_size: int,
        top_k: int,
        formats: Sequence[str] = ("csv",),
        thresholds: Sequence[float | None] | None = None,
        groups: Sequence[str | None] | None = None,
        labels: np.ndarray | None = None,
        more_models: Sequence[LabelTreeForImageClassification] = (),
        tta: str = "none",
    ) -> None:
        self.model, self.accelerator, self.heads = model, accelerator, model.heads
        self.batch_size, self.formats, self.thresholds = batch_size, list(formats), thresholds
        self.groups, self.labels = groups, labels
        self.hierarchy: Hierarchy = model.hierarchy
        self.top_k = min(top_k, self.hierarchy.num_leaves)
        self.leaf_names = self.hierarchy.leaf_names()
        spec, evaluation = model.config.backbone, model.config.evaluation
        self.decoding, self.tta = evaluation["decoding"], tta
        self.answer = averaged([model, *more_models], tta)
        self.transform = EvaluationTransform(
            shown_size(spec["image_size"], tta),
            resize_mode=evaluation["resize_mode"],
            crop_pct=evaluation["crop_pct"],
            interpolation=spec["interpolation"],
        )
        self.normalize = Normalize(spec["mean"], spec["std"]).to(accelerator.device)
        self.kept: list[tuple[int, torch.Tensor]] = []

    def settings(self) -> dict[str, Any]:
        """What the predictions depend on, besides model and images, by its name in messages."""
        return {
            "--format": self.formats,
            "--top_k": self.top_k,
            "--tta": self.tta,
            "the thresholds of answers": self.thresholds,
        }

    @torch.inference_mode()
    def predict(self, batch: Mapping[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
        """A line for each image of a batch; ``names`` are those of the images."""
        pixels = self.normalize(batch["pixels"].to(self.accelerator.device, non_blocking=True))
        with self.accelerator.autocast():
            logits = self.answer(pixels, logits_only=True)
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
        """A line for each group of a part, from the mean of its photographs' probabilities.

        With the mean of log-probabilities one photograph on which nothing can be seen could rule out what the others
        show; and with the mean of probabilities the levels of the tree still agree with each other.
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
        """What is written about logits (n, outputs): path, probabilities, most probable leaves, and the answer."""
        output = self.model.complete(logits)
        answers = self.model.decode(output, thresholds=self.thresholds)
        top = output.logits.float().softmax(1).topk(self.top_k)
        leaves, shares = top.indices.tolist(), top.values.tolist()
        judged = None if labels is None else np.where(*is_right(answers.path.cpu().numpy(), labels), None).tolist()
        lines = answers.describe()
        for index, (line, level) in enumerate(zip(lines, answers.level.tolist(), strict=True)):
            if judged is not None:
                for entry, right in zip(line["levels"].values(), judged[index], strict=True):
                    entry["right"] = right
                line["answer"]["right"] = None if level < 0 else judged[index][level]
            answer = line.pop("answer")
            line["top"] = [
                {"leaf": self.leaf_names[leaf], "probability": round(share, 6)}
                for leaf, share in zip(leaves[index], shares[index], strict=True)
            ]
            if self.thresholds is not None:
                line["answer"] = answer
        return lines

    def merge(self, lines: Iterable[Mapping[str, Any]], output_dir: Path) -> dict[str, Any]:
        """Write predictions.*, with groups also groups.*, and return what summary.json says about them."""
        kinds = ("image",) if self.groups is None else ("image", "group")
        counts = {kind: AnswerCounts(self.hierarchy.levels) for kind in kinds}
        with ExitStack() as stack:
            writers = {
                kind: [stack.enter_context(line_writer(output_dir / f"{FILES[kind]}.{form}")) for form in self.formats]
                for kind in kinds
            }
            for line in lines:
                counts[line["kind"]].add(line)
                for write in writers[line["kind"]]:
                    write({name: value for name, value in line.items() if name != "kind"})
        return {FILES[kind]: counts[kind].compute() for kind in kinds}

    def describe_results(self, results: Mapping[str, Any]) -> list[str]:
        """What :meth:`merge` returned, as lines for the log."""
        return [line for name, counts in results.items() for line in counts_table(name, counts)]
