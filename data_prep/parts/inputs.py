"""The data set that a command reads: the options for it, which are the trainers', and its splits."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
from datasets import DatasetDict

from common.data.masks import MaskReader
from common.data.prepared import SelectionSource
from common.data.problems import image_names, leave_out
from common.data.rows import ImageRows
from common.data.splits import LabelColumns, Reading, check_columns, check_names, load_splits, read_cells, read_groups
from common.labels.hierarchy_files import find_hierarchy, load_hierarchy, read_ignored
from common.model.hierarchy import Hierarchy
from common.run.setup import image_root

from .columns import SPLITS


def add_reading_options(parser: argparse._ActionsContainer) -> None:
    """Add ``--missing_values`` and ``--image_suffix``, which the trainers have too."""
    parser.add_argument(
        "--missing_values",
        nargs="+",
        metavar="WORD",
        help="cells that mean blank, beside empty ones (default: NA N/A n/a NaN nan null NULL -)",
    )
    parser.add_argument("--image_suffix", metavar="ENDING", help="ending to add to image paths without it, as .jpg")


def input_parser(
    doc: str, *, masks: bool = False, labels: bool = False, groups: bool = False, num_proc: bool = False
) -> argparse.ArgumentParser:
    """A parser with the options that say where the data are and what of them is used, and what else is asked for."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = parser.add_argument_group("data")
    data.add_argument("--dataset_name", help="a prepared folder, a folder of images, or an id on the Hub")
    data.add_argument("--dataset_config_name", help="configuration of the data set on the Hub")
    for split in SPLITS:
        data.add_argument(f"--{split}_file", help=f"CSV, TSV, XLSX, JSON lines or Parquet file of the {split} split")
    data.add_argument("--image_root", help="folder that image paths lie in; by default that of the file")
    data.add_argument("--image_column", default="image", help="column with the images, or their paths")
    add_reading_options(data)
    if masks:
        data.add_argument("--mask_column", help="column with the masks, or their paths")
        data.add_argument("--mask_palette", help="YAML file with a colour per class, for masks coded by colour")
    if groups:
        data.add_argument(
            "--group_column", help="column (artwork, ...) or groups.csv of find_leaks.py: must not cross splits"
        )
    data.add_argument("--exclude_rows", nargs="+", default=[], metavar="FILE", help="problems.csv: rows to leave out")
    if labels:
        group = parser.add_argument_group("labels")
        group.add_argument("--level_columns", nargs="+", metavar="COLUMN", help="one column per level, coarse to fine")
        group.add_argument("--label_column", help="or one column, whose values are classes of --hierarchy")
        group.add_argument("--hierarchy", help="file with the label tree: CSV of paths, JSON or YAML")
    if num_proc:
        parser.add_argument(
            "--num_proc",
            type=int,
            default=len(os.sched_getaffinity(0)),
            help="processes that decode; 0 to work in this one, where a decoder that crashes ends the script",
        )
    return parser


def hierarchy_beside(args: argparse.Namespace) -> Path | None:
    """The label tree that lies beside a prepared data set, if there is one."""
    return find_hierarchy(args.dataset_name, required=False) if args.dataset_name else None


def read_masks(args: argparse.Namespace) -> tuple[Hierarchy, MaskReader] | tuple[None, None]:
    """The label tree of the masks, and what reads them; nothing without ``--mask_column``."""
    if not args.mask_column:
        return None, None
    file = args.hierarchy or find_hierarchy(args.dataset_name or "")
    hierarchy, _ = load_hierarchy(file)
    raw = vars(args).get("mask_orientation") == "raw"
    return hierarchy, MaskReader(hierarchy, args.mask_palette, read_ignored(file), raw)


def read_group_file(path: str | None) -> dict[tuple[str, int, str], str] | None:
    """Group of each (split, row, image), if ``--group_column`` is a file that find_leaks.py wrote: groups.csv."""
    if not path or Path(path).suffix != ".csv" or not Path(path).is_file():
        return None
    table = pd.read_csv(path, dtype={"image": str, "group": str}, keep_default_na=False)
    check_names(["split", "row", "image", "group"], list(table), path)
    return dict(zip(zip(table["split"], table["row"], table["image"], strict=True), table["group"], strict=True))


@dataclass
class Inputs:
    """The splits to work on, the one to learn from first, without rows to exclude.

    Args:
        args: the command line.
        splits: the data.
        numbers: of each split int64 (rows,), the number that each row has in the data set.
        num_rows: of each split in the data set, with those that are left out.
    """

    args: argparse.Namespace
    splits: DatasetDict
    numbers: dict[str, np.ndarray]
    num_rows: dict[str, int]

    def images(self, column: str | None = None) -> dict[str, ImageRows]:
        """The images of each split that has rows, or what another column holds, such as masks."""
        column = column or self.args.image_column
        splits = {split: data for split, data in self.splits.items() if len(data)}
        return {split: ImageRows(data, column, split, self._root(split)) for split, data in splits.items()}

    def image_names(self, split: str) -> list[str]:
        """The file of each row's image, as the data set writes it."""
        return image_names(self.splits[split], self.args.image_column)

    def cells(self, column: str | None) -> dict[str, list[Any]]:
        """A column of each split, or groups from a file; nothing without a column, ValueError if a split lacks it."""
        groups = read_group_file(column)
        if groups is not None:
            try:
                return {
                    split: [groups[split, *row] for row in zip(rows.tolist(), self.image_names(split), strict=True)]
                    for split, rows in self.numbers.items()
                }
            except KeyError as error:
                raise ValueError(f"{column} has no line for {error}: it was made for other data.") from None
        read = read_groups if column == vars(self.args).get("group_column") else read_cells
        splits = self.splits.items() if column else ()
        for split, dataset in splits:
            check_columns(dataset, [column], split)
        return {split: read(dataset, column) for split, dataset in splits}

    def labels(self) -> tuple[Hierarchy, dict[str, np.ndarray]]:
        """The label tree, from its file or the first split, and the labels of each split, int64 (rows, levels)."""
        tree = self.args.hierarchy or (self.args.label_column and hierarchy_beside(self.args))
        columns = LabelColumns(self.args.level_columns, self.args.label_column, str(tree) if tree else None)
        for split, dataset in self.splits.items():
            check_columns(dataset, columns.columns(), split)
        hierarchy, report = columns.read_hierarchy(next(iter(self.splits.values())))
        for line in report:
            print(f"label tree: {line}", file=sys.stderr)
        return hierarchy, {split: columns.read_labels(data, hierarchy, split) for split, data in self.splits.items()}

    def settings(self, *more: object) -> str:
        """What results depend on, as a text: the data, where images lie, and whatever else is given."""
        data = [(split, dataset._fingerprint, len(dataset)) for split, dataset in self.splits.items()]
        roots = [str(self._root(split)) for split in self.splits]
        columns = self.args.image_column, getattr(self.args, "mask_column", None)
        return repr((data, roots, columns, *more))

    def source(self) -> SelectionSource:
        """The data set as the source of a selection; ValueError if its splits' images lie in different folders."""
        files = {split: file for split in SPLITS if (file := getattr(self.args, f"{split}_file"))}
        roots = {os.path.abspath(self._root(split)) for split in self.splits}
        if len(roots) > 1:
            raise ValueError("The files lie in different folders: say where the images are with --image_root.")
        return SelectionSource(
            self.args.dataset_name, self.args.dataset_config_name, files, roots.pop(), self.num_rows
        )

    def _root(self, split: str) -> Path:
        return image_root(self.args, getattr(self.args, f"{split}_file", None))


def open_inputs(args: argparse.Namespace) -> Inputs:
    """Load what the command line names; ValueError if there is nothing."""
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    files = {split: getattr(args, f"{split}_file") for split in SPLITS}
    if bool(args.dataset_name) == any(files.values()):
        raise ValueError("Say where the data are: --dataset_name NAME, or --train_file FILE and others like it.")
    found = load_splits(args.dataset_name or "", args.dataset_config_name, files, Reading.of(args))
    splits = DatasetDict({name: found[name] for name in dict.fromkeys([*SPLITS, *found]) if name in found})
    if not sum(map(len, splits.values())):
        raise ValueError("The data set has no rows.")
    lengths = {split: len(dataset) for split, dataset in splits.items()}
    return Inputs(args, *leave_out(splits, args.exclude_rows, args.image_column), lengths)
