"""Make a data set folder that the trainers read from a table of images, or from a tree of folders.

    python data_prep/prepare_table.py --table data/fungi.csv --image_column file --group_column observation \\
        --level_columns family genus species --output_dir data/fungi
    python data_prep/prepare_table.py --image_folder photos --resize_shorter 256 --output_dir data/photos
    python data_prep/prepare_table.py --table data/tiles.csv --mask_column mask --taxonomy data/damage.yaml \\
        --group_column artwork --output_dir data/damage
    python data_prep/prepare_table.py --annotations coco.json --taxonomy data/damage.yaml --output_dir data/damage

Rows that cannot be used are left out and listed in problems.csv. A run that was interrupted resumes when the same
command is given again. What is in the folder: data_prep/README.md.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

if not __package__:  # run as a script: Python then looks for modules beside this file, not in the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common.data.masks import read_palette
from common.data.splits import Reading, check_names
from common.labels.encoding import group_key
from common.labels.hierarchy_files import key_labels, load_hierarchy, read_ignored
from common.run.command import run
from data_prep.folder.card import Content
from data_prep.folder.images import Store
from data_prep.folder.options import add_options, add_table_options, check_options, how_stored, parse, refuse
from data_prep.folder.prepared import check_output, write_prepared
from data_prep.parts.columns import IMAGE, MASK, SPLIT, SPLITS
from data_prep.parts.inputs import add_reading_options, read_group_file
from data_prep.rows.annotations import draw_annotations, leaf_values
from data_prep.rows.labels import clean_paths, lift_names, settle_unseen
from data_prep.rows.layouts import LAYOUTS, read_layout, recognise
from data_prep.rows.row_set import (
    RowSet,
    check_paths,
    drop_duplicates,
    exclude_listed,
    leave_shared,
    read_splits,
    split_randomly,
    text_column,
)
from data_prep.rows.tables import read_image_folder, read_tables

logger = logging.getLogger(__name__)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = parser.add_argument_group("data: one of these")
    data.add_argument("--table", metavar="FILE", help="CSV, TSV, XLSX, Parquet or JSON lines; one row per image")
    data.add_argument("--train_table", metavar="FILE", help="the same, one table per split")
    data.add_argument("--validation_table", metavar="FILE")
    data.add_argument("--test_table", metavar="FILE")
    data.add_argument(
        "--image_folder", metavar="FOLDER", help="one folder per class, perhaps inside folders train, val, test"
    )
    data.add_argument(
        "--layout",
        choices=[*LAYOUTS, "folders"],
        help="how a published data set lies in --image_folder; a known one is named if this is not given",
    )
    data.add_argument(
        "--annotations",
        metavar="PATH",
        help="COCO JSON, LabelMe JSON, CVAT XML or CSV with EncodedPixels, or a folder of them",
    )
    masks = parser.add_argument_group("masks")
    masks.add_argument(
        "--background", metavar="CLASS", help="of pixels in no object: a class of --taxonomy, or ignore"
    )
    masks.add_argument("--mask_palette", metavar="FILE", help="YAML file with a colour per class, see docs/art.md")
    masks.add_argument("--missing_mask", choices=("clean",), help="images without a mask are all --background")
    columns = parser.add_argument_group("columns of the table")
    columns.add_argument("--image_column", default="image", help="paths, or in Parquet images (default: %(default)s)")
    columns.add_argument("--image_root", metavar="FOLDER", help="paths start here and may not leave it")
    columns.add_argument("--mask_column", help="paths of masks, for segmentation; needs --taxonomy")
    columns.add_argument(
        "--level_columns", nargs="+", default=[], help="coarse to fine; with --image_folder, the tiers of folders"
    )
    columns.add_argument("--label_column", help="one label per image; a path of labels with --taxonomy")
    columns.add_argument("--taxonomy", metavar="FILE", help="the label tree: CSV (one row per leaf), JSON or YAML")
    columns.add_argument(
        "--group_column", help="what must not be in two splits: observation, ..., or groups.csv of leaks"
    )
    columns.add_argument("--keep_columns", nargs="+", default=[], help="other columns to keep")
    splits = parser.add_argument_group("splits")
    splits.add_argument("--split_column", help="says train, validation or test; without it, splits are random")
    splits.add_argument("--validation_share", type=float, default=0.1, help="of the images (default: %(default)s)")
    splits.add_argument("--test_share", type=float, default=0.1, help="of the images (default: %(default)s)")
    splits.add_argument("--seed", type=int, default=0, help="of the random splits (default: %(default)s)")
    add_reading_options(columns)
    columns.add_argument(
        "--conflicts",
        choices=("keep", "majority", "error"),
        default="keep",
        help="rows in which a name has another parent than nine in ten of its rows: two classes (default), moved to "
        "the others' parent, or an error",
    )
    add_table_options(parser)
    add_options(parser)
    parser.add_argument("--title", help="of the data set card")
    return parser


def main(argv: Sequence[str] | None = None) -> Path:
    """Read, check, split and store; returns the folder. ValueError for what leaving out rows does not solve."""
    args = parse(_parser(), argv)
    if args.layout == "severstal" and args.image_folder:  # annotations, in places that are known
        args.annotations, args.image_root = f"{args.image_folder}/train.csv", f"{args.image_folder}/train_images"
        args.image_folder = args.layout = None
    _check(args)
    check_output(args.output_dir)
    if args.annotations:
        _draw_masks(args)
    named = zip(("", *SPLITS), (args.table, args.train_table, args.validation_table, args.test_table), strict=True)
    tables = {split: file for split, file in named if file}
    rows = _read_layout(args)
    tree, levels = None, args.level_columns or [args.label_column or "label"]
    if args.taxonomy:
        tree, report = load_hierarchy(args.taxonomy, key=args.label_column)
        levels = [] if args.mask_column else list(tree.levels)
        for line in report:
            logger.warning("label tree: %s", line)
    images = {IMAGE: args.image_column} | ({MASK: args.mask_column} if args.mask_column else {})
    rows = rows or _read(args, tables, [args.label_column] if args.label_column else levels, images)
    root = "" if rows.source is not None else os.path.realpath(_root(args, tables))
    if rows.source is None:
        check_paths(rows, list(images), root, MASK if args.missing_mask else None)
    exclude_listed(rows, args.exclude_rows)
    if args.group_column:
        rows.frame[args.group_column] = text_column(map(group_key, rows.frame[args.group_column]))
    given = bool(args.split_column) or bool((rows.frame[SPLIT] != "").any())
    if args.split_column:
        read_splits(rows, args.split_column)
    elif given:
        rows.leave_out(rows.frame[SPLIT] == "", "no split", "the source does not say its split")
    if args.label_column and tree is not None:
        lift_names(rows, args.label_column, tree, key_labels(args.taxonomy, args.label_column, tree))
    elif levels:
        clean_paths(rows, levels, args.conflicts)
    drop_duplicates(rows, levels)
    content = Content(
        args.title or Path(args.output_dir).name,
        _card_text(args, tables, given),
        rows,
        list(dict.fromkeys(name for name in (*levels, args.group_column, *args.keep_columns) if name)),
        partial(_divide, args, levels, given),
        levels,
        tree=tree,
        group_column=args.group_column,
        root=root,
    )
    embed = args.embed or rows.source is not None
    store = Store(IMAGE, None, embed, args.resize_shorter, args.quality, args.max_megapixels)
    if args.mask_column:
        store = replace(
            store,
            mask_column=MASK,
            num_classes=tree.num_leaves,
            palette=tuple(read_palette(args.mask_palette, tree).items()) if args.mask_palette else (),
            ignored=tuple(read_ignored(args.taxonomy)),
            missing=leaf_values(tree, args.background)[1] if args.missing_mask else None,
        )
    return write_prepared(args, content, store)


def _draw_masks(args: argparse.Namespace) -> None:
    """Draw annotations as masks, beside the output folder, and go on with the table of them."""
    tree, root = load_hierarchy(args.taxonomy)[0], Path(args.image_root) if args.image_root else None
    folder = Path(f"{args.output_dir.rstrip('/')}_masks")
    how = (tree, root, args.background, folder, bool(args.missing_mask))
    args.image_root, notes = draw_annotations(Path(args.annotations), *how)
    args.table, args.mask_column, args.image_column = folder / "masks.csv", "mask", "image"
    if args.table.read_text(encoding="utf-8").partition("\n")[0].endswith("split"):
        args.split_column = "split"
    for note in notes:
        logger.info("%s", note)


def _divide(args: argparse.Namespace, levels: Sequence[str], given: bool, rows: RowSet) -> None:
    """Splits as they are ``given``, or drawn; and what to do about classes that training lacks."""
    if not given:
        split_randomly(rows, args.group_column, levels, (args.validation_share, args.test_share), args.seed)
    elif args.group_column:
        leave_shared(rows, args.group_column, "group in two splits")
    if given and args.validation_share and not (rows.frame[SPLIT] == "validation").any():
        rows.notes.append("The source has no validation part: it was drawn from training, by groups.")
        split_randomly(rows, args.group_column, levels, (args.validation_share, 0), args.seed)
    if levels:
        settle_unseen(rows, levels, args.unseen)


def _check(args: argparse.Namespace) -> None:
    """ValueError for options that do not fit together, all at once; warnings for those without effect."""
    check_options(args, encodes=args.resize_shorter is not None)
    by_split = [args.train_table, args.validation_table, args.test_table]
    columns = [*args.level_columns, args.label_column, args.group_column, *args.keep_columns]
    labels = args.level_columns or args.label_column
    wrong = {
        "give --table, or --train_table and --validation_table, or --image_folder, or --annotations": (
            bool(args.table) + any(by_split) + bool(args.image_folder) + bool(args.annotations) != 1
        ),
        "--image_folder has no columns: --group_column needs --table": args.image_folder
        and args.group_column
        and not args.layout,
        "--annotations needs a file or folder that exists, and --taxonomy": args.annotations
        and not (args.taxonomy and Path(args.annotations).exists()),
        "--annotations has no columns; its labels are the leaves of --taxonomy": args.annotations
        and (args.mask_column or labels or args.split_column),
        "--train_table goes with --validation_table or --test_table": any(by_split)
        and not (args.train_table and any(by_split[1:])),
        "give --level_columns, or --label_column, not both": args.level_columns and args.label_column,
        "--mask_column needs --taxonomy and no label columns: the labels are in the masks": args.mask_column
        and (labels or not args.taxonomy),
        "--taxonomy needs --label_column, --mask_column, --annotations or --layout": args.taxonomy
        and not (args.label_column or args.mask_column or args.annotations or args.layout),
        "--layout needs --image_folder": args.layout and not args.image_folder,
        "say where the labels are: --level_columns COARSE ... FINE, --label_column or --mask_column": not (
            args.image_folder or labels or args.mask_column or args.annotations
        ),
        "a level column is given twice": len(set(args.level_columns)) < len(args.level_columns),
        f"column {IMAGE!r} would be overwritten by the images; rename it": IMAGE in columns,
        f"column {MASK!r} would be overwritten by the images; rename it": args.mask_column and MASK in columns,
    }
    refuse(wrong)
    idle = {
        "split_column": args.split_column and (any(by_split) or args.image_folder),
        "image_root": args.image_root and args.image_folder,
        "image_suffix": args.image_suffix and args.image_folder,
        "missing_values": args.missing_values and args.image_folder,
        "background": args.background and not args.annotations and not args.missing_mask,
        "mask_palette": args.mask_palette and not (args.mask_column or args.layout),
        "missing_mask": args.missing_mask and not (args.mask_column or args.layout or args.annotations),
        "conflicts": args.conflicts != "keep" and args.taxonomy,
        "seed": args.seed and (any(by_split) or args.split_column),
    }
    for name in [name for name, no_effect in idle.items() if no_effect]:
        logger.warning("--%s has no effect beside the other options.", name)


def _read_layout(args: argparse.Namespace) -> RowSet | None:
    """The rows of a published layout, which then sets the options of columns; ``None`` if there is none."""
    if not args.image_folder or args.layout == "folders":
        return None
    if args.layout is None:
        found = recognise(Path(args.image_folder))
        if found:
            other = "or --layout folders if each folder is a class"
            raise ValueError(f"{args.image_folder} looks like the layout {found}: say --layout {found}, {other}.")
        return None
    rows, levels = read_layout(Path(args.image_folder), args.layout)
    if MASK in rows.frame:
        if not args.taxonomy:
            raise ValueError(f"The layout {args.layout} has masks: say what their values mean with --taxonomy FILE.")
        args.mask_column = MASK
    elif not args.label_column:
        args.level_columns = args.level_columns or levels
    if "group" in rows.frame:
        args.group_column = args.group_column or "group"
    wanted = [args.label_column, args.group_column, *args.level_columns, *args.keep_columns]
    check_names([name for name in wanted if name], list(rows.frame.columns), f"The layout {args.layout}")
    return rows


def _read(args: argparse.Namespace, tables: dict[str, str], labels: list[str], images: dict[str, str]) -> RowSet:
    """The rows, with images (and masks) in the columns that the folder has them in."""
    if args.image_folder:
        return read_image_folder(args.image_folder, labels)
    groups = read_group_file(args.group_column)
    others = [None if groups else args.group_column, args.split_column, *args.keep_columns]
    columns = list(dict.fromkeys([*images.values(), *labels, *filter(None, others)]))
    rows = read_tables(tables, columns, list(images.values()), reading=Reading.of(args))
    rows.frame = rows.frame.rename(columns={theirs: ours for ours, theirs in images.items()})
    if groups:
        known = {image: group for (_, _, image), group in groups.items()}
        missing = [image for image in rows.frame[IMAGE] if image not in known]
        if missing:
            raise ValueError(f"{args.group_column} has no line for {missing[0]}: it was made for other data.")
        args.group_column = "group"
        rows.frame["group"] = text_column(known[image] for image in rows.frame[IMAGE])
    return rows


def _root(args: argparse.Namespace, tables: dict[str, str]) -> str:
    """The folder that paths start from; ValueError if there is none, or several could be meant."""
    folders = {os.path.realpath(os.path.dirname(file) or ".") for file in tables.values()}
    if args.image_root is None and len(folders) > 1:
        raise ValueError("The tables lie in different folders: say where the images are with --image_root.")
    root = args.image_folder or args.image_root or folders.pop()
    if not os.path.isdir(root):
        raise ValueError(f"There is no folder {root} (--image_root).")
    return root


def _card_text(args: argparse.Namespace, tables: dict[str, str], given: bool) -> str:
    names = ", ".join(f"`{os.path.basename(name)}`" for name in tables.values() or [args.image_folder])
    apart = f"no `{args.group_column}` is in two of them" if args.group_column else "no image is in two of them"
    how = (
        "The splits are those of the source."
        if given
        else f"Splits were drawn at random (seed {args.seed}) so that {apart}, and every class is in training."
    )
    return f"Made from {names} by `data_prep/prepare_table.py`. {how} {how_stored(args)}"


if __name__ == "__main__":
    run(main)
