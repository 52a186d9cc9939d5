"""How often classes occur, and what weight that gives them in a loss."""

from __future__ import annotations

import torch

from ..model.hierarchy import Hierarchy

CLASS_WEIGHTINGS = ("none", "inverse", "inverse_sqrt", "effective_number", "inverse_sqrt_log_scaled")


def class_weights(counts: torch.Tensor, method: str, max_ratio: float = 100.0, beta: float = 0.9999) -> torch.Tensor:
    """Weight of each class from how often it occurs.

    Args:
        counts: (classes,) number of training samples, or pixels; classes without any get weight 1.
        method: ``none``, ``inverse`` (1/n), ``inverse_sqrt`` (1/sqrt n), ``effective_number``
            ((1 - beta)/(1 - beta^n), Cui et al., CVPR 2019), or ``inverse_sqrt_log_scaled``
            (log(1 + 1/sqrt f), f = n / sum n, as HeritageArt's POC-5.9).
        max_ratio: the largest weight is at most this many times the smallest.
        beta: of ``effective_number``.

    Returns:
        float32 (classes,), scaled so that the mean weight of a training sample is 1.
    """
    occurs = counts > 0
    weights = torch.ones(len(counts), dtype=torch.float64)
    if method == "none" or not occurs.any():
        return weights.float()
    n = counts[occurs].double()
    if method == "effective_number":
        raw = (1 - beta) / -torch.expm1(n * torch.log(torch.tensor(beta, dtype=torch.float64)))
    elif method == "inverse_sqrt_log_scaled":
        raw = (n.sum() / n).sqrt().log1p()
    else:
        raw = 1 / (n if method == "inverse" else n.sqrt())
    raw = raw.clamp(max=raw.min() * max_ratio)
    weights[occurs] = raw * n.sum() / (raw * n).sum()
    return weights.float()


def count_labels(labels: torch.Tensor, hierarchy: Hierarchy) -> list[torch.Tensor]:
    """How often each class of each level occurs in labels (samples, levels): int64 (classes,) per level."""
    columns = [labels[:, level] for level in range(hierarchy.num_levels)]
    return [torch.bincount(c[c >= 0], minlength=n) for c, n in zip(columns, hierarchy.num_classes, strict=True)]


def levels_where_labels_end(labels: torch.Tensor) -> list[int]:
    """Levels above the last at which labels (samples, levels) of some samples end."""
    finest = torch.where(labels >= 0, torch.arange(labels.shape[1]), -1).amax(1).unique()
    return [level for level in finest.tolist() if 0 <= level < labels.shape[1] - 1]
