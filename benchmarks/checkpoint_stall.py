"""How long a save keeps the training loop waiting: ours, ``accelerator.save_state`` and plain safetensors, in turns.

A ViT-B/16 (86 M parameters) with AdamW's state, about 1.04 GB. Before each save the disk is left to finish what the
one before it wrote. "durable" is when fsync has returned; the other two never ask for it.

    python benchmarks/checkpoint_stall.py --rounds 5
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import timm
import torch
from accelerate import Accelerator

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.side_by_side import machine, table
from common.checkpoint.checkpointer import Checkpointer

Groups = dict[str, dict[str, torch.Tensor]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
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
    groups = groups_of(model, optimizer)
    size = sum(tensor.nbytes for tensors in groups.values() for tensor in tensors.values())
    print(f"{size / 1e9:.2f} GB on {accelerator.device}, {machine()}")

    folder = Path(tempfile.mkdtemp(prefix="checkpoint_stall_"))
    try:
        seconds = measure(folder, options.rounds, accelerator, lambda: groups_of(model, optimizer))
    finally:
        shutil.rmtree(folder)
    print("first:", ", ".join(f"{name} {values.pop(0):.2f} s" for name, values in seconds.items()))
    print(table(seconds, "ours"))


def groups_of(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Groups:
    """Model and optimizer as named tensors."""
    state = optimizer.state_dict()["state"]
    moments = {f"{index}.{name}": value for index, entry in state.items() for name, value in entry.items()}
    return {"model": model.state_dict(), "optimizer": moments}


def measure(
    folder: Path, rounds: int, accelerator: Accelerator, groups: Callable[[], Groups], only_ours: bool = False
) -> dict[str, list[float]]:
    """Seconds of every kind of save, a list entry per round; the first round, with fresh memory, is apart."""
    checkpointer = Checkpointer(folder / "ours")
    seconds: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[[], object]) -> None:
        if accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        seconds.setdefault(name, []).append(time.perf_counter() - started)

    def plain() -> None:
        for name, tensors in groups().items():
            safetensors.torch.save_file(tensors, folder / f"{name}.safetensors")

    for step in range(rounds + 1):
        os.sync()
        started = time.perf_counter()
        timed("ours", lambda step=step: checkpointer.save(step, groups(), {"step": step}))
        checkpointer.wait()
        seconds.setdefault("ours, until durable", []).append(time.perf_counter() - started)
        if only_ours:
            continue
        os.sync()
        timed("accelerator.save_state", lambda: accelerator.save_state(folder / "theirs"))
        os.sync()
        timed("safetensors.save_file", plain)
        for rest in (folder / "theirs", *folder.glob("*.safetensors")):
            shutil.rmtree(rest) if rest.is_dir() else rest.unlink()
    checkpointer.close()
    return seconds


if __name__ == "__main__":
    main()
