"""What is trained: the whole model, or what is new on a backbone that stays as it is, perhaps with LoRA."""

from __future__ import annotations

import copy

import torch
from torch import nn

from ..model.modeling import LabelTreeModel


def prepare_tuning(model: LabelTreeModel, tune: str, rank: int, gradient_checkpointing: bool = False) -> None:
    """Freeze what ``--tune`` does not train: with ``head`` and ``lora`` the backbone's own weights.

    LoRA (Hu et al., 2022) adds a product of two matrices of width ``rank`` to each linear layer, or else convolution.

    Raises:
        ValueError: the backbone has no gradient checkpointing, or nothing that LoRA could be added to.
    """
    if gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if tune == "full":
        return
    encoder = model.backbone.model.requires_grad_(False)
    if tune == "lora":
        plain = [(name, module) for name, module in encoder.named_modules() if getattr(module, "groups", 1) == 1]
        found = [[name for name, module in plain if type(module) is kind] for kind in (nn.Linear, nn.Conv2d)]
        # timm's BEiT, EVA and Swin V2 use the weight of these layers, and not the layers.
        passed_over = [f"{name}.qkv" for name, module in encoder.named_modules() if hasattr(module, "q_bias")]
        names = sorted(set(found[0] or found[1]).difference(passed_over))
        if not names:
            raise ValueError(f"--tune lora: {type(encoder).__name__} has no linear layer or convolution; use head.")
        from peft import LoraConfig, inject_adapter_in_model  # takes seconds

        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names), encoder)


@torch.no_grad()
def merged(model: nn.Module) -> nn.Module:
    """A copy with LoRA's additions in the weights, as the model is saved; without LoRA the model itself."""
    if any(hasattr(module, "get_base_layer") for module in model.modules()):
        model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if hasattr(module, "get_base_layer"):
            module.merge()
            model.set_submodule(name, module.get_base_layer())
    return model
