"""Label trees from tables, and labels by name: what turns dirty tables into numbers that can be trusted.

How dirt is resolved, each time (but for spacing) with a line in the report that names rows:

1. spelling: spacing is collapsed, and of variants in upper and lower case the most frequent one is kept;
2. a gap in the middle of a path is filled where every other row with the same finer name agrees on its value, and
   means "this level has no value here" otherwise;
3. blank cells at the end of a path make a partial label: the finer levels of that row are IGNORE;
4. one name under two parents is two classes (and perhaps a typing error, hence the report).
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from .hierarchy import IGNORE, Hierarchy, fold_name

LabelPath = tuple[str | None, ...]

logger = logging.getLogger(__name__)


# ---- tables


def hierarchy_from_table(columns: Mapping[str, Sequence[Any]], first_row: int = 0) -> tuple[Hierarchy, list[str]]:
    """Build the tree that the rows of a table span, with the class names of each level sorted.

    Args:
        columns: level name -> cells, coarse to fine; all of one length. Blank, ``None`` and NaN cells are missing.
        first_row: the number of the first row in messages (2 for a CSV file with a header).

    Returns:
        The tree, and the report (see the module's docstring), one sentence an entry.

    Raises:
        ValueError: if a level has no value in any row.
    """
    levels = list(columns)
    rows = _unique_rows(columns, first_row)
    report: list[str] = []
    rows = _merge_case(levels, rows, report)
    for depth, level in enumerate(levels):
        if all(path[depth] is None for path in rows):
            raise ValueError(f"The level column {level!r} is empty in every row.")
    unclear: set[LabelPath] = set()
    while True:  # nearly always once
        filled, told = _fill_gaps(levels, rows, unclear)
        tree = hierarchy_from_paths(levels, [path for path in filled.values() if any(path)], sort=True)
        lost = _not_found_again(tree, filled)
        if not lost:
            break
        unclear |= lost
    report += told
    paths: dict[LabelPath, list[int]] = defaultdict(list)
    for path, numbers in rows.items():
        paths[filled[path]] += numbers
    _report_names_with_two_parents(tree, paths, report)
    _report_partial_labels(levels, paths, report)
    return tree, report


def _unique_rows(columns: Mapping[str, Sequence[Any]], first_row: int) -> dict[LabelPath, list[int]]:
    """Each different row, cleaned, with the numbers of the rows where it stands."""
    cleaned = [_clean_column(cells) for cells in columns.values()]
    rows: dict[LabelPath, list[int]] = defaultdict(list)
    for number, path in enumerate(zip(*cleaned, strict=True), start=first_row):
        rows[path].append(number)
    return rows


def _clean_column(cells: Sequence[Any]) -> list[str | None]:
    known: dict[Any, str | None] = {}
    return [known[cell] if cell in known else known.setdefault(cell, _clean(cell)) for cell in cells]


def _clean(cell: Any) -> str | None:
    if cell is None or cell != cell:  # NaN is the one value that differs from itself
        return None
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)  # a column of numbers with blanks was read as floats
    return " ".join(str(cell).split()) or None


def _merge_case(
    levels: list[str], rows: Mapping[LabelPath, list[int]], report: list[str]
) -> dict[LabelPath, list[int]]:
    spellings: list[dict[str, dict[str, list[int]]]] = [defaultdict(lambda: defaultdict(list)) for _ in levels]
    for path, numbers in rows.items():
        for depth, name in enumerate(path):
            if name is not None:
                spellings[depth][fold_name(name)][name] += numbers
    kept = [
        {folded: max(found, key=lambda n: (len(found[n]), n)) for folded, found in level.items()}
        for level in spellings
    ]
    for depth, level in enumerate(spellings):
        for folded, found in level.items():
            if len(found) > 1:
                name = kept[depth][folded]
                others = ", ".join(f"{other!r} ({_row_list(found[other])})" for other in found if other != name)
                report.append(f"{levels[depth]}: spellings merged: {others} into {name!r}.")
    merged: dict[LabelPath, list[int]] = defaultdict(list)
    for path, numbers in rows.items():
        key = tuple(None if name is None else kept[depth][fold_name(name)] for depth, name in enumerate(path))
        merged[key] += numbers
    return merged


def _fill_gaps(
    levels: list[str], rows: Mapping[LabelPath, list[int]], unclear: set[LabelPath]
) -> tuple[dict[LabelPath, LabelPath], list[str]]:
    """Fill a blank cell above a named one from the other rows with that finer name, where those agree.

    Returns:
        What each path became, and lines for the report. Paths in ``unclear`` stay as they are.
    """
    seen: dict[tuple[int, str, int], set[str]] = defaultdict(set)
    for path in rows:
        for finer, name in enumerate(path):
            for depth in range(finer):
                if name is not None and path[depth] is not None:
                    seen[finer, name, depth].add(path[depth])
    filled: dict[LabelPath, LabelPath] = {}
    told: list[str] = []
    empty: list[dict[str, list[int]]] = [defaultdict(list) for _ in levels]
    for path, numbers in rows.items():
        new = list(path)
        for depth, finer in _gaps(path):
            values = sorted(seen.get((finer, path[finer], depth), ()))
            where = f"{levels[depth]}: missing above {path[finer]!r} ({_row_list(numbers)})"
            if not values:
                empty[depth][path[finer]] += numbers
            elif len(values) > 1 or path in unclear:
                told.append(
                    f"{where}, not filled, there {f'are {values}' if len(values) > 1 else 'are several paths'}."
                )
            else:
                new[depth] = values[0]
                told.append(f"{where}, filled with {values[0]!r}.")
        filled[path] = tuple(new)
    for level, names in zip(levels, empty, strict=True):
        if names:
            shown = ", ".join(map(repr, list(names)[:5])) + (", ..." if len(names) > 5 else "")
            numbers = list(chain.from_iterable(names.values()))
            told.append(f"{level}: no value above {shown} in any row ({_row_list(numbers)}).")
    return filled, told


def _not_found_again(tree: Hierarchy, filled: Mapping[LabelPath, LabelPath]) -> set[LabelPath]:
    """Rows whose gaps were filled, but which as labels would not be clear: two of the tree's paths fit them."""
    index = tree.node_index()
    lost = set()
    for path, new in filled.items():
        if path != new:
            labels = _encode(tree, index, path) or ()
            if tuple(None if v < 0 else tree.names[level][v] for level, v in enumerate(labels)) != new:
                lost.add(path)
    return lost


def _report_partial_labels(levels: list[str], rows: Mapping[LabelPath, list[int]], report: list[str]) -> None:
    ends: dict[int, list[int]] = defaultdict(list)
    for path, numbers in rows.items():
        ends[max((depth for depth, name in enumerate(path) if name is not None), default=-1)] += numbers
    for depth, numbers in sorted(ends.items()):
        if depth < len(levels) - 1:
            told = f"nothing finer than {levels[depth]!r}" if depth >= 0 else "nothing"
            report.append(f"{levels[depth + 1]}: partial labels, {len(numbers)} name {told} ({_row_list(numbers)}).")


def _gaps(path: LabelPath) -> Iterable[tuple[int, int]]:
    """(blank level, next named level below it) for each blank above a name."""
    below = None
    for depth in range(len(path) - 1, -1, -1):
        if path[depth] is not None:
            below = depth
        elif below is not None:
            yield depth, below


def hierarchy_from_paths(levels: Sequence[str], paths: Iterable[LabelPath], sort: bool) -> Hierarchy:
    """The tree that paths of names span, its classes sorted by name or in order of appearance."""
    nodes: list[dict[LabelPath, None]] = [{} for _ in levels]
    for path in paths:
        for depth, name in enumerate(path):
            if name is not None:
                nodes[depth][path[: depth + 1]] = None
    ordered = [sorted(level, key=lambda key: (key[-1], *map(str, key))) if sort else list(level) for level in nodes]
    position = [{key: index for index, key in enumerate(level)} for level in ordered]
    parents = [[_parent_of(key, position) for key in level] for level in ordered]
    return Hierarchy(levels, [[key[-1] for key in level] for level in ordered], parents)


def _parent_of(key: LabelPath, position: list[dict[LabelPath, int]]) -> tuple[int, int] | None:
    for depth in range(len(key) - 2, -1, -1):
        if key[depth] is not None:
            return depth, position[depth][key[: depth + 1]]
    return None


def _report_names_with_two_parents(tree: Hierarchy, rows: Mapping[LabelPath, list[int]], report: list[str]) -> None:
    where: dict[LabelPath, list[int]] = defaultdict(list)
    for path, numbers in rows.items():
        for depth in range(len(path)):
            where[path[: depth + 1]] += numbers[:3]
    for level, index in enumerate(tree.node_index()):
        for positions in index.values():
            if len(positions) > 1:
                paths = [tree.path_names(level, position)[: level + 1] for position in positions]
                places = [f"{_shown(path[:-1])} ({_row_list(where[path])})" for path in paths]
                name = tree.names[level][positions[0]]
                report.append(
                    f"{tree.levels[level]}: {name!r} stands under {' and under '.join(places)}: two classes."
                )


def _shown(path: LabelPath) -> str:
    return " > ".join(part or "-" for part in path)


def _row_list(numbers: Sequence[int]) -> str:
    shown = ", ".join(str(number) for number in sorted(numbers)[:3])
    return f"row{'s' if len(numbers) > 1 else ''} {shown}{', ...' if len(numbers) > 3 else ''}"


# ---- labels


def encode_paths(tree: Hierarchy, columns: Mapping[str, Sequence[Any]]) -> np.ndarray:
    """Labels of every level for the rows of a table with one column per level.

    A row's finest name decides; what is blank above it is filled in from the tree.

    Returns:
        int64 (rows, levels), IGNORE where a row has no label or the path no value.

    Raises:
        ValueError: for names or paths that the tree does not have, with their rows.
    """
    index = tree.node_index()
    known: dict[LabelPath, Sequence[int] | None] = {}
    labels, unknown = [], defaultdict(list)
    cleaned = [_clean_column(columns[level]) for level in tree.levels]
    for row, path in enumerate(zip(*cleaned, strict=True)):
        if path not in known:
            known[path] = _encode(tree, index, path)
        if known[path] is None:
            unknown[path].append(row)
        labels.append(known[path] or ())
    _refuse_unknown({_shown(path): rows for path, rows in unknown.items()})
    return np.array(labels, dtype=np.int64).reshape(-1, tree.num_levels)


def _encode(tree: Hierarchy, index: list[dict[str, list[int]]], path: LabelPath) -> Sequence[int] | None:
    named = [depth for depth, name in enumerate(path) if name is not None]
    if not named:
        return (IGNORE,) * tree.num_levels
    finest = named[-1]
    folded = [None if name is None else fold_name(name) for name in path]
    found = {}
    for candidate in index[finest].get(folded[finest], []):
        names = [None if name is None else fold_name(name) for name in tree.path_names(finest, candidate)]
        if all(folded[depth] == names[depth] for depth in named):
            found[candidate] = names[:finest]
    # Several paths fit: the one that is blank where the row is; or what such a row became when the tree was built.
    agreed = [folded[depth] or _agreed({names[depth] for names in found.values()}) for depth in range(finest)]
    choice = list(found)
    for wanted in (folded[:finest], agreed):
        if len(choice) != 1:
            choice = [candidate for candidate, names in found.items() if names == wanted]
    return tree.path(finest, choice[0]) if len(choice) == 1 else None


def _agreed(values: set[str | None]) -> str | None:
    values = values - {None}
    return values.pop() if len(values) == 1 else None


def encode_names(tree: Hierarchy, values: Sequence[Any]) -> np.ndarray:
    """Labels of every level for a column that names the leaf, or any class whose name is unique in the tree.

    Returns:
        int64 (rows, levels); a blank cell is IGNORE at every level, a class that is not a leaf at the finer ones.

    Raises:
        ValueError: for names that the tree does not have, or has more than once, with their rows.
    """
    places: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for level, index in enumerate(tree.node_index()):
        for name, positions in index.items():
            places[name] += [(level, position) for position in positions]
    leaves: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for level, position in tree.leaves:
        leaves[fold_name(tree.names[level][position])].append((level, position))
    blank = (IGNORE,) * tree.num_levels
    known: dict[str | None, Sequence[int] | None] = {None: blank}
    labels, unknown = [], defaultdict(list)
    for row, name in enumerate(_clean_column(values)):
        if name not in known:
            folded = fold_name(name)
            nodes = leaves.get(folded) or places.get(folded, [])
            known[name] = tree.path(*nodes[0]) if len(nodes) == 1 else None
        if known[name] is None:
            unknown[name].append(row)
        labels.append(known[name] or blank)
    _refuse_unknown(unknown)
    return np.array(labels, dtype=np.int64).reshape(-1, tree.num_levels)


def _refuse_unknown(unknown: Mapping[str, Sequence[int]]) -> None:
    if unknown:
        shown = "; ".join(f"{name!r} ({_row_list(rows)})" for name, rows in list(unknown.items())[:5])
        more = f"; and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise ValueError(f"not in the label tree of the training data, or there more than once: {shown}{more}")


def read_class_order(path: str | Path, tree: Hierarchy, num_outputs: int) -> list[int | None]:
    """Which output of another classifier belongs to each class of the last level, by name.

    Args:
        path: a text file with one class name a line, in the order of the classifier's outputs.
        tree: our label tree.
        num_outputs: of the classifier.

    Returns:
        For each class of the last level the output, or ``None`` if the file does not name it.

    Raises:
        ValueError: if the file has another number of names, or names none of our classes.
    """
    if not Path(path).is_file():
        raise ValueError(f"No class-order file at {path} (--init_leaf_from_classifier).")
    names = [fold_name(line) for line in Path(path).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if len(names) != num_outputs:
        raise ValueError(f"{path} names {len(names)} classes, the backbone's classifier has {num_outputs} outputs.")
    output = {name: index for index, name in reversed(list(enumerate(names)))}
    rows = [output.get(fold_name(name)) for name in tree.names[-1]]
    found = sum(row is not None for row in rows)
    if not found:
        raise ValueError(
            f"{path} names none of the classes of level {tree.levels[-1]!r}, such as {tree.names[-1][0]!r}."
        )
    logger.info("%d of %d classes start from the backbone's classifier.", found, len(rows))
    return rows
