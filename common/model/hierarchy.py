"""The label tree: levels, class names and parents, and the tensor operations that follow from them.

A *level* is one tier of the tree (phylum, ..., species, or binary, coarse, fine). A *leaf* is a class without
children: every class of the last level and, after those, classes of upper levels that nothing finer was named under.
A *path* is one class per level, or IGNORE where a level has none (an undamaged pixel has no kind of damage).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from .tree import IGNORE, as_list, check_tree, find_leaves, fold_name, node_paths, per_level, repeated, to_parent


class Hierarchy:
    """A tree of classes arranged in levels, from the root's children to the finest classes.

    Args:
        levels: names of the levels, coarse to fine.
        names: per level, the ordered class names. A node is a path, not a name: a name may occur twice in a level as
            long as the parents differ (:meth:`display_names` tells them apart).
        parents: per level, one entry per class: the index of its parent in the level above; or ``(level, class)``
            where the levels in between have none; or ``None`` where nothing is above it.

    Attributes:
        num_levels, num_classes: number of levels, and of classes of each level.
        leaves: (level, class) of every leaf: first the classes of the last level, in order.
        num_leaves: their number.
        ancestors: int64 (leaves, levels): the classes on each leaf's path, IGNORE where a level has none.
        has_gaps: per level, whether some path has no class there.

    Raises:
        ValueError: if this is not a tree; the message names the classes.
    """

    def __init__(
        self,
        levels: Sequence[str],
        names: Mapping[str, Sequence[str]] | Sequence[Sequence[str]],
        parents: Mapping[str, Sequence[Any]] | Sequence[Sequence[Any]],
    ) -> None:
        self.levels = tuple(str(level) for level in as_list("levels", levels))
        if not self.levels or len(set(self.levels)) != len(self.levels):
            raise ValueError(f"A hierarchy needs at least one level and no level twice; got {list(self.levels)}.")
        self.names = tuple(tuple(map(str, column)) for column in per_level("names", names, self.levels))
        above = enumerate(per_level("parents", parents, self.levels))
        self.parents = tuple(tuple(to_parent(entry, level) for entry in column) for level, column in above)
        check_tree(self.levels, self.names, self.parents)
        self._paths, self.leaves = node_paths(self.parents), find_leaves(self.parents)
        self.num_levels, self.num_leaves = len(self.levels), len(self.leaves)
        self.num_classes = tuple(map(len, self.names))
        nodes = torch.tensor([path for level in self._paths for path in level], dtype=torch.long, device="cpu")
        self.ancestors = torch.tensor([self._paths[level][index] for level, index in self.leaves], device="cpu")
        self.has_gaps = (self.ancestors < 0).any(0).tolist()
        self._tables = {
            (kind, "cpu"): torch.cat([rows, rows.new_full((1, self.num_levels), IGNORE)]).T.contiguous()
            for kind, rows in (("lift", self.ancestors), ("nodes", nodes))
        }

    # ---- what it is made of

    def path(self, level: int, index: int) -> tuple[int, ...]:
        """Class per level from the root down to class ``index`` of ``level``, IGNORE elsewhere."""
        return tuple(self._paths[level][index])

    def path_names(self, level: int, index: int) -> tuple[str | None, ...]:
        """The names along :meth:`path`; ``None`` where a level has no class."""
        path = self.path(level, index)
        return tuple(None if label == IGNORE else self.names[depth][label] for depth, label in enumerate(path))

    def display_names(self, level: int) -> list[str]:
        """Class names of one level, made unique by the names above them where one name has several parents."""
        return self.shown_names[level]

    @cached_property
    def shown_names(self) -> list[list[str]]:
        """:meth:`display_names` of every level."""
        shown = [list(column) for column in self.names]
        for level, column in enumerate(self.names):
            twice = repeated(column)
            for index, name in enumerate(column):
                if name in twice:
                    above = [part for part in self.path_names(level, index)[:level] if part is not None]
                    shown[level][index] = f"{name} ({' > '.join(above) or 'root'})"
        return shown

    def leaf_names(self) -> list[str]:
        """Display name of every leaf."""
        return [self.shown_names[level][index] for level, index in self.leaves]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Hierarchy) and self.to_dict() == other.to_dict()

    __hash__ = None

    def __repr__(self) -> str:
        counts = " > ".join(f"{level} {count}" for level, count in zip(self.levels, self.num_classes, strict=True))
        return f"Hierarchy({counts}; {self.num_leaves} leaves)"

    # ---- tensor operations

    def lift(self, leaf_labels: torch.Tensor) -> list[torch.Tensor]:
        """Labels of every level from labels of leaves: one table look-up a level.

        Args:
            leaf_labels: integer tensor of any shape, on any device; IGNORE (any negative number) stays IGNORE.

        Returns:
            One int64 tensor of the same shape per level.
        """
        table = self._table("lift", leaf_labels.device)
        index = leaf_labels.long()  # first: the number of leaves may not fit into 8 bits
        index = torch.where(index < 0, self.num_leaves, index)
        return [column[index] for column in table]

    def count_lifted(self, leaf_counts: torch.Tensor) -> list[torch.Tensor]:
        """How often each class of each level occurs, from how often each leaf does: int64 (classes,) per level."""
        return [
            torch.zeros(size, dtype=torch.long).index_add(0, index[index >= 0], leaf_counts[index >= 0])
            for size, index in zip(self.num_classes, self.ancestors.T, strict=True)
        ]

    def path_scores(self, scores: Sequence[torch.Tensor]) -> torch.Tensor:
        """Sum of the scores along each leaf's path.

        Args:
            scores: per level, a tensor (batch, classes of the level, ...).

        Returns:
            (batch, leaves, ...); levels without a class on a leaf's path add nothing.
        """
        total = None
        for score, index, has_gaps in zip(scores, self._table("lift", scores[0].device), self.has_gaps, strict=True):
            term = score.index_select(1, index[:-1].clamp(min=0))
            if has_gaps:
                term = term.masked_fill(_as_dim1(index[:-1] < 0, score.dim()), 0)
            total = term if total is None else total + term
        return total

    def marginalize(
        self, leaf_log_probs: torch.Tensor, levels: Sequence[int] | None = None
    ) -> list[torch.Tensor | None]:
        """Log-probability of every class: the logsumexp over its leaves, per level.

        Probabilities are joint: where some leaves have no class at a level, that level's sum to less than one.

        Args:
            leaf_log_probs: (batch, leaves, ...), floating point.
            levels: indices of the levels wanted (all by default); the others are ``None`` in the result.

        Returns:
            Per level a tensor (batch, classes of the level, ...), or ``None``.
        """
        wanted = range(self.num_levels) if levels is None else levels
        every = range(self.num_levels)
        return [self._logsumexp(leaf_log_probs, level) if level in wanted else None for level in every]

    def is_path(self, labels: Sequence[torch.Tensor]) -> torch.Tensor:
        """Whether labels predicted for each level on its own form a path of the tree.

        A level that has no class on the path of the finest label cannot contradict it.

        Args:
            labels: per level an integer tensor of one shape, IGNORE where nothing was predicted.

        Returns:
            Boolean tensor of that shape.
        """
        finest = torch.full_like(labels[0], -1)
        for level, column in enumerate(labels):
            finest = torch.where(column >= 0, column + sum(self.num_classes[:level]), finest)
        table = self._table("nodes", finest.device)
        consistent = torch.ones_like(finest, dtype=torch.bool)
        for level, column in enumerate(labels):
            expected = table[level][finest]
            consistent &= (expected < 0) | (column == expected)
        return consistent

    def _logsumexp(self, leaf_log_probs: torch.Tensor, level: int) -> torch.Tensor:
        num_classes, leaves = self.num_classes[level], leaf_log_probs
        if level == self.num_levels - 1:  # leaves of the last level are its classes, in order
            return leaves[:, :num_classes]
        # Leaves without a class at this level go to an extra class, which is cut off again.
        index = self._table("lift", leaves.device)[level, :-1]
        index = torch.where(index < 0, num_classes, index)
        shape = (leaves.shape[0], num_classes + 1, *leaves.shape[2:])
        where = _as_dim1(index, leaves.dim()).expand_as(leaves)
        top = leaves.new_full(shape, -torch.inf).scatter_reduce(1, where, leaves.detach(), "amax")
        top = top.masked_fill(top == -torch.inf, 0)
        total = leaves.new_zeros(shape).index_add(1, index, (leaves - top.index_select(1, index)).exp())
        return (total[:, :num_classes].log() + top[:, :num_classes]).contiguous()

    def _table(self, kind: str, device: torch.device) -> torch.Tensor:
        """Look-up tables (num_levels, entries + 1), on this device; the last column is IGNORE."""
        key = (kind, str(device))
        found = self._tables[key] if key in self._tables else self._tables[kind, "cpu"].to(device)
        if not torch.compiler.is_exporting():  # whose tensors are fake and would stay in the model
            self._tables[key] = found
        return found

    # ---- looking classes up by name

    def node_index(self) -> list[dict[str, list[int]]]:
        """Per level, name (case and spacing folded) -> the classes of that name."""
        index: list[dict[str, list[int]]] = [{} for _ in self.levels]
        for found, column in zip(index, self.names, strict=True):
            for position, name in enumerate(column):
                found.setdefault(fold_name(name), []).append(position)
        return index

    def find_nodes(self, names: Sequence[str], option: str = "--costs") -> list[tuple[int, int]]:
        """(level, class) of every name, at whatever levels it occurs; ValueError, with similar ones, if at none."""
        index, found = self.node_index(), []
        for name in names:
            nodes = [(level, label) for level, column in enumerate(index) for label in column.get(fold_name(name), ())]
            if not nodes:
                close = get_close_matches(name, chain(*self.names), n=3)
                hint = f" Did you mean {' or '.join(close)}?" if close else ""
                raise ValueError(f"{option} {name}: the label tree has no such class at any level.{hint}")
            found += nodes
        return found

    def node_keys(self) -> list[tuple[tuple[str, str], ...]]:
        """Of every class, level after level: (level, folded name) along its path, which begins with its parent's."""
        nodes = [(level, index) for level, column in enumerate(self.names) for index in range(len(column))]
        paths = [zip(self.levels, self.path_names(*node), strict=True) for node in nodes]
        return [tuple((level, fold_name(name)) for level, name in path if name) for path in paths]

    # ---- disk

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and dicts, as stored in JSON and in a model's ``config.json``."""
        parents = [
            [parent and (parent[1] if parent[0] == level - 1 else list(parent)) for parent in column]
            for level, column in enumerate(self.parents)
        ]
        return {
            "levels": list(self.levels),
            "names": dict(zip(self.levels, map(list, self.names), strict=True)),
            "parents": dict(zip(self.levels, parents, strict=True)),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Hierarchy:
        """The inverse of :meth:`to_dict`; ValueError for anything else."""
        missing = {"levels", "names", "parents"} - set(content if isinstance(content, Mapping) else ())
        if missing:
            raise ValueError(f"A hierarchy needs the keys levels, names and parents; missing: {sorted(missing)}.")
        return cls(content["levels"], content["names"], content["parents"])

    def save(self, path: str | Path) -> None:
        """Write JSON; :func:`common.labels.hierarchy_files.load_hierarchy` reads it."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _as_dim1(vector: torch.Tensor, num_dims: int) -> torch.Tensor:
    return vector.view(1, -1, *(1,) * (num_dims - 2))
