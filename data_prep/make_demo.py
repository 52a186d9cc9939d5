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

from demo.sets import make_artworks, make_taxonomy
from demo.sheets import draw_artworks_sheet, draw_fungarium_sheet

__all__ = ["main", "make_artworks", "make_taxonomy"]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; every kind of demo data is a sub-command.

    Raises:
        ValueError: see `make_taxonomy` and `make_artworks`.
    """
    parser = argparse.ArgumentParser(description="Make demo data sets that need no download.")
    commands = parser.add_subparsers(required=True)
    taxonomy = commands.add_parser("taxonomy", help="a small fungarium of invented species in a tree of six levels")
    taxonomy.set_defaults(make=make_taxonomy, draw_sheet=draw_fungarium_sheet, num_train=2000, num_validation=480)
    artworks = commands.add_parser("artworks", help="photographs of invented artworks with masks of their damage")
    artworks.set_defaults(make=make_artworks, draw_sheet=draw_artworks_sheet, num_train=400, num_validation=100)
    for command in (taxonomy, artworks):
        command.add_argument("--output_dir", required=True, help="folder to write; kept as it is where it is finished")
        command.add_argument("--num_train", type=int, help="number of training pictures (default %(default)s)")
        command.add_argument("--num_validation", type=int, help="number of validation pictures (default %(default)s)")
        command.add_argument("--seed", type=int, default=0, help="another one draws other specimens or artworks")
        command.add_argument("--contact_sheet", metavar="FILE.png", help="also draw a labelled grid of pictures")
    args = parser.parse_args(argv)
    sizes = {"num_train": args.num_train, "num_validation": args.num_validation}
    folder = args.make(args.output_dir, **sizes, seed=args.seed)
    print(f"The demo data are in {folder}")
    if args.contact_sheet:
        print(f"The contact sheet is {args.draw_sheet(folder, args.contact_sheet)}")


if __name__ == "__main__":
    main()
