"""A table or a tree of folders -> a prepared folder: what prepare_table.py does."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from common.labels.hierarchy_files import load_hierarchy
from common.model.hierarchy import Hierarchy
from data_prep.data_card import Card
from data_prep.label_paths import clean_paths, lift_names, settle_unseen
from data_prep.plan import Content
from data_prep.prepared import check_output, write_prepared
from data_prep.rows import RowSet, check_paths, drop_doubles, exclude_listed, leave_shared, read_splits, split_randomly
from data_prep.tables import SPLIT, Rows, read_image_folder, read_tables

if TYPE_CHECKING:
    from data_prep.prepare_table import TableOptions

logger = logging.getLogger(__name__)

IMAGE, MASK = "image", "mask"
"""What the image columns are called in the folder, whatever the table calls them; the trainers expect these"""


def prepare_table(options: TableOptions) -> Path:
    """Read, check, split and store; returns the finished folder.

    Args:
        options: as on the command line.

    Raises:
        ValueError: something is wrong that rows cannot be left out for; see the message.
    """
    _check(options)
    check_output(options.output_dir)
    tree, levels = _levels(options)
    read = _read(options, levels)
    root = "" if read.sources else os.path.realpath(_root(options))
    renamed = {options.image_column: IMAGE} | ({options.mask_column: MASK} if options.mask_column else {})
    rows = RowSet(read.frame.rename(columns=renamed), IMAGE, read.problems, read.notes)
    if not read.sources:
        check_paths(rows, list(renamed.values()), root)
    exclude_listed(rows, options.exclude_rows)
    given = bool((rows.frame[SPLIT] != "").any()) or bool(options.split_column)
    if options.split_column:
        read_splits(rows, options.split_column)
    if options.label_column and tree is not None:
        lift_names(rows, options.label_column, tree)
    elif levels:
        clean_paths(rows, levels)
    drop_doubles(rows, levels)
    if not given:
        split_randomly(
            rows, options.group_column, levels, (options.validation_share, options.test_share), options.seed
        )
    elif options.group_column:
        leave_shared(rows, options.group_column, "group in two splits")
    if levels:
        settle_unseen(rows, levels, options.unseen)
    columns = dict.fromkeys(
        [*levels, *([options.group_column] if options.group_column else []), *options.keep_columns]
    )
    content = Content(
        rows,
        list(columns),
        levels,
        _card(options, given),
        tree=tree,
        group_column=options.group_column,
        root=root,
        sources=read.sources,
        source_columns={new: old for old, new in renamed.items()},
        unseen=options.unseen,
        settings=options.settings(),
    )
    store = options.store(
        IMAGE,
        MASK if options.mask_column else None,
        embed=bool(read.sources),
        num_classes=tree.num_leaves if options.mask_column else None,
    )
    folder = write_prepared(options.output_dir, content, store, num_proc=options.num_proc, strict=options.strict)
    logger.info("The data set is in %s", folder)
    return folder


def _check(options: TableOptions) -> None:
    """ValueError for options that do not fit together, all at once; warnings for those without effect."""
    options.check()
    by_split = [options.train_table, options.validation_table, options.test_table]
    sources = [bool(options.table), any(by_split), bool(options.image_folder)]
    problems = []
    if sum(sources) != 1:
        problems.append("give --table, or --train_table and --validation_table, or --image_folder")
    if any(by_split) and not all(by_split[:2]):
        problems.append("--train_table and --validation_table go together")
    if options.level_columns and options.label_column:
        problems.append("give --level_columns, or --label_column, not both")
    if options.mask_column and (options.level_columns or options.label_column or not options.taxonomy):
        problems.append("--mask_column needs --taxonomy and no label columns: the labels are in the masks")
    if options.taxonomy and not (options.label_column or options.mask_column):
        problems.append("--taxonomy needs --label_column or --mask_column")
    if not (options.image_folder or options.level_columns or options.label_column or options.mask_column):
        problems.append("say where the labels are: --level_columns COARSE ... FINE, --label_column or --mask_column")
    others = [*options.level_columns, options.label_column, options.group_column, *options.keep_columns]
    taken = {IMAGE, MASK} if options.mask_column else {IMAGE}
    problems += [f"column {name!r} would be overwritten by the images; rename it" for name in taken & set(others)]
    if len(set(options.level_columns)) < len(options.level_columns):
        problems.append("a level column is given twice")
    if problems:
        raise ValueError("; ".join(problems) + ".")
    _warn(options, any(by_split))


def _warn(options: TableOptions, by_split: bool) -> None:
    idle = {
        "split_column": bool(options.split_column) and (by_split or bool(options.image_folder)),
        "image_root": bool(options.image_root and options.image_folder),
        "seed": bool(options.seed) and (by_split or bool(options.split_column)),
    }
    for name, no_effect in idle.items():
        if no_effect:
            logger.warning("--%s has no effect beside the other options.", name)


def _levels(options: TableOptions) -> tuple[Hierarchy | None, list[str]]:
    """The tree if a file gives it, and the level columns that the folder gets."""
    if options.taxonomy:
        tree, report = load_hierarchy(options.taxonomy)
        for line in report:
            logger.warning("label tree: %s", line)
        return tree, [] if options.mask_column else list(tree.levels)
    return None, options.level_columns or [options.label_column or "label"] * (not options.mask_column)


def _read(options: TableOptions, levels: list[str]) -> Rows:
    if options.image_folder:
        names = [options.label_column] if options.label_column else levels
        return read_image_folder(options.image_folder, names, options.image_column)
    files = {
        "": options.table,
        "train": options.train_table,
        "validation": options.validation_table,
        "test": options.test_table,
    }
    labels = [options.label_column] if options.label_column else levels
    images = [options.image_column] + ([options.mask_column] if options.mask_column else [])
    others = [options.group_column, options.split_column, *options.keep_columns]
    columns = dict.fromkeys(name for name in (*images, *labels, *others) if name)
    return read_tables({split: file for split, file in files.items() if file}, list(columns), images)


def _root(options: TableOptions) -> str:
    """The folder that paths start from; ValueError if there is none, or several could be meant."""
    if options.image_folder:
        return options.image_folder
    files = [options.table, options.train_table, options.validation_table, options.test_table]
    folders = {os.path.realpath(os.path.dirname(file) or ".") for file in files if file}
    if options.image_root is None and len(folders) > 1:
        raise ValueError("The tables lie in different folders: say where the images are with --image_root.")
    root = options.image_root or folders.pop()
    if not os.path.isdir(root):
        raise ValueError(f"There is no folder {root} (--image_root).")
    return root


def _card(options: TableOptions, given: bool) -> Card:
    tables = [options.table, options.train_table, options.validation_table, options.test_table]
    names = ", ".join(f"`{os.path.basename(name)}`" for name in (*tables, options.image_folder) if name)
    how = (
        "The splits are those of the source."
        if given
        else (
            f"Splits were drawn at random (seed {options.seed}) so that "
            + (
                f"no `{options.group_column}` is in two of them"
                if options.group_column
                else "no image is in two of them"
            )
            + ", and every class is in training."
        )
    )
    title = options.title or Path(options.output_dir).name
    task = "image-segmentation" if options.mask_column else "image-classification"
    return Card(title, task, f"Made from {names} by `data_prep/prepare_table.py`. {how} {options.how_stored()}")
