"""Answers from several views of an image (test-time augmentation) and several models: the mean of probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torchvision.transforms.v2.functional import crop

from ..model.modeling import LabelTreeModel
from ..publish.models import load_saved_model

IMAGE_VIEWS = ("none", "hflip", "five_crop")
MASK_VIEWS = ("none", "hflip", "d4")
CROP = 0.875
"""Side of each of five crops, relative to the image as it is shown (timm's usual ``crop_pct``)"""

Change = Callable[[torch.Tensor], torch.Tensor]


def shown_size(size: int, tta: str) -> int:
    """Side at which images are prepared, so that each view has the model's own ``size``."""
    return math.ceil(size / CROP) if tta == "five_crop" else size


def views(tta: str, size: int) -> list[tuple[Change, Change]]:
    """Pairs of functions: images (n, 3, h, w) -> what the model is shown; scores of that -> scores of the images."""
    if tta == "five_crop":
        far = shown_size(size, tta) - size
        corners = [(0, 0), (0, far), (far, 0), (far, far), (far // 2, far // 2)]
        return [
            (partial(crop, top=top, left=left, height=size, width=size), torch.nn.Identity()) for top, left in corners
        ]
    turns, mirrored = {"none": (1, 1), "hflip": (1, 2), "d4": (4, 2)}[tta]
    pairs = [(turn, bool(mirror)) for mirror in range(mirrored) for turn in range(turns)]
    return [
        (partial(_turn, turn=turn, mirror=mirror), partial(_undo, turn=turn, mirror=mirror)) for turn, mirror in pairs
    ]


def _turn(pixels: torch.Tensor, turn: int, mirror: bool) -> torch.Tensor:
    return torch.rot90(pixels.flip(-1) if mirror else pixels, turn, (-2, -1))


def _undo(scores: torch.Tensor, turn: int, mirror: bool) -> torch.Tensor:
    if scores.dim() == 2:  # of whole images
        return scores
    scores = torch.rot90(scores, -turn, (-2, -1))
    return scores.flip(-1) if mirror else scores


def averaged(models: Sequence[LabelTreeModel], tta: str) -> Callable[..., torch.Tensor]:
    """What answers like a model: logits that are the logarithm of probabilities averaged over models and views.

    Each softmax is averaged by itself, and one model without views is returned as it is.

    Args:
        models: whose answers can be averaged; see :func:`load_models`.
        tta: one of :data:`IMAGE_VIEWS`, or of :data:`MASK_VIEWS` for dense models.
    """
    if len(models) == 1 and tta == "none":
        return models[0]
    pairs = views(tta, models[0].config.backbone["image_size"])

    def logits(pixels: torch.Tensor, logits_only: bool = True) -> torch.Tensor:
        total = None
        for model in models:
            for show, undo in pairs:
                part = model.heads.normalized(undo(model(show(pixels), logits_only=True)))
                total = part if total is None else torch.logaddexp(total, part)
        return total - math.log(len(models) * len(pairs))

    return logits


def load_models(names: Sequence[str | Path]) -> list[LabelTreeModel]:
    """Saved models whose answers can be averaged.

    Raises:
        ValueError: one cannot be loaded, or differs in task, label tree, head, pixels or how images are shown.
    """
    models = [load_saved_model(str(name)) for name in names]
    facts = []
    for model in models:
        config, spec = model.config, model.config.backbone
        facts.append({"task": type(model), "label tree": config.hierarchy, "head": config.head})
        facts[-1] |= {name: spec[name] for name in ("image_size", "mean", "std", "interpolation")}
        facts[-1]["setting of evaluation"] = config.evaluation
    for name, found in zip(names, facts, strict=True):
        for what, value in facts[0].items():
            if found[what] != value:
                raise ValueError(f"{name} has another {what} than {names[0]}: they cannot be averaged.")
    return models
