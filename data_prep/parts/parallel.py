"""Work on many rows in several processes: what is finished survives a kill, and a row that crashes costs that row."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xxhash
from tqdm.auto import tqdm

from common.files import replaced_file

Arrays = dict[str, np.ndarray]

PRELOAD = "common.data.rows"  # what work on rows needs of libraries


class RowWork(Protocol):
    """What is done with rows; it is sent to other processes, so it must pickle."""

    def run(self, rows: Sequence[int]) -> Arrays:
        """Results of the rows. Arrays of numbers or strings, never of objects."""

    def lost(self, row: int) -> Arrays:
        """What stands in for a row that ended its process: a decoder crashed, or memory ran out."""


# ---- rows, in chunks that are kept


def run_chunks(
    work: RowWork, num_rows: int, folder: Path, name: str, *, num_proc: int, chunk_rows: int = 256
) -> Arrays:
    """Do the work for rows 0 to ``num_rows``; each finished chunk is a file, with which the next call continues.

    Args:
        work: see :class:`RowWork`.
        num_rows: how many rows there are, at least one.
        folder: for the chunks; see :func:`work_folder`.
        name: of these rows, in file names and beside the progress bar.
        num_proc: processes; 0 for this one.
        chunk_rows: rows a chunk.

    Returns:
        The results of all rows, in order.
    """
    chunks = [range(start, min(start + chunk_rows, num_rows)) for start in range(0, num_rows, chunk_rows)]
    files = [folder / f"{name}-{index:06d}.npz" for index in range(len(chunks))]
    # is_zipfile: a power cut may leave a file without its end
    missing = {index: rows for index, rows in enumerate(chunks) if not zipfile.is_zipfile(files[index])}
    with tqdm(total=num_rows, desc=name, unit="row", dynamic_ncols=True, disable=not sys.stderr.isatty()) as bar:
        bar.update(num_rows - sum(map(len, missing.values())))
        for index, arrays in run_pieces(work, missing, num_proc, partial(_one_by_one, work), PRELOAD):
            with replaced_file(files[index], "wb") as file:
                np.savez(file, **arrays)
            bar.update(len(chunks[index]))
    return _joined([_load(file) for file in files])


def _load(file: Path) -> Arrays:
    with np.load(file) as content:
        return dict(content)


def _joined(parts: Sequence[Arrays]) -> Arrays:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _one_by_one(work: RowWork, rows: range) -> Arrays:
    """The results of rows of which one may have ended a process: in halves, until that one is alone."""
    try:
        with _pool(work, 1, PRELOAD) as pool:
            return pool.submit(_run, rows).result()
    except BrokenProcessPool:
        if len(rows) == 1:
            return work.lost(rows[0])
    middle = len(rows) // 2
    return _joined([_one_by_one(work, rows[:middle]), _one_by_one(work, rows[middle:])])


@contextmanager
def work_folder(output: Path, settings: str) -> Iterator[Path]:
    """``OUTPUT.incomplete``, where unfinished work waits for the next call with the same settings.

    Work of other settings is removed. When the body ends without an error the folder is removed.

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
        print(f"Resuming from {folder}", file=sys.stderr)
    yield folder
    shutil.rmtree(folder)


# ---- processes


def run_pieces(
    work: Any, pieces: Mapping[int, Any], num_proc: int, crashed: Callable[[Any], Any], preload: str
) -> Iterator[tuple[int, Any]]:
    """``work.run(piece)`` of every piece, as they are finished, in processes that end with this one.

    Args:
        work: sent to each process once.
        pieces: number -> what ``work.run`` takes.
        num_proc: processes; 0 for this one.
        crashed: gives the result of a piece during which a process ended, or raises an error.
        preload: module whose imports all processes share.

    Yields:
        Number and result.
    """
    if num_proc < 1:
        yield from ((number, work.run(piece)) for number, piece in pieces.items())
        return
    left = dict(pieces)
    while left:
        running: dict[Future, int] = {}
        with _pool(work, min(num_proc, len(left)), preload) as pool:
            waiting = iter(list(left))
            try:
                while True:
                    # Few at a time: after a crash each of them has to be tried again.
                    for number in islice(waiting, num_proc + 1 - len(running)):
                        running[pool.submit(_run, left[number])] = number
                    if not running:
                        break
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        result = future.result()
                        number = running.pop(future)
                        yield number, result
                        del left[number]
            except BrokenProcessPool:
                pass
        for number in running.values():
            yield number, crashed(left.pop(number))


_work: Any = None  # of this worker process


@contextmanager
def _pool(work: Any, num_proc: int, preload: str) -> Iterator[ProcessPoolExecutor]:
    # A server that has the imports done forks the workers: each starts at once, and inherits nothing of this process.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload])
    pool = ProcessPoolExecutor(num_proc, mp_context=context, initializer=_start, initargs=(work,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _start(work: Any) -> None:
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which lets pieces end
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = "1"
    _work = work


def _end_with_parent() -> None:
    """A killed parent must not leave workers behind that wait for it."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _run(piece: Any) -> Any:
    return _work.run(piece)
