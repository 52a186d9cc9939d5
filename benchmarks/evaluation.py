"""Evaluation by both scripts against a bare loop of forward passes on a cached batch: images per second, in turns.

- taxonomy: ResNet-18 at 160 px, 2,786 species in six levels, from JPEGs of 300 px: loss, both decodings, accuracy,
  top-5, F1, calibration, distances, what the report shows;
- segmentation: ConvNeXt-Atto with UPerNet at 256 px, masks of 512 x 512 with 16 classes in three levels: loss, scores
  enlarged to the masks' size, IoU and F1 of both decodings.

"bare" runs the script's own model on one batch that is there already. One thread, one worker process; a script's first
evaluation, which starts the worker, is not counted.

    python benchmarks/evaluation.py --rounds 3
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.input import drawn
from benchmarks.side_by_side import machine

CASES = {
    "taxonomy": {"images": 640, "batch": 32, "size": 160},
    "segmentation": {"images": 32, "batch": 4, "size": 256},
}
SIZES = (7, 28, 95, 308, 918, 2786)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--once", nargs=2, metavar=("CASE", "FOLDER"), help="internal: one measurement of both")
    options = parser.parse_args()
    if options.once:
        torch.set_num_threads(1)
        case, folder = options.once
        print(json.dumps(measure(case, Path(folder))))
        return
    print(machine())
    for case in options.cases:
        with tempfile.TemporaryDirectory(prefix="evaluation_") as folder:
            (taxonomy_files if case == "taxonomy" else segmentation_files)(Path(folder))
            command = [sys.executable, __file__, "--once", case, folder]
            rounds = [
                json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
                for _ in range(options.rounds)
            ]
        print(f"\n{case}: {CASES[case]}\n\n| | images/s, median | range |\n|---|---|---|")
        for way in ("ours", "bare"):
            speeds = [speed for part in rounds for speed in part[way]]
            print(f"| {way} | {statistics.median(speeds):.1f} | {min(speeds):.1f} to {max(speeds):.1f} |")
        ratios = [ours / bare for part in rounds for ours, bare in zip(part["ours"], part["bare"], strict=True)]
        print(f"\nours / bare: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


def taxonomy_files(folder: Path) -> None:
    files = drawn(folder / "images", 300)
    names = ["phylum", "class", "order", "family", "genus", "species"]

    def row(number: int) -> list[str]:
        leaf = number % SIZES[-1]
        path = [f"{name}{leaf * size // SIZES[-1]}" for name, size in zip(names, SIZES, strict=True)]
        return [f"images/{files[number % len(files)].name}", *path]

    for split, count in (("train", SIZES[-1]), ("validation", CASES["taxonomy"]["images"])):
        pd.DataFrame(map(row, range(count)), columns=["image", *names]).to_csv(folder / f"{split}.csv", index=False)


def segmentation_files(folder: Path) -> None:
    rng = np.random.default_rng(0)
    (folder / "masks").mkdir()
    files = drawn(folder / "images", 512)
    for file in files:
        Image.open(file).resize((512, 512)).save(file, quality=90)
        mask = rng.integers(0, 16, (32, 32), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
        Image.fromarray(mask).save(folder / "masks" / f"{file.stem}.png")
    rows = [(f"images/{file.name}", f"masks/{file.stem}.png") for file in files]
    for split, count in (("train", 8), ("validation", CASES["segmentation"]["images"])):
        table = pd.DataFrame(rows[:count], columns=["image", "mask"])
        table.to_csv(folder / f"{split}.csv", index=False)
    tree = {
        "levels": ["binary", "coarse", "fine"],
        "names": [[f"{level}{index}" for index in range(size)] for level, size in zip("bcf", (2, 4, 16), strict=True)],
        "parents": [[None] * 2, [index // 2 for index in range(4)], [index // 4 for index in range(16)]],
    }
    (folder / "hierarchy.json").write_text(json.dumps(tree))


def measure(case: str, folder: Path) -> dict[str, list[float]]:
    """Images per second of evaluations by a script, each followed by as many bare forward passes."""
    options, output = CASES[case], Path(tempfile.mkdtemp(dir=folder))
    words = f"--no_pretrained --no_report --dataloader_num_workers 1 --checkpointing_seconds 0 --output_dir {output}"
    words += f" --train_file {folder}/train.csv --validation_file {folder}/validation.csv --num_train_epochs 3"
    words += f" --image_size {options['size']} --per_device_eval_batch_size {options['batch']}"
    if case == "taxonomy":
        import train_taxonomy as script

        words += " --level_columns phylum class order family genus species --model_name_or_path timm/resnet18"
        words += " --max_train_samples 8 --per_device_train_batch_size 8"
    else:
        import train_segmentation as script

        words += f" --hierarchy {folder}/hierarchy.json --model_name_or_path timm/convnext_atto"
        words += " --per_device_train_batch_size 4"
    speeds: dict[str, list[float]] = {"ours": [], "bare": []}
    evaluate = script.evaluate_model

    def timed(*args: object) -> object:
        started = time.perf_counter()
        result = evaluate(*args)
        speeds["ours"].append(options["images"] / (time.perf_counter() - started))
        speeds["bare"].append(bare(args[-1], options))  # the model
        return result

    script.evaluate_model = timed
    script.main(words.split())
    return {way: values[1:] for way, values in speeds.items()}


def bare(model: torch.nn.Module, options: dict) -> float:
    pixels = torch.randn(options["batch"], 3, options["size"], options["size"])
    started = time.perf_counter()
    with torch.no_grad():
        for _ in range(options["images"] // options["batch"]):
            model(pixels, logits_only=True)
    return options["images"] / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
