"""Mask files of every kind -> numbers, one per pixel.

Like files.py, this imports no torch.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping

import numpy as np
from PIL import Image

from ..system.files import retried
from .files import TURNS, decoding, orientation, upright

IGNORED_PIXEL = 255
"""Value of a pixel without a label, in mask files and in the masks that data loaders return."""

SPREAD = {"L;2": 85, "L;4": 17}
"""Factor with which Pillow scales grey values of 2 or 4 bits to 0..255"""

BAND = 256
"""Rows of a mask in colours that are looked up at a time"""


@retried
@decoding()
def read_mask(
    source: bytes | str,
    num_classes: int,
    palette: Mapping[int, int] | None = None,
    ignored: Collection[int] = (),
    turned: int = 1,
) -> np.ndarray:
    """uint8 (height, width): the values of a palette, grey or grey-in-RGB file, a class or 255 where there is none.

    Args:
        source: the file's content, or its path.
        num_classes: values are less.
        palette: class of each colour 0xRRGGBB; colours then count, whatever the kind of the file.
        ignored: values that stand for no class, beside 255.
        turned: EXIF orientation of the image that the mask was drawn on as it lies in its file.

    Raises:
        ValueError: if a value is neither, the file's colours are not class numbers, or it is of a kind that cannot be.
        OSError, SyntaxError, EOFError: from Pillow, if the file is broken.
    """
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        if image.format in ("JPEG", "MPO"):
            raise ValueError("a JPEG file cannot be a mask: it changes values; masks must be PNG or TIFF")
        raw_mode = _raw_mode(image)
        image.load()
        if orientation(image) == 1 and turned in TURNS:
            image = image.transpose(TURNS[turned])
        image = upright(image)
        alpha = image.getchannel("A") if image.mode in {"LA", "PA", "RGBA"} else None
        if alpha is not None and alpha.getextrema()[0] < 255:
            raise ValueError("the mask is partly transparent; save it without transparency")
        if palette is not None:
            return _by_colour(image, palette)
        return _checked(_plain_values(image, raw_mode), num_classes, ignored)


def colour_codes(colours: np.ndarray) -> np.ndarray:
    """uint32 (height, width): RGB pixels as the numbers 0xRRGGBB."""
    return colours.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)


def _by_colour(image: Image.Image, palette: Mapping[int, int]) -> np.ndarray:
    values = np.empty(image.size[::-1], np.uint8)
    for top in range(0, image.height, BAND):  # codes take eight times the memory
        band = image.crop((0, top, image.width, min(top + BAND, image.height))).convert("RGB")
        found, inverse = np.unique(colour_codes(np.asarray(band)), return_inverse=True)
        unknown = [f"#{code:06x}" for code in found.tolist() if code not in palette]
        if unknown:
            raise ValueError(f"mask colours {', '.join(unknown[:5])} are not in the palette (--mask_palette)")
        part = np.array([palette[code] for code in found.tolist()], dtype=np.uint8)[inverse]
        values[top : top + band.height] = part.reshape(band.height, -1)
    return values


def _checked(values: np.ndarray, num_classes: int, ignored: Collection[int]) -> np.ndarray:
    if ignored:
        values = np.where(np.isin(values, list(ignored)), IGNORED_PIXEL, values)
    counted = values.dtype == np.uint8  # as most are, and then in little memory
    present = np.flatnonzero(Image.fromarray(values).histogram()) if counted else np.unique(values)
    wrong = [value for value in present.tolist() if not 0 <= value < num_classes and value != IGNORED_PIXEL]
    if wrong:
        row, column = np.argwhere(np.isin(values, wrong))[0].tolist()
        raise ValueError(
            f"mask values {wrong[:5]} are neither a class (0 to {num_classes - 1}) nor {IGNORED_PIXEL} for ignored "
            f"(see --ignore_values), the first in row {row}, column {column}"
        )
    return np.array(values, np.uint8)  # Pillow's memory must not be written to


def _raw_mode(image: Image.Image) -> str:
    """Pillow's raw mode, which tells how the file stores values; to be read before it is decoded."""
    args = image.tile[0].args if image.tile else None
    return str(args[0] if isinstance(args, tuple) and args else args)


def _plain_values(image: Image.Image, raw_mode: str) -> np.ndarray:
    """The values of a mask file with a palette, in grey or in grey stored as RGB."""
    if image.mode in {"1", "L", "P", "I", "I;16", "I;16B", "I;16L", "F"}:
        values = np.asarray(image)
        if image.mode == "F" and not (np.isfinite(values) & (values == np.round(values))).all():
            raise ValueError("the mask has fractions; its values must be whole numbers")
        values = values.astype(np.int64 if image.mode[0] in "IF" else np.uint8)
        return values // SPREAD[raw_mode] if raw_mode in SPREAD else values
    if ";16" in raw_mode:  # Pillow keeps the upper 8 bits alone
        raise ValueError(f"the mask has 16 bits a channel ({raw_mode}); save it with 8")
    bands = [np.asarray(band) for band in image.split()]
    if image.mode in {"LA", "PA", "RGBA"}:
        bands.pop()
    if any((band != bands[0]).any() for band in bands[1:]):
        raise ValueError(f"the mask has colours ({image.mode}); say what they mean with --mask_palette FILE")
    return bands[0]
