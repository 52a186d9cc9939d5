"""Preparing 433,702 rows (FungiTastic's number of training images) and starting to train on them, at two sizes.

Draws a few thousand small JPEGs, which the rows of a table share through hard links with names of their own, prepares
the table by paths and by encoding anew, and starts train_taxonomy.py on the results for one step. Memory is what Linux
counts as proportional share (PSS) over all processes of a command, sampled, and its peak.

``--modes memory`` trains for three epochs instead, and samples the training process and its loader's workers: it must
not grow. A worker shares the memory of the training until either writes to it, and Python writes to objects it reads.

    python benchmarks/prepare_scale.py --folder scale --sizes 43370 433702 --num_proc 2
    python benchmarks/prepare_scale.py --folder scale --sizes 20000 --modes memory
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
from side_by_side import RANKS, REPOSITORY, command_line, drawn

NUM_SPECIES = 2786
DIVISORS = (400, 99, 29.3, 9, 3, 1)  # species per class of each level
BATCH, EPOCHS = 64, 3  # of --modes memory
TRAIN = f"train_taxonomy.py --level_columns {' '.join(RANKS)} --model_name_or_path timm/test_vit --no_pretrained "
TRAIN += "--image_size 32 --resume_from_checkpoint none "


def main() -> None:
    parser = command_line(__doc__, sizes=[43_370, 433_702], num_proc=2)
    parser.add_argument("--folder", type=Path, required=True, help="for images and results; emptied at the end")
    parser.add_argument("--modes", nargs="+", choices=("paths", "encode", "memory"), default=["paths", "encode"])
    parser.add_argument("--keep", action="store_true", help="leave the folder as it is")
    options = parser.parse_args()
    print("| rows | images | prepare, s | images/s | memory, MB | first step, s | the second time, s | trainer, MB |")
    print("|---|---|--:|--:|--:|--:|--:|--:|")
    for mode, size in itertools.product(options.modes, options.sizes):
        table = write_table(options.folder, size)
        if mode == "memory":
            print("", "| epoch | training process, MB | each worker, MB |", "|---|--:|--:|", sep="\n")
            print(*by_epoch(options.folder, table, size), sep="\n", flush=True)
        else:
            cells = measure(options.folder, options.num_proc, mode, size, table)
            print(f"| {size:,} | {mode} | {cells} |", flush=True)
    if not options.keep:
        shutil.rmtree(options.folder)


def write_table(folder: Path, size: int) -> Path:
    """A long-tailed table of small photographs; two rows are an observation, every row has a path of its own."""
    if not (folder / "images").is_dir():
        drawn(folder / "images", 96, NUM_SPECIES)
    table = folder / f"{size}.csv"
    weights = 1 / np.arange(1, NUM_SPECIES + 1)
    random = np.random.default_rng(0).choice(NUM_SPECIES, size - NUM_SPECIES, p=weights / weights.sum())
    species, rows = np.concatenate([np.arange(NUM_SPECIES), random]), np.arange(size)
    columns = {"file": [f"links/{row // 1000}/{row}.jpg" for row in range(size)]}
    for row, name in enumerate(columns["file"]):
        if not (folder / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(folder / "images" / f"{row % NUM_SPECIES}.jpg", folder / name)
    for level, divisor in zip(RANKS, DIVISORS, strict=True):
        columns[level] = [f"{level} {number}" for number in (species // divisor).astype(int)]
    pd.DataFrame({**columns, "observationID": rows // 2}).to_csv(table, index=False)
    return table


def measure(folder: Path, num_proc: int, mode: str, size: int, table: Path) -> str:
    """Prepare and train; the cells of a row of the result."""
    output, model = folder / f"{mode}_{size}", folder / "model"
    words = f"data_prep/prepare_table.py --table {table} --image_column file --level_columns {' '.join(RANKS)} "
    words += f"--test_share 0 --group_column observationID --output_dir {output} --num_proc {num_proc} "
    seconds, memory, _ = run(words + ("--resize_shorter 64" if mode == "encode" else ""))
    words = f"{TRAIN} --dataset_name {output} --group_column observationID --per_device_train_batch_size 32 "
    words += "--max_train_steps 1 --logging_steps 1 --max_eval_samples 32 --dataloader_num_workers 1 "
    starts = [run(f"{words} --output_dir {model}", r"step 1/1 ") for _ in range(2)]
    images = sum(split["num_images"] for split in json.loads((output / "stats.json").read_text())["splits"].values())
    assert images == size, "every row is an image"
    shutil.rmtree(output)
    shutil.rmtree(model, ignore_errors=True)
    cells = [seconds, size / seconds, memory, *(first_step for *_, first_step in starts), starts[-1][1]]
    return " | ".join(f"{cell:.0f}" for cell in cells)


def by_epoch(folder: Path, table: Path, size: int) -> Iterator[str]:
    """Rows of median memory: epoch, training process, each worker; sampled twenty times an epoch."""
    words = f"{TRAIN} --train_file {table} --validation_file {table} --image_column file --max_eval_samples 64 "
    words += f"--no_report --num_train_epochs {EPOCHS} --logging_steps 20 --per_device_train_batch_size {BATCH} "
    words += f"--dataloader_num_workers 2 --output_dir {folder}/memory"
    seen, epochs = 0, [[] for _ in range(EPOCHS)]
    for log, (first, *workers) in watched(words.split(), 0.05):
        step = max(map(int, re.findall(r"step (\d+)/", log)), default=0)
        if step > seen:
            seen = step
            # The two workers of the evaluation have seen next to nothing, and come last.
            epochs[min((step - 1) // -(-size // BATCH), EPOCHS - 1)].append((first, statistics.mean(workers[:2])))
    for epoch, samples in enumerate(epochs, 1):
        yield "| {} | {:.0f} | {:.0f} |".format(epoch, *map(statistics.median, zip(*samples, strict=True)))


def run(words: str, pattern: str | None = None) -> tuple[float, float, float]:
    """Seconds, peak memory of all its processes in MB, and seconds until a line of stderr matches."""
    started, peak, matched = time.perf_counter(), 0.0, float("nan")
    for log, memories in watched(words.split(), 0.2):
        peak = max(peak, sum(memories))
        if pattern and matched != matched and re.search(pattern, log):
            matched = time.perf_counter() - started
    return time.perf_counter() - started, peak, matched


def watched(words: Sequence[str], seconds: float) -> Iterator[tuple[str, list[float]]]:
    """Run a script of the repository; every so many seconds, its log and MB of each of its processes, the first first.

    Pages that several processes share are counted in parts.
    """
    with tempfile.NamedTemporaryFile() as errors:
        command = [sys.executable, str(REPOSITORY / words[0]), *words[1:]]
        process = psutil.Popen(command, stderr=errors, stdout=subprocess.DEVNULL)
        while process.poll() is None:
            memories = []
            for one in (process, *process.children(recursive=True)):
                try:
                    memories.append(one.memory_full_info().pss / 2**20)
                except psutil.Error:  # it has just ended
                    memories.append(0.0)
            yield Path(errors.name).read_text(), memories
            time.sleep(seconds)
        assert process.returncode == 0, Path(errors.name).read_text()[-3000:]


if __name__ == "__main__":
    main()
