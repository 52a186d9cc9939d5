"""Softmax over every node of the label tree for all pixels of some images, and its gradient, in little memory."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .heads import LevelHeads


class Node(NamedTuple):
    """A root or a class with children, over whose scores there is a softmax; level and row are -1 for a root."""

    level: int
    row: int
    parent: int  # position in the list of nodes, as is ``root``; -1 for a root
    root: int
    runs: list[tuple[int, int, int]]  # (first row, end, level) of the children, which lie side by side


class Layout:
    """What the rows of a chunk's buffer are: the nodes of the levels wanted, and all leaves, without the roots.

    ``independent`` heads are a tree of depth 1 per level; the others are one tree. One more row, always 0, is for
    pixels without a label. A leaf of a level that is not wanted counts as of level ``num_levels``.
    """

    def __init__(self, heads: LevelHeads, active: Sequence[int], device: torch.device) -> None:
        tree, self.active = heads.hierarchy, active
        starts = [sum(tree.num_classes[:level]) for level in range(tree.num_levels + 1)]
        if heads.leaf_softmax:  # nodes are (level, class), roots (-1, number)
            paths = [[(-1, 0), *((n, row[n]) for n in active if row[n] >= 0)] for row in tree.ancestors.tolist()]
            for leaf, (level, _) in enumerate(tree.leaves):
                paths[leaf] += [] if level in active else [(tree.num_levels, leaf)]
            channels = range(tree.num_leaves)
        else:
            paths = [[(-1, slot), (n, i)] for slot, n in enumerate(active) for i in range(tree.num_classes[n])]
            channels = [starts[path[1][0]] + path[1][1] for path in paths]
        parent_of = {below: above for path in paths for above, below in pairwise(path)}
        root_of = {node: path[0] for path in paths for node in path}
        order = sorted(parent_of, key=lambda node: (parent_of[node], node[0]))
        row_of = {node: row for row, node in enumerate(order)}
        families = [(node, list(kids)) for node, kids in groupby(order, key=parent_of.get)]
        position = {node: number for number, (node, _) in enumerate(families)} | {None: -1}
        self.nodes = []  # parents come before their children
        for node, kids in families:
            runs = [[row_of[kid] for kid in run] + [level] for level, run in groupby(kids, key=lambda kid: kid[0])]
            runs = [(run[0], run[-2] + 1, run[-1]) for run in runs]
            above, root = position[parent_of.get(node)], position[root_of[node]]
            self.nodes.append(Node(node[0], row_of.get(node, -1), above, root, runs))
        self.num_rows = len(order)
        self.gaps = [level for level in active if tree.has_gaps[level]]
        self.levels = torch.tensor(active, device=device)
        # (first row, first channel, how many) of leaves that follow each other in both.
        pairs = enumerate(sorted((row_of[path[-1]], channel) for path, channel in zip(paths, channels, strict=True)))
        spans = [list(run) for _, run in groupby(pairs, key=lambda pair: (pair[1][0] - pair[0], pair[1][1] - pair[0]))]
        self.spans = [(*span[0][1], len(span)) for span in spans]
        rows = [[row_of.get((n, c), self.num_rows) for c in [*tree.ancestors[:, n].tolist(), -1]] for n in active]
        self.rows = torch.tensor(rows, device=device)  # (levels wanted, leaves and one for none): of the leaf's class
        self.level_of_row = torch.tensor([n for n, _ in order] + [tree.num_levels], device=device)
        classes = [starts[n] + (i if n < tree.num_levels else 0) for n, i in order] + [starts[-1]]
        self.class_of_row = torch.tensor(classes, device=device)  # among all levels'; one too many for none

    def roots(self) -> list[tuple[int, slice]]:
        """Every root's position, and which of the levels wanted are below it."""
        roots = [position for position, node in enumerate(self.nodes) if node.level < 0]
        step = len(self.active) // len(roots)
        return [(position, slice(i * step, (i + 1) * step)) for i, position in enumerate(roots)]


class Chunk:
    """The softmax of some images' scores (images, channels, h, w) over the children of every node.

    A class's score is the logsumexp of its children's. The buffer keeps ``exp(score - largest)`` of these, ``totals``
    their sums, so that neither log-probabilities nor shares in the parent's gradient underflow.
    """

    def __init__(self, layout: Layout, scores: torch.Tensor, labels: torch.Tensor, stride: int) -> None:
        num_leaves, num_levels = layout.rows.shape[1] - 1, len(layout.active)
        self.layout, self.size, self.sides = layout, labels.shape[1:], []
        large = [length * stride for length in scores.shape[2:]]
        if scores.shape[2:] != self.size:  # a matrix per side, whose transpose costs a quarter of torch's own backward
            for small, padded, length in zip(scores.shape[2:], large, self.size, strict=True):
                identity = torch.eye(small, device=scores.device)[None]
                self.sides.append(F.interpolate(identity, size=padded, mode="linear")[0, :, :length])
        index = torch.where(labels < 0, num_leaves, labels).flatten(1)
        # (images, levels, pixels): row of the pixel's class
        self.rows = torch.stack([column.index_select(0, index.flatten()).view_as(index) for column in layout.rows], 1)
        self.labelled = (index < num_leaves).float()
        slots = [slot for slot in range(num_levels) if layout.active[slot] in layout.gaps]
        self.masks = {layout.active[slot]: (self.rows[:, slot] < layout.num_rows).float() for slot in slots}
        self.buffer = scores.new_empty(len(labels), layout.num_rows + 1, index.shape[1], dtype=torch.float32)
        self.buffer[:, -1] = 0
        for row, channel, count in layout.spans:
            source = scores[:, channel : channel + count]
            if self.sides:
                source = F.interpolate(source.float(), size=large, mode="bilinear")
            self._image(row, count).copy_(source[..., : self.size[0], : self.size[1]])
        tops, self.totals = {}, {}
        self.log_probs = torch.empty_like(self.rows, dtype=torch.float32)
        for slot in range(num_levels - 1, -2, -1):
            for position, node in self._nodes(slot):
                kids = self.buffer[:, node.runs[0][0] : node.runs[-1][1]]
                tops[position] = kids.amax(1)
                self.totals[position] = kids.sub_(tops[position][:, None]).exp_().sum(1)
                if slot >= 0:
                    self.buffer[:, node.row] = self.totals[position].log().add_(tops[position])
            if slot >= 0:  # before the parents overwrite this level's scores
                self.log_probs[:, slot] = self.buffer.gather(1, self.rows[:, slot, None])[:, 0]
        for position, below in layout.roots():
            self.log_probs[:, below] -= tops[position][:, None]
            self.log_probs[:, below] -= self.totals[position].log()[:, None]
        self.log_probs.clamp_(max=0)

    def overlaps(self) -> torch.Tensor:
        """I, S and T of each row as :class:`.SegmentationLoss` has them: float64 (3, images, rows)."""
        result = self.buffer.new_zeros(3, *self.buffer.shape[:2], dtype=torch.float64)
        rows = self.rows.flatten(1)
        result[0].scatter_add_(1, rows, self.log_probs.exp().flatten(1).double())
        result[2].scatter_add_(1, rows, result.new_ones(()).expand_as(rows))
        self.shares: list[torch.Tensor] = []  # times the buffer at a child: its probability, or 0 without a label
        for position, node in enumerate(self.layout.nodes):
            above = self.labelled if node.level < 0 else self.buffer[:, node.row] * self.shares[node.parent]
            self.shares.append(above / self.totals[position])
            for first, end, level in node.runs:
                result[1][:, first:end] = torch.bmm(
                    self.buffer[:, first:end], self._share(position, level).mT
                ).squeeze(2)
        return result

    def write_gradient(self, slopes: torch.Tensor | None, pulls: torch.Tensor, out: torch.Tensor) -> None:
        """Turn the buffer into the gradient, and write it to ``out``, zeros of the scores' shape.

        Args:
            slopes: of the loss in S and -I of each row (2, images, rows); ``None`` without Dice.
            pulls: slope of focal in the log-probability of each pixel's class (images, levels, pixels).
        """
        x, nodes = self.buffer, self.layout.nodes
        if slopes is not None:
            each = slopes[1].gather(1, self.rows.flatten(1)).view_as(pulls)
            pulls.addcmul_(each, self.log_probs.exp(), value=-1)
        # A log-probability is a class's score less its root's.
        flows = {position: -pulls[:, below].sum(1, keepdim=True) for position, below in self.layout.roots()}
        for position, node in enumerate(nodes if slopes is not None else ()):
            for first, end, level in node.runs:
                mean = torch.bmm(slopes[0, :, None, first:end], x[:, first:end])
                flows[node.root].addcmul_(mean, self._share(position, level), value=-1)
        for slot in range(-1, len(self.layout.active)):
            if slot >= 0:
                x.scatter_add_(1, self.rows[:, slot, None], pulls[:, slot, None])
            for position, node in self._nodes(slot):
                flow = (flows[position] if slot < 0 else x[:, node.row, None]) / self.totals[position][:, None]
                for first, end, level in node.runs:
                    factor = flow
                    if slopes is not None:
                        factor = torch.addcmul(flow, slopes[0, :, first:end, None], self._share(position, level))
                    x[:, first:end] *= factor
        for row, channel, count in self.layout.spans:
            part = self._image(row, count)
            out[:, channel : channel + count] = self.sides[0] @ part @ self.sides[1].T if self.sides else part

    def _share(self, position: int, level: int) -> torch.Tensor:
        """``shares`` of a node (images, 1, pixels), 0 also where the pixel's label has no value at the level."""
        share = self.shares[position]
        return (share * self.masks[level] if level in self.masks else share)[:, None]

    def _nodes(self, slot: int) -> list[tuple[int, Node]]:
        """Those of one of the levels wanted, or the roots for -1."""
        level = -1 if slot < 0 else self.layout.active[slot]
        return [(position, node) for position, node in enumerate(self.layout.nodes) if node.level == level]

    def _image(self, row: int, count: int) -> torch.Tensor:
        """View (images, count, H, W) of rows of the buffer."""
        return self.buffer[:, row : row + count].unflatten(2, self.size)
