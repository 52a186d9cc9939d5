"""What makes lists of names and parents a tree: checks, paths and leaves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from unicodedata import normalize

IGNORE = -100
"""Label of an element without a class at a level: PyTorch's default ``ignore_index``."""

Node = tuple[int, int]
"""(level, class)"""


def fold_name(name: str) -> str:
    """The form in which names are compared: spacing collapsed, case folded, letters with accents as one sign."""
    return normalize("NFC", " ".join(str(name).split()).casefold())


def as_list(what: str, given: Any) -> Sequence[Any]:
    """``given``, or ValueError if it is not a list; a string would fall apart into characters."""
    if isinstance(given, str | Mapping) or not isinstance(given, Iterable):
        raise ValueError(f"The hierarchy's {what} must be lists, not {given!r}.")
    return given


def per_level(what: str, given: Any, levels: Sequence[str]) -> list[Sequence[Any]]:
    """One list per level, from such lists or a mapping from level names; ValueError if levels are missing."""
    if isinstance(given, Mapping):
        if set(given) != set(levels):
            raise ValueError(f"The hierarchy's {what} are for {list(given)}, its levels are {list(levels)}.")
        given = [given[level] for level in levels]
    if len(as_list(what, given)) != len(levels):
        raise ValueError(f"The hierarchy has {len(levels)} levels but {what} for {len(given)}.")
    return [as_list(what, column) for column in given]


def to_parent(entry: Any, level: int) -> Node | None:
    """One entry of ``parents`` as (level, class) or ``None``; ValueError if it is neither."""
    if entry is None:
        return None
    pair = (level - 1, entry) if isinstance(entry, int) else tuple(entry) if isinstance(entry, list | tuple) else ()
    if len(pair) != 2 or not all(isinstance(part, int) for part in pair) or not 0 <= pair[0] < level:
        raise ValueError(f"A class of level number {level} has the parent {entry!r}: not a class of a level above it.")
    return pair


def check_tree(
    levels: Sequence[str], names: Sequence[Sequence[str]], parents: Sequence[Sequence[Node | None]]
) -> None:
    """ValueError, with the classes at fault, if names and parents are not a tree."""
    for level, (column, above) in enumerate(zip(names, parents, strict=True)):
        where = f"level {levels[level]!r}"
        if not column:
            raise ValueError(f"The {where} of the hierarchy has no class.")
        if len(column) != len(above):
            raise ValueError(f"The {where} has {len(column)} classes but {len(above)} parents.")
        for name, parent in zip(column, above, strict=True):
            if parent is not None and not 0 <= parent[1] < len(names[parent[0]]):
                raise ValueError(
                    f"Class {name!r} of {where} names parent {parent[1]} of level {levels[parent[0]]!r}, "
                    f"which has {len(names[parent[0]])} classes: this is not a tree."
                )
        twice = repeated(zip(column, above, strict=True))
        if twice:
            raise ValueError(f"Listed twice under the same parent in {where}: {sorted(n for n, _ in twice)[:10]}.")


def node_paths(parents: Sequence[Sequence[Node | None]]) -> list[list[list[int]]]:
    """For each level and class the path from the root: one class per level, IGNORE where there is none."""
    paths: list[list[list[int]]] = []
    for level, column in enumerate(parents):
        above = [[IGNORE] * len(parents) if parent is None else paths[parent[0]][parent[1]] for parent in column]
        paths.append([[*path[:level], index, *path[level + 1 :]] for index, path in enumerate(above)])
    return paths


def find_leaves(parents: Sequence[Sequence[Node | None]]) -> list[Node]:
    """Every class of the last level, and then the classes of upper levels without children."""
    has_child = {parent for column in parents for parent in column}
    nodes = [(level, index) for level, column in enumerate(parents) for index in range(len(column))]
    last = len(parents[-1])
    return nodes[-last:] + [node for node in nodes[:-last] if node not in has_child]


def repeated(items: Iterable[Any]) -> set[Any]:
    """The items that occur more than once."""
    seen: set[Any] = set()
    return {item for item in items if item in seen or seen.add(item)}
