"""What all benchmarks share: alternatives measured in turns, tables of ratios, fresh processes, and drawn data."""

from __future__ import annotations

import argparse
import importlib
import itertools
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from common.model.hierarchy import Hierarchy  # noqa: E402

RANKS = ("phylum", "class", "order", "family", "genus", "species")


def command_line(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """A parser that shows a benchmark's docstring, with an option of the same type per default; a list is many."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in defaults.items():
        many = {"type": type(value[0]), "nargs": "+"} if isinstance(value, list) else {"type": type(value)}
        parser.add_argument(f"--{name}", **many, default=value)
    return parser


def machine() -> str:
    """One line about where this runs."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads of {os.cpu_count()} CPU cores, {device}"


# ---- measuring


def repeated(ways: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each way measured in each round; all take turns, so that what disturbs one disturbs the others as well."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _, (name, way) in itertools.product(range(rounds), ways.items()):
        found[name].append(way())
    return found


def in_turns(
    ways: Mapping[str, Callable[[], object]],
    rounds: int,
    cpu_time: bool = False,
    repeats: int = 1,
    images: int | None = None,
) -> dict[str, list[float]]:
    """Milliseconds of each call, one warm-up round left out.

    Args:
        ways: name -> the work.
        rounds: how often each is done.
        cpu_time: count the time that this process computes, which other work on the machine does not lengthen.
        repeats: how often in a turn; the mean counts, so that short work is timed as in a loop.
        images: how many each call handles; then images per second are returned.
    """
    clock = time.process_time if cpu_time else time.perf_counter

    def timed(way: Callable[[], object]) -> float:
        started = clock()
        for _ in range(repeats):
            way()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = (clock() - started) / repeats
        return images / seconds if images else 1e3 * seconds

    found = repeated({name: lambda way=way: timed(way) for name, way in ways.items()}, rounds + 1)
    return {name: values[1:] for name, values in found.items()}


def table(found: Mapping[str, Sequence[float]], base: str, unit: str = "ms", into: bool = False) -> str:
    """Medians with their range, and their ratio to the ``base``; ``into``: of the base to them, as for speeds."""

    def shown(value: float) -> str:
        return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"

    medians = {name: statistics.median(values) for name, values in found.items()}
    lines = [f"| | {unit}, median | range | {f'{base} / it' if into else f'/ {base}'} |", "|---|---|---|---|"]
    for name, values in found.items():
        ratio = medians[base] / medians[name] if into else medians[name] / medians[base]
        spread = f"{shown(min(values))} to {shown(max(values))}"
        lines.append(f"| {name} | {shown(medians[name])} | {spread} | {ratio:.2f} |")
    return "\n".join(lines)


def apart(work: Callable[..., Any], *args: Any) -> Any:
    """What some work returns in a fresh process, with one thread there on a CPU, which prints nothing.

    Raises:
        BrokenProcessPool: the process was killed; what the work raises is raised here.
    """
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(1, context, _begin, (multiprocessing.get_start_method(),)) as pool:
        return pool.submit(work, *args).result()


def _begin(start_method: str) -> None:
    multiprocessing.set_start_method(start_method, force=True)  # of workers: as in a script that is run by itself
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1), os.dup2(silence, 2)
    if not torch.cuda.is_available():
        torch.set_num_threads(1)


# ---- scripts, and data for them


def balanced_tree(sizes: Sequence[int], levels: Sequence[str] | None = None) -> Hierarchy:
    """A tree with so many classes per level, the children spread evenly."""
    levels = list(levels or [f"level{number}" for number in range(len(sizes))])
    parents = [[index * above // size for index in range(size)] for above, size in itertools.pairwise(sizes)]
    names = [[f"{level}{index}" for index in range(size)] for level, size in zip(levels, sizes, strict=True)]
    return Hierarchy(levels, names, [[None] * sizes[0], *parents])


def drawn(folder: Path, side: int, count: int = 64) -> list[Path]:
    """JPEG files, 4:3: smooth colours with grain, as photographs have them: 50 to 70 kB at 500 px."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    files = [folder / f"{index}.jpg" for index in range(count)]
    for file in files:
        coarse = Image.fromarray(rng.integers(0, 255, (max(2, side // 16), max(2, side // 12), 3), dtype=np.uint8))
        grain = rng.integers(-8, 8, (side * 3 // 4, side, 3))
        pixels = np.asarray(coarse.resize((side, side * 3 // 4), Image.Resampling.BICUBIC)) + grain
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, quality=90)
    return files


def draw_data(folder: Path, side: int, tree: Hierarchy, **rows: int) -> None:
    """What the scripts read: 64 photographs with masks of the leaves under so many rows per split, and the tree."""
    rng, lines = np.random.default_rng(0), []
    for index, file in enumerate(drawn(folder / "images", side)):
        blocks = rng.integers(0, min(256, tree.num_leaves), (-(-side * 3 // 64), -(-side // 16)), dtype=np.uint8)
        mask = blocks.repeat(16, 0).repeat(16, 1)[: side * 3 // 4, :side]
        Image.fromarray(mask).save(file.with_suffix(".png"))
        lines.append((f"images/{file.name}", f"images/{index}.png"))
    for split, count in rows.items():
        paths = [tree.path_names(*tree.leaves[row % tree.num_leaves]) for row in range(count)]
        table = [(*lines[row % len(lines)], *path) for row, path in enumerate(paths)]
        pd.DataFrame(table, columns=["image", "mask", *tree.levels]).to_csv(folder / f"{split}.csv", index=False)
    tree.save(folder / "hierarchy.json")


def run_script(script: str, folder: Path, output: Path, more: str) -> Any:
    """Run a training script on :func:`draw_data`, from random weights, without what disturbs a clock."""
    words = f"--train_file {folder}/train.csv --validation_file {folder}/validation.csv --output_dir {output} "
    words += f"--no_pretrained --no_report --checkpointing_seconds 0 {more}"
    return importlib.import_module(script).main(words.split())
