"""Features -> logits -> log-probabilities of every level, for a tree of labels.

Three kinds of heads, all linear in the features:

- ``tree``: every class has a weight vector, and the logit of a leaf is the sum over the classes on its path; one
  softmax over the leaves, of which every level's probabilities are marginals. The sum is scaled, by default with one
  over the root of the number of levels: otherwise each step would move it as many times as far as a flat head's score.
  Levels agree by construction, and rare leaves share the weights above them (parameter-sharing softmax: Valmadre,
  Hierarchical classification at multiple operating points, NeurIPS 2022).
- ``independent``: a softmax per level, as multi-task models usually have it.
- ``flat``: one softmax over the leaves, each with its own weight vector; upper levels are marginals. The baseline.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import reduce

import torch
import torch.nn.functional as F
from torch import nn

from .hierarchy import Hierarchy
from .tree import IGNORE

HEAD_KINDS = ("tree", "independent", "flat")


def default_scale(kind: str, num_levels: int) -> float:
    """Scale of a new head, with which random weights give a tree's leaves logits as large as those of a flat head."""
    return num_levels**-0.5 if kind == "tree" else 1.0


class LevelHeads(nn.Module):
    """One linear layer for the classes of all levels, and what its outputs mean.

    Args:
        hierarchy: the label tree.
        in_features: channels of the features.
        kind: one of :data:`HEAD_KINDS`.
        scale: of ``tree``: what the sum over a path is multiplied by; see :func:`default_scale`.
    """

    def __init__(self, hierarchy: Hierarchy, in_features: int, kind: str = "tree", scale: float = 1.0) -> None:
        super().__init__()
        if kind not in HEAD_KINDS:
            raise ValueError(f"Unknown head {kind!r}; choose from {', '.join(HEAD_KINDS)}.")
        self.hierarchy = hierarchy
        self.kind = kind
        self.scale = scale if kind == "tree" else 1.0
        num_outputs = hierarchy.num_leaves if kind == "flat" else sum(hierarchy.num_classes)
        self.weight = nn.Parameter(torch.empty(num_outputs, in_features))
        self.bias = nn.Parameter(torch.empty(num_outputs))
        counts, ancestors = torch.tensor(hierarchy.num_classes, device="cpu"), hierarchy.ancestors.T
        offsets = counts.cumsum(0) - counts
        self._nodes = torch.where(ancestors == IGNORE, counts.sum(), ancestors + offsets[:, None])
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Small random weights, zero biases."""
        nn.init.trunc_normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)

    @property
    def leaf_softmax(self) -> bool:
        """Whether there is one softmax over the leaves, and not one per level."""
        return self.kind != "independent"

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits of features (batch, channels) or (batch, channels, height, width).

        They are float32 under autocast too: bfloat16 has 3 digits, which tell similar classes apart badly.

        Returns:
            (batch, leaves, ...) for ``tree`` and ``flat``; (batch, classes of all levels, ...) for ``independent``.
        """
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        weight, bias = self.weight.to(features.dtype), self.bias.to(features.dtype)
        if self.kind == "tree":  # adding the rows of a path first costs less than adding logits later
            weight, bias = self._sum_over_path(weight), self._sum_over_path(bias)
        device = features.device.type
        with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
            if features.dim() == 4:
                return F.conv2d(features, weight[:, :, None, None], bias)
            return F.linear(features, weight, bias)

    def log_probs(self, logits: torch.Tensor, levels: Sequence[int] | None = None) -> list[torch.Tensor | None]:
        """Float32 log-probabilities (batch, classes of the level, ...) per level; ``None`` for levels not wanted."""
        logits = logits.float()
        if self.leaf_softmax:
            return self.hierarchy.marginalize(logits.log_softmax(1), levels)
        split = logits.split(self.hierarchy.num_classes, dim=1)
        return [part.log_softmax(1) if levels is None or level in levels else None for level, part in enumerate(split)]

    def leaf_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """(batch, leaves, ...): logits of the leaves; a softmax over them gives the leaves' probabilities.

        For ``independent`` these are log-probabilities summed along each path. A path without a class at some level
        has fewer terms, which would favour it, so its sum is scaled up to the number of levels.
        """
        if self.leaf_softmax:
            return logits
        total = self.hierarchy.path_scores(self.log_probs(logits))
        num_values = self.hierarchy.path_scores([total.new_ones(1, count) for count in self.hierarchy.num_classes])
        return total * (self.hierarchy.num_levels / num_values).view(1, -1, *(1,) * (total.dim() - 2))

    def normalized(self, logits: torch.Tensor) -> torch.Tensor:
        """The same logits shifted, in float32, so that they are the log-probabilities of each softmax."""
        blocks = [logits] if self.leaf_softmax else logits.split(self.hierarchy.num_classes, dim=1)
        return torch.cat([block.float().log_softmax(1) for block in blocks], 1)

    def logit_offsets(self, per_level: Sequence[torch.Tensor]) -> torch.Tensor:
        """One number per logit from one per class and level, such as log-priors for logit adjustment.

        With one softmax over the leaves only the leaves' own numbers count; a leaf of an upper level has that level's.
        """
        if not self.leaf_softmax:
            return torch.cat(list(per_level))
        return torch.stack([per_level[level][index] for level, index in self.hierarchy.leaves])

    @contextmanager
    def untrained_kept(self, level_weights: Sequence[float]) -> Iterator[None]:
        """While an optimizer steps, keep the rows of levels with loss weight 0 as they are.

        Otherwise weight decay would shrink them and momentum would move them.
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

        It has weights (its classes, channels); ``rows`` names each class of our last level there, or is ``None``.
        """
        sizes = weight.shape[1], self.weight.shape[1]
        if sizes[0] != sizes[1]:
            raise ValueError("The classifier takes {} features, the backbone has {}.".format(*sizes))
        table = torch.cat([weight, torch.zeros_like(weight[:, :1]) if bias is None else bias[:, None]], 1)
        keys = self.hierarchy.node_keys()[-len(rows) :]
        self.init_classes({key: table[row] for key, row in zip(keys, rows, strict=True) if row is not None})

    @torch.no_grad()
    def classifiers(self) -> dict[tuple, torch.Tensor]:
        """Weights and bias (channels + 1,) of every class as a classifier of its own, by :meth:`Hierarchy.node_keys`.

        Where upper levels have no weights, those of a class are its leaves' mean.
        """
        own = dict(zip(self._keys(), torch.cat([self.weight, self.bias[:, None]], 1), strict=True))
        if self.kind == "independent":
            return own
        found: dict[tuple, list[torch.Tensor]] = {}
        for key in own:
            for part in (key[: length + 1] for length in range(len(key))):
                place, row = (key, own[part] * self.scale) if self.kind == "tree" else (part, own[key])
                found.setdefault(place, []).append(row)
        return {key: sum(rows) if self.kind == "tree" else sum(rows) / len(rows) for key, rows in found.items()}

    @torch.no_grad()
    def init_classes(self, known: dict[tuple, torch.Tensor]) -> int:
        """Start from such :meth:`classifiers`, a class that is new as its parent; returns how many are not new."""
        if self.kind == "tree":  # what is not known adds nothing
            self.weight.zero_()
            self.bias.zero_()
        own: dict[tuple, torch.Tensor | None] = {(): None}
        for key in self.hierarchy.node_keys():
            own[key] = known.get(key, own[key[:-1]])
        for position, key in enumerate(self._keys()):
            row, above = own[key], own[key[:-1]]
            if row is not None:
                if self.kind == "tree":  # what it adds to its parent
                    row = (row if above is None else row - above) / self.scale
                self.weight[position], self.bias[position] = row[:-1], row[-1]
        return len(known.keys() & own.keys())

    def _keys(self) -> list[tuple]:
        keys, counts = self.hierarchy.node_keys(), self.hierarchy.num_classes
        leaves = [keys[sum(counts[:level]) + index] for level, index in self.hierarchy.leaves]
        return leaves if self.kind == "flat" else keys

    def _sum_over_path(self, rows: torch.Tensor) -> torch.Tensor:
        """(nodes, ...) -> (leaves, ...): the sum of the rows on each leaf's path, scaled."""
        nodes = self._nodes.to(rows.device)  # (levels, leaves); the row after the last where a path has none
        if not torch.compiler.is_exporting():  # whose tensors are fake and would stay in the model
            self._nodes = nodes
        padded = torch.cat([rows, rows.new_zeros(1, *rows.shape[1:])]) if any(self.hierarchy.has_gaps) else rows
        total = reduce(torch.add, (padded.index_select(0, column) for column in nodes))
        return total if self.scale == 1.0 else total * self.scale
