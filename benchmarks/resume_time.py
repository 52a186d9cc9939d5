"""From "resume at step k" to the first batch: ours, ``skip_first_batches``, and replaying batches; in turns.

The input side of resuming, on a table of FungiTastic's size (433,702 rows over 256 drawn JPEG files of 300 px) or
another one, in batches of 32, without worker processes. Loading the weights does not depend on k and is left out. Also
checked: is the batch the one that an uninterrupted run would have had at that step?

    python benchmarks/resume_time.py --rounds 5
"""

from __future__ import annotations

import itertools
import resource
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import skip_first_batches
from datasets import Dataset
from input import plain_transform
from side_by_side import command_line, drawn, in_turns, table
from torch.utils.data import DataLoader

from common.data.rows import ImageRows, Samples, collate, make_loader
from common.data.sampling import GlobalBatchSampler

BATCH = 32


def main() -> None:
    parser = command_line(__doc__, rounds=5)
    parser.add_argument("--rows", type=int, default=433_702)
    parser.add_argument("--steps", type=int, nargs="+", default=[100, 10_000])
    parser.add_argument("--replay_up_to", type=int, default=100, help="replaying takes minutes per thousand steps")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="resume_time_") as folder:
        images = make_images(Path(folder) / "images", options.rows)
        for step in options.steps:
            ways = {"ours": ours, "skip_first_batches": skipped, "replay": replayed}
            if step > options.replay_up_to:
                del ways["replay"]
            ways = {name: partial(lambda way, step: next(way(images, step)), way, step) for name, way in ways.items()}
            print(f"step {step:,}\n\n{table(in_turns(ways, options.rounds), 'ours')}\n", flush=True)
        at_10 = {way: [next(way(images, 10))["rows"].tolist() for _ in range(2)] for way in (ours, skipped)}
        uninterrupted = next(itertools.islice(ours(images, 0), 10, None))["rows"].tolist()
    print("ours: the batch of an uninterrupted run:", "yes" if at_10[ours][0] == uninterrupted else "NO")
    same = at_10[skipped][0] == at_10[skipped][1]
    print("skip_first_batches over a shuffling loader: twice the same batch:", "yes" if same else "NO")
    print(f"at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB")


def make_images(folder: Path, num_rows: int) -> Samples:
    """Many rows over few files, opened as the trainer opens them."""
    names = [file.name for file in drawn(folder, 300, 256)]
    table = Dataset.from_dict({"image": [names[row % len(names)] for row in range(num_rows)]})
    rows = ImageRows(table, "image", "train", folder)
    return Samples(rows, np.arange(num_rows), plain_transform(), np.zeros((num_rows, 1), dtype=np.int64))


def ours(images: Samples, step: int) -> Iterator[dict]:
    sampler = GlobalBatchSampler(len(images), BATCH, BATCH, num_epochs=2)
    sampler.load_state_dict({"epoch": step // sampler.steps_per_epoch, "samples_seen": step * BATCH})
    return iter(make_loader(images, sampler, 0, False))


def shuffling(images: Samples) -> DataLoader:
    """The same samples by row number, as other loaders ask for them."""

    def load(rows: list[int]) -> dict:
        return collate(images.__getitems__([(0, row) for row in rows]))

    return DataLoader(range(len(images)), batch_size=BATCH, shuffle=True, collate_fn=load)


def skipped(images: Samples, step: int) -> Iterator[dict]:
    return iter(skip_first_batches(shuffling(images), step))


def replayed(images: Samples, step: int) -> Iterator[dict]:
    return itertools.islice(shuffling(images), step, None)


if __name__ == "__main__":
    main()
