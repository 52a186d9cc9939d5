"""Counts of boundaries, lines and objects. To intersection over union a crack one pixel off is all wrong."""

from __future__ import annotations

import numpy as np
import scipy.ndimage
import torch

from ..images.morphology import dilate, inner_boundary, skeleton
from ..model.hierarchy import Hierarchy

NUM_COUNTS = 16
SKELETON_STEPS = 20  # half of the width in pixels of the widest line
_TOUCHING = np.stack([np.zeros((3, 3)), np.ones((3, 3)), np.zeros((3, 3))])  # eight neighbours in the same image


def thin_counts(hierarchy: Hierarchy, leaf: torch.Tensor, references: torch.Tensor, tolerance: int) -> torch.Tensor:
    """What :func:`thin_scores` needs, int64 (classes of all levels, NUM_COUNTS), of images; on GPUs it waits for them.

    Args:
        hierarchy: the label tree.
        leaf: predicted leaves, (height, width) or (images, height, width).
        references: the same of the labels, negative where there is none.
        tolerance: distance in pixels that boundaries and pixels may be off.
    """
    lifted = [hierarchy.lift(each.long().view(-1, *leaf.shape[-2:])) for each in (references, leaf)]
    counts = torch.zeros(sum(hierarchy.num_classes), NUM_COUNTS, dtype=torch.long, device=leaf.device)
    nodes = [(level, label) for level, size in enumerate(hierarchy.num_classes) for label in range(size)]
    for row, (level, label) in zip(counts, nodes, strict=True):
        truth, given = (column[level] for column in lifted)
        known = truth >= 0
        masks = torch.stack([truth == label, (given == label) & known]).float()
        if not masks.any():
            continue
        unknown = (~known).float()[None]  # where labels end is no boundary
        band = inner_boundary(masks, tolerance) * (1 - dilate(unknown, tolerance))
        edge, line = inner_boundary(masks) * (1 - dilate(unknown, 1)), skeleton(masks, SKELETON_STEPS)
        (near_wanted, near), (near_edge_wanted, near_edge) = dilate(masks, tolerance), dilate(edge, tolerance)
        maps = [
            *(*band, band[0] * band[1]),
            *(edge[0] * near_edge, edge[0], edge[1] * near_edge_wanted, edge[1]),
            *(line[0] * masks[1], line[0], line[1] * masks[0], line[1]),
            *(masks[0] * near, masks[0], masks[1] * (1 - near_wanted)),
        ]
        objects, num_objects = scipy.ndimage.label(masks[0].cpu().numpy(), _TOUCHING)
        hit = objects[near.cpu().numpy() > 0]
        sizes, hits = (np.bincount(each, minlength=num_objects + 1) for each in (objects.ravel(), hit))
        of_objects = torch.tensor([(2 * hits >= sizes)[1:].sum(), num_objects], device=leaf.device)
        row += torch.cat([torch.stack([part.sum() for part in maps]).long(), of_objects])
    return counts


def thin_scores(counts: torch.Tensor) -> dict[str, torch.Tensor]:
    """Scores float64 (..., classes) of :func:`thin_counts` (..., classes, NUM_COUNTS), NaN where a class is absent.

    See the docstring of :class:`.segmentation.SegmentationMetrics`.
    """
    band, band_given, band_right, *lines, near, wanted, false, found, objects = counts.double().unbind(-1)
    return {
        "boundary_iou": band_right / (band + band_given - band_right),
        "boundary_f1": _f1(*lines[:4]),
        "cldice": _f1(*lines[4:]),
        "tolerant_iou": near / (wanted + false),
        "object_recall": found / objects,
    }


def thin_means(counts: torch.Tensor, hierarchy: Hierarchy) -> list[dict[str, torch.Tensor]]:
    """Of every level means (...) over classes, from :func:`thin_counts` (..., classes of all levels, NUM_COUNTS)."""
    scores = [thin_scores(part) for part in counts.split(hierarchy.num_classes, -2)]
    return [{f"mean_{name}": values.nanmean(-1) for name, values in level.items()} for level in scores]


def _f1(found: torch.Tensor, wanted: torch.Tensor, right: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    recall, precision = (found / wanted).nan_to_num(0), (right / given).nan_to_num(0)
    f1 = (2 * precision * recall / (precision + recall)).nan_to_num(0)
    return torch.where(wanted + given > 0, f1, torch.nan)
