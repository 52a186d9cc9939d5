"""What is trained: the whole model, or what is new on a backbone that stays as it is, perhaps with LoRA."""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..model.modeling import LabelTreeModel

logger = logging.getLogger(__name__)


def prepare_tuning(
    model: LabelTreeModel, tune: str, rank: int, gradient_checkpointing: bool = False, unfreeze: bool = False
) -> None:
    """Freeze what ``--tune`` does not train: with ``head`` and ``lora`` the backbone's own weights.

    Not so with ``unfreeze``, because :class:`HeldBack` will train them in the end.

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
    if unfreeze:
        encoder.requires_grad_()


class HeldBack:
    """The backbone's own weights, if ``--unfreeze_after`` trains them from some epoch on; frozen until then.

    Args:
        args: the script's options.
        model: prepared; its optimizer has these weights already, and leaves them alone while they get no gradients.
        sampler: knows the steps.
    """

    def __init__(self, args: Any, model: LabelTreeModel, sampler: Any) -> None:
        self.model, self.step = model, (args.unfreeze_after or 0) * sampler.steps_per_epoch
        named = model.backbone.model.named_parameters() if self.step and args.tune != "full" else []
        self.weights = [value for name, value in named if value.requires_grad and ".lora_" not in name]
        for value in self.weights:
            value.requires_grad_(False)
        if self.weights and self.step >= sampler.num_steps:
            logger.warning("--unfreeze_after has no effect: the training ends after %d steps.", sampler.num_steps)

    def released(self, wrapped: nn.Module, step: int) -> nn.Module:
        """The wrapped model; from their step on with these weights, which DDP has to be told of by wrapping anew."""
        if not self.weights or step < self.step:
            return wrapped
        for value in self.weights:
            value.requires_grad_()
        self.weights = []
        if isinstance(wrapped, DistributedDataParallel):
            return DistributedDataParallel(self.model, wrapped.device_ids, gradient_as_bucket_view=True)
        return wrapped


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
