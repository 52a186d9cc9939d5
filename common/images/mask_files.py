"""Mask files of every kind -> numbers, one per pixel.

Like files.py, this imports no torch.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps

from ..files import retried

IGNORED_PIXEL = 255
"""Value of a pixel without a label, in mask files and in the masks that data loaders return."""

SPREAD = {"L;2": 85, "L;4": 17}
"""Factor with which Pillow scales grey values of 2 or 4 bits to 0..255"""


def read_mask(source: bytes | str, num_classes: int) -> np.ndarray:
    """uint8 (height, width): the values of a palette, grey or grey-in-RGB file, a class or 255 where there is none.

    Raises:
        ValueError: if a value is neither, or the file's colours are not class numbers.
        OSError, SyntaxError, EOFError: from Pillow, if the file is broken.
    """
    return read_mask_file(source, lambda image, raw_mode: _checked(image, raw_mode, num_classes))


@retried
def read_mask_file(source: bytes | str, interpret: Callable[[Image.Image, str], np.ndarray]) -> np.ndarray:
    """Decode a mask, apply its EXIF orientation, and call ``interpret`` with it and Pillow's raw mode of the file.

    Raises:
        ValueError: if it is partly transparent.
        OSError, SyntaxError, EOFError: from Pillow, if the file is broken.
    """
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        raw_mode = _raw_mode(image)
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        alpha = image.getchannel("A") if image.mode in {"LA", "PA", "RGBA"} else None
        if alpha is not None and alpha.getextrema()[0] < 255:
            raise ValueError("the mask is partly transparent; save it without transparency")
        return interpret(image, raw_mode)


def is_spread(image: Image.Image) -> bool:
    """Whether Pillow will scale the values of a grey file; to be called before it is decoded."""
    return _raw_mode(image) in SPREAD


def _checked(image: Image.Image, raw_mode: str, num_classes: int) -> np.ndarray:
    values = _plain_values(image, raw_mode)
    wrong = ((values < 0) | (values >= num_classes)) & (values != IGNORED_PIXEL)
    if wrong.any():
        found = np.unique(values[wrong])[:5].tolist()
        row, column = np.argwhere(wrong)[0].tolist()
        hint = " (JPEG changes values; masks must be PNG)" if image.format == "JPEG" else ""
        raise ValueError(
            f"mask values {found} are neither a class (0 to {num_classes - 1}) nor {IGNORED_PIXEL} for "
            f"ignored, the first in row {row}, column {column}{hint}"
        )
    return values.astype(np.uint8)


def _raw_mode(image: Image.Image) -> str:
    """Pillow's raw mode, which tells how the file stores values; to be read before it is decoded."""
    args = image.tile[0].args if image.tile else None
    return str(args[0] if isinstance(args, tuple) and args else args)


def _plain_values(image: Image.Image, raw_mode: str) -> np.ndarray:
    """The values of a mask file with a palette, in grey or in grey stored as RGB."""
    if image.mode in {"1", "L", "P", "I", "I;16", "I;16B", "I;16L"}:
        values = np.asarray(image).astype(np.int64 if image.mode.startswith("I") else np.uint8)
        return values // SPREAD.get(raw_mode, 1) if image.mode == "L" else values
    if ";16" in raw_mode:  # Pillow keeps the upper 8 bits alone
        raise ValueError(f"the mask has 16 bits a channel ({raw_mode}); save it with 8")
    bands = [np.asarray(band) for band in image.split()]
    if image.mode in {"LA", "PA", "RGBA"}:
        bands.pop()
    if image.mode == "F" or any((band != bands[0]).any() for band in bands[1:]):
        raise ValueError(f"the mask has colours ({image.mode}); say what they mean with --mask_palette FILE")
    return bands[0]
