"""Dice and focal loss of every pixel per level of the label tree, computed together with their gradient.

A segmentation model's scores at full resolution are the largest tensors of the program, and what automatic
differentiation keeps of them (probabilities, one-hot labels, products, each per level) is many times their size. Here
the gradient is written out, and computed chunk by chunk in the forward pass: nothing of full resolution is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from .heads import LevelHeads
from .pixel_softmax import Chunk, Layout

# Numbers in the buffer of a chunk of images, (CPU, GPU): little memory, or enough to keep every processor busy.
CHUNK = (2**22, 2**27)


class SegmentationLoss(nn.Module):
    """Weighted sum over the levels of ``dice_weight * Dice + focal_weight * focal``, in float32.

    Both are weighted means whose denominators (:meth:`label_weights`) are given from outside, so that the parts of one
    batch (micro-batches, processes) add up to exactly the loss of the whole. A pixel without a label at a level does
    not count there. Cross-entropy is ``dice_weight=0, focal_gamma=0``.

    - Focal (Lin et al., ICCV 2017): ``(1 - p)^gamma * -log p`` of each pixel, where p is its class's probability.
    - Dice (Milletari et al., 3DV 2016): ``1 - (2 I + smooth) / (S + T + smooth)`` of each class that occurs in an
      image: T pixels are of the class, its probabilities sum to I over these and to S over all labelled pixels.

    Args:
        heads: what the scores are of.
        weights: per level, used as they are; may be changed between steps. Levels of weight 0 are not computed.
        class_weights: per level (classes,), or ``None`` for none.
        dice_over: ``image``, or ``batch`` for one Dice of each class over all images of a forward pass.
        stride: how many times smaller than the labels the scores may be.

    Raises:
        ValueError: for an unknown or negative option.
    """

    def __init__(
        self,
        heads: LevelHeads,
        weights: Sequence[float],
        class_weights: Sequence[torch.Tensor] | None = None,
        *,
        dice_weight: float = 0.5,
        focal_weight: float = 0.5,
        focal_gamma: float = 2.0,
        dice_over: str = "image",
        smooth: float = 1.0,
        stride: int = 4,
    ) -> None:
        super().__init__()
        if dice_over not in ("image", "batch"):
            raise ValueError(f"Unknown dice_over {dice_over!r}; choose from image, batch.")
        if min(dice_weight, focal_weight, focal_gamma, smooth, stride - 1) < 0:
            raise ValueError("dice_weight, focal_weight, focal_gamma and smooth are at least 0, stride at least 1.")
        # Not a submodule: the heads belong to the model, and the loss has no parameters.
        self._heads = (heads,)
        self.weights = list(weights)
        self.dice_weight, self.focal_weight, self.focal_gamma = dice_weight, focal_weight, focal_gamma
        self.dice_over, self.smooth, self.stride = dice_over, smooth, stride
        for level, value in enumerate(class_weights or [torch.ones(n) for n in heads.hierarchy.num_classes]):
            self.register_buffer(f"class_weight_{level}", value.float(), persistent=False)
        self._layouts: dict[Any, Layout] = {}

    @property
    def num_levels(self) -> int:
        """Number of levels."""
        return len(self.weights)

    @torch.no_grad()
    def label_weights(self, labels: torch.Tensor) -> torch.Tensor:
        """Denominators [of Dice, of focal] per level, float64 (levels, 2), of leaf labels (batch, H, W)."""
        hierarchy, images = self._heads[0].hierarchy, len(labels)
        index = torch.where(labels < 0, hierarchy.num_leaves, labels).flatten(1)
        pixels = torch.zeros(images, hierarchy.num_leaves + 1, dtype=torch.float64, device=labels.device)
        pixels.scatter_add_(1, index, pixels.new_ones(()).expand_as(index))
        result = []
        for level, column in enumerate(hierarchy.lift(torch.arange(-1, hierarchy.num_leaves, device=labels.device))):
            weight = getattr(self, f"class_weight_{level}").double()
            # A leaf without a value at this level goes to one class too many, as do pixels without a label.
            index = torch.where(column < 0, len(weight), column).roll(-1)
            counts = pixels.new_zeros(images, len(weight) + 1).index_add_(1, index, pixels)[:, :-1]
            occurs = (counts.sum(0, keepdim=True) if self.dice_over == "batch" else counts) > 0
            result.append(torch.stack([(occurs * weight).sum(), (counts * weight).sum()]))
        return torch.stack(result)

    def forward(
        self, scores: torch.Tensor, labels: torch.Tensor, denominators: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The loss, a float32 scalar attached to the graph even if no pixel is labelled (then it is 0).

        Args:
            scores: (batch, outputs of the heads, h, w), any floating dtype; of the labels' size, or ``stride`` times
                smaller (rounded up) and then enlarged bilinearly.
            labels: (batch, H, W) int64 leaf labels, negative where there is none.
            denominators: (levels, 2) :meth:`label_weights` of the whole batch that this is a part of; by default of
                this one.

        Raises:
            ValueError: if the sizes do not fit.
        """
        if denominators is None:
            denominators = self.label_weights(labels)
        if torch.is_grad_enabled() and scores.requires_grad:
            return _WithGradient.apply(scores, labels, denominators, self)
        return self.combine(self.level_sums(scores, labels), denominators)

    def combine(self, sums: torch.Tensor, denominators: torch.Tensor) -> torch.Tensor:
        """The loss, from :meth:`level_sums` and :meth:`label_weights` added up over all parts; x/0 counts as 0."""
        return (sums * self._factors(denominators).to(sums)).sum()

    def level_sums(self, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Numerators [of Dice, of focal] per level, float32 (levels, 2), not in the graph; 0 where the weight is 0."""
        return self.sums_and_gradient(scores, labels)[0]

    @torch.no_grad()
    def sums_and_gradient(
        self, scores: torch.Tensor, labels: torch.Tensor, denominators: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """:meth:`level_sums` and, given denominators, the loss's float32 gradient with respect to the scores."""
        size, full = tuple(scores.shape[2:]), tuple(labels.shape[1:])
        if size != full and size != tuple(-(-length // self.stride) for length in full):
            raise ValueError(
                f"Scores of {size} pixels fit labels of {full} neither so nor {self.stride} times larger."
            )
        sums = torch.zeros(self.num_levels + 1, 2, device=scores.device)  # the last is of rows without a level
        gradient = None if denominators is None else torch.zeros_like(scores, dtype=torch.float32)
        active = [level for level, weight in enumerate(self.weights) if weight]
        if not active or not scores.numel():
            return sums[:-1], gradient
        key = (*active, scores.device)
        if key not in self._layouts:
            self._layouts[key] = Layout(self._heads[0], active, scores.device)
        layout = self._layouts[key]
        each = [getattr(self, f"class_weight_{level}") for level in range(self.num_levels)]
        weight = torch.cat([*each, sums.new_zeros(1)])[layout.class_of_row]
        factors = torch.zeros_like(sums)
        if denominators is not None:
            factors[:-1] = self._factors(denominators)
        step = max(1, CHUNK[scores.is_cuda] // (layout.num_rows * labels[0].numel()))
        parts = [slice(start, start + step) for start in range(0, len(labels), step)]
        of_batch = slopes = None
        with torch.autocast(scores.device.type, enabled=False):
            if self.dice_weight and self.dice_over == "batch" and len(parts) > 1:  # no slope before the last sum
                of_batch = sum(
                    Chunk(layout, scores[p], labels[p], self.stride).overlaps().sum(1, keepdim=True) for p in parts
                )
            for part in parts:
                chunk = Chunk(layout, scores[part], labels[part], self.stride)
                if self.dice_weight:
                    overlaps = chunk.overlaps()
                    if self.dice_over == "batch":
                        overlaps = overlaps.sum(1, keepdim=True) if of_batch is None else of_batch
                    dice, slopes = self._dice(overlaps, weight)
                    slopes = (slopes * factors[layout.level_of_row, 0]).float().expand(-1, len(chunk.rows), -1)
                    if of_batch is None or part.start == 0:
                        sums[:, 0].index_add_(0, layout.level_of_row, dice.sum(0).float())
                focal, pulls = self._focal(chunk.log_probs, weight.take(chunk.rows))
                sums[:, 1].index_add_(0, layout.levels, focal)
                if gradient is not None:
                    chunk.write_gradient(slopes, pulls.mul_(factors[layout.levels, 1][:, None]), gradient[part])
                del chunk  # before the next one takes as much memory
        return sums[:-1], gradient

    def _factors(self, denominators: torch.Tensor) -> torch.Tensor:
        """(levels, 2): what a numerator is multiplied with in the loss."""
        weights = torch.tensor(self.weights, dtype=torch.float64)[:, None]
        weights = weights * torch.tensor([self.dice_weight, self.focal_weight], dtype=torch.float64)
        return torch.where(denominators > 0, weights.to(denominators.device, non_blocking=True) / denominators, 0)

    def _dice(self, overlaps: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Dice of each row from I, S, T (3, images, rows): (images, rows), and its slopes in S and -I."""
        inside, everywhere, count = overlaps
        weight = torch.where(count > 0, weight, 0)
        below = torch.where(count > 0, everywhere + count + self.smooth, 1)
        ratio = (2 * inside + self.smooth) / below
        return weight * (1 - ratio), torch.stack([weight * ratio / below, 2 * weight / below])

    def _focal(self, log_probs: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Sums (levels,) of focal from what :class:`Chunk` has per pixel, and the slope in each log-probability."""
        if not self.focal_weight:
            return log_probs.new_zeros(log_probs.shape[1]), torch.zeros_like(log_probs)
        if not self.focal_gamma:
            return -(weight * log_probs).sum((0, 2)), weight.neg_()
        wrong = -torch.expm1(log_probs)
        weight *= wrong.pow(self.focal_gamma)
        # p log p / (1 - p): finite; at p = 1 it is multiplied with 0, so that 0 will do there, unlike 0 / 0.
        ratio = log_probs.exp().mul_(log_probs).div_(wrong.clamp_(min=torch.finfo(torch.float32).tiny))
        return -(weight * log_probs).sum((0, 2)), weight.mul_(ratio.mul_(self.focal_gamma).sub_(1))


class _WithGradient(torch.autograd.Function):
    """The loss as one step of the graph."""

    @staticmethod
    def forward(ctx: Any, scores: torch.Tensor, labels: torch.Tensor, denominators: torch.Tensor, loss: Any) -> Any:
        sums, gradient = loss.sums_and_gradient(scores, labels, denominators)
        ctx.save_for_backward(gradient)
        ctx.dtype = scores.dtype
        return loss.combine(sums, denominators)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # Rounded only after a loss scale is in: one pixel's share of a mean underflows in half precision.
        return (ctx.saved_tensors[0] * upstream).to(ctx.dtype), None, None, None
