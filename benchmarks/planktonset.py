"""Does the label tree help? Flat, independent and tree heads on PlanktonSet, with equal budgets and several seeds.

    python benchmarks/planktonset.py --data FOLDER --output_dir OUT --starts scratch --seeds 0 1 2 --jobs 1

FOLDER holds train.parquet, validation.parquet (columns image, class) and taxonomy.csv (kingdom, phylum, group, class).
Runs that have finished are not repeated. Prints a Markdown table of means and standard deviations over the seeds.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
from sweep import run_once, table

LEVELS = ("kingdom", "phylum", "group", "class")

METHODS = {
    "flat": "--head flat",
    "independent, coarse-heavy": "--head independent --level_weights 0.4 0.3 0.2 0.1",
    "independent, equal": "--head independent --level_weights equal",
    "independent, leaf-heavy": "--head independent --level_weights leaf_heavy",
    "tree, leaf loss": "--head tree --level_weights leaf",
    "tree, leaf-heavy": "--head tree --level_weights leaf_heavy",
    "tree, equal": "--head tree --level_weights equal",
    "tree, leaf loss, logit adjustment": "--head tree --level_weights leaf --logit_adjustment 1",
    "tree, leaf loss, inverse sqrt": "--head tree --level_weights leaf --class_weighting inverse_sqrt",
    "flat, logit adjustment": "--head flat --logit_adjustment 1",
}
# Evaluated again, with the weights of the method that comes first.
DECODED = {
    "flat, decoded by levels": "flat",
    "tree, leaf loss, decoded by levels": "tree, leaf loss",
}
MAIN_METHODS = list(METHODS)[:6]
STARTS = {
    "scratch": "--model_name_or_path timm/test_resnet --no_pretrained --image_size 48 --learning_rate 4e-3 "
    "--num_train_epochs 6",
    "pretrained": "--model_name_or_path timm/tf_efficientnet_lite0 --backbone_weights {weights} --image_size 64 "
    "--learning_rate 1.5e-3 --num_train_epochs 2 --channels_last",
}
COMMON = (
    "--label_column class --max_train_samples 6000 --per_device_train_batch_size 32 --resize_mode squash "
    "--crop_scale 0.6 --vflip 0.5 --color_jitter 0.1 --eval_epochs 100 --logging_steps 100 "
    "--per_device_eval_batch_size 128 --dataloader_num_workers 0 --save_predictions"
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with PlanktonSet")
    parser.add_argument("--weights", type=Path, help="tf_efficientnet_lite0.safetensors, for --starts pretrained")
    parser.add_argument("--output_dir", type=Path, default=Path("output/planktonset"))
    parser.add_argument("--methods", nargs="+", default=MAIN_METHODS, choices=[*METHODS, *DECODED], metavar="METHOD")
    parser.add_argument("--starts", nargs="+", default=["scratch"], choices=list(STARTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--extra", default="", help="more options for every run")
    args = parser.parse_args(argv)
    jobs = [(start, method, seed) for seed in args.seeds for start in args.starts for method in args.methods]
    started = time.perf_counter()
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda job: run(args, *job), jobs))
    print(f"{len(jobs)} runs in {time.perf_counter() - started:.0f} s\n")
    for start in args.starts:
        for decoding, title in (("path", "best path"), ("argmax", "each level alone")):
            print(f"### {start}, {title}\n\n{levels_table(args, start, decoding)}\n")


def folder(args: argparse.Namespace, start: str, method: str, seed: int) -> Path:
    """Where a run writes."""
    return args.output_dir / start / method.replace(", ", "-").replace(" ", "_") / str(seed)


def run(args: argparse.Namespace, start: str, method: str, seed: int) -> None:
    """Train once, unless that has been done."""
    output = folder(args, start, method, seed)
    data = f"--train_file {args.data}/train.parquet --validation_file {args.data}/validation.parquet"
    options = [data, COMMON, STARTS[start].format(weights=args.weights)]
    if method in DECODED:
        trained = folder(args, start, DECODED[method], seed)
        options = [data, COMMON, f"--eval_only --decoding levels --model_name_or_path {trained}"]
    else:
        options += [f"--hierarchy {args.data}/taxonomy.csv", METHODS[method]]
    options += [args.extra, f"--seed {seed}"]
    run_once("train_taxonomy.py", " ".join(options), output, f"{start}, {method}, seed {seed}")


def measures(output: Path) -> dict[str, float]:
    """What one run achieved, in percent (distances in levels)."""
    results = json.loads((output / "all_results.json").read_text())["eval"]
    predictions = pd.read_parquet(output / "predictions.parquet")
    row = {"leaf macro-F1": 100 * results["levels"]["class"]["macro_f1"]}
    for decoding, title in (("best_path", "path"), ("argmax", "argmax")):
        for level in LEVELS:
            labelled = predictions[f"{level}_label"].notna()
            right = predictions[f"{level}_{decoding}"] == predictions[f"{level}_label"]
            row[f"{level} {title}"] = 100 * right[labelled].mean()
    for decoding in ("path", "argmax"):
        row[f"FPA {decoding}"] = 100 * results[decoding]["full_path_accuracy"]
        row[f"TICE {decoding}"] = 100 * results[decoding]["tree_inconsistency"]
        row[f"distance {decoding}"] = results[decoding]["hierarchical_distance"]
    return row


def levels_table(args: argparse.Namespace, start: str, decoding: str) -> str:
    """Means and standard deviations over the seeds, a row a method."""
    columns = [f"{level} {decoding}" for level in LEVELS[::-1]]
    columns += [f"FPA {decoding}", f"TICE {decoding}", f"distance {decoding}"]
    if decoding == "path":
        columns.insert(1, "leaf macro-F1")
    outputs = {method: [folder(args, start, method, seed) for seed in args.seeds] for method in args.methods}
    return table(outputs, columns, measures, [column.removesuffix(f" {decoding}") for column in columns])


if __name__ == "__main__":
    main()
