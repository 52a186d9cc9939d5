"""Dividing rows among parts: groups stay together, and every class gets its share as far as groups allow."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

AUGMENTED = r"_aug\d+$"
"""What ends the id of an augmented copy; the rest is the original's id"""


def number_groups(values: Sequence[Any]) -> np.ndarray:
    """int64 (rows,): the number of each row's group; a row with a blank value is a group of its own."""
    numbers: dict[Any, int] = {}
    keys = ((row,) if value in (None, "") else str(value) for row, value in enumerate(values))
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def split_augmented(ids: Sequence[Any], pattern: str = AUGMENTED) -> tuple[list[str], np.ndarray]:
    """The original's id of each row, and whether the row is an augmented copy, bool (rows,)."""
    names = ["" if value is None else str(value) for value in ids]
    return [re.sub(pattern, "", name) for name in names], np.array([bool(re.search(pattern, name)) for name in names])


def number_classes(columns: Sequence[Sequence[Any]], num_rows: int) -> np.ndarray:
    """int64 (rows,): the number of each row's combination of values; all 0 without columns."""
    rows = [tuple(map(str, row)) for row in zip(*columns, strict=True)] or [()] * num_rows
    numbers = {row: number for number, (row, _) in enumerate(Counter(rows).most_common())}
    return np.array([numbers[row] for row in rows], dtype=np.int64)


def divide_groups(groups: np.ndarray, classes: np.ndarray, shares: Sequence[float], seed: int) -> np.ndarray:
    """Give each group to one of several parts.

    Groups with the rarest classes go first, each to the part that lacks most of its classes (iterative
    stratification: Sechidis et al., On the stratification of multi-label data, ECML 2011, applied to groups). A class
    with a single group is in the part with the largest share.

    Args:
        groups: int (rows,) numbers from 0, one a group.
        classes: int (rows,) numbers from 0, negative for rows without a class.
        shares: of the parts, of rows.
        seed: of the order among equals.

    Returns:
        int64 (groups,): the part of each.
    """
    num_groups, num_classes = int(groups.max(initial=-1)) + 1, int(classes.max(initial=-1)) + 2
    numbers, counts = np.unique(groups * num_classes + classes + 1, return_counts=True)
    owner, kind = numbers // num_classes, numbers % num_classes
    totals = np.bincount(kind, counts, minlength=num_classes)
    need = np.asarray(shares, dtype=float)[:, None] / sum(shares) * totals
    starts = np.searchsorted(owner, np.arange(num_groups + 1))
    rarity = np.minimum.reduceat(totals[kind], starts[:-1]) if num_groups else np.zeros(0)
    size = np.bincount(groups, minlength=num_groups)
    shuffled = np.random.default_rng(seed).permutation(num_groups)
    parts = np.zeros(num_groups, dtype=np.int64)
    for group in shuffled[np.lexsort((-size[shuffled], rarity[shuffled]))]:
        own = slice(starts[group], starts[group + 1])
        kinds, amount = kind[own], counts[own]
        lack = (need[:, kinds] / totals[kinds] * amount).sum(1)
        best = np.flatnonzero(lack >= lack.max() - 1e-9)
        part = best[need[best].sum(1).argmax()]
        need[part, kinds] -= amount
        parts[group] = part
    return parts
