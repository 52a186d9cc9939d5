"""What in a table of label paths is probably a mistake: the order of levels, an odd parent, words for unknown."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from ..model.tree import fold_name
from .encoding import LabelPath, clean_column, path_text, row_list
from .table_files import MISSING

PLACEHOLDERS = {
    *("unknown", "unclassified", "not classified", "not_classified", "unidentified", "not identified", "undetermined"),
    *("not determined", "indet", "indet.", "undet.", "incertae sedis", "sp", "sp.", "spp", "spp.", "not known"),
}
"""Names that stand for no name, folded"""

MANY_PARENTS = 5
"""A name under so many parents is asked about whatever it is"""

ODD_SHARE = 0.1
"""If at most this share of a name's rows have another parent than the rest, that is probably a mistake"""

Moves = dict[LabelPath, LabelPath]
"""Beginning of a path with an odd parent, folded -> the same with the usual one"""


def doubtful_order(levels: Sequence[str], rows: Mapping[LabelPath, Sequence[int]]) -> list[str]:
    """A question if the first level has more names than the last one, or a name for each path as a key has."""
    full = [path for path in rows if None not in path]
    count = [len({path[at] for path in full}) for at in range(len(levels))]
    if count[0] > count[-1] or (count[0] == len(full) > 2 and count[0] > count[min(1, len(count) - 1)]):
        names = " > ".join(f"{level} {number}" for level, number in zip(levels, count, strict=True))
        return [
            f"the levels have names: {names}: are they coarse to fine? (A column of keys for the labels is no level; "
            "--label_column names it.)"
        ]
    return []


def find_placeholders(levels: Sequence[str], rows: Mapping[LabelPath, Sequence[int]]) -> list[str]:
    """A question for each name that stands under several parents and may mean that nothing is known."""
    told = []
    for depth, level in enumerate(levels[1:], start=1):
        parents: dict[str, set[LabelPath]] = defaultdict(set)
        for path in rows:
            if path[depth]:
                parents[path[depth]].add(path[:depth])
        for name, found in parents.items():
            if len(found) >= (2 if fold_name(name) in PLACEHOLDERS else MANY_PARENTS):
                told.append(
                    f"{level}: {name!r} stands under {len(found)} parents; if it means that the {level} is not known, "
                    f"blank it: --missing_values {' '.join(MISSING)} {name!r}."
                )
    return told


def find_odd_parents(
    levels: Sequence[str], rows: Mapping[LabelPath, Sequence[int]], conflicts: str
) -> tuple[Moves, list[str]]:
    """Rows in which a name has another parent than nearly all other rows with it have: what to move, what to tell.

    ``rows`` are paths, spelled alike, and the numbers of their rows; ``conflicts`` says to ``keep`` them, to move them
    to the ``majority``, or to raise a ValueError (``error``).
    """
    moves: Moves = {}
    told = []
    for depth in range(1, len(levels)):
        parents: dict[str, dict[LabelPath, list[int]]] = defaultdict(lambda: defaultdict(list))
        for path, numbers in rows.items():
            path = _move(path, moves)
            if None not in path[: depth + 1]:
                parents[path[depth]][path[:depth]] += numbers
        for name, found in parents.items():
            usual = max(found, key=lambda parent: len(found[parent]))
            total = sum(map(len, found.values()))
            odd = [parent for parent in found if parent != usual]
            for parent in odd if total - len(found[usual]) <= ODD_SHARE * total else ():
                if conflicts == "majority":
                    moves[tuple(map(fold_name, (*parent, name)))] = (*usual, name)
                told.append(
                    f"{levels[depth]}: {name!r} stands under {path_text(parent)} ({row_list(found[parent])}), and "
                    f"under {path_text(usual)} in {len(found[usual])} rows: probably a mistake"
                )
    if told and conflicts == "error":
        raise ValueError(f"{'; '.join(told[:5])} ({len(told)} in all). Mend the table, or see --conflicts.")
    end = ", moved to the latter." if conflicts == "majority" else "; --conflicts majority moves it to the latter."
    return moves, [line + end for line in told]


def move_rows(columns: Mapping[str, Sequence[object]], moves: Moves) -> dict[str, list[str | None]]:
    """Level columns, cleaned, with usual parents instead of odd ones."""
    paths = list(zip(*map(clean_column, columns.values()), strict=True))
    new = {path: _move(path, moves) for path in set(paths)}
    return {name: [new[path][at] for path in paths] for at, name in enumerate(columns)}


def _move(path: LabelPath, moves: Moves) -> LabelPath:
    for depth in range(1, len(path) if moves else 0):
        if None not in path[: depth + 1]:
            usual = moves.get(tuple(map(fold_name, path[: depth + 1])))
            path = (*usual, *path[depth + 1 :]) if usual else path
    return path
