"""Files of every kind -> RGB pixels, augmentation, and what is left to do on the device."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data.transforms_factory import transforms_imagenet_eval, transforms_imagenet_train
from torchvision.transforms import v2

RESIZE_MODES = ("center", "squash")


def load_image(source: bytes | str | Path, at_least: int | None = None) -> Image.Image:
    """Decode an image file to RGB as a person would see it.

    EXIF rotation is applied, transparency is laid on white, palettes and CMYK are converted, 16-bit and floating-point
    grey values are scaled (not clipped) to 8 bits, and of several frames the first is taken.

    Args:
        source: the file's content, or its path.
        at_least: pixels a side must have at least; large JPEGs are then decoded at the smallest scale that has them,
            which is several times faster.

    Raises:
        OSError, ValueError, SyntaxError, Image.DecompressionBombError: from Pillow, if it is broken or absurdly large.
    """
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        if at_least:
            image.draft(None, (at_least, at_least))
        image.load()
        ImageOps.exif_transpose(image, in_place=True)  # without, it copies an upright image too
        if image.mode.startswith("I") or image.mode == "F":
            return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
        if image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info:
            rgba = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
        return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    """Grey values of more than 8 bits: a file's nominal range (1, 255 or 65,535) is mapped to 0..255."""
    fractions = values.dtype.kind == "f"
    values = np.nan_to_num(values.astype(np.float64))
    top = values.max(initial=0)
    scale = 255.0 if fractions and top <= 1 else 1.0
    if top > 255:
        scale = 255.0 / max(65535.0, top)
    return np.clip(values * scale + 0.5, 0, 255).astype(np.uint8)


class TrainTransform:
    """PIL image -> uint8 tensor (3, size, size), augmented; draws from the global generators.

    Args:
        size: side of the output, pixels.
        crop_scale: smallest share of the image's area that a random crop keeps.
        aspect_ratio: widest random crop, width to height (and its inverse).
        hflip, vflip: probabilities of mirroring.
        color_jitter: strength for brightness, contrast and saturation.
        auto_augment: a timm policy such as ``rand-m9-mstd0.5-inc1``, or ``None``.
        random_erasing: probability of filling a rectangle with the mean colour.
        interpolation: of the resize.
        mean: the model's mean colour, in 0..1.
    """

    def __init__(
        self,
        size: int,
        *,
        crop_scale: float,
        aspect_ratio: float,
        hflip: float,
        vflip: float,
        color_jitter: float,
        auto_augment: str | None,
        random_erasing: float,
        interpolation: str,
        mean: Sequence[float],
    ) -> None:
        self.timm = transforms_imagenet_train(
            size,
            scale=(crop_scale, 1.0),
            ratio=(1 / aspect_ratio, aspect_ratio),
            hflip=hflip,
            vflip=vflip,
            color_jitter=color_jitter or None,
            auto_augment=auto_augment,
            force_color_jitter=bool(auto_augment and color_jitter),
            interpolation=interpolation,
            mean=tuple(mean),
            normalize=False,
        )
        # timm erases normalised tensors; on uint8, its constant mode (zero) is the mean colour.
        fill = [round(255 * value) for value in mean]
        self.erase = v2.RandomErasing(random_erasing, value=fill) if random_erasing else None

    def __call__(self, image: Image.Image) -> torch.Tensor:
        pixels = self.timm(image)
        return self.erase(pixels) if self.erase else pixels


def evaluation_transform(
    size: int, *, resize_mode: str, crop_pct: float, interpolation: str, mean: Sequence[float]
) -> v2.Transform:
    """PIL image -> uint8 tensor (3, size, size), the same every time (timm's evaluation transform).

    Args:
        size: side of the output, pixels.
        resize_mode: ``center`` resizes the shorter side and cuts out the middle, ``squash`` resizes both sides.
        crop_pct: share of the resized image's side that is kept.
        interpolation: of the resize.
        mean: the model's mean colour, in 0..1.
    """
    return transforms_imagenet_eval(
        size,
        crop_pct=crop_pct,
        crop_mode=resize_mode,
        interpolation=interpolation,
        mean=tuple(mean),
        normalize=False,
    )


class Normalize(torch.nn.Module):
    """uint8 (batch, 3, height, width) on the device -> float32, normalised with the model's mean and deviation."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        scale = 1 / (255 * torch.tensor(std))
        shift = -torch.tensor(mean) / torch.tensor(std)
        self.register_buffer("scale", scale.view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", shift.view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(self.shift, pixels.float(), self.scale)


class MixImages:
    """mixup (Zhang et al., ICLR 2018) and cutmix (Yun et al., ICCV 2019) of neighbours: image i with image i ^ 1.

    Pairs lie within a micro-batch however the global batch is divided, and the draw is a function of (seed, step), so
    runs on any number of processes mix the same pixels.

    Args:
        mixup: alpha of mixup's Beta distribution, 0 for none.
        cutmix: alpha of cutmix's, 0 for none; with both, each step tosses a coin.
        probability: share of the steps that mix at all.
        seed: of the draws.
    """

    def __init__(self, mixup: float, cutmix: float, probability: float, seed: int) -> None:
        self.mixup, self.cutmix, self.probability, self.seed = mixup, cutmix, probability, seed

    def __call__(
        self, pixels: torch.Tensor, labels: torch.Tensor, global_step: int
    ) -> tuple[torch.Tensor, torch.Tensor | None, float]:
        """Mix float images (batch, 3, height, width), batch even.

        Returns:
            The images, the labels mixed in (or ``None``), and the share of the image that ``labels`` keeps.
        """
        random = np.random.default_rng([self.seed, global_step, 1])
        if not (self.mixup or self.cutmix) or random.random() >= self.probability:
            return pixels, None, 1.0
        swap = torch.arange(len(pixels), device=pixels.device) ^ 1
        cut = bool(self.cutmix) and (not self.mixup or random.random() < 0.5)
        share = float(random.beta(*[self.cutmix if cut else self.mixup] * 2))
        if not cut:
            return torch.lerp(pixels[swap], pixels, share), labels[swap], share
        height, width = pixels.shape[-2:]
        top, bottom = _span(height, share, random)
        left, right = _span(width, share, random)
        mixed = pixels.clone()
        mixed[:, :, top:bottom, left:right] = pixels[swap][:, :, top:bottom, left:right]
        return mixed, labels[swap], 1 - (bottom - top) * (right - left) / (height * width)


def _span(length: int, share: float, random: np.random.Generator) -> tuple[int, int]:
    """Where a box of the cut-out size lies along one side, clipped to the image."""
    size = int(length * (1 - share) ** 0.5)
    centre = int(random.integers(length))
    return max(centre - size // 2, 0), min(centre + (size + 1) // 2, length)
