"""Losses of the shape of regions, which need every pixel of an image at once.

Each takes float32 (images, classes, height, width): probabilities and one-hot labels, both 0 where there is no label;
and ``known`` (images, 1, height, width), 1 where there is one. It returns one loss per class, (classes,), of all these
images together; that of a class which does not occur is meaningless, but finite.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from ..images.morphology import dilate, inner_boundary, skeleton
from .pixel_softmax import enlarge

BOUNDARY_TOLERANCE = 2  # pixels


def lovasz(probs: torch.Tensor, truth: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Lovasz-Softmax, a convex surrogate of 1 - IoU (Berman et al., CVPR 2018)."""
    errors, order = (truth - probs).abs().transpose(0, 1).flatten(1).sort(1, descending=True)
    right = truth.transpose(0, 1).flatten(1).gather(1, order).long()  # sums of floats have no fixed order on GPUs
    total = right.sum(1, keepdim=True)
    jaccard = 1 - (total - right.cumsum(1)) / (total + (1 - right).cumsum(1))
    return (errors * F.pad(jaccard, (1, 0)).diff(dim=1)).sum(1)


def boundary(probs: torch.Tensor, truth: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """1 - F1 of the boundaries within a tolerance (Bokhovkin and Burnaev, arXiv 1905.07852)."""
    inside = 1 - dilate(1 - known, 1)  # not where the labels end
    given, wanted = inner_boundary(probs) * inside, inner_boundary(truth) * inside
    return _one_minus_f1(given, dilate(wanted, BOUNDARY_TOLERANCE), wanted, dilate(given, BOUNDARY_TOLERANCE))


def cldice(probs: torch.Tensor, truth: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """1 - clDice: how far the skeleton of each lies in the other (Shit et al., CVPR 2021)."""
    return _one_minus_f1(skeleton(probs), truth, skeleton(truth), probs)


def _one_minus_f1(*pairs: torch.Tensor) -> torch.Tensor:
    """From what is given, and where that is right; from what is wanted, and where that is found. No sum is 0."""
    precision, recall = (
        ((part * right).sum((0, 2, 3)) + 1) / (part.sum((0, 2, 3)) + 1) for part, right in (pairs[:2], pairs[2:])
    )
    return 1 - 2 * precision * recall / (precision + recall)


SHAPES = {"lovasz": lovasz, "boundary": boundary, "cldice": cldice}


def add_shapes(
    loss: Any,
    active: Sequence[int],
    sums: torch.Tensor,
    logits: torch.Tensor,
    labels: torch.Tensor,
    factors: torch.Tensor,
    gradient: torch.Tensor | None,
) -> None:
    """Add a :class:`.segmentation.SegmentationLoss`'s parts that are among :data:`SHAPES` to its sums and gradient.

    By automatic differentiation, of one image at a time, or of all together with ``dice_over="batch"``.
    """
    heads, full = loss._heads[0], labels.shape[1:]
    columns = [(column, SHAPES[part]) for column, part in enumerate(loss.parts) if part in SHAPES]
    step = len(logits) if loss.dice_over == "batch" else 1
    for images in (slice(start, start + step) for start in range(0, len(logits), step)):
        with torch.set_grad_enabled(gradient is not None):
            given = logits[images].detach().float().requires_grad_(gradient is not None)
            large = given if given.shape[2:] == full else enlarge(given, loss.stride, full)
            total, log_probs, truth = 0, heads.log_probs(large, active), heads.hierarchy.lift(labels[images])
            for slot, level in enumerate(active):
                known, weight = (truth[level] >= 0)[:, None], loss.get_buffer(f"class_weight_{level}")
                one_hot = truth[level][:, None] == torch.arange(len(weight), device=labels.device)[:, None, None]
                weight = torch.where(one_hot.any(3).any(2).any(0), weight, 0)
                maps = log_probs[level].exp() * known, one_hot.float(), known.float()
                for column, shape in columns:
                    value = (weight * shape(*maps)).sum()
                    sums[level, column] += value.detach()
                    total = total + factors[slot, column] * value
            if gradient is not None:
                gradient[images] += torch.autograd.grad(total, given)[0]
