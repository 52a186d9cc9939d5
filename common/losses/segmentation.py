"""Losses of every pixel per level of the label tree, computed together with their gradient.

A segmentation model's logits at full resolution are the largest tensors of the program, and what autograd keeps of
them (probabilities, one-hot labels, products, each per level) is many times their size. Here the gradient is written
out and computed chunk by chunk in the forward pass: nothing is kept at full resolution.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from ..model.heads import LevelHeads
from .pixel_softmax import PixelSoftmax, SoftmaxLayout, enlarge, gather_enlarged, look_up
from .shapes import SHAPES, add_shapes

# Probabilities in memory at a time, (CPU, GPU), unless they share the gradient's memory.
CHUNK = (2**22, 2**27)
OVERLAP_PARTS, PIXEL_PARTS = ("dice", "tversky"), ("focal", "ce")
PARTS = (*OVERLAP_PARTS, *PIXEL_PARTS, *SHAPES)


def loss_parts(words: Sequence[str]) -> dict[str, float]:
    """Weights of the parts of a loss, from words such as ``dice=1`` or, with weight 1, ``lovasz``.

    Raises:
        ValueError: for anything else, a part twice, or no weight above 0.
    """
    parts: dict[str, float] = {}
    for part, _, weight in (word.partition("=") for word in words):
        if part not in PARTS or part in parts or not re.fullmatch(r"(\d+\.?|\d*\.\d+)?(e-?\d+)?", weight):
            raise ValueError(
                f"--loss takes dice_focal, cross_entropy, or parts with weights, such as dice=1 focal=0.5, each once, "
                f"of {', '.join(PARTS)}; not {' '.join(words)}"
            )
        parts[part] = float(weight or 1)
    if not any(parts.values()):
        raise ValueError("the weights of --loss must not all be 0")
    return parts


class SegmentationLoss(nn.Module):
    """Weighted sum over the levels of weighted sums of parts, in float32.

    Each part is a weighted mean whose denominator (:meth:`label_weights`) is given from outside, so that the parts of
    one batch (micro-batches, processes) add up to exactly the loss of the batch. A pixel without a label at a level
    does not count there.

    Means over pixels, where p is the probability of the pixel's class:

    - ce: cross-entropy, ``-log p``.
    - focal (Lin et al., ICCV 2017): ``(1 - p)^gamma * -log p``.

    With ``ohem`` (Shrivastava et al., CVPR 2016) pixels of p above it add 0 to these sums.

    Means over the classes that occur in an image, where T pixels are of the class, and its probabilities sum to I over
    these and to S over all labelled pixels:

    - dice (Milletari et al., 3DV 2016): ``1 - (2 I + smooth) / (S + T + smooth)``.
    - tversky (Salehi et al., MLMI 2017): S and T weigh 2 (1 - beta) and 2 beta, so Dice is that of beta 0.5.
    - lovasz, boundary, cldice: see :mod:`.shapes`. Only these are computed by automatic differentiation.

    Args:
        heads: the heads that give the logits.
        weights: per level, used as they are; may be changed between steps. Levels of weight 0 are not computed.
        class_weights: per level (classes,), or ``None`` for none.
        parts: weight of each part; those of weight 0 are left out.
        dice_over: ``image``, or ``batch`` for one overlap of each class over all images of a forward pass.
        tversky_beta: weight of missed pixels; that of false ones is 1 - beta.
        aux_weight: of the loss of the auxiliary head, whose logits may follow those of the batch.
        stride: how many times smaller than the labels the logits may be.
    """

    def __init__(
        self,
        heads: LevelHeads,
        weights: Sequence[float],
        class_weights: Sequence[torch.Tensor] | None = None,
        parts: Mapping[str, float] | None = None,
        *,
        focal_gamma: float = 2.0,
        ohem: float = 1.0,
        dice_over: str = "image",
        tversky_beta: float = 0.7,
        aux_weight: float = 0.0,
        smooth: float = 1.0,
        stride: int = 4,
    ) -> None:
        super().__init__()
        parts = {"dice": 0.5, "focal": 0.5} if parts is None else parts
        self._heads = (heads,)  # not a submodule: the heads belong to the model, and the loss has no parameters
        self.weights, self.focal_gamma = list(weights), focal_gamma
        self.parts = {part: parts[part] for part in PARTS if parts.get(part)}
        self.overlaps = {part: 0.5 if part == "dice" else tversky_beta for part in OVERLAP_PARTS if part in self.parts}
        self.ohem, self.aux_weight = ohem, aux_weight
        self.dice_over, self.smooth, self.stride = dice_over, smooth, stride
        for level, value in enumerate(class_weights or map(torch.ones, heads.hierarchy.num_classes)):
            self.register_buffer(f"class_weight_{level}", value.float(), persistent=False)
        self._layout = cache(partial(SoftmaxLayout, heads))

    @torch.no_grad()
    def label_weights(self, labels: torch.Tensor) -> torch.Tensor:
        """Denominator of each part per level, float64 (levels, parts), of leaf labels (batch, H, W)."""
        layout = self._layout(tuple(range(len(self.weights))), labels.device)
        counts, weight = self._counts(layout, self._leaves(labels)), self._class_weights(layout).double()
        of_kind = torch.stack([((counts > 0) * weight).sum(0), (counts * weight).sum(0)])
        regions, pixels = torch.stack([of_kind[:, row].sum(1) for row in layout.rows], 1)
        return torch.stack([pixels if part in PIXEL_PARTS else regions for part in self.parts], 1)

    def forward(
        self, logits: torch.Tensor, labels: torch.Tensor, denominators: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The loss, a float32 scalar attached to the graph even if no pixel is labelled (then it is 0).

        Args:
            logits: (batch, outputs of the heads, h, w), any floating dtype; of the labels' size, or ``stride`` times
                smaller (rounded up) and then enlarged bilinearly. Twice as many in training with an auxiliary head.
            labels: (batch, H, W) int64 leaf labels, negative where there is none.
            denominators: (levels, parts) :meth:`label_weights` of the batch that this is a part of; by default of this
                one.

        Raises:
            ValueError: if the sizes do not fit.
        """
        if denominators is None:
            denominators = self.label_weights(labels)
        if len(logits) != len(labels):
            logits, auxiliary = logits.chunk(2)
            return self(logits, labels, denominators) + self.aux_weight * self(auxiliary, labels, denominators)
        if torch.is_grad_enabled() and logits.requires_grad:
            return _WithGradient.apply(logits, labels, denominators, self)
        return self.combine(self.level_sums(logits, labels), denominators)

    def combine(self, sums: torch.Tensor, denominators: torch.Tensor) -> torch.Tensor:
        """The loss, from :meth:`level_sums` and :meth:`label_weights` added up over all batches; x/0 counts as 0."""
        return (sums * self._factors(denominators).to(sums)).sum()

    def level_sums(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Numerator of each part per level, float32 (levels, parts), not in the graph; 0 where the weight is 0."""
        return self.sums_and_gradient(logits, labels)[0]

    @torch.no_grad()
    def sums_and_gradient(
        self, logits: torch.Tensor, labels: torch.Tensor, denominators: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """:meth:`level_sums` and, given denominators, the loss's float32 gradient with respect to the logits."""
        size, full = tuple(logits.shape[2:]), tuple(labels.shape[1:])
        if size != full and size != tuple(-(-length // self.stride) for length in full):
            raise ValueError(
                f"Logits of {size} pixels are neither as large as labels of {full} nor {self.stride} times smaller."
            )
        sums = torch.zeros(len(self.weights), len(self.parts), device=logits.device)
        active = tuple(level for level, weight in enumerate(self.weights) if weight)
        if not active or not logits.numel():
            return sums, None if denominators is None else torch.zeros_like(logits, dtype=torch.float32)
        layout = self._layout(active, logits.device)
        with torch.autocast(logits.device.type, enabled=False):
            return self._sums_and_gradient(layout, sums, logits, labels, denominators)

    def _sums_and_gradient(
        self, layout: SoftmaxLayout, sums: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor, denominators: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        full, leaves, gradient, slopes = labels.shape[1:], self._leaves(labels), None, None
        factors = torch.zeros(len(layout.active), len(self.parts), device=logits.device)
        all_written = layout.num_terminals == logits.shape[1]
        if denominators is not None:
            gradient = (torch.empty_like if all_written else torch.zeros_like)(logits, dtype=torch.float32)
            factors = self._factors(denominators).index_select(0, layout.levels).float()
        # If possible, the probabilities use the gradient's memory and become the gradient in place.
        in_place = gradient is not None and logits.shape[2:] == full and gradient.is_contiguous() and all_written
        weight = self._class_weights(layout)
        of_leaves = layout.of_leaves(weight[None])
        means = [(column, part) for column, part in enumerate(self.parts) if part in PIXEL_PARTS]

        def of_pixels(prob: torch.Tensor, log_prob: torch.Tensor, leaves: torch.Tensor) -> None:
            slopes = [log_prob, *(log_prob.clone() for _ in means[1:])]  # one part needs no memory of its own
            for (column, part), slope in zip(means, slopes, strict=False):
                weight = look_up(of_leaves, leaves)
                if self.ohem < 1:
                    weight.mul_(prob < self.ohem)
                values = self._focal(prob, slope, weight, self.focal_gamma if part == "focal" else 0)
                sums[:, column].index_add_(0, layout.levels, values)
                slope.mul_(factors[:, column, None])
            for slope in slopes[1:]:
                log_prob.add_(slope)
            if not means:
                log_prob.zero_()

        def softmax_of(part: slice, out: torch.Tensor | None = None) -> PixelSoftmax:
            given = logits[part]
            if not all_written:
                given = torch.cat([given[:, channels] for channels, _ in layout.softmaxes], 1)
            given = (given if given.shape[2:] == full else enlarge(given, self.stride, full)).flatten(2)
            out = torch.empty_like(given, dtype=torch.float32) if out is None else out.flatten(2)
            return PixelSoftmax(layout, given, leaves[part], out, of_pixels)

        step = max(1, CHUNK[logits.is_cuda] // (layout.num_terminals * leaves.shape[1]))
        step = len(logits) if self.dice_over == "batch" else step  # slopes need the batch's sums
        for part in (slice(start, start + step) for start in range(0, len(logits), step)):
            softmax, slopes = softmax_of(part, gradient[part] if in_place else None), None
            overlaps = self._overlaps(softmax, leaves[part]) if self.overlaps else None
            for column, beta in enumerate(self.overlaps.values()):
                values, found = self._tversky(overlaps, weight, beta)
                for level, row, factor in zip(layout.active, layout.rows, factors[:, column], strict=True):
                    found[..., row] *= factor
                    sums[level, column] += values[:, row].sum()
                slopes = found if slopes is None else slopes + found
            if gradient is not None:
                softmax.to_gradient(slopes)
                for channels, terminals in layout.softmaxes if not in_place else ():
                    found, size = softmax.probs[:, terminals].unflatten(2, full), logits.shape[2:]
                    found = found if size == full else gather_enlarged(found, self.stride, size)
                    gradient[part, channels] = found
            del softmax  # free its memory before the next is made
        if any(part in SHAPES for part in self.parts):
            add_shapes(self, layout.active, sums, logits, labels, factors, gradient)
        return sums, gradient

    def _class_weights(self, layout: SoftmaxLayout) -> torch.Tensor:
        """(positions,)"""
        weight = layout.sums.new_zeros(layout.num_sums + layout.num_terminals)
        for row, level in zip(layout.rows, layout.active, strict=True):
            weight[row] = self.get_buffer(f"class_weight_{level}")
        return weight

    def _leaves(self, labels: torch.Tensor) -> torch.Tensor:
        """(images, pixels): the labels; the number of leaves where there is no label."""
        return torch.where(labels < 0, self._heads[0].hierarchy.num_leaves, labels).flatten(1)

    def _counts(self, layout: SoftmaxLayout, leaves: torch.Tensor) -> torch.Tensor:
        """(images, positions) float64: pixels of each class; (1, positions) for all images if Dice is over these."""
        shape = len(leaves), self._heads[0].hierarchy.num_leaves + 1
        each = torch.zeros(shape, dtype=torch.float64, device=leaves.device)
        counts = layout.count(each.scatter_add_(1, leaves, each.new_ones(()).expand_as(leaves)))
        return counts.sum(0, keepdim=True) if self.dice_over == "batch" else counts

    def _overlaps(self, softmax: PixelSoftmax, leaves: torch.Tensor) -> torch.Tensor:
        """I, S and T of each class (see the docstring of this class): (3, images or 1, positions) float64."""
        parts = softmax.inside, softmax.everywhere
        if self.dice_over == "batch":
            parts = [part.sum(0, keepdim=True) for part in parts]
        return torch.stack([*parts, self._counts(softmax.layout, leaves)])

    def _factors(self, denominators: torch.Tensor) -> torch.Tensor:
        """(levels, parts): weight / denominator of each numerator; 0 where the denominator is 0."""
        levels, parts = (torch.tensor([*each], dtype=torch.float64) for each in (self.weights, self.parts.values()))
        weights = torch.outer(levels, parts).to(denominators.device, non_blocking=True)
        return torch.where(denominators > 0, weights / denominators, 0)

    def _tversky(self, overlaps: torch.Tensor, weight: torch.Tensor, beta: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each class from I, S, T (3, images, classes): (images, classes); its derivatives by S and -I."""
        inside, everywhere, count = overlaps
        weight = torch.where(count > 0, weight, 0)
        below = 2 * (1 - beta) * everywhere + 2 * beta * count + self.smooth
        ratio = (2 * inside + self.smooth) / torch.where(count > 0, below, 1)
        by_everywhere = 2 * (1 - beta) * weight * ratio
        slopes = torch.stack([by_everywhere, 2 * weight]) / torch.where(count > 0, below, 1)
        return weight * (1 - ratio), slopes.float()

    def _focal(self, prob: torch.Tensor, log_prob: torch.Tensor, weight: torch.Tensor, gamma: float) -> torch.Tensor:
        """Sums (slots,) of focal; ``log_prob`` is replaced by the derivative with respect to it."""
        if not gamma:
            sums = -(weight * log_prob).sum((0, 2))
            torch.neg(weight, out=log_prob)
            return sums
        wrong = 1 - prob
        weight *= wrong.pow(gamma)
        # p log p / (1 - p) is finite; at p = 1 it is multiplied with 0, so any finite value does instead of 0 / 0.
        ratio = (prob * log_prob).div_(wrong.clamp_(min=torch.finfo(torch.float32).tiny))
        sums = -log_prob.mul_(weight).sum((0, 2))
        torch.mul(weight, ratio.mul_(gamma).sub_(1), out=log_prob)
        return sums


class _WithGradient(torch.autograd.Function):
    """The loss as one step of the graph."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor, denominators: torch.Tensor, loss: Any) -> Any:
        sums, ctx.gradient = loss.sums_and_gradient(logits, labels, denominators)
        ctx.dtype = logits.dtype
        return loss.combine(sums, denominators)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # Not kept: it is as large as the logits. Cast only after the loss scale is applied, because one pixel's share
        # of a mean underflows in half precision.
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            raise RuntimeError("backward() works once for the segmentation loss; compute the loss again.")
        if gradient.is_cuda or upstream != 1:  # asking a GPU would synchronize
            gradient.mul_(upstream)
        return gradient.to(ctx.dtype), None, None, None
