"""What a script trains, validates and tests on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..model.hierarchy import Hierarchy


@dataclass
class Part:
    """One split.

    Args:
        images: an :class:`common.data.rows.ImageRows` or :class:`common.data.masks.MaskedImageRows`.
        labels: int64 (all rows, levels); ``None`` where masks are the labels.
        rows: the row numbers in use.
        groups: int64, of each row; ``None`` if each is one of its own.
        suffix: of names of files.
        observations: int64, of each row: which images are evaluated together, too.
        looked: rows whose masks were looked at before training.
        pixels: int64 (of these, leaves), what was found in them.
    """

    images: Any
    labels: np.ndarray | None
    rows: np.ndarray
    groups: np.ndarray | None = None
    suffix: str = ""
    observations: np.ndarray | None = None
    looked: np.ndarray | None = None
    pixels: np.ndarray | None = None


@dataclass
class Data:
    """The label tree and the splits; ``train`` is ``None`` with ``--eval_only``, ``test`` unless asked for."""

    hierarchy: Hierarchy
    train: Part | None
    validation: Part
    test: Part | None
    train_pixels: np.ndarray | None = None  # int64 (leaves,)
