"""Predictions for whole images: paths, probabilities, back-off, and groups of photographs."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator

from ..images.transforms import EvaluationTransform, Normalize
from ..metrics.calibration import is_right
from ..model.answers import SCORES, known_scores
from ..model.modeling import LabelTreeForImageClassification
from ..system.files import atomic_write
from .lines import Counts, count_line, counts_table, doubt, line_writer, shares
from .views import averaged, shown_size

FILES = {"image": "predictions", "group": "groups"}

logger = logging.getLogger(__name__)


class ClassPredictor:
    """Predicts classes of whole images, and writes them as tables.

    Args:
        args: the options of predict.py.
        accelerator: knows the device and the precision.
        models: whose answers are averaged.
        thresholds: per level, for back-off (:func:`common.model.answers.answer_levels`); ``None`` for no answers.
        bound: images with a lower score ``args.unknown`` (:data:`common.model.answers.SCORES`) get no answer.
        groups: of every row, for answers about several photographs of one thing.
        labels: int64 (rows, levels), see :func:`common.labels.encoding.find_labels`; ``None`` if nothing is known.

    Attributes:
        largest_part: images in a part, see :func:`common.predict.parts.plan_parts`.
        settings: what the predictions depend on, besides model and images, by its name in messages.
        transform: encoded image -> what the model is shown.
    """

    largest_part = 512

    def __init__(
        self,
        args: Any,
        accelerator: Accelerator,
        models: Sequence[LabelTreeForImageClassification],
        thresholds: Sequence[float | None] | None,
        bound: float | None,
        groups: Sequence[str | None] | None,
        labels: np.ndarray | None,
    ) -> None:
        self.args, self.model, self.accelerator, self.hierarchy = args, models[0], accelerator, models[0].hierarchy
        self.batch_size, self.top_k = args.per_device_eval_batch_size, min(args.top_k, self.hierarchy.num_leaves)
        self.thresholds, self.bound, self.groups, self.labels = thresholds, bound, groups, labels
        self.leaf_names = self.hierarchy.leaf_names()
        spec, evaluation = self.model.config.backbone, self.model.config.evaluation
        tta = args.tta or evaluation.get("tta", "none")
        self.answer = averaged(models, tta)
        how = {name: evaluation[name] for name in ("resize_mode", "crop_pct")}
        size = shown_size(spec["image_size"], tta)
        self.transform = EvaluationTransform(size, interpolation=spec["interpolation"], **how)
        self.settings = {"--format": args.format, "--top_k": self.top_k, "--tta": tta, "--rank_by": args.rank_by}
        self.settings |= {"the thresholds of answers": (thresholds, bound), "--unknown": args.unknown}
        self.settings |= {"--features": bool(args.features)}
        self.normalize = Normalize(spec["mean"], spec["std"]).to(accelerator.device)
        names = Path(args.allowed).read_text(encoding="utf-8-sig").splitlines() if args.allowed else []
        nodes = self.hierarchy.find_nodes([name for name in names if name.strip()], "--allowed")
        allowed = [self.hierarchy.ancestors[:, level] == label for level, label in nodes]
        self.allowed = torch.stack(allowed).any(0).to(accelerator.device) if allowed else None
        self.settings["--allowed"] = nodes
        self.kept: list[tuple[int, torch.Tensor]] = []

    @torch.inference_mode()
    def predict(self, batch: Mapping[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
        """A line for each image of a batch; ``names`` are those of the images."""
        pixels = self.normalize(batch["pixels"].to(self.accelerator.device, non_blocking=True))
        with self.accelerator.autocast():
            logits = self.answer(pixels, logits_only=True)
        rows = batch["rows"].tolist()
        heads = [{"kind": "image", "row": row, "image": name} for row, name in zip(rows, names, strict=True)]
        if self.groups is not None:
            self.kept += zip(rows, self.model.heads.normalized(logits).cpu(), strict=True)
            heads = [{**head, "group": self.groups[head["row"]]} for head in heads]
        if self.args.features:
            with self.accelerator.autocast():
                vectors = self.model.backbone(pixels).float().tolist()
            heads = [{**head, "features": vector} for head, vector in zip(heads, vectors, strict=True)]
        return [{**head, **line} for head, line in zip(heads, self.describe(logits, rows), strict=True)]

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
        lines = self.describe(torch.stack(means), first)
        return [
            {"kind": "group", "group": name, "num_images": len(rows), **line}
            for (name, rows), line in zip(members.items(), lines, strict=True)
        ]

    def describe(self, logits: torch.Tensor, rows: Sequence[int]) -> list[dict[str, Any]]:
        """What is written about logits (n, outputs) of rows: path, probabilities, most probable leaves, the answer."""
        output = self.model.complete(logits)
        if self.allowed is not None:
            leaves = output.logits.float().masked_fill(~self.allowed, -torch.inf)
            output = type(output)(logits=leaves, log_probs=tuple(self.hierarchy.marginalize(leaves.log_softmax(1))))
        answers = self.model.decode(output, thresholds=self.thresholds)
        if self.bound is not None:
            known = known_scores(output.logits, answers.probabilities)[:, SCORES.index(self.args.unknown)]
            answers.level[known < self.bound] = -1
        chances = output.logits.float().softmax(1)
        order = chances
        if self.args.rank_by == "distance":  # it is the number of levels less those expected right
            order = self.hierarchy.path_scores([level.exp() for level in output.log_probs])
        leaves = order.topk(self.top_k).indices
        leaves, shares = leaves.tolist(), chances.gather(1, leaves).tolist()
        lines, by_cost = answers.describe(), self.model.config.evaluation["decoding"] == "cost"
        for line, score in zip(lines, [] if self.bound is None else known.tolist(), strict=False):
            line |= {"known_score": round(score, 6), "unknown": score < self.bound}
        if self.labels is not None:
            judged, right = is_right(answers.path.cpu().numpy(), self.labels[list(rows)])
            found = np.where(judged, right, None).tolist()
            for line, known, level in zip(lines, found, answers.level.tolist(), strict=True):
                for entry, value in zip(line["levels"].values(), known, strict=True):
                    entry["right"] = value
                line["answer"]["right"] = None if level < 0 else known[level]
        for index, line in enumerate(lines):
            answer = line.pop("answer")
            line["top"] = [
                {"leaf": self.leaf_names[leaf], "probability": round(share, 6)}
                for leaf, share in zip(leaves[index], shares[index], strict=True)
            ]
            if self.thresholds is not None or by_cost or self.bound is not None:
                line["answer"] = answer
        return lines

    def merge(self, lines: Iterable[dict[str, Any]], output_dir: Path) -> dict[str, Any]:
        """Write predictions.*, with groups also groups.*, and return what summary.json says about them."""
        kinds = ("image",) if self.groups is None else ("image", "group")
        counts: dict[str, Counts] = {kind: Counter() for kind in kinds}
        vectors: list[dict[str, Any]] = []
        with ExitStack() as stack:
            files = {kind: [output_dir / f"{FILES[kind]}.{form}" for form in self.args.format] for kind in kinds}
            writers = {kind: [stack.enter_context(line_writer(path)) for path in files[kind]] for kind in kinds}
            doubts = []
            for line in lines:
                if "features" in line:
                    vectors.append({"image": line["image"], "features": line.pop("features")})
                if self.args.review and line["kind"] == "image" and (found := doubt(line)):
                    doubts.append(found)
                count_line(counts[line["kind"]], line)
                for write in writers[line.pop("kind")]:
                    write(line)
        if self.args.review:
            doubts.sort(key=lambda found: (found["reason"], -found["score"]))
            with atomic_write(self.args.review) as file:
                pd.DataFrame(doubts).to_csv(file, index=False)
        if self.args.features:
            with atomic_write(self.args.features, "wb") as file:
                pd.DataFrame(vectors).to_parquet(file, index=False)
        levels = self.hierarchy.levels
        used = {} if self.thresholds is None else {"thresholds": dict(zip(levels, self.thresholds, strict=True))}
        results = {FILES[kind]: shares(counts[kind], levels) for kind in kinds}
        for line in [line for name, found in results.items() for line in counts_table(name, found)]:
            logger.info("%s", line)
        return results | used
