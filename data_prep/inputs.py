"""What the scripts of this folder read: the options for it, which are the trainers', and the splits behind them."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
from datasets import Dataset, DatasetDict

from common.data.prepared import SelectionSource
from common.data.problems import kept_rows, leave_out
from common.data.rows import ImageRows
from common.data.splits import LabelColumns, load_splits
from common.labels.hierarchy_files import find_hierarchy
from common.run.setup import image_root

SPLITS = ("train", "validation", "test")
"""Those that a file can be given for, the one to learn from first"""


def add_inputs(parser: argparse.ArgumentParser, masks: bool = False) -> None:
    """Add the options that say where the images (and masks) are."""
    group = parser.add_argument_group("data")
    group.add_argument("--dataset_name", help="a prepared folder, a folder of images, or an id on the Hub")
    group.add_argument("--dataset_config_name", help="configuration of the data set on the Hub")
    for split in SPLITS:
        group.add_argument(f"--{split}_file", help=f"CSV, TSV, JSON lines or Parquet file of the {split} split")
    group.add_argument("--image_root", help="folder that image paths lie in; by default that of the file")
    group.add_argument("--image_column", default="image", help="column with the images, or their paths")
    if masks:
        group.add_argument("--mask_column", help="column with the masks, or their paths")
    group.add_argument("--exclude_rows", nargs="+", default=[], metavar="FILE", help="problems.csv: rows to leave out")


def add_labels(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where the labels are."""
    group = parser.add_argument_group("labels")
    group.add_argument("--level_columns", nargs="+", metavar="COLUMN", help="one column a level, coarse to fine")
    group.add_argument("--label_column", help="or one column, whose values are classes of --hierarchy")
    group.add_argument("--hierarchy", help="file with the label tree: CSV of paths, JSON or YAML")


def label_columns(args: argparse.Namespace) -> LabelColumns:
    """What those options say."""
    tree = args.hierarchy or (args.label_column and hierarchy_beside(args))
    return LabelColumns(args.level_columns, args.label_column, str(tree) if tree else None)


def add_num_proc(parser: argparse.ArgumentParser) -> None:
    """Add the option for the number of processes."""
    parser.add_argument(
        "--num_proc",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="processes that decode; 0 to work in this one, where a decoder that crashes ends the script",
    )


@dataclass
class Inputs:
    """The splits to work on, and the number that each of their rows has in the data set."""

    splits: DatasetDict
    numbers: dict[str, np.ndarray]
    num_rows: dict[str, int]  # of the data set, with those that are left out

    def settings(self, *more: object) -> str:
        """What results depend on, as a text: the data and whatever else is given."""
        data = [(split, dataset._fingerprint, len(dataset)) for split, dataset in self.splits.items()]
        return repr((data, *more))


def open_inputs(args: argparse.Namespace) -> Inputs:
    """The splits, the one to learn from first, without rows to exclude; ValueError if there is nothing."""
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    files = {split: getattr(args, f"{split}_file") for split in SPLITS}
    if bool(args.dataset_name) == any(files.values()):
        raise ValueError("Say where the data are: --dataset_name NAME, or --train_file FILE and others like it.")
    found = load_splits(args.dataset_name or "", args.dataset_config_name, files)
    order = [*(name for name in SPLITS if name in found), *(name for name in found if name not in SPLITS)]
    splits = DatasetDict({name: found[name] for name in order})
    if not sum(map(len, splits.values())):
        raise ValueError("The data set has no rows.")
    lengths = {split: len(dataset) for split, dataset in splits.items()}
    numbers = kept_rows(splits, args.exclude_rows, args.image_column)
    return Inputs(leave_out(splits, args.exclude_rows, args.image_column), numbers, lengths)


def rows_of(args: argparse.Namespace, split: str, dataset: Dataset, column: str) -> ImageRows:
    """The images of one split, or its masks."""
    return ImageRows(dataset, column, split, root_of(args, split))


def root_of(args: argparse.Namespace, split: str) -> Path:
    """The folder that a split's paths lie in."""
    return image_root(args, getattr(args, f"{split}_file", None))


def source_of(args: argparse.Namespace, inputs: Inputs) -> SelectionSource:
    """The data set as the source of a selection; ValueError if its splits' images lie in different folders."""
    files = {split: file for split in SPLITS if (file := getattr(args, f"{split}_file"))}
    roots = {os.path.abspath(root_of(args, split)) for split in inputs.splits}
    if len(roots) > 1:
        raise ValueError("The files lie in different folders: say where the images are with --image_root.")
    return SelectionSource(args.dataset_name, args.dataset_config_name, files, roots.pop(), inputs.num_rows)


def hierarchy_beside(args: argparse.Namespace) -> Path | None:
    """The label tree that lies beside a prepared data set, if there is one."""
    try:
        return find_hierarchy(args.dataset_name) if args.dataset_name else None
    except ValueError:
        return None
