"""Evaluation by both scripts against a bare loop of forward passes on a cached batch: images per second, in turns.

- taxonomy: ResNet-18 at 160 px, 2,786 species in six levels, from JPEGs of 300 px: loss, both decodings, accuracy,
  top-5, F1, calibration, distances, what the report shows;
- segmentation: ConvNeXt-Atto with UPerNet at 256 px, masks of 512 x 384 with 16 classes in three levels: loss, scores
  enlarged to the masks' size, IoU and F1 of both decodings.

"bare" runs the script's own model on one batch that is there already. One thread, one worker process; a script's first
evaluation, which starts the worker, is not counted.

    python benchmarks/evaluation.py --rounds 3
"""

from __future__ import annotations

import importlib
import statistics
import tempfile
import time
from pathlib import Path

import torch
from side_by_side import RANKS, apart, balanced_tree, command_line, draw_data, machine, run_script, table

CASES = {
    "taxonomy": {"images": 640, "batch": 32, "size": 160},
    "segmentation": {"images": 32, "batch": 4, "size": 256},
}
WORDS = {
    "taxonomy": f"--level_columns {' '.join(RANKS)} --model_name_or_path timm/resnet18 --max_train_samples 8 "
    "--per_device_train_batch_size 8",
    "segmentation": "--hierarchy {folder}/hierarchy.json --mask_column mask --model_name_or_path timm/convnext_atto "
    "--max_train_samples 8 --per_device_train_batch_size 4",
}


def main() -> None:
    parser = command_line(__doc__, rounds=3)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    options = parser.parse_args()
    print(machine())
    for case in options.cases:
        taxonomy = case == "taxonomy"
        tree = balanced_tree((7, 28, 95, 308, 918, 2786), RANKS) if taxonomy else balanced_tree((2, 4, 16))
        with tempfile.TemporaryDirectory(prefix="evaluation_") as folder:
            rows = {"train": tree.num_leaves, "validation": CASES[case]["images"]}
            draw_data(Path(folder), 300 if taxonomy else 512, tree, **rows)
            pairs = [pair for _ in range(options.rounds) for pair in apart(measure, case, Path(folder))]
        ours, bare = zip(*pairs, strict=True)
        print(f"\n{case}: {CASES[case]}\n\n{table({'ours': ours, 'bare': bare}, 'bare', 'images/s')}")
        ratios = [ours / bare for ours, bare in pairs]
        print(f"\nours / bare: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})", flush=True)


def measure(case: str, folder: Path) -> list[tuple[float, float]]:
    """Images per second of evaluations by a script, each with those of as many bare forward passes after it."""
    options, output, name = CASES[case], Path(tempfile.mkdtemp(dir=folder)), f"train_{case}"
    script, pairs = importlib.import_module(name), []
    evaluate = script.evaluate_model

    def timed(*args: object) -> object:
        started = time.perf_counter()
        result = evaluate(*args)
        pairs.append((options["images"] / (time.perf_counter() - started), bare(args[-1], options)))  # the model
        return result

    script.evaluate_model = timed
    words = f"--dataloader_num_workers 1 --num_train_epochs 3 --image_size {options['size']} "
    words += f"--per_device_eval_batch_size {options['batch']} {WORDS[case].format(folder=folder)}"
    run_script(name, folder, output, words)
    return pairs[1:]


def bare(model: torch.nn.Module, options: dict) -> float:
    pixels = torch.randn(options["batch"], 3, options["size"], options["size"])
    started = time.perf_counter()
    with torch.no_grad():
        for _ in range(options["images"] // options["batch"]):
            model(pixels, logits_only=True)
    return options["images"] / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
