"""How ARTeFACT's scans and masks get into a prepared folder: reduced, cut into tiles, or as they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from common.images.files import BAD_IMAGE, explain
from common.images.mask_files import IGNORED_PIXEL
from data_prep.scans import load_mask, load_reduced, rows_of
from data_prep.stores import (
    BadRowError,
    Cells,
    Source,
    Store,
    checked_size,
    count_values,
    encode,
    packed,
    read_bytes,
    scaled,
)

# The colours in which the data set's card shows the classes (its column annotation_rgb).
COLOURS = {
    "Clean": 0x000000,
    "Material loss": 0x1CE6FF,
    "Peel": 0xFF34FF,
    "Dust": 0xFF4A46,
    "Scratch": 0x008941,
    "Hair": 0x006FA6,
    "Dirt": 0xA30059,
    "Fold": 0xFFA500,
    "Writing": 0x7A4900,
    "Cracks": 0x0000A6,
    "Staining": 0x63FFAC,
    "Stamp": 0x004D43,
    "Sticker": 0x8FB0FF,
    "Puncture": 0x997D87,
    "Burn marks": 0x809693,
    "Lightleak": 0xF6FF1B,
}
BACKGROUND_COLOUR = 0x5A0007
ENOUGH_PIXELS = 50

Palette = tuple[tuple[int, int], ...]
"""(0xRRGGBB, value) of every class, and of what is to be ignored"""


def palette_of(names: Sequence[str]) -> Palette:
    """The published colours of classes, given in the order of their values."""
    known = [(COLOURS[name], value) for value, name in enumerate(names) if name in COLOURS]
    return (*known, (BACKGROUND_COLOUR, IGNORED_PIXEL))


@dataclass(frozen=True)
class ScanStore(Store):
    """Scans with masks.

    Args:
        resize_longer: reduce to this longer side; ``None`` to keep the size.
        tile: cut into squares of this many pixels, those at the right and lower edge smaller; tiles that are ignored
            altogether are left out.
        palette: for masks in colour.
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

    def __call__(self, sources: Mapping[str, Source]) -> list[Cells]:
        image, mask = sources[self.image_column], sources[self.mask_column]
        size = checked_size(image, self.max_megapixels)
        if checked_size(mask, self.max_megapixels, "mask") != size:
            raise BadRowError("sizes differ", "the mask and its image are of different sizes")
        target = scaled(size, min(1.0, (self.resize_longer or max(size)) / max(size)))
        values = self._mask(mask, size, target)
        try:
            parts = list(self._parts(image, values, size, target))
        except BAD_IMAGE as error:
            raise BadRowError("broken", explain(error)) from error
        if not parts:
            raise BadRowError("no label", "every pixel of the mask is ignored")
        return [self._cells(image, mask, *part, scale=target[0] / size[0]) for part in parts]

    def _mask(self, mask: Source, size: tuple[int, int], target: tuple[int, int]) -> np.ndarray:
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
        self, image: Source, values: np.ndarray, size: tuple[int, int], target: tuple[int, int]
    ) -> Iterator[tuple[bytes, np.ndarray, tuple[int, int]]]:
        """Encoded image, mask, and place of its upper left corner, of the whole or of every tile."""
        if not self.tile:
            if (values != IGNORED_PIXEL).any():
                yield self._whole(image, size, target), values, (0, 0)
            return
        if target == size:
            bands: Any = rows_of(image.content, size, self.tile)
        else:
            reduced = np.asarray(load_reduced(image.content, size, target))
            bands = (reduced[top : top + self.tile] for top in range(0, target[1], self.tile))
        for row, band in enumerate(bands):
            for left in range(0, target[0], self.tile):
                top = row * self.tile
                part = values[top : top + self.tile, left : left + self.tile]
                if (part != IGNORED_PIXEL).any():
                    pixels = np.ascontiguousarray(band[:, left : left + self.tile])
                    yield encode(Image.fromarray(pixels), "JPEG", quality=self.quality), part, (left, top)

    def _whole(self, image: Source, size: tuple[int, int], target: tuple[int, int]) -> bytes:
        if target == size:
            return read_bytes(image)
        return encode(load_reduced(image.content, size, target), "JPEG", quality=self.quality)

    def _cells(
        self, image: Source, mask: Source, content: bytes, values: np.ndarray, corner: tuple[int, int], scale: float
    ) -> Cells:
        height, width = values.shape
        as_it_was = not self.tile and scale == 1
        cells = {
            self.image_column: {"bytes": content, "path": image.name or None}
            if as_it_was
            else packed(content, image.name, ".jpg"),
            self.mask_column: packed(encode(Image.fromarray(np.ascontiguousarray(values)), "PNG"), mask.name, ".png"),
            "size": (width, height),
            "pixels": count_values(values),
            "scale": scale,
        }
        return cells | ({"tile_x": corner[0], "tile_y": corner[1]} if self.tile else {})


def compare_colours(values: np.ndarray, colours: np.ndarray, palette: Palette) -> tuple[int, str | None]:
    """Whether kinds of damage have the colours that the data set's card gives them, which tells their order.

    Clean and background are passed over, and so are colours that are nobody's.

    Args:
        values: uint8 (height, width), a mask.
        colours: uint8 (height, width, 3), the same in colours.
        palette: the colours.

    Returns:
        The number of values that have their colour; and what is wrong, or ``None``. A value counts if it has 50
        pixels, and its most frequent colour is its colour.
    """
    known = {colour: value for colour, value in palette if value not in (0, IGNORED_PIXEL)}
    red, green, blue = np.moveaxis(colours.astype(np.uint32), -1, 0)
    codes = red << 16 | green << 8 | blue
    agreeing = 0
    for value in np.unique(values[values != IGNORED_PIXEL]).tolist():
        shown, counts = np.unique(codes[values == value], return_counts=True)
        meant = known.get(int(shown[counts.argmax()]))
        if value == 0 or meant is None or counts.sum() < ENOUGH_PIXELS:
            continue
        if meant != value:
            return agreeing, f"value {value} is shown in the colour of value {meant}"
        agreeing += 1
    return agreeing, None
