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
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script: Python then looks for modules beside this file, not in the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common.run.command import run
from data_prep.sources.options import add_options, parse

HIERARCHY = Path(__file__).resolve().parents[1] / "hierarchies" / "artefact.yaml"


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
    """Run the command line; returns the folder. Raises ValueError for anything that the user can fix."""
    args = parse(_parser(), argv)
    from data_prep.sources.artefact import prepare_artefact  # here, as worker processes import this file

    return prepare_artefact(args)


if __name__ == "__main__":
    run(main)
