"""Two images side by side: how well they agree once one is turned as the other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from PIL import ImageChops
from scipy.ndimage import gaussian_filter

from common.data.rows import ImageRows
from common.images.files import BAD_IMAGE, load_image

from .describe import SIDE, luminance, turned

LEAST_DETAIL = 0.5
"""Agreement of fine structure below which two images are not the same picture, however alike they are from afar"""

UNLIKE = {"correlation": 0.0, "detail": 0.0, "same": False}
"""What stands for a pair of which an image does not decode"""


def agreement(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Correlation of two luminances (SIDE, SIDE), and of their fine structure; the best of shifts by up to a pixel.

    Fine structure is what a blur of 0.7 pixels leaves and one of 2.5 takes away.
    """
    details = [gaussian_filter(image, 0.7) - gaussian_filter(image, 2.5) for image in (first, second)]
    return _best_correlation(first, second), _best_correlation(*details)


def _best_correlation(first: np.ndarray, second: np.ndarray) -> float:
    size, inner = SIDE - 2, second[1:-1, 1:-1].ravel()
    shifted = [first[y : size + y, x : size + x].ravel() for y, x in product(range(3), repeat=2)]
    if not inner.std() or not first.std():
        return 0.0
    return float(np.nan_to_num(np.corrcoef([inner, *shifted])[0, 1:]).max())


def compare(
    images: dict[str, ImageRows], pairs: Sequence[tuple[tuple[str, int], tuple[str, int], int]], number: int
) -> dict[str, float | bool]:
    """``correlation`` and ``detail`` (see :func:`agreement`) of a pair, and ``same``, whether all pixels are equal.

    Args:
        images: of each split.
        pairs: two places (split, row) each, and the number in TRANSFORMS that turns the first image into the second.
        number: of the pair.
    """
    *places, transform = pairs[number]
    try:
        sources = [images[split].checked(images[split].encoded([row])[0]) for split, row in places]
        whole, detail = agreement(luminance(sources[0], transform), luminance(sources[1]))
        same = whole > 0.999
        if same:
            one, other = turned(load_image(sources[0]), transform), load_image(sources[1])
            same = one.size == other.size and ImageChops.difference(one, other).getbbox() is None
    except BAD_IMAGE:
        return UNLIKE
    return {"correlation": whole, "detail": detail, "same": same}
