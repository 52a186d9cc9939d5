"""Probabilities of pixels at every level of the label tree and the gradient of a loss of them, memory-efficient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F

from ..model.heads import LevelHeads

# Elements computed at a time, (CPU, GPU): what fits into a CPU's cache, or keeps every processor of a GPU busy.
BLOCK = (2**21, 2**27)
# Probabilities are clamped to this where a class's gradient is divided among its leaves; never in the loss's value.
LEAST = 1e-30


def enlarge(logits: torch.Tensor, stride: int, size: Sequence[int]) -> torch.Tensor:
    """Logits (images, channels, h, w) ``stride`` times larger, bilinearly and in float32, cut to ``size``."""
    large = [length * stride for length in logits.shape[2:]]
    return F.interpolate(logits.float(), size=large, mode="bilinear")[..., : size[0], : size[1]]


def gather_enlarged(gradient: torch.Tensor, stride: int, size: Sequence[int]) -> torch.Tensor:
    """The gradient with respect to the input of :func:`enlarge`, of ``size``: a matrix per side, 4 x torch's speed."""
    sides = []
    for small, length in zip(size, gradient.shape[2:], strict=True):
        identity = torch.eye(small, device=gradient.device)[None]
        sides.append(F.interpolate(identity, size=small * stride, mode="linear")[0, :, :length])
    return sides[0] @ gradient @ sides[1].T


class SoftmaxLayout:
    """Positions of the classes' probabilities: first *sums*, then *terminals*, the outputs of the softmaxes.

    With ``independent`` heads the terminals are the classes of all active levels, and there are no sums. Otherwise
    they are the leaves; every class of a level above the last is a sum of leaves. A *slot* is a level's index among
    the active levels; slots of sums come first. ``softmaxes`` are pairs of slices: which of the model's channels, and
    which terminals.
    """

    def __init__(self, heads: LevelHeads, active: Sequence[int], device: torch.device) -> None:
        tree, last = heads.hierarchy, heads.hierarchy.num_levels - 1
        self.active, self.levels = active, torch.tensor(active, device=device)
        columns = [F.pad(tree.ancestors[:, level], (0, 1), value=-1) for level in active]  # last row: no label
        sizes = [tree.num_classes[level] for level in active]
        firsts = [sum(sizes[:slot]) for slot in range(len(sizes) + 1)]
        if heads.leaf_softmax:
            self.num_terminals, self.num_sum_slots = tree.num_leaves, len(active) - (last in active)
            self.softmaxes = [(slice(0, tree.num_leaves), slice(0, tree.num_leaves))]
            members = [torch.arange(n)[:, None] == column[:-1] for n, column in zip(sizes, columns, strict=True)]
        else:
            self.num_terminals, self.num_sum_slots = firsts[-1], 0
            starts = [sum(tree.num_classes[:level]) for level in active]
            spans = list(zip(starts, firsts, sizes, strict=False))
            self.softmaxes = [(slice(start, start + n), slice(at, at + n)) for start, at, n in spans]
            members = torch.eye(self.num_terminals).split(sizes)
        self.num_sums = firsts[self.num_sum_slots]
        # The last level's classes are the first leaves, so these rows are theirs.
        self.rows = [slice(first, first + size) for first, size in zip(firsts, sizes, strict=False)]
        # Per slot (classes, terminals): 1 where a terminal is of a class, else 0.
        self.members = [matrix.to(device, torch.float32) for matrix in members]
        self.sums = torch.cat([torch.empty(0, self.num_terminals, device=device), *self.members[: self.num_sum_slots]])
        self.terminals_of_sums = [row.nonzero()[:, 0] for row in self.sums]
        self.reach = torch.stack([matrix.new_zeros(self.num_terminals) for matrix in self.members])
        for slot, _ in enumerate(active):  # 1 where a terminal shares the slot's softmax
            self.reach[slot, self.softmaxes[slot if len(self.softmaxes) > 1 else 0][1]] = 1
        # For each leaf, and last for pixels without a label, per slot: the class, and whether there is one (if not,
        # class 0 is a placeholder that does not count).
        self.classes = torch.stack(columns).clamp(min=0).to(device)
        gaps = any(tree.has_gaps[level] for level in active)
        self.known = (torch.stack(columns if gaps else columns[:1]) >= 0).to(device, torch.float32)
        starts = torch.tensor([row.start for row in self.rows], device=device)[:, None]
        # The class's position among the sums, or among the terminals.
        self.of_sums = (self.classes + starts)[: self.num_sum_slots]
        self.of_terminals = (self.classes + starts - self.num_sums)[self.num_sum_slots :]
        self.leaf_is_terminal = heads.leaf_softmax

    def places(self, leaves: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(images, slots, pixels) of sums and of terminals: positions of the classes of leaves (images, pixels)."""
        if self.leaf_is_terminal and len(self.of_terminals):  # the table's entries, except for placeholders
            return look_up(self.of_sums[None], leaves), leaves.clamp(max=self.num_terminals - 1)[:, None]
        return look_up(self.of_sums[None], leaves), look_up(self.of_terminals[None], leaves)

    def count(self, leaves: torch.Tensor) -> torch.Tensor:
        """(images, positions): pixels of each class, from the pixels of each leaf and those without a label."""
        result = leaves.new_zeros(len(leaves), self.num_sums + self.num_terminals)
        for row, classes, known in zip(self.rows, self.classes, self.known.expand(len(self.rows), -1), strict=True):
            result.index_add_(1, row.start + classes, leaves * known)
        return result

    def of_leaves(self, values: torch.Tensor) -> torch.Tensor:
        """(images, positions) -> (images, slots, leaves + 1): the values of each leaf's classes; 0 without a class."""
        rows = zip(self.rows, self.classes, strict=True)
        return torch.stack([values[:, row][:, classes] for row, classes in rows], 1) * self.known


def look_up(table: torch.Tensor, leaves: torch.Tensor) -> torch.Tensor:
    """(images, slots, pixels): entries of a table (images or 1, slots, leaves) for leaves (images, pixels)."""
    if len(table) != 1:
        index = leaves[:, None].expand(-1, table.shape[1], -1)
        return table.gather(2, index)
    result, flat = table.new_empty(table.shape[1], leaves.numel()), leaves.flatten()
    for row, out in zip(table[0], result, strict=True):  # faster than gather, which takes one thread
        torch.index_select(row, 0, flat, out=out)
    return result.view(-1, *leaves.shape).movedim(0, 1)


class PixelSoftmax:
    """The softmaxes of all pixels of some images, block by block.

    Args:
        layout: of the active levels.
        logits: (images, terminals, pixels), any floating dtype.
        leaves: (images, pixels) int64 labels, the number of leaves where there is none.
        out: (images, terminals, pixels) float32, filled with the probabilities.
        loss: called block by block with the probability and the log-probability of each label (images, slots, pixels)
            and with the leaves; it replaces the log-probability by the loss's derivative with respect to it.

    Attributes:
        inside, everywhere: float64 (images, positions), each class's probability summed over the pixels of that class,
            and over all pixels with a label.
    """

    def __init__(
        self,
        layout: SoftmaxLayout,
        logits: torch.Tensor,
        leaves: torch.Tensor,
        out: torch.Tensor,
        loss: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None],
    ) -> None:
        self.layout, self.leaves, self.probs = layout, leaves, out
        self.prob, self.slope = out.new_empty(2, len(leaves), len(layout.rows), leaves.shape[1])
        shape = len(leaves), layout.num_sums + layout.num_terminals
        self.inside, self.everywhere = out.new_zeros(2, *shape, dtype=torch.float64)
        for images, pixels in self._blocks():
            block = images, slice(None), pixels
            self._softmax(logits[block], self.probs[block])
            self._find_labels(images, pixels, logits[block])
            loss(self.prob[block], self.slope[block], leaves[images, pixels])

    def _blocks(self) -> Iterator[tuple[slice, slice]]:
        """Slices of images and pixels to compute at a time."""
        pixels = max(1, BLOCK[self.probs.is_cuda] // self.layout.num_terminals)
        images = max(1, pixels // self.leaves.shape[1])
        for first in range(0, len(self.leaves), images):
            for start in range(0, self.leaves.shape[1], pixels):
                yield slice(first, first + images), slice(start, start + pixels)

    def _softmax(self, logits: torch.Tensor, out: torch.Tensor) -> None:
        for _, terminals in self.layout.softmaxes:
            given, part = logits[:, terminals].float(), out[:, terminals]
            torch.sub(given, given.amax(1, keepdim=True), out=part).exp_()
            part.mul_(part.sum(1, keepdim=True).reciprocal_())
        out.clamp_(min=LEAST)

    def _find_labels(self, images: slice, pixels: slice, logits: torch.Tensor) -> None:
        """Probability and log-probability of the labels, and their sums."""
        layout, probs, leaves = self.layout, self.probs[images, :, pixels], self.leaves[images, pixels]
        prob, log_prob = self.prob[images, :, pixels], self.slope[images, :, pixels]
        places, known = layout.places(leaves), look_up(layout.known[None], leaves)
        cut = [layout.num_sum_slots, prob.shape[1] - layout.num_sum_slots]
        of_sums = _product(layout.sums[None], probs)
        for source, place, out in zip((of_sums, probs), places, prob.split(cut, 1), strict=True):
            torch.gather(source, 1, place, out=out)
        prob.clamp_(max=1)
        torch.log(prob, out=log_prob)
        if prob.is_cuda or prob.min() < 1e3 * LEAST:  # asking a GPU would synchronize
            log_prob.copy_(self._exact(logits.float(), places))
        counted = (prob * known).double().split(cut, 1)
        halves = self.inside[images].split([layout.num_sums, layout.num_terminals], 1)
        for half, place, part in zip(halves, places, counted, strict=True):
            half.scatter_add_(1, place.flatten(1), part.flatten(1))
        totals = _product(known, probs.mT).expand(-1, len(layout.rows), -1)
        for slot, (row, members) in enumerate(zip(layout.rows, layout.members, strict=True)):
            self.everywhere[images, row] += totals[:, slot] @ members.T

    def _exact(self, logits: torch.Tensor, places: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Log-probabilities of the labels without underflow."""
        layout = self.layout
        sums = [logits[:, terminals].logsumexp(1) for terminals in layout.terminals_of_sums]
        sums = torch.stack(sums, 1) if sums else logits[:, :0]
        totals = torch.stack([logits[:, terminals].logsumexp(1) for _, terminals in layout.softmaxes], 1)
        found = torch.cat([source.gather(1, place) for source, place in zip((sums, logits), places, strict=True)], 1)
        return found.sub_(totals).clamp_(max=0)  # one softmax for all slots, or one each

    def to_gradient(self, slopes: torch.Tensor | None) -> None:
        """Replace the probabilities by the gradient with respect to the terminals' logits; call it once, at the end.

        Args:
            slopes: derivatives of the loss with respect to ``everywhere`` and (negated) ``inside`` (2, images,
                positions).
        """
        layout, (cut, num_slots) = self.layout, (self.layout.num_sum_slots, len(self.layout.rows))
        left = torch.cat([layout.sums.T, -layout.reach.T], 1)[None]
        if slopes is not None:
            everywhere, inside = slopes.expand(-1, len(self.probs), -1)
            inside, rows = layout.of_leaves(inside), zip(layout.rows, layout.members, strict=True)
            # With respect to a terminal's probability, of pixels with a label: (images, slots, terminals).
            outside = torch.stack([everywhere[:, row] @ members for row, members in rows], 1)
            left = torch.cat([left.expand(len(outside), -1, -1), outside.mT], 2)
        for images, pixels in self._blocks():
            block = images, slice(None), pixels
            leaves, probs, prob = self.leaves[images, pixels], self.probs[block], self.prob[block]
            of_sums, of_terminals = layout.places(leaves)
            slope = self.slope[block].div_(prob)  # with respect to each label's probability; 0 without one
            if slopes is not None:
                slope.sub_(look_up(inside[images], leaves))
            right = probs.new_empty(len(probs), left.shape[2], probs.shape[2])
            right[:, : layout.num_sums].zero_().scatter_(1, of_sums, slope[:, :cut])
            mean = right[:, layout.num_sums : layout.num_sums + num_slots]  # what softmaxes subtract from terminals
            torch.mul(prob, slope, out=mean)
            if slopes is not None:
                known = look_up(layout.known[None], leaves)
                mean.addcmul_(_product(outside[images], probs), known)
                right[:, layout.num_sums + num_slots :] = known
            each = _product(left[images] if len(left) > 1 else left, right)
            each.scatter_add_(1, of_terminals, slope[:, cut:])
            probs.mul_(each)


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Matrix product, one or several matrices on either side; a batch of one is slower than a plain product."""
    if len(left) == len(right) == 1:
        return (left[0] @ right[0])[None]
    return left @ right
