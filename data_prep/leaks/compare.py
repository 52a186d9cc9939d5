"""Two images side by side: how well they agree once one is turned as the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import ImageChops

from common.data.rows import ImageRows
from common.images.files import BAD_IMAGE, load_image

from .describe import SIDE, TRANSFORMS, luminance

LEAST_DETAIL = 0.5
"""Agreement of fine structure below which two images are not the same picture, however alike they are from afar"""

Place = tuple[str, int]
"""Split and row"""


def _blur(sigma: float) -> np.ndarray:
    """float32 (SIDE, SIDE): a matrix that blurs along one axis; borders are weighted by what lies inside."""
    distance = np.subtract.outer(np.arange(SIDE), np.arange(SIDE))
    weights = np.exp(-0.5 * np.square(distance / sigma))
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


_FINE, _COARSE = _blur(0.7), _blur(2.5)


def agreement(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Correlation of two luminances (SIDE, SIDE), and of their fine structure; the best of shifts by up to a pixel.

    Fine structure is what a blur of 0.7 pixels leaves and one of 2.5 takes away.
    """
    details = [_FINE @ image @ _FINE.T - _COARSE @ image @ _COARSE.T for image in (first, second)]
    shifts = [(dy, dx) for dy in (0, 1, 2) for dx in (0, 1, 2)]
    whole = max(_correlation(_window(first, *shift), _window(second, 1, 1)) for shift in shifts)
    return whole, max(_correlation(_window(details[0], *shift), _window(details[1], 1, 1)) for shift in shifts)


def _window(image: np.ndarray, top: int, left: int) -> np.ndarray:
    return image[top : SIDE - 2 + top, left : SIDE - 2 + left]


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    first, second = first - first.mean(), second - second.mean()
    length = float(np.sqrt((first * first).sum() * (second * second).sum()))
    return float((first * second).sum()) / length if length else 0.0


def compare(
    images: dict[str, ImageRows], pairs: Sequence[tuple[Place, Place, int]], number: int
) -> dict[str, float | bool]:
    """``correlation`` and ``detail`` (see :func:`agreement`) of a pair, and ``same``, whether all pixels are equal.

    Args:
        images: of each split.
        pairs: two places each, and the number in TRANSFORMS that turns the first image into the second.
        number: of the pair.
    """
    *places, transform = pairs[number]
    try:
        sources = [images[split].checked(images[split].encoded([row])[0]) for split, row in places]
        whole, detail = agreement(turn_pixels(luminance(sources[0]), transform), luminance(sources[1]))
        same = whole > 0.999 and _same_pixels(*sources, transform)
    except BAD_IMAGE:
        return unlike(number)
    return {"correlation": whole, "detail": detail, "same": same}


def unlike(number: int) -> dict[str, float | bool]:
    """What stands for a pair of which an image does not decode."""
    return {"correlation": 0.0, "detail": 0.0, "same": False}


def turn_pixels(pixels: np.ndarray, transform: int) -> np.ndarray:
    """An image (h, w) turned in the way of a number in TRANSFORMS."""
    across, over, mirrored = transform >> 2 & 1, transform >> 1 & 1, transform & 1
    pixels = pixels.T if across else pixels
    pixels = pixels[::-1] if over else pixels
    return pixels[:, ::-1] if mirrored else pixels


def _same_pixels(first: bytes | str, second: bytes | str, transform: int) -> bool:
    one, other = load_image(first), load_image(second)
    how = TRANSFORMS[transform][1]
    one = one if how is None else one.transpose(how)
    return one.size == other.size and ImageChops.difference(one, other).getbbox() is None
