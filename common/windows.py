"""Scores of dense models at stride 4 -> labels of every pixel of an image, of any size, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F


def window_starts(length: int, size: int, stride: int) -> list[int]:
    """Where windows begin so that they cover ``length`` and the last one ends with it; [0] if one covers all."""
    last = max(length - size, 0)
    return [*range(0, last, stride), last]


@torch.no_grad()
def sliding_scores(
    model: Callable[[torch.Tensor], torch.Tensor],
    pixels: torch.Tensor,
    size: int,
    stride: int,
    batch_size: int,
    output_stride: int = 4,
) -> torch.Tensor:
    """Scores of a large image from overlapping windows, blended.

    A window counts most in its middle and least at its border, where it knows least of what is around it.

    Args:
        model: normalised images (n, 3, size, size) -> scores (n, outputs, size / output_stride, ...).
        pixels: normalised image (3, height, width), at least ``size`` on each side; what is missing to a multiple of
            ``output_stride`` is padded with 0.
        size: side of a window, a multiple of ``output_stride``.
        stride: distance from window to window, likewise.
        batch_size: windows in one forward pass.
        output_stride: of the scores.

    Returns:
        float32 (1, outputs, ceil(height / output_stride), ceil(width / output_stride)).
    """
    assert size % output_stride == 0 and stride % output_stride == 0 and stride > 0
    height, width = pixels.shape[1:]
    pixels = F.pad(pixels, (0, -width % output_stride, 0, -height % output_stride))
    corners = [
        (top, left)
        for top in window_starts(pixels.shape[1], size, stride)
        for left in window_starts(pixels.shape[2], size, stride)
    ]
    side = size // output_stride
    ramp = torch.minimum(torch.arange(side) + 1, torch.arange(side).flip(0) + 1).to(pixels.device, torch.float32)
    weight = ramp[:, None] * ramp
    total = norm = None
    for first in range(0, len(corners), batch_size):
        part = corners[first : first + batch_size]
        scores = model(torch.stack([pixels[:, top : top + size, left : left + size] for top, left in part])).float()
        if total is None:
            grid = [side_length // output_stride for side_length in pixels.shape[1:]]
            total = scores.new_zeros(scores.shape[1], *grid)
            norm = scores.new_zeros(grid)
        for (top, left), window in zip(part, scores, strict=True):
            rows = slice(top // output_stride, top // output_stride + side)
            columns = slice(left // output_stride, left // output_stride + side)
            total[:, rows, columns] += window * weight
            norm[rows, columns] += weight
    return (total / norm)[None]


class Resampler:
    """Bilinear samples of scores at the pixels of an image of another size, some rows at a time.

    Args:
        resized: height and width of the image as the model was shown it, without padding.
        size: height and width wanted.
        output_stride: pixels that the model was shown, per score.
        device: of the scores.
    """

    def __init__(
        self, resized: Sequence[int], size: Sequence[int], output_stride: int, device: torch.device | str
    ) -> None:
        self.size = tuple(size)
        self._axes = [
            _taps(shown, wanted, output_stride, device) for shown, wanted in zip(resized, self.size, strict=True)
        ]

    def rows(self, scores: torch.Tensor, first: int, last: int) -> torch.Tensor:
        """Scores (channels, h, w) -> (channels, last - first, width wanted) of rows ``first`` up to ``last``."""
        (low, high, share) = (taps[first:last] for taps in self._axes[0])
        below, above = (index.clamp(max=scores.shape[1] - 1) for index in (low, high))
        part = torch.lerp(scores[:, below], scores[:, above], share[None, :, None])
        low, high, share = self._axes[1]
        left, right = (index.clamp(max=scores.shape[2] - 1) for index in (low, high))
        return torch.lerp(part[:, :, left], part[:, :, right], share)


def _taps(shown: int, wanted: int, output_stride: int, device: torch.device | str) -> tuple[torch.Tensor, ...]:
    """Per pixel wanted, the two scores that it lies between, and how far it is on the way to the second."""
    centre = (torch.arange(wanted, device=device, dtype=torch.float64) + 0.5) * shown / wanted
    position = (centre / output_stride - 0.5).clamp(min=0)
    low = position.floor().long()
    return low, low + 1, (position - low).float()


def dense_labels(
    resampler: Resampler,
    scores: Sequence[torch.Tensor],
    label: Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]],
    max_elements: int = 2**24,
) -> list[torch.Tensor]:
    """Labels at every pixel wanted, without ever holding all scores at that size.

    Args:
        resampler: see there.
        scores: tensors (channels, h, w).
        label: tensors (1, channels, rows, width) -> label tensors (1, rows, width).
        max_elements: scores held at once.

    Returns:
        Per label tensor, (height, width), uint8 where there are no more scores than a byte counts, otherwise int16.
    """
    height, width = resampler.size
    per_row = width * sum(tensor.shape[0] for tensor in scores)
    step = max(1, max_elements // per_row)
    strips = []
    for first in range(0, height, step):
        last = min(first + step, height)
        strips.append(label([resampler.rows(tensor, first, last)[None] for tensor in scores]))
    small = max(tensor.shape[0] for tensor in scores) < 256
    dtype = torch.uint8 if small else torch.int16
    return [torch.cat([part[0].to(dtype) for part in column]) for column in zip(*strips, strict=True)]
