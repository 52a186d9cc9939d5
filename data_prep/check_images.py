"""Decode every image and mask, and list what is wrong with them.

    python data_prep/check_images.py --dataset_name DIR --output_dir DIR [--mask_column mask --hierarchy FILE]
    python data_prep/check_images.py --train_file a.csv --image_column file --image_root DIR --output_dir DIR

Writes problems.csv, a line for each row and problem, which --exclude_rows of the trainers and the other
scripts takes:

    missing              no file, or the row names none
    outside of the root  the path leaves --image_root
    broken               does not decode to its end
    crashes the decoder  ends the process that decodes it, or needs more memory than there is
    wrong type           the name says another format than the content is
    tiny, too large      --min_side, --max_megapixels (not decoded)
    mask: ...            the same for masks; also values that are not classes, and another size than the image's

Exit status: 0 if nothing is wrong, 1 if something is, 2 if the script cannot do its work.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest.mock import patch

if not __package__:  # run as a script: Python then looks for modules beside this file, not in the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from PIL import Image

from common.data.masks import MaskReader
from common.data.problems import Problem, write_problems
from common.data.rows import ImageRows
from common.images.files import BAD_IMAGE, check_file, decoding, explain, load_image
from common.run.command import run
from data_prep.folder.images import BadRowError, find_file
from data_prep.parts.inputs import input_parser, open_inputs, read_masks
from data_prep.parts.parallel import map_rows, work_folder

KINDS = {"JPEG", "PNG", "TIFF", "GIF", "BMP", "WEBP"}
"""Of files whose names must not say another of these kinds"""

CRASH = {"problems": json.dumps([("crashes the decoder", "decoding it ends the process, or needs too much memory")])}


@dataclass
class Checker:
    """Says what is wrong with the rows of a split, and with their masks if there are some.

    The shorter side must have ``min_side`` pixels; more than ``max_megapixels`` are not decoded.
    """

    images: ImageRows
    masks: ImageRows | None
    reader: MaskReader | None
    min_side: int
    max_megapixels: float

    def check(self, row: int) -> dict[str, str]:
        """``problems``: of one row, a list of kind and sentence, as JSON."""
        with patch.object(Image, "MAX_IMAGE_PIXELS", None):  # the limit is ours
            size, problems = self._image(self.images, row, None)
            if self.masks is not None:
                lying = size and self.reader.raw
                turned = check_file(self.images.encoded([row])[0])[2] if lying else 1
                mask_size, others = self._image(self.masks, row, partial(self.reader, turned=turned))
                problems += [(f"mask: {kind}", text) for kind, text in others if kind != "tiny"]
                if size and mask_size and size != mask_size:
                    told = f"it is {mask_size[0]} x {mask_size[1]} pixels large, its image {size[0]} x {size[1]}"
                    problems.append(("mask: other size", told))
            return {"problems": json.dumps(problems)}

    def _image(
        self, rows: ImageRows, row: int, reader: Callable[..., np.ndarray] | None
    ) -> tuple[tuple[int, int] | None, list[tuple[str, str]]]:
        """Width and height if it decodes, and what is wrong."""
        source = rows.encoded([row])[0]
        try:
            if not source:
                raise BadRowError("missing", "the row has no image")
            if isinstance(source, str):
                find_file(rows.root, source)
            size, problems = self._header(source, rows.name(row))
            if any(kind == "too large" for kind, _ in problems):
                return None, problems
            return load_image(source).size if reader is None else reader(source).shape[::-1], problems
        except BadRowError as error:
            return None, [(error.kind, str(error))]
        except MemoryError:
            return None, [("too large", f"{size[0]} x {size[1]} pixels need more memory than there is")]
        except BAD_IMAGE as error:
            unknown = reader is not None and isinstance(error, ValueError) and not isinstance(error, OSError)
            return None, [("values" if unknown else "broken", explain(error))]

    def _header(self, source: bytes | str, name: str) -> tuple[tuple[int, int], list[tuple[str, str]]]:
        problems = []
        with decoding(), Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            (width, height), kind = image.size, image.format.replace("MPO", "JPEG")
        ending = os.path.splitext(name)[1].lower()
        named = Image.registered_extensions().get(ending)
        if {named, kind} <= KINDS and named != kind:
            problems.append(("wrong type", f"its name ends with {ending}, but it is a {kind} file"))
        if width * height > self.max_megapixels * 1e6:
            problems.append(("too large", f"{width} x {height} pixels are over {self.max_megapixels:g} megapixels"))
        elif min(width, height) < self.min_side:
            problems.append(("tiny", f"{width} x {height} pixels; a side is under {self.min_side}"))
        return (width, height), problems


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status. Raises ValueError for anything that the user can fix."""
    parser = input_parser(__doc__, masks=True, num_proc=True)
    parser.add_argument("--hierarchy", help="label tree that masks are read with; by default the one of the data set")
    parser.add_argument("--mask_orientation", choices=("upright", "raw"), default="upright", help="as in training")
    parser.add_argument("--min_side", type=int, default=16, help="pixels that the shorter side must have")
    parser.add_argument("--max_megapixels", type=float, default=180.0, help="larger images are not decoded")
    parser.add_argument("--output_dir", required=True, help="folder for problems.csv")
    args = parser.parse_args(argv)
    inputs = open_inputs(args)
    hierarchy, reader = read_masks(args)
    images, masks = inputs.images(), inputs.images(args.mask_column) if args.mask_column else {}
    output = Path(args.output_dir)
    tree = reader and (hierarchy.to_dict(), reader.palette, reader.ignored, reader.raw)
    problems: list[Problem] = []
    with work_folder(output, inputs.settings("check", tree, args.min_side, args.max_megapixels)) as folder:
        for split, rows in images.items():
            checker = Checker(rows, masks.get(split), reader, args.min_side, args.max_megapixels)
            # 32 rows a chunk, because one that ends its process takes the others along, to be done again
            how = {"num_proc": args.num_proc, "chunk_rows": 32}
            found = map_rows(checker.check, lambda row: CRASH, range(len(rows)), folder, split, **how)["problems"]
            problems += [
                Problem(split, int(number), name, kind, told)
                for number, name, text in zip(inputs.numbers[split], inputs.image_names(split), found, strict=True)
                for kind, told in json.loads(str(text))
            ]
        output.mkdir(parents=True, exist_ok=True)
        write_problems(output / "problems.csv", problems)
    for (split, kind), count in sorted(Counter((problem.split, problem.kind) for problem in problems).items()):
        print(f"{split}: {kind}: {count}")
    num_rows = sum(map(len, inputs.splits.values()))
    told = f"; {output / 'problems.csv'} lists them" if problems else ""
    num_bad = len({(problem.split, problem.row) for problem in problems})
    print(f"{num_rows} rows checked, {num_bad} with problems{told}.")
    return 1 if problems else 0


if __name__ == "__main__":
    run(lambda: sys.exit(main()))
