"""Options that the prepare_* commands share."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Mapping, Sequence

from .images import DEFAULT_MAX_MEGAPIXELS

logger = logging.getLogger(__name__)


def add_options(parser: argparse.ArgumentParser, max_megapixels: float = DEFAULT_MAX_MEGAPIXELS) -> None:
    """Add the options that are the same for all sources."""
    group = parser.add_argument_group("output")
    group.add_argument("--output_dir", required=True, help="folder to write; it appears when it is finished")
    group.add_argument(
        "--exclude_rows", nargs="+", default=[], metavar="FILE", help="problems.csv files that list rows to leave out"
    )
    group.add_argument("--strict", action="store_true", help="a row that would be left out is an error instead")
    group.add_argument(
        "--num_proc", type=int, default=len(os.sched_getaffinity(0)), help="processes (default: one per CPU core)"
    )
    group.add_argument(
        "--max_megapixels",
        type=float,
        default=max_megapixels,
        help="larger images are left out before they are decoded (default: %(default)g)",
    )


def add_table_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for classes without training images, and for how images are stored."""
    parser.add_argument(
        "--unseen",
        choices=("blank", "drop", "keep"),
        default="blank",
        help="classes that only validation or test have, which the trainers refuse: blank those levels (default), "
        "drop the rows, or keep both",
    )
    group = parser.add_argument_group("images: their paths are stored unless one of these is given")
    group.add_argument("--embed", action="store_true", help="store the files' bytes as they are")
    group.add_argument(
        "--resize_shorter",
        type=int,
        metavar="PIXELS",
        help="reduce to this shorter side, encode once as JPEG (masks as PNG) and store that",
    )
    group.add_argument("--quality", type=int, default=92, help="of that JPEG (default: %(default)s)")


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; messages become plain lines on stderr."""
    logging.basicConfig(format="%(message)s", level=os.environ.get("LOGLEVEL", "INFO"), stream=sys.stderr, force=True)
    for name in ("httpx", "PIL", "fsspec", "datasets", "filelock", "pyvips"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return parser.parse_args(argv)


def check_options(args: argparse.Namespace, encodes: bool) -> None:
    """ValueError for numbers out of range; a warning for what has no effect where no image is encoded again."""
    wrong = {
        "--resize_shorter must be at least 1": args.resize_shorter is not None and args.resize_shorter < 1,
        "--quality must be from 1 to 100": not 1 <= args.quality <= 100,
        "--max_megapixels must be greater than 0": not args.max_megapixels > 0,
        "--num_proc must be at least 1": args.num_proc < 1,
    }
    refuse(wrong)
    if args.quality != 92 and not encodes:
        logger.warning("--quality has no effect: images are stored as they are.")
    if args.max_megapixels > DEFAULT_MAX_MEGAPIXELS and not encodes:
        logger.warning("Images of more than 179 megapixels are stored as they are: the trainers will refuse them.")


def refuse(problems: Mapping[str, object]) -> None:
    """ValueError that names all problems that are true of the command line, if there are any."""
    if found := [message for message, wrong in problems.items() if wrong]:
        raise ValueError("; ".join(found) + ".")


def how_stored(args: argparse.Namespace) -> str:
    """A sentence for the data set card."""
    if args.resize_shorter:
        return f"Images were reduced to a shorter side of {args.resize_shorter} pixels (JPEG, {args.quality})."
    if args.embed:
        return "Images are the original files' bytes."
    return "Images are paths, relative to a folder that `prepared.json` names."
