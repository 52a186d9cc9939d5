"""Labels of a table's rows, cleaned: every row gets a path of one tree, written the same way in every split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import pandas as pd

from common.labels.doubts import move_rows
from common.labels.encoding import encode_names, encode_path, path_text
from common.labels.table import hierarchy_from_table
from common.model.hierarchy import Hierarchy
from data_prep.parts.columns import SPLIT

from .row_set import RowSet, text_column


def clean_paths(rows: RowSet, levels: Sequence[str], conflicts: str = "keep") -> None:
    """Resolve spellings and gaps in level columns as :mod:`common.labels.table` says, over all splits together.

    Rows without any label, and those that two paths of the tree fit, are left out.

    Raises:
        ValueError: a level has no value in any row; with ``conflicts="error"``, a name has an odd parent.
    """
    if not len(rows.frame):
        first = f", the first: {rows.problems[0].problem}" if rows.problems else ""
        raise ValueError(f"No row can be used; {len(rows.problems)} have problems{first}.")
    raw, moves = rows.frame[list(levels)], {}
    columns = {level: raw[level].tolist() for level in levels}
    tree, report = hierarchy_from_table(columns, conflicts=conflicts, moves=moves)
    rows.notes += [f"label tree: {line}" for line in report]
    index = tree.node_index()
    paths = list(zip(*move_rows(columns, moves).values(), strict=True))
    known = {path: encode_path(tree, index, path) for path in set(paths)}
    _write_labels(
        rows,
        tree,
        [known[path] for path in paths],
        "unclear label",
        lambda at: f"more than one path of the tree fits {path_text(tuple(raw.iloc[at]))}",
    )


def lift_names(rows: RowSet, column: str, tree: Hierarchy, keys: Mapping[str, Sequence[int]]) -> None:
    """Level columns from one column that names classes of a tree, or keys; rows with other names are left out."""
    cells = rows.frame[column].tolist()
    known: dict[str | None, Sequence[int] | None] = {}
    for name in dict.fromkeys(cells):
        try:
            known[name] = encode_names(tree, [name], keys)[0].tolist()
        except ValueError:
            known[name] = None
    _write_labels(
        rows,
        tree,
        [known[name] for name in cells],
        "unknown label",
        lambda at: f"{column} {cells[at]!r} is not in the taxonomy, or there more than once",
    )


def _write_labels(
    rows: RowSet, tree: Hierarchy, labels: Sequence[Sequence[int] | None], kind: str, problem: Callable[[int], str]
) -> None:
    """Write names into the level columns; leave out rows with no path (``None``), and then those without any label."""
    frame = rows.frame = rows.frame.copy()
    for depth, level in enumerate(tree.levels):
        names = [*tree.names[depth], None]  # IGNORE, a negative number, becomes the last
        frame[level] = text_column(names[max(label[depth], -1)] if label else None for label in labels)
    rows.leave_out([label is None for label in labels], kind, problem)
    unlabelled = [max(label) < 0 for label in labels if label is not None]
    rows.leave_out(unlabelled, "no label", "the row has no label at any level")


def settle_unseen(rows: RowSet, levels: Sequence[str], how: str) -> None:
    """Deal with classes that validation or test have and training has not; the trainers refuse them in validation.

    ``how``: ``blank`` these levels of the rows, ``drop`` the rows, or ``keep`` both.
    """
    paths = list(zip(*(rows.frame[level].tolist() for level in levels), strict=True))
    training = {path for path, split in zip(paths, rows.frame[SPLIT], strict=True) if split == "train"}
    seen = {path[: depth + 1] for path in training for depth in range(len(path))}
    ends = {
        path: next((at for at, name in enumerate(path) if name is not None and path[: at + 1] not in seen), None)
        for path in set(paths)
    }
    cut = [ends[path] for path in paths]
    for depth, level in enumerate(levels):
        names = Counter(path[depth] for path, end in zip(paths, cut, strict=True) if end == depth)
        if names:
            shown = ", ".join(f"{name} ({count})" for name, count in names.most_common(5))
            rows.notes.append(
                f"{len(names)} classes of level {level!r} are in validation or test but not in training, with "
                f"{names.total()} images: {shown}{', ...' if len(names) > 5 else ''}."
            )
    if how == "keep":
        return
    gone = pd.Series([end is not None for end in cut])
    if how == "blank":
        for depth, level in enumerate(levels):
            cells = zip(cut, rows.frame[level].tolist(), strict=True)
            rows.frame[level] = text_column(None if end is not None and depth >= end else cell for end, cell in cells)
        gone = rows.frame[list(levels)].isna().all(axis=1)
    rows.leave_out(
        gone, "class not in training", lambda at: f"no training image has {path_text(paths[at][: cut[at] + 1])}"
    )
