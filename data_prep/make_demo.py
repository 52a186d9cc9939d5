"""Make the demo data sets that need no download.

    python data_prep/make_demo.py taxonomy --output_dir DIR [--num_train 2000] [--num_validation 480] [--seed 0]
    python data_prep/make_demo.py artworks --output_dir DIR [--num_train 400] [--num_validation 100] [--seed 0]

`taxonomy` draws a fungarium: pictures of invented fungi, each labelled with its path through an invented tree of six
levels. All names and looks are made up; nothing in it helps to tell real fungi apart.

`artworks` draws photographs of invented artworks with damage, and masks that say which damage each pixel shows.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script: Python then looks for modules beside this file, not in the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])


from demo.sets import draw_artworks_sheet, draw_fungarium_sheet, make_artworks, make_taxonomy

__all__ = ["main", "make_artworks", "make_taxonomy"]


def _run(arguments: argparse.Namespace) -> None:
    make, draw_sheet, name = {
        "taxonomy": (make_taxonomy, draw_fungarium_sheet, "fungarium"),
        "artworks": (make_artworks, draw_artworks_sheet, "artworks data"),
    }[arguments.command]
    sizes = {"num_train": arguments.num_train, "num_validation": arguments.num_validation}
    folder = make(arguments.output_dir, **sizes, seed=arguments.seed)
    print(f"The {name} {'is' if name == 'fungarium' else 'are'} in {folder}")
    if arguments.contact_sheet:
        print(f"The contact sheet is {draw_sheet(folder, arguments.contact_sheet)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Make demo data sets that need no download.")
    commands = parser.add_subparsers(dest="command", required=True)
    taxonomy = commands.add_parser("taxonomy", help="a small fungarium of invented species in a tree of six levels")
    _add_options(taxonomy, 2000, 480, "pictures", "draws other specimens of the same species")
    artworks = commands.add_parser("artworks", help="photographs of invented artworks with masks of their damage")
    _add_options(artworks, 400, 100, "photographs", "draws other artworks")
    return parser


def _add_options(command: argparse.ArgumentParser, train: int, validation: int, what: str, seed: str) -> None:
    command.add_argument("--output_dir", required=True, help="folder to write; kept as it is where it is finished")
    command.add_argument("--num_train", type=int, default=train, help=f"number of training {what}")
    command.add_argument("--num_validation", type=int, default=validation, help=f"number of validation {what}")
    command.add_argument("--seed", type=int, default=0, help=seed)
    command.add_argument("--contact_sheet", metavar="FILE.png", help=f"also draw a labelled grid of {what}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; every kind of demo data is a sub-command.

    Raises:
        ValueError: see `make_taxonomy` and `make_artworks`.
    """
    _run(_parser().parse_args(argv))


if __name__ == "__main__":
    main()
