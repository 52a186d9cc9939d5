"""Label trees from tables, which may have mistakes.

How mistakes are resolved, each (except spacing) with a line in the report that names rows:

1. spelling: spacing is collapsed, and of variants in upper and lower case the most frequent one is kept;
2. a gap in the middle of a path is filled if all rows with the same finer name (and nothing different above it) agree
   on its value; otherwise the path has no class at this level;
3. blank cells at the end of a path make a partial label: the finer levels of that row are IGNORE;
4. one name under two parents is two classes (or a typing error, hence the report; see :mod:`common.labels.doubts`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any
from unicodedata import normalize

from ..model.hierarchy import Hierarchy
from ..model.tree import fold_name
from .doubts import Moves, doubtful_order, find_odd_parents, find_placeholders, move_rows
from .encoding import LabelPath, clean_column, encode_path, path_text, row_list


def hierarchy_from_table(
    columns: Mapping[str, Sequence[Any]], first_row: int = 0, conflicts: str = "keep", moves: Moves | None = None
) -> tuple[Hierarchy, list[str]]:
    """Build the tree that the rows of a table span, with the class names of each level sorted.

    Args:
        columns: level name -> cells, coarse to fine; all of one length. Blank, ``None`` and NaN cells are missing.
        first_row: its number in messages (2 for a CSV file with a header).
        conflicts, moves: what becomes of odd parents, and gets what was moved; see :mod:`common.labels.doubts`.

    Returns:
        The tree, and the report (see the module's docstring), one sentence per entry.

    Raises:
        ValueError: if a level has no value in any row; with ``conflicts="error"`` also for odd parents.
    """
    levels = list(columns)
    rows = _unique_rows(columns, first_row)
    report: list[str] = []
    rows = _merge_case(levels, rows, report)
    for depth, level in enumerate(levels):
        if all(path[depth] is None for path in rows):
            raise ValueError(f"The level column {level!r} is empty in every row.")
    report += doubtful_order(levels, rows)
    odd, lines = find_odd_parents(levels, rows, conflicts)
    report += lines + find_placeholders(levels, rows)
    if odd:
        rows = _unique_rows(move_rows(columns, odd), first_row)
        rows = _merge_case(levels, rows, [])
        (moves if moves is not None else {}).update(odd)
    unclear: set[LabelPath] = set()
    while True:  # nearly always once
        filled, lines = _fill_gaps(levels, rows, unclear)
        tree = hierarchy_from_paths(levels, [path for path in filled.values() if any(path)], sort=True)
        lost = _not_found_again(tree, filled)
        if not lost:
            break
        unclear |= lost
    report += lines
    paths: dict[LabelPath, list[int]] = defaultdict(list)
    for path, numbers in rows.items():
        paths[filled[path]] += numbers
    _report_names_with_two_parents(tree, paths, report)
    _report_partial_labels(levels, paths, report)
    return tree, report


def _unique_rows(columns: Mapping[str, Sequence[Any]], first_row: int) -> dict[LabelPath, list[int]]:
    """Each different row, cleaned, with its row numbers."""
    cleaned = [clean_column(cells) for cells in columns.values()]
    rows: dict[LabelPath, list[int]] = defaultdict(list)
    for number, path in enumerate(zip(*cleaned, strict=True), start=first_row):
        rows[path].append(number)
    return rows


def _merge_case(
    levels: list[str], rows: Mapping[LabelPath, list[int]], report: list[str]
) -> dict[LabelPath, list[int]]:
    spellings: dict[tuple[int, str], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for path, numbers in rows.items():
        for depth, name in enumerate(path):
            if name is not None:
                spellings[depth, fold_name(name)][name] += numbers
    kept: dict[tuple[int, str], str] = {}
    for (depth, folded), found in sorted(spellings.items(), key=lambda item: item[0][0]):
        name = kept[depth, folded] = normalize("NFC", max(found, key=lambda name: (len(found[name]), name)))
        if len(found) > 1:
            others = ", ".join(f"{other!r} ({row_list(found[other])})" for other in found if other != name)
            report.append(f"{levels[depth]}: spellings merged: {others} into {name!r}.")
    merged: dict[LabelPath, list[int]] = defaultdict(list)
    for path, numbers in rows.items():
        merged[tuple(name and kept[depth, fold_name(name)] for depth, name in enumerate(path))] += numbers
    return merged


def _fill_gaps(
    levels: list[str], rows: Mapping[LabelPath, list[int]], unclear: set[LabelPath]
) -> tuple[dict[LabelPath, LabelPath], list[str]]:
    """Fill a blank cell above a named one from the other rows with that finer name, where those agree.

    Returns:
        What each path became, and lines for the report. Paths in ``unclear`` stay as they are.
    """
    named: dict[tuple[int, str], list[LabelPath]] = defaultdict(list)
    for path in rows:
        for depth, name in enumerate(path):
            if name is not None:
                named[depth, name].append(path)
    filled: dict[LabelPath, LabelPath] = {}
    lines: list[str] = []
    empty: list[dict[str, list[int]]] = [defaultdict(list) for _ in levels]
    for path, numbers in rows.items():
        new, finer = list(path), None
        for depth in reversed(range(len(path))):
            finer = depth if path[depth] is not None else finer
            if finer is None or finer == depth:
                continue
            others = (other for other in named[finer, path[finer]] if _compatible(other, path, finer))
            values = sorted({other[depth] for other in others} - {None})
            where = f"{levels[depth]}: missing above {path[finer]!r} ({row_list(numbers)})"
            if not values:
                empty[depth][path[finer]] += numbers
            elif len(values) > 1 or path in unclear:
                told = f"are {values}" if len(values) > 1 else "are several paths"
                lines.append(f"{where}, not filled, there {told}.")
            else:
                new[depth] = values[0]
                lines.append(f"{where}, filled with {values[0]!r}.")
        filled[path] = tuple(new)
    for level, names in zip(levels, empty, strict=True):
        if names:
            shown = ", ".join(map(repr, list(names)[:5])) + (", ..." if len(names) > 5 else "")
            lines.append(f"{level}: no value above {shown} in any row ({row_list(list(chain(*names.values())))}).")
    return filled, lines


def _compatible(first: LabelPath, second: LabelPath, depth: int) -> bool:
    """Whether two paths name nothing different above a level."""
    return all(a is None or b is None or a == b for a, b in zip(first[:depth], second[:depth], strict=True))


def _not_found_again(tree: Hierarchy, filled: Mapping[LabelPath, LabelPath]) -> set[LabelPath]:
    """Rows whose gaps were filled, but which would be ambiguous as labels: two paths of the tree fit them."""
    index = tree.node_index()
    lost = set()
    for path, new in filled.items():
        if path != new:
            labels = encode_path(tree, index, path) or ()
            if tuple(None if v < 0 else tree.names[level][v] for level, v in enumerate(labels)) != new:
                lost.add(path)
    return lost


def _report_partial_labels(levels: list[str], rows: Mapping[LabelPath, list[int]], report: list[str]) -> None:
    for depth, level in enumerate(levels):
        ends = (found for path, found in rows.items() if not any(path[depth:]) and all(path[depth - 1 : depth]))
        numbers = list(chain.from_iterable(ends))
        if numbers:
            known = f"nothing finer than {levels[depth - 1]!r}" if depth else "nothing"
            report.append(f"{level}: partial labels, {len(numbers)} name {known} ({row_list(numbers)}).")


def hierarchy_from_paths(levels: Sequence[str], paths: Iterable[LabelPath], sort: bool) -> Hierarchy:
    """The tree that paths of names span, its classes sorted by name or in order of appearance."""
    nodes: list[dict[LabelPath, None]] = [{} for _ in levels]
    for path in paths:
        for depth, name in enumerate(path):
            if name is not None:
                nodes[depth][path[: depth + 1]] = None
    ordered = [sorted(level, key=lambda key: (key[-1], *map(str, key))) if sort else list(level) for level in nodes]
    place = {key: (depth, index) for depth, level in enumerate(ordered) for index, key in enumerate(level)}

    def parent(key: LabelPath) -> tuple[int, int] | None:
        above = (key[:depth] for depth in reversed(range(1, len(key))) if key[depth - 1] is not None)
        return next(map(place.get, above), None)

    return Hierarchy(
        levels, [[key[-1] for key in level] for level in ordered], [map(parent, level) for level in ordered]
    )


def _report_names_with_two_parents(tree: Hierarchy, rows: Mapping[LabelPath, list[int]], report: list[str]) -> None:
    where: dict[LabelPath, list[int]] = defaultdict(list)
    for path, numbers in rows.items():
        for depth in range(len(path)):
            where[path[: depth + 1]] += numbers[:3]
    for level, index in enumerate(tree.node_index()):
        for positions in index.values():
            if len(positions) > 1:
                paths = [tree.path_names(level, position)[: level + 1] for position in positions]
                places = [f"{path_text(path[:-1])} ({row_list(where[path])})" for path in paths[:5]]
                places += [f"{len(paths) - 5} others"] if len(paths) > 5 else []
                name = tree.names[level][positions[0]]
                report.append(
                    f"{tree.levels[level]}: {name!r} stands under {' and under '.join(places)}: two classes."
                )
