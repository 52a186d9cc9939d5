"""Which parameters are optimized how: weight decay, learning rates of layers, the optimizer."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Any

import torch
from timm.models._manipulate import group_with_matcher
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from torch import nn

FUSED = (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD)

_HEADS = "label_tree.heads"  # stands for our heads among the encoder's parameters

# Transformers encoders: embeddings outside of any stage or block first, then blocks by number (stage and block). What
# opens a stage goes with its first block, what ends it with its last, and whatever follows them with the heads.
_WITH_PREVIOUS = (99999,)
_TRANSFORMERS_LAYERS = {
    "stem": r"(?:(?!\.\d+\.).)*(?:embed|stem)",
    "blocks": [
        (r"(?:.*?\.)?(?:layers?|stages?)\.(\d+)\.downsample\.", _WITH_PREVIOUS),
        (r"(?:.*?\.)?stages?\.(\d+)\.(?:downsampling|patch_embed)", (0,)),
        (r"(?:.*?\.)?(?:layers?|blocks?|stages?)\.(\d+)\..*?(?:layers?|blocks?)\.(\d+)", None),
        (r"(?:.*?\.)?stages?\.(\d+)", _WITH_PREVIOUS),
        (r"(?:.*?\.)?(?:layers?|blocks?)\.(\d+)", None),
    ],
}

# What Transformers encoders call the parameters that, like biases, must not be decayed; timm's say so themselves.
_NO_DECAY = re.compile(r".*(?:_tokens?|position_embeddings?(?:\.weight)?|relative_position_bias_table|logit_scale)$")


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    layer_decay: float = 1.0,
    head_lr_scale: float = 1.0,
) -> list[dict]:
    """Groups for AdamW: no decay on biases, norms, tokens and positions; lower rates for early layers.

    Args:
        model: with a ``backbone`` whose ``model`` is the encoder; whatever else it has gets the full rate.
        learning_rate: of the backbone's last layer; each group has its own as ``base_lr``.
        weight_decay: of matrices and filters.
        layer_decay: the rate of each layer relative to the next one, counted from the heads (BEiT uses 0.65 to 0.9).
        head_lr_scale: the rate of what is new (heads, decoder, LoRA) relative to the backbone's.
    """
    encoder = model.backbone.model
    excluded = set(getattr(encoder, "no_weight_decay", set)())
    scales = _layer_scales(encoder, layer_decay)
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in ((name, value) for name, value in model.named_parameters() if value.requires_grad):
        inner = name.removeprefix("backbone.model.")
        named = _NO_DECAY.match(inner) or any(inner.endswith(entry) for entry in excluded)
        plain = parameter.dim() <= 1 or (inner != name and named)
        old = inner != name and ".lora_" not in name
        key = (0.0 if plain else weight_decay, scales.get(inner, 1.0) if old else head_lr_scale)
        base = learning_rate * key[1]
        group = groups.setdefault(key, {"params": [], "weight_decay": key[0], "base_lr": base, "lr": base})
        group["params"].append(parameter)
    return list(groups.values())


def _layer_scales(encoder: nn.Module, layer_decay: float) -> dict[str, float]:
    """Relative learning rate of each of the encoder's parameters, 1 for what belongs to the heads.

    As in BEiT's and timm's recipes, what no layer claims (``fc_norm``, ``head.norm``) goes with the heads.
    """
    if layer_decay == 1.0:
        return {}
    matcher = encoder.group_matcher(coarse=False) if hasattr(encoder, "group_matcher") else _TRANSFORMERS_LAYERS
    named = [*encoder.named_parameters(), (_HEADS, None)]
    layers = group_with_matcher(named, matcher, reverse=True)
    return {name: layer_decay ** (layers[_HEADS] - layer) for name, layer in layers.items()}


def make_optimizer(args: Any, model: nn.Module, device: torch.device) -> torch.optim.Optimizer:
    """``--optimizer`` from timm's factory over :func:`parameter_groups`; fused where PyTorch can."""
    info = get_optimizer_info(args.optimizer)
    groups = parameter_groups(model, args.learning_rate, args.weight_decay, args.layer_decay, args.head_lr_scale)
    options: dict[str, Any] = {}
    if info.has_betas and info.num_betas == 2:
        options["betas"] = (args.adam_beta1, args.adam_beta2)
    if info.opt_class in FUSED:
        options["fused"] = device.type in ("cpu", "cuda")
    optimizer = create_optimizer_v2(groups, args.optimizer, lr=args.learning_rate, momentum=args.momentum, **options)
    if isinstance(optimizer, torch.optim.SGD) and args.momentum:
        # The same as to begin with the first gradient; but fused SGD makes a momentum of garbage if it is skipped.
        for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def check_optimizer(name: str) -> None:
    """ValueError if timm's factory has no such optimizer."""
    known = sorted({*list_optimizers()} - {"adahessian"})  # that one differentiates gradients
    if name not in known:
        near = get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}?" if near else "adamw, sgd, momentum, lion, lamb and others are."
        raise ValueError(f"--optimizer {name} is unknown to timm's factory; {hint}")
