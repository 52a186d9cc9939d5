"""Images and masks decoded once into a file that all processes of a node map into memory."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..files import naming, retried, write_json
from ..lock import RunLock
from ..workers import start_worker
from .masks import MaskedImageRows
from .rows import Samples

logger = logging.getLogger(__name__)

VERSION = 3
"""Of the file format and of how images are decoded; caches of other versions are not used."""

CHUNK = 256
"""Rows after which a cache that is being made is safe on the disk"""


class DecodedCache(MaskedImageRows):
    """Images and masks from the cache. Rows that do not decode are read from the files, which gives the messages."""

    def __init__(self, folder: Path, rows: MaskedImageRows) -> None:
        super().__init__(rows.images, rows.masks, rows.reader)
        self.folder = folder
        self.index = _read_index(folder)
        self._pixels: np.ndarray | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pixels": None}  # a worker maps the file itself instead of receiving a copy

    def encoded(self, indices: Sequence[int]) -> list[Any]:
        """``None`` for rows in the cache, otherwise what :class:`MaskedImageRows` returns."""
        encoded = super().encoded
        return [None if self.index[index, 0] >= 0 else encoded([index])[0] for index in indices]

    def load(self, index: int, source: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """The same pixels as from the files."""
        if source is not None:
            return super().load(index, source)
        if self._pixels is None:
            self._pixels = np.memmap(self.folder / "pixels.bin", dtype=np.uint8, mode="r")
        start, height, width = self.index[index].tolist()
        middle, end = start + 3 * height * width, start + 4 * height * width
        image = self._pixels[start:middle].reshape(height, width, 3)
        mask = self._pixels[middle:end].reshape(height, width)
        return torch.from_numpy(image.copy()).permute(2, 0, 1), torch.from_numpy(mask.copy())


def open_cache(root: Path, rows: MaskedImageRows, num_workers: int) -> DecodedCache:
    """The cache of these rows, which is made if it does not exist; one process of a node at a time should call this.

    It keeps pixels at their own size, so that training is the same with and without it. Its name is a hash of the
    encoded files and of how masks are read, so that a change of any makes another one. It appears when it is complete;
    making one that was interrupted goes on where it stopped. Runs and nodes that share ``root`` wait for each other.
    ``num_workers`` processes decode.
    """
    folder = root / _key(rows)
    if not (folder / "done.json").is_file():
        with RunLock(folder, wait=True) as lock, naming(folder):
            if (folder / "done.json").is_file():  # another process was at work
                pass
            elif lock.exclusive:
                _write(folder, rows, num_workers)
            else:  # each makes its own, and one wins
                staging = Path(tempfile.mkdtemp(prefix=".making-", dir=root))
                _write(staging, rows, num_workers)
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(staging, folder)
    return DecodedCache(folder, rows)


def _key(rows: MaskedImageRows) -> str:
    digest = xxhash.xxh3_128(json.dumps([VERSION, rows.reader.num_leaves]).encode())
    digest.update(json.dumps(sorted((rows.reader.palette or {}).items())).encode())
    digest.update(json.dumps([rows.images.root, rows.masks.root]).encode())  # they decide which paths are allowed
    for start in range(0, len(rows), 64):
        for sources in rows.encoded(range(start, min(start + 64, len(rows)))):
            for source in sources:
                digest.update(source if isinstance(source, bytes) else _file_state(source))
                digest.update(b"|")
    return digest.hexdigest()


def _file_state(path: str | None) -> bytes:
    try:
        state = retried(os.stat)(path)
    except (OSError, TypeError):
        return str(path).encode()
    return f"{path} {state.st_size} {state.st_mtime_ns}".encode()


def _read_index(folder: Path) -> np.ndarray:
    """int64 (rows so far, 3): where a row's pixels start, height and width; -1 for rows that do not decode."""
    file = folder / "index.bin"
    numbers = np.fromfile(file, dtype=np.int64) if file.is_file() else np.empty(0, np.int64)
    return numbers[: len(numbers) // 3 * 3].reshape(-1, 3)


def _write(folder: Path, rows: MaskedImageRows, num_workers: int) -> None:
    """Make a cache, or go on where an earlier call was interrupted."""

    def pack(image: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"pixels": image.permute(1, 2, 0).contiguous(), "mask": mask.contiguous()}

    index, pixels = _read_index(folder), folder / "pixels.bin"
    start, height, width = max(index.tolist(), default=(-1, 0, 0))
    position = start + 4 * height * width if start >= 0 else 0
    if not pixels.is_file() or pixels.stat().st_size < position:
        index, position = index[:0], 0
    for file, size in ((folder / "index.bin", index.nbytes), (pixels, position)):
        file.touch()
        os.truncate(file, size)
    # Its own generator: a loader draws a seed for its workers, which must not change the run that makes the cache.
    decoded = DataLoader(
        Samples(rows, np.arange(len(rows)), pack, on_bad_sample="drop"),
        batch_size=None,
        sampler=[(0, row) for row in range(len(index), len(rows))],
        num_workers=num_workers,
        generator=torch.Generator(),
        worker_init_fn=start_worker,
    )
    quiet = not sys.stderr.isatty()
    bar = tqdm(decoded, desc="decoding", unit="image", disable=quiet, total=len(rows), initial=len(index))
    entries: list[tuple[int, ...]] = []
    with pixels.open("ab") as file, (folder / "index.bin").open("ab") as index_file:
        for row, sample in enumerate(bar, start=len(index)):
            entries.append((-1, 0, 0))
            if sample["pixels"] is not None:
                entries[-1] = position, *sample["mask"].shape
                position += sum(file.write(sample[name].numpy().tobytes()) for name in ("pixels", "mask"))
            if len(entries) == CHUNK or row == len(rows) - 1:
                file.flush()
                os.fsync(file.fileno())  # the index never names what is not there
                index_file.write(np.array(entries, dtype=np.int64).tobytes())
                index_file.flush()
                entries.clear()
        file.write(b"\0")  # an empty file cannot be mapped
    write_json(folder / "done.json", {"rows": len(rows), "bytes": position})
    logger.info("decoded %d images into %s, %.1f GB", len(rows), folder.parent, position / 1e9)
