"""Images together with their masks: sizes, augmentation, and preparation for evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from .encoded import resize_part
from .mask_files import IGNORED_PIXEL

MASK_RESIZE_MODES = ("squash", "fit")


@dataclass(frozen=True)
class Geometry:
    """The size at which an image is shown to the model.

    Attributes:
        size: side of the model's square input, pixels.
        resize_mode: ``squash`` gives the whole image both sides of the input; ``fit`` keeps its shape and pads.
        windows: cut windows of ``size`` out of the image instead of showing the whole of it.
        resize_longer: longer side of an image before windows are cut, in pixels; ``None`` to keep the image's own.
    """

    size: int
    resize_mode: str = "squash"
    windows: bool = False
    resize_longer: int | None = None

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


class ScaledCrop(v2.Transform):
    """Cut a square out of image and mask at a random scale; beyond the image it is mean colour, and ignored.

    Args:
        geometry: the scale that evaluation uses, and the size of the square.
        scale_jitter: smallest and largest multiple of that scale; drawn evenly in its logarithm.
        rare_crop: probability that the square is placed around a pixel of one of the image's classes, drawn with equal
            probability from all but the most common one. Otherwise the square is placed anywhere.
        fill: the mean colour, 0..255.
    """

    _transformed_types = (tv_tensors.Image, tv_tensors.Mask)

    def __init__(
        self, geometry: Geometry, scale_jitter: Sequence[float], rare_crop: float, fill: Sequence[int]
    ) -> None:
        super().__init__()
        self.geometry, self.scale_jitter, self.rare_crop = geometry, tuple(scale_jitter), rare_crop
        self.fill = list(fill)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        mask = next(entry for entry in flat_inputs if isinstance(entry, tv_tensors.Mask))
        low, high = self.scale_jitter
        scale = low * (high / low) ** torch.rand(()).item()
        target = self._rare_pixel(mask) if torch.rand(()).item() < self.rare_crop else None
        size, sides = self.geometry.size, mask.shape[-2:]
        params: dict[str, Any] = {"box": [], "inner": [], "padding": []}
        for axis, (length, base) in enumerate(zip(sides, self.geometry.resized(*sides), strict=True)):
            resized = max(1, round(base * scale))
            inner = min(size, resized)  # how much of the square the image covers
            window = max(1, round(length * inner / resized))
            offset = self._offset(length, window, None if target is None else target[axis])
            before = int(torch.randint(size - inner + 1, ()))
            params["box"].append((offset, window))
            params["inner"].append(inner)
            params["padding"].append((before, size - inner - before))
        return params

    @staticmethod
    def _offset(length: int, window: int, target: int | None) -> int:
        """Start of the window; with a target, evenly among the starts that keep it inside."""
        first, last = 0, length - window
        if target is not None:
            first, last = max(0, target - window + 1), min(last, target)
        return int(torch.randint(first, last + 1, ()))

    @staticmethod
    def _rare_pixel(mask: torch.Tensor) -> tuple[int, int] | None:
        """Row and column of a pixel of a class other than the most common one; ``None`` if there is no other."""
        values = mask.as_subclass(torch.Tensor).flatten()
        counts = torch.bincount(values, minlength=IGNORED_PIXEL + 1)[:IGNORED_PIXEL]
        present = counts.nonzero().flatten()
        if len(present) < 2:
            return None
        present = present[present != counts.argmax()]
        chosen = present[torch.randint(len(present), ())]
        places = (values == chosen).nonzero().flatten()
        return divmod(int(places[torch.randint(len(places), ())]), mask.shape[-1])

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        (top, height), (left, width) = params["box"]
        part = inpt[..., top : top + height, left : left + width]
        (above, below), (before, after) = params["padding"]
        padding = [before, above, after, below]
        if isinstance(inpt, tv_tensors.Mask):
            part = nearest(part.as_subclass(torch.Tensor), params["inner"])
            return tv_tensors.Mask(F.pad_image(part[None], padding, fill=IGNORED_PIXEL)[0])
        part = resize_part(part.as_subclass(torch.Tensor), params["inner"])
        return tv_tensors.Image(F.pad_image(part, padding, fill=self.fill) if any(padding) else part)


class RandomRot90(v2.Transform):
    """With probability ``p``, rotate image and mask by 0, 90, 180 or 270 degrees, all equally likely."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        turns = int(torch.randint(4, ())) if torch.rand(()).item() < self.p else 0
        return {"turns": turns}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not params["turns"]:
            return inpt
        return tv_tensors.wrap(inpt.as_subclass(torch.Tensor).rot90(params["turns"], (-2, -1)), like=inpt)


class MaskTrainTransform:
    """Image and mask -> augmented ``pixels`` uint8 (3, size, size) and ``labels`` uint8 (size, size).

    Draws from torch's global generator.

    Args:
        geometry, scale_jitter, rare_crop: see :class:`ScaledCrop`.
        hflip, vflip: probabilities of mirroring.
        rot90: probability of a random rotation by a multiple of 90 degrees.
        color_jitter: strength for brightness, contrast and saturation.
        mean: the model's mean colour, in 0..1.
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        scale_jitter: Sequence[float],
        rare_crop: float,
        hflip: float,
        vflip: float,
        rot90: float,
        color_jitter: float,
        mean: Sequence[float],
    ) -> None:
        steps: list[v2.Transform] = [
            ScaledCrop(geometry, scale_jitter, rare_crop, [round(255 * value) for value in mean]),
            v2.RandomHorizontalFlip(hflip),
            v2.RandomVerticalFlip(vflip),
            RandomRot90(rot90),
        ]
        if color_jitter:
            steps.append(v2.ColorJitter(color_jitter, color_jitter, color_jitter))
        self.steps = v2.Compose(steps)

    def __call__(self, image: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        pixels, labels = self.steps(tv_tensors.Image(image), tv_tensors.Mask(mask))
        return {
            "pixels": pixels.as_subclass(torch.Tensor),
            "labels": labels.as_subclass(torch.Tensor).contiguous(),
        }


class ImageEvaluationTransform:
    """uint8 image (3, height, width) -> what the model is shown, without randomness.

    Returns a dict: ``pixels`` uint8 (3, h, w), and ``resized``, the height and width of the image in them (the rest is
    padding).

    Args:
        geometry: the size.
        mean: the model's mean colour, in 0..1; fills the padding.
    """

    def __init__(self, geometry: Geometry, mean: Sequence[float]) -> None:
        self.geometry = geometry
        self.fill = [round(255 * value) for value in mean]

    def __call__(self, image: torch.Tensor) -> dict[str, Any]:
        resized = self.geometry.resized(*image.shape[1:])
        pixels, padding = F.resize(image, list(resized), antialias=True), self.padding(resized)
        if any(padding):
            pixels = F.pad_image(pixels, padding, fill=self.fill)
        return {"pixels": pixels, "resized": resized}

    def padding(self, resized: Sequence[int]) -> list[int]:
        """Pixels added at the left, top, right and bottom."""
        return [0, 0, *(max(0, self.geometry.size - side) for side in reversed(resized))]


class MaskEvaluationTransform(ImageEvaluationTransform):
    """Image and mask -> what the model is shown, and the labels to compare with.

    Returns a dict with, in addition, ``labels`` uint8 (h, w), as large as ``pixels``, and ``truth``, the mask itself.
    """

    def __call__(self, image: torch.Tensor, mask: torch.Tensor) -> dict[str, Any]:
        shown = super().__call__(image)
        labels, padding = nearest(mask, shown["resized"]), self.padding(shown["resized"])
        if any(padding):
            labels = F.pad_image(labels[None], padding, fill=IGNORED_PIXEL)[0]
        return {**shown, "labels": labels, "truth": mask}
