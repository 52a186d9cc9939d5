"""Masks before training: what they hold, and where they are decoded once for all."""

from __future__ import annotations

import logging
from collections.abc import Sequence
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
    every = {"training": data.train, "validation": data.validation, "test": data.test}
    parts = {name: part for name, part in every.items() if part is not None}
    counted = args.class_weighting != "none" or args.copy_paste or args.balanced_crop
    for name, part in parts.items():
        part.looked = part.rows if name == "training" and counted else spread(part.rows, MASKS_LOOKED_AT)
    threads = max(1, num_workers(args, accelerator))

    def count() -> list[tuple[Any, ...]]:
        return [part.images.count_pixels(part.looked, threads) for part in parts.values()]

    found = on_main_process(accelerator, count, share=True)
    problems.add([problem for *_, some in found for problem in some])
    names = data.hierarchy.leaf_names()
    for (name, part), (counts, ignored, _) in zip(parts.items(), found, strict=True):
        part.pixels = counts
        _check_labelled(name, counts.sum(0), ignored.sum(), names)
    train, validation = data.train, data.validation
    if train is None:
        return
    data.train_pixels = train.pixels.sum(0)
    unseen = np.flatnonzero((data.train_pixels == 0) & (validation.pixels.sum(0) > 0))
    if len(unseen) and len(train.rows) == len(train.pixels):
        logger.warning("validation has classes that training lacks: %s.", ", ".join(names[leaf] for leaf in unseen))
    missing = [names[leaf] for leaf in np.flatnonzero(data.train_pixels == 0)]
    if missing:
        told = "label tree: %d leaves have no pixel in the %d training masks looked at: %s."
        logger.warning(told, len(missing), len(train.pixels), ", ".join(missing[:5]))


def _check_labelled(part: str, pixels: np.ndarray, ignored: int, names: Sequence[str]) -> None:
    """Tell how many pixels are ignored; ValueError if all are, or if they are probably the foreground."""
    share = 100 * ignored / max(1, ignored + pixels.sum())
    logger.info("%s masks: %.3g %% of the pixels are ignored.", part, share)
    present = np.flatnonzero(pixels)
    if not len(present) and ignored:
        raise ValueError(f"No pixel of the {part} masks is labelled: all are ignored (255, --ignore_values).")
    if len(present) == 1 < len(names) and ignored:
        name, other = names[present[0]], names[int(present[0] == 0)]
        black = f"{present[0] * 0x010101:06x}"
        raise ValueError(
            f"The {part} masks hold the values {present[0]} ({name}) and 255, which is ignored ({share:.3g} % of the "
            "pixels): is 255 the foreground? Then add --mask_palette FILE, a YAML file with a line for each class: "
            f"'{name}: \"#{black}\"' and '{other}: \"#ffffff\"'."
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
