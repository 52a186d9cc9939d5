"""Random splits by group, whatever the groups and labels are; and what is left out before any image is looked at."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from data_prep.parts.columns import ROW, SPLIT, SPLITS
from data_prep.rows.row_set import RowSet, leave_shared, split_randomly, text_column

LEVELS = ["family", "species"]


def make_rows(num_rows: int, num_groups: int, num_classes: int, seed: int) -> RowSet:
    """Long-tailed classes; some rows labelled to the family only, some without a group."""
    rng = np.random.default_rng(seed)
    species = np.minimum(rng.geometric(2 / num_classes, num_rows) - 1, num_classes - 1)
    groups = rng.integers(0, num_groups, num_rows)
    frame = pd.DataFrame(
        {
            "image": text_column(f"{row}.jpg" for row in range(num_rows)),
            "family": text_column(f"f{value // 3}" for value in species),
            "species": text_column(None if row % 11 == 5 else f"s{value}" for row, value in enumerate(species)),
            "group": text_column(None if row % 13 == 4 else f"g{group}" for row, group in enumerate(groups)),
            SPLIT: "",
            ROW: np.arange(num_rows),
        }
    )
    return RowSet(frame)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("num_groups", [3, 40, 500])
def test_random_splits(seed, num_groups):
    rows = make_rows(600, num_groups, 30, seed)
    split_randomly(rows, "group", LEVELS, (0.15, 0.1), seed)
    frame = rows.frame
    assert (frame.dropna(subset="group").groupby("group")[SPLIT].nunique() == 1).all()
    seen = {tuple(path) for path in frame.loc[frame[SPLIT] == "train", LEVELS].itertuples(index=False)}
    assert all(tuple(path) in seen for path in frame[LEVELS].itertuples(index=False))
    shares = frame[SPLIT].value_counts(normalize=True)
    if num_groups == 500:
        assert abs(shares["validation"] - 0.15) < 0.04 and abs(shares["test"] - 0.1) < 0.04
        common = frame["species"] == "s0"
        assert abs((frame.loc[common, SPLIT] == "validation").mean() - 0.15) < 0.1


def test_random_splits_depend_on_the_seed_alone():
    splits = []
    for seed in (0, 0, 1):
        rows = make_rows(200, 60, 10, 5)
        split_randomly(rows, "group", LEVELS, (0.2, 0.2), seed)
        splits.append(rows.frame[SPLIT].tolist())
    assert splits[0] == splits[1] != splits[2]


def test_a_class_with_one_group_stays_in_training():
    rows = make_rows(300, 80, 12, 3)
    rows.frame.loc[:3, "species"], rows.frame.loc[:3, "group"] = "rare", "only"
    for seed in range(10):
        split_randomly(rows, "group", LEVELS, (0.4, 0.4), seed)
        assert set(rows.frame.loc[:3, SPLIT]) == {"train"}


def test_no_test_share_means_no_test():
    rows = make_rows(300, 80, 12, 3)
    split_randomly(rows, None, LEVELS, (0.2, 0.0), 0)
    assert set(rows.frame[SPLIT]) == {"train", "validation"}


def test_no_rows_at_all():
    rows = make_rows(5, 2, 2, 0)
    rows.leave_out(np.ones(5, bool), "gone", "all of them")
    split_randomly(rows, "group", LEVELS, (0.2, 0.2), 0)
    assert len(rows.frame) == 0 and len(rows.problems) == 5


def test_shared_groups_leave_the_earlier_split():
    rows = make_rows(9, 9, 2, 0)
    rows.frame[SPLIT] = text_column(SPLITS * 3)
    rows.frame["group"] = text_column(["a", "b", "c", "a", "a", "b", None, None, None])
    leave_shared(rows, "group", "shared")
    # a: train, train and validation; b: validation and test
    assert [problem.row for problem in rows.problems] == [0, 3, 1]
    assert rows.problems[0].problem == "group 'a' is also in a later split"
    assert rows.frame[ROW].tolist() == [2, 4, 5, 6, 7, 8]
