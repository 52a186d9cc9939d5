"""Seconds from "go on at step k" to the first batch: ours, ``accelerate.skip_first_batches``, and replaying, in turns.

The input side of resuming, on a table of FungiTastic's size (433,702 rows over 256 drawn JPEG files of 300 px) or
another one, in batches of 32, without worker processes. Loading the weights does not depend on k and is left out. Also
checked: is the batch the one that an uninterrupted run would have had at that step?

    python benchmarks/resume_time.py --rounds 5
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import skip_first_batches
from datasets import Dataset
from PIL import Image
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.input import plain_transform
from benchmarks.side_by_side import in_turns, table
from common.data.rows import ImageRows, Samples, collate, make_loader
from common.data.sampling import GlobalBatchSampler

BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=433_702)
    parser.add_argument("--steps", type=int, nargs="+", default=[100, 10_000])
    parser.add_argument("--replay_up_to", type=int, default=100, help="replaying takes minutes per thousand steps")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="resume_time_") as folder:
        images = make_images(Path(folder), options.rows)
        for step in options.steps:
            ways = {"ours": ours, "skip_first_batches": skipped}
            ways |= {"replay": replayed} if step <= options.replay_up_to else {}
            seconds = in_turns(
                {name: partial(rows_at, way, images, step) for name, way in ways.items()}, options.rounds
            )
            print(f"step {step:,}", table(seconds, "ours"), sep="\n\n")
        batches = ours(images, 0)
        uninterrupted = [next(batches)["rows"].tolist() for _ in range(11)][-1]
        exact = rows_at(ours, images, 10) == uninterrupted
        theirs = rows_at(skipped, images, 10) == rows_at(skipped, images, 10)
    print(f"at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB")
    print(f"ours: the batch of an uninterrupted run: {'yes' if exact else 'NO'}")
    print(f"skip_first_batches over a shuffling loader: twice the same batch: {'yes' if theirs else 'NO'}")


def make_images(folder: Path, num_rows: int) -> Samples:
    """Many rows over few files, opened as the trainer opens them."""
    rng = np.random.default_rng(0)
    names = [f"{index}.jpg" for index in range(256)]
    for name in names:
        coarse = rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((300, 300), Image.Resampling.BICUBIC).save(folder / name, quality=90)
    table = Dataset.from_dict({"image": [names[row % len(names)] for row in range(num_rows)]})
    rows = ImageRows(table, "image", "train", folder)
    labels = np.zeros((num_rows, 1), dtype=np.int64)
    return Samples(rows, np.arange(num_rows), plain_transform(), labels)


def ours(images: Samples, step: int) -> Iterator[dict]:
    sampler = GlobalBatchSampler(len(images), BATCH, BATCH, num_epochs=2)
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


def rows_at(way: Callable[[Samples, int], Iterator[dict]], images: Samples, step: int) -> list[int]:
    """Row numbers of the first batch after resuming at a step."""
    return next(way(images, step))["rows"].tolist()


if __name__ == "__main__":
    main()
