"""Options that say how cells are read; it imports nothing heavy, see data_prep/folder/shards.py."""

from __future__ import annotations

from argparse import ArgumentParser, _ArgumentGroup


def add_reading_options(parser: ArgumentParser | _ArgumentGroup) -> None:
    """Add ``--missing_values`` and ``--image_suffix``, which the trainers have too."""
    parser.add_argument(
        "--missing_values",
        nargs="+",
        metavar="WORD",
        help="cells that mean blank, beside empty ones (default: NA N/A n/a NaN nan null NULL -)",
    )
    parser.add_argument("--image_suffix", metavar="ENDING", help="ending to add to image paths without it, as .jpg")
