"""Make a data set folder that train_segmentation.py reads from ARTeFACT, from the Hub or from files.

    python data_prep/prepare_artefact.py --output_dir data/artefact
    python data_prep/prepare_artefact.py --dataset_name downloads/damaged-media --tile 512 --output_dir data/tiles
    python data_prep/prepare_artefact.py --root downloads/artefact --split_by content --output_dir data/by_content

ARTeFACT: Ivanova et al., WACV 2025, danielaivanova/damaged-media on the Hub. A local folder (--root) has `images/`,
`annotations/` and `metadata.csv` with the columns id, material, content and perhaps others. Scans of more than a
hundred megapixels are reduced or cut without decoding them all at once. Rows that cannot be used are left out and
listed in problems.csv. A run that was interrupted resumes when the same command is given again. What is in the folder:
data_prep/README.md.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

if not __package__:  # run as a script: Python then looks for modules beside this file, not in the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common.data.splits import check_names, load_splits
from common.images.files import BAD_IMAGE
from common.images.mask_files import IGNORED_PIXEL, colour_codes
from common.labels.hierarchy_files import load_hierarchy
from common.run.command import run
from data_prep.folder.card import Content
from data_prep.folder.images import Palette
from data_prep.folder.options import add_options, check_options, parse, refuse
from data_prep.folder.prepared import check_output, write_prepared
from data_prep.folder.scans import ScanStore
from data_prep.parts.columns import AUGMENTED, IMAGE, SPLIT
from data_prep.rows.row_set import RowSet, check_paths, exclude_listed, leave_shared, split_randomly, text_column
from data_prep.rows.tables import from_dataset, join, read_tables

HIERARCHY = Path(__file__).resolve().parents[1] / "hierarchies" / "artefact.yaml"
COLOURS = yaml.safe_load(HIERARCHY.with_name("artefact_palette.yaml").read_text("utf-8"))
"""In which the data set's card shows the classes (its column annotation_rgb)"""

HUB_ID = "danielaivanova/damaged-media"
MASK, COLOURED, ID, ARTWORK = "annotation", "annotation_rgb", "id", "artwork"
KEPT = ("material", "content", "type")
FOLDERS = {IMAGE: ("images", "image"), MASK: ("annotations", "annotation")}
DEFAULT_LONGER = 2048
ROWS_PER_PIECE = 8  # scans are large
MASKS_COMPARED = 16  # with the same in colours
LARGEST_COMPARED = 25_000_000  # pixels
ENOUGH_PIXELS = 50  # of a value, to tell its colour


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = parser.add_argument_group("data")
    data.add_argument(
        "--dataset_name",
        help="a folder or Hub id that load_dataset understands (default: danielaivanova/damaged-media)",
    )
    data.add_argument("--root", metavar="FOLDER", help="instead: holds images, annotations and metadata.csv")
    data.add_argument("--hierarchy", default=str(HIERARCHY), metavar="FILE", help="the classes in the order of values")
    images = parser.add_argument_group("images")
    images.add_argument(
        "--resize_longer",
        type=int,
        metavar="PIXELS",
        help="reduce to this longer side (default: 2048, with --tile none)",
    )
    images.add_argument("--full_size", action="store_true", help="store the original files")
    images.add_argument("--tile", type=int, metavar="PIXELS", help="cut into squares of this size")
    images.add_argument("--quality", type=int, default=92, help="of the JPEGs (default: %(default)s)")
    splits = parser.add_argument_group("splits: copies <id>_aug<N> always stay with <id>")
    splits.add_argument(
        "--split_by", choices=("random", "content", "material"), default="random", help="what is held out"
    )
    splits.add_argument("--validation_values", nargs="+", default=[], help="contents or materials to validate on")
    splits.add_argument("--test_values", nargs="+", default=[], help="contents or materials to test on")
    splits.add_argument("--validation_share", type=float, default=0.2, help="of the images (default: %(default)s)")
    splits.add_argument("--test_share", type=float, default=0.0, help="of the images (default: %(default)s)")
    splits.add_argument("--seed", type=int, default=0, help="of what is random (default: %(default)s)")
    add_options(parser, max_megapixels=300.0)
    parser.set_defaults(embed=False, resize_shorter=None, unseen="blank")  # options that other sources have
    return parser


def main(argv: Sequence[str] | None = None) -> Path:
    """Read, check, split and store; returns the folder. ValueError for what leaving out rows does not solve."""
    args = parse(_parser(), argv)
    _check(args)
    check_output(args.output_dir)
    tree, _ = load_hierarchy(args.hierarchy)
    palette = palette_of(tree.leaf_names())
    root = os.path.realpath(args.root) if args.root else ""
    rows = _read_folder(Path(args.root)) if args.root else _read_dataset(args.dataset_name or HUB_ID, palette)
    if args.root:
        check_paths(rows, [IMAGE, MASK], root)
    exclude_listed(rows, args.exclude_rows)
    rows.leave_out(rows.frame[ID].isna(), "no id", "the row has no id")
    rows.leave_out(rows.frame.duplicated(ID), "listed twice", "an earlier row has the same id")
    rows.frame[ARTWORK] = text_column(re.sub(AUGMENTED, "", name) for name in rows.frame[ID])
    if args.split_by != "random":
        _hold_out(args, rows)
    kept = [name for name in KEPT if name in rows.frame]
    longer = args.resize_longer or (None if args.full_size or args.tile else DEFAULT_LONGER)
    content = Content(
        "ARTeFACT",
        _card_text(args, longer),
        rows,
        [ID, ARTWORK, *kept],
        partial(_divide, args),
        tree=tree,
        group_column=ARTWORK,
        root=root,
    )
    store = ScanStore(
        IMAGE,
        MASK,
        quality=args.quality,
        max_megapixels=args.max_megapixels,
        num_classes=tree.num_leaves,
        resize_longer=longer,
        tile=args.tile,
        palette=palette,
    )
    return write_prepared(args, content, store, ROWS_PER_PIECE)


def palette_of(names: Sequence[str]) -> Palette:
    """The published colours of classes, given in the order of their values."""
    values = {**{name: value for value, name in enumerate(names)}, "ignore": IGNORED_PIXEL}
    return tuple((int(COLOURS[name][1:], 16), value) for name, value in values.items() if name in COLOURS)


def _check(args: argparse.Namespace) -> None:
    check_options(args, encodes=not args.full_size)
    wrong = {
        "give --root or --dataset_name, not both": args.root and args.dataset_name,
        "--resize_longer must be at least 1": args.resize_longer is not None and args.resize_longer < 1,
        "--tile must be at least 1": args.tile is not None and args.tile < 1,
        "--full_size stores the original files: it cannot go with --resize_longer or --tile": args.full_size
        and (args.resize_longer or args.tile),
        "--validation_values and --test_values need --split_by content or material": args.split_by == "random"
        and (args.validation_values or args.test_values),
        "--validation_values and --test_values share a value": set(args.validation_values) & set(args.test_values),
    }
    refuse(wrong)


# ---- reading


def _read_dataset(name: str, palette: Palette) -> RowSet:
    splits = {split: data for split, data in load_splits(name, None, {}).items() if len(data)}
    if not splits:
        raise ValueError(f"The data set {name} has no rows.")
    for split, data in splits.items():
        check_names([ID, IMAGE, MASK], data.column_names, f"split {split!r}")
    common = set.intersection(*(set(data.column_names) for data in splits.values()))
    names, images = ([name for name in wanted if name in common] for wanted in ((ID, *KEPT), (IMAGE, MASK, COLOURED)))
    rows = join([from_dataset(data, names, images) for data in splits.values()])
    if COLOURED in common:
        rows.notes.append(_check_order(rows, palette))
        rows.source = rows.source.remove_columns(COLOURED)
    else:
        rows.notes.append(f"There is no column {COLOURED}: the order of classes was checked by the range of values.")
    return rows


def _check_order(rows: RowSet, palette: Palette) -> str:
    """Compare a few masks with the same masks in colours, which tell what class each value means; returns a note.

    Clean, background and colours that stand for no class are skipped.

    Raises:
        ValueError: a value is most often shown in another class's colour.
    """
    classes = {colour: value for colour, value in palette if value not in (0, IGNORED_PIXEL)}
    compared = agreed = 0
    for row in np.unique(np.linspace(0, len(rows.frame) - 1, 4 * MASKS_COMPARED).astype(int)).tolist():
        pair = _open_pair(rows.source[row][MASK], rows.source[row][COLOURED])
        if pair is None:
            continue
        values, colours = pair
        for value in np.unique(values[(values != 0) & (values != IGNORED_PIXEL)]).tolist():
            shown, counts = np.unique(colours[values == value], return_counts=True)
            meant = classes.get(int(shown[counts.argmax()]))
            if meant is None or counts.sum() < ENOUGH_PIXELS:
                continue
            if meant != value:
                raise ValueError(
                    f"Row {row} ({rows.frame[ID].iloc[row]}): value {value} is shown in the colour of value {meant}. "
                    "The classes of these masks are in another order than the published one; write a hierarchy file "
                    "with theirs (--hierarchy)."
                )
            agreed += 1
        compared += 1
        if compared == MASKS_COMPARED:
            break
    return f"Order of classes: in {compared} rows, {agreed} values have the published colour, and none another's."


def _open_pair(mask: Any, shown: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """A mask and its colours as numbers; ``None`` if they are too large, or cannot be compared."""
    try:
        with Image.open(io.BytesIO(mask["bytes"])) as values, Image.open(io.BytesIO(shown["bytes"])) as colours:
            if values.mode != "L" or values.size != colours.size or np.prod(values.size) > LARGEST_COMPARED:
                return None
            return np.asarray(values), colour_codes(np.asarray(colours.convert("RGB")))
    except (TypeError, *BAD_IMAGE):
        return None  # a broken mask is left out later, with a reason


def _read_folder(root: Path) -> RowSet:
    table = root / "metadata.csv"
    if not table.is_file():
        raise ValueError(f"There is no {table} (--root).")
    rows = read_tables({"": table}, [ID], [], KEPT)
    for column, names in FOLDERS.items():
        folder = next((root / name for name in names if (root / name).is_dir()), None)
        if folder is None:
            raise ValueError(f"There is no folder {' or '.join(names)} in {root} (--root).")
        entries = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
        files = {os.path.splitext(name)[0]: os.path.join(folder.name, name) for name in entries}
        rows.frame[column] = text_column(files.get(name) for name in rows.frame[ID])
        unnamed = set(files) - set(rows.frame[ID])
        if unnamed:
            rows.notes.append(f"{len(unnamed)} files of {names[0]} are not in metadata.csv, such as {min(unnamed)}.")
    return rows


# ---- splits


def _hold_out(args: argparse.Namespace, rows: RowSet) -> None:
    """Check the contents or materials to hold out, or draw them: of each split its share, and at least one."""
    check_names([args.split_by], list(rows.frame.columns), "The data set")
    rows.leave_out(rows.frame[args.split_by].isna(), "no split", f"the row has no {args.split_by}")
    values = sorted(set(rows.frame[args.split_by]))
    if not (args.validation_values or args.test_values):
        shares = (args.validation_share, args.test_share)
        num_val, num_test = (max(1, round(share * len(values))) if share else 0 for share in shares)
        if num_val + num_test >= len(values):
            told = f"too few to hold {num_val + num_test} out"
            raise ValueError(f"There are {len(values)} values of {args.split_by}, {told}.")
        order = np.random.default_rng(args.seed).permutation(values).tolist()
        args.validation_values, args.test_values = order[:num_val], order[num_val : num_val + num_test]
    unknown = sorted({*args.validation_values, *args.test_values} - set(values))
    if unknown:
        raise ValueError(f"No image has the {args.split_by} {unknown}; there are: {values}.")


def _divide(args: argparse.Namespace, rows: RowSet) -> None:
    if args.split_by == "random":
        stratified = ["content"] if "content" in rows.frame else []
        split_randomly(rows, ARTWORK, stratified, (args.validation_share, args.test_share), args.seed)
        return
    held = dict.fromkeys(args.validation_values, "validation") | dict.fromkeys(args.test_values, "test")
    rows.frame[SPLIT] = text_column(held.get(value, "train") for value in rows.frame[args.split_by])
    leave_shared(rows, ARTWORK, "artwork in two splits")


def _card_text(args: argparse.Namespace, longer: int | None) -> str:
    parts = []
    if longer:
        parts.append(f"images were reduced to a longer side of {longer} pixels (JPEG, {args.quality})")
    if args.tile:
        parts.append(f"cut into tiles of {args.tile} pixels, whose place is in the columns tile_x and tile_y")
    stored = " and ".join(parts) or "images are the original files"
    how = "at random" if args.split_by == "random" else f"by {args.split_by}"
    return (
        "[ARTeFACT](https://daniela997.github.io/ARTeFACT/) (Ivanova et al., WACV 2025), damage in analogue media, "
        f"made ready by `data_prep/prepare_artefact.py`. Split {how}; no artwork is in two splits. "
        f"{stored[0].upper()}{stored[1:]}; masks were reduced by nearest neighbour and are lossless. "
        "Values of masks are the leaves of `hierarchy.json`, 255 is background, to be ignored."
    )


if __name__ == "__main__":
    run(main)
