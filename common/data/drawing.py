"""Random splits that keep groups together and every class in training."""

from __future__ import annotations

import numpy as np
import pandas as pd


def draw_splits(groups: np.ndarray, paths: np.ndarray, shares: tuple[float, ...], seed: int) -> np.ndarray:
    """Give every row a split, so that no group is in two and every label path is in the first, which is training.

    Within each label path (of a group's first row), groups in random order go where most is missing, after the first,
    which stays in training.

    Args:
        groups: int64 (rows,) numbers from 0.
        paths: int64 (rows,), the number of each row's label path.
        shares: of the rows that the other splits get, at most.

    Returns:
        int64 (rows,): 0 for training, then the others.
    """
    order = np.random.default_rng(seed).permutation(groups.max(initial=-1) + 1)
    sizes = np.bincount(groups, minlength=len(order))
    first_row = np.unique(groups, return_index=True)[1]
    place = np.argsort(order)
    # Of every path the group that comes first in the random order: whatever it holds, training has it.
    anchored = np.zeros(len(order), dtype=bool)
    anchored[order[pd.Series(place[groups]).groupby(paths).min().to_numpy(dtype=int)]] = True
    assigned = np.zeros(len(order), dtype=int)
    wanted = np.array([1 - sum(shares), *shares])
    given = np.zeros(len(wanted))
    for group in sorted(order.tolist(), key=lambda group: (paths[first_row[group]], place[group])):
        lack = wanted * (given.sum() + sizes[group]) - given
        lack[wanted == 0] = -np.inf
        assigned[group] = 0 if anchored[group] else int(np.argmax(lack))
        given[assigned[group]] += sizes[group]
    return assigned[groups]


def number_groups(cells: list[str | None]) -> np.ndarray:
    """int64 (rows,): the number of each row's group; blanks are groups of their own."""
    numbers = pd.factorize(pd.Series(cells, dtype=object))[0]
    blank = numbers < 0
    numbers[blank] = numbers.max(initial=-1) + 1 + np.arange(blank.sum())
    return numbers
