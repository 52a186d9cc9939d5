"""Make a data set folder that train_segmentation.py reads from ARTeFACT, from the Hub or from files.

    python data_prep/prepare_artefact.py --output_dir data/artefact
    python data_prep/prepare_artefact.py --dataset_name downloads/damaged-media --tile 512 --output_dir data/tiles
    python data_prep/prepare_artefact.py --root downloads/artefact --split_by content --output_dir data/by_content

ARTeFACT: Ivanova et al., WACV 2025, danielaivanova/damaged-media on the Hub. A local folder (--root) has `images/`,
`annotations/` and `metadata.csv` with the columns id, material, content and perhaps others. Scans of more than a
hundred megapixels are reduced or cut without decoding them as a whole. Rows that cannot be used are left out and
listed in problems.csv. A run that was interrupted goes on when the same command is given again. What is in the folder:
data_prep/README.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

if not __package__:  # run as a script: Python then looks for modules beside this file, not in the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common.run.command import run
from data_prep.options import PrepareOptions, add_options, parse

HIERARCHY = Path(__file__).resolve().parents[1] / "hierarchies" / "artefact.yaml"
HUB_ID = "danielaivanova/damaged-media"
DEFAULT_LONGER = 2048
MAX_MEGAPIXELS = 300.0


@dataclass
class ArtefactOptions(PrepareOptions):
    """The options of this script; see ``--help``."""

    dataset_name: str | None = None
    root: str | None = None
    hierarchy: str = str(HIERARCHY)
    resize_longer: int | None = None
    full_size: bool = False
    tile: int | None = None
    split_by: str = "random"
    validation_values: list[str] = field(default_factory=list)
    test_values: list[str] = field(default_factory=list)
    validation_share: float = 0.2
    test_share: float = 0.0
    seed: int = 0
    max_megapixels: float = MAX_MEGAPIXELS

    def encodes(self) -> bool:
        return not self.full_size

    def how_stored(self) -> str:
        parts = []
        if self.longer():
            parts.append(f"images were reduced to a longer side of {self.longer()} pixels (JPEG, {self.quality})")
        if self.tile:
            parts.append(f"cut into tiles of {self.tile} pixels, whose place is in the columns tile_x and tile_y")
        told = " and ".join(parts) or "images are the original files"
        return f"{told[0].upper()}{told[1:]}; masks were reduced by nearest neighbour and are lossless."

    def longer(self) -> int | None:
        """The longer side that images are reduced to, or ``None``."""
        return self.resize_longer or (None if self.full_size or self.tile else DEFAULT_LONGER)


def prepare_artefact(options: ArtefactOptions) -> Path:
    """Prepare a folder; see :func:`data_prep.artefact_set.prepare_artefact`, which this calls."""
    from data_prep.artefact_set import prepare_artefact  # imports torch, which the workers must not: see shards.py

    return prepare_artefact(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = parser.add_argument_group("data")
    data.add_argument("--dataset_name", help=f"a folder or Hub id that load_dataset understands (default: {HUB_ID})")
    data.add_argument("--root", metavar="FOLDER", help="instead: holds images, annotations and metadata.csv")
    data.add_argument("--hierarchy", default=str(HIERARCHY), metavar="FILE", help="the classes in the order of values")
    images = parser.add_argument_group("images")
    images.add_argument(
        "--resize_longer",
        type=int,
        metavar="PIXELS",
        help=f"reduce to this longer side (default: {DEFAULT_LONGER}, with --tile none)",
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
    splits.add_argument("--seed", type=int, default=0, help="of the draw (default: %(default)s)")
    add_options(parser)
    parser.set_defaults(max_megapixels=MAX_MEGAPIXELS)
    return parser


def main(argv: Sequence[str] | None = None) -> Path:
    """Run the command line; returns the folder.

    Raises:
        ValueError: for anything the user can mend.
    """
    return prepare_artefact(parse(_parser(), ArtefactOptions, argv))


if __name__ == "__main__":
    run(main)
