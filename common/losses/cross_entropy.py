"""Losses per level of the label tree, and their weighting over classes and levels. Everything computes in float32."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ..model.heads import LevelHeads


class LevelCrossEntropy(nn.Module):
    """Weighted sum over the levels of the cross-entropy between logits and labels.

    A level's loss is a weighted mean over its labelled elements. The mean's denominator is given from outside, so that
    the parts of one batch (micro-batches, processes) add up to exactly the loss of the batch.

    Args:
        heads: what turns logits into log-probabilities.
        weights: per level, summing to 1 (:func:`level_weights`).
        class_weights: per level (classes,), or ``None`` for none.
        label_smoothing: share of the target spread evenly over the classes of a level.
        logit_adjustment: multiple of the log-prior added to the logits in training mode (Menon et al., Long-tail
            learning via logit adjustment, ICLR 2021); 0 for none, otherwise usually 1.
        counts: per level (classes,) training samples; needed for the prior.
        backoff_levels: levels at which some labels end (a specimen known to its genus only). The loss of such an
            element at that level is added to the finer levels too, so that the last level's loss is the likelihood
            of what is known. Without it such an element does not count at the finer levels.
    """

    def __init__(
        self,
        heads: LevelHeads,
        weights: Sequence[float],
        class_weights: Sequence[torch.Tensor] | None = None,
        label_smoothing: float = 0.0,
        logit_adjustment: float = 0.0,
        counts: Sequence[torch.Tensor] | None = None,
        backoff_levels: Sequence[int] = (),
    ) -> None:
        super().__init__()
        hierarchy = heads.hierarchy
        self._heads = (heads,)  # not a submodule: the heads belong to the model, and the loss has no parameters
        self.weights, self.label_smoothing = list(weights), label_smoothing
        self.backoff_levels = sorted(backoff_levels)
        for level, value in enumerate(class_weights or map(torch.ones, hierarchy.num_classes)):
            self.register_buffer(f"class_weight_{level}", value.float(), persistent=False)
        self.register_buffer("offset", None, persistent=False)
        if logit_adjustment:
            assert counts is not None, "logit adjustment needs the class counts"
            priors = [(n.double().clamp(min=1) / n.sum().clamp(min=1)).log().float() for n in counts]
            self.offset = logit_adjustment * heads.logit_offsets(priors)

    def label_weights(self, labels: torch.Tensor) -> torch.Tensor:
        """Sum of class weights of the labelled elements of each level, float64 (levels,): the means' denominators.

        Args:
            labels: (batch, levels), IGNORE where there is none.
        """
        columns = enumerate(labels.unbind(1))
        return self._sum_with_backoff([self._class_weights(c, level).double() for level, c in columns], labels)

    def forward(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        denominators: torch.Tensor | None = None,
        mixed_with: torch.Tensor | None = None,
        mix: float = 1.0,
    ) -> torch.Tensor:
        """The loss, a float32 scalar attached to the graph even if no element is labelled (then it is 0).

        Args:
            logits: (batch, outputs, ...) of the heads, any floating dtype.
            labels: (batch, levels, ...) int64.
            denominators: (levels,) :meth:`label_weights` of the batch that this is a part of; by default of this one.
            mixed_with: labels of the images mixed in by mixup or cutmix.
            mix: share of the image that ``labels`` belong to.
        """
        sums = mix * self.level_sums(logits, labels)
        if mixed_with is not None:
            sums = sums + (1 - mix) * self.level_sums(logits, mixed_with)
        if denominators is None:
            denominators = self.label_weights(labels)
            if mixed_with is not None:
                denominators = mix * denominators + (1 - mix) * self.label_weights(mixed_with)
        return self.combine(sums, denominators)

    def combine(self, sums: torch.Tensor, denominators: torch.Tensor) -> torch.Tensor:
        """Weighted sum over the levels of ``sums / denominators``; a level with denominator 0 adds 0."""
        means = sums / denominators.to(sums.dtype).clamp(min=torch.finfo(torch.float32).tiny)
        return sum(weight * mean for weight, mean in zip(self.weights, means, strict=True))

    def level_sums(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Weighted sum of the elements' losses per level, float32 (levels,); 0 for levels of weight 0."""
        if self.offset is not None and self.training:
            logits = logits.float() + self.offset.view(1, -1, *(1,) * (logits.dim() - 2))
        wanted = [level for level, weight in enumerate(self.weights) if weight or level in self.backoff_levels]
        log_probs = self._heads[0].log_probs(logits, wanted)
        elements = [
            None if x is None else self._losses(x, labels[:, level], level) for level, x in enumerate(log_probs)
        ]
        # The zero keeps levels without labels attached to the graph; one element, because a sum may overflow.
        zero = logits.flatten()[:1].float().nan_to_num(0, 0, 0).sum() * 0
        return zero + self._sum_with_backoff(elements, labels)

    def _losses(self, log_probs: torch.Tensor, labels: torch.Tensor, level: int) -> torch.Tensor:
        """(batch, classes, ...), (batch, ...) -> (batch, ...): loss of each element, weighted, 0 without a label."""
        loss = -log_probs.gather(1, labels.clamp(min=0).unsqueeze(1)).squeeze(1)
        if self.label_smoothing:
            loss = (1 - self.label_smoothing) * loss - self.label_smoothing * log_probs.mean(1)
        return torch.where(labels >= 0, loss * self._class_weights(labels, level), 0)

    def _sum_with_backoff(self, elements: Sequence[torch.Tensor | None], labels: torch.Tensor) -> torch.Tensor:
        """Sum of each level's elements (batch, ...), and of those whose labels end above it: (levels,)."""
        dtype = next(values.dtype for values in elements if values is not None)
        carried = labels.new_zeros((), dtype=dtype)
        sums = []
        for level, values in enumerate(elements):
            sums.append(carried + (0 if values is None else values.sum()))
            if level in self.backoff_levels:
                ends = (labels[:, level] >= 0) & (labels[:, level + 1 :] < 0).all(1)
                carried = carried + torch.where(ends, values, 0).sum()
        return torch.stack(sums)

    def _class_weights(self, labels: torch.Tensor, level: int) -> torch.Tensor:
        """The weight of each label's class, 0 without a label."""
        return torch.where(labels >= 0, self.get_buffer(f"class_weight_{level}")[labels.clamp(min=0)], 0)
