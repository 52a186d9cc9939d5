"""Dense models' outputs at stride 4 -> labels of every pixel of an image of any size, in bounded memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from ..model.tree import IGNORE

logger = logging.getLogger(__name__)

# Scores enlarged at a time, (CPU, GPU): what fits into a CPU's cache, or keeps every processor of a GPU busy.
STRIP = (2**20, 2**24)


def window_starts(length: int, size: int, stride: int) -> list[int]:
    """Starts of windows that cover ``length``, the last one up to its end; [0] if one window covers it."""
    last = max(length - size, 0)
    return [*range(0, last, stride), last]


def warn_of_scale(evaluation: Mapping[str, Any], eval_crop: int | None) -> None:
    """Warn about windows for a model whose evaluation settings say that it was trained on squashed images."""
    if eval_crop and not evaluation.get("eval_crop") and evaluation.get("resize_mode", "squash") == "squash":
        told = "--eval_crop shows windows at the image's own scale to a model that was trained on squashed images"
        logger.warning("%s: expect specks. Train with --eval_crop as well.", told)


@torch.no_grad()
def image_logits(
    model: Callable[..., torch.Tensor],
    pixels: torch.Tensor,
    prepare: Callable[[torch.Tensor], torch.Tensor],
    *,
    eval_crop: int | None,
    eval_stride: int | None,
    batch_size: int,
) -> torch.Tensor:
    """Logits as evaluation and prediction compute them; of a large image a weighted mean over overlapping windows.

    A window's weight is largest in its middle and smallest at its border, where it shows least of the surroundings.

    Args:
        model: a dense model: normalised images (n, 3, h, w) -> logits at stride 4.
        pixels: uint8 images (n, 3, h, w) on the host; with windows a single one, of any size from one window on.
        prepare: such images, or windows of them -> normalised, on the device; so a large image need not fit there.
        eval_crop: side of the windows, a multiple of 4; ``None`` to show the image as one.
        eval_stride: distance from window to window, likewise; two thirds of a window by default.
        batch_size: windows in one forward pass; they are padded with 0 to a multiple of 4.

    Returns:
        float32 (n, outputs, ceil(height / 4), ceil(width / 4)).
    """
    if not eval_crop:
        return model(prepare(pixels), logits_only=True).float()
    stride = eval_stride or max(4, eval_crop * 2 // 3 // 4 * 4)
    assert eval_crop % 4 == 0 and stride % 4 == 0 and len(pixels) == 1
    height, width = (length + -length % 4 for length in pixels.shape[2:])
    columns = window_starts(width, eval_crop, stride)
    corners = [(top, left) for top in window_starts(height, eval_crop, stride) for left in columns]

    def cut(top: int, left: int) -> torch.Tensor:
        part = prepare(pixels[:, :, top : top + eval_crop, left : left + eval_crop])[0]
        return F.pad(part, (0, eval_crop - part.shape[2], 0, eval_crop - part.shape[1]))

    side, total = eval_crop // 4, None
    for first in range(0, len(corners), batch_size):
        part = corners[first : first + batch_size]
        logits = model(torch.stack([cut(*corner) for corner in part]), logits_only=True).float()
        if total is None:
            line = torch.arange(side, device=logits.device, dtype=logits.dtype)
            ramp = torch.minimum(line + 1, side - line)
            weight = ramp[:, None] * ramp
            total = logits.new_zeros(logits.shape[1], height // 4, width // 4)
            norm = torch.zeros_like(total[0])
        for (top, left), window in zip(part, logits, strict=True):
            here = (slice(top // 4, top // 4 + side), slice(left // 4, left // 4 + side))
            total[:, *here] += window * weight
            norm[here] += weight
    return (total / norm)[None]


class Resampler:
    """Bilinear interpolation of scores at the pixels of an image of another size, some rows at a time.

    Args:
        resized: height and width of the image as it was shown to the model, without padding.
        size: height and width of the result.
        output_stride: pixels of the shown image per score.
        device: of the scores.
    """

    def __init__(
        self, resized: Sequence[int], size: Sequence[int], output_stride: int, device: torch.device | str
    ) -> None:
        self.size, self._heights = tuple(size), (resized[0], size[0], output_stride)
        self._axes = []
        for shown, wanted in zip(resized, self.size, strict=True):
            pixels = torch.arange(wanted, device=device, dtype=torch.float64)
            position = _position(pixels, shown, wanted, output_stride).clamp(min=0)
            self._axes.append((position.floor().long(), (position - position.floor()).float()))

    def rows(self, scores: torch.Tensor, first: int, last: int) -> torch.Tensor:
        """Scores (channels, h, w) -> rows ``first`` up to ``last`` of the result, (channels, last - first, width)."""
        low, share = self._axes[1]
        left, right = (index.clamp(max=scores.shape[2] - 1) for index in (low, low + 1))
        # Columns first, of the rows that are needed only: that is less to compute, and rows are copied faster.
        start, end = (int(_position(row, *self._heights)) for row in (first, last - 1))
        start = min(start, scores.shape[1] - 1)
        needed = scores[:, start : end + 2]
        part = torch.lerp(needed.index_select(2, left), needed.index_select(2, right), share)
        low, share = (taps[first:last] for taps in self._axes[0])
        below, above = (index.clamp(max=scores.shape[1] - 1) - start for index in (low, low + 1))
        return torch.lerp(part.index_select(1, below), part.index_select(1, above), share[None, :, None])


def _position(pixel: Any, shown: int, wanted: int, output_stride: int) -> Any:
    """Position of a pixel's centre in units of the scores' centres; may be a little less than 0."""
    return (pixel + 0.5) * shown / wanted / output_stride - 0.5


def dense_labels(
    resampler: Resampler,
    scores: Sequence[torch.Tensor],
    label: Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]],
    max_elements: int | None = None,
) -> list[torch.Tensor]:
    """Labels at every pixel of the result, without all scores at that size in memory.

    Args:
        resampler: to the result's size.
        scores: tensors (channels, h, w).
        label: tensors (1, channels, rows, width) -> label tensors (1, rows, width).
        max_elements: scores in memory at a time; by default as many as suit the device.

    Returns:
        Per label tensor, (height, width): uint8 if there are less than 256 channels, otherwise int16.
    """
    height, width = resampler.size
    per_row = width * sum(tensor.shape[0] for tensor in scores)
    step = max(1, (max_elements or STRIP[scores[0].is_cuda]) // per_row)
    strips = []
    for first in range(0, height, step):
        last = min(first + step, height)
        strips.append(label([resampler.rows(tensor, first, last)[None] for tensor in scores]))
    small = max(tensor.shape[0] for tensor in scores) < 256
    dtype = torch.uint8 if small else torch.int16
    return [torch.cat([part[0].to(dtype) for part in column]) for column in zip(*strips, strict=True)]


def labels_at_stride(labels: torch.Tensor, logits: torch.Tensor, stride: int) -> torch.Tensor:
    """Labels (batch, height, width) in the middle of what each of the logits stands for, ignored beyond the image."""
    labels = labels[:, stride // 2 :: stride, stride // 2 :: stride]
    missing = [have - want for have, want in zip(logits.shape[2:], labels.shape[1:], strict=True)]
    return torch.nn.functional.pad(labels, (0, missing[1], 0, missing[0]), value=IGNORE)
