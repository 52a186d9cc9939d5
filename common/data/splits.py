"""Data sets: splits, columns, the label tree and the labels of every level."""

from __future__ import annotations

import glob
import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, Image, Value, concatenate_datasets, load_dataset, load_from_disk
from datasets.fingerprint import Hasher
from datasets.packaged_modules.csv.csv import CsvConfig

from ..labels.annotation_files import refuse_annotations
from ..labels.doubts import Moves, move_rows
from ..labels.encoding import (
    UNKNOWN,
    clean_column,
    encode_names,
    encode_paths,
    find_labels,
    group_key,
    short_list,
    text_of,
)
from ..labels.hierarchy_files import key_labels, load_hierarchy
from ..labels.table import hierarchy_from_table
from ..labels.table_files import MISSING, TextTable, blank_note, blank_words, check_table_file, read_table
from ..model.hierarchy import Hierarchy
from ..model.tree import IGNORE
from ..system.files import retried
from .folders import FolderImages, find_images, read_image_folder
from .prepared import read_prepared, read_source, select_rows

logger = logging.getLogger(__name__)


# ---- splits and columns


@dataclass
class Reading:
    """How the cells of a data set are read; those of prepared folders are settled."""

    missing: Sequence[str] = MISSING  # words that mean blank, in every column of text
    images: Sequence[str] = ()  # columns with paths of images; backslashes there divide folders
    suffix: str | None = None  # added to the paths of the first of these that do not end in it
    told: Sequence[str] = ()  # columns whose blank words are counted aloud; all of them by default

    @staticmethod
    def of(args: Any) -> Reading:
        """What the options of a script say."""
        found = vars(args).get
        images = [name for name in (args.image_column, found("mask_column")) if name]
        others = ("label_column", "group_column", "group_by", "id_column", "leave_out")
        told = [*images, *(found("level_columns") or ()), *(name for name in map(found, others) if name)]
        return Reading(args.missing_values or MISSING, images, args.image_suffix, told)


@retried
def load_splits(
    name: str, config: str | None, files: Mapping[str, str | None], reading: Reading | None = None
) -> DatasetDict:
    """Load a data set.

    Args:
        name: a folder written by ``save_to_disk``, or with a selection (:mod:`common.data.prepared`); a folder or
            Hub id that ``load_dataset`` understands, with its configuration ``config``.
        files: split name -> table (:mod:`common.labels.table_files`); if any is given, these are the data set.

    Raises:
        ValueError: if it does not exist or cannot be read.
    """
    reading, folder = reading or Reading(), Path(name)
    if any(files.values()):
        return DatasetDict({split: _load_file(split, file, reading) for split, file in files.items() if file})
    refuse_annotations(name)
    source = read_source(folder)
    if source:
        splits = load_splits(source.dataset_name or "", source.dataset_config_name, source.files, reading)
        return select_rows(folder, source, splits)
    try:
        if (folder / "dataset_dict.json").is_file():
            splits = load_from_disk(name)
        elif (folder / "state.json").is_file():
            splits = DatasetDict(train=load_from_disk(name))
        elif not folder.exists() and name.startswith((".", "/", "~")):
            raise ValueError(f"No data set at {name} (--dataset_name).")
        else:
            splits = None if config else _load_image_folder(folder)
            about = datasets.load_dataset_builder(name, config).config if folder.is_dir() and not splits else None
            tables = about.data_files if isinstance(about, CsvConfig) else {}
            names = list(chain.from_iterable(tables.values()))
            if names and all(name.endswith((".csv", ".tsv", ".txt")) for name in names):
                read = partial(_load_file, reading=reading)  # datasets would guess types: text is text
                parts = {str(split): [read(split, file) for file in files] for split, files in tables.items()}
                return DatasetDict({split: concatenate_datasets(part) for split, part in parts.items()})
            checks = "no_checks" if folder.is_dir() else None  # only some of the shards may be here
            splits = splits or load_dataset(name, config, verification_mode=checks)
    except (OSError, RuntimeError, ConnectionError) as error:
        raise ValueError(
            f"Cannot load the data set {name!r} (--dataset_name): {str(error).splitlines()[0]}"
        ) from error
    if read_prepared(folder) is not None:
        return splits
    for split, rows in splits.items():
        splits[split], notes = _settle_cells(rows, reading, f"split {split}")
        for note in notes:
            logger.info("%s", note)
    return splits


def _load_image_folder(folder: Path) -> DatasetDict | None:
    """The images below a folder; ``None`` if it has none, or describes itself in ways that ``datasets`` knows."""
    found = find_images(folder) if folder.is_dir() else FolderImages()
    card = folder / "README.md"
    others = [Path(name) for name in found.others]
    described = any(file.stem == "metadata" or file.suffix in (".parquet", ".arrow", ".tar") for file in others)
    if not found.names or described or (card.is_file() and "data_files:" in card.read_text("utf-8", "replace")):
        return None
    splits = read_image_folder(folder, found)
    for note in found.notes:
        logger.warning("%s", note)
    return splits


def _load_file(split: str, file: str, reading: Reading) -> Dataset:
    rows, table = open_table(file, reading, f"{split} file")
    for note in table.notes:
        logger.info("%s", note)
    for row, told in table.malformed.items():
        raise ValueError(
            f"{len(table.malformed)} rows of the {split} file {file} do not fit, such as row {row}: {told}. Mend "
            "them, or use data_prep/prepare_table.py, which leaves such rows out."
        )
    return rows


@retried
def open_table(file: str | Path, reading: Reading, what: str = "table") -> tuple[Dataset, TextTable]:
    """The rows of a table file, and the file as it was read; ValueError if it does not exist or cannot be read."""
    refuse_annotations(file)
    check_table_file(file, what)
    if Path(file).suffix.lower() == ".parquet":
        pattern = glob.escape(str(file)) if Path(file).is_file() else str(file)
        try:  # datasets copies the file to memory-mapped Arrow once, so that workers can open it anywhere
            rows = load_dataset("parquet", data_files={"rows": pattern}, split="rows")
        except Exception as error:  # datasets wraps whatever the parser said
            raise ValueError(f"Cannot read the {what} {file}: {error.__cause__ or error}") from error
        table = TextTable(rows.data.table, np.arange(len(rows)))
    else:
        table = read_table(file)
        rows = Dataset(table.columns, fingerprint=hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16])
    rows, notes = _settle_cells(rows, reading, str(file))
    table.notes += notes
    return rows, table


def _settle_cells(dataset: Dataset, reading: Reading, where: str) -> tuple[Dataset, list[str]]:
    """The rows with words that mean blank as null, and with paths as they are here; and what to tell about it."""
    for name, feature in dataset.features.items():
        if str(feature) in ("Value('string_view')", "Value('binary_view')"):  # as Polars writes Parquet
            dataset = dataset.cast_column(name, Value(feature.dtype.removesuffix("_view")))
        if name in reading.images and dataset.features[name] in (Value("binary"), Value("large_binary")):
            dataset = dataset.cast_column(name, Image())
    names = [name for name, feature in dataset.features.items() if feature in (Value("string"), Value("large_string"))]
    cells = dataset.select_columns(names).with_format("arrow")[:]
    changed, blanks = {}, {}
    for name in names:
        column, counts = blank_words(cells.column(name), reading.missing)
        if not reading.told or name in reading.told:
            blanks[name] = counts
        if name in reading.images:
            _refuse_addresses(name, column)
            column = pc.replace_substring(column, "\\", "/")
            if reading.suffix and name == reading.images[0]:
                named = pc.ends_with(column, reading.suffix, ignore_case=True)
                ending, nothing = (pa.scalar(text, column.type) for text in (reading.suffix, ""))
                column = pc.if_else(named, column, pc.binary_join_element_wise(column, ending, nothing))
        if not column.equals(cells.column(name)):
            changed[name] = column
    notes = blank_note(where, blanks)
    if not changed:
        return dataset, notes
    others = [name for name in dataset.column_names if name not in changed]
    new = Dataset(pa.table(changed), fingerprint=Hasher.hash([dataset._fingerprint, reading]))
    whole = concatenate_datasets([dataset.select_columns(others), new], axis=1) if others else new
    return whole.select_columns(dataset.column_names), notes


def _refuse_addresses(name: str, column: pa.ChunkedArray) -> None:
    addresses = column.filter(pc.match_substring_regex(column, "^https?://"))
    if len(addresses):
        raise ValueError(
            f"Column {name!r} holds addresses on the web, such as {short_list([addresses[0].as_py()])}: download the "
            "images first, and name the files."
        )


def get_split(splits: DatasetDict, split: str, option: str) -> Dataset:
    """One split by name; ValueError, with the splits that there are, if it is missing or empty."""
    if split not in splits:
        raise ValueError(f"No split {split!r} in the data set ({option}); there are: {', '.join(splits)}.")
    if not len(splits[split]):
        raise ValueError(f"The split {split!r} ({option}) has no rows.")
    return splits[split]


def check_columns(dataset: Dataset, columns: Sequence[str], split: str) -> None:
    """ValueError, with the nearest name, if a column is missing."""
    check_names(columns, dataset.column_names, f"The {split} split")


def check_names(wanted: Sequence[str], present: Sequence[str], where: str) -> None:
    """ValueError, with the nearest name, if a column is missing."""
    for name in wanted:
        if name not in present:
            near = get_close_matches(name, present, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{where} has no column {name!r}; it has: {short_list(present)}.{hint}")


def check_groups(train: Dataset, validation: Dataset, column: str) -> None:
    """ValueError if a group (an observation, an artwork) is in both splits: its images are not independent."""
    shared = sorted(set(read_groups(train, column)) & set(read_groups(validation, column)) - {None})
    if shared:
        raise ValueError(
            f"{len(shared)} values of --group_column {column} stand in training and validation, for example "
            f"{short_list(shared[:5])}: validation would measure memorization. Split by group."
        )


def read_groups(dataset: Dataset, column: str) -> list[str | None]:
    """A column as groups, which are compared across splits: see :func:`common.labels.encoding.group_key`."""
    return [group_key(cell) for cell in read_cells(dataset, column)]


def read_cells(dataset: Dataset, column: str) -> list[str | None]:
    """A column as text, ``None`` where blank; class numbers become their names, other numbers see ``text_of``.

    Equal cells are one object, which takes a fraction of the time and memory.
    """
    cells = dataset.select_columns([column]).with_format("arrow")[:].column(column)
    feature, kind = dataset.features[column], cells.type
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        raise ValueError(f"Column {column!r} holds {feature}, not one value a row.")
    encoded = cells.combine_chunks().dictionary_encode()
    words: list[Any] = encoded.dictionary.to_pylist()
    if isinstance(feature, datasets.ClassLabel):
        words = [None if value < 0 else feature.int2str(value) for value in words]
    known = np.array([*map(text_of, words), None], dtype=object)
    return known[encoded.indices.fill_null(len(known) - 1).to_numpy(zero_copy_only=False)].tolist()


# ---- labels


@dataclass
class LabelColumns:
    """Where labels come from: one column per level, or one column with classes of a hierarchy file."""

    level_columns: Sequence[str] | None = None
    label_column: str | None = None
    hierarchy_file: str | None = None
    conflicts: str = "keep"
    moves: Moves = field(default_factory=dict)  # which rows' paths change, known from the training rows
    trust_finest: bool = False  # see encode_paths

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

    def read_hierarchy(self, train: Dataset) -> tuple[Hierarchy, list[str]]:
        """The tree from its file, or from the training rows, and the report of what was resolved."""
        if self.hierarchy_file:
            return load_hierarchy(self.hierarchy_file, key=self.label_column)
        columns = {column: read_cells(train, column) for column in self.columns()}
        return hierarchy_from_table(columns, conflicts=self.conflicts, moves=self.moves)

    def read_labels(self, dataset: Dataset, hierarchy: Hierarchy, split: str, unknown: bool = False) -> np.ndarray:
        """int64 (rows, levels); names of level columns that the tree lacks are ``unknown``, or ValueError."""
        check_columns(dataset, self.columns(), split)
        columns = {column: read_cells(dataset, column) for column in self.columns()}
        try:
            if self.label_column and hierarchy.num_levels == 1:
                return encode_paths(hierarchy, {hierarchy.levels[0]: columns[self.label_column]})
            if self.label_column:
                keys = key_labels(self.hierarchy_file, self.label_column, hierarchy) if self.hierarchy_file else {}
                return encode_names(hierarchy, columns[self.label_column], keys)
            if list(columns) != list(hierarchy.levels):
                raise ValueError(f"the levels of the tree are {list(hierarchy.levels)}")
            moved = move_rows(columns, self.moves) if self.moves else columns
            if unknown:
                return find_labels(hierarchy, list(map(clean_column, moved.values())))
            return encode_paths(hierarchy, moved, self.trust_finest)
        except ValueError as error:
            raise ValueError(f"Labels of the {split} split, {' and '.join(columns)}: {error}") from error


def check_unseen(train_labels: np.ndarray, labels: np.ndarray, hierarchy: Hierarchy) -> None:
    """ValueError if validation has a class that training lacks; of several levels, for the finest."""
    for level, name in reversed(list(enumerate(hierarchy.levels))):
        seen = np.unique(train_labels[:, level])
        unseen = np.setdiff1d(labels[:, level], np.append(seen, (IGNORE, UNKNOWN)))
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
