"""What predict.py asks of a model, whatever it predicts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.rows import ImageRows, Samples
from ..images.encoded import EncodedImage


class ShownImages(Samples):
    """Images without labels, broken ones left out.

    Args:
        images: the encoded images.
        transform: image -> what a sample holds.
    """

    def __init__(self, images: ImageRows, transform: Callable[[EncodedImage], dict[str, Any]]) -> None:
        super().__init__(images, np.arange(len(images)), on_bad_sample="drop")
        self.transform = transform

    def prepare(self, row: int, source: Any) -> dict[str, Any]:
        with self.images.opened(row, source) as image:
            return self.transform(image)


class Predictor(ABC):
    """A model, and how its predictions are written.

    Attributes:
        largest_part: images in a part, see :func:`common.predict.parts.plan_parts`.
        groups: of every row, if rows are to be answered together.
    """

    largest_part: int
    groups: Sequence[str | None] | None = None

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What decides the predictions, besides model and images, by names for people."""

    @abstractmethod
    def samples(self, images: ImageRows) -> Samples:
        """The images as the model is shown them."""

    def batch_size(self, per_device: int) -> int:
        """Images in a batch, where people ask for ``per_device``."""
        return per_device

    @abstractmethod
    def predict(self, batch: Mapping[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
        """A line for each image of a batch; ``names`` are theirs. Files are written, too."""

    def finish_part(self) -> list[dict[str, Any]]:
        """More lines, after the last batch of a part."""
        return []

    @abstractmethod
    def merge(self, lines: Iterable[Mapping[str, Any]], output_dir: Path) -> dict[str, Any]:
        """Write tables from all lines but those of problems; returns what summary.json says of them."""

    @abstractmethod
    def describe_results(self, results: Mapping[str, Any]) -> list[str]:
        """What :meth:`merge` returned, as lines for people."""
