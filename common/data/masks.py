"""Masks: files of every kind -> one leaf of the label tree per pixel, checked against the image they belong to."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import ImageColor

from ..images.encoded import EncodedImage
from ..images.files import BAD_IMAGE, BadSampleError, check_file, explain
from ..images.mask_files import IGNORED_PIXEL, read_mask
from ..model.hierarchy import Hierarchy
from ..model.tree import IGNORE, fold_name, repeated
from ..system.files import StrictLoader
from .rows import ImageRows

logger = logging.getLogger(__name__)


class MaskReader:
    """Mask files -> uint8 leaves (height, width), 255 where there is none.

    Args:
        hierarchy: the label tree. Without a palette, pixel value v is its leaf v.
        palette: file that gives each leaf a colour (see :func:`read_palette`); colours then count.
        ignored: values that stand for no class, beside 255.
        raw: on images as they lie in their files: masks are turned with them.

    Raises:
        ValueError: if there are more leaves than a byte can tell apart, or the palette does not fit the tree.
    """

    def __init__(
        self, hierarchy: Hierarchy, palette: str | Path | None = None, ignored: Sequence[int] = (), raw: bool = False
    ) -> None:
        self.num_leaves, self.ignored, self.raw = hierarchy.num_leaves, sorted(set(ignored)), raw
        if self.num_leaves > IGNORED_PIXEL:
            raise ValueError(f"Masks tell up to {IGNORED_PIXEL} classes apart; the label tree has {self.num_leaves}.")
        self.palette = read_palette(palette, hierarchy) if palette else None

    def __call__(self, source: bytes | str, turned: int = 1) -> np.ndarray:
        """The mask of an image whose EXIF orientation is ``turned``."""
        return read_mask(source, self.num_leaves, self.palette, self.ignored, turned if self.raw else 1)


def read_palette(path: str | Path, hierarchy: Hierarchy) -> dict[int, int]:
    """Leaf of each colour, from a YAML or JSON file: ``class name: [red, green, blue]`` or ``"#rrggbb"``.

    The name ``ignore`` stands for pixels without a label. Colours are returned as the number 0xRRGGBB. ValueError if a
    class has no colour, a name is no leaf, or a colour stands twice.
    """
    if not Path(path).is_file():
        raise ValueError(f"No palette file at {path} (--mask_palette).")
    try:
        text = Path(path).read_text(encoding="utf-8-sig")  # YAML allows no tabs, which JSON may be indented with
        content = yaml.load(text.replace("\t", " "), Loader=StrictLoader)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"Palette {path}: {' '.join(str(error).split())}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"Palette {path} must hold one line a class, 'name: [red, green, blue]'.")
    leaves = {fold_name(name): index for index, name in enumerate(hierarchy.leaf_names())} | {"ignore": IGNORED_PIXEL}
    folded = [*map(fold_name, content)]
    unknown = [str(name) for name in content if fold_name(name) not in leaves]
    missing = [name for name in hierarchy.leaf_names() if fold_name(name) not in folded]
    if unknown or missing:
        raise ValueError(f"Palette {path} and the label tree differ: unknown {unknown}, without a colour {missing}.")
    if len(set(folded)) < len(folded):
        raise ValueError(f"Palette {path}: listed twice: {sorted(repeated(folded))}.")
    palette: dict[int, int] = {}
    for name, colour in content.items():
        code = _colour(path, name, colour)
        if code in palette:
            raise ValueError(f"Palette {path}: the colour of {name!r} stands twice.")
        palette[code] = leaves[fold_name(name)]
    return palette


def _colour(path: str | Path, name: str, colour: Any) -> int:
    try:
        red, green, blue = ImageColor.getrgb(colour)[:3] if isinstance(colour, str) else colour
        if not all(type(part) is int and 0 <= part <= 255 for part in (red, green, blue)):
            raise ValueError
    except (ValueError, TypeError):
        raise ValueError(
            f"Palette {path}: the colour of {name!r} must be three integers from 0 to 255, or '#rrggbb' in quotes, "
            f"not {colour}."
        ) from None
    return red << 16 | green << 8 | blue


class MaskedImageRows:
    """Random access to images and their masks, two columns of a data set."""

    def __init__(self, images: ImageRows, masks: ImageRows, reader: MaskReader) -> None:
        assert len(images) == len(masks), "one mask per image"
        self.images, self.masks, self.reader = images, masks, reader

    def __len__(self) -> int:
        return len(self.images)

    def encoded(self, indices: Sequence[int]) -> list[tuple[Any, Any]]:
        """Content or path of each row's image and mask."""
        return list(zip(self.images.encoded(indices), self.masks.encoded(indices), strict=True))

    def load(self, index: int, source: tuple[Any, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 image (3, height, width) and mask (height, width); BadSampleError names row and file."""
        image = self.images.apply(EncodedImage.pixels, index, source[0])
        mask = self.load_mask(index, source[1], check_file(source[0])[2] if self.reader.raw else 1)
        if image.shape[1:] != mask.shape:
            sizes = [" x ".join(map(str, reversed(shape))) for shape in (mask.shape, image.shape[1:])]
            told = f"mask in {self.masks.describe(index)}: it is {sizes[0]} pixels large, its image {sizes[1]}"
            raise BadSampleError(told)
        return image, mask

    def apply(self, transform: Callable[[torch.Tensor, torch.Tensor], Any], index: int, source: Any) -> Any:
        """What a transform returns for the image and the mask."""
        return transform(*self.load(index, source))

    def load_mask(self, index: int, source: Any, turned: int = 1) -> torch.Tensor:
        """The mask alone, of an image whose EXIF orientation is ``turned``."""
        try:
            return torch.from_numpy(self.reader(self.masks.checked(source), turned))
        except BAD_IMAGE as error:
            raise BadSampleError(f"mask in {self.masks.describe(index)}: {explain(error)}") from error

    def check_headers(self, num_rows: int = 20_000) -> list[str]:
        """A message for each broken mask or image (see :meth:`ImageRows.headers`), or for each pair of two sizes."""
        broken_masks, broken_images, differ, turned = [], [], [], []
        for image, mask in zip(self.images.headers(num_rows), self.masks.headers(num_rows), strict=True):
            row, size, how, problem = image
            broken_masks += [f"mask in {mask[3]}"] if mask[3] else []
            broken_images += [problem] if problem else []
            if None in (size, mask[1]):
                continue
            if how != 1 == mask[2]:
                turned.append(row)
            swapped = self.reader.raw and how >= 5 and mask[2] == 1
            if size == (mask[1][::-1] if swapped else mask[1]) or len(differ) == 100:
                continue
            try:  # decoding up to a hundred: the header may not tell the orientation
                self.load(row, *self.encoded([row]))
            except BadSampleError as error:
                differ.append(str(error))
        if turned and not self.reader.raw:
            where = f"{len(turned)} images, such as {self.images.describe(turned[0])}"
            logger.warning("EXIF turns %s, and not their masks: if drawn unturned, add --mask_orientation raw.", where)
        return [*broken_masks, *broken_images] or differ

    def count_pixels(self, rows: np.ndarray, num_threads: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Decode masks and count pixels.

        Returns:
            int64 (len(rows), leaves); int64 (len(rows),) without a label; messages about masks that do not decode.
        """
        problems: list[str] = []

        def count(part: np.ndarray) -> np.ndarray:
            counts = np.zeros((len(part), 256), dtype=np.int64)
            for position, (row, source) in enumerate(zip(part, self.masks.encoded(part), strict=True)):
                try:
                    counts[position] = np.bincount(self.load_mask(int(row), source).numpy().ravel(), minlength=256)
                except BadSampleError as error:
                    problems.append(str(error))
            return counts

        with ThreadPoolExecutor(num_threads) as pool:  # decoding lets other threads run
            parts = list(pool.map(count, np.array_split(rows, max(1, -(-len(rows) // 32)))))
        counts = np.concatenate(parts)
        return counts[:, : self.reader.num_leaves], counts[:, IGNORED_PIXEL], sorted(problems)


def masks_to_labels(masks: torch.Tensor) -> torch.Tensor:
    """uint8 masks -> int64 leaf labels, IGNORE where the mask is 255."""
    labels = masks.long()
    return torch.where(labels == IGNORED_PIXEL, IGNORE, labels)
