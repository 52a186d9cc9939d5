"""FungiTastic as it is published -> a prepared folder: what prepare_fungitastic.py does.

Names of files and folders as in the data set's own loader (BohemianVRA/FungiTastic, dataset/fungi.py and
dataset/download.py); where its versions differ, all are looked for.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from data_prep.data_card import Card
from data_prep.label_paths import clean_paths, settle_unseen
from data_prep.plan import Content
from data_prep.prepare_fungitastic import SIZES, SUBSETS, FungiTasticOptions
from data_prep.prepared import check_output, write_prepared
from data_prep.rows import RowSet, check_paths, drop_doubles, exclude_listed, leave_shared
from data_prep.tables import SPLIT, column_of, read_tables

logger = logging.getLogger(__name__)

LEVELS = ["phylum", "class", "order", "family", "genus", "species"]
CATEGORY, GROUP, FILE, IMAGE = "category_id", "observationID", "filename", "image"
UNKNOWN = "-1"
"""``category_id`` of an observation whose species is not among those of the training part"""

# Where the images of each table are, below the subset's folder.
FOLDERS = {
    "train": ("train",),
    "validation": ("val",),
    "ClosedSet": ("test",),
    "OpenSet": ("test",),
    "DNA": ("dna", "dna-test", "test"),
}


def prepare_fungitastic(options: FungiTasticOptions) -> Path:
    """Read the metadata, check, and store the images; returns the finished folder.

    Args:
        options: as on the command line.

    Raises:
        ValueError: a table, a column that is needed or the folder of the images is missing.
    """
    options.check()
    check_output(options.output_dir)
    root = _find_root(options)
    levels = [*LEVELS, CATEGORY] if options.with_category_id else list(LEVELS)
    kept = [name for name in dict.fromkeys(options.keep_columns) if name not in {*levels, GROUP, FILE}]
    tables = _find_tables(root, options)
    needed = [FILE, GROUP, *levels]
    read = read_tables(tables, needed, [FILE], [*kept, CATEGORY])
    rows = RowSet(read.frame, IMAGE, read.problems, read.notes)
    kept = [name for name in kept if name in rows.frame]
    _name_images(rows, _image_folders(root, options, rows))
    check_paths(rows, [IMAGE], root)
    exclude_listed(rows, options.exclude_rows)
    _blank_unknown(rows, levels)
    clean_paths(rows, levels)
    drop_doubles(rows, levels)
    leave_shared(rows, GROUP, "observation in two splits")
    settle_unseen(rows, levels, options.unseen)
    content = Content(
        rows,
        [*levels, GROUP, *kept],
        levels,
        _card(options),
        group_column=GROUP,
        root=root,
        unseen=options.unseen,
        settings=options.settings(),
    )
    folder = write_prepared(
        options.output_dir, content, options.store(IMAGE), num_proc=options.num_proc, strict=options.strict
    )
    logger.info("The data set is in %s", folder)
    return folder


# ---- finding files


def _find_root(options: FungiTasticOptions) -> str:
    """The folder with ``metadata``, without symbolic links: the one given or the FungiTastic in it."""
    for folder in (options.root, os.path.join(options.root, "FungiTastic")):
        if os.path.isdir(os.path.join(folder, "metadata")):
            return os.path.realpath(folder)
    raise ValueError(f"There is no folder metadata in {options.root} (--root); unpack metadata.zip there.")


def _find_tables(root: str, options: FungiTasticOptions) -> dict[str, Path]:
    """Split -> table; ValueError if one is not there."""
    prefix = f"FungiTastic{SUBSETS[options.subset]}"
    names = {
        "train": [f"{prefix}-Train.csv", f"{prefix}-ClosedSet-Train.csv"],
        "validation": [f"{prefix}-{options.validation}-Val.csv"],
        "test": [f"{prefix}-{options.test}-Test.csv"],
    }
    # Some subsets have one kind of validation and test only, and versions differ in whether they say which.
    names["validation"] += [f"{prefix}-Val.csv"] * (options.validation == "ClosedSet")
    names["test"] += [f"{prefix}-Test.csv"] * (options.test == "ClosedSet")
    if options.test == "none":
        del names["test"]
    folders = [Path(root, "metadata", prefix), Path(root, "metadata", "metadata", prefix), Path(root, "metadata")]
    found = {}
    for split, candidates in names.items():
        there = [folder / name for folder in folders for name in candidates if (folder / name).is_file()]
        if not there:
            raise ValueError(
                f"No {split} table {' or '.join(candidates)} in {folders[0]} (--subset, --validation, --test)."
            )
        found[split] = there[0]
    return found


def _image_folders(root: str, options: FungiTasticOptions, rows: RowSet) -> dict[str, str]:
    """Split -> folder of its images, relative to the root; ValueError if there is none."""
    top = f"FungiTastic{SUBSETS[options.subset]}"
    size = options.size or _smallest_size(root, top)
    found = {}
    for split in rows.frame[SPLIT].unique():
        names = FOLDERS[options.test if split == "test" else split]
        candidates = [os.path.join(top, name, ending) for name in names for ending in _size_folders(size)]
        there = [folder for folder in candidates if os.path.isdir(os.path.join(root, folder))]
        if not there:
            raise ValueError(f"No images of the {split} split: there is no {' or '.join(candidates)} in {root}.")
        found[split] = there[0]
    rows.notes.append(f"Images of size {size}.")
    return found


def _smallest_size(root: str, top: str) -> str:
    for size in SIZES:
        if any(os.path.isdir(os.path.join(root, top, "train", name)) for name in _size_folders(size)):
            return size
    raise ValueError(
        f"No images: {os.path.join(root, top, 'train')} has none of the folders 300p, 500p, 720p, fullsize."
    )


def _size_folders(size: str) -> Sequence[str]:
    return (size,) if size == "fullsize" else (f"{size}p", size)


# ---- rows


def _name_images(rows: RowSet, folders: dict[str, str]) -> None:
    """Paths relative to the root, of file names; what is no plain name is left out."""
    frame = rows.frame
    names = frame[FILE]
    frame[IMAGE] = column_of(
        name and os.path.join(folders[split], name) for name, split in zip(names, frame[SPLIT], strict=True)
    )
    odd = [name is not None and name != os.path.basename(name) for name in names]
    rows.leave_out(odd, "outside of the root", "its file name leads to another folder")


def _blank_unknown(rows: RowSet, levels: Sequence[str]) -> None:
    """A row of an unknown species keeps its labels down to the genus."""
    if CATEGORY not in rows.frame:
        rows.notes.append(f"There is no column {CATEGORY}: unknown species cannot be told from others.")
        return
    numbers = pd.to_numeric(rows.frame[CATEGORY], errors="coerce")
    whole = numbers.notna() & (numbers % 1 == 0)
    odd = ~whole & rows.frame[CATEGORY].notna()
    if odd.any():
        rows.notes.append(
            f"{odd.sum()} cells of {CATEGORY} are no whole numbers, such as {rows.frame[CATEGORY][odd].iloc[0]!r}."
        )
    rows.frame[CATEGORY] = column_of(
        str(int(number)) if fine else None for number, fine in zip(numbers, whole, strict=True)
    )
    unknown = rows.frame[CATEGORY] == UNKNOWN
    for level in levels[levels.index("species") :]:
        rows.frame[level] = rows.frame[level].where(~unknown, None)
    if unknown.any():
        rows.notes.append(
            f"{unknown.sum()} images have {CATEGORY} -1, an unknown species: labelled down to the genus."
        )


def _card(options: FungiTasticOptions) -> Card:
    parts = [f"validation is {options.validation}"]
    parts += [f"test is {options.test}"] * (options.test != "none")
    return Card(
        f"FungiTastic{SUBSETS[options.subset]}",
        "image-classification",
        "[FungiTastic](https://github.com/BohemianVRA/FungiTastic) (Picek et al., arXiv:2408.13632), made ready by "
        f"`data_prep/prepare_fungitastic.py`: {', '.join(parts)}. The splits are the published ones, by time. "
        f"{options.how_stored()} Nothing here can tell whether a fungus can be eaten.",
    )
