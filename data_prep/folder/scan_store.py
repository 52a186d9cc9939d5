"""How ARTeFACT's scans and masks get into a prepared folder: reduced, cut into tiles, or as they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from common.images.files import BAD_IMAGE, explain
from common.images.mask_files import IGNORED_PIXEL

from .images import BadRowError, Cells, ImageFile, Store, count_values, encode, packed, scaled
from .scans import colour_codes, load_mask, load_reduced, rows_of

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

    def __call__(self, files: Mapping[str, ImageFile]) -> list[Cells]:
        size = self._checked_size(files)
        image, mask = files[self.image_column], files[self.mask_column]
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
                yield None if target == size else self._jpeg(load_reduced(image.content, size, target)), values, (0, 0)
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
                    yield self._jpeg(Image.fromarray(band[:, left : left + self.tile].copy())), part, (left, top)

    def _jpeg(self, image: Image.Image) -> bytes:
        return encode(image, "JPEG", quality=self.quality)

    def _cells(
        self, image: ImageFile, mask: ImageFile, content: bytes | None, values: np.ndarray, corner: tuple[int, int]
    ) -> Cells:
        as_it_is = {"bytes": image.read(), "path": image.name or None} if content is None else None
        png = encode(Image.fromarray(np.ascontiguousarray(values)), "PNG")
        cells = {
            self.image_column: as_it_is or packed(content, image.name, ".jpg"),
            self.mask_column: packed(png, mask.name, ".png"),
            "size": values.shape[::-1],
            "pixels": count_values(values),
        }
        return cells | ({"tile_x": corner[0], "tile_y": corner[1]} if self.tile else {})


def compare_colours(values: np.ndarray, colours: np.ndarray, palette: Palette) -> tuple[int, str | None]:
    """Whether kinds of damage have the colours that the data set's card gives them, which tells their order.

    Clean, background and colours that stand for no class are skipped.

    Args:
        values: uint8 (height, width), a mask.
        colours: uint8 (height, width, 3), the same in colours.
        palette: the colours.

    Returns:
        The number of values that have their colour; and what is wrong, or ``None``. A value counts if it has 50
        pixels, and its most frequent colour is its colour.
    """
    known = {colour: value for colour, value in palette if value not in (0, IGNORED_PIXEL)}
    codes = colour_codes(colours)
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
