"""The images to predict: from files, folders, patterns, a table or a prepared data set."""

from __future__ import annotations

import glob
import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from datasets import Dataset

from ..data.folders import IMAGE_ENDINGS, find_images, is_image, shown_name
from ..data.prepared import find_image_root
from ..data.problems import image_names
from ..data.rows import ImageRows
from ..data.splits import Reading, check_columns, get_split, load_splits, read_cells
from ..labels.table_files import TABLE_ENDINGS

logger = logging.getLogger(__name__)

SPLIT = "input"
"""Name of the data in messages"""


@dataclass
class ImageInputs:
    """Images to predict.

    Attributes:
        images: the encoded images, by row number.
        names: of every row: the path as given, the cell of the table, or the path in the data set (may be empty).
        rows: all columns of the table or data set; ``None`` for plain files.
    """

    images: ImageRows
    names: list[str]
    rows: Dataset | None = None

    def __len__(self) -> int:
        return len(self.names)

    def column(self, name: str) -> list[str | None]:
        """A column's cells as clean text, ``None`` where blank; ValueError if there is none of that name."""
        if self.rows is None:
            raise ValueError(f"There is no column {name!r}: the inputs are image files, not a table or data set.")
        check_columns(self.rows, [name], SPLIT)
        return read_cells(self.rows, name)

    def fingerprint(self) -> str:
        """A hash of the images' names, and of the sizes and dates of files."""
        digest = hashlib.sha256("\0".join(self.names).encode("utf-8", "surrogateescape"))
        if self.rows is not None:
            digest.update(self.rows._fingerprint.encode())
        for name in self.names if self.rows is None else ():
            facts = os.stat(name) if os.path.exists(name) else None
            digest.update(f"{facts.st_size} {facts.st_mtime_ns}\0".encode() if facts else b"missing\0")
        return digest.hexdigest()


def open_inputs(
    inputs: Sequence[str],
    image_column: str = "image",
    image_root: str | None = None,
    split: str | None = None,
    reading: Reading | None = None,
) -> ImageInputs:
    """Open the inputs of the command line.

    Args:
        inputs: image files, folders (searched with all below them) and patterns such as ``photos/**/*.jpg``; or one
            table (CSV, TSV, TXT, XLSX, JSON lines, Parquet), or ``.txt`` file with the name of an image in each line;
            or one folder written by ``save_to_disk``.
        image_column: of a table or data set.
        image_root: folder that paths in a table lie in, and may not leave; that of the table by default.
        split: of a data set with several.
        reading: how cells are read.

    Raises:
        ValueError: if an input does not exist or cannot be read, or there is no image.
    """
    special = [entry for entry in inputs if _is_table(entry) or _is_prepared(entry)]
    listed = _read_list(special[0], image_root, reading) if len(inputs) == 1 and special else []
    if not special or listed:
        paths = [shown_name(path) for path in listed or list_images(inputs)]
        return ImageInputs(ImageRows(Dataset.from_dict({"image": paths}), "image", SPLIT), paths)
    name = special[0]
    if len(inputs) > 1:
        raise ValueError(f"{name} is a table or a data set: give it as the only input.")
    if _is_table(name):
        splits, split, root = load_splits(name, None, {SPLIT: name}, reading), SPLIT, Path(name).parent
    else:
        splits, root = load_splits(name, None, {}, reading), find_image_root(name)
        if split is None and len(splits) > 1:
            raise ValueError(f"{name} has several splits; choose one with --split: {', '.join(splits)}.")
    rows = get_split(splits, split or next(iter(splits)), name if _is_table(name) else "--split")
    return ImageInputs(ImageRows(rows, image_column, SPLIT, image_root or root), image_names(rows, image_column), rows)


def _is_table(name: str) -> bool:
    return Path(name).suffix.lower() in TABLE_ENDINGS and Path(name).is_file()


def _read_list(name: str, image_root: str | None, reading: Reading | None) -> list[str]:
    """The images that a text file names, one a line; none if it is a table."""
    if Path(name).suffix.lower() != ".txt":
        return []
    root, suffix = image_root or os.path.dirname(name), (reading and reading.suffix) or ""
    lines = [line.strip() for line in Path(name).read_text("utf-8-sig", "surrogateescape").splitlines()]
    paths = [os.path.join(root, line if is_image(line) else line + suffix) for line in lines if line]
    return paths if paths and (is_image(paths[0]) or os.path.isfile(paths[0])) else []


def _is_prepared(name: str) -> bool:
    return any((Path(name) / file).is_file() for file in ("dataset_dict.json", "state.json"))


def list_images(inputs: Sequence[str]) -> list[str]:
    """Paths of image files, those of a folder or pattern in sorted order; no file twice, no hidden file.

    In folders and patterns images are told by their endings; a file that is given by its name may have any.

    Raises:
        ValueError: if an input does not exist, or there is no image in it.
    """
    real, known = cache(os.path.realpath), {}
    for entry in inputs:
        if os.path.isfile(entry):
            here = [entry]
        elif os.path.isdir(entry):
            found = find_images(entry, outside=True)
            here = [os.path.join(entry, name) for name in found.names]
            for note in found.notes:
                logger.info("%s", note)
        elif glob.has_magic(entry):
            matches = sorted(glob.glob(entry, recursive=True))
            here = [path for path in matches if os.path.isfile(path) and is_image(path)]
        else:
            raise ValueError(f"There is no file or folder {entry}.")
        if not here:
            raise ValueError(f"There is no image in {entry} (no file name ends in {', '.join(IMAGE_ENDINGS)}).")
        for path in here:
            known.setdefault((real(os.path.dirname(path)), os.path.basename(path)), path)
    return list(known.values())
