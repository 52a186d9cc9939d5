"""Labels by name: from the cells of a table to class numbers of every level of a label tree."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np

from ..model.hierarchy import Hierarchy
from ..model.tree import IGNORE, fold_name

UNKNOWN = -1
"""Label of something that is named, but that the label tree has no class for"""

LabelPath = tuple[str | None, ...]
"""Names along a path, coarse to fine; ``None`` where a cell is blank."""

logger = logging.getLogger(__name__)


# ---- cells and messages


def clean_column(cells: Sequence[Any]) -> list[str | None]:
    """Cells as names: :func:`text_of` with spacing collapsed."""
    known: dict[Any, str | None] = {}
    return [known[cell] if cell in known else known.setdefault(cell, _clean(cell)) for cell in cells]


def _clean(cell: Any) -> str | None:
    return " ".join((text_of(cell) or "").split()) or None


def text_of(cell: Any) -> str | None:
    """A cell as text: numbers in full, whole ones without a decimal point; ``None`` for blank, ``None`` and NaN."""
    if cell is None or cell != cell:  # NaN is the one value that differs from itself
        return None
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)  # a column of integers with blanks is read as floats
    return str(cell).strip() or None


def group_key(cell: str | None) -> str | None:
    """The form in which groups are compared: ``1008.0``, which pandas writes beside blanks, is ``1008``."""
    if cell and cell.endswith(".0") and cell[:-2].isdecimal():
        cell = cell[:-2]
    return cell if cell is None or cell.isascii() else normalize("NFC", cell)


def path_text(path: LabelPath) -> str:
    """A path for messages."""
    return " > ".join(part or "-" for part in path)


def short_list(names: Collection[Any]) -> str:
    """Names for messages that fit a screen: the first few, each cut, and how many there are."""
    shown = [text if len(text := str(name)) <= 80 else f"{text[:77]}..." for name in islice(names, 20)]
    return ", ".join(shown) + (f", ... ({len(names):,})" if len(names) > len(shown) else "")


def row_list(numbers: Sequence[int]) -> str:
    """The first few row numbers, for messages."""
    shown = ", ".join(str(number) for number in sorted(numbers)[:3])
    return f"row{'s' if len(numbers) > 1 else ''} {shown}{', ...' if len(numbers) > 3 else ''}"


# ---- labels


def encode_paths(tree: Hierarchy, columns: Mapping[str, Sequence[Any]], trust_finest: bool = False) -> np.ndarray:
    """Labels of every level for the rows of a table with one column per level.

    The finest name of a row counts; blanks above it are filled in from the tree.

    Args:
        tree: the label tree.
        columns: cells by level.
        trust_finest: where the tree has the finest name once and under other parents, take that, with a warning.

    Returns:
        int64 (rows, levels), IGNORE where a row has no label or the path no class.

    Raises:
        ValueError: for names or paths that the tree does not have, with their rows.
    """
    index, odd = tree.node_index(), []
    paths = list(zip(*(clean_column(columns[level]) for level in tree.levels), strict=True))

    def find(path: LabelPath) -> Sequence[int] | None:
        labels = encode_path(tree, index, path)
        if labels is None and trust_finest:
            finest = max(depth for depth, name in enumerate(path) if name is not None)
            alone = tuple(name if depth == finest else None for depth, name in enumerate(path))
            labels = encode_path(tree, index, alone)
            odd.extend([path_text(path)] * (labels is not None))
        return labels

    labels = _encode(tree, paths, find, path_text)
    if odd:
        logger.warning("The label tree has other parents for: %s. The finest name of each counts.", short_list(odd))
    return labels


def encode_path(tree: Hierarchy, index: list[dict[str, list[int]]], path: LabelPath) -> Sequence[int] | None:
    """Labels of every level for one path of cleaned names; ``None`` if the tree has no such path, or several."""
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
    # Of several, take the path with the same blanks; otherwise the one that such a row became in the tree.
    agreed = [folded[depth] or _agreed({names[depth] for names in found.values()}) for depth in range(finest)]
    choice = list(found)
    for wanted in (folded[:finest], agreed):
        if len(choice) != 1:
            choice = [candidate for candidate, names in found.items() if names == wanted]
    return tree.path(finest, choice[0]) if len(choice) == 1 else None


def _agreed(values: set[str | None]) -> str | None:
    values = values - {None}
    return values.pop() if len(values) == 1 else None


def encode_names(
    tree: Hierarchy, values: Sequence[Any], keys: Mapping[str, Sequence[int]] | None = None
) -> np.ndarray:
    """Labels of every level for a column that names the leaf, or any class whose name is unique in the tree.

    ``keys`` are labels of names that go before those of the tree, folded.

    Returns:
        int64 (rows, levels); a blank cell is IGNORE at every level, a class that is not a leaf at the finer ones.

    Raises:
        ValueError: for names that the tree does not have, or has more than once, with their rows.
    """
    index, leaves = tree.node_index(), set(tree.leaves)

    def find(name: str | None) -> Sequence[int] | None:
        if name is None:
            return (IGNORE,) * tree.num_levels
        folded = fold_name(name)
        if keys and folded in keys:
            return keys[folded]
        nodes = [(level, position) for level, names in enumerate(index) for position in names.get(folded, [])]
        found = [node for node in nodes if node in leaves] or nodes
        return tree.path(*found[0]) if len(found) == 1 else None

    return _encode(tree, clean_column(values), find, str)


def _encode(
    tree: Hierarchy, cells: Sequence[Any], find: Callable[[Any], Sequence[int] | None], text: Callable[[Any], str]
) -> np.ndarray:
    """Labels int64 (rows, levels) of cells; ValueError, with rows, for those that ``find`` returns ``None`` for."""
    known = {cell: find(cell) for cell in dict.fromkeys(cells)}
    unknown: dict[str, list[int]] = defaultdict(list)
    for row, cell in enumerate(cells):
        if known[cell] is None:
            unknown[text(cell)].append(row)
    if unknown:
        shown = "; ".join(f"{name!r} ({row_list(rows)})" for name, rows in list(unknown.items())[:5])
        more = f"; and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise ValueError(f"not in the label tree of the training data, or there more than once: {shown}{more}")
    return np.array([known[cell] for cell in cells], dtype=np.int64).reshape(-1, tree.num_levels)


def read_class_order(path: str | Path, tree: Hierarchy, num_outputs: int) -> list[int | None]:
    """For each class of the last level, the output of another classifier for the class of the same name, or ``None``.

    The text file has one class name per line, in the order of the classifier's outputs.

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


def find_labels(hierarchy: Hierarchy, columns: Sequence[Sequence[str | None]]) -> np.ndarray:
    """Labels int64 (n, levels) of clean names, one column a level; what the tree lacks is UNKNOWN, blanks IGNORE."""
    index = hierarchy.node_index()
    known: dict[LabelPath, Sequence[int]] = {}
    for path in set(zip(*columns, strict=True)):
        kept, labels = list(path), None
        while (labels := encode_path(hierarchy, index, tuple(kept))) is None:
            kept[max(level for level, name in enumerate(kept) if name is not None)] = None
        known[path] = [
            UNKNOWN if name is not None and label == IGNORE else label
            for name, label in zip(path, labels, strict=True)
        ]
    rows = [known[path] for path in zip(*columns, strict=True)]
    return np.array(rows, dtype=np.int64).reshape(-1, hierarchy.num_levels)
