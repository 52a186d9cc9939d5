"""Colours of the classes of a label tree that a person can tell apart."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..model.hierarchy import Hierarchy
from ..model.tree import IGNORE

# Ottosson's OKLab (2020), in which distances are about as large as they look: linear RGB from cubes of LMS from OKLab.
OKLAB_TO_LMS = np.array([[1, 0.39634, 0.21580], [1, -0.10556, -0.06385], [1, -0.08948, -1.29149]])
LMS_TO_RGB = np.array([[4.07674, -3.30771, 0.23097], [-1.26844, 2.60976, -0.34132], [-0.0042, -0.70342, 1.70761]])


def leaf_colours(hierarchy: Hierarchy) -> np.ndarray:
    """Colours of the leaves, uint8 (leaves, 3).

    Leaves of one class of the level above the last share a range of hues; leaves without such a class are grey.
    """
    return _choose([_pool(*hues) for hues in _hue_ranges(hierarchy)])


def level_colours(hierarchy: Hierarchy, level: int) -> np.ndarray:
    """Colours of the classes of one level, uint8 (classes, 3): above the last level, the mean hue of their leaves."""
    if level == hierarchy.num_levels - 1:
        return leaf_colours(hierarchy)[: hierarchy.num_classes[level]]  # the first leaves are the last level's classes
    hues, ancestors = _hue_ranges(hierarchy).mean(1), hierarchy.ancestors[:, level].numpy()
    members = [hues[(ancestors == label) & ~np.isnan(hues)] for label in range(hierarchy.num_classes[level])]
    return _choose([_pool(*[found.mean() if found.size else math.nan] * 2) for found in members])


def _hue_ranges(hierarchy: Hierarchy) -> np.ndarray:
    """First and last hue in degrees that each leaf may have, float (leaves, 2); NaN for leaves without a group."""
    groups = [hierarchy.path(*leaf)[:-1] or leaf for leaf in hierarchy.leaves]
    groups = [group if group[-1] != IGNORE else None for group in groups]
    # Sorted by path, so that groups of one upper class are neighbours. From one to the next it is two steps.
    sizes = {group: groups.count(group) for group in sorted({group for group in groups if group})}
    step = 360 / max(sum(sizes.values()) + len(sizes), 1)
    ranges, start = {None: (math.nan, math.nan)}, 210  # so that the mean over all groups is a red
    for group, size in sizes.items():
        ranges[group] = (start, start + step * (size - 1))
        start += step * (size + 1)
    return np.array([ranges[group] for group in groups])


def _pool(first_hue: float, last_hue: float) -> np.ndarray:
    """The colours within a range of hues that a screen can show, OKLab (n, 3); greys if the range is NaN."""
    if math.isnan(first_hue):
        return np.array([(lightness, 0, 0) for lightness in (0.86, *np.linspace(0.35, 0.8, 16))])
    hues = np.radians(np.linspace(first_hue, last_hue, 9))
    lightness, chroma, hue = np.meshgrid(np.linspace(0.5, 0.85, 8), [0.11, 0.15, 0.19], hues, indexing="ij")
    colours = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], -1).reshape(-1, 3)
    linear = (colours @ OKLAB_TO_LMS.T) ** 3 @ LMS_TO_RGB.T
    return colours[((linear >= 0) & (linear <= 1)).all(1)]


def _choose(pools: Sequence[np.ndarray]) -> np.ndarray:
    """One colour of each pool of OKLab (n, 3), each as far as can be from those before it: uint8 (pools, 3)."""
    chosen = [np.zeros(3)]  # black is for ignored pixels
    for pool in pools:
        # Lightness counts less, as the picture below the colours changes it.
        difference = (pool[:, None] - np.array(chosen)) * (0.6, 1, 1)
        chosen.append(pool[np.linalg.norm(difference, axis=2).min(1).argmax()])
    linear = ((np.array(chosen[1:]) @ OKLAB_TO_LMS.T) ** 3 @ LMS_TO_RGB.T).clip(0, 1)
    return np.rint(255 * np.where(linear < 0.0031, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)).astype("u1")
