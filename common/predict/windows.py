"""Dense models' outputs at stride 4 -> labels of every pixel of an image of any size, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from ..model.tree import IGNORE

# Scores enlarged at a time, (CPU, GPU): what fits into a CPU's cache, or keeps every processor of a GPU busy.
STRIP = (2**20, 2**24)


def window_starts(length: int, size: int, stride: int) -> list[int]:
    """Starts of windows that cover ``length``, the last one up to its end; [0] if one window covers it."""
    last = max(length - size, 0)
    return [*range(0, last, stride), last]


def check_windows(crop: int | None, stride: int | None) -> list[str]:
    """A message if ``--eval_crop`` or ``--eval_stride`` is wrong."""
    size, step = crop or 4, stride or 4
    if size % 4 or step % 4 or (crop and step > size):
        return ["--eval_crop and --eval_stride must be multiples of 4, and the stride no more than the crop"]
    return []


def image_logits(
    model: Callable[..., torch.Tensor],
    pixels: torch.Tensor,
    prepare: Callable[[torch.Tensor], torch.Tensor],
    *,
    eval_crop: int | None,
    eval_stride: int | None,
    batch_size: int,
) -> torch.Tensor:
    """Float32 logits at stride 4, as evaluation and prediction compute them.

    Args:
        model: a dense model.
        pixels: uint8 images (n, 3, h, w) on the host; with windows a single one, of any size.
        prepare: such images, or windows of them -> normalised, on the device.
        eval_crop: side of the windows; ``None`` to show the image as one.
        eval_stride: distance from window to window; two thirds of a window by default.
        batch_size: windows in one forward pass.
    """

    def logits(images: torch.Tensor) -> torch.Tensor:
        return model(images, logits_only=True).float()

    if not eval_crop:
        return logits(prepare(pixels))
    stride = eval_stride or max(4, eval_crop * 2 // 3 // 4 * 4)
    return sliding_logits(logits, pixels[0], eval_crop, stride, batch_size, prepare=prepare)


@torch.no_grad()
def sliding_logits(
    model: Callable[[torch.Tensor], torch.Tensor],
    pixels: torch.Tensor,
    size: int,
    stride: int,
    batch_size: int,
    output_stride: int = 4,
    prepare: Callable[[torch.Tensor], torch.Tensor] = lambda windows: windows,
) -> torch.Tensor:
    """Logits of a large image: a weighted mean over overlapping windows.

    A window's weight is largest in its middle and smallest at its border, where it shows least of the surroundings.

    Args:
        model: normalised images (n, 3, size, size) -> logits (n, outputs, size / output_stride, ...).
        pixels: image (3, height, width), at least ``size`` on each side.
        size: side of a window, a multiple of ``output_stride``.
        stride: distance from window to window, likewise.
        batch_size: windows in one forward pass.
        output_stride: of the logits; prepared windows are padded with 0 to a multiple of it.
        prepare: part of the image (1, 3, h, w) -> normalised, on the device; so a large image need not fit there.

    Returns:
        float32 (1, outputs, ceil(height / output_stride), ceil(width / output_stride)).
    """
    assert size % output_stride == 0 and stride % output_stride == 0 and stride > 0
    height, width = (length + -length % output_stride for length in pixels.shape[1:])
    corners = [
        (top, left) for top in window_starts(height, size, stride) for left in window_starts(width, size, stride)
    ]

    def cut(top: int, left: int) -> torch.Tensor:
        part = prepare(pixels[None, :, top : top + size, left : left + size])[0]
        return F.pad(part, (0, size - part.shape[2], 0, size - part.shape[1]))

    side = size // output_stride
    total = norm = weight = None
    for first in range(0, len(corners), batch_size):
        part = corners[first : first + batch_size]
        logits = model(torch.stack([cut(top, left) for top, left in part])).float()
        if total is None:
            line = torch.arange(side, device=logits.device, dtype=logits.dtype)
            ramp = torch.minimum(line + 1, side - line)
            weight = ramp[:, None] * ramp
            grid = [height // output_stride, width // output_stride]
            total = logits.new_zeros(logits.shape[1], *grid)
            norm = logits.new_zeros(grid)
        for (top, left), window in zip(part, logits, strict=True):
            rows = slice(top // output_stride, top // output_stride + side)
            columns = slice(left // output_stride, left // output_stride + side)
            total[:, rows, columns] += window * weight
            norm[rows, columns] += weight
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
        self.size = tuple(size)
        self._heights = resized[0], size[0], output_stride
        self._axes = [
            _taps(shown, wanted, output_stride, device) for shown, wanted in zip(resized, self.size, strict=True)
        ]

    def rows(self, scores: torch.Tensor, first: int, last: int) -> torch.Tensor:
        """Scores (channels, h, w) -> rows ``first`` up to ``last`` of the result, (channels, last - first, width)."""
        low, high, share = self._axes[1]
        left, right = (index.clamp(max=scores.shape[2] - 1) for index in (low, high))
        # Columns first, of the rows that are needed only: that is less to compute, and rows are copied faster.
        start, end = (int(_position(row, *self._heights)) for row in (first, last - 1))
        start = min(start, scores.shape[1] - 1)
        needed = scores[:, start : end + 2]
        part = torch.lerp(needed.index_select(2, left), needed.index_select(2, right), share)
        low, high, share = (taps[first:last] for taps in self._axes[0])
        below, above = (index.clamp(max=scores.shape[1] - 1) - start for index in (low, high))
        return torch.lerp(part.index_select(1, below), part.index_select(1, above), share[None, :, None])


def _taps(shown: int, wanted: int, output_stride: int, device: torch.device | str) -> tuple[torch.Tensor, ...]:
    """Per pixel of the result, the two scores that it lies between, and the weight of the second."""
    position = _position(torch.arange(wanted, device=device, dtype=torch.float64), shown, wanted, output_stride)
    position = position.clamp(min=0)
    low = position.floor().long()
    return low, low + 1, (position - low).float()


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
