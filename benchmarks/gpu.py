"""The scripts' speed on a GPU, with random weights in bf16: images/s against a bare loop (one batch that is there
already), peak memory, how long a save holds the training up. tests/test_on_gpu.py checks what must be right there.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --device cpu --tiny    # tests the command itself
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
from pathlib import Path

import torch
from checkpoints import saves
from loop import speed, train_bare
from side_by_side import apart, balanced_tree, command_line, draw_data, machine, run_script

os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # asking for GPUs must not initialise CUDA before a fork

SCRIPTS = {
    "train_taxonomy": "--level_columns group species --ema_decay 0.9 --mixup 0.2 --dropout 0.1",
    "train_segmentation": "--mask_column mask --hierarchy {folder}/hierarchy.json --head independent "
    "--decoder_channels {channels}",
}
MEASURED = {
    "BEiT-B 224": ("train_taxonomy", "timm/beit_base_patch16_224", 224, 64),
    "SegFormer-B3 384": ("train_segmentation", "nvidia/mit-b3", 384, 16),
}
TINY = {
    "tiny ViT": ("train_taxonomy", "timm/test_vit", 32, 4),
    "tiny ResNet": ("train_segmentation", "timm/test_resnet", 64, 4),
}
"""Script, model, image size, batch"""


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models, few steps")
    options = parser.parse_args()
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    multiprocessing.set_forkserver_preload(list(SCRIPTS))
    units = ("bare loop, images/s", "script, images/s", "script / bare", "peak memory, GiB", "a save holds up, s")
    print(machine(), f"\n\n| | {' | '.join(units)} |\n|{'---|' * (len(units) + 1)}")
    with tempfile.TemporaryDirectory(prefix="gpu_") as folder:
        tree = balanced_tree((2, 4), ("group", "species"))
        draw_data(Path(folder), 320, tree, train=64 if options.tiny else 8192, validation=16)
        for name, case in (TINY if options.tiny else MEASURED).items():
            numbers = measure(Path(folder), options.device, options.tiny, *case)
            print(f"| {name} |", " | ".join(f"{number:,.3g}" for number in numbers), "|", flush=True)


def measure(folder: Path, device: str, tiny: bool, script: str, model: str, size: int, batch: int) -> list[float]:
    """Images/s of the bare loop and of the script, their ratio, GiB, and seconds that a save takes."""
    steps, channels = (6, 16) if tiny else (120, 256)
    case = {"model": model, "image_size": size, "batch": batch, "steps": steps, "every": steps // 6}
    case["decoder_channels"] = channels
    words = f"--model_name_or_path {model} --image_size {size} --per_device_train_batch_size {batch} "
    words += f"--max_train_steps {steps + 1} --dataloader_num_workers {0 if tiny else 8} {SCRIPTS[script]} "
    words += f"--mixed_precision {'bf16' if device == 'cuda' else 'no'} --logging_steps {steps // 6}"
    ours, memory = apart(measure_script, case, script, folder, words.format(folder=folder, channels=channels))
    bare, stall = apart(measure_bare, case, script, folder, device)
    return [bare, ours, ours / bare, memory, stall]


def measure_script(case: dict, script: str, folder: Path, words: str) -> tuple[float, float]:
    """Images/s, and peak memory in GiB."""
    rate = speed(lambda case: run_script(script, folder, folder / f"{script}_measured", words), case)
    return rate, torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0


def measure_bare(case: dict, script: str, folder: Path, device: str) -> tuple[float, float]:
    """Images/s of forward, backward and step on one batch, and the seconds that a save holds it up."""
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    options = (folder, script == "train_segmentation", device, device == "cuda")
    rate = speed(train_bare, case, *options)
    save = saves(folder / f"{script}_saves", *train_bare({**case, "steps": 0}, *options))["ours"]
    return rate, statistics.median([save() for _ in range(3)][1:])


if __name__ == "__main__":
    main()
