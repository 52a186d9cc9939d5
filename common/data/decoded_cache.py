"""Images and masks decoded once, into a folder of files that all processes of a node share."""

from __future__ import annotations

import json
import logging
import os
import sys
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..system.files import naming, retried, write_json
from ..system.lock import RunLock
from ..system.workers import start_worker
from .masks import MaskedImageRows
from .rows import Samples

logger = logging.getLogger(__name__)

VERSION = 4
"""Of the file format and of how images are decoded; caches of other versions are not used."""


class DecodedCache(MaskedImageRows):
    """Images and masks from the cache, a file each; rows that do not decode are read from where they come from."""

    def __init__(self, folder: Path, rows: MaskedImageRows) -> None:
        super().__init__(rows.images, rows.masks, rows.reader)
        self.folder = folder

    def file(self, index: int) -> Path:
        """Where a row's pixels are: two arrays, uint8 (height, width, 3) and (height, width)."""
        return self.folder / str(index // 1000) / f"{index}.npy"

    def encoded(self, indices: Sequence[int]) -> list[Any]:
        """Nothing: :meth:`load` knows where to look."""
        return [None] * len(indices)

    def load(self, index: int, source: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """The same pixels as from the files."""
        with suppress(FileNotFoundError, EOFError, ValueError), self.file(index).open("rb") as file:
            image, mask = np.load(file), np.load(file)
            return torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(mask)
        return super().load(index, super().encoded([index])[0])  # broken, or cut short by a power cut


def open_cache(root: Path, rows: MaskedImageRows, num_workers: int) -> DecodedCache:
    """The cache of these rows, which is made if it does not exist; one process of a node at a time should call this.

    It keeps pixels at their own size, so that training is the same with and without it. Its name is a hash of the
    encoded files and of how masks are read, so that a change of any makes another one. Making one that was
    interrupted goes on where it stopped. Runs and nodes that share ``root`` wait for each other, where the file system
    has locks. ``num_workers`` processes decode.
    """
    cache = DecodedCache(root / _key(rows), rows)
    done = cache.folder / "done.json"
    if not done.is_file():
        with RunLock(cache.folder, wait=True), naming(done):
            if not done.is_file():  # another process may have been at work
                _write(cache, rows, num_workers)
                write_json(done, {"rows": len(rows)})
    return cache


def _key(rows: MaskedImageRows) -> str:
    reader = rows.reader
    how = [VERSION, reader.num_leaves, sorted((reader.palette or {}).items()), reader.ignored, reader.raw]
    digest = xxhash.xxh3_128(json.dumps(how).encode())
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


def _write(cache: DecodedCache, rows: MaskedImageRows, num_workers: int) -> None:
    """Write what is not there yet."""

    def pack(image: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"pixels": image.permute(1, 2, 0).contiguous(), "mask": mask.contiguous()}

    missing = [row for row in range(len(rows)) if not cache.file(row).is_file()]
    # Its own generator: a loader draws a seed for its workers, which must not change the run that makes the cache.
    decoded = DataLoader(
        Samples(rows, np.arange(len(rows)), pack, on_bad_sample="drop"),
        batch_size=None,
        sampler=[(0, row) for row in missing],
        num_workers=num_workers,
        generator=torch.Generator(),
        worker_init_fn=start_worker,
    )
    quiet, written = not sys.stderr.isatty(), 0
    for row, sample in zip(missing, tqdm(decoded, desc="decoding", unit="image", disable=quiet), strict=True):
        if sample["pixels"] is None:
            continue
        cache.file(row).parent.mkdir(exist_ok=True)
        temporary = cache.folder / f".making-{uuid.uuid4()}"
        with temporary.open("wb") as file:
            for name in ("pixels", "mask"):
                np.save(file, sample[name].numpy())
            written += file.tell()
        os.replace(temporary, cache.file(row))
    for left in cache.folder.glob(".making-*"):  # by a run that was killed
        left.unlink(missing_ok=True)
    logger.info("decoded %d images into %s, %.1f GB", len(missing), cache.folder.parent, written / 1e9)
