"""The expensive part of preparing data: many processes, a file for every finished piece, none of it lost by a kill.

A worker finds, checks and stores the images of some rows, and writes an Arrow file of them in one step.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
from datasets import Dataset, Features, Value
from PIL import Image

from common.system.files import atomic_write
from data_prep.parts.parallel import run_pieces

from .images import BadRowError, ImageFile, Store, find_file

BATCH_BYTES = 16 << 20
BATCH_ROWS = 200
"""An Arrow file is written in batches of up to this many rows, fewer of large images: this bounds the memory"""

FACTS = {"at": "int64", "width": "int32", "height": "int32", "num_bytes": "int64"}
FACTS |= {"pixels": "string", "kind": "string", "told": "string"}
"""Columns beside the images: the number of the row; size, bytes stored, pixels of each mask value, as JSON; or, where
there is no image, the problem"""

Row = Sequence[str | None] | int
"""The names of a row's files, or where the row is in the data set that holds its images"""


@dataclass(frozen=True)
class PieceMaker:
    """What every worker needs to know: images are files below ``root``, or in the columns of the ``source``."""

    folder: Path
    store: Store
    root: str
    source: Dataset | None = None

    def make(self, piece: tuple[Path, int, Sequence[Row]]) -> None:
        """Write a piece: the file, the number of the first row, and the rows."""
        file, first, rows = piece
        # Plain structs, as datasets cuts the folders off the paths in an Image column when it saves one.
        kinds: dict[str, Any] = dict.fromkeys(self.store.columns, Value("string"))
        kinds |= dict.fromkeys(self.store.held, {"bytes": Value("binary"), "path": Value("string")})
        kinds |= {name: Value(kind) for name, kind in {**self.store.extra_columns, **FACTS}.items()}
        schema = Features(kinds).arrow_schema
        with (
            patch.object(Image, "MAX_IMAGE_PIXELS", None),  # the store's limit counts
            atomic_write(file, "wb", sync=True) as stream,
            pa.ipc.new_stream(stream, schema) as writer,
        ):
            for cells in self._batches(first, rows):
                writer.write_batch(pa.RecordBatch.from_pylist(cells, schema))

    def _batches(self, first: int, rows: Sequence[Row]) -> Iterator[list[dict[str, Any]]]:
        cells: list[dict[str, Any]] = []
        size = 0
        for number, row in enumerate(rows, start=first):
            try:
                made = self.store(*self._files(row))
            except BadRowError as error:
                made = [{"kind": error.kind, "told": str(error)}]
            for entry in made:
                if "size" in entry:
                    num_bytes = sum(len(entry[name]["bytes"]) for name in self.store.held)
                    width, height = entry.pop("size")
                    entry |= {"width": width, "height": height, "num_bytes": num_bytes}
                    entry["pixels"] = json.dumps(entry.get("pixels", {}))
                    size += num_bytes
                cells.append({"at": number, **entry})
                if size >= BATCH_BYTES or len(cells) >= BATCH_ROWS:
                    yield cells
                    cells, size = [], 0
        yield cells

    def _files(self, row: Row) -> Iterator[ImageFile | None]:
        """The image files of a row, ``None`` for a mask that may be missing; BadRowError if one is not there."""
        if self.source is None:
            yield from (find_file(self.root, name) if name else None for name in row)
            return
        for column, cell in self.source[row].items():
            content, name = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
            if not content and (column == self.store.image_column or self.store.missing is None):
                raise BadRowError("missing", "the row has no image")
            yield ImageFile(content, name or "") if content else None


def make_pieces(
    maker: PieceMaker, rows: Sequence[Row], size: int, num_proc: int, progress: Callable[[int], Any]
) -> list[Path]:
    """Make the pieces of ``size`` rows that are not finished yet, in ``num_proc`` processes; 1 is this one alone.

    ``progress`` is called with the number of rows of each piece as it is finished, or is found finished.

    Returns:
        The files of all pieces, in order: the store's columns, and FACTS.

    Raises:
        ValueError: a process was killed, most likely for lack of memory.
    """
    starts = range(0, len(rows), size)
    pieces = [(maker.folder / f"{start // size:05d}.arrow", start, rows[start : start + size]) for start in starts]
    missing = {number: piece for number, piece in enumerate(pieces) if not piece[0].is_file()}
    progress(len(rows) - sum(len(piece[2]) for piece in missing.values()))
    for number, _ in run_pieces(maker.make, missing, num_proc if num_proc > 1 else 0, _explain_crash):
        progress(len(missing[number][2]))
    return [piece[0] for piece in pieces]


def _explain_crash(piece: Any) -> None:
    raise ValueError(
        "A worker process was killed, perhaps because memory ran out; try a smaller --num_proc. What is finished "
        "is kept: the same command resumes there."
    )
