"""Does the label tree help segmentation? Flat, independent and tree heads on magnetic tiles, with equal budgets.

    python benchmarks/magnetic_tile.py --data FOLDER --weights FILE --output_dir OUT --seeds 0 1 --jobs 2

FOLDER holds train.parquet and validation.parquet (image, mask, tile), FILE is tf_efficientnet_lite0.safetensors.
Runs that have finished are not repeated. Prints Markdown tables of means and standard deviations over the seeds.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sweep import REPOSITORY, run_once, table

CLASSES = ("Free", "Blowhole", "Break", "Crack", "Fray", "Uneven")

METHODS = {
    "flat UNet, cross-entropy": "--decoder unet --head flat --level_weights leaf --loss cross_entropy",
    "flat UPerNet, Dice": "--head flat --level_weights leaf --loss dice",
    "flat UPerNet, Dice + focal": "--head flat --level_weights leaf",
    "independent": "--head independent",
    "tree": "--head tree",
    "tree, fine loss alone": "--head tree --level_weights leaf",
    "tree, curriculum": "--head tree --curriculum {third}=1,0,0 {third}=0.2,1,0 {rest}=0.2,0.3,1 "
    "--curriculum_schedule restart",
    "tree, cross-entropy": "--head tree --loss cross_entropy",
    "tree, no rare crops": "--head tree --rare_crop 0",
}
MAIN_METHODS = [
    "flat UNet, cross-entropy",
    "flat UPerNet, Dice",
    "independent",
    "tree",
    "tree, curriculum",
]
COMMON = (
    "--model_name_or_path timm/tf_efficientnet_lite0 --decoder_channels 64 --image_size 96 --eval_crop 256 "
    "--resize_longer 256 --scale_jitter 0.75 1.5 --vflip 0.5 --color_jitter 0.1 "
    "--per_device_train_batch_size 8 --learning_rate 1e-3 --lr_scheduler_type onecycle --channels_last "
    "--eval_epochs 1000 --logging_steps 50 --per_device_eval_batch_size 8 --dataloader_num_workers 0 "
    "--group_column tile --save_predictions"
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the tiles")
    parser.add_argument("--weights", type=Path, required=True, help="tf_efficientnet_lite0.safetensors")
    parser.add_argument("--output_dir", type=Path, default=Path("output/magnetic_tile"))
    parser.add_argument("--methods", nargs="+", default=MAIN_METHODS, choices=list(METHODS), metavar="METHOD")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--extra", default="", help="more options for every run")
    args = parser.parse_args(argv)
    jobs = [(method, seed) for seed in args.seeds for method in args.methods]
    started = time.perf_counter()
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda job: run(args, *job), jobs))
    print(f"{len(jobs)} runs in {time.perf_counter() - started:.0f} s\n")
    outputs = {method: [folder(args, method, seed) for seed in args.seeds] for method in args.methods}
    for title, columns in (
        ("best path", ["fine mIoU", "fine mF1", "coarse mIoU", "binary mIoU", "defect recall", "pixels right"]),
        ("each level alone", ["fine mIoU alone", "coarse mIoU alone", "binary mIoU alone", "TICE alone"]),
        ("IoU per class", list(CLASSES)),
    ):
        print(f"### {title}\n\n{table(outputs, columns, measures)}\n")


def folder(args: argparse.Namespace, method: str, seed: int) -> Path:
    """Where a run writes."""
    return args.output_dir / method.replace(", ", "-").replace(" ", "_") / str(seed)


def run(args: argparse.Namespace, method: str, seed: int) -> None:
    """Train once, unless that has been done."""
    third = args.epochs // 4
    options = [
        f"--train_file {args.data}/train.parquet --validation_file {args.data}/validation.parquet",
        f"--hierarchy {REPOSITORY}/hierarchies/magnetic_tile.yaml --backbone_weights {args.weights}",
        COMMON,
        METHODS[method].format(third=third, rest=args.epochs - 2 * third),
        "" if "curriculum" in method else f"--num_train_epochs {args.epochs}",
        args.extra,
        f"--seed {seed}",
    ]
    run_once("train_segmentation.py", " ".join(options), folder(args, method, seed), f"{method}, seed {seed}")


def measures(output: Path) -> dict[str, float]:
    """What one run achieved, in percent."""
    results = json.loads((output / "all_results.json").read_text())["eval"]
    levels = results["levels"]
    row = {f"{name} mIoU": 100 * levels[name]["mean_iou"] for name in ("fine", "coarse", "binary")}
    alone = results["argmax"]["levels"]
    row |= {f"{name} mIoU alone": 100 * alone[name]["mean_iou"] for name in ("fine", "coarse", "binary")}
    row |= {name: 100 * (levels["fine"]["per_class"][name]["iou"] or 0) for name in CLASSES}
    row["fine mF1"] = 100 * levels["fine"]["mean_f1"]
    row["defect recall"] = 100 * levels["binary"]["per_class"]["defect"]["recall"]
    row["pixels right"] = 100 * levels["fine"]["pixel_accuracy"]
    row["TICE alone"] = 100 * results["argmax"]["tree_inconsistency"]
    return row


if __name__ == "__main__":
    main()
