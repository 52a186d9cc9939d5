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
        cuts = [partial(crop, top=top, left=left, height=size, width=size) for top, left in corners]
        return [(cut, torch.nn.Identity()) for cut in cuts]
    turns, mirrors = {"none": (1, [False]), "hflip": (1, [False, True]), "d4": (4, [False, True])}[tta]
    changes = [(turn, mirror) for mirror in mirrors for turn in range(turns)]
    return [(partial(_turn, *change), partial(_undo, *change)) for change in changes]


def _turn(turn: int, mirror: bool, pixels: torch.Tensor) -> torch.Tensor:
    return torch.rot90(pixels.flip(-1) if mirror else pixels, turn, (-2, -1))


def _undo(turn: int, mirror: bool, scores: torch.Tensor) -> torch.Tensor:
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
    models, first = [], {}
    for name in names:
        models.append(model := load_saved_model(str(name)))
        config, spec = model.config, model.config.backbone
        facts = {"task": type(model), "label tree": config.hierarchy, "head": config.head}
        facts |= {fact: spec[fact] for fact in ("image_size", "mean", "std", "interpolation")}
        facts["setting of evaluation"] = config.evaluation
        first = first or facts
        for what, value in facts.items():
            if value != first[what]:
                raise ValueError(f"{name} has another {what} than {names[0]}: they cannot be averaged.")
    return models
