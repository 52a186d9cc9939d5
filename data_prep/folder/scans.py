"""How large scans and their masks get into a prepared folder: reduced, cut into tiles, or as they are.

Scans of more than a hundred megapixels are read without holding all of their pixels in memory: Pillow decodes JPEGs at
a half, a quarter or an eighth of their size; libvips reads other large RGB files row by row. Grey and palette files
take one byte a pixel, which Pillow may hold.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyvips
from PIL import Image

from common.images.files import BAD_IMAGE, TURNS, explain, load_image, orientation
from common.images.mask_files import IGNORED_PIXEL

from .images import BadRowError, ImageFile, Store, count_values, encode, nearest, packed, read_values, scaled

LARGE = 20_000_000
"""Pixels above which an image is streamed; below, Pillow takes less than 100 MB"""

STRIP = 16
"""Rows asked of libvips at once"""

STREAMED = {"L", "RGB", "RGBA", "P", "LA"}
"""Pillow's modes of files that libvips reads to the same 8-bit colours"""


def load_reduced(content: bytes | str, size: tuple[int, int], target: tuple[int, int]) -> Image.Image:
    """Decode a file (bytes or path) to upright RGB and reduce it from ``size`` to ``target`` (width, height).

    Raises:
        OSError, ValueError, SyntaxError: it is broken.
    """
    kind, mode, turned = _header(content)
    if size[0] * size[1] <= LARGE or kind == "JPEG" or mode not in STREAMED:
        image = load_image(content, at_least=(2 * target[0], 2 * target[1]))
        return image if image.size == target else image.resize(target, Image.Resampling.LANCZOS)
    lying = target[::-1] if turned >= 5 else target
    scan = _open(content)
    scan = scan.resize(lying[0] / scan.width, vscale=lying[1] / scan.height, kernel="lanczos3")
    with _vips_errors():
        image = Image.fromarray(scan.numpy())
    assert image.size == lying, "libvips rounds as we do"
    return image.transpose(TURNS[turned]) if turned in TURNS else image


def rows_of(content: bytes | str, size: tuple[int, int], height: int) -> Iterator[np.ndarray]:
    """The upright RGB pixels of a file (bytes or path) of a ``size``, in bands from top to bottom.

    Yields:
        uint8 (height, width, 3); the last band may be lower.
    """
    _, mode, turned = _header(content)
    if size[0] * size[1] <= LARGE or mode not in STREAMED or turned in TURNS:
        pixels = np.asarray(load_image(content))
        yield from (pixels[top : top + height] for top in range(0, size[1], height))
        return
    scan = _open(content)
    region = pyvips.Region.new(scan)
    for top in range(0, scan.height, height):
        band = np.empty((min(height, scan.height - top), scan.width, 3), np.uint8)
        for start in range(0, len(band), STRIP):  # libvips keeps several times what is asked for at once
            part = band[start : start + STRIP]
            with _vips_errors():
                strip = region.fetch(0, top + start, scan.width, len(part))
            part[:] = np.frombuffer(strip, np.uint8).reshape(part.shape)
        yield band


def _header(content: bytes | str) -> tuple[str, str, int]:
    """Format and mode in Pillow's words, and EXIF orientation."""
    with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
        return image.format, image.mode, orientation(image)


def _open(content: bytes | str) -> pyvips.Image:
    """A file as 8-bit RGB on white, not decoded yet; a file that ends early is an error."""
    options = {"access": "sequential", "fail_on": "truncated"}
    with _vips_errors():
        if isinstance(content, bytes):
            scan = pyvips.Image.new_from_buffer(content, "", **options)
        else:
            scan = pyvips.Image.new_from_file(content, **options)
        if scan.hasalpha():
            scan = scan.flatten(background=255)
        scan = scan.colourspace("srgb")
        return scan if scan.format == "uchar" else scan.cast("uchar")


@contextmanager
def _vips_errors() -> Iterator[None]:
    """What libvips raises becomes an OSError, as Pillow's errors are."""
    try:
        yield
    except pyvips.Error as error:
        lines = str(error.detail or error.message).strip().splitlines()
        raise OSError(lines[-1].strip() if lines else "it cannot be decoded") from error


# ---- storing them


@dataclass(frozen=True)
class ScanStore(Store):
    """Scans with masks, reduced to a longer side, or cut into square tiles, those at the lower right edge smaller.

    Tiles that are ignored altogether are left out. The palette is for masks in colours alone.
    """

    resize_longer: int | None = None
    tile: int | None = None

    @property
    def embeds(self) -> bool:
        return True

    @property
    def extra_columns(self) -> dict[str, str]:
        tiles = {"tile_x": "int32", "tile_y": "int32"} if self.tile else {}
        return {"scale": "float64"} | tiles

    def __call__(self, image: ImageFile, mask: ImageFile | None = None) -> list[dict[str, Any]]:
        size = self._checked_size(image, mask)
        scale = min(1.0, (self.resize_longer or max(size)) / max(size))
        target = scaled(size, scale)
        values = nearest(self._mask_values(mask, size), target)
        try:
            cells = [self._cells(image, mask, *part) for part in self._parts(image, values, size, target)]
        except BAD_IMAGE as error:
            raise BadRowError("broken", explain(error)) from error
        if not cells:
            raise BadRowError("no label", "every pixel of the mask is ignored")
        return [{**entry, "scale": target[0] / size[0]} for entry in cells]

    def _mask_values(self, mask: ImageFile, size: tuple[int, int]) -> np.ndarray:
        """Of a mask in colours by the palette, in which greys stand for themselves; else its own values."""
        if _header(mask.content)[1] not in {"RGB", "RGBA"}:
            return read_values(mask, self.num_classes)
        greys = [(value * 0x010101, value) for value in (*range(self.num_classes), IGNORED_PIXEL)]
        return read_values(mask, self.num_classes, {**dict(greys), **dict(self.palette)})

    def _parts(
        self, image: ImageFile, values: np.ndarray, size: tuple[int, int], target: tuple[int, int]
    ) -> Iterator[tuple[bytes | None, np.ndarray, tuple[int, int]]]:
        """Encoded image (``None`` for the original file), mask, and upper left corner, of the scan or every tile."""
        tile = self.tile or max(target)
        bands: Iterable[np.ndarray | None] = rows_of(image.content, size, tile) if self.tile else [None]
        if target != size:
            reduced = np.asarray(load_reduced(image.content, size, target))
            bands = (reduced[top : top + tile] for top in range(0, target[1], tile))
        for top, band in zip(range(0, target[1], tile), bands, strict=True):
            for left in range(0, target[0], tile):
                part = values[top : top + tile, left : left + tile]
                if (part != IGNORED_PIXEL).any():
                    shown = None if band is None else Image.fromarray(band[:, left : left + tile].copy())
                    yield shown and encode(shown, "JPEG", quality=self.quality), part, (left, top)

    def _cells(
        self, image: ImageFile, mask: ImageFile, content: bytes | None, values: np.ndarray, corner: tuple[int, int]
    ) -> dict[str, Any]:
        as_it_is = {"bytes": image.read(), "path": image.name or None} if content is None else None
        png = encode(Image.fromarray(np.ascontiguousarray(values)), "PNG")
        cells = {
            self.image_column: as_it_is or packed(content, image.name, ".jpg"),
            self.mask_column: packed(png, mask.name, ".png"),
            "size": values.shape[::-1],
            "pixels": count_values(values),
        }
        return cells | ({"tile_x": corner[0], "tile_y": corner[1]} if self.tile else {})
