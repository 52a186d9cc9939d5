"""Answers from several views of an image (test-time augmentation) and several models: the mean of probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ..model.modeling import LabelTreeModel
from ..publish.models import load_saved_model

IMAGE_VIEWS = ("none", "hflip", "five_crop")
MASK_VIEWS = ("none", "hflip", "d4")
CROP = 0.875
"""Side of each of five crops, relative to the image as it is shown (timm's usual ``crop_pct``)"""

View = tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]


def shown_size(size: int, tta: str) -> int:
    """Side at which images are prepared, so that each view has the model's own ``size``."""
    return math.ceil(size / CROP) if tta == "five_crop" else size


def views(tta: str, size: int) -> list[View]:
    """Pairs of functions: images (n, 3, h, w) -> what the model is shown; scores of that -> scores of the images."""
    if tta == "five_crop":
        margin = shown_size(size, tta) - size
        corners = [(0, 0), (0, margin), (margin, 0), (margin, margin), (margin // 2, margin // 2)]
        return [(lambda x, t=top, le=left: x[..., t : t + size, le : le + size], _same) for top, left in corners]
    turns, flips = {"none": (1, 1), "hflip": (1, 2), "d4": (4, 2)}[tta]
    return [_turned(turn, flip == 1) for flip in range(flips) for turn in range(turns)]


def _same(scores: torch.Tensor) -> torch.Tensor:
    return scores


def _turned(turn: int, flip: bool) -> View:
    def show(pixels: torch.Tensor) -> torch.Tensor:
        return torch.rot90(pixels.flip(-1) if flip else pixels, turn, (-2, -1))

    def undo(scores: torch.Tensor) -> torch.Tensor:
        if scores.dim() == 2:  # of whole images
            return scores
        scores = torch.rot90(scores, -turn, (-2, -1))
        return scores.flip(-1) if flip else scores

    return show, undo


def averaged(models: Sequence[LabelTreeModel], tta: str) -> Callable[..., torch.Tensor]:
    """What answers like a model: logits that are the logarithm of probabilities averaged over models and views.

    Each softmax is averaged by itself, so the path is decoded from mean probabilities. One model without views is
    returned as it is.

    Args:
        models: of the same label tree, head and pixels; see :func:`load_models`.
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
        ValueError: one cannot be loaded, or differs in kind, label tree, head, pixels or how images are shown.
    """
    models = [load_saved_model(str(name)) for name in names]
    for name, model in zip(names[1:], models[1:], strict=True):
        for what, of in COMPARED.items():
            if of(model) != of(models[0]):
                raise ValueError(f"{name} has another {what} than {names[0]}: they cannot be averaged.")
    return models


COMPARED: dict[str, Callable[[LabelTreeModel], object]] = {
    "task": type,
    "label tree": lambda model: model.hierarchy.to_dict(),
    "head": lambda model: model.config.head,
    **{
        name: lambda model, key=key: model.config.backbone[key]
        for name, key in (("image size", "image_size"), ("mean", "mean"), ("std", "std"), ("resize", "interpolation"))
    },
    "setting of evaluation": lambda model: model.config.evaluation,
}
"""What models must have in common, in the words of a message"""
