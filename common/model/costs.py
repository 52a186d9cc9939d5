"""What answers cost, and the one that is expected to cost least: a class of any level of the label tree, or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from .hierarchy import Hierarchy


def cost_matrix(
    tree: Hierarchy,
    wrong: float = 1.0,
    coarse: float = 0.1,
    unknown: float = 0.5,
    groups: Mapping[str, Sequence[str]] = {},
    confused: Mapping[str, Mapping[str, float]] = {},
) -> torch.Tensor:
    """Costs of answers, float32 (classes of all levels + 1, leaves): each class, and last no answer, by the true leaf.

    Args:
        tree: the label tree.
        wrong: of a class that is neither the truth nor above it.
        coarse: of each level below a class that is right, but no leaf.
        unknown: of no answer.
        groups: names of classes by group, see :func:`group_leaves`; a class above leaves is of a group if all are.
        confused: true group -> group answered -> cost on top: ``{"poisonous": {"edible": 100}}``.

    Raises:
        ValueError, KeyError: if the tree lacks a class, or ``groups`` a group.
    """
    nodes = [(level, label) for level, size in enumerate(tree.num_classes) for label in range(size)]
    above = torch.stack([tree.ancestors[:, level] == label for level, label in nodes])
    below = [0 if node in tree.leaves else tree.num_levels - 1 - node[0] for node in nodes]
    costs = torch.where(above, float(coarse) * torch.tensor(below)[:, None], float(wrong))
    members = group_leaves(tree, groups)
    for truth, row in confused.items():
        for answer, cost in row.items():
            whole = ~(above & ~members[answer]).any(1)
            costs[whole] += float(cost) * members[truth]
    return torch.cat([costs, torch.full_like(costs[:1], unknown)])


def group_leaves(tree: Hierarchy, groups: Mapping[str, Sequence[str]]) -> dict[str, torch.Tensor]:
    """The leaves of each group, bool (leaves,): what is named and all below, where no finer class says otherwise."""
    members = {group: torch.zeros(tree.num_leaves, dtype=torch.bool) for group in groups}
    named = [(node, group) for group, names in groups.items() for node in tree.find_nodes(names)]
    for (level, label), group in sorted(named):
        for each, leaves in members.items():
            leaves[tree.ancestors[:, level] == label] = each == group
    return members


def cheapest(tree: Hierarchy, costs: torch.Tensor, probabilities: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The answers that are expected to cost least, int64 (batch,): the likeliest leaf below; the level, -1 for none.

    Args:
        tree, costs: see :func:`cost_matrix`.
        probabilities: of the leaves, float32 (batch, leaves).
    """
    path = tree._table("nodes", costs.device).T[(probabilities @ costs.T).argmin(1)]  # all IGNORE for no answer
    below = ((path[:, None] < 0) | (path[:, None] == tree.ancestors.to(path.device))).all(2)
    level = torch.where(path >= 0, torch.arange(tree.num_levels, device=path.device), -1).amax(1)
    return torch.where(below, probabilities, -1).argmax(1), level
