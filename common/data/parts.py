"""What a script trains, validates and tests on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..model.hierarchy import Hierarchy


@dataclass
class Part:
    """One split."""

    images: Any  # ImageRows or MaskedImageRows
    labels: np.ndarray | None  # int64 (all rows, levels); none where masks are the labels
    rows: np.ndarray  # the row numbers in use
    groups: np.ndarray | None = None  # int64, of each row; none if each is one of its own
    suffix: str = ""  # of names of files
    observations: np.ndarray | None = None  # int64, of each row: which images are evaluated together, too
    looked: np.ndarray | None = None  # rows whose masks were looked at before training
    pixels: np.ndarray | None = None  # int64 (of these, leaves), what was found in them


@dataclass
class Data:
    """The label tree and the splits; ``train`` is ``None`` with ``--eval_only``, ``test`` unless asked for."""

    hierarchy: Hierarchy
    train: Part | None
    validation: Part
    test: Part | None
    train_pixels: np.ndarray | None = None  # int64 (leaves,)
