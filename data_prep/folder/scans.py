"""How large scans and their masks get into a prepared folder: reduced, cut into tiles, or as they are.

Scans of more than a hundred megapixels are read without holding all of their pixels in memory: Pillow decodes JPEGs at
a half, a quarter or an eighth of their size; libvips reads other large RGB files row by row. Grey and palette files
take one byte a pixel, which Pillow may hold.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyvips
from PIL import Image, ImageOps

from common.images.files import BAD_IMAGE, ORIENTATION, explain, load_image
from common.images.mask_files import IGNORED_PIXEL, is_spread, read_mask

from .images import BadRowError, ImageFile, Store, count_values, encode, packed, scaled

Palette = tuple[tuple[int, int], ...]
"""(0xRRGGBB, value) of every class, and of what is to be ignored"""

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
    kind, mode, orientation = _header(content)
    if size[0] * size[1] <= LARGE or kind == "JPEG" or mode not in STREAMED:
        image = load_image(content, at_least=(2 * target[0], 2 * target[1]))
        return image if image.size == target else image.resize(target, Image.Resampling.LANCZOS)
    turned = target[::-1] if orientation >= 5 else target
    scan = _open(content)
    scan = scan.resize(turned[0] / scan.width, vscale=turned[1] / scan.height, kernel="lanczos3")
    with _vips_errors():
        image = Image.fromarray(scan.numpy())
    assert image.size == turned, "libvips rounds as we do"
    image.getexif()[ORIENTATION] = orientation
    return ImageOps.exif_transpose(image)


def rows_of(content: bytes | str, size: tuple[int, int], height: int) -> Iterator[np.ndarray]:
    """The upright RGB pixels of a file (bytes or path) of a ``size``, in bands from top to bottom.

    Yields:
        uint8 (height, width, 3); the last band may be lower.
    """
    _, mode, orientation = _header(content)
    if size[0] * size[1] <= LARGE or mode not in STREAMED or orientation in range(2, 9):
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
        return image.format, image.mode, Image.Image.getexif(image).get(ORIENTATION, 1)


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


# ---- masks


def load_mask(content: bytes | str, size: tuple[int, int], palette: dict[int, int]) -> Image.Image:
    """The values of a mask (bytes or path) of a ``size`` as an upright image of mode L.

    Args:
        content, size: the mask.
        palette: what colours mean: 0xRRGGBB -> value. Other colours must be grey, and stand for themselves.

    Raises:
        ValueError: a colour means nothing, or the mask is partly transparent.
        OSError, SyntaxError: it is broken.
    """
    with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
        if image.mode in {"L", "P"} and not is_spread(image):  # one byte a pixel
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return Image.fromarray(np.asarray(image)) if image.mode == "P" else image
        if image.mode == "RGBA" and image.getchannel("A").getextrema()[0] < 255:
            raise ValueError("the mask is partly transparent; save it without transparency")
        if image.mode not in {"RGB", "RGBA"}:
            return Image.fromarray(read_mask(content, IGNORED_PIXEL))
    values = np.empty(size[::-1], np.uint8)
    top = 0
    for band in rows_of(content, size, 256):
        values[top : top + len(band)] = _by_colour(band, palette)
        top += len(band)
    return Image.fromarray(values)


def colour_codes(colours: np.ndarray) -> np.ndarray:
    """uint32 (height, width): RGB pixels as the numbers 0xRRGGBB."""
    return colours.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)


def _by_colour(colours: np.ndarray, palette: dict[int, int]) -> np.ndarray:
    codes = colour_codes(colours)
    found, inverse = np.unique(codes, return_inverse=True)
    greys = {value * 0x010101: value for value in range(256)}
    values = [palette.get(code, greys.get(code)) for code in found.tolist()]
    unknown = [f"#{code:06x}" for code, value in zip(found.tolist(), values, strict=True) if value is None]
    if unknown:
        raise ValueError(f"mask colours {', '.join(unknown[:5])} are none of the published ones")
    return np.array(values, np.uint8)[inverse].reshape(codes.shape)


# ---- storing them


@dataclass(frozen=True)
class ScanStore(Store):
    """Scans with masks, reduced to a longer side, or cut into square tiles, those at the lower right edge smaller.

    Tiles that are ignored altogether are left out. The palette is for masks in colour.
    """

    resize_longer: int | None = None
    tile: int | None = None
    palette: Palette = ()

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
        values = self._scan_values(mask, size, target)
        try:
            cells = [self._cells(image, mask, *part) for part in self._parts(image, values, size, target)]
        except BAD_IMAGE as error:
            raise BadRowError("broken", explain(error)) from error
        if not cells:
            raise BadRowError("no label", "every pixel of the mask is ignored")
        return [{**entry, "scale": target[0] / size[0]} for entry in cells]

    def _scan_values(self, mask: ImageFile, size: tuple[int, int], target: tuple[int, int]) -> np.ndarray:
        """uint8 (height, width) values at the target's size, checked at full size."""
        try:
            full = load_mask(mask.content, size, dict(self.palette))
        except BAD_IMAGE as error:
            kind = "mask values" if "colours" in str(error) else "broken"
            raise BadRowError(kind, f"mask: {explain(error)}") from error
        present = [value for value, count in enumerate(full.histogram()) if count]
        wrong = [value for value in present if value >= self.num_classes and value != IGNORED_PIXEL]
        if wrong:
            told = f"mask values {wrong[:5]} are neither a class (0 to {self.num_classes - 1}) nor {IGNORED_PIXEL}"
            raise BadRowError("mask values", told)
        return np.asarray(full if target == size else full.resize(target, Image.Resampling.NEAREST))

    def _parts(
        self, image: ImageFile, values: np.ndarray, size: tuple[int, int], target: tuple[int, int]
    ) -> Iterator[tuple[bytes | None, np.ndarray, tuple[int, int]]]:
        """Encoded image (``None`` for the original file), mask, and upper left corner, of the scan or every tile."""
        if not self.tile:
            if (values != IGNORED_PIXEL).any():
                whole = None if target == size else load_reduced(image.content, size, target)
                yield whole and encode(whole, "JPEG", quality=self.quality), values, (0, 0)
            return
        if target == size:
            bands = rows_of(image.content, size, self.tile)
        else:
            reduced = np.asarray(load_reduced(image.content, size, target))
            bands = (reduced[top : top + self.tile] for top in range(0, target[1], self.tile))
        for top, band in zip(range(0, target[1], self.tile), bands, strict=True):
            for left in range(0, target[0], self.tile):
                part = values[top : top + self.tile, left : left + self.tile]
                if (part != IGNORED_PIXEL).any():
                    tile = Image.fromarray(band[:, left : left + self.tile].copy())
                    yield encode(tile, "JPEG", quality=self.quality), part, (left, top)

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
