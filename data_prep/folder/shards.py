"""The expensive part of preparing data: many processes, a file per finished shard, none of it lost by a kill.

A worker reads its part of the plan, finds and checks the images, and writes an Arrow file and then a JSON file beside
it, each in one step: a shard with a JSON file is finished. Workers import neither torch (half a gigabyte) nor
datasets; commands that start them must import those in functions, because Python imports the command anew in each
worker.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from common.files import atomic_write
from data_prep.parts.columns import SOURCE
from data_prep.parts.parallel import run_pieces

from .images import BadRowError, ImageFile, Store, find_file

BATCH_BYTES = 16 << 20
BATCH_ROWS = 200
"""An Arrow file is written in batches of up to this many rows, fewer of large images: this bounds the memory"""


@dataclass(frozen=True)
class Shard:
    """Rows ``start`` to ``stop`` of the plan, all of one split."""

    number: int
    split: str
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Of its files, without ending."""
        return f"data-{self.number:05d}"


@dataclass
class ShardResult:
    """What became of a shard.

    Args:
        rows: for each row written, its row in the plan.
        problems: (row in the plan, kind, sentence) of rows that were left out.
        num_bytes: of the images embedded.
        sizes: the smallest width and height of the rows written, and the largest, pixels; empty without rows.
        pixels: number of pixels of each mask value, where masks were counted.
    """

    rows: list[int] = field(default_factory=list)
    problems: list[tuple[int, str, str]] = field(default_factory=list)
    num_bytes: int = 0
    sizes: list[tuple[int, int]] = field(default_factory=list)
    pixels: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class ShardMaker:
    """What every worker needs to know to make shards.

    Args:
        folder: for the shards' files.
        plan_file: Arrow file; a row for every row of the data set.
        schema: of the files to write.
        store: turns image files into cells.
        root: folder of the images, without symbolic links; empty if they are in ``sources``.
        sources: Arrow files that together are a table with the images themselves.
        source_columns: image column -> its name there.
    """

    folder: Path
    plan_file: Path
    schema: pa.Schema
    store: Store
    root: str
    sources: tuple[str, ...] = ()
    source_columns: dict[str, str] = field(default_factory=dict)

    @cached_property
    def _plan(self) -> pa.Table:
        return open_arrow(self.plan_file)

    @cached_property
    def _sources(self) -> pa.Table:
        return pa.concat_tables([open_arrow(path) for path in self.sources])

    def make(self, shard: Shard) -> None:
        """Write one shard."""
        result = ShardResult()
        rows = self._plan.slice(shard.start, shard.stop - shard.start)
        pillows_limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # the store's limit counts
        try:
            batches = self._batches(rows, shard.start, result)
            write_arrow(self.folder / f"{shard.name}.arrow", self.schema, batches)
        finally:
            Image.MAX_IMAGE_PIXELS = pillows_limit
        with atomic_write(self.folder / f"{shard.name}.json", sync=True) as file:
            json.dump(vars(result), file)

    def _batches(self, rows: pa.Table, start: int, result: ShardResult) -> Iterator[pa.RecordBatch]:
        cells: list[dict[str, Any]] = []
        size = 0
        for position in range(len(rows)):
            try:
                made = self.store(*(self._file(rows, position, name) for name in self.store.columns))
            except BadRowError as error:
                result.problems.append((start + position, error.kind, str(error)))
                continue
            for entry in made:
                num_bytes = sum(len(entry[name]["bytes"]) for name in self.store.columns if self.store.embeds)
                result.rows.append(start + position)
                result.num_bytes += num_bytes
                result.sizes = span([*result.sizes, entry.pop("size")])
                result.pixels.update(entry.pop("pixels", {}))
                cells.append({"position": position, **entry})
                size += num_bytes
                if size >= BATCH_BYTES or len(cells) >= BATCH_ROWS:
                    yield self._batch(rows, cells)
                    cells, size = [], 0
        if cells:
            yield self._batch(rows, cells)

    def _file(self, rows: pa.Table, position: int, column: str) -> ImageFile:
        """The image of a row; BadRowError if there is none."""
        if not self.sources:
            return find_file(self.root, rows[column][position].as_py())
        cell = self._sources[self.source_columns[column]][rows[SOURCE][position].as_py()].as_py()
        content, name = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
        if not content:
            raise BadRowError("missing", "the row has no image")
        return ImageFile(content, name or "")

    def _batch(self, rows: pa.Table, cells: list[dict[str, Any]]) -> pa.RecordBatch:
        positions = pa.array([entry["position"] for entry in cells], pa.int64())
        arrays = []
        for name, kind in zip(self.schema.names, self.schema.types, strict=True):
            if name in rows.column_names and name not in self.store.columns:
                arrays.append(pc.take(rows[name], positions).combine_chunks().cast(kind))
            else:
                arrays.append(pa.array([entry[name] for entry in cells], kind))
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)


def make_shards(maker: ShardMaker, shards: Sequence[Shard], num_proc: int, progress: Callable[[int], Any]) -> None:
    """Make the shards that are not finished yet.

    Args:
        maker: what to do.
        shards: all of them.
        num_proc: processes; they live as long as this call and this process. 1 for this process alone.
        progress: is called with the number of rows of each shard as it is finished, or is found finished.

    Raises:
        ValueError: a process was killed, most likely for lack of memory.
    """
    missing = {}
    for shard in shards:
        if (maker.folder / f"{shard.name}.json").is_file():
            progress(shard.stop - shard.start)
        else:
            missing[shard.number] = shard
    processes = num_proc if num_proc > 1 else 0
    for number, _ in run_pieces(maker.make, missing, processes, _explain_crash, preload=__name__):
        progress(missing[number].stop - missing[number].start)


def span(sizes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The smallest width and height, and the largest."""
    return [tuple(map(choose, *sizes, sizes[0])) for choose in (min, max)]


def _explain_crash(shard: Shard) -> None:
    raise ValueError(
        "A worker process was killed, perhaps because memory ran out; try a smaller --num_proc. What is finished "
        "is kept: the same command resumes there."
    )


def read_result(folder: Path, shard: Shard) -> ShardResult:
    """What became of a finished shard."""
    content = json.loads((folder / f"{shard.name}.json").read_text(encoding="utf-8"))
    return ShardResult(**content | {"pixels": Counter(content["pixels"])})


def open_arrow(path: str | Path) -> pa.Table:
    """An Arrow stream file, memory-mapped."""
    return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()


def write_arrow(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Write an Arrow stream file in one step."""
    with atomic_write(path, "wb", sync=True) as file, pa.ipc.new_stream(file, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
