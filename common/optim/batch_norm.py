"""BatchNorm under split batches: its statistics belong to a forward pass on one process, unless told otherwise."""

from __future__ import annotations

import logging

from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

logger = logging.getLogger(__name__)


def batch_norms(model: nn.Module, frozen: bool | None = None) -> list[nn.Module]:
    """The model's BatchNorm layers, timm's and SyncBatchNorm included; if asked, only (or no) frozen ones."""
    found = [module for module in model.modules() if isinstance(module, _NormBase) and module.running_mean is not None]
    return [layer for layer in found if frozen in (None, layer.weight is not None and not layer.weight.requires_grad)]


def prepare_batch_norm(model: nn.Module, mode: str, num_processes: int, accumulation_steps: int, size: int) -> None:
    """Make the model's BatchNorm layers what ``--batch_norm`` asks for; models without any stay as they are.

    Args:
        model: on its device.
        mode: ``local``: statistics of each forward pass of each process, as PyTorch has it; ``sync``: of all processes
            together; ``frozen``: running statistics stay what they are, in training too.
        num_processes, accumulation_steps, size: in how many parts a global batch is computed, of how many images.

    Raises:
        ValueError: ``sync`` with several processes on CPUs, where PyTorch has no SyncBatchNorm.
    """
    if not batch_norms(model, frozen=False):
        return
    if mode == "sync" and num_processes > 1:
        if next(model.parameters()).device.type != "cuda":
            raise ValueError("--batch_norm sync needs GPUs (PyTorch's SyncBatchNorm has no CPU version); use frozen.")
        convert_sync_batchnorm(model)
    parts = accumulation_steps * (1 if mode == "sync" else num_processes)
    if mode != "frozen" and (parts > 1 or size == 1):
        logger.warning(
            "The model has BatchNorm, with statistics of the %d images of a forward pass, not of the global batch. "
            "Another batch size per device or number of processes trains another model. --batch_norm frozen (for "
            "pretrained backbones)%s avoids that.",
            size,
            "" if mode == "sync" else " or sync (several GPUs)",
        )


def set_train_mode(model: nn.Module, mode: str) -> None:
    """``model.train()``, but for BatchNorm layers that are frozen, and the whole encoder if it is."""
    model.train()
    encoder = getattr(getattr(model, "backbone", None), "model", None)
    if encoder is not None and not any(value.requires_grad for value in encoder.parameters()):
        encoder.eval()
    for layer in batch_norms(model, frozen=None if mode == "frozen" else True):
        layer.eval()
