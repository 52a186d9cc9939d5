"""Memory of a training and of its loader's workers, epoch by epoch: it must not grow, however long a run is.

A worker is a fork of the training process and shares its memory until either writes to it; Python writes to objects it
only reads, so lists of a data set's rows would be copied piece by piece. Memory is the proportional share (PSS) that
Linux counts, of each process, sampled twenty times an epoch. 30,000 rows by default, small images, a tiny model.

    python benchmarks/memory.py --folder scale --rows 30000
"""

from __future__ import annotations

import re
import statistics
from pathlib import Path

from prepare_scale import watched, write_table
from side_by_side import RANKS, command_line

BATCH = 64


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="for images, tables and the run")
    parser.add_argument("--rows", type=int, default=30_000)
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    table = write_table(options.folder, options.rows)
    words = f"train_taxonomy.py --train_file {table} --validation_file {table} --max_eval_samples 64 --no_report "
    words += f"--image_column file --level_columns {' '.join(RANKS)} --model_name_or_path timm/test_vit "
    words += f"--no_pretrained --image_size 32 --num_train_epochs {options.epochs} --logging_steps 20 "
    words += f"--per_device_train_batch_size {BATCH} --dataloader_num_workers 2 --resume_from_checkpoint none "
    words += f"--output_dir {options.folder}/memory"
    steps_per_epoch, seen = -(-options.rows // BATCH), 0
    epochs: list[list[tuple[float, float]]] = [[] for _ in range(options.epochs)]
    for log, (first, *workers) in watched(words.split(), 0.05):
        step = max(map(int, re.findall(r"step (\d+)/", log)), default=0)
        if step > seen:
            seen = step
            # The two workers of the evaluation have seen next to nothing, and come last.
            epoch = min((step - 1) // steps_per_epoch, options.epochs - 1)
            epochs[epoch].append((first, statistics.mean(workers[:2])))
    print("| epoch | training process, MB | each worker, MB |\n|---|--:|--:|")
    for epoch, samples in enumerate(epochs, 1):
        main_process, workers = zip(*samples, strict=True)
        print(f"| {epoch} | {statistics.median(main_process):.0f} | {statistics.median(workers):.0f} |")


if __name__ == "__main__":
    main()
