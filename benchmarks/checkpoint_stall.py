"""How long a save keeps the training loop waiting: ours, ``accelerator.save_state`` and plain safetensors, in turns.

A ViT-B/16 (86 M parameters) with AdamW's state, about 1.04 GB. Before each save the disk is left to finish what the
one before it wrote. "durable" is when fsync has returned; the other two never ask for it.

    python benchmarks/checkpoint_stall.py --rounds 5
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import timm
import torch
from accelerate import Accelerator
from side_by_side import command_line, machine, repeated, table

from common.checkpoint.checkpointer import Checkpointer

Groups = dict[str, dict[str, torch.Tensor]]


def main() -> None:
    parser = command_line(__doc__, rounds=5)
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--cpu", action="store_true", help="although there is a GPU")
    options = parser.parse_args()

    accelerator = Accelerator(cpu=options.cpu or not torch.cuda.is_available())
    model = timm.create_model(options.model)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    size = sum(tensor.nbytes for tensors in groups_of(model, optimizer).values() for tensor in tensors.values())
    print(f"{size / 1e9:.2f} GB on {accelerator.device}; {machine()}\n")
    with tempfile.TemporaryDirectory(prefix="checkpoint_stall_") as name:
        folder = Path(name)
        ways = saves(folder, model, optimizer)
        ways["accelerator.save_state"] = lambda: waits(lambda: accelerator.save_state(folder / "theirs"))
        ways["safetensors.save_file"] = lambda: waits(lambda: save_plainly(folder, groups_of(model, optimizer)))
        seconds = repeated(ways, options.rounds + 1)
    print("first, with fresh memory:", ", ".join(f"{name} {values.pop(0):.2f} s" for name, values in seconds.items()))
    print(f"\n{table(seconds, 'ours', 's')}")


def groups_of(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Groups:
    """Model and optimizer as named tensors."""
    state = optimizer.state_dict()["state"]
    moments = {f"{index}.{name}": value for index, entry in state.items() for name, value in entry.items()}
    return {"model": model.state_dict(), "optimizer": moments}


def saves(folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Callable[[], float]]:
    """Our two ways, which save and return the seconds of it: until the loop goes on, and until all is on the disk."""
    checkpointer, steps = Checkpointer(folder / "ours"), itertools.count()

    def save() -> None:
        step = next(steps)
        checkpointer.save(step, groups_of(model, optimizer), {"step": step})

    def stall() -> float:
        seconds = waits(save)
        checkpointer.wait()
        return seconds

    return {"ours": stall, "ours, until durable": lambda: waits(lambda: (save(), checkpointer.wait()))}


def save_plainly(folder: Path, groups: Groups) -> None:
    shutil.rmtree(folder / "theirs", ignore_errors=True)
    for name, tensors in groups.items():
        safetensors.torch.save_file(tensors, folder / f"{name}.safetensors")


def waits(work: Callable[[], object]) -> float:
    """Seconds of some work, begun when disk and device are idle."""
    os.sync()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
