"""The expensive part of preparing data: many processes, files for every finished piece, none of it lost by a kill.

A worker finds, checks and stores the images of some rows. It writes an Arrow file with them, and then a JSON file
beside it with what it found out, each in one step: a piece with a JSON file is finished.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from common.files import atomic_write
from data_prep.parts.parallel import run_pieces

from .images import BadRowError, ImageFile, Store, find_file

BATCH_BYTES = 16 << 20
BATCH_ROWS = 200
"""An Arrow file is written in batches of up to this many rows, fewer of large images: this bounds the memory"""

Row = Sequence[str] | int
"""The names of a row's files, or where the row is in the Arrow files that hold its images"""


@dataclass(frozen=True)
class PieceMaker:
    """What every worker needs to know.

    Args:
        folder: for the pieces' files.
        schema: of the Arrow files.
        store: turns image files into cells.
        root: folder of the images, without symbolic links; empty if they are in ``sources``.
        sources: Arrow files that together are a table with the images themselves.
        source_columns: the image columns there.
    """

    folder: Path
    schema: pa.Schema
    store: Store
    root: str
    sources: Sequence[str] = ()
    source_columns: Sequence[str] = ()

    @cached_property
    def _source(self) -> pa.Table:
        return pa.concat_tables([open_arrow(path) for path in self.sources])

    def make(self, piece: tuple[str, int, Sequence[Row]]) -> None:
        """Write the files of a piece: its name, the number of its first row, and its rows."""
        name, first, rows = piece
        found: dict[str, list] = {"rows": [], "problems": []}
        pillows_limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # the store's limit counts
        try:
            write_arrow(self.folder / f"{name}.arrow", self.schema, self._batches(first, rows, found))
        finally:
            Image.MAX_IMAGE_PIXELS = pillows_limit
        with atomic_write(self.folder / f"{name}.json", sync=True) as file:
            json.dump(found, file)

    def _batches(self, first: int, rows: Sequence[Row], found: dict[str, list]) -> Iterator[pa.RecordBatch]:
        cells: list[dict[str, Any]] = []
        size = 0
        for number, row in enumerate(rows, start=first):
            try:
                made = self.store(*self._files(row))
            except BadRowError as error:
                found["problems"].append((number, error.kind, str(error)))
                continue
            for entry in made:
                num_bytes = sum(len(entry[name]["bytes"]) for name in self.store.columns if self.store.embeds)
                found["rows"].append((number, *entry.pop("size"), num_bytes, entry.pop("pixels", {})))
                cells.append(entry)
                size += num_bytes
                if size >= BATCH_BYTES or len(cells) >= BATCH_ROWS:
                    yield pa.RecordBatch.from_pylist(cells, self.schema)
                    cells, size = [], 0
        if cells:
            yield pa.RecordBatch.from_pylist(cells, self.schema)

    def _files(self, row: Row) -> Iterator[ImageFile]:
        """The image files of a row; BadRowError if one is not there."""
        if not self.sources:
            yield from (find_file(self.root, name) for name in row)
            return
        for column in self.source_columns:
            cell = self._source[column][row].as_py()
            content, name = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
            if not content:
                raise BadRowError("missing", "the row has no image")
            yield ImageFile(content, name or "")


def make_pieces(
    maker: PieceMaker, rows: Sequence[Row], size: int, num_proc: int, progress: Callable[[int], Any]
) -> dict[str, Mapping[str, list]]:
    """Make the pieces that are not finished yet.

    Args:
        maker: what to do.
        rows: all of them.
        size: rows a piece.
        num_proc: processes; they live as long as this call and this process. 1 for this process alone.
        progress: is called with the number of rows of each piece as it is finished, or is found finished.

    Returns:
        Name of each piece, in order, and what is known of it: ``rows``, for each entry of the Arrow file (number of
        its row, width, height, bytes embedded, pixels of each mask value), and ``problems``, of rows that are in none:
        (number, kind, sentence).

    Raises:
        ValueError: a process was killed, most likely for lack of memory.
    """
    pieces = [(f"{start // size:05d}", start, rows[start : start + size]) for start in range(0, len(rows), size)]
    missing = {}
    for number, piece in enumerate(pieces):
        if (maker.folder / f"{piece[0]}.json").is_file():
            progress(len(piece[2]))
        else:
            missing[number] = piece
    for number, _ in run_pieces(maker.make, missing, num_proc if num_proc > 1 else 0, _explain_crash):
        progress(len(missing[number][2]))
    return {name: json.loads((maker.folder / f"{name}.json").read_text("utf-8")) for name, *_ in pieces}


def _explain_crash(piece: Any) -> None:
    raise ValueError(
        "A worker process was killed, perhaps because memory ran out; try a smaller --num_proc. What is finished "
        "is kept: the same command resumes there."
    )


def open_arrow(path: str | Path) -> pa.Table:
    """An Arrow stream file, memory-mapped."""
    return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()


def write_arrow(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Write an Arrow stream file in one step."""
    with atomic_write(path, "wb", sync=True) as file, pa.ipc.new_stream(file, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
