"""Masks before training: what they hold, and where they are decoded once for all."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from huggingface_hub.constants import HF_HOME

from ..data.decoded_cache import open_cache
from ..data.masks import MaskedImageRows
from ..data.rows import ProblemLog
from .processes import local_main_first, num_workers, on_main_process

logger = logging.getLogger(__name__)

MASKS_LOOKED_AT = 2_000  # before training, for values that mean nothing; all of them where weights depend on counts


def look_at_masks(args: Any, accelerator: Accelerator, data: Any, problems: ProblemLog) -> None:
    """Read masks before any training: for values that are no class, and to know how common the classes are."""
    train, validation = data.train, data.validation
    if train is not None:
        looked = train.rows if args.class_weighting != "none" else spread(train.rows, MASKS_LOOKED_AT)
    validation.looked = spread(validation.rows, MASKS_LOOKED_AT)
    if data.test is not None:  # its pictures are not drawn, its masks are checked as they are read
        data.test.looked, data.test.pixels = data.test.rows[:0], np.zeros((0, data.hierarchy.num_leaves), dtype=int)
    threads = max(1, num_workers(args, accelerator))

    def count() -> tuple[Any, ...]:
        found = (None, []) if train is None else train.images.count_pixels(looked, threads)
        return *found, *validation.images.count_pixels(validation.looked, threads)

    counts, train_problems, validation.pixels, eval_problems = on_main_process(accelerator, count, share=True)
    problems.add([*train_problems, *eval_problems])
    if counts is None:
        return
    data.train_pixels = counts.sum(0)
    unseen = np.flatnonzero((data.train_pixels == 0) & (validation.pixels.sum(0) > 0))
    names = data.hierarchy.leaf_names()
    if len(unseen) and len(train.rows) == len(counts):
        logger.warning("validation has classes that training lacks: %s.", ", ".join(names[leaf] for leaf in unseen))
    missing = np.flatnonzero(data.train_pixels == 0)
    if len(missing):
        logger.warning(
            "label tree: %d leaves have no pixel in the %d training masks looked at: %s.",
            len(missing),
            len(counts),
            ", ".join(names[leaf] for leaf in missing[:5]),
        )


def spread(rows: np.ndarray, most: int) -> np.ndarray:
    """The rows, or so many of them at even distances."""
    return rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int)]


def cached_rows(args: Any, accelerator: Accelerator, rows: MaskedImageRows) -> MaskedImageRows:
    """The rows themselves, or with ``--cache_decoded`` the cache that takes their place."""
    if not args.cache_decoded:
        return rows
    with local_main_first(accelerator):
        return open_cache(Path(HF_HOME) / "label_tree_cache", rows, num_workers(args, accelerator))
