"""Erosion, dilation, boundaries and skeletons of masks, or differentiably of probabilities, on the device they are on.

Everything takes and returns floating-point (images, classes, height, width), from 0 to 1. Beyond the edge of the image
there is nothing to erode by or to dilate from.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def dilate(masks: torch.Tensor, distance: int) -> torch.Tensor:
    """All that is within ``distance`` pixels, of eight neighbours each."""
    side = 2 * distance + 1  # a square is a row of columns, which takes 2 n steps instead of n^2
    rows = F.max_pool2d(masks, (1, side), 1, (0, distance))
    return F.max_pool2d(rows, (side, 1), 1, (distance, 0))


def inner_boundary(masks: torch.Tensor, distance: int = 1) -> torch.Tensor:
    """What is within ``distance`` pixels of something outside (Cheng et al., Boundary IoU, CVPR 2021)."""
    return dilate(1 - masks, distance) - (1 - masks)


def skeleton(masks: torch.Tensor, steps: int = 10) -> torch.Tensor:
    """Soft skeleton of Shit et al., clDice, CVPR 2021; of masks it is the morphological skeleton.

    Args:
        masks: (images, classes, height, width).
        steps: erosions: half of the width in pixels of what is to become a line.
    """

    def without_opening(masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        eroded = -torch.maximum(F.max_pool2d(-masks, (3, 1), 1, (1, 0)), F.max_pool2d(-masks, (1, 3), 1, (0, 1)))
        return F.relu(masks - dilate(eroded, 1)), eroded

    found, masks = without_opening(masks)
    for _ in range(steps):
        more, masks = without_opening(masks)
        found = found + F.relu(more - found * more)
    return found
