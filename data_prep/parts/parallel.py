"""Work on many rows in several processes: what is finished survives a kill, and a row that crashes costs that row."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from itertools import islice
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import xxhash
from tqdm.auto import tqdm

from common.system.files import atomic_write
from common.system.lock import RunLock
from common.system.workers import end_with_parent

OfRow = Callable[[int], dict[str, Any]]
"""Gives what is known of a row: numbers, strings and arrays, of the same kinds and shapes for every row"""

PRELOAD = "common.data.rows"
"""Has the libraries that work on rows needs; imported once, in a server whose memory the workers share"""

# ---- rows, in chunks that are kept


def map_rows(
    measure: OfRow, lost: OfRow, rows: Sequence[int], folder: Path, name: str, *, num_proc: int, chunk_rows: int = 256
) -> dict[str, np.ndarray]:
    """Results of ``measure`` for rows; every finished chunk of them is a file, with which the next call resumes.

    Args:
        measure: called in other processes, so it must pickle.
        lost: gives what stands in for a row that ended its process: a decoder crashed, or memory ran out.
        folder: for the chunks; see :func:`work_folder`.
        num_proc: processes; 0 for this one.

    Returns:
        Arrays with an entry a row, in order.
    """
    chunks = [list(map(int, rows[start : start + chunk_rows])) for start in range(0, len(rows), chunk_rows)]
    files = [folder / f"{name}-{index:06d}.npz" for index in range(len(chunks))]
    # is_zipfile: a power cut may leave a file without its end
    missing = {index: chunk for index, chunk in enumerate(chunks) if not zipfile.is_zipfile(files[index])}
    work, crashed = partial(_measured, measure), partial(_one_by_one, measure, lost)
    with tqdm(total=len(rows), desc=name, unit="row", dynamic_ncols=True, disable=not sys.stderr.isatty()) as bar:
        bar.update(len(rows) - sum(map(len, missing.values())))
        for index, arrays in run_pieces(work, missing, num_proc, crashed):
            with atomic_write(files[index], "wb") as file:
                np.savez(file, **arrays)
            bar.update(len(chunks[index]))
    return _joined([dict(np.load(file)) for file in files])


def _measured(measure: OfRow, rows: Sequence[int]) -> dict[str, np.ndarray]:
    found = [measure(row) for row in rows]
    return {name: np.array([entry[name] for entry in found]) for name in found[0]}


def _one_by_one(measure: OfRow, lost: OfRow, rows: Sequence[int]) -> dict[str, np.ndarray]:
    """Results of rows of which one may have ended a process: in halves, until that one is alone."""
    try:
        with _pool(partial(_measured, measure), 1) as pool:
            return pool.submit(_run, rows).result()
    except BrokenProcessPool:
        if len(rows) == 1:
            return _measured(lost, rows)
    middle = len(rows) // 2
    return _joined([_one_by_one(measure, lost, part) for part in (rows[:middle], rows[middle:])])


def _joined(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@contextmanager
def work_folder(output: str | Path, settings: str) -> Iterator[Path]:
    """``OUTPUT.incomplete``, where unfinished work waits for the next call with the same settings.

    Work of other settings (all that results depend on: data, columns, options) is removed. When the body ends without
    an error the folder is removed.

    Raises:
        ValueError: another process is at work there.
    """
    folder = Path(output).resolve().with_name(f"{Path(output).resolve().name}.incomplete")
    note, key = folder / "settings.txt", xxhash.xxh3_128_hexdigest(settings.encode())
    with RunLock(folder):
        known = note.read_text() if note.is_file() else None
        if known == key:
            print(f"Resuming in {folder}", file=sys.stderr)
        else:
            if known is not None:
                print(f"{folder} was begun with other settings or data; starting over.", file=sys.stderr)
            note.unlink(missing_ok=True)
            for entry in folder.iterdir():
                if entry.name != ".lock":
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            with atomic_write(note, sync=True) as file:
                file.write(key)
        yield folder
        shutil.rmtree(folder)


# ---- processes


def run_pieces(
    work: Callable[[Any], Any], pieces: Mapping[int, Any], num_proc: int, crashed: Callable[[Any], Any]
) -> Iterator[tuple[int, Any]]:
    """Results of ``work`` for pieces, as they are finished, in processes that end with this one.

    Args:
        work: sent to each process once.
        num_proc: processes; 0 for this one.
        crashed: gives the result of a piece during which a process ended, or raises an error.

    Yields:
        Number and result.
    """
    if num_proc < 1:
        yield from ((number, work(piece)) for number, piece in pieces.items())
        return
    left = dict(pieces)
    while left:
        running: dict[Future, int] = {}
        with _pool(work, min(num_proc, len(left))) as pool:
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


_work: Callable[[Any], Any]  # of this worker process


@contextmanager
def _pool(work: Callable[[Any], Any], num_proc: int) -> Iterator[ProcessPoolExecutor]:
    # A server that has the imports done forks the workers: each starts at once, and inherits nothing of this process.
    # They import the running script once more, which takes seconds unless the server has imported what it needs.
    script = Path(getattr(sys.modules["__main__"], "__file__", None) or "")
    own = [f"{script.parent.name}.{script.stem}"] if script.parent.name == "data_prep" else []
    forkserver.set_forkserver_preload([PRELOAD, *own])
    with patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path), OMP_NUM_THREADS="1"):  # it inherits no sys.path
        forkserver.ensure_running()
    context = multiprocessing.get_context("forkserver")
    pool = ProcessPoolExecutor(num_proc, mp_context=context, initializer=_start, initargs=(work,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _start(work: Callable[[Any], Any]) -> None:
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which lets pieces end
    end_with_parent()
    _work = work


def _run(piece: Any) -> Any:
    return _work(piece)
