"""Label trees from files: JSON, YAML written by hand, CSV and TSV."""

from __future__ import annotations

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..files import retried
from ..model.hierarchy import Hierarchy
from ..model.tree import fold_name
from .encoding import LabelPath
from .table import hierarchy_from_paths, hierarchy_from_table


@retried
def load_hierarchy(path: str | Path, levels: Sequence[str] | None = None) -> tuple[Hierarchy, list[str]]:
    """Read a label tree from JSON (:meth:`Hierarchy.save`), YAML (written by hand) or CSV/TSV (a row per leaf).

    Args:
        path: the file; its suffix tells the format.
        levels: for CSV/TSV, the columns to use, coarse to fine; all of them in file order by default.

    Returns:
        The tree, and the report: what had to be resolved, one sentence per entry.

    Raises:
        ValueError: if the file is missing or is not a tree, with the rows or classes at fault. In CSV and
            YAML a leaf under two parents is an error too, because labels are names of leaves.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"No hierarchy file at {path}.")
    suffix = path.suffix.lower()
    try:
        if suffix in {".csv", ".tsv"}:
            tree, report = _from_csv(path, levels)
        elif suffix in {".yaml", ".yml"}:
            tree, report = _from_yaml(yaml.load(path.read_text(encoding="utf-8-sig"), Loader=StrictLoader)), []
        elif suffix == ".json":
            tree, report = Hierarchy.from_dict(json.loads(path.read_text(encoding="utf-8-sig"))), []
        else:
            raise ValueError("its ending is none of .json, .yaml, .yml, .csv, .tsv.")
    except (ValueError, yaml.YAMLError, csv.Error) as error:
        raise ValueError(f"Hierarchy file {path}: {error}") from error
    if suffix != ".json":  # what Hierarchy.save wrote may come from level columns, where paths tell leaves apart
        _refuse_ambiguous_leaves(tree, path)
    return tree, report


def find_hierarchy(folder: str | Path) -> Path:
    """The file with the label tree in a prepared folder; ValueError if there is none."""
    for name in ("hierarchy.yaml", "hierarchy.yml", "hierarchy.json", "hierarchy.csv"):
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    raise ValueError(f"Say what the labels are: --hierarchy FILE (there is no hierarchy.yaml or .json in {folder}).")


def _from_csv(path: Path, levels: Sequence[str] | None) -> tuple[Hierarchy, list[str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        rows = list(reader)
        header = [column for column in reader.fieldnames or [] if column]
    twice = sorted(column for column, count in Counter(header).items() if count > 1)
    if twice:
        raise ValueError(f"listed twice in its first line: {twice}.")
    levels = list(levels or header)
    missing = [level for level in levels if level not in header]
    if missing or not rows:
        raise ValueError(f"no column {missing}; the columns are {header}." if missing else "it has no rows.")
    return hierarchy_from_table({level: [row[level] for row in rows] for level in levels}, first_row=2)


def _from_yaml(content: Any) -> Hierarchy:
    if not isinstance(content, Mapping) or not {"levels", "tree"} <= set(content):
        raise ValueError("a YAML hierarchy needs the keys 'levels' (a list) and 'tree' (nested names).")
    unknown = set(content) - {"levels", "tree", "classes"}
    if unknown:
        raise ValueError(f"unknown keys {sorted(map(str, unknown))}; 'levels', 'tree' and 'classes' are known.")
    levels = _names_in(content, "levels")
    paths = list(_walk(content["tree"], (), len(levels)))
    if content.get("classes") is not None:
        paths = _in_order(paths, _names_in(content, "classes"), levels[-1])
    twice = sorted(" > ".join(name or "-" for name in path) for path, count in Counter(paths).items() if count > 1)
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
    by_leaf = defaultdict(list)
    for path in paths:
        by_leaf[path[-1]].append(path)
    missing = [name for name in order if name not in by_leaf]
    extra = sorted(set(by_leaf) - set(order))
    twice = [name for name, count in Counter(order).items() if count > 1]
    twice += [name for name, found in by_leaf.items() if len(found) > 1]
    if missing or extra or twice:
        raise ValueError(
            f"'classes' and 'tree' differ: not in the tree {missing}, not in 'classes' {extra}, listed twice {twice}."
        )
    return [by_leaf[name][0] for name in order]


def _name(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{value!r} is not a name; put it in quotes.")
    name = " ".join(str(value).split())
    if not name:
        raise ValueError("a name is blank; a level without a value is written ~.")
    return name


class StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key written twice instead of keeping the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = [key for key, count in Counter(key for key in keys if isinstance(key, Hashable)).items() if count > 1]
        if twice:
            raise ValueError(f"line {node.start_mark.line + 1}: listed twice: {twice}.")
        return super().construct_mapping(node, deep)


def _refuse_ambiguous_leaves(tree: Hierarchy, path: Path) -> None:
    places = defaultdict(list)
    for level, index in tree.leaves:
        places[fold_name(tree.names[level][index])].append(tree.path_names(level, index))
    twice = [found for found in places.values() if len(found) > 1]
    if twice:
        shown = "; ".join(" and ".join(" > ".join(str(part or "-") for part in path) for path in f) for f in twice[:5])
        raise ValueError(f"Hierarchy file {path} is not a tree: a leaf stands under two parents: {shown}.")
