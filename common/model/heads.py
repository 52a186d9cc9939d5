"""Features -> scores -> log-probabilities of every level, for a tree of labels.

Three ways to score, all linear in the features:

- ``tree``: the score of a leaf is the sum of the logits on its path, with one softmax over the leaves; every level's
  probabilities are marginals of it. Consistent by construction, and rare leaves borrow from what is above them
  (parameter-sharing softmax: Valmadre, Hierarchical classification at multiple operating points, NeurIPS 2022).
- ``independent``: a softmax per level, as multi-task models usually have it.
- ``flat``: one softmax over the leaves, each with a logit of its own; upper levels are marginals. The baseline.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

from .hierarchy import IGNORE, Hierarchy

KINDS = ("tree", "independent", "flat")


class LevelHeads(nn.Module):
    """One linear layer for the classes of all levels side by side, and what its outputs mean.

    Args:
        hierarchy: the label tree.
        in_features: channels of the features.
        kind: one of :data:`KINDS`.
    """

    def __init__(self, hierarchy: Hierarchy, in_features: int, kind: str = "tree") -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"Unknown head {kind!r}; choose from {', '.join(KINDS)}.")
        self.hierarchy = hierarchy
        self.kind = kind
        num_outputs = hierarchy.num_leaves if kind == "flat" else sum(hierarchy.num_classes)
        self.weight = nn.Parameter(torch.empty(num_outputs, in_features))
        self.bias = nn.Parameter(torch.empty(num_outputs))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Small random weights, zero biases."""
        nn.init.trunc_normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)

    @property
    def leaf_softmax(self) -> bool:
        """Whether the scores are of leaves (one softmax) rather than of the classes of each level."""
        return self.kind != "independent"

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Scores of features (batch, channels) or (batch, channels, height, width).

        Returns:
            (batch, leaves, ...) for ``tree`` and ``flat``; (batch, classes of all levels, ...) for ``independent``.
        """
        weight, bias = self.weight, self.bias
        if self.kind == "tree":  # adding the rows of a path first costs less than adding logits later
            weight, bias = self._sum_over_path(weight), self._sum_over_path(bias)
        if features.dim() == 4:
            return F.conv2d(features, weight[:, :, None, None], bias)
        return F.linear(features, weight, bias)

    def log_probs(self, scores: torch.Tensor, levels: Sequence[int] | None = None) -> list[torch.Tensor | None]:
        """Float32 log-probabilities (batch, classes of the level, ...) per level; ``None`` for levels not wanted."""
        every = range(self.hierarchy.num_levels)
        wanted = every if levels is None else levels
        scores = scores.float()
        if self.leaf_softmax:
            return self.hierarchy.marginalize(scores.log_softmax(1), wanted)
        split = scores.split(self.hierarchy.num_classes, dim=1)
        return [split[level].log_softmax(1) if level in wanted else None for level in every]

    def leaf_scores(self, scores: torch.Tensor) -> torch.Tensor:
        """(batch, leaves, ...): what the best path is the argmax of; a softmax turns it into probabilities.

        For ``independent``, log-probabilities summed along each path. A path without a value at some level has fewer
        of them and would win by that, so its sum is scaled up to the number of levels.
        """
        if self.leaf_softmax:
            return scores
        total = self.hierarchy.path_scores(self.log_probs(scores))
        num_values = (self.hierarchy.ancestors >= 0).sum(1).to(total)
        return total * (self.hierarchy.num_levels / num_values).view(1, -1, *(1,) * (total.dim() - 2))

    def path_scores(self, scores: torch.Tensor, log_probs: Sequence[torch.Tensor], decoding: str) -> torch.Tensor:
        """(batch, leaves, ...): what the leaf at the end of the best path is the argmax of.

        Args:
            scores: (batch, outputs, ...).
            log_probs: of every level, from the same scores.
            decoding: ``leaf`` for the most probable leaf, ``levels`` for the path with the most levels expected right.
        """
        if decoding == "levels":
            return self.hierarchy.path_scores([level.exp() for level in log_probs])
        return self.leaf_scores(scores)

    def normalized(self, scores: torch.Tensor) -> torch.Tensor:
        """Float32 scores that mean the same, and are log-probabilities where each softmax ends."""
        blocks = [scores] if self.leaf_softmax else scores.split(self.hierarchy.num_classes, dim=1)
        return torch.cat([block.float().log_softmax(1) for block in blocks], 1)

    def score_offsets(self, per_level: Sequence[torch.Tensor]) -> torch.Tensor:
        """One number per score from one per class and level, e.g. log-priors for logit adjustment.

        With one softmax over the leaves only the leaves' own numbers count; a leaf of an upper level brings that
        level's.
        """
        if not self.leaf_softmax:
            return torch.cat(list(per_level))
        return torch.stack([per_level[level][index] for level, index in self.hierarchy.leaves])

    @contextmanager
    def untrained_kept(self, level_weights: Sequence[float]) -> Iterator[None]:
        """Keep what a loss with these weights of the levels does not train as it is while an optimizer steps.

        Otherwise weight decay would shrink, and momentum move, the rows of levels that are not in use.
        """
        if self.leaf_softmax or all(level_weights):
            yield
            return
        counts = torch.tensor(self.hierarchy.num_classes, device=self.weight.device)
        idle = torch.tensor([weight == 0 for weight in level_weights], device=self.weight.device)
        rows = idle.repeat_interleave(counts)[:, None]
        weight, bias = self.weight.detach().clone(), self.bias.detach().clone()
        yield
        with torch.no_grad():
            self.weight.copy_(torch.where(rows, weight, self.weight))
            self.bias.copy_(torch.where(rows[:, 0], bias, self.bias))

    @torch.no_grad()
    def init_leaves(self, weight: torch.Tensor, bias: torch.Tensor | None, rows: Sequence[int | None]) -> None:
        """Start the last level from another classifier, so that training begins at that model's accuracy.

        Args:
            weight: (its classes, channels).
            bias: (its classes,), or ``None`` if it has none.
            rows: for each class of our last level its row there, or ``None`` if it has none.
        """
        if weight.shape[1] != self.weight.shape[1]:
            raise ValueError(
                f"The classifier takes {weight.shape[1]} features, the backbone has {self.weight.shape[1]}."
            )
        first = 0 if self.kind == "flat" else sum(self.hierarchy.num_classes[:-1])
        if self.kind == "tree":  # otherwise the sums over paths would differ from the classifier's logits
            self.weight.zero_()
            self.bias.zero_()
        for position, row in enumerate(rows):
            if row is not None:
                self.weight[first + position] = weight[row].to(self.weight)
                self.bias[first + position] = 0 if bias is None else bias[row].to(self.bias)

    def _sum_over_path(self, rows: torch.Tensor) -> torch.Tensor:
        """(nodes, ...) -> (leaves, ...): the sum of the rows on each leaf's path."""
        nodes = self._path_nodes(rows.device)
        padded = torch.cat([rows, rows.new_zeros(1, *rows.shape[1:])]) if any(self.hierarchy.has_gaps) else rows
        total = None
        for column in nodes:
            term = padded.index_select(0, column)
            total = term if total is None else total + term
        return total

    def _path_nodes(self, device: torch.device) -> torch.Tensor:
        """(levels, leaves): row of each path's class at each level; the row after the last where it has none."""
        cached = getattr(self, "_nodes", None)
        if cached is None or cached.device != device:
            ancestors = self.hierarchy.ancestors.T
            counts = self.hierarchy.num_classes
            offsets = torch.tensor([sum(counts[:level]) for level in range(len(counts))], device="cpu")
            nodes = torch.where(ancestors == IGNORE, sum(counts), ancestors + offsets[:, None])
            self._nodes = cached = nodes.to(device)
        return cached
