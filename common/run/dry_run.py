"""What would go wrong after an hour, found in the first seconds: saving and loading, one step at full size, memory."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable

import torch
from accelerate import Accelerator

from ..model.encoders import first_line
from ..model.modeling import LabelTreeModel
from ..optim.tuning import merged
from ..options.shared import CommonArguments
from .processes import on_main_process

logger = logging.getLogger(__name__)


def dry_run(
    args: CommonArguments,
    accelerator: Accelerator,
    model: LabelTreeModel,
    loss_of: Callable[[torch.Tensor], torch.Tensor],
    micro_batch_size: int,
) -> None:
    """Save and rebuild the model, and run one forward and backward pass on random images at the real size.

    Afterwards weights, buffers and random generators are what they were before; parameters that got no gradient are
    frozen, because several processes would wait for their gradients.

    Args:
        args: the script's options.
        accelerator: knows device, precision and processes. Every process calls this.
        model: on its device.
        loss_of: images (batch, 3, side, side) on the device -> loss; calls the model.
        micro_batch_size: images per forward pass.

    Raises:
        ValueError: what fails, with the option to change.
    """
    devices = [accelerator.device] if accelerator.device.type == "cuda" else []
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    mode = model.training
    try:
        with torch.random.fork_rng(devices):
            on_main_process(accelerator, lambda: _check_saving(args, model, accelerator.device))
            _check_step(args, accelerator, model, loss_of, micro_batch_size)
    finally:
        model.train(mode)
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        if devices:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def _images(model: LabelTreeModel, count: int, device: torch.device) -> torch.Tensor:
    side = model.config.backbone["image_size"]
    return torch.randn(count, 3, side, side, device=device)


@torch.no_grad()
def _check_saving(args: CommonArguments, model: LabelTreeModel, device: torch.device) -> None:
    """ValueError if the model cannot be saved, or what is loaded again computes something else."""
    pixels = _images(model, 1, device)
    try:
        expected = model.eval()(pixels).logits
    except Exception as error:
        raise ValueError(_does_not_run(args, model, error)) from error
    try:
        with tempfile.TemporaryDirectory(prefix="label_tree_") as folder:
            merged(model).save_pretrained(folder)
            again = type(model).from_pretrained(folder).to(device).eval()
            found = again(pixels).logits
    except Exception as error:
        raise ValueError(
            f"--model_name_or_path {args.model_name_or_path}: this backbone can be trained, but not saved and loaded "
            f"again ({type(error).__name__}: {first_line(error)}). Choose another one."
        ) from error
    if not torch.allclose(found.float(), expected.float(), rtol=1e-3, atol=1e-4):
        raise ValueError(
            f"--model_name_or_path {args.model_name_or_path}: saved and loaded again, this backbone gives other "
            f"logits (by up to {(found - expected).abs().max().item():.2g}). Choose another one."
        )


def _check_step(
    args: CommonArguments,
    accelerator: Accelerator,
    model: LabelTreeModel,
    loss_of: Callable[[torch.Tensor], torch.Tensor],
    micro_batch_size: int,
) -> None:
    """One forward and backward pass; ValueError, on every process, if it fails on any of them."""
    started, device, failed = time.perf_counter(), accelerator.device, None
    reserved = []
    try:
        if device.type == "cuda":  # what the optimizer, and an average of the weights, will take
            average = bool(args.ema_decay)
            pairs = [(value, 2 * value.requires_grad + average) for value in model.parameters()]
            reserved = [torch.empty_like(value) for value, copies in pairs for _ in range(copies)]
        loss = loss_of(_images(model, micro_batch_size, device))
        loss.backward()
        del loss
    except torch.OutOfMemoryError as error:
        failed = ValueError(
            f"Out of memory in a forward and backward pass of {micro_batch_size} images of "
            f"{model.config.backbone['image_size']} px ({first_line(error)}). Lower --per_device_train_batch_size "
            "(with the same --global_batch_size only time changes) or --image_size, or use --mixed_precision bf16."
        )
    except Exception as error:
        failed = ValueError(_does_not_run(args, model, error))
        failed.__cause__ = error
    del reserved
    bad = torch.tensor(float(failed is not None), device=device)
    if accelerator.reduce(bad, "sum") > 0:
        raise failed or ValueError("A forward and backward pass failed on another process.")
    unused = [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]
    for name in unused:
        model.get_parameter(name).requires_grad_(False)
    if unused:
        logger.info("%d parameters get no gradient and are frozen: %s.", len(unused), ", ".join(unused[:5]))
    memory = f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB of GPU memory" if device.type == "cuda" else ""
    seconds = time.perf_counter() - started
    logger.info("dry run: %d images forward and backward in %.2f s%s", micro_batch_size, seconds, memory)


def _does_not_run(args: CommonArguments, model: LabelTreeModel, error: Exception) -> str:
    size, text = model.config.backbone["image_size"], f"{type(error).__name__}: {first_line(error)}"
    if "deterministic" in str(error):
        hint = "Train without --deterministic, or at the backbone's own --image_size."
    elif "more than 1 value per channel" in str(error):
        hint = "BatchNorm cannot train on one image: raise --per_device_train_batch_size, or use --batch_norm frozen."
    elif args.image_size:
        hint = "Leave --image_size out to use the backbone's own size, or choose another backbone."
    else:
        hint = "Choose another backbone."
    return f"--model_name_or_path {args.model_name_or_path} does not train at {size} px ({text}). {hint}"
