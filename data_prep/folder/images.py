"""How an image gets into a prepared folder: as a path, as the file's bytes, or reduced and encoded again.

This runs in worker processes: see pieces.py.
"""

from __future__ import annotations

import io
import os
import stat
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from common.images.files import BAD_IMAGE, check_file, explain, find_form, lies_in, load_image
from common.images.mask_files import read_mask
from common.system.files import retried

Palette = tuple[tuple[int, int], ...]
"""(0xRRGGBB, value) of every class, and of what is to be ignored"""

DEFAULT_MAX_MEGAPIXELS = 180.0
"""Pillow's own limit, above which an image is an error: twice 89.5 megapixels, rounded"""


class BadRowError(ValueError):
    """A row that cannot be in a data set: a word or two that problems can be counted by, and a sentence for people."""

    def __init__(self, kind: str, problem: str) -> None:
        super().__init__(problem)
        self.kind = kind


@dataclass(frozen=True)
class ImageFile:
    """An image file: its bytes, or its checked path; and its path as the table has it, or an empty name."""

    content: bytes | str
    name: str

    @retried
    def read(self) -> bytes:
        """Its bytes."""
        if isinstance(self.content, bytes):
            return self.content
        with open(self.content, "rb") as file:
            return file.read()

    def checked_size(self, max_megapixels: float, prefix: str = "") -> tuple[int, int]:
        """Width and height upright; BadRowError if it is too large, or broken by its header or end."""
        try:
            return check_file(self.content, round(max_megapixels * 1_000_000))[1]
        except BAD_IMAGE as error:
            large = "megapixels" in str(error)
            told = f"{prefix}{explain(error)}{' (--max_megapixels)' if large else ''}"
            raise BadRowError("too large" if large else "broken", told) from error


def find_file(root: str | None, name: str) -> ImageFile:
    """A file named by a table; BadRowError if it is missing, no file, or outside of ``root``. It is not opened."""
    path = find_form(root, name)
    if root and not lies_in(root, path):
        raise BadRowError("outside of the root", f"it lies outside of the folder {root}")
    try:
        kind = retried(os.stat)(path)
    except OSError as error:
        raise BadRowError("missing", error.strerror or "there is no such file") from error
    if not stat.S_ISREG(kind.st_mode):
        raise BadRowError("missing", "it is not a file")
    if not kind.st_size:
        raise BadRowError("broken", "the file is empty")
    return ImageFile(path, name)


@dataclass(frozen=True)
class Store:
    """Images (and masks) as they are, as paths or the files' bytes (``embed``), or reduced and encoded again.

    Args:
        resize_shorter: reduce images whose shorter side is longer than this many pixels, and store all as JPEG,
            masks as PNG (by nearest neighbour).
        max_megapixels: larger images are refused before they are decoded.
        num_classes: masks hold these classes or 255.
        palette: colours that stand for classes; without it values do.
        ignored: values of masks that stand for no class, beside 255.
        missing: the class of all pixels of images without a mask.
    """

    image_column: str
    mask_column: str | None = None
    embed: bool = False
    resize_shorter: int | None = None
    quality: int = 92
    max_megapixels: float = DEFAULT_MAX_MEGAPIXELS
    num_classes: int | None = None
    palette: Palette = ()
    ignored: tuple[int, ...] = ()
    missing: int | None = None

    @property
    def embeds(self) -> bool:
        """Whether the prepared folder holds the images themselves."""
        return self.embed or self.resize_shorter is not None

    @property
    def draws(self) -> bool:
        """Whether masks are written anew, as classes and 255."""
        return bool(self.palette or self.ignored) or self.missing is not None or self.resize_shorter is not None

    @property
    def held(self) -> list[str]:
        """The columns that hold files, and not their paths."""
        return self.columns if self.embeds else self.columns[1:] if self.draws else []

    @property
    def columns(self) -> list[str]:
        """The image columns."""
        return [self.image_column] + ([self.mask_column] if self.mask_column else [])

    @property
    def extra_columns(self) -> dict[str, str]:
        """Columns that the store adds, and their types in the words of ``datasets``."""
        return {}

    def __call__(self, image: ImageFile, mask: ImageFile | None = None) -> list[dict[str, Any]]:
        """The rows that come of one row of the table: the cells of the image columns, and what is counted.

        That is ``size``, width and height; and with a mask ``pixels``, how many have each value.

        Raises:
            BadRowError: it is broken.
        """
        size = self._checked_size(image, mask)
        values = self._mask_values(mask, size) if self.mask_column else None
        cells: dict[str, Any] = {self.image_column: self._unchanged(image), "size": size}
        if self.resize_shorter is not None:
            try:
                small = shrink(image.content, self.resize_shorter)
            except BAD_IMAGE as error:
                raise BadRowError("broken", explain(error)) from error
            jpeg = encode(small, "JPEG", quality=self.quality)
            cells = {self.image_column: packed(jpeg, image.name, ".jpg"), "size": small.size}
        if values is not None:
            values = nearest(values, cells["size"])
            png = packed(encode(Image.fromarray(values), "PNG"), (mask or image).name, ".png") if self.draws else None
            cells |= {self.mask_column: png or self._unchanged(mask), "pixels": count_values(values)}
        return [cells]

    def _checked_size(self, image: ImageFile, mask: ImageFile | None) -> tuple[int, int]:
        """Width and height, the same of both; BadRowError if not, or for broken and large files."""
        size = image.checked_size(self.max_megapixels)
        if mask is not None and mask.checked_size(self.max_megapixels, "mask: ") != size:
            raise BadRowError("sizes differ", "the mask and its image are of different sizes")
        return size

    def _mask_values(self, mask: ImageFile | None, size: tuple[int, int]) -> np.ndarray:
        if mask is None:
            return np.full(size[::-1], self.missing, np.uint8)
        return read_values(mask, self.num_classes, dict(self.palette) or None, self.ignored)

    def _unchanged(self, file: ImageFile) -> Any:
        return {"bytes": file.read(), "path": file.name} if self.embed else file.name


def read_values(mask: ImageFile, *how: Any) -> np.ndarray:
    """uint8 (height, width): what :func:`common.images.mask_files.read_mask` reads; BadRowError if it cannot."""
    try:
        return read_mask(mask.content, *how)
    except BAD_IMAGE as error:
        kind = "mask values" if "values" in str(error) or "mask colours" in str(error) else "broken"
        raise BadRowError(kind, f"mask: {explain(error)}") from error


def nearest(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A uint8 mask resized to (width, height), each pixel from the nearest one."""
    same = values.shape[::-1] == size
    return values if same else np.asarray(Image.fromarray(values).resize(size, Image.Resampling.NEAREST))


def count_values(mask: np.ndarray) -> dict[str, int]:
    """Number of pixels of each value that occurs in a uint8 mask, by the value as JSON's keys are written."""
    counts = np.bincount(mask.ravel(), minlength=256)
    return {str(value): int(counts[value]) for value in np.flatnonzero(counts)}


def shrink(content: bytes | str, shorter: int) -> Image.Image:
    """Decode a file (bytes or path) to RGB, and reduce its shorter side to ``shorter`` pixels if it is longer."""
    image = load_image(content, at_least=(2 * shorter, 2 * shorter))
    scale = shorter / min(image.size)
    return image if scale >= 1 else image.resize(scaled(image.size, scale), Image.Resampling.LANCZOS)


def scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Width and height multiplied, at least 1 pixel each."""
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    """An image as a file's bytes, without metadata."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def packed(content: bytes, name: str, ending: str) -> dict[str, Any]:
    """A cell of an HF ``Image`` column; its path is the source's, with the ending of what it has become."""
    return {"bytes": content, "path": os.path.splitext(name)[0] + ending if name else None}
