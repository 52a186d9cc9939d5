"""Image files -> pixels as tensors: decoding, augmentation, and what is left to do on the device.

Until they reach the device, pixels are uint8, and the three colours of a pixel lie side by side in memory (channels
last), as they are decoded and as torchvision resizes them fastest.
"""

from __future__ import annotations

import io
import math
import random
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image
from timm.data.transforms_factory import transforms_imagenet_train
from torchvision.transforms import InterpolationMode, v2

from .files import ORIENTATION, load_image, plain_jpeg_size

IMAGE_RESIZE_MODES = ("center", "squash")

# Bytes of pixels that are decoded into memory used before; larger images are worth a page fault per 4 KiB.
SCRATCH_LIMIT = 2**24


class EncodedImage:
    """An image file whose size is known, and that is decoded when it is clear which part of it is needed how large.

    Args:
        source: the file's content, or its path.

    Attributes:
        shape: height and width, as a person would see the image.

    Raises:
        OSError, ValueError, SyntaxError, Image.DecompressionBombError: here and in the methods, from Pillow, if the
            file is broken or absurdly large.
    """

    def __init__(self, source: bytes | str | Path) -> None:
        self.content = source
        if not isinstance(source, bytes):
            with open(source, "rb") as file:
                self.content = file.read()
        self.decoded: torch.Tensor | None = None
        self.is_jpeg = self.is_upright = self.is_plain = self._read_plain_header()
        if not self.is_plain:
            self._read_header()

    def _read_plain_header(self) -> bool:
        """Whether this is a JPEG without peculiarities, of which it is then known how large it is."""
        size = plain_jpeg_size(self.content)
        if size:
            self.size, self.shape = size, size[::-1]
        return size is not None

    def _read_header(self) -> None:
        """The same for all other files, by Pillow, which decodes them at once unless they are JPEGs."""
        with Image.open(io.BytesIO(self.content)) as image:
            self.is_jpeg = image.format in ("JPEG", "MPO")
            orientation = image.getexif().get(ORIENTATION, 1) if self.is_jpeg else 1
            self.is_upright = orientation == 1
            self.is_plain = self.is_jpeg and image.mode in ("RGB", "L") and self.is_upright
            self.size = image.size
        self.shape = self.size if orientation in (5, 6, 7, 8) else self.size[::-1]
        if not self.is_jpeg:
            self.decoded = as_pixels(load_image(self.content))
            self.shape = tuple(self.decoded.shape[1:])

    def pixels(self) -> torch.Tensor:
        """uint8 (3, height, width): those of :func:`common.images.files.load_image`, sooner.

        libjpeg-turbo decodes JPEGs to arrays without detours; everything else is left to Pillow.
        """
        if self.decoded is not None:
            return self.decoded
        return as_pixels(self._decode())

    def _decode(self, reduction: int = 1, memory: np.ndarray | None = None) -> np.ndarray | Image.Image:
        """A JPEG's pixels (height, width, 3), at this fraction of its size; into ``memory`` if given."""
        width, height = (side // reduction for side in self.size)
        if self.is_plain:
            with suppress(ValueError):  # Pillow may know better, or says better what is wrong
                return simplejpeg.decode_jpeg(
                    self.content, fastdct=False, fastupsample=False, min_height=height, min_width=width, buffer=memory
                )
        return load_image(self.content, at_least=(width, height))

    def resized(self, box: Sequence[int], size: Sequence[int], how: InterpolationMode) -> torch.Tensor:
        """A part of the image, resized with antialiasing.

        Of a JPEG no more is decoded than the result needs: at 1/2, 1/4 or 1/8 of its size, several times faster. The
        result then differs by less than a grey level on average.

        Args:
            box: top, left, height and width of the part.
            size: height and width of the result.
            how: the filter.

        Returns:
            uint8 (3, height, width).
        """
        reduction = self.reduction_for(box[2:], size)
        if reduction == 1:
            top, left, height, width = box
            whole = self.decoded
            if whole is None:
                whole = as_pixels(self._decode(memory=_scratch.of(3 * math.prod(self.size))))
            return resize_part(whole[:, top : top + height, left : left + width], size, how)
        decoded = self._decode(reduction)
        image = Image.fromarray(decoded) if isinstance(decoded, np.ndarray) else decoded
        top, left, height, width = (side / reduction for side in box)  # Pillow takes fractions of pixels
        edges = (left, top, left + width, top + height)
        return as_pixels(image.resize(tuple(reversed(size)), Image.Resampling[how.name], edges))

    def reduction_for(self, box: Sequence[int], size: Sequence[int]) -> int:
        """8, 4, 2 or 1: how far (height, width) ``box`` may be reduced before it is resized to ``size``."""
        if not self.is_jpeg or (not self.is_upright and any(side % 8 for side in self.size)):
            return 1  # a turned image would begin with what is left over at the end of the blocks
        scale = min(b / s for b, s in zip(box, size, strict=True))
        # One value a block of 8 x 8 is what an eighth has; resized less than to a half, that shows.
        return next((reduction for reduction, least in ((8, 16), (4, 4), (2, 2)) if scale >= least), 1)


class _Scratch(threading.local):
    """Memory that one image after the other is decoded into, in each thread."""

    memory = np.empty(0, np.uint8)

    def of(self, num_bytes: int) -> np.ndarray | None:
        """At least as much, with anything in it; ``None`` above the limit."""
        if num_bytes > SCRATCH_LIMIT:
            return None
        if num_bytes > len(self.memory):
            self.memory = np.empty(num_bytes, np.uint8)
        return self.memory


_scratch = _Scratch()


def as_pixels(image: Image.Image | np.ndarray) -> torch.Tensor:
    """An RGB image as uint8 (3, height, width); an array is not copied."""
    return torch.from_numpy(image if isinstance(image, np.ndarray) else np.array(image)).permute(2, 0, 1)


def resize_part(
    part: torch.Tensor, size: Sequence[int], how: InterpolationMode = InterpolationMode.BILINEAR
) -> torch.Tensor:
    """Part of an image, uint8 (3, height, width), resized with antialiasing; shares no memory with the image."""
    # A copy in one piece is resized in half the time.
    copy = part[None].clone(memory_format=torch.channels_last)[0]
    return v2.functional.resize_image(copy, list(size), how, antialias=True)


class TrainTransform:
    """Image -> uint8 tensor (3, size, size), augmented with timm's recipe; draws from the global generators.

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
        (self.crop, *flips), policies, _ = (
            part.transforms
            for part in transforms_imagenet_train(
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
                separate=True,
            )
        )
        self.size = [size, size]
        self.flips = v2.Compose(flips) if flips else None
        # These work on small PIL images, cut out before.
        self.policies = v2.Compose([v2.ToPILImage(), *policies]) if policies else None
        # timm erases normalised tensors; on uint8, its constant mode (zero) is the mean colour.
        fill = [round(255 * value) for value in mean]
        self.erase = v2.RandomErasing(random_erasing, value=fill) if random_erasing else None

    def __call__(self, image: EncodedImage) -> torch.Tensor:
        canvas = torch.empty((3, *image.shape), device="meta")  # timm asks it for its size
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
    """Image -> uint8 tensor (3, size, size), the same every time, as timm does it for evaluation.

    Args:
        size: side of the output, pixels.
        resize_mode: ``center`` resizes the shorter side and cuts out the middle, ``squash`` resizes both sides.
        crop_pct: share of the resized image's side that is kept.
        interpolation: of the resize.
    """

    def __init__(self, size: int, *, resize_mode: str, crop_pct: float, interpolation: str) -> None:
        self.keep_shape = resize_mode == "center"
        self.side = math.floor(size / crop_pct)
        self.how = InterpolationMode(interpolation)
        self.crop = v2.CenterCrop(size)

    def __call__(self, image: EncodedImage) -> torch.Tensor:
        sides = [self.side, self.side]
        if self.keep_shape:
            sides = [int(self.side * length / min(image.shape)) for length in image.shape]
        return self.crop(image.resized((0, 0, *image.shape), sides, self.how))


class Normalize(torch.nn.Module):
    """uint8 (batch, 3, height, width) on the device -> float32, normalised with the model's mean and deviation.

    Args:
        mean, std: of each colour, in 0..1.
        memory_format: of the result; pixels come in any.
    """

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
        pixels = pixels.to(torch.float32, memory_format=self.memory_format)
        return torch.addcmul(self.shift, pixels, self.scale)


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
