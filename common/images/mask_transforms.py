"""Images together with their masks: sizes, augmentation, and preparation for evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from .encoded import resize_part
from .mask_files import IGNORED_PIXEL


@dataclass(frozen=True)
class Geometry:
    """The size at which an image is shown to the model."""

    size: int  # side of the model's square input, pixels
    resize_mode: str = "squash"  # gives the whole image both sides of the input; "fit" keeps its shape and pads
    windows: bool = False  # cut windows of this size out of the image instead of showing the whole of it
    resize_longer: int | None = None  # longer side of the image before that, in pixels; by default the image's own

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of an image of this size as evaluation shows it, before padding."""
        longer = max(height, width)
        if self.windows:
            scale = self.resize_longer / longer if self.resize_longer else 1.0
        elif self.resize_mode == "squash":
            return self.size, self.size
        else:
            scale = self.size / longer
        return max(1, round(height * scale)), max(1, round(width * scale))


def nearest(mask: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Resize mask (h, w) to (height, width), each pixel from the nearest one."""
    if tuple(mask.shape) == tuple(size):
        return mask
    return F.resize_image(mask[None], list(size), InterpolationMode.NEAREST_EXACT)[0]


class MaskTrainTransform:
    """Image and mask -> augmented ``pixels`` uint8 (3, size, size) and ``labels`` uint8 (size, size).

    A square is cut out at a random scale, then mirrored, turned by multiples of 90 degrees, and its colours changed.
    Beyond the image it is mean colour, and ignored. Draws from torch's global generator.

    Args:
        args: the options ``scale_jitter`` (smallest and largest multiple of the scale that evaluation uses, drawn
            evenly in its logarithm), ``hflip``, ``vflip``, ``rot90``, ``color_jitter``, and ``rare_crop``: the
            probability that the square is placed around a pixel of one of the image's classes, drawn from all but the
            most common one, evenly or with ``balanced_crop`` the more often the fewer images have it. Otherwise the
            square is placed anywhere.
        geometry: the scale that evaluation uses, and the size of the square.
        mean: the model's mean colour, in 0..1.
        pixels: int64 (images, classes), how many training masks have; for ``balanced_crop``.
        paste: changes image and mask first, see :class:`common.data.copy_paste.CopyPaste`.
    """

    def __init__(
        self, args: Any, geometry: Geometry, mean: Sequence[float], pixels: np.ndarray | None = None, paste: Any = None
    ) -> None:
        self.paste, self.geometry, self.fill = paste, geometry, [round(255 * value) for value in mean]
        self.scale_jitter, self.rare_crop = args.scale_jitter, args.rare_crop
        self.flips, self.rot90 = {-1: args.hflip, -2: args.vflip}, args.rot90
        images = (pixels > 0).sum(0) if pixels is not None and args.balanced_crop else np.ones(IGNORED_PIXEL)
        self.chances = torch.from_numpy(1 / np.maximum(images, 1))
        self.jitter = v2.ColorJitter(*[args.color_jitter] * 3) if args.color_jitter else torch.nn.Identity()

    def __call__(self, image: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.paste is not None:
            image, mask = self.paste(image, mask)
        (top, height, above, tall), (left, width, before, wide) = self._place(mask)
        size, part = self.geometry.size, (..., slice(top, top + height), slice(left, left + width))
        padding = [before, above, size - wide - before, size - tall - above]
        pixels = _pad(resize_part(image[part], (tall, wide)), padding, self.fill)
        labels = _pad(nearest(mask[part], (tall, wide))[None], padding, IGNORED_PIXEL)[0]
        for axis, probability in self.flips.items():
            if torch.rand(()) < probability:
                pixels, labels = pixels.flip(axis), labels.flip(axis)
        if torch.rand(()) < self.rot90:
            turns = int(torch.randint(4, ()))
            pixels, labels = pixels.rot90(turns, (-2, -1)), labels.rot90(turns, (-2, -1))
        return {"pixels": self.jitter(pixels), "labels": labels.contiguous()}

    def _place(self, mask: torch.Tensor) -> list[tuple[int, int, int, int]]:
        """For both axes: start and length of the image's part, padding before it, and its length in the square."""
        low, high = self.scale_jitter
        scale = low * (high / low) ** torch.rand(()).item()
        target = self._rare_pixel(mask) if torch.rand(()).item() < self.rare_crop else None
        size, places = self.geometry.size, []
        for axis, (length, base) in enumerate(zip(mask.shape, self.geometry.resized(*mask.shape), strict=True)):
            resized = max(1, round(base * scale))
            inner = min(size, resized)
            window = max(1, round(length * inner / resized))
            first, last = 0, length - window
            if target is not None:  # evenly among the starts that keep it inside
                first, last = max(0, target[axis] - window + 1), min(last, target[axis])
            start = int(torch.randint(first, last + 1, ()))
            places.append((start, window, int(torch.randint(size - inner + 1, ())), inner))
        return places

    def _rare_pixel(self, mask: torch.Tensor) -> tuple[int, int] | None:
        """Row and column of a pixel of a class other than the most common one; ``None`` if there is no other."""
        counts = torch.bincount(mask.flatten(), minlength=IGNORED_PIXEL + 1)[:IGNORED_PIXEL]
        present = counts.nonzero().flatten()
        if len(present) < 2:
            return None
        present = present[present != counts.argmax()]
        chances = self.chances[present]
        even = bool((chances == chances[0]).all())
        chosen = present[torch.randint(len(present), ()) if even else torch.multinomial(chances, 1)[0]]
        places = (mask.flatten() == chosen).nonzero().flatten()
        return divmod(int(places[torch.randint(len(places), ())]), mask.shape[-1])


def _pad(pixels: torch.Tensor, padding: list[int], fill: list[int] | int) -> torch.Tensor:
    return F.pad_image(pixels, padding, fill=fill) if any(padding) else pixels


class ImageEvaluationTransform:
    """uint8 image (3, height, width) -> what the model is shown, without randomness.

    Returns a dict: ``pixels`` uint8 (3, h, w), and ``resized``, the height and width of the image in them; the rest is
    padding in the mean colour (in 0..1).
    """

    def __init__(self, geometry: Geometry, mean: Sequence[float]) -> None:
        self.geometry = geometry
        self.fill = [round(255 * value) for value in mean]

    def __call__(self, image: torch.Tensor) -> dict[str, Any]:
        resized = self.geometry.resized(*image.shape[1:])
        pixels = F.resize(image, list(resized), antialias=True)
        return {"pixels": _pad(pixels, self.padding(resized), self.fill), "resized": resized}

    def padding(self, resized: Sequence[int]) -> list[int]:
        """Pixels added at the left, top, right and bottom."""
        return [0, 0, *(max(0, self.geometry.size - side) for side in reversed(resized))]


class MaskEvaluationTransform(ImageEvaluationTransform):
    """Image and mask -> what the model is shown, and the labels to compare with.

    Returns a dict with, in addition, ``labels`` uint8 (h, w), as large as ``pixels``, and ``truth``, the mask itself.
    """

    def __call__(self, image: torch.Tensor, mask: torch.Tensor) -> dict[str, Any]:
        shown = super().__call__(image)
        labels = _pad(nearest(mask, shown["resized"])[None], self.padding(shown["resized"]), IGNORED_PIXEL)[0]
        return {**shown, "labels": labels, "truth": mask}
