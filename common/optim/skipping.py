"""Steps with NaN or infinite numbers change nothing: found out and left out on the device, without waiting for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from timm.utils import ModelEmaV3
from torch import nn


def clip_gradients(accelerator: Accelerator, model: nn.Module, max_norm: float) -> torch.Tensor:
    """Clip gradients to ``max_norm`` (0 for no clipping); returns their norm before that, a scalar on the device."""
    if max_norm:
        return accelerator.clip_grad_norm_(model.parameters(), max_norm)
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)


def find_nonfinite(accelerator: Accelerator, loss: torch.Tensor, gradient_norm: torch.Tensor) -> torch.Tensor:
    """1 if loss or gradients are NaN or infinite in any process, else 0: float32, on the device. A collective."""
    good = torch.isfinite(loss) & torch.isfinite(gradient_norm)
    return accelerator.reduce((~good).float(), "sum").clamp(max=1)


@contextmanager
def skipped_if(nonfinite: torch.Tensor, optimizer: AcceleratedOptimizer) -> Iterator[None]:
    """Inside, the optimizer's step changes nothing if ``nonfinite`` is 1; fused optimizers do not wait to know it.

    With fp16 that is the scaler's part, which sees it in the gradients.
    """
    inner = optimizer.optimizer
    if optimizer.scaler is not None:
        yield
    elif inner.defaults.get("fused"):
        inner.found_inf, inner.grad_scale = nonfinite, None
        yield
        del inner.found_inf, inner.grad_scale
    elif nonfinite.item():
        inner.step = lambda closure=None: None  # some optimizers count steps without gradients, too
        yield
        del inner.step
    else:
        yield


class RunningStatistics:
    """What forward passes move in training (BatchNorm's running means and variances): put back if a step is skipped.

    Args:
        model: whose statistics these are, on its device.
    """

    def __init__(self, model: nn.Module) -> None:
        saved = model.state_dict().keys()
        self.buffers = [buffer for name, buffer in model.named_buffers() if name in saved]
        self.before = [buffer.clone() for buffer in self.buffers]

    @torch.no_grad()
    def remember(self) -> None:
        """Keep them as they are now, before the forward passes of a step."""
        for copy, buffer in zip(self.before, self.buffers, strict=True):
            copy.copy_(buffer)

    @torch.no_grad()
    def restore_if(self, nonfinite: torch.Tensor) -> None:
        """Put them back if ``nonfinite`` is 1."""
        for copy, buffer in zip(self.before, self.buffers, strict=True):
            buffer.copy_(torch.where(nonfinite > 0, copy, buffer))


@torch.no_grad()
def update_ema(ema: ModelEmaV3, model: nn.Module, step: int, nonfinite: torch.Tensor) -> None:
    """As ``ema.update(model, step)``, but if ``nonfinite`` is 1 the average stays as it is."""
    weight = (1 - ema.get_decay(step)) * (1 - nonfinite)
    for average, value in zip(ema.module.state_dict().values(), model.state_dict().values(), strict=True):
        if average.is_floating_point():
            average.lerp_(value, weight.to(average.dtype))
        else:
            average.copy_(value)  # counters, which a skipped step has not moved
