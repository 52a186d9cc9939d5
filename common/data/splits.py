"""Data sets: splits, columns, the label tree and the labels of every level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, DatasetDict, load_dataset, load_from_disk

from ..files import retried
from ..labels.encoding import clean_column, encode_names, encode_paths
from ..labels.hierarchy_files import load_hierarchy
from ..labels.table import hierarchy_from_table
from ..model.hierarchy import Hierarchy
from ..model.tree import IGNORE
from .prepared import read_source, select_rows

FILE_FORMATS = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".json": "json", ".jsonl": "json"}


# ---- splits and columns


@retried
def load_splits(name: str, config: str | None, files: Mapping[str, str | None]) -> DatasetDict:
    """Load a data set.

    Args:
        name: a folder written by ``save_to_disk``, or with a selection (:mod:`common.data.prepared`); a folder or
            Hub id that ``load_dataset`` understands.
        config: its configuration on the Hub.
        files: split name -> CSV, TSV, JSON lines or Parquet file; if any is given, these are the data set.

    Raises:
        ValueError: if it does not exist or cannot be read.
    """
    files = {split: file for split, file in files.items() if file}
    if files:
        return _load_files(files)
    folder = Path(name)
    source = read_source(folder)
    if source:
        splits = load_splits(source.dataset_name or "", source.dataset_config_name, source.files)
        return select_rows(folder, source, splits)
    try:
        if (folder / "dataset_dict.json").is_file():
            return load_from_disk(name)
        if (folder / "state.json").is_file():
            return DatasetDict(train=load_from_disk(name))
        if not folder.exists() and name.startswith((".", "/", "~")):
            raise ValueError(f"No data set at {name} (--dataset_name).")
        return load_dataset(name, config)
    except (OSError, RuntimeError, ConnectionError) as error:
        raise ValueError(
            f"Cannot load the data set {name!r} (--dataset_name): {str(error).splitlines()[0]}"
        ) from error


def _load_files(files: Mapping[str, str]) -> DatasetDict:
    loaded = DatasetDict()
    for split, file in files.items():
        kind = FILE_FORMATS.get(Path(file).suffix.lower())
        if kind is None or not Path(file).is_file():
            raise ValueError(
                f"The {split} file {file} "
                + ("does not exist." if kind else f"is none of {', '.join(FILE_FORMATS)}, by its ending.")
            )
        options = {"delimiter": "\t"} if Path(file).suffix.lower() == ".tsv" else {}
        try:
            loaded[split] = load_dataset(kind, data_files={split: file}, split=split, **options)
        except Exception as error:  # datasets wraps whatever the parser said
            raise ValueError(f"Cannot read the {split} file {file}: {error.__cause__ or error}") from error
    return loaded


def get_split(splits: DatasetDict, split: str, option: str) -> Dataset:
    """One split by name; ValueError, with the splits that there are, if it is missing or empty."""
    if split not in splits:
        raise ValueError(f"No split {split!r} in the data set ({option}); there are: {', '.join(splits)}.")
    if not len(splits[split]):
        raise ValueError(f"The split {split!r} ({option}) has no rows.")
    return splits[split]


def check_columns(dataset: Dataset, columns: Sequence[str], split: str) -> None:
    """ValueError, with the nearest name, if a column is missing."""
    for column in columns:
        if column not in dataset.column_names:
            near = get_close_matches(column, dataset.column_names, 1)
            raise ValueError(
                f"The {split} split has no column {column!r}; it has: {', '.join(dataset.column_names)}."
                + (f" Did you mean {near[0]!r}?" if near else "")
            )


def check_groups(train: Dataset, validation: Dataset, column: str) -> None:
    """ValueError if a group (an observation, an artwork) is in both splits: its images are not independent."""
    check_columns(train, [column], "training")
    check_columns(validation, [column], "validation")
    known = {value for value in read_cells(train, column) if value not in (None, "")}
    shared = sorted({str(value) for value in read_cells(validation, column) if value in known})
    if shared:
        raise ValueError(
            f"{len(shared)} values of --group_column {column} stand in training and validation, for example "
            f"{', '.join(shared[:5])}: validation would measure memorization. Split by group."
        )


def group_numbers(dataset: Dataset, column: str | None) -> np.ndarray | None:
    """int64 (rows,): equal for rows of one group (an observation, an artwork); a blank is a group of its own."""
    if column is None:
        return None
    check_columns(dataset, [column], "evaluation")
    numbers: dict[Any, int] = {}
    cells = enumerate(column_cells(dataset, column))
    return np.array([numbers.setdefault(row if cell is None else cell, len(numbers)) for row, cell in cells])


def column_cells(dataset: Dataset, column: str) -> list[str | None]:
    """A column as clean text, ``None`` where blank; class numbers become their names."""
    return clean_column(read_cells(dataset, column))


def read_cells(dataset: Dataset, column: str) -> list[Any]:
    """A column as Python values, class numbers replaced by their names."""
    values = _to_list(dataset.select_columns([column]).with_format("arrow")[:].column(column))
    feature = dataset.features[column]
    if values and isinstance(next((value for value in values if value is not None), None), list | dict):
        raise ValueError(f"Column {column!r} holds {feature}, not one value a row.")
    if isinstance(feature, ClassLabel):
        return [None if value is None or value < 0 else feature.int2str(value) for value in values]
    return values


def _to_list(column: pa.ChunkedArray) -> list[Any]:
    """As ``to_pylist``, but equal strings are one object, which takes a fraction of the time and memory."""
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return column.to_pylist()
    encoded = column.cast(pa.large_string()).combine_chunks().dictionary_encode()
    words = np.array([*encoded.dictionary.to_pylist(), None], dtype=object)
    return words[encoded.indices.fill_null(len(words) - 1).to_numpy(zero_copy_only=False)].tolist()


# ---- labels


@dataclass
class LabelColumns:
    """Where labels come from: one column per level, or one column with classes of a hierarchy file."""

    level_columns: Sequence[str] | None = None
    label_column: str | None = None
    hierarchy_file: str | None = None

    def columns(self) -> list[str]:
        """Names of the columns."""
        if self.level_columns and self.label_column:
            raise ValueError("Give --level_columns, or --label_column with --hierarchy, not both.")
        if self.label_column:
            return [self.label_column]
        if not self.level_columns:
            raise ValueError(
                "Say where the labels are: --level_columns COARSE ... FINE, or --label_column NAME --hierarchy FILE."
            )
        return list(self.level_columns)

    def check(self, dataset: Dataset, split: str) -> None:
        """ValueError if a column is missing."""
        check_columns(dataset, self.columns(), split)

    def read_hierarchy(self, train: Dataset) -> tuple[Hierarchy, list[str]]:
        """The tree from its file, or from the training rows, and the report of what was resolved."""
        if self.hierarchy_file:
            return load_hierarchy(self.hierarchy_file)
        return hierarchy_from_table({column: read_cells(train, column) for column in self.columns()})

    def read_labels(self, dataset: Dataset, hierarchy: Hierarchy, split: str) -> np.ndarray:
        """int64 (rows, levels); ValueError for names that the tree does not have."""
        self.check(dataset, split)
        columns = {column: read_cells(dataset, column) for column in self.columns()}
        try:
            if self.label_column and hierarchy.num_levels == 1:
                return encode_paths(hierarchy, {hierarchy.levels[0]: columns[self.label_column]})
            if self.label_column:
                return encode_names(hierarchy, columns[self.label_column])
            if list(columns) != list(hierarchy.levels):
                raise ValueError(f"the levels of the tree are {list(hierarchy.levels)}")
            return encode_paths(hierarchy, columns)
        except ValueError as error:
            raise ValueError(f"Labels of the {split} split, {' and '.join(columns)}: {error}") from error


def check_unseen(train_labels: np.ndarray, labels: np.ndarray, hierarchy: Hierarchy) -> None:
    """ValueError if validation has a class that training lacks; of several levels, for the finest."""
    for level, name in reversed(list(enumerate(hierarchy.levels))):
        seen = np.unique(train_labels[:, level])
        unseen = np.setdiff1d(labels[:, level], np.append(seen, IGNORE))
        if len(unseen):
            names = hierarchy.display_names(level)
            rows = np.flatnonzero(labels[:, level] == unseen[0])[:3].tolist()
            raise ValueError(
                f"{len(unseen)} classes of level {name!r} are in validation but not in training: "
                f"{', '.join(names[index] for index in unseen[:5])} (the first in rows {rows}). Training cannot learn "
                "them; move images of them to training, or leave them out of validation."
            )


def leaves_without_images(train_labels: np.ndarray, hierarchy: Hierarchy) -> list[str]:
    """Names of the last level's classes without a training image, which the model cannot learn."""
    unused = np.setdiff1d(np.arange(hierarchy.num_classes[-1]), train_labels[:, -1])
    names = hierarchy.display_names(hierarchy.num_levels - 1)
    return [names[index] for index in unused]


def choose_rows(num_rows: int, num_samples: int | None, seed: int) -> np.ndarray:
    """int64 row numbers, ascending: a random subset of ``num_samples``, or all rows if there are no more than that."""
    if num_samples is None or num_samples >= num_rows:
        return np.arange(num_rows)
    return np.sort(np.random.default_rng(seed).permutation(num_rows)[:num_samples])
