"""Where a classifier's answers come from: Grad-CAM on the last map that its backbone makes."""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from ..data.rows import ImageRows
from ..images.transforms import Normalize
from ..model.modeling import LabelTreeForImageClassification


def grad_cam(model: LabelTreeForImageClassification, pixels: torch.Tensor, leaf: int) -> torch.Tensor:
    """Grad-CAM (Selvaraju et al., ICCV 2017) of a leaf's logit: (rows, columns) from 0 to 1; a zero without any map.

    Of the backbone's outputs with all its features, the last one counts in which places have gradients: the last map
    of convolutions, or the patches as the last attention reads them where only a class token goes on to the heads.

    Args:
        model: in evaluation mode.
        pixels: (1, 3, side, side), normalised.
        leaf: its number.
    """
    outputs: list[torch.Tensor] = []

    def note(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        output = output[0] if isinstance(output, tuple) else output
        if isinstance(output, torch.Tensor) and output.requires_grad:
            outputs.append(output)

    hooks = [module.register_forward_hook(note) for module in model.backbone.model.modules()]
    with torch.enable_grad():
        score = model.heads.leaf_logits(model.compute_logits(pixels))[0, leaf]
    for hook in hooks:
        hook.remove()
    gradients = torch.autograd.grad(score, outputs, allow_unused=True, materialize_grads=True)
    for output, gradient in zip(outputs[::-1], gradients[::-1], strict=True):
        grids = [_grid(values[0].detach(), model.backbone.num_features) for values in (output, gradient)]
        if grids[0] is not None and grids[1].any():
            heat = (grids[0] * grids[1].mean((0, 1))).sum(2).relu()
            return heat / heat.max().clamp(min=1e-12)
    return torch.zeros(1, 1)


def _grid(values: torch.Tensor, channels: int) -> torch.Tensor | None:
    """(rows, columns, channels) of a map, or of patches behind other tokens; ``None`` for anything else."""
    if values.dim() == 3 and values.shape[0] == channels and values.shape[1] == values.shape[2]:
        values = values.movedim(0, 2)
    if values.dim() == 2 and values.shape[1] == channels:
        side = math.isqrt(len(values))
        values = values[len(values) - side**2 :].view(side, side, channels)
    return values if values.dim() == 3 and values.shape[2] == channels and len(values) > 1 else None


class Explainer:
    """Pictures of what counted for a leaf: the image as a saved model is shown it, dark where it did not count.

    Args:
        folder: of the model, which is read when the first picture is asked for.
        transform: prepares images as in evaluation.
    """

    def __init__(self, folder: str | Path, transform: Any) -> None:
        self.folder, self.transform = folder, transform

    @cached_property
    def model(self) -> LabelTreeForImageClassification:
        return LabelTreeForImageClassification.from_pretrained(self.folder, dtype=torch.float32).eval()

    def __call__(self, images: ImageRows, row: int, leaf: int) -> Image.Image:
        spec = self.model.config.backbone
        pixels = images.apply(self.transform, row, images.encoded([row])[0])
        pixels = functional.center_crop(pixels, spec["image_size"])  # of five crops, the middle
        heat = 255 * grad_cam(self.model, Normalize(spec["mean"], spec["std"])(pixels[None]), leaf)
        picture = functional.to_pil_image(pixels)
        light = Image.fromarray(heat.byte().numpy()).resize(picture.size, Image.Resampling.BICUBIC)
        return Image.composite(picture, picture.point(lambda value: value // 4), light)
