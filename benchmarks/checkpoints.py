"""How long a save keeps the training loop waiting, and how long it takes to resume; ours and others in turns.

- save: a ViT-B/16 (86 M parameters) with AdamW's state, about 1.04 GB, beside ``accelerator.save_state`` and plain
  safetensors. Before each save the disk is left to finish what the one before it wrote. "durable" is when fsync has
  returned; the other two never ask for it.
- resume: from "resume at step k" to the first batch, beside ``skip_first_batches`` and replaying, on a table of
  FungiTastic's size over 256 drawn JPEG files of 300 px, in batches of 32, without worker processes. Loading the
  weights does not depend on k and is left out. Is the batch the one that an uninterrupted run would have had?

    python benchmarks/checkpoints.py --rounds 5
"""

from __future__ import annotations

import itertools
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import safetensors.torch
import timm
import torch
from accelerate import Accelerator, skip_first_batches
from datasets import Dataset
from input import plain_transform
from side_by_side import command_line, drawn, in_turns, machine, repeated, table
from torch.utils.data import DataLoader

from common.checkpoint.checkpointer import Checkpointer
from common.data.rows import ImageRows, Samples, collate, make_loader
from common.data.sampling import GlobalBatchSampler

BATCH, REPLAYED = 32, 100  # images; and the step up to which is replayed: it takes minutes per thousand steps


def main() -> None:
    parser = command_line(__doc__, rounds=5, model="vit_base_patch16_224", rows=433_702, steps=[100, 10_000])
    parser.add_argument("--parts", nargs="+", choices=("save", "resume"), default=["save", "resume"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="checkpoints_") as folder:
        if "save" in options.parts:
            save(Path(folder), options.model, options.rounds)
        if "resume" in options.parts:
            torch.set_num_threads(1)
            resume(Path(folder), options.rows, options.steps, options.rounds)


# ---- saving


def save(folder: Path, name: str, rounds: int) -> None:
    """Print how long the loop waits."""
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    model = timm.create_model(name)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    size = sum(tensor.nbytes for tensors in groups_of(model, optimizer).values() for tensor in tensors.values())
    print(f"{size / 1e9:.2f} GB on {accelerator.device}; {machine()}\n")
    ways = saves(folder, model, optimizer)

    def plainly() -> None:
        shutil.rmtree(folder / "theirs", ignore_errors=True)
        for name, tensors in groups_of(model, optimizer).items():
            safetensors.torch.save_file(tensors, folder / f"{name}.safetensors")

    ways["accelerator.save_state"] = lambda: waits(lambda: accelerator.save_state(folder / "theirs"))
    ways["safetensors.save_file"] = lambda: waits(plainly)
    seconds = repeated(ways, rounds + 1)
    print("first, with fresh memory:", ", ".join(f"{name} {values.pop(0):.2f} s" for name, values in seconds.items()))
    print(f"\n{table(seconds, 'ours', 's')}\n")


def groups_of(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict]:
    """Model and optimizer as named tensors."""
    state = optimizer.state_dict()["state"]
    moments = {f"{index}.{name}": value for index, entry in state.items() for name, value in entry.items()}
    return {"model": model.state_dict(), "optimizer": moments}


def saves(folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Callable[[], float]]:
    """Our two ways, which save and return the seconds of it: until the loop goes on, and until all is on the disk."""
    checkpointer, steps = Checkpointer(folder / "ours"), itertools.count()

    def save(wait: Callable[[], object]) -> float:
        step = next(steps)
        seconds = waits(lambda: (checkpointer.save(step, groups_of(model, optimizer), {"step": step}), wait()))
        checkpointer.wait()
        return seconds

    return {"ours": partial(save, lambda: None), "ours, until durable": partial(save, checkpointer.wait)}


def waits(work: Callable[[], object]) -> float:
    """Seconds of some work, begun when disk and device are idle."""
    os.sync()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


# ---- resuming


def resume(folder: Path, num_rows: int, steps: list[int], rounds: int) -> None:
    """Print how long it takes to the first batch, and whether it is the right one."""
    names = [file.name for file in drawn(folder / "images", 300, 256)]
    rows = Dataset.from_dict({"image": [names[row % len(names)] for row in range(num_rows)]})
    images = ImageRows(rows, "image", "train", folder / "images")
    samples = Samples(images, np.arange(num_rows), plain_transform(), np.zeros((num_rows, 1), dtype=np.int64))
    # The same samples by row number, as other loaders ask for them.
    options = {"shuffle": True, "collate_fn": lambda rows: collate(samples.__getitems__([(0, row) for row in rows]))}
    shuffling = DataLoader(range(num_rows), BATCH, **options)
    ways = {
        "ours": lambda step: next(ours(samples, step)),
        "skip_first_batches": lambda step: next(iter(skip_first_batches(shuffling, step))),
        "replay": lambda step: next(itertools.islice(shuffling, step, None)),
    }
    for step in steps:
        timed = {name: partial(way, step) for name, way in ways.items() if name != "replay" or step <= REPLAYED}
        print(f"step {step:,}\n\n{table(in_turns(timed, rounds), 'ours')}\n", flush=True)
    uninterrupted = next(itertools.islice(ours(samples, 0), 10, None))["rows"].tolist()
    at_10, first, second = (ways[name](10)["rows"].tolist() for name in ("ours", *["skip_first_batches"] * 2))
    print("ours: the batch of an uninterrupted run:", "yes" if at_10 == uninterrupted else "NO")
    print("skip_first_batches over a shuffling loader: twice the same batch:", "yes" if first == second else "NO")
    print(f"at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB")


def ours(samples: Samples, step: int) -> Iterator[dict]:
    sampler = GlobalBatchSampler(len(samples), BATCH, BATCH, num_epochs=2)
    sampler.load_state_dict({"epoch": step // sampler.steps_per_epoch, "samples_seen": step * BATCH})
    return iter(make_loader(samples, sampler, 0, False))


if __name__ == "__main__":
    main()
