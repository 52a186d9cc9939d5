"""How large scans and their masks get into a prepared folder: reduced, cut into tiles, or as they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from common.images.files import BAD_IMAGE, explain
from common.images.mask_files import IGNORED_PIXEL

from .images import BadRowError, Cells, ImageFile, Store, count_values, encode, packed, scaled
from .scans import load_mask, load_reduced, rows_of

Palette = tuple[tuple[int, int], ...]
"""(0xRRGGBB, value) of every class, and of what is to be ignored"""


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

    def __call__(self, image: ImageFile, mask: ImageFile | None = None) -> list[Cells]:
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
