"""Memory of a training and of its loader's workers, epoch by epoch: it must not grow, however long a run is.

A worker is a fork of the training process and shares its memory until either writes to it; Python writes to objects it
only reads, so lists of a data set's rows would be copied piece by piece. Memory is the proportional share (PSS) that
Linux counts, of each process, sampled twenty times an epoch. 30,000 rows by default, small images, a tiny model.

    python benchmarks/memory.py --folder scale --rows 30000
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.prepare_scale import LEVELS, REPOSITORY, draw_images, family, proportional_memory, write_table

BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for images, tables and the run")
    parser.add_argument("--rows", type=int, default=30_000)
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    draw_images(options.folder / "images")
    table = write_table(options.folder, options.rows)
    words = command(options.folder, table, options.epochs)
    epochs = sample(words, -(-options.rows // BATCH), options.epochs)
    print("| epoch | training process, MB | each worker, MB |\n|---|--:|--:|")
    for epoch, samples in enumerate(epochs, 1):
        main_process, workers = zip(*samples, strict=True)
        print(f"| {epoch} | {statistics.median(main_process):.0f} | {statistics.median(workers):.0f} |")


def command(folder: Path, table: Path, epochs: int) -> list[str]:
    words = f"--train_file {table} --validation_file {table} --max_eval_samples 64 --image_column file --no_report"
    words += f" --model_name_or_path timm/test_vit --no_pretrained --image_size 32 --num_train_epochs {epochs}"
    words += f" --per_device_train_batch_size {BATCH} --logging_steps 20 --dataloader_num_workers 2"
    words += f" --output_dir {folder}/memory --resume_from_checkpoint none"
    script = str(REPOSITORY / "train_taxonomy.py")
    return [sys.executable, script, *words.split(), "--level_columns", *LEVELS]


def sample(words: list[str], steps_per_epoch: int, num_epochs: int) -> list[list[tuple[float, float]]]:
    """Per epoch, (MB of the training process, mean MB of its training workers)."""
    log = Path(words[words.index("--output_dir") + 1]).with_suffix(".log")
    epochs: list[list[tuple[float, float]]] = [[] for _ in range(num_epochs)]
    with log.open("w") as errors:
        process = subprocess.Popen(words, stderr=errors, stdout=subprocess.DEVNULL)
        seen = 0
        while process.poll() is None:
            step = max(map(int, re.findall(r"step (\d+)/", log.read_text())), default=0)
            if step > seen:
                seen = step
                first, *workers = [proportional_memory(number) for number in family(process.pid)]
                # The two workers of the evaluation have seen next to nothing, and come last.
                epochs[min((step - 1) // steps_per_epoch, num_epochs - 1)].append(
                    (first, statistics.mean(workers[:2]))
                )
            time.sleep(0.05)
    assert process.returncode == 0, log.read_text()[-3000:]
    return epochs


if __name__ == "__main__":
    main()
