"""Seconds from "go on at step k" to the first batch: ours, ``accelerate.skip_first_batches``, and replaying, in turns.

The input side of resuming, on a table of FungiTastic's size (433,702 rows over 256 drawn JPEG files of 300 px), in
batches of 32, without worker processes. Loading the weights does not depend on k and is left out. Also checked: is the
batch the one that an uninterrupted run would have had at that step?

    python benchmarks/resume_time.py --rounds 5
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from accelerate import skip_first_batches
from datasets import Dataset
from PIL import Image
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.input import plain_transform
from common.data.rows import ImageRows, Samples, collate, make_loader
from common.data.sampling import GlobalBatchSampler

NUM_ROWS, BATCH = 433_702, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, nargs="+", default=[100, 10_000])
    parser.add_argument("--replay_up_to", type=int, default=100, help="replaying takes minutes per thousand steps")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="resume_time_") as folder:
        images = make_images(Path(folder))
        ways = {"ours": ours, "skip_first_batches": skipped, "replay": replayed}
        seconds: dict[tuple[str, int], list[float]] = {}
        for _ in range(options.rounds):
            for step in options.steps:
                for name, way in ways.items():
                    if name == "replay" and step > options.replay_up_to:
                        continue
                    seconds.setdefault((name, step), []).append(timed(way, images, step))
        exact = rows_at(ours, images, 10) == rows_of_uninterrupted(images, 10)
        theirs = rows_at(skipped, images, 10) == rows_at(skipped, images, 10)
    report(seconds)
    print(f"ours: the batch of an uninterrupted run: {'yes' if exact else 'NO'}")
    print(f"skip_first_batches over a shuffling loader: twice the same batch: {'yes' if theirs else 'NO'}")


def make_images(folder: Path) -> Samples:
    """Many rows over few files, opened as the trainer opens them."""
    rng = np.random.default_rng(0)
    names = [f"{index}.jpg" for index in range(256)]
    for name in names:
        coarse = rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((300, 300), Image.Resampling.BICUBIC).save(folder / name, quality=90)
    table = Dataset.from_dict({"image": [names[row % len(names)] for row in range(NUM_ROWS)]})
    rows = ImageRows(table, "image", "train", folder)
    labels = np.zeros((NUM_ROWS, 1), dtype=np.int64)
    return Samples(rows, np.arange(NUM_ROWS), plain_transform(), labels)


def ours(images: Samples, step: int) -> Iterator[dict]:
    sampler = GlobalBatchSampler(NUM_ROWS, BATCH, BATCH, num_epochs=2)
    sampler.load_state_dict({"epoch": step // sampler.steps_per_epoch, "samples_seen": step * BATCH})
    return iter(make_loader(images, sampler, 0, False))


class Unkeyed(torch.utils.data.Dataset):
    """The same samples by row number, as other loaders ask for them."""

    def __init__(self, images: Samples) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, rows: list[int]) -> list[dict]:
        return self.images.__getitems__([(0, row) for row in rows])


def shuffling(images: Samples) -> DataLoader:
    return DataLoader(Unkeyed(images), batch_size=BATCH, shuffle=True, collate_fn=collate)


def skipped(images: Samples, step: int) -> Iterator[dict]:
    return iter(skip_first_batches(shuffling(images), step))


def replayed(images: Samples, step: int) -> Iterator[dict]:
    batches = iter(shuffling(images))
    for _ in range(step):
        next(batches)
    return batches


Way = Callable[[Samples, int], Iterator[dict]]


def timed(way: Way, images: Samples, step: int) -> float:
    started = time.perf_counter()
    next(way(images, step))
    return time.perf_counter() - started


def rows_at(way: Way, images: Samples, step: int) -> list[int]:
    return next(way(images, step))["rows"].tolist()


def rows_of_uninterrupted(images: Samples, step: int) -> list[int]:
    batches = ours(images, 0)
    for _ in range(step):
        next(batches)
    return next(batches)["rows"].tolist()


def report(seconds: dict[tuple[str, int], list[float]]) -> None:
    """Medians, ranges, and how often ours fits into the others at the same step."""
    print("| | step | median, s | range, s | times ours |\n|---|---|---|---|---|")
    for (name, step), values in seconds.items():
        ratio = statistics.median(values) / statistics.median(seconds["ours", step])
        spread = f"{min(values):.3f} to {max(values):.3f}"
        print(f"| {name} | {step:,} | {statistics.median(values):.3f} | {spread} | {ratio:.1f} |")


if __name__ == "__main__":
    main()
