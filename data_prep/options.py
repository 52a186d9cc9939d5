"""Options that the scripts which prepare data share; it imports nothing heavy: see shards.py."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from data_prep.stores import DEFAULT_MAX_MEGAPIXELS, Store

logger = logging.getLogger(__name__)

APART = {"output_dir", "num_proc", "strict", "exclude_rows"}
"""Options that decide nothing about what is in a folder, or whose effect is in the rows"""


@dataclass
class PrepareOptions:
    """What every script that prepares data can be told; see ``add_options`` for what each means."""

    output_dir: str = ""
    embed: bool = False
    resize_shorter: int | None = None
    quality: int = 92
    max_megapixels: float = DEFAULT_MAX_MEGAPIXELS
    exclude_rows: list[str] = field(default_factory=list)
    unseen: str = "blank"
    num_proc: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    strict: bool = False

    def check(self) -> None:
        """ValueError for numbers out of range; a warning for what has no effect."""
        problems = []
        if self.resize_shorter is not None and self.resize_shorter < 1:
            problems.append("--resize_shorter must be at least 1")
        if not 1 <= self.quality <= 100:
            problems.append("--quality must be from 1 to 100")
        if not self.max_megapixels > 0:
            problems.append("--max_megapixels must be greater than 0")
        if self.num_proc < 1:
            problems.append("--num_proc must be at least 1")
        if problems:
            raise ValueError("; ".join(problems) + ".")
        if self.quality != 92 and not self.encodes():
            logger.warning("--quality has no effect: images are stored as they are.")
        if self.max_megapixels > DEFAULT_MAX_MEGAPIXELS and not self.encodes():
            logger.warning("Images of more than 179 megapixels are stored as they are: the trainers will refuse them.")

    def encodes(self) -> bool:
        """Whether images are encoded anew."""
        return self.resize_shorter is not None

    def settings(self) -> dict[str, Any]:
        """Those that say what is in the folder: others, with the same data, make the same."""
        return {name: value for name, value in asdict(self).items() if name not in APART}

    def store(
        self, image_column: str, mask_column: str | None = None, *, embed: bool = False, num_classes: int | None = None
    ) -> Store:
        """How images are stored; embedded in any case if there are no files."""
        return Store(
            image_column,
            mask_column,
            embed=self.embed or embed,
            resize_shorter=self.resize_shorter,
            quality=self.quality,
            max_megapixels=self.max_megapixels,
            num_classes=num_classes,
        )

    def how_stored(self) -> str:
        """A sentence for the data set card."""
        if self.resize_shorter:
            return f"Images were reduced to a shorter side of {self.resize_shorter} pixels (JPEG, {self.quality})."
        if self.embed:
            return "Images are the original files' bytes."
        return "Images are paths, relative to a folder that `prepared.json` names."


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of :class:`PrepareOptions` but for how images are stored."""
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
        default=DEFAULT_MAX_MEGAPIXELS,
        help="larger images are left out before they are decoded (default: %(default)g)",
    )


def add_unseen_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--unseen``."""
    parser.add_argument(
        "--unseen",
        choices=("blank", "drop", "keep"),
        default="blank",
        help="classes that only validation or test have, which the trainers refuse: blank those levels (default), "
        "drop the rows, or keep both",
    )


def add_store_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how images are stored."""
    group = parser.add_argument_group("images: their paths are stored unless one of these is given")
    group.add_argument("--embed", action="store_true", help="store the files' bytes as they are")
    group.add_argument(
        "--resize_shorter",
        type=int,
        metavar="PIXELS",
        help="reduce to this shorter side, encode once as JPEG (masks as PNG) and store that",
    )
    group.add_argument("--quality", type=int, default=92, help="of that JPEG (default: %(default)s)")


def parse(parser: argparse.ArgumentParser, kind: type, argv: Any) -> Any:
    """The command line as an object of the options' class, and logging as plain lines on stderr."""
    logging.basicConfig(format="%(message)s", level=os.environ.get("LOGLEVEL", "INFO"), stream=sys.stderr, force=True)
    for name in ("httpx", "PIL", "fsspec", "datasets", "filelock", "pyvips"):
        logging.getLogger(name).setLevel(logging.WARNING)
    given = vars(parser.parse_args(argv))
    known = {entry.name for entry in fields(kind)}
    assert set(given) <= known, "every option of the command line has a field"
    return kind(**given)
