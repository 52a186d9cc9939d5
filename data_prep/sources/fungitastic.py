"""From FungiTastic as it is published to a prepared folder: what prepare_fungitastic.py does.

Names of files and folders as in the data set's own loader (BohemianVRA/FungiTastic, dataset/fungi.py and
dataset/download.py); where its versions differ, all are looked for.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from data_prep.folder.plan import Content
from data_prep.folder.prepared import check_output, write_prepared
from data_prep.parts.columns import IMAGE, SPLIT
from data_prep.rows.labels import clean_paths, settle_unseen
from data_prep.rows.row_set import RowSet, check_paths, drop_duplicates, exclude_listed, leave_shared, text_column
from data_prep.rows.tables import read_tables

from .options import check_options, how_stored, store_of

LEVELS = ["phylum", "class", "order", "family", "genus", "species"]
CATEGORY, GROUP, FILE = "category_id", "observationID", "filename"
UNKNOWN = "-1"
"""``category_id`` of an observation whose species is not among those of the training part"""

SUBSETS = {"full": "FungiTastic", "mini": "FungiTastic-Mini", "fewshot": "FungiTastic-FewShot"}
SIZES = ("300", "500", "720", "fullsize")

# Where the images of each table are, below the subset's folder.
FOLDERS = {
    "train": ("train",),
    "validation": ("val",),
    "ClosedSet": ("test",),
    "OpenSet": ("test",),
    "DNA": ("dna", "dna-test", "test"),
}


def prepare_fungitastic(args: argparse.Namespace) -> Path:
    """Read, check and store; returns the folder. ValueError if a table, a column or the images' folder is missing."""
    check_options(args, encodes=args.resize_shorter is not None)
    check_output(args.output_dir)
    root = _find_root(args.root)
    levels = [*LEVELS, CATEGORY] if args.with_category_id else list(LEVELS)
    kept = [name for name in dict.fromkeys(args.keep_columns) if name not in {*levels, GROUP, FILE}]
    rows = read_tables(_find_tables(root, args), [FILE, GROUP, *levels], [FILE], [*kept, CATEGORY])
    kept = [name for name in kept if name in rows.frame]
    _name_images(rows, _image_folders(root, args, rows))
    check_paths(rows, [IMAGE], root)
    exclude_listed(rows, args.exclude_rows)
    _blank_unknown(rows, levels)
    clean_paths(rows, levels)
    drop_duplicates(rows, levels)
    leave_shared(rows, GROUP, "observation in two splits")
    settle_unseen(rows, levels, args.unseen)
    content = Content(
        SUBSETS[args.subset], _card_text(args), rows, [*levels, GROUP, *kept], levels, group_column=GROUP, root=root
    )
    return write_prepared(args, content, store_of(args))


# ---- finding files


def _find_root(given: str) -> str:
    """The folder with ``metadata``, without symbolic links: the one given or the FungiTastic in it."""
    for folder in (given, os.path.join(given, "FungiTastic")):
        if os.path.isdir(os.path.join(folder, "metadata")):
            return os.path.realpath(folder)
    raise ValueError(f"There is no folder metadata in {given} (--root); unpack metadata.zip into {given}/metadata.")


def _find_tables(root: str, args: argparse.Namespace) -> dict[str, Path]:
    """Split -> table; ValueError if one is not there."""
    prefix = SUBSETS[args.subset]
    names = {
        "train": [f"{prefix}-Train.csv", f"{prefix}-ClosedSet-Train.csv"],
        "validation": [f"{prefix}-{args.validation}-Val.csv"],
        "test": [f"{prefix}-{args.test}-Test.csv"],
    }
    # Some subsets have one kind of validation and test only, and versions differ in whether they say which.
    names["validation"] += [f"{prefix}-Val.csv"] * (args.validation == "ClosedSet")
    names["test"] += [f"{prefix}-Test.csv"] * (args.test == "ClosedSet")
    if args.test == "none":
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


def _image_folders(root: str, args: argparse.Namespace, rows: RowSet) -> dict[str, str]:
    """Split -> folder of its images, relative to the root; ValueError if there is none."""
    top = SUBSETS[args.subset]
    size = args.size or _smallest_size(root, top)
    found = {}
    for split in rows.frame[SPLIT].unique():
        names = FOLDERS[args.test if split == "test" else split]
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
    """Paths relative to the root, from file names; rows whose file name leads to another folder are left out."""
    frame = rows.frame
    names = frame[FILE]
    frame[IMAGE] = text_column(
        name and os.path.join(folders[split], name) for name, split in zip(names, frame[SPLIT], strict=True)
    )
    odd = [name is not None and name != os.path.basename(name) for name in names]
    rows.leave_out(odd, "outside of the root", "its file name leads to another folder")


def _blank_unknown(rows: RowSet, levels: Sequence[str]) -> None:
    """A row of an unknown species keeps its labels down to the genus."""
    if CATEGORY not in rows.frame:
        rows.notes.append(f"There is no column {CATEGORY}: unknown species cannot be recognised.")
        return
    numbers = pd.to_numeric(rows.frame[CATEGORY], errors="coerce")
    whole = numbers.notna() & (numbers % 1 == 0)
    odd = ~whole & rows.frame[CATEGORY].notna()
    if odd.any():
        rows.notes.append(
            f"{odd.sum()} cells of {CATEGORY} are not integers, such as {rows.frame[CATEGORY][odd].iloc[0]!r}."
        )
    rows.frame[CATEGORY] = text_column(
        str(int(number)) if fine else None for number, fine in zip(numbers, whole, strict=True)
    )
    unknown = rows.frame[CATEGORY] == UNKNOWN
    for level in levels[levels.index("species") :]:
        rows.frame[level] = rows.frame[level].where(~unknown, None)
    if unknown.any():
        rows.notes.append(
            f"{unknown.sum()} images have {CATEGORY} -1, an unknown species: labelled down to the genus."
        )


def _card_text(args: argparse.Namespace) -> str:
    test = "" if args.test == "none" else f", test is {args.test}"
    return (
        "[FungiTastic](https://github.com/BohemianVRA/FungiTastic) (Picek et al., arXiv:2408.13632), made ready by "
        f"`data_prep/prepare_fungitastic.py`: validation is {args.validation}{test}. The splits are the published "
        f"ones, by time. {how_stored(args)} Nothing here can tell whether a fungus can be eaten."
    )
