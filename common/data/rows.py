"""From rows of a data set to batches of uint8 tensors: reading, decoding, and handling broken images."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage
from torch.utils.data import DataLoader, default_collate

from ..images import files
from ..images.encoded import EncodedImage
from ..images.files import BAD_IMAGE, BadSampleError
from ..system.workers import start_worker
from .sampling import Key, generators_kept, seed_sample
from .splits import check_columns

logger = logging.getLogger(__name__)


class ImageRows:
    """Random access to the encoded images of a data set: bytes or checked paths, by row number.

    Args:
        dataset: holds ``column`` as HF ``Image`` feature, as plain struct of bytes and path, or as path strings.
        column, split: named in messages.
        root: folder that paths must lie in; relative ones start there.
    """

    def __init__(self, dataset: Dataset, column: str, split: str, root: str | Path | None = None) -> None:
        check_columns(dataset, [column], split)
        feature = dataset.features[column]
        plain = isinstance(feature, Value) and feature.dtype in ("string", "large_string")
        struct = isinstance(feature, Mapping) and set(feature) == {"bytes", "path"}  # as other programs write Parquet
        if not plain and not isinstance(feature, Image) and not struct:
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
            return files.find_form(self.root, cell)
        return None if cell is None else cell["bytes"] or cell["path"]

    def load(self, index: int, source: bytes | str | None) -> PILImage.Image:
        """Decode; BadSampleError names row and file."""
        with self._named(index):
            return files.load_image(self.checked(source))

    def apply(self, transform: Callable[[EncodedImage], Any], index: int, source: bytes | str | None) -> Any:
        """What a transform returns for the image; BadSampleError names row and file if it does not decode."""
        with self._named(index):
            return transform(EncodedImage(self.checked(source)))

    @contextmanager
    def _named(self, index: int) -> Iterator[None]:
        try:
            yield
        except BAD_IMAGE as error:
            raise BadSampleError(f"{self.describe(index)}: {files.explain(error)}") from error

    def checked(self, source: bytes | str | None) -> bytes | str:
        """The source itself; ValueError if there is none, or it is a path to outside of the folder."""
        if not source:
            raise ValueError(files.NO_FILE[0])
        if isinstance(source, str) and self.root and not files.lies_in(self.root, source):
            raise ValueError(f"it lies outside of the folder {self.root}")
        return source

    def name(self, index: int) -> str:
        """The image's file as the data set writes it; where there is none, the row."""
        cell = self.rows[index][self.column]
        path = cell if isinstance(cell, str) else (cell or {}).get("path")
        return path or f"row {index} of the {self.split} split"

    def describe(self, index: int) -> str:
        """Row and file of an image, for messages."""
        row, name = f"row {index} of the {self.split} split", self.name(index)
        return row if name == row else f"{row}, file {name}"

    def headers(self, num_rows: int) -> Iterator[tuple[int, tuple[int, int] | None, int, str]]:
        """Open up to ``num_rows`` images spread evenly, and decode those whose file seems to be cut short.

        Yields:
            Row, width and height, EXIF orientation, and a message if the image is broken (then without a size).
        """
        rows = np.unique(np.linspace(0, len(self) - 1, min(num_rows, len(self))).astype(int)).tolist()
        for start in range(0, len(rows), 256):
            part = rows[start : start + 256]
            for row, source in zip(part, self.encoded(part), strict=True):
                try:
                    yield row, *files.check_file(self.checked(source))[1:], ""
                except BAD_IMAGE as error:
                    yield row, None, 1, f"{self.describe(row)}: {files.explain(error)}"

    def check_headers(self, num_rows: int = 20_000) -> list[str]:
        """A message for each broken image among those that :meth:`headers` looks at."""
        return [problem for *_, problem in self.headers(num_rows) if problem]


class Samples(torch.utils.data.Dataset):
    """(epoch, index) keys -> samples. Augmentation depends on (seed, epoch, row) alone.

    Args:
        images: an :class:`ImageRows` or :class:`common.data.masks.MaskedImageRows`.
        rows: the row numbers in use; a key's index counts these.
        transform: what ``images.apply`` takes; returns uint8 ``pixels``, or a dict with them.
        labels: int64 (all rows, levels), which go with the pixels; ``None`` for none.
        on_bad_sample: ``error``, ``replace`` (by the next good row, for training) or ``drop`` (for evaluation).
    """

    def __init__(
        self,
        images: Any,
        rows: np.ndarray,
        transform: Callable[..., Any],
        labels: np.ndarray | None = None,
        seed: int = 0,
        on_bad_sample: str = "error",
    ) -> None:
        assert labels is None or len(labels) == len(images), "one row of labels per image"
        self.images, self.rows, self.transform, self.labels = images, rows, transform, labels
        self.seed, self.on_bad_sample = seed, on_bad_sample

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
                made = self.images.apply(self.transform, row, source)
            except BadSampleError as error:
                problems.append(str(error))
                if self.on_bad_sample != "replace":
                    break
                index = (index + 1) % len(self)
                source = self.images.encoded([self.rows[index]])[0]
                continue
            sample = {} if self.labels is None else {"labels": torch.from_numpy(self.labels[row])}
            sample |= made if isinstance(made, dict) else {"pixels": made}
            return sample | {"rows": torch.tensor(row), "problems": problems}
        return {"pixels": None, "problems": problems}


def collate(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Stack samples: ``pixels`` uint8 (batch, 3, h, w), ``rows`` (batch,), ``problems``, and what else there is.

    Tensors are stacked, except ``truth``, which has every image's own size; other values are kept in lists.
    ``pixels`` is ``None`` if nothing could be decoded. In a loader's worker, tensors are stacked in shared memory.
    """
    good = [sample for sample in samples if sample["pixels"] is not None]
    problems = [problem for sample in samples for problem in sample["problems"]]
    if not good:
        return {"pixels": None, "problems": problems}
    columns = {name: [sample[name] for sample in good] for name in good[0] if name != "problems"}
    # Stacked channels-last, as they come: changing the order would cost more than stacking does.
    columns["pixels"] = [pixels.movedim(0, 2) for pixels in columns["pixels"]]
    stacked = {
        name: default_collate(values) if isinstance(values[0], torch.Tensor) and name != "truth" else values
        for name, values in columns.items()
    }
    return {**stacked, "pixels": stacked["pixels"].movedim(3, 1), "problems": problems}


def make_loader(dataset: Samples, batch_sampler: Any, num_workers: int, pin_memory: bool) -> DataLoader:
    """A loader of batches of keys. They are this process's share: ``accelerator.prepare`` would divide them again."""
    return DataLoader(
        dataset,
        batch_sampler=batch_sampler,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        prefetch_factor=4 if num_workers else None,
        worker_init_fn=start_worker,
    )


class ProblemLog:
    """Broken images found so far: raises at the first one, or counts and remembers them."""

    def __init__(self, on_bad_sample: str) -> None:
        self.on_bad_sample = on_bad_sample
        self.found: dict[str, None] = {}

    def add(self, problems: Sequence[str]) -> None:
        """Remember problems; BadSampleError unless they are to be skipped."""
        for message in problems:
            if self.on_bad_sample == "error":
                how = "Missing" if message.endswith(files.NO_FILE) else "Broken"
                what = "mask" if message.startswith("mask") else "image"
                advice = "Fix or remove it, or skip it with --on_bad_sample skip."
                raise BadSampleError(f"{how} {what}: {message}. {advice}")
            if message not in self.found:
                self.found[message] = None
                logger.warning("skipped: %s", message)
