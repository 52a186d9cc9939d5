"""Images -> what a classifier is shown: augmentation, resizing, and what is left to do on the device.

Until they reach the device, pixels are uint8 and channels last (see :mod:`common.images.encoded`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from timm.data.transforms_factory import transforms_imagenet_train
from torchvision.transforms import InterpolationMode, v2

from .encoded import EncodedImage, as_pixels

LONGEST = 16
"""Longer side over the shorter of what is resized before the centre is cut out"""


class TrainTransform:
    """Image -> uint8 tensor (3, size, size), augmented with timm's recipe; draws from the global generators.

    Args:
        args: the options ``crop_scale``, ``aspect_ratio``, ``hflip``, ``vflip``, ``color_jitter``, ``auto_augment``
            and ``random_erasing`` (with the mean colour).
        spec: ``image_size``, ``interpolation`` and ``mean`` (in 0..1) of the backbone.
    """

    def __init__(self, args: Any, spec: Mapping[str, Any]) -> None:
        size, mean = spec["image_size"], spec["mean"]
        (self.crop, *flips), policies, _ = (
            part.transforms
            for part in transforms_imagenet_train(
                size,
                scale=(args.crop_scale, 1.0),
                ratio=(1 / args.aspect_ratio, args.aspect_ratio),
                hflip=args.hflip,
                vflip=args.vflip,
                color_jitter=args.color_jitter or None,
                auto_augment=args.auto_augment,
                force_color_jitter=bool(args.auto_augment and args.color_jitter),
                interpolation=spec["interpolation"],
                mean=tuple(mean),
                normalize=False,
                separate=True,
            )
        )
        self.size = [size, size]
        self.flips = v2.Compose(flips) if flips else None
        # These take PIL images; they get the crop, which is small.
        self.policies = v2.Compose([v2.ToPILImage(), *policies]) if policies else None
        # timm erases normalised tensors; on uint8, its constant mode (zero) is the mean colour.
        fill = [round(255 * value) for value in mean]
        self.erase = v2.RandomErasing(args.random_erasing, value=fill) if args.random_erasing else None

    def __call__(self, image: EncodedImage) -> torch.Tensor:
        canvas = torch.empty((3, *image.shape), device="meta")  # only its size is read
        box = self.crop.get_params(canvas, self.crop.scale, self.crop.ratio)
        choices = self.crop.interpolation
        how = random.choice(choices) if isinstance(choices, tuple | list) else choices
        pixels = image.resized(box, self.size, how)
        if self.flips:
            pixels = self.flips(pixels)
        if self.policies:
            pixels = as_pixels(self.policies(pixels))
        return self.erase(pixels) if self.erase else pixels


class EvaluationTransform:
    """Image -> uint8 tensor (3, size, size), without randomness, as timm does for evaluation.

    ``center`` resizes the shorter side and crops the centre, ``squash`` resizes both sides; ``crop_pct`` is the share
    of the resized image's side that is kept.
    """

    def __init__(self, size: int, *, resize_mode: str, crop_pct: float, interpolation: str) -> None:
        self.keep_shape = resize_mode == "center"
        self.side = math.floor(size / crop_pct)
        self.how = InterpolationMode(interpolation)
        self.crop = v2.CenterCrop(size)

    def __call__(self, image: EncodedImage) -> torch.Tensor:
        lengths, sides = image.shape, [self.side, self.side]
        if self.keep_shape:  # of ribbons, the middle alone, not to enlarge a thousand times what is cut away
            lengths = [min(length, LONGEST * min(image.shape)) for length in image.shape]
            sides = [int(self.side * length / min(lengths)) for length in lengths]
        start = [(length - kept) // 2 for length, kept in zip(image.shape, lengths, strict=True)]
        return self.crop(image.resized((*start, *lengths), sides, self.how, leaves=6))


class Normalize(torch.nn.Module):
    """uint8 (batch, 3, height, width) -> float32 on the device, normalised with mean and deviation of each colour."""

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], memory_format: torch.memory_format = torch.contiguous_format
    ) -> None:
        super().__init__()
        self.memory_format = memory_format
        scale = 1 / (255 * torch.tensor(std))
        shift = -torch.tensor(mean) / torch.tensor(std)
        self.register_buffer("scale", scale.view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", shift.view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        pixels = pixels.to(self.scale.device, non_blocking=True)
        if pixels.is_floating_point():  # features that were computed before
            return pixels
        pixels = pixels.to(torch.float32, memory_format=self.memory_format)
        return torch.addcmul(self.shift, pixels, self.scale)


class MixImages:
    """mixup (Zhang et al., ICLR 2018) and cutmix (Yun et al., ICCV 2019) of neighbours: images 0 and 1, 2 and 3, ...

    Both images of a pair are in one micro-batch however the global batch is divided, and the random numbers are a
    function of (seed, step), so runs on any number of processes mix the same pixels. ``mixup`` and ``cutmix`` are the
    alphas of Beta distributions, 0 for none; with both, each step tosses a coin. ``probability`` is the share of the
    steps that mix at all.
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
    """Start and end of a cutmix box along one side, clipped to the image."""
    size = int(length * (1 - share) ** 0.5)
    centre = int(random.integers(length))
    return max(centre - size // 2, 0), min(centre + (size + 1) // 2, length)
