"""Work over many rows: in several processes, in pieces that survive an interruption, whatever the rows do to them."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import threading
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import xxhash
from tqdm.auto import tqdm

Arrays = dict[str, np.ndarray]


class Work(Protocol):
    """What is done with rows; travels to other processes, so it must pickle."""

    def run(self, rows: Sequence[int]) -> Arrays:
        """Results of the rows. Arrays of numbers or strings, never of objects."""

    def lost(self, row: int) -> Arrays:
        """What stands in for a row that ended its process: a decoder crashed, or memory ran out."""


def run_chunks(
    work: Work, num_rows: int, folder: Path, name: str, *, num_proc: int, chunk_rows: int = 256
) -> list[Arrays]:
    """Do the work for rows 0 to ``num_rows``, and keep each finished chunk in a file: calling again goes on there.

    Args:
        work: see :class:`Work`.
        num_rows: how many rows there are.
        folder: for the chunks; see :func:`work_folder`.
        name: of these rows, in file names and beside the progress bar.
        num_proc: processes; 0 for this one.
        chunk_rows: rows a chunk.

    Returns:
        The results of each chunk, in order.
    """
    chunks = [range(start, min(start + chunk_rows, num_rows)) for start in range(0, num_rows, chunk_rows)]
    files = [folder / f"{name}-{index:06d}.npz" for index in range(len(chunks))]
    todo = [index for index, file in enumerate(files) if not zipfile.is_zipfile(file)]  # whole, also after a power cut
    bar = tqdm(total=num_rows, desc=name, unit="row", dynamic_ncols=True, disable=not sys.stderr.isatty())
    bar.update(num_rows - sum(len(chunks[index]) for index in todo))
    with bar:
        for index, arrays in _results(work, {index: chunks[index] for index in todo}, num_proc):
            _save(files[index], arrays)
            bar.update(len(chunks[index]))
    return [_load(file) for file in files]


def _results(work: Work, chunks: dict[int, range], num_proc: int) -> Iterator[tuple[int, Arrays]]:
    if num_proc <= 0:
        for index, rows in chunks.items():
            yield index, work.run(rows)
        return
    left = dict(chunks)
    while left:
        with _pool(work, min(num_proc, len(left))) as pool:
            running: dict[Future, int] = {}
            queue = iter(list(left))
            crashed = False
            while not crashed:
                while len(running) <= num_proc and (index := next(queue, None)) is not None:
                    running[pool.submit(_run, left[index])] = index
                if not running:
                    break
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    index = running.pop(future)
                    try:
                        arrays = future.result()
                    except BrokenProcessPool:
                        crashed = True
                        running[future] = index
                        continue
                    yield index, arrays
                    del left[index]
        if crashed:  # one of those that were running; alone, each shows whether it was the one
            for index in [index for index in running.values() if index in left]:
                yield index, _alone(work, left.pop(index))


def _alone(work: Work, rows: range) -> Arrays:
    """The same in a process of its own; where that ends too, halves, down to the row that does it."""
    try:
        with _pool(work, 1) as pool:
            return pool.submit(_run, rows).result()
    except BrokenProcessPool:
        if len(rows) == 1:
            return work.lost(rows[0])
    middle = len(rows) // 2
    return joined([_alone(work, rows[:middle]), _alone(work, rows[middle:])])


def joined(parts: Sequence[Arrays]) -> Arrays:
    """Results one after the other."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


_work: Work | None = None  # of this worker process


@contextmanager
def _pool(work: Work, num_proc: int) -> Iterator[ProcessPoolExecutor]:
    # A server that has the imports done forks the workers: each starts at once, and inherits nothing of this process.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["common.data.rows"])
    pool = ProcessPoolExecutor(num_proc, mp_context=context, initializer=_start, initargs=(work,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _start(work: Work) -> None:
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which lets chunks end
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = "1"
    _work = work


def _end_with_parent() -> None:
    """A killed script must not leave workers behind that wait for it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(rows: range) -> Arrays:
    assert _work is not None, "the process was started by _pool"
    return _work.run(rows)


def _save(file: Path, arrays: Arrays) -> None:
    unfinished = file.with_suffix(".tmp")
    with unfinished.open("wb") as handle:
        np.savez(handle, **arrays)
    os.replace(unfinished, file)


def _load(file: Path) -> Arrays:
    with np.load(file) as content:
        return dict(content)


@contextmanager
def work_folder(output: Path, settings: str) -> Iterator[Path]:
    """``OUTPUT.incomplete``, where unfinished work waits for the next call with the same settings.

    Work of other settings is thrown away. When the body ends without an error the folder is removed.

    Args:
        output: what the script writes in the end.
        settings: all that results depend on: data, columns, options.
    """
    folder = output.resolve().with_name(f"{output.resolve().name}.incomplete")
    note, key = folder / "settings.txt", xxhash.xxh3_128_hexdigest(settings.encode())
    if not note.is_file() or note.read_text() != key:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        note.write_text(key)
    elif any(folder.glob("*.npz")):
        print(f"Going on from {folder}", file=sys.stderr)
    yield folder
    shutil.rmtree(folder)
