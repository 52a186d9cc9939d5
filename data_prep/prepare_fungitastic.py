"""Make a data set folder that train_taxonomy.py reads from FungiTastic's unpacked files.

    python data_prep/prepare_fungitastic.py --root FungiTastic --resize_shorter 256 --output_dir data/fungitastic
    python data_prep/prepare_fungitastic.py --root FungiTastic --subset mini --size 500 --output_dir data/mini

FungiTastic: Picek et al., https://github.com/BohemianVRA/FungiTastic. ROOT holds `metadata/FungiTastic/*.csv` and
`FungiTastic/{train,val,test}/300p/*.JPG` (or 500p, 720p, fullsize), as its download.py unpacks them; the subsets Mini
and FewShot have folders of their own. Rows that cannot be used are left out and listed in problems.csv. A run that was
interrupted resumes when the same command is given again. What is in the folder: data_prep/README.md.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

if not __package__:  # run as a script: Python then looks for modules beside this file, not in the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common.run.command import run
from data_prep.folder.card import Content
from data_prep.folder.images import Store
from data_prep.folder.options import add_options, add_table_options, check_options, how_stored, parse
from data_prep.folder.prepared import check_output, write_prepared
from data_prep.parts.columns import IMAGE, SPLIT
from data_prep.rows.labels import clean_paths, settle_unseen
from data_prep.rows.row_set import RowSet, check_paths, drop_duplicates, exclude_listed, leave_shared, text_column
from data_prep.rows.tables import read_tables

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

KEPT = [
    "category_id", "scientificName", "poisonous", "eventDate", "habitat", "substrate", "latitude", "longitude",
]  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = parser.add_argument_group("data")
    data.add_argument("--root", required=True, metavar="FOLDER", help="holds metadata and the images")
    data.add_argument("--subset", choices=("full", "mini", "fewshot"), default="full", help="(default: %(default)s)")
    data.add_argument("--size", choices=SIZES, help="of the images; by default the smallest that is there")
    data.add_argument(
        "--validation", choices=("ClosedSet", "OpenSet"), default="ClosedSet", help="(default: %(default)s)"
    )
    data.add_argument(
        "--test", choices=("ClosedSet", "DNA", "OpenSet", "none"), default="ClosedSet", help="(default: %(default)s)"
    )
    data.add_argument(
        "--with_category_id", action="store_true", help="a seventh level: forms and varieties below the species"
    )
    data.add_argument("--keep_columns", nargs="*", default=KEPT, help="other columns to keep, where they are there")
    add_table_options(parser)
    add_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> Path:
    """Read, check and store; returns the folder. ValueError if a table, a column or the images' folder is missing."""
    args = parse(_parser(), argv)
    check_options(args, encodes=args.resize_shorter is not None)
    check_output(args.output_dir)
    root = _find_root(args.root)
    levels = [*LEVELS, CATEGORY] if args.with_category_id else list(LEVELS)
    kept = [name for name in dict.fromkeys(args.keep_columns) if name not in {*levels, GROUP, FILE}]
    rows = read_tables(_find_tables(root, args), [FILE, GROUP, *levels], [FILE], [*kept, CATEGORY])
    kept = [name for name in kept if name in rows.frame]
    _name_images(root, args, rows)
    check_paths(rows, [IMAGE], root)
    exclude_listed(rows, args.exclude_rows)
    _blank_unknown(rows, levels)
    clean_paths(rows, levels)
    drop_duplicates(rows, levels)
    content = Content(
        SUBSETS[args.subset],
        _card_text(args),
        rows,
        [*levels, GROUP, *kept],
        partial(_divide, args, levels),
        levels,
        group_column=GROUP,
        root=root,
    )
    store = Store(IMAGE, None, args.embed, args.resize_shorter, args.quality, args.max_megapixels)
    return write_prepared(args, content, store)


def _divide(args: argparse.Namespace, levels: Sequence[str], rows: RowSet) -> None:
    leave_shared(rows, GROUP, "observation in two splits")
    settle_unseen(rows, levels, args.unseen)


# ---- finding files


def _find(root: str, names: Sequence[str], what: str) -> str:
    """The first of several paths below the root that is there; ValueError if none is."""
    found = next((name for name in names if os.path.exists(os.path.join(root, name))), None)
    if found is None:
        raise ValueError(f"No {what}: {root} has none of {', '.join(names)}.")
    return found


def _find_root(given: str) -> str:
    """The folder with ``metadata``, without symbolic links: the one given or the FungiTastic in it."""
    for folder in (given, os.path.join(given, "FungiTastic")):
        if os.path.isdir(os.path.join(folder, "metadata")):
            return os.path.realpath(folder)
    raise ValueError(f"There is no folder metadata in {given} (--root); unpack metadata.zip into {given}/metadata.")


def _find_tables(root: str, args: argparse.Namespace) -> dict[str, str]:
    """Split -> table; ValueError if one is not there."""
    prefix = SUBSETS[args.subset]
    # Some subsets have one kind of validation and test only, and versions differ in whether they say which.
    names = {
        "train": ["Train", "ClosedSet-Train"],
        "validation": [f"{args.validation}-Val", *["Val"] * (args.validation == "ClosedSet")],
        "test": [f"{args.test}-Test", *["Test"] * (args.test == "ClosedSet")],
    }
    if args.test == "none":
        del names["test"]
    folders = [f"metadata/{prefix}", f"metadata/metadata/{prefix}", "metadata"]
    found = {}
    for split, kinds in names.items():
        candidates = [f"{folder}/{prefix}-{kind}.csv" for folder in folders for kind in kinds]
        found[split] = os.path.join(root, _find(root, candidates, f"{split} table (--subset, --validation, --test)"))
    return found


# ---- rows


def _name_images(root: str, args: argparse.Namespace, rows: RowSet) -> None:
    """Paths relative to the root, from file names; ValueError if a split has no folder of images.

    Rows whose file name leads to another folder are left out.
    """
    top = SUBSETS[args.subset]
    endings = [ending for size in ([args.size] if args.size else SIZES) for ending in (f"{size}p", size)]
    size = os.path.basename(_find(root, [f"{top}/train/{ending}" for ending in endings], "images of training"))
    size = size.removesuffix("p")
    rows.notes.append(f"Images of size {size}.")
    folders = {}
    for split in rows.frame[SPLIT].unique():
        names = FOLDERS[args.test if split == "test" else split]
        candidates = [f"{top}/{name}/{ending}" for name in names for ending in (f"{size}p", size)]
        folders[split] = _find(root, candidates, f"images of the {split} split")
    names = rows.frame[FILE]
    rows.frame[IMAGE] = text_column(
        name and os.path.join(folders[split], name) for name, split in zip(names, rows.frame[SPLIT], strict=True)
    )
    odd = [name is not None and name != os.path.basename(name) for name in names]
    rows.leave_out(odd, "outside of the root", "its file name leads to another folder")


def _blank_unknown(rows: RowSet, levels: Sequence[str]) -> None:
    """A row of an unknown species keeps its labels down to the genus."""
    if CATEGORY not in rows.frame:
        rows.notes.append(f"There is no column {CATEGORY}: unknown species cannot be recognised.")
        return
    numbers = pd.to_numeric(rows.frame[CATEGORY], errors="coerce")
    numbers = numbers.where(numbers % 1 == 0)
    odd = numbers.isna() & rows.frame[CATEGORY].notna()
    if odd.any():
        rows.notes.append(
            f"{odd.sum()} cells of {CATEGORY} are not integers, such as {rows.frame[CATEGORY][odd].iloc[0]!r}."
        )
    rows.frame[CATEGORY] = text_column(None if np.isnan(number) else str(int(number)) for number in numbers)
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


if __name__ == "__main__":
    run(main)
