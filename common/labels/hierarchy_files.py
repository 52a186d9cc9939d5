"""Label trees from files: JSON, YAML written by hand, tables."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..model.costs import cost_matrix
from ..model.hierarchy import Hierarchy
from ..model.tree import fold_name, repeated
from ..system.files import read_yaml, retried
from .encoding import LabelPath, clean_column, encode_path, path_text
from .table import hierarchy_from_paths, hierarchy_from_table
from .table_files import TEXT_ENDINGS, blank_note, blank_words, read_table

REPOSITORY = Path(__file__).resolve().parents[2]


@retried
def load_hierarchy(
    path: str | Path, levels: Sequence[str] | None = None, key: str | None = None
) -> tuple[Hierarchy, list[str]]:
    """Read a label tree from JSON (:meth:`Hierarchy.save`), YAML (written by hand) or a table (a row per leaf).

    Args:
        path: the file; its suffix tells the format. What configs/ name is found from any folder.
        levels: for a table, the columns to use, coarse to fine; all of them in file order by default.
        key: a column that is no level unless it is the last, see :func:`key_labels`.

    Returns:
        The tree, and the report: what had to be resolved, one sentence per entry.

    Raises:
        ValueError: if the file is missing or is not a tree, with the rows or classes at fault. In tables without a
            key and in YAML a leaf under two parents is an error too, because labels are names of leaves.
    """
    path = _find(path)
    suffix = path.suffix.lower()
    keyed = suffix == ".json"  # what Hierarchy.save wrote may come from level columns: paths tell leaves apart
    try:
        if suffix in TEXT_ENDINGS:
            columns, report = _read_columns(path)
            keyed = _is_key(columns, key)
            levels = list(levels or (name for name in columns if not (keyed and name == key)))
            missing = [level for level in levels if level not in columns]
            if missing:
                raise ValueError(f"no column {missing}; the columns are {list(columns)}.")
            tree, told = hierarchy_from_table({level: columns[level] for level in levels}, first_row=2)
            report += told
        elif suffix in {".yaml", ".yml"}:
            tree, report = _from_yaml(read_yaml(path)), []
        elif suffix == ".json":
            tree, report = Hierarchy.from_dict(json.loads(path.read_text(encoding="utf-8-sig"))), []
        else:
            raise ValueError(f"its ending is none of .json, .yaml, .yml, {', '.join(TEXT_ENDINGS)}.")
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"Hierarchy file {path}: {error}") from error
    if not keyed:
        _refuse_ambiguous_leaves(tree, path)
    return tree, report


def read_costs(path: str | Path, tree: Hierarchy) -> dict[str, Any]:
    """The settings of :func:`common.model.costs.cost_matrix` from a YAML file; ValueError if they are not that."""
    try:
        content = read_yaml(_find(path)) or {}
        cost_matrix(tree, **content)
    except (ValueError, TypeError, AttributeError, KeyError, yaml.YAMLError) as error:
        raise ValueError(f"Costs {path}: {error}") from error
    return content


def read_ignored(path: str | Path) -> list[int]:
    """Values of masks that stand for no class beside 255, as a YAML or JSON file says: ``ignore: [11]``."""
    path = _find(path)
    if path.suffix.lower() not in (".json", ".yaml", ".yml"):
        return []
    content = yaml.safe_load(path.read_text(encoding="utf-8-sig").replace("\t", " "))
    values = (content.get("ignore") if isinstance(content, Mapping) else None) or []
    if not isinstance(values, list) or not all(type(value) is int and 0 <= value < 65536 for value in values):
        raise ValueError(f"Hierarchy file {path}: 'ignore' must be a list of mask values, not {values!r}.")
    return values


def key_labels(path: str | Path, key: str, tree: Hierarchy) -> dict[str, Sequence[int]]:
    """Labels of every level by the folded cells of a table's key column; none if it has no such column.

    Raises:
        ValueError: a key has two paths, or one that is not in the tree.
    """
    path = _find(path)
    columns = _read_columns(path)[0] if path.suffix.lower() in TEXT_ENDINGS else {}
    if not _is_key(columns, key):
        return {}
    index, found = tree.node_index(), {}
    names = clean_column(columns[key])
    for row, label_path in enumerate(zip(*(clean_column(columns[level]) for level in tree.levels), strict=True)):
        labels = encode_path(tree, index, label_path)
        if names[row] and (labels is None or found.setdefault(fold_name(names[row]), labels) != labels):
            raise ValueError(f"Hierarchy file {path}: row {row + 2}: {key} {names[row]!r} has more than one path.")
    return found


def _is_key(columns: Mapping[str, Sequence[Any]], key: str | None) -> bool:
    return key in columns and key != list(columns)[-1]


def _find(path: str | Path) -> Path:
    found = next((place for place in (Path(path), REPOSITORY / path) if place.is_file()), None)
    if found is None:
        raise ValueError(f"No hierarchy file at {path}.")
    return found


def find_hierarchy(folder: str | Path, required: bool = True) -> Path | None:
    """The file with the label tree in a prepared folder; ``None`` or ValueError if there is none."""
    for name in ("hierarchy.yaml", "hierarchy.yml", "hierarchy.json", "hierarchy.csv"):
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    if not required:
        return None
    raise ValueError(f"Say what the labels are: --hierarchy FILE (there is no hierarchy.yaml or .json in {folder}).")


def _read_columns(path: Path) -> tuple[dict[str, list[str | None]], list[str]]:
    """Column -> cells, and what to tell about them; ValueError without rows, or if one does not fit."""
    table = read_table(path, fill_short=True)
    names = [name for name in table.columns.column_names if not name.startswith("nameless (")]
    twice = [name for name in names if " (column " in name]
    if twice:
        raise ValueError(f"listed twice in its first line: {twice}.")
    found = {name: blank_words(table.columns.column(name)) for name in names}
    if not len(table.columns):
        raise ValueError("it has no rows.")
    if table.malformed:
        raise ValueError(next(iter(table.malformed.values())))
    notes = [*table.notes, *blank_note(str(path), {name: counts for name, (_, counts) in found.items()})]
    return {name: column.to_pylist() for name, (column, _) in found.items()}, notes


def _from_yaml(content: Any) -> Hierarchy:
    if isinstance(content, Mapping) and {"levels", "classes"} <= set(content) and len(content["levels"]) == 1:
        content = {"tree": content["classes"], **content}  # of one level, the list of classes is the tree
    if not isinstance(content, Mapping) or not {"levels", "tree"} <= set(content):
        raise ValueError("a YAML hierarchy needs the keys 'levels' (a list) and 'tree' (nested names).")
    unknown = set(content) - {"levels", "tree", "classes", "ignore"}
    if unknown:
        raise ValueError(f"unknown keys {sorted(map(str, unknown))}; known: levels, tree, classes and ignore.")
    levels = _names_in(content, "levels")
    paths = list(_walk(content["tree"], (), len(levels)))
    if content.get("classes") is not None:
        paths = _in_order(paths, _names_in(content, "classes"), levels[-1])
    twice = sorted(map(path_text, repeated(paths)))
    if twice:
        raise ValueError(f"listed twice: {twice}.")
    return hierarchy_from_paths(levels, paths, sort=False)


def _names_in(content: Mapping[str, Any], key: str) -> list[str]:
    if not isinstance(content[key], list):
        raise ValueError(f"{key!r} must be a list of names, not {content[key]!r}.")
    return [_name(entry) for entry in content[key]]


def _walk(node: Any, prefix: LabelPath, num_levels: int) -> Iterable[LabelPath]:
    """Paths of a nested YAML tree: mappings inside, a list of names (or nothing) at the ends."""
    if node is None or node == [] or node == {}:
        yield prefix + (None,) * (num_levels - len(prefix))
        return
    if not isinstance(node, Mapping | list):
        raise ValueError(f"{node!r} under {list(prefix)} is neither a list of names nor a nested tree.")
    if len(prefix) == num_levels:
        raise ValueError(f"{list(prefix)} has something under it, but there are only {num_levels} levels.")
    for key in node:
        name = None if key is None else _name(key)
        yield from _walk(node[key] if isinstance(node, Mapping) else None, (*prefix, name), num_levels)


def _in_order(paths: list[LabelPath], order: list[str], last_level: str) -> list[LabelPath]:
    unfinished = [[name for name in path if name is not None] for path in paths if path[-1] is None]
    if unfinished:
        raise ValueError(
            f"'classes' are those of level {last_level!r}, but the tree has nothing there for {unfinished}."
        )
    leaves = [path[-1] for path in paths]
    missing, extra = [name for name in order if name not in leaves], sorted(set(leaves) - set(order))
    twice = sorted(repeated(order) | repeated(leaves))
    if missing or extra or twice:
        raise ValueError(
            f"'classes' and 'tree' differ: not in the tree {missing}, not in 'classes' {extra}, listed twice {twice}."
        )
    return [paths[leaves.index(name)] for name in order]


def _name(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{value!r} is not a name; put it in quotes.")
    name = " ".join(str(value).split())
    if not name:
        raise ValueError("a name is blank; a level without a value is written ~.")
    return name


def _refuse_ambiguous_leaves(tree: Hierarchy, path: Path) -> None:
    places = defaultdict(list)
    for level, index in tree.leaves:
        places[fold_name(tree.names[level][index])].append(tree.path_names(level, index))
    twice = [found for found in places.values() if len(found) > 1]
    if twice:
        shown = "; ".join(" and ".join(map(path_text, found)) for found in twice[:5])
        raise ValueError(f"Hierarchy file {path} is not a tree: a leaf stands under two parents: {shown}.")
