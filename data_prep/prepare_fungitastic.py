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
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script: Python then looks for modules beside this file, not in the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common.run.command import run
from data_prep.sources.options import add_options, add_table_options, parse

KEPT = [
    "category_id", "scientificName", "poisonous", "eventDate", "habitat", "substrate", "latitude", "longitude",
]  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = parser.add_argument_group("data")
    data.add_argument("--root", required=True, metavar="FOLDER", help="holds metadata and the images")
    data.add_argument("--subset", choices=("full", "mini", "fewshot"), default="full", help="(default: %(default)s)")
    data.add_argument(
        "--size",
        choices=("300", "500", "720", "fullsize"),
        help="of the images; by default the smallest that is there",
    )
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
    """Run the command line; returns the folder. Raises ValueError for anything that the user can fix."""
    args = parse(_parser(), argv)
    from data_prep.sources.fungitastic import prepare_fungitastic  # here: worker processes import this file

    return prepare_fungitastic(args)


if __name__ == "__main__":
    run(main)
