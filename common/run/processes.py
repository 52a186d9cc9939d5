"""What every run needs once: processes, seeds, logging, progress, trackers, and errors that people can read."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import transformers
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, broadcast, set_seed
from torch import nn

from ..options.shared import CommonArguments
from ..system.files import StorageError
from .command import SCREEN

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

MIN_SHARED_MEMORY = 256 << 20
"""Bytes free in /dev/shm, below which a warning is due; Docker gives 64 MB unless told otherwise"""

QUIET = ("httpx", "httpx2", "httpcore", "matplotlib", "PIL", "fsspec", "datasets", "timm", "accelerate", "filelock")
"""Libraries whose lines would drown ours"""

SUPPORTED = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)


def make_accelerator(args: CommonArguments) -> Accelerator:
    """Join the other processes, seed everything, and set logging up; ValueError if the hardware cannot do it."""
    _setup_logging()
    gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    precision = args.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision == "fp16" and not gpu:
        raise ValueError("--mixed_precision fp16 needs a GPU and there is none; use bf16 or no.")
    known = [str(tracker) for tracker in get_available_trackers()]
    if args.report_to not in {"none", "all", *known}:
        raise ValueError(f"--report_to {args.report_to}: that package is not installed; pip install {args.report_to}.")
    _check_environment(args)
    accelerator = Accelerator(
        cpu=not gpu,  # otherwise torchrun's processes on a CPU would each train alone
        mixed_precision=precision,
        log_with=None if args.report_to == "none" else args.report_to,
        project_dir=os.environ.get("LOSSY_ARTIFACT_PATH") or args.output_dir,  # the ISC copies that one all the time
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )
    asked = int(os.environ.get("WORLD_SIZE") or accelerator.num_processes)
    if accelerator.distributed_type not in SUPPORTED:
        raise ValueError(
            f"{accelerator.distributed_type.value} is not supported: checkpoints could not keep their promises. "
            "Use --multi_gpu (DDP); models of this size fit."
        )
    if accelerator.num_processes != asked:
        raise ValueError(f"{asked} processes were launched, but they did not find each other.")
    if not accelerator.is_main_process:
        logging.getLogger().setLevel(logging.ERROR)
    set_seed(args.seed)
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.set_float32_matmul_precision("highest" if args.deterministic else "high")  # high: TF32 on GPUs
    torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = not args.deterministic
    return accelerator


def _check_environment(args: CommonArguments) -> None:
    """ValueError for launches that cannot work, a warning for a machine that is set up too tightly."""
    world_size = os.environ.get("WORLD_SIZE")
    if world_size is not None and not world_size.isdecimal():
        if world_size:
            raise ValueError(f"WORLD_SIZE is {world_size!r} in the environment, not a number of processes; unset it.")
        del os.environ["WORLD_SIZE"]
    tasks = os.environ.get("SLURM_NTASKS", "1")
    inside_step = os.environ.get("SLURM_STEP_ID", "").isdecimal()  # started by srun itself
    if inside_step and tasks.isdecimal() and int(tasks) > 1 and not os.environ.get("WORLD_SIZE"):
        raise ValueError(
            f"srun started {tasks} tasks, and each would train alone. Start one task per node with accelerate launch "
            "or torchrun, as launch/slurm/train.sbatch does."
        )
    shared_memory = Path("/dev/shm")
    if args.dataloader_num_workers != 0 and shared_memory.is_dir():
        free = shutil.disk_usage(shared_memory).free
        if free < MIN_SHARED_MEMORY:
            logger.warning(
                "/dev/shm has %d MB free; loader processes hand batches over there and may die of a bus error. Give "
                "the container more (docker run --shm-size=8g), or use --dataloader_num_workers 0.",
                free >> 20,
            )


def _setup_logging() -> None:
    """Plain lines on stderr, none longer than a screen."""
    logging.basicConfig(
        format=f"%(message).{SCREEN}s", level=os.environ.get("LOGLEVEL", "INFO"), stream=sys.stderr, force=True
    )
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    transformers.utils.logging.set_verbosity_error()


def num_workers(args: CommonArguments, accelerator: Accelerator) -> int:
    """Loader processes of this process."""
    if args.dataloader_num_workers is not None:
        return args.dataloader_num_workers
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
    return max(1, min(8, len(os.sched_getaffinity(0)) // local_processes))


def backward(accelerator: Accelerator, loss: torch.Tensor) -> None:
    """Gradients of a process's part of the loss, a scalar; all NaN if it is NaN or infinite.

    The scaler of fp16 decides by gradients alone whether a step is skipped.
    """
    good = loss.detach().isfinite()
    accelerator.backward(loss * torch.where(good, accelerator.num_processes, torch.nan))  # DDP averages; parts add up


@torch.no_grad()
def sync_buffers(model: nn.Module, accelerator: Accelerator) -> None:
    """Give every process the main process's buffers (running means), so that all evaluate the model that is saved."""
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            buffer.copy_(broadcast(buffer.detach().clone()))


_host: tuple[Any, Any] = (None, None)  # the default group, and the one made beside it


def host_group() -> Any:
    """A process group on the hosts that waits as long as it takes; ``None`` with one process.

    One process loads, counts masks or draws a report while the others wait; NCCL gives up after ten minutes.
    """
    global _host
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    if _host[0] is not dist.group.WORLD:
        _host = dist.group.WORLD, dist.new_group(backend="gloo", timeout=timedelta(days=30))
    return _host[1]


def wait_for_all() -> None:
    """Wait until every process is here, as long as it takes."""
    if (group := host_group()) is not None:
        dist.barrier(group)


@contextmanager
def local_main_first(accelerator: Accelerator) -> Iterator[None]:
    """Inside, one process of each node goes first; the others find what it has prepared."""
    group = host_group()
    if group is not None and not accelerator.is_local_main_process:
        dist.barrier(group)
    try:
        yield
    finally:
        if group is not None and accelerator.is_local_main_process:
            dist.barrier(group)


def on_main_process(accelerator: Accelerator, function: Callable[[], Result], share: bool = False) -> Result | None:
    """Call a function on the main process alone; what it raises for users is raised on every process.

    Args:
        accelerator: knows the processes; all of them call this.
        function: what to do.
        share: return its result on every process (it is pickled); otherwise the others get ``None``.

    Raises:
        ValueError, OSError, StorageError: from the function.
    """
    result, failed = None, None
    if accelerator.is_main_process:
        try:
            result = function()
        except (ValueError, OSError, StorageError) as error:
            failed = error
    if accelerator.num_processes > 1:
        kind = next((kind for kind in (OSError, StorageError) if isinstance(failed, kind)), ValueError)
        outcome = [(failed and (kind, str(failed)), result if share else None)]
        dist.broadcast_object_list(outcome, group=host_group())
        problem, shared = outcome[0]
        result = shared if share else result
        if problem and failed is None:
            failed = problem[0](problem[1])
    if failed is not None:
        raise failed
    return result
