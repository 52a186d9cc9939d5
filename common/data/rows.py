"""From rows of a data set to batches of uint8 tensors: reading, decoding, and what to do with broken images."""

from __future__ import annotations

import io
import logging
import os
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage
from torch.utils.data import DataLoader, default_collate

from ..images.encoded import EncodedImage
from ..images.files import BAD_IMAGE, BadSampleError, check_file, explain, lies_in, load_image, upright_size
from .sampling import Key, generators_kept, seed_sample
from .splits import check_columns

logger = logging.getLogger(__name__)


class ImageRows:
    """Random access to the encoded images of a data set: bytes or checked paths, by row number.

    Args:
        dataset: holds ``column`` as HF ``Image`` feature, or as path strings.
        column: the image column.
        split: named in messages.
        root: folder that paths must lie in; relative ones start there.
    """

    def __init__(self, dataset: Dataset, column: str, split: str, root: str | Path | None = None) -> None:
        check_columns(dataset, [column], split)
        feature = dataset.features[column]
        plain = isinstance(feature, Value) and feature.dtype in ("string", "large_string")
        if not plain and not isinstance(feature, Image):
            raise ValueError(f"Column {column!r} of the {split} split holds {feature}, neither images nor paths.")
        rows = dataset.select_columns([column])
        self.rows = rows if plain else rows.cast(Features({column: Image(decode=False)}))
        self.column, self.split = column, split
        self.root = os.path.realpath(root) if plain and root is not None else None

    def __len__(self) -> int:
        return len(self.rows)

    def encoded(self, indices: Sequence[int]) -> list[bytes | str | None]:
        """Content or path of each row's image file; ``None`` where there is none."""
        return [self._source(cell[self.column]) for cell in self.rows.__getitems__(list(indices))]

    def _source(self, cell: Any) -> bytes | str | None:
        if isinstance(cell, str):
            return os.path.join(self.root, cell) if self.root else cell
        return None if cell is None else cell["bytes"] or cell["path"]

    def load(self, index: int, source: bytes | str | None) -> PILImage.Image:
        """Decode; BadSampleError names row and file."""
        with self._named(index):
            return load_image(self.checked(source))

    @contextmanager
    def opened(self, index: int, source: bytes | str | None) -> Iterator[EncodedImage]:
        """The image, not decoded yet; if it is broken there or inside, BadSampleError names row and file."""
        with self._named(index):
            yield EncodedImage(self.checked(source))

    @contextmanager
    def _named(self, index: int) -> Iterator[None]:
        try:
            yield
        except BAD_IMAGE as error:
            raise BadSampleError(f"{self.describe(index)}: {explain(error)}") from error

    def checked(self, source: bytes | str | None) -> bytes | str:
        """The source again; ValueError if there is none, or it is a path to outside of the folder."""
        if not source:
            raise ValueError("the row has no image")
        if isinstance(source, str) and self.root and not lies_in(self.root, source):
            raise ValueError(f"it lies outside of the folder {self.root}")
        return source

    def describe(self, index: int) -> str:
        """Row and file of an image, for messages."""
        cell = self.rows[index][self.column]
        path = cell if isinstance(cell, str) else (cell or {}).get("path")
        return f"row {index} of the {self.split} split" + (f", file {path}" if path else "")

    def size(self, source: bytes | str) -> tuple[int, int]:
        """Width and height as a person would see the image, without decoding it."""
        with PILImage.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            return upright_size(image, thorough=True)

    def check_headers(self, num_rows: int = 20_000) -> list[str]:
        """Open up to ``num_rows`` images spread evenly, and decode those whose file seems to end too early.

        Returns:
            A message for each that fails.
        """
        rows = np.unique(np.linspace(0, len(self) - 1, min(num_rows, len(self))).astype(int)).tolist()
        problems = []
        for start in range(0, len(rows), 256):
            part = rows[start : start + 256]
            for row, source in zip(part, self.encoded(part), strict=True):
                try:
                    check_file(self.checked(source))
                except BAD_IMAGE as error:
                    problems.append(f"{self.describe(row)}: {explain(error)}")
        return problems


class Samples(torch.utils.data.Dataset, ABC):
    """(epoch, index) keys -> samples. Augmentation depends on (seed, epoch, row) alone.

    Args:
        images: where the encoded images are: has ``encoded``, and whatever ``load`` needs.
        rows: the row numbers in use; a key's index counts these.
        seed: of the augmentation.
        on_bad_sample: ``error``, ``replace`` (by the next good row, for training) or ``drop`` (for evaluation).
    """

    def __init__(self, images: Any, rows: np.ndarray, seed: int = 0, on_bad_sample: str = "error") -> None:
        self.images, self.rows, self.seed, self.on_bad_sample = images, rows, seed, on_bad_sample

    @abstractmethod
    def prepare(self, row: int, source: Any) -> dict[str, Any]:
        """What a sample holds, of what ``images.encoded`` returned; may draw from the global generators.

        Raises:
            BadSampleError: it does not decode.
        """

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[Key]) -> list[dict[str, Any]]:
        sources = self.images.encoded([self.rows[index] for _, index in keys])
        with generators_kept():
            return [self._sample(epoch, index, source) for (epoch, index), source in zip(keys, sources, strict=True)]

    def _sample(self, epoch: int, index: int, source: Any) -> dict[str, Any]:
        problems: list[str] = []
        for _ in range(len(self)):
            row = int(self.rows[index])
            seed_sample(self.seed, epoch, row)
            try:
                return {**self.prepare(row, source), "rows": torch.tensor(row), "problems": problems}
            except BadSampleError as error:
                problems.append(str(error))
                if self.on_bad_sample != "replace":
                    break
                index = (index + 1) % len(self)
                source = self.images.encoded([self.rows[index]])[0]
        return {"pixels": None, "problems": problems}


class LabelledImages(Samples):
    """uint8 images ``pixels`` and their ``labels``.

    Args:
        images: where the encoded images are.
        labels: int64 (rows, levels), one row an image.
        rows, seed, on_bad_sample: see :class:`Samples`.
        transform: image -> uint8 tensor.
    """

    def __init__(
        self,
        images: ImageRows,
        labels: np.ndarray,
        rows: np.ndarray,
        transform: Callable[[EncodedImage], torch.Tensor],
        seed: int = 0,
        on_bad_sample: str = "error",
    ) -> None:
        assert len(images) == len(labels), "one row of labels per image"
        super().__init__(images, rows, seed, on_bad_sample)
        self.labels, self.transform = labels, transform

    def prepare(self, row: int, source: Any) -> dict[str, Any]:
        with self.images.opened(row, source) as image:
            pixels = self.transform(image)
        return {"pixels": pixels, "labels": torch.from_numpy(self.labels[row])}


def collate(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Stack samples: ``pixels`` uint8 (batch, 3, h, w), ``rows`` (batch,), ``problems``, and what else there is.

    Tensors are stacked, but for ``truth``, which has every image's own size; other values are kept in lists.
    ``pixels`` is ``None`` if nothing could be decoded. In a loader's worker tensors go to memory that it shares.
    """
    good = [sample for sample in samples if sample["pixels"] is not None]
    problems = [problem for sample in samples for problem in sample["problems"]]
    if not good:
        return {"pixels": None, "problems": problems}
    columns = {name: [sample[name] for sample in good] for name in good[0] if name != "problems"}
    # With the colours of a pixel side by side, as they come: another order would cost more than stacking does.
    columns["pixels"] = [pixels.movedim(0, 2) for pixels in columns["pixels"]]
    stacked = {
        name: default_collate(values) if isinstance(values[0], torch.Tensor) and name != "truth" else values
        for name, values in columns.items()
    }
    return {**stacked, "pixels": stacked["pixels"].movedim(3, 1), "problems": problems}


def make_loader(dataset: Samples, batch_sampler: Any, num_workers: int, pin_memory: bool) -> DataLoader:
    """A loader of keyed batches. It is already this process's share: do not give it to ``accelerator.prepare``."""
    return DataLoader(
        dataset,
        batch_sampler=batch_sampler,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        prefetch_factor=4 if num_workers else None,
        worker_init_fn=leave_signals_to_main_process,
    )


def leave_signals_to_main_process(worker: int = 0) -> None:
    """In a loader's worker: be deaf to what asks the run to stop, which needs the worker until its step is done.

    Launchers, Slurm and Ctrl-C signal all processes of a run. By SIGTERM the main process itself ends a worker that
    hangs, so from there it still counts; a thread looks who sent it.
    """
    for number in (signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


class ProblemLog:
    """Broken images met so far: raises at the first, or counts and remembers them."""

    def __init__(self, on_bad_sample: str) -> None:
        self.on_bad_sample = on_bad_sample
        self.found: dict[str, None] = {}

    def add(self, problems: Sequence[str]) -> None:
        """Note problems; BadSampleError unless they are to be skipped."""
        for message in problems:
            if self.on_bad_sample == "error":
                raise BadSampleError(
                    f"Broken image: {message}. Mend or remove it, or go on with --on_bad_sample skip."
                )
            if message not in self.found:
                self.found[message] = None
                logger.warning("skipped: %s", message)
