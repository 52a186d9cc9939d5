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

from ..workers import start_worker
from .masks import MaskedImageRows
from .rows import Samples

logger = logging.getLogger(__name__)

VERSION = 2
"""Of the file format and of how images are decoded; caches of other versions are not used."""


class DecodedCache(MaskedImageRows):
    """Images and masks from the cache. Rows that do not decode are read from the files, which gives the messages.

    Args:
        folder: a finished cache.
        rows: the files that it was made from.
    """

    def __init__(self, folder: Path, rows: MaskedImageRows) -> None:
        super().__init__(rows.images, rows.masks, rows.reader)
        self.folder = folder
        self.index = np.load(folder / "index.npy")
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
    encoded files and of how masks are read, so that a change of any makes another one. It appears when it is complete:
    an interrupted one is never used.

    Args:
        root: folder for caches.
        rows: images and masks.
        num_workers: processes that decode.
    """
    folder = root / _key(rows)
    if not (folder / "done.json").is_file():
        root.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".making-", dir=root))
        try:
            _write(staging, rows, num_workers)
            if not (folder / "done.json").is_file():
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(staging, folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
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
    if path is None or not os.path.exists(path):
        return str(path).encode()
    state = os.stat(path)
    return f"{path} {state.st_size} {state.st_mtime_ns}".encode()


def _write(folder: Path, rows: MaskedImageRows, num_workers: int) -> None:
    def pack(image: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"pixels": image.permute(1, 2, 0).contiguous(), "mask": mask.contiguous()}

    # Its own generator: a loader draws a seed for its workers, which must not change the run that makes the cache.
    decoded = DataLoader(
        Samples(rows, np.arange(len(rows)), pack, on_bad_sample="drop"),
        batch_size=None,
        sampler=[(0, row) for row in range(len(rows))],
        num_workers=num_workers,
        generator=torch.Generator(),
        worker_init_fn=start_worker,
    )
    live = sys.stderr.isatty()
    index = np.full((len(rows), 3), -1, dtype=np.int64)
    position = 0
    with (folder / "pixels.bin").open("wb") as file:
        for row, sample in enumerate(tqdm(decoded, desc="decoding", unit="image", disable=not live, total=len(rows))):
            if sample["pixels"] is None:
                continue
            image, mask = sample["pixels"], sample["mask"]
            index[row] = position, *mask.shape
            position += file.write(image.numpy().tobytes()) + file.write(mask.numpy().tobytes())
        file.write(b"\0")  # an empty file cannot be mapped
    np.save(folder / "index.npy", index)
    (folder / "done.json").write_text(json.dumps({"rows": len(rows), "bytes": position}))
    logger.info("decoded %d images into %s, %.1f GB", len(rows), folder.parent, position / 1e9)
