"""Labels of a table's rows, cleaned: every row gets a path of one tree, written the same way in every split."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import pandas as pd

from common.labels.encoding import LabelPath, clean_column, encode_names, encode_path, path_text
from common.labels.table import hierarchy_from_table
from common.model.hierarchy import Hierarchy
from common.model.tree import IGNORE
from data_prep.rows import RowSet
from data_prep.tables import SPLIT, column_of

UNSEEN = ("blank", "drop", "keep")
"""What to do with classes that evaluation has and training has not: blank the levels, drop the rows, or keep both"""


def tree_of(frame: pd.DataFrame, levels: Sequence[str]) -> tuple[Hierarchy, list[str]]:
    """The tree that the rows of a frame span, and the report of what was resolved; ValueError if a level is empty."""
    return hierarchy_from_table({level: frame[level].tolist() for level in levels})


def clean_paths(rows: RowSet, levels: Sequence[str]) -> None:
    """Resolve spellings and gaps in level columns as :mod:`common.labels.table` says, over all splits together.

    Rows without any label, and those that two paths of the tree fit, are left out.

    Raises:
        ValueError: a level has no value in any row.
    """
    rows.check_any()
    tree, report = tree_of(rows.frame, levels)
    rows.notes += [f"label tree: {line}" for line in report]
    index = tree.node_index()
    known: dict[LabelPath, Sequence[int] | None] = {}
    cleaned = zip(*(clean_column(rows.frame[level].tolist()) for level in levels), strict=True)
    labels = [
        known[path] if path in known else known.setdefault(path, encode_path(tree, index, path)) for path in cleaned
    ]
    blank = (IGNORE,) * tree.num_levels
    raw = rows.frame[list(levels)]
    _write(rows, tree, [label or blank for label in labels])
    unclear = [label is None for label in labels]
    unlabelled = [label is not None and max(label) < 0 for label in labels]
    rows.leave_out(
        unclear, "unclear label", lambda at: f"more than one path of the tree fits {path_text(tuple(raw.iloc[at]))}"
    )
    _leave_out_unlabelled(rows, np.array(unlabelled)[~np.array(unclear)])


def lift_names(rows: RowSet, column: str, tree: Hierarchy) -> None:
    """Level columns from one column that names classes of a tree; unknown and blank names are left out."""
    cells = rows.frame[column].tolist()
    known: dict[str | None, Sequence[int] | None] = {}
    for name in dict.fromkeys(cells):
        try:
            known[name] = encode_names(tree, [name])[0].tolist()
        except ValueError:
            known[name] = None
    blank = (IGNORE,) * tree.num_levels
    labels = [known[name] for name in cells]
    _write(rows, tree, [label or blank for label in labels])
    unknown = np.array([label is None for label in labels])
    unlabelled = np.array([label is not None and max(label) < 0 for label in labels])
    rows.leave_out(
        unknown, "unknown label", lambda at: f"{column} {cells[at]!r} is not in the taxonomy, or there more than once"
    )
    _leave_out_unlabelled(rows, unlabelled[~unknown])


def _leave_out_unlabelled(rows: RowSet, unlabelled: np.ndarray) -> None:
    rows.leave_out(unlabelled, "no label", "the row has no label at any level")


def _write(rows: RowSet, tree: Hierarchy, labels: Sequence[Sequence[int]]) -> None:
    rows.frame = rows.frame.copy()
    for depth, level in enumerate(tree.levels):
        names = [*tree.names[depth], None]
        rows.frame[level] = column_of(names[max(label[depth], -1)] for label in labels)


def settle_unseen(rows: RowSet, levels: Sequence[str], how: str) -> None:
    """See to classes that validation or test have and training has not; the trainers refuse them in validation.

    Args:
        rows: with splits and cleaned labels.
        levels: the label columns, coarse to fine.
        how: one of UNSEEN.
    """
    paths = list(zip(*(rows.frame[level].tolist() for level in levels), strict=True))
    splits = rows.frame[SPLIT].tolist()
    seen = {
        path[: depth + 1]
        for path in {path for path, split in zip(paths, splits, strict=True) if split == "train"}
        for depth, name in enumerate(path)
        if name is not None
    }
    ends: dict[LabelPath, int | None] = {path: _first_unseen(path, seen) for path in set(paths)}
    cut = [None if split == "train" else ends[path] for path, split in zip(paths, splits, strict=True)]
    _report_unseen(rows, levels, [(path, depth) for path, depth in zip(paths, cut, strict=True) if depth is not None])
    if how == "keep":
        return
    for depth, level in enumerate(levels) if how == "blank" else ():
        cells = rows.frame[level].tolist()
        rows.frame[level] = column_of(
            None if end is not None and depth >= end else cell for end, cell in zip(cut, cells, strict=True)
        )
    gone = rows.frame[list(levels)].isna().all(axis=1) if how == "blank" else [end is not None for end in cut]
    rows.leave_out(
        gone, "class not in training", lambda at: f"no training image has {path_text(paths[at][: cut[at] + 1])}"
    )


def _first_unseen(path: LabelPath, seen: set[LabelPath]) -> int | None:
    return next((depth for depth, name in enumerate(path) if name is not None and path[: depth + 1] not in seen), None)


def _report_unseen(rows: RowSet, levels: Sequence[str], found: Sequence[tuple[LabelPath, int]]) -> None:
    by_level: dict[int, Counter[str]] = defaultdict(Counter)
    for path, depth in found:
        by_level[depth][path[depth]] += 1
    for depth, names in sorted(by_level.items()):
        shown = ", ".join(f"{name} ({count})" for name, count in names.most_common(5))
        rows.notes.append(
            f"{len(names)} classes of level {levels[depth]!r} are in validation or test but not in training, with "
            f"{sum(names.values())} images: {shown}{', ...' if len(names) > 5 else ''}."
        )
