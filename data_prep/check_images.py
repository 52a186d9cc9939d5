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
    mask: ...            the same for masks, and values that are no class, another size than the image's

Exit status: 0 if nothing is wrong, 1 if something is, 2 if the script cannot do its work.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run as a script: Python then looks for modules beside this file, not in the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from PIL import Image

from common.data.masks import MaskReader
from common.data.problems import Problem, write_problems
from common.data.rows import ImageRows
from common.images.files import BAD_IMAGE, explain, load_image
from data_prep.parts.inputs import add_inputs, add_num_proc, add_palette, open_inputs, read_masks
from data_prep.parts.parallel import run_chunks, work_folder

ENDINGS = {"JPEG": {".jpg", ".jpeg", ".jpe", ".jfif"}, "MPO": {".jpg", ".jpeg", ".jpe", ".mpo"}}
ENDINGS |= {"PNG": {".png", ".apng"}, "TIFF": {".tif", ".tiff"}, "GIF": {".gif"}, "BMP": {".bmp", ".dib"}}
ENDINGS |= {"WEBP": {".webp"}}
Found = tuple[str, str]  # kind, sentence


@dataclass
class Check:
    """The checks of a split's rows; see :class:`data_prep.parts.parallel.RowWork`.

    Results are ``row``, ``kind`` and ``problem``, an entry a problem.

    Args:
        images: to decode.
        masks: of the same rows, or ``None``.
        reader: of the masks.
        min_side: pixels that the shorter side must have.
        max_megapixels: more are not decoded.
    """

    images: ImageRows
    masks: ImageRows | None
    reader: MaskReader | None
    min_side: int
    max_megapixels: float

    def run(self, rows: Sequence[int]) -> dict[str, np.ndarray]:
        """Check rows."""
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # the limit is ours
        try:
            return _columns(self._problems(rows))
        finally:
            Image.MAX_IMAGE_PIXELS = limit

    def _problems(self, rows: Sequence[int]) -> list[tuple[int, str, str]]:
        found = []
        masks = self.masks.encoded(rows) if self.masks else [None] * len(rows)
        for row, source, mask in zip(rows, self.images.encoded(rows), masks, strict=True):
            size, problems = self._image(self.images, row, source, None)
            if self.masks is not None:
                mask_size, others = self._image(self.masks, row, mask, self.reader)
                problems += [(f"mask: {kind}", text) for kind, text in others if kind != "tiny"]
                if size and mask_size and size != mask_size:
                    told = f"it is {mask_size[0]} x {mask_size[1]} pixels large, its image {size[0]} x {size[1]}"
                    problems.append(("mask: other size", told))
            found += [(row, *problem) for problem in problems]
        return found

    def lost(self, row: int) -> dict[str, np.ndarray]:
        """A row that ended the process."""
        return _columns([(row, "crashes the decoder", "decoding it ends the process, or needs too much memory")])

    def _image(
        self, rows: ImageRows, row: int, source: bytes | str | None, reader: MaskReader | None
    ) -> tuple[tuple[int, int] | None, list[Found]]:
        """Width and height if it decodes, and what is wrong."""
        if not source or (isinstance(source, str) and not os.path.lexists(source)):
            return None, [("missing", f"there is no file {source}" if source else "the row has no image")]
        try:
            rows.checked(source)
        except ValueError as error:
            return None, [("outside of the root", str(error))]
        if not (len(source) if isinstance(source, bytes) else os.path.exists(source) and os.path.getsize(source)):
            return None, [("broken", "the file is empty")]
        try:
            size, problems = self._header(source, _name(rows, row, source))
            if any(kind == "too large" for kind, _ in problems):
                return None, problems
            if reader is None:
                return load_image(source).size, problems
            return reader(source).shape[::-1], problems
        except MemoryError:
            return None, [("too large", f"{size[0]} x {size[1]} pixels need more memory than there is")]
        except BAD_IMAGE as error:
            foreign = reader is not None and isinstance(error, ValueError) and not isinstance(error, OSError)
            return None, [("values" if foreign else "broken", explain(error))]

    def _header(self, source: bytes | str, name: str) -> tuple[tuple[int, int], list[Found]]:
        problems = []
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            (width, height), kind = image.size, image.format
        ending = os.path.splitext(name)[1].lower()
        if ending not in ENDINGS.get(kind, {ending}) and ending in set().union(*ENDINGS.values()):
            problems.append(("wrong type", f"its name ends with {ending}, but it is a {kind} file"))
        if width * height > self.max_megapixels * 1e6:
            problems.append(("too large", f"{width} x {height} pixels are over {self.max_megapixels:g} megapixels"))
        elif min(width, height) < self.min_side:
            problems.append(("tiny", f"{width} x {height} pixels; a side is under {self.min_side}"))
        return (width, height), problems


def _name(rows: ImageRows, row: int, source: bytes | str) -> str:
    if isinstance(source, str):
        return source
    return (rows.rows[row][rows.column] or {}).get("path") or ""


def _columns(found: Sequence[tuple[int, str, str]]) -> dict[str, np.ndarray]:
    rows, kinds, problems = zip(*found, strict=True) if found else ((), (), ())
    return {
        "row": np.array(rows, dtype=np.int64),
        "kind": np.array(kinds, dtype=np.str_),
        "problem": np.array(problems, dtype=np.str_),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_inputs(parser, masks=True)
    parser.add_argument("--hierarchy", help="label tree that masks are read with; by default the one of the data set")
    add_palette(parser)
    parser.add_argument("--min_side", type=int, default=16, help="pixels that the shorter side must have")
    parser.add_argument("--max_megapixels", type=float, default=180.0, help="larger images are not decoded")
    parser.add_argument("--output_dir", required=True, help="folder for problems.csv")
    add_num_proc(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status. Raises ValueError for anything that the user can fix."""
    args = _parser().parse_args(argv)
    inputs = open_inputs(args)
    hierarchy, reader = read_masks(args)
    images, masks = inputs.images(), inputs.images(args.mask_column) if args.mask_column else {}
    output = Path(args.output_dir)
    tree = reader and (hierarchy.to_dict(), reader.palette)
    problems: list[Problem] = []
    with work_folder(output, inputs.settings("check", tree, args.min_side, args.max_megapixels)) as folder:
        for split, rows in images.items():
            check = Check(rows, masks.get(split), reader, args.min_side, args.max_megapixels)
            # 32 rows, because one that ends its process takes them along, to be done again
            found = run_chunks(check, len(rows), folder, split, num_proc=args.num_proc, chunk_rows=32)
            names, numbers = inputs.image_names(split), inputs.numbers[split]
            problems += [
                Problem(split, int(numbers[row]), names[row], str(kind), str(problem))
                for row, kind, problem in zip(found["row"], found["kind"], found["problem"], strict=True)
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
    from common.run.command import run

    run(lambda: sys.exit(main()))
