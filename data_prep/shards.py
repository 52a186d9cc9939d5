"""The expensive part of preparing data: many processes, one file per finished piece, none of it lost by a kill.

A worker reads its part of the plan, finds and checks the images, and writes an Arrow file and then a JSON file beside
it, each in one step: a piece with a JSON file is finished. Workers are spawned and import neither torch (half a
gigabyte each) nor datasets; scripts that start them must import those in functions, because Python imports the script
anew in each worker.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from .stores import BadRowError, Source, Store, find_file

BATCH_BYTES = 16 << 20
BATCH_ROWS = 200
"""An Arrow file is written in batches of up to this many rows, fewer of large images: what memory is bounded by"""

SOURCE = "__source__"
"""Column of the plan: row in the data set that holds the images themselves"""


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
        sizes: smallest and largest width and height of the images stored, pixels.
        pixels: number of pixels of each mask value, where masks were counted.
    """

    rows: list[int] = field(default_factory=list)
    problems: list[tuple[int, str, str]] = field(default_factory=list)
    num_bytes: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    pixels: dict[str, int] = field(default_factory=dict)

    def note(self, size: tuple[int, int], num_bytes: int, pixels: dict[str, int]) -> None:
        """Add one stored image to the statistics."""
        width, height = size
        sizes = {"min_width": width, "max_width": width, "min_height": height, "max_height": height}
        self.merge(ShardResult(num_bytes=num_bytes, sizes=sizes, pixels=pixels))

    def merge(self, other: ShardResult) -> None:
        """Add another's statistics, not its rows and problems."""
        self.num_bytes += other.num_bytes
        for key, value in other.sizes.items():
            choose = min if key.startswith("min") else max
            self.sizes[key] = choose(self.sizes.get(key, value), value)
        for value, count in other.pixels.items():
            self.pixels[value] = self.pixels.get(value, 0) + count


@dataclass(frozen=True)
class Work:
    """What every worker needs to know.

    Args:
        folder: for the shards' files.
        plan: Arrow file; a row for every row of the data set.
        schema: of the files to write.
        store: turns sources into cells.
        root: folder of the images, without symbolic links; empty if they are in ``sources``.
        sources: Arrow files that together are a table with the images themselves.
        source_columns: image column -> its name there.
    """

    folder: Path
    plan: Path
    schema: pa.Schema
    store: Store
    root: str
    sources: tuple[str, ...] = ()
    source_columns: dict[str, str] = field(default_factory=dict)


def make_shards(work: Work, shards: Sequence[Shard], num_proc: int, progress: Callable[[int], Any]) -> None:
    """Make the shards that are not finished yet, in ``num_proc`` processes.

    Args:
        work: what to do.
        shards: all of them.
        num_proc: processes; they live as long as this call and this process. 1 for this process alone.
        progress: is called with the number of rows of each shard as it is finished, or is found finished.

    Raises:
        ValueError: a process was killed, most likely for want of memory.
    """
    missing = []
    for shard in shards:
        if (work.folder / f"{shard.name}.json").is_file():
            progress(shard.stop - shard.start)
        else:
            missing.append(shard)
    if num_proc == 1:
        worker = _Worker(work)
        for shard in missing:
            worker.make(shard)
            progress(shard.stop - shard.start)
    elif missing:
        _make_in_processes(work, missing, num_proc, progress)


def _make_in_processes(work: Work, missing: Sequence[Shard], num_proc: int, progress: Callable[[int], Any]) -> None:
    pool = ProcessPoolExecutor(
        min(num_proc, len(missing)), multiprocessing.get_context("spawn"), _start_worker, (work,)
    )
    try:
        running = {pool.submit(_make_shard, shard): shard for shard in missing}
        for future in as_completed(running):
            future.result()
            progress(running[future].stop - running[future].start)
    except BrokenProcessPool as error:
        raise ValueError(
            "A worker process was killed, perhaps because memory ran out; try a smaller --num_proc. What is finished "
            "is kept: the same command goes on."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def read_result(folder: Path, shard: Shard) -> ShardResult:
    """What became of a finished shard."""
    content = json.loads((folder / f"{shard.name}.json").read_text(encoding="utf-8"))
    content["problems"] = [tuple(problem) for problem in content["problems"]]
    return ShardResult(**content)


def open_arrow(path: str | Path) -> pa.Table:
    """An Arrow stream file, memory-mapped."""
    return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()


def write_arrow(path: Path, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
    """Write an Arrow stream file, whole or not at all."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with open(unfinished, "wb") as file:
        with pa.ipc.new_stream(file, schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
        _finish(file)
    os.replace(unfinished, path)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with open(unfinished, "w", encoding="utf-8") as file:
        file.write(text)
        _finish(file)
    os.replace(unfinished, path)


def _finish(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


# ---- in the workers


_worker: _Worker


def _start_worker(work: Work) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; we finish what we are at
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _worker = _Worker(work)


def _die_with_parent() -> None:
    """A killed parent cannot tell its workers, and they would wait for it for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _make_shard(shard: Shard) -> None:
    _worker.make(shard)


class _Worker:
    def __init__(self, work: Work) -> None:
        self.work = work
        self.plan = open_arrow(work.plan)
        tables = [open_arrow(path) for path in work.sources]
        self.sources = pa.concat_tables(tables) if tables else None
        self.copied = [name for name in work.schema.names if name in self.plan.column_names]
        self.copied = [name for name in self.copied if name not in work.store.columns]

    def make(self, shard: Shard) -> None:
        result = ShardResult()
        rows = self.plan.slice(shard.start, shard.stop - shard.start)
        pillows_limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # ours is looked at before decoding
        try:
            batches = self._batches(rows, shard.start, result)
            write_arrow(self.work.folder / f"{shard.name}.arrow", self.work.schema, batches)
        finally:
            Image.MAX_IMAGE_PIXELS = pillows_limit
        write_text(self.work.folder / f"{shard.name}.json", json.dumps(asdict(result)))

    def _batches(self, rows: pa.Table, start: int, result: ShardResult) -> Iterator[pa.RecordBatch]:
        cells: list[dict[str, Any]] = []
        size = 0
        for position in range(len(rows)):
            try:
                made = self.work.store(self._sources(rows, position))
            except BadRowError as error:
                result.problems.append((start + position, error.kind, str(error)))
                continue
            for entry in made:
                num_bytes = sum(len(entry[name]["bytes"]) for name in self.work.store.columns if self._embeds)
                result.rows.append(start + position)
                result.note(entry.pop("size"), num_bytes, entry.pop("pixels", {}))
                cells.append({"position": position, **entry})
                size += num_bytes
                if size >= BATCH_BYTES or len(cells) >= BATCH_ROWS:
                    yield self._batch(rows, cells)
                    cells, size = [], 0
        if cells:
            yield self._batch(rows, cells)

    @property
    def _embeds(self) -> bool:
        return self.work.store.embeds

    def _sources(self, rows: pa.Table, position: int) -> dict[str, Source]:
        """Where the images of a row are; BadRowError if there are none."""
        found = {}
        for column in self.work.store.columns:
            if self.sources is None:
                found[column] = find_file(self.work.root, rows[column][position].as_py())
            else:
                row = rows[SOURCE][position].as_py()
                found[column] = _embedded(self.sources[self.work.source_columns[column]][row].as_py())
        return found

    def _batch(self, rows: pa.Table, cells: list[dict[str, Any]]) -> pa.RecordBatch:
        positions = pa.array([entry["position"] for entry in cells], pa.int64())
        taken = pc.take(rows.select(self.copied), positions) if self.copied else None
        arrays = []
        for name, kind in zip(self.work.schema.names, self.work.schema.types, strict=True):
            if taken is not None and name in self.copied:
                arrays.append(taken[name].combine_chunks().cast(kind))
            else:
                arrays.append(pa.array([entry[name] for entry in cells], kind))
        return pa.RecordBatch.from_arrays(arrays, schema=self.work.schema)


def _embedded(cell: Any) -> Source:
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    if not content:
        raise BadRowError("missing", "the row has no image")
    return Source(content, (cell.get("path") or "") if isinstance(cell, dict) else "")
