"""A few numbers an image, in which a turned, mirrored, resized, re-encoded or brightened copy is easy to recognise.

The picture's luminance is squashed to 64 x 64 and its lowest 16 x 16 frequencies (DCT) are kept. Turning by 90 degrees
and mirroring change signs of these and transpose them, so all eight ways to look at an image come from one descriptor.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from PIL import Image
from scipy.fft import dctn

from common.data.rows import ImageRows
from common.images.files import BAD_IMAGE, explain, load_image

SIDE = 64
"""Of the square that images are squashed to, pixels"""

FREQUENCIES = 16
"""Kept in each direction"""

FLAT = 1.5
"""Standard deviation of the luminance, in grey levels, below which an image shows nothing to compare"""

TRANSFORMS = (
    ("none", None),
    ("mirrored left to right", Image.Transpose.FLIP_LEFT_RIGHT),
    ("mirrored top to bottom", Image.Transpose.FLIP_TOP_BOTTOM),
    ("rotated by 180", Image.Transpose.ROTATE_180),
    ("transposed", Image.Transpose.TRANSPOSE),
    ("rotated by 90 clockwise", Image.Transpose.ROTATE_270),
    ("rotated by 90 counterclockwise", Image.Transpose.ROTATE_90),
    ("transposed over the other diagonal", Image.Transpose.TRANSVERSE),
)
"""Name, and Pillow's; in the order of :func:`all_turned`"""

WAY_BACK = np.array([0, 1, 2, 3, 4, 6, 5, 7])
"""Number of what undoes each of them"""


def turned(image: Image.Image, transform: int) -> Image.Image:
    """An image turned in the way of a number in TRANSFORMS."""
    how = TRANSFORMS[transform][1]
    return image if how is None else image.transpose(how)


def luminance(source: bytes | str, transform: int = 0) -> np.ndarray:
    """float32 (SIDE, SIDE), 0 to 255: the image squashed to a square and turned; raises what load_image does."""
    image = load_image(source, at_least=(2 * SIDE, 2 * SIDE)).convert("L")
    shrinks = min(image.size) >= 2 * SIDE
    image = image.resize((SIDE, SIDE), Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR)
    return np.asarray(turned(image, transform), dtype=np.float32)


def frequencies(pixels: np.ndarray) -> np.ndarray:
    """float32 (FREQUENCIES, FREQUENCIES) of luminance (SIDE, SIDE), the mean set to 0."""
    spectrum = dctn(pixels, norm="ortho")[:FREQUENCIES, :FREQUENCIES]
    spectrum[0, 0] = 0
    return spectrum


def all_turned(spectra: np.ndarray) -> np.ndarray:
    """Spectra (n, k, k) as those of the images turned in each way of :data:`TRANSFORMS`: (n, 8, k, k)."""
    sign = (-1.0) ** np.arange(spectra.shape[-1], dtype=np.float32)
    flipped = [np.float32(1), sign, sign[:, None], sign * sign[:, None]]
    return np.stack([base * s for base in (spectra, spectra.swapaxes(1, 2)) for s in flipped], axis=1)


def whitening(spectra: np.ndarray) -> np.ndarray:
    """float32 (k, k): weights that make all frequencies of a data set count the same, so that details tell.

    The same for images and their turned copies. Spectra (n, k, k) of a sample are enough.
    """
    power = np.square(spectra, dtype=np.float32)
    power /= np.maximum(power.sum((1, 2), keepdims=True), 1e-6)
    mean = power.sum(0) / max(len(power), 1)
    mean[0, 0] = np.inf
    return 1 / np.sqrt((mean + mean.T) / 2 + 1e-5)  # which compression adds; frequencies below it tell nothing


def unit(rows: np.ndarray) -> np.ndarray:
    """Vectors (..., d) of length 1."""
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-6)


def unturned(spectra: np.ndarray) -> np.ndarray:
    """float32 (n, k * k) of length 1, the same for an image and its turned copies, from whitened spectra (n, k, k).

    The sizes of frequencies; of two that transposing exchanges, sum and difference.
    """
    k = spectra.shape[-1]
    size = unit(np.abs(spectra).reshape(-1, k * k)).reshape(-1, k, k)
    above, across = np.triu(np.ones((k, k), bool), 1), size.swapaxes(1, 2)
    sums, differences = (size + across) / np.sqrt(2), np.abs(size - across) / np.sqrt(2)
    flat = np.where(above, differences, np.where(above.T, sums, size)).reshape(-1, k * k)
    return unit(flat - flat.sum(0) / max(len(flat), 1)).astype(np.float32)


def describe(images: ImageRows, row: int) -> dict[str, Any]:
    """What is known of a row's image.

    Returns:
        ``spectrum`` float16 (16, 16), ``content`` uint64 (2,), a hash of the file, ``contrast`` float32, in grey
        levels, and ``problem``, a sentence if the image does not decode.
    """
    try:
        source = images.checked(images.encoded([row])[0])
        if isinstance(source, str):
            source = Path(source).read_bytes()
        pixels = luminance(source)
    except (*BAD_IMAGE, MemoryError) as error:
        return undescribed(images, row, explain(error))
    content = np.frombuffer(xxhash.xxh3_128_digest(source), dtype=np.uint64)
    spectrum = frequencies(pixels).astype(np.float16)
    return {"spectrum": spectrum, "content": content, "contrast": np.float32(pixels.std()), "problem": ""}


def undescribed(images: ImageRows, row: int, problem: str = "decoding it ends the process") -> dict[str, Any]:
    """What stands for an image that does not decode."""
    told, spectrum = f"{images.describe(row)}: {problem}", np.zeros((FREQUENCIES, FREQUENCIES), np.float16)
    return {"spectrum": spectrum, "content": np.zeros(2, np.uint64), "contrast": np.float32(0), "problem": told}
