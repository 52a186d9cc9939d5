"""Make a data set folder that the trainers read from a table of images, or from a tree of folders.

    python data_prep/prepare_table.py --table data/fungi.csv --image_column file --group_column observation \\
        --level_columns family genus species --output_dir data/fungi
    python data_prep/prepare_table.py --image_folder photos --resize_shorter 256 --output_dir data/photos
    python data_prep/prepare_table.py --table data/tiles.csv --mask_column mask --taxonomy data/damage.yaml \\
        --group_column artwork --output_dir data/damage

Rows that cannot be used are left out and listed in problems.csv. A run that was interrupted resumes when the same
command is given again. What is in the folder: data_prep/README.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script: Python then looks for modules beside this file, not in the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common.run.command import run
from data_prep.parts.reading import add_reading_options
from data_prep.sources.options import add_options, add_table_options, parse


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
    columns = parser.add_argument_group("columns of the table")
    columns.add_argument("--image_column", default="image", help="paths, or in Parquet images (default: %(default)s)")
    columns.add_argument("--image_root", metavar="FOLDER", help="paths start here and may not leave it")
    columns.add_argument("--mask_column", help="paths of masks, for segmentation; needs --taxonomy")
    columns.add_argument(
        "--level_columns", nargs="+", default=[], help="coarse to fine; with --image_folder, the tiers of folders"
    )
    columns.add_argument("--label_column", help="one label per image; a path of labels with --taxonomy")
    columns.add_argument("--taxonomy", metavar="FILE", help="the label tree: CSV (one row per leaf), JSON or YAML")
    columns.add_argument("--group_column", help="observation, artwork, ...: what must not be in two splits")
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
    """Run the command line; returns the folder. Raises ValueError for anything that the user can fix."""
    args = parse(_parser(), argv)
    from data_prep.sources.table import prepare_table  # here, as worker processes import this file, see shards.py

    return prepare_table(args)


if __name__ == "__main__":
    run(main)
