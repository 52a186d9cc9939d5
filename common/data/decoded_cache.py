"""Images and masks decoded once into a file that all processes of a node map into memory."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ..images.files import BadSampleError
from .masks import MaskedImageRows
from .rows import leave_signals_to_main_process

logger = logging.getLogger(__name__)

VERSION = 1
"""Of the file's layout and of what decoding means; a new one makes old caches useless."""

Shrink = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class DecodedCache:
    """Random access to decoded images and masks, in the place of :class:`common.data.masks.MaskedImageRows`.

    Rows that do not decode are left to the files, which say what is wrong with them.

    Args:
        folder: a finished cache.
        rows: the files that it was made from.
    """

    def __init__(self, folder: Path, rows: MaskedImageRows) -> None:
        self.rows, self.folder = rows, folder
        self.index = np.load(folder / "index.npy")
        self._pixels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pixels": None}  # a worker maps the file itself, instead of receiving a copy of it

    def encoded(self, indices: Sequence[int]) -> list[Any]:
        """Nothing: it is all in the cache. What is not comes as the source that the files take."""
        return [None if self.index[index, 0] >= 0 else self.rows.encoded([index])[0] for index in indices]

    def load(self, index: int, source: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 image (3, height, width) and mask (height, width), which may be of another size."""
        if source is not None:
            return self.rows.load(index, source)
        if self._pixels is None:
            self._pixels = np.memmap(self.folder / "pixels.bin", dtype=np.uint8, mode="r")
        start, height, width, mask_height, mask_width = self.index[index].tolist()
        middle = start + 3 * height * width
        image = self._pixels[start:middle].reshape(height, width, 3)
        mask = self._pixels[middle : middle + mask_height * mask_width].reshape(mask_height, mask_width)
        return torch.from_numpy(image.copy()).permute(2, 0, 1), torch.from_numpy(mask.copy())

    def check_headers(self, num_rows: int = 20_000) -> list[str]:
        """What is wrong with the files."""
        return self.rows.check_headers(num_rows)

    def count_pixels(self, rows: np.ndarray, num_threads: int) -> tuple[np.ndarray, list[str]]:
        """From the files: see :meth:`common.data.masks.MaskedImageRows.count_pixels`."""
        return self.rows.count_pixels(rows, num_threads)


def open_cache(root: Path, rows: MaskedImageRows, shrink: Shrink, settings: str, num_workers: int) -> DecodedCache:
    """The cache of these rows, made now if there is none; one process of a node at a time should call it.

    Its name is a hash of the encoded files, of ``settings`` and of how masks are read, so that a change of any makes
    another one. It appears in one step: a cache that was interrupted is never taken for a whole one.

    Args:
        root: folder for caches.
        rows: images and masks.
        shrink: what is kept of an image and its mask.
        settings: everything that ``shrink`` depends on.
        num_workers: processes that decode.
    """
    folder = root / _key(rows, settings)
    if not (folder / "done.json").is_file():
        root.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".making-", dir=root))
        try:
            _write(staging, rows, shrink, num_workers)
            if not (folder / "done.json").is_file():
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(staging, folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return DecodedCache(folder, rows)


def _key(rows: MaskedImageRows, settings: str) -> str:
    digest = xxhash.xxh3_128(json.dumps([VERSION, settings, rows.reader.num_leaves]).encode())
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


def _write(folder: Path, rows: MaskedImageRows, shrink: Shrink, num_workers: int) -> None:
    # A generator of its own: a loader draws a seed for its workers, which the first run alone must not notice.
    decoded = DataLoader(
        _Decoded(rows, shrink),
        batch_size=None,
        num_workers=num_workers,
        generator=torch.Generator(),
        worker_init_fn=leave_signals_to_main_process,
    )
    live = sys.stderr.isatty()
    index = np.full((len(rows), 5), -1, dtype=np.int64)
    position = 0
    with (folder / "pixels.bin").open("wb") as file:
        for row, pair in enumerate(tqdm(decoded, desc="decoding", unit="image", disable=not live, total=len(rows))):
            if pair is None:
                continue
            image, mask = pair
            index[row] = position, *image.shape[:2], *mask.shape
            position += file.write(image.numpy().tobytes()) + file.write(mask.numpy().tobytes())
        file.write(b"\0")  # an empty file cannot be mapped
    np.save(folder / "index.npy", index)
    (folder / "done.json").write_text(json.dumps({"rows": len(rows), "bytes": position}))
    logger.info("decoded %d images into %s, %.1f GB", len(rows), folder.parent, position / 1e9)


class _Decoded(Dataset):
    """Row -> image (height, width, 3) and mask as the cache keeps them; ``None`` if they do not decode."""

    def __init__(self, rows: MaskedImageRows, shrink: Shrink) -> None:
        self.rows, self.shrink = rows, shrink

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        try:
            image, mask = self.shrink(*self.rows.load(row, self.rows.encoded([row])[0]))
        except BadSampleError:
            return None
        return image.permute(1, 2, 0).contiguous(), mask.contiguous()
