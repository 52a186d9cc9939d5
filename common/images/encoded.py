"""Encoded image files -> pixels: decoding no more than is needed, and resizing.

Pixels are uint8, and the three colours of a pixel lie side by side in memory (channels last), as they are decoded and
as torchvision resizes them fastest.
"""

from __future__ import annotations

import io
import math
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from ..system.files import retried
from .files import decoding, load_image, orientation, plain_jpeg_size

# Bytes of pixels that are decoded into reused memory; for larger images new memory costs little in comparison.
SCRATCH_LIMIT = 2**24

_read_file = retried(Path.read_bytes)


class EncodedImage:
    """An image file that is decoded when it is known which part of it is needed, and how large.

    Its ``shape`` is height and width, as a person would see the image.

    Raises:
        OSError, ValueError, SyntaxError, Image.DecompressionBombError: here and in the methods, from Pillow, if the
            file is broken or absurdly large.
    """

    def __init__(self, source: bytes | str | Path) -> None:
        self.content = source if isinstance(source, bytes) else _read_file(Path(source))
        self.decoded: torch.Tensor | None = None
        size = plain_jpeg_size(self.content)
        self.is_jpeg = self.is_upright = self.is_plain = size is not None
        if size:
            self.size, self.shape = size, size[::-1]
        else:
            self._read_header()

    @decoding()
    def _read_header(self) -> None:
        """The size of any other file, from Pillow; files other than JPEGs are decoded at once."""
        with Image.open(io.BytesIO(self.content)) as image:
            self.is_jpeg = image.format in ("JPEG", "MPO")
            turned = orientation(image) if self.is_jpeg else 1
            self.is_upright = turned == 1
            self.is_plain = self.is_jpeg and image.mode in ("RGB", "L") and self.is_upright
            self.size = image.size
        self.shape = self.size if turned >= 5 else self.size[::-1]
        if not self.is_jpeg:
            self.decoded = as_pixels(load_image(self.content))
            self.shape = tuple(self.decoded.shape[1:])

    def pixels(self) -> torch.Tensor:
        """uint8 (3, height, width), the same as from :func:`common.images.files.load_image`.

        Plain JPEGs are decoded by libjpeg-turbo, which is faster; everything else by Pillow.
        """
        if self.decoded is not None:
            return self.decoded
        return as_pixels(self._decode())

    def _decode(self, reduction: int = 1, reuse: bool = False) -> np.ndarray | Image.Image:
        """A JPEG's pixels (height, width, 3), at this fraction of its size; in memory that the next image may take."""
        memory = _scratch.memory if reuse and 3 * math.prod(self.size) <= SCRATCH_LIMIT else None
        width, height = (side // reduction for side in self.size)
        if self.is_plain:
            with suppress(ValueError):  # Pillow may still decode it, or gives the better message
                return simplejpeg.decode_jpeg(
                    self.content, fastdct=False, fastupsample=False, min_height=height, min_width=width, buffer=memory
                )
        return load_image(self.content, at_least=(width, height))

    def resized(
        self, box: Sequence[int], size: Sequence[int], how: InterpolationMode, leaves: float = 2
    ) -> torch.Tensor:
        """A part of the image, resized with antialiasing.

        Large JPEGs are decoded at 1/2, 1/4 or 1/8 of their size, as far as the result allows, which is faster. The
        result then differs from that of the whole image, by half a grey level on average (1.5 at most) where the
        decoded part is twice as large as the result, by less than 0.3 where it is six times as large.

        Args:
            box: top, left, height and width of the part.
            size: height and width of the result, uint8 (3, height, width).
            how: the filter.
            leaves: how many times as large as the result the part must still be when it is decoded smaller.
        """
        reduction = self.reduction_for(box[2:], size, leaves)
        if reduction == 1:
            top, left, height, width = box
            whole = as_pixels(self._decode(reuse=True)) if self.decoded is None else self.decoded
            return resize_part(whole[:, top : top + height, left : left + width], size, how)
        decoded = self._decode(reduction)
        image = Image.fromarray(decoded) if isinstance(decoded, np.ndarray) else decoded
        top, left, height, width = (side / reduction for side in box)  # Pillow takes fractions of pixels
        edges = (left, top, left + width, top + height)
        return as_pixels(image.resize(tuple(reversed(size)), Image.Resampling[how.name], edges))

    def reduction_for(self, box: Sequence[int], size: Sequence[int], leaves: float = 2) -> int:
        """8, 4, 2 or 1: how far (height, width) ``box`` may be reduced before it is resized to ``size``."""
        if not self.is_jpeg or (not self.is_upright and any(side % 8 for side in self.size)):
            return 1  # a rotated image would begin with the incomplete blocks at its end
        scale = min(b / s for b, s in zip(box, size, strict=True))
        return next((reduction for reduction in (8, 4, 2) if scale >= leaves * reduction), 1)


class _Scratch(threading.local):
    """Memory that is reused for one small image after the other, per thread."""

    def __init__(self) -> None:
        self.memory = np.empty(SCRATCH_LIMIT, np.uint8)


_scratch = _Scratch()


def as_pixels(image: Image.Image | np.ndarray) -> torch.Tensor:
    """An RGB image as uint8 (3, height, width); an array is not copied."""
    return torch.from_numpy(image if isinstance(image, np.ndarray) else np.array(image)).permute(2, 0, 1)


def resize_part(
    part: torch.Tensor, size: Sequence[int], how: InterpolationMode = InterpolationMode.BILINEAR
) -> torch.Tensor:
    """Resize part of an image, uint8 (3, height, width), with antialiasing; the result is a copy."""
    # Resizing contiguous memory takes half the time.
    copy = part[None].clone(memory_format=torch.channels_last)[0]
    return v2.functional.resize_image(copy, list(size), how, antialias=True)
