"""Preparing 433,702 rows (FungiTastic's number of training images) and starting to train on them, at two sizes.

Draws a few thousand small JPEGs, which the rows of a table share through hard links with names of their own, prepares
the table by paths and by encoding anew, and starts train_taxonomy.py on the results for one step. Memory is what Linux
counts as proportional share (PSS) over all processes of a command, sampled, and its peak.

    python benchmarks/prepare_scale.py --folder scale --sizes 43370 433702 --num_proc 2
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[1]
LEVELS = ("phylum", "class", "order", "family", "genus", "species")
NUM_SPECIES = 2786
NUM_FILES = 2786


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, required=True, help="for images, tables and results; emptied at the end"
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[43_370, 433_702])
    parser.add_argument("--num_proc", type=int, default=2)
    parser.add_argument("--modes", nargs="+", choices=("paths", "encode"), default=["paths", "encode"])
    parser.add_argument("--keep", action="store_true", help="leave the folder as it is")
    options = parser.parse_args()
    draw_images(options.folder / "images")
    print("| rows | images | prepare, s | images/s | memory, MB | first step, s | the second time, s | trainer, MB |")
    print("|---|---|--:|--:|--:|--:|--:|--:|")
    for mode in options.modes:
        for size in options.sizes:
            table = write_table(options.folder, size)
            print(f"| {size:,} | {mode} | {measure(options, mode, size, table)} |", flush=True)
    if not options.keep:
        shutil.rmtree(options.folder)


def draw_images(folder: Path) -> None:
    """Small photographs of noise, 96 x 72 pixels, about 3 KB each."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(NUM_FILES):
        path = folder / f"{number}.jpg"
        if not path.exists():
            rng = np.random.default_rng(number)
            coarse = Image.fromarray(rng.integers(0, 255, (9, 12, 3), dtype=np.uint8))
            coarse.resize((96, 72), Image.Resampling.BICUBIC).save(path, quality=90)


def write_table(folder: Path, size: int) -> Path:
    """A long-tailed table in which two rows are an observation and every row has a path of its own."""
    table = folder / f"{size}.csv"
    rng = np.random.default_rng(0)
    weights = 1 / np.arange(1, NUM_SPECIES + 1)
    species = np.concatenate(
        [np.arange(NUM_SPECIES), rng.choice(NUM_SPECIES, size - NUM_SPECIES, p=weights / weights.sum())]
    )
    divisors = (400, 99, 29.3, 9, 3, 1)
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", *LEVELS, "observationID"])
        for row, leaf in enumerate(species.tolist()):
            path = [f"{level} {int(leaf // step)}" for level, step in zip(LEVELS, divisors, strict=True)]
            writer.writerow([link(folder, row), *path, row // 2])
    return table


def link(folder: Path, row: int) -> str:
    """The name of a row's image: a hard link to one of the files."""
    name = f"links/{row // 1000}/{row}.jpg"
    path = folder / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(folder / "images" / f"{row % NUM_FILES}.jpg", path)
    return name


def measure(options: argparse.Namespace, mode: str, size: int, table: Path) -> str:
    """Prepare and train; the cells of a row of the result."""
    output, model = options.folder / f"{mode}_{size}", options.folder / "model"
    words = ["--table", table, "--image_column", "file", "--level_columns", *LEVELS, "--group_column", "observationID"]
    words += ["--output_dir", output, "--num_proc", options.num_proc, "--test_share", 0]
    words += ["--resize_shorter", 64] if mode == "encode" else []
    seconds, memory, _ = run([REPOSITORY / "data_prep" / "prepare_table.py", *words])
    trainer = f"--dataset_name {output} --group_column observationID --model_name_or_path timm/test_vit "
    trainer += (
        "--no_pretrained --image_size 32 --per_device_train_batch_size 32 --max_train_steps 1 --logging_steps 1 "
    )
    trainer += f"--max_eval_samples 32 --dataloader_num_workers 1 --output_dir {model} --resume_from_checkpoint none"
    command = [REPOSITORY / "train_taxonomy.py", *trainer.split(), "--level_columns", *LEVELS]
    starts = [run(command, r"step 1/1 ") for _ in range(2)]
    images = sum(split["num_images"] for split in json.loads((output / "stats.json").read_text())["splits"].values())
    assert images == size, "every row is an image"
    shutil.rmtree(output)
    shutil.rmtree(model, ignore_errors=True)
    cells = [seconds, size / seconds, memory, *(first_step for *_, first_step in starts), starts[-1][1]]
    return " | ".join(f"{cell:.0f}" for cell in cells)


def run(command: list[object], pattern: str | None = None) -> tuple[float, float, float]:
    """Seconds, peak memory of all its processes in MB, and seconds until a line of stderr matches."""
    started = time.perf_counter()
    log = Path(str(command[0])).stem + ".log"
    peak, matched = 0.0, float("nan")
    with open(Path("/tmp") / f"{os.getpid()}_{log}", "w+") as errors:
        process = subprocess.Popen([sys.executable, *map(str, command)], stderr=errors, stdout=subprocess.DEVNULL)
        while process.poll() is None:
            peak = max(peak, sum(map(proportional_memory, family(process.pid))))
            if pattern and matched != matched and re.search(pattern, Path(errors.name).read_text()):
                matched = time.perf_counter() - started
            time.sleep(0.2)
        text = Path(errors.name).read_text()
    Path(errors.name).unlink()
    assert process.returncode == 0, text[-3000:]
    return time.perf_counter() - started, peak, matched


def family(process: int) -> list[int]:
    """A process and its descendants."""
    found = [process]
    for parent in found:
        try:
            children = [
                Path(f"/proc/{parent}/task/{task}/children").read_text() for task in os.listdir(f"/proc/{parent}/task")
            ]
        except OSError:
            continue
        found += [int(child) for text in children for child in text.split()]
    return found


def proportional_memory(process: int) -> float:
    """Megabytes of a process, pages that several share counted in parts; 0 if it has ended."""
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    return int(found.group(1)) / 1024 if found else 0.0


if __name__ == "__main__":
    main()
