"""Parameter groups and the learning rate as a pure function of the global step."""

from __future__ import annotations

import math
import re

import torch
from timm.models import group_parameters
from torch import nn

SCHEDULES = ("cosine", "linear", "onecycle", "constant")

# Transformers encoders: embeddings outside of any stage or block first, then blocks by number (stage and block), then
# whatever follows them. What opens a stage goes with its first block, what ends it with its last.
_WITH_PREVIOUS = (99999,)
_TRANSFORMERS_LAYERS = {
    "stem": r"(?:(?!\.\d+\.).)*(?:embed|stem)",
    "blocks": [
        (r"(?:.*?\.)?(?:layers?|stages?)\.(\d+)\.downsample\.", _WITH_PREVIOUS),
        (r"(?:.*?\.)?stages?\.(\d+)\.(?:downsampling|patch_embed)", (0,)),
        (r"(?:.*?\.)?(?:layers?|blocks?|stages?)\.(\d+)\..*?(?:layers?|blocks?)\.(\d+)", None),
        (r"(?:.*?\.)?stages?\.(\d+)", _WITH_PREVIOUS),
        (r"(?:.*?\.)?(?:layers?|blocks?)\.(\d+)", None),
        (r".*", _WITH_PREVIOUS),
    ],
}

# What Transformers encoders call the parameters that, like biases, must not be decayed; timm's say so themselves.
_NO_DECAY = re.compile(r".*(?:_tokens?|position_embeddings?(?:\.weight)?|relative_position_bias_table|logit_scale)$")


def parameter_groups(
    model: nn.Module, learning_rate: float, weight_decay: float, layer_decay: float = 1.0
) -> list[dict]:
    """Groups for AdamW: no decay on biases, norms, tokens and positions; lower rates for early layers.

    Args:
        model: with ``backbone`` (:class:`common.backbones.Backbone`) and whatever else, which gets the full rate.
        learning_rate: of the heads; stored in each group as ``base_lr`` times its ``lr_scale``.
        weight_decay: of matrices and filters.
        layer_decay: the rate of each layer relative to the next one, counted from the heads (BEiT uses 0.65 to 0.9).
    """
    encoder = model.backbone.model
    excluded = set(getattr(encoder, "no_weight_decay", set)())
    scales = _layer_scales(encoder, layer_decay)
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        inner = name.removeprefix("backbone.model.")
        named = _NO_DECAY.match(inner) or any(inner.endswith(entry) for entry in excluded)
        plain = parameter.dim() <= 1 or (inner != name and named)
        key = (0.0 if plain else weight_decay, scales.get(inner, 1.0) if inner != name else 1.0)
        base = learning_rate * key[1]
        group = groups.setdefault(key, {"params": [], "weight_decay": key[0], "base_lr": base, "lr": base})
        group["params"].append(parameter)
    return list(groups.values())


def _layer_scales(encoder: nn.Module, layer_decay: float) -> dict[str, float]:
    if layer_decay == 1.0:
        return {}
    matcher = encoder.group_matcher(coarse=False) if hasattr(encoder, "group_matcher") else _TRANSFORMERS_LAYERS
    layers = group_parameters(encoder, matcher, reverse=True)
    top = max(layers.values()) + 1  # the heads come after the encoder's last layer
    return {name: layer_decay ** (top - layer) for name, layer in layers.items()}


def learning_rate_factor(schedule: str, step: int, num_steps: int, num_warmup_steps: int = 0) -> float:
    """Multiple of the base learning rate for the update from ``step`` to ``step + 1``; a pure function.

    Args:
        schedule: one of :data:`SCHEDULES`. ``onecycle`` is PyTorch's OneCycleLR with cosine annealing, warm-up taking
            the place of its ``pct_start`` (30 % if there is none).
        step: optimizer steps done so far, from 0.
        num_steps: of the whole training.
        num_warmup_steps: the rate rises linearly over these (``onecycle``: as a cosine).
    """
    if schedule == "onecycle":
        return _one_cycle(step, num_steps, num_warmup_steps)
    if step < num_warmup_steps:
        return (step + 1) / num_warmup_steps
    progress = min((step - num_warmup_steps) / max(num_steps - num_warmup_steps, 1), 1.0)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if schedule == "linear":
        return 1 - progress
    if schedule == "constant":
        return 1.0
    raise ValueError(f"Unknown schedule {schedule!r}; choose from {', '.join(SCHEDULES)}.")


def _one_cycle(step: int, num_steps: int, num_warmup_steps: int) -> float:
    """Smith & Topin 2018 with PyTorch's defaults: from 1/25 up to 1, then down to 1/250,000."""
    rising = max((num_warmup_steps or 0.3 * num_steps) - 1, 1e-9)
    start, end = 1 / 25, 1 / 25e4
    if step <= rising:
        low, progress = start, 1 - step / rising
    else:
        low, progress = end, min((step - rising) / max(num_steps - 1 - rising, 1e-9), 1.0)
    return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Give every parameter group its base rate times ``factor``."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
