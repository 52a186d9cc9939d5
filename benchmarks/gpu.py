"""Everything that happens only on a GPU, checked and measured by one command in under 8 minutes.

Checks: both scripts in fp16 and bf16 and with ``--compile``; ``--deterministic`` twice, and killed (SIGKILL) and
resumed, to the same bytes; gradients of the fused segmentation loss against float64; no step waits for the device;
with two GPUs, DDP with SyncBatchNorm. Measured, with random weights in bf16: images/s against a bare loop (one batch
that is there already), peak memory, how long a save holds the training up. Prints tables and a line of JSON; exit
status 1 if a check fails.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --device cpu --tiny    # what a CPU can do of it, with tiny models
"""

from __future__ import annotations

import hashlib
import importlib
import itertools
import json
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch
from checkpoint_stall import saves
from loop import speed, train_bare
from side_by_side import REPOSITORY, apart, balanced_tree, command_line, draw_data, machine, run_script
from waits import Waits

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # asking for GPUs must not initialise CUDA before a fork

SCRIPTS = {
    "train_taxonomy": "--level_columns group species --ema_decay 0.9 --mixup 0.2 --dropout 0.1",
    "train_segmentation": "--mask_column mask --hierarchy {folder}/hierarchy.json --head independent "
    "--decoder_channels {channels}",
}
CHECKED = {
    "train_taxonomy": [("timm/vit_tiny_patch16_224", 224), ("timm/test_vit", 32)],
    "train_segmentation": [("timm/resnet18", 256), ("timm/test_resnet", 64)],
}
"""Model and image size of the checks, and the tiny ones"""
WAYS = {"plain": "", "bf16": "--mixed_precision bf16"}
WAYS |= dict.fromkeys(("deterministic", "again", "killed"), "--deterministic")
ON_A_GPU = {"fp16": "--mixed_precision fp16", "compiled": "--compile", "watched": ""}
STEPS, KILLED_AT = 12, 8
MEASURED = {
    "BEiT-B 224": ("train_taxonomy", "timm/beit_base_patch16_224", 224, 64),
    "SegFormer-B3 384": ("train_segmentation", "nvidia/mit-b3", 384, 16),
}
TINY = {
    "tiny ViT": ("train_taxonomy", "timm/test_vit", 32, 4),
    "tiny ResNet": ("train_segmentation", "timm/test_resnet", 64, 4),
}
"""Script, model, image size, batch"""


def main() -> int:
    parser = command_line(__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models, few steps: tests the command itself")
    options = parser.parse_args()
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    multiprocessing.set_forkserver_preload(list(SCRIPTS))
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="gpu_") as name:
        bench = Bench(Path(name), options.device, options.tiny)
        checks = bench.check()
        print(machine(), "| check | outcome |\n|---|---|", sep="\n\n")
        print(*(f"| {check} | {outcome} |" for check, outcome in checks.items()), sep="\n", end="\n\n", flush=True)
        speeds = {name: bench.measure(*case) for name, case in (TINY if options.tiny else MEASURED).items()}
    units = ("bare loop, images/s", "script, images/s", "script / bare", "peak memory, GiB", "a save holds up, s")
    print(f"| | {' | '.join(units)} |\n|{'---|' * (len(units) + 1)}")
    for case, numbers in speeds.items():
        print(f"| {case} |", " | ".join(f"{number:,.3g}" for number in numbers), "|")
    facts = {"machine": machine(), "seconds": round(time.perf_counter() - started), "checks": checks, "speed": speeds}
    print(json.dumps(facts))
    return int(any(outcome.startswith("FAILED") for outcome in checks.values()))


class Bench:
    """Data in a folder, and runs of the scripts on it, each in a process that has the scripts imported already."""

    def __init__(self, folder: Path, device: str, tiny: bool) -> None:
        self.folder, self.device, self.tiny, self.channels = folder, device, tiny, 16 if tiny else 256
        draw_data(folder, 320, balanced_tree((2, 4), ("group", "species")), train=64 if tiny else 8192, validation=16)

    def check(self) -> dict[str, str]:
        """Check -> what came out."""
        gpu, checks = self.device == "cuda", {}
        ways = WAYS | (ON_A_GPU if gpu else {})
        with ThreadPoolExecutor(4 if gpu else 1) as pool:
            runs = {(script, way): pool.submit(self.train, script, way) for script in SCRIPTS for way in ways}
            gradients = pool.submit(apart, loss_gradients, self.device)
        for script in SCRIPTS:
            name, run = script.removeprefix("train_"), {way: runs[script, way] for way in ways}
            for way in ("bf16", *(("fp16", "compiled") if gpu else ())):
                checks[f"{name}, {way}"] = outcome(near, run["plain"], run[way])
            for way in ("again", "killed"):
                checks[f"{name}, deterministic, {way}"] = outcome(same, run["deterministic"], run[way])
            if gpu:
                checks[f"{name}, no step waits"] = outcome(quiet, run["watched"])
                checks[f"{name}, two GPUs"] = outcome(self.two_gpus, script, run["plain"])
        return {**checks, "fused loss, gradients": outcome(exact, gradients)}

    def words(self, script: str, model: str, size: int, batch: int, steps: int, more: str) -> str:
        words = f"--model_name_or_path {model} --image_size {size} --per_device_train_batch_size {batch} "
        words += f"--max_train_steps {steps} --dataloader_num_workers {0 if self.tiny else 8} {SCRIPTS[script]} {more}"
        return words.format(folder=self.folder, channels=self.channels)

    def checked(self, script: str, way: str, more: str) -> tuple[Path, str]:
        """Output folder and options of a checked run."""
        more += " --global_batch_size 8 --checkpointing_steps 4 --learning_rate 1e-4"
        return self.folder / f"{script}_{way}", self.words(script, *CHECKED[script][self.tiny], 4, STEPS, more)

    def train(self, script: str, way: str) -> tuple[Path, dict[str, int]]:
        """Run a script; its output folder, and what waited for the device."""
        output, words = self.checked(script, way, (WAYS | ON_A_GPU)[way])
        if way == "killed":
            try:
                apart(train, script, self.folder, output, words, KILLED_AT)
                raise AssertionError("it was to be killed")
            except BrokenProcessPool:
                pass  # as it should be
        return output, apart(train, script, self.folder, output, words, 0, way == "watched")

    def two_gpus(self, script: str, alone: tuple[Path, Any]) -> str:
        if torch.cuda.device_count() < 2:
            return "not looked at: there is one GPU"
        output, words = self.checked(script, "two_gpus", "--batch_norm sync --no_pretrained --no_report")
        words += f" --train_file {self.folder}/train.csv --validation_file {self.folder}/validation.csv"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", f"{script}.py"]
        command += [*words.split(), "--output_dir", str(output)]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
        assert done.returncode == 0 and "x 2 processes x" in done.stderr, done.stderr[-1500:]
        return near(alone, (output, None), 0.05)

    def measure(self, script: str, model: str, size: int, batch: int) -> list[float]:
        """Images/s of the bare loop and of the script, their ratio, GiB, and seconds that a save takes."""
        steps = 6 if self.tiny else 120
        case = {"model": model, "image_size": size, "batch": batch, "steps": steps, "every": steps // 6}
        case["decoder_channels"] = self.channels
        more = f"--mixed_precision bf16 --logging_steps {steps // 6}"
        words = self.words(script, model, size, batch, steps + 1, more)
        ours, memory = apart(measure_script, case, script, self.folder, words)
        bare, stall = apart(measure_bare, case, script, self.folder, self.device)
        return [bare, ours, ours / bare, memory, stall]


# ---- what is said of finished runs


def outcome(check: Callable[..., str], *args: Any) -> str:
    """What a check says; if it or a run before it fails, that."""
    try:
        return check(*(value.result() if isinstance(value, Future) else value for value in args))
    except Exception as error:  # the other checks go on
        return f"FAILED: {' '.join(str(error).split())}"


def near(expected: tuple[Path, Any], found: tuple[Path, Any], tolerance: float = 0.02) -> str:
    """The evaluation losses differ by little."""
    losses = [json.loads((run[0] / "all_results.json").read_text())["eval"]["loss"] for run in (expected, found)]
    text = f"loss {losses[1]:.4f}, in float32 {losses[0]:.4f}"
    assert abs(losses[1] / losses[0] - 1) <= tolerance, text
    return text


def same(first: tuple[Path, Any], second: tuple[Path, Any]) -> str:
    """The same bytes: of the model, and of all tensors of the newest checkpoint."""
    digests = []
    for folder, _ in (first, second):
        files = [folder / "model.safetensors", *sorted(folder.glob("checkpoints/latest/*.safetensors"))]
        digests.append([(file.name, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files])
    assert len(digests[0]) > 1 and digests[0] == digests[1], f"{digests[0]} != {digests[1]}"
    return f"the same bytes in {len(digests[0])} files"


def quiet(watched: tuple[Path, dict[str, int]]) -> str:
    assert not watched[1], watched[1]
    return "nothing waits for the device"


def exact(error: float) -> str:
    assert error <= 1e-4, f"{error:.0e} from float64's"
    return f"within {error:.0e} of float64's"


# ---- in processes of their own


def train(
    script: str, folder: Path, output: Path, words: str, kill_at: int = 0, watch: bool = False
) -> dict[str, int]:
    """Run a script, and be killed at a step; what waited for the device."""
    from common.run.run import Run

    waits, calls, log_step = Waits(importlib.import_module(script)), itertools.count(1), Run.log_step

    def strike(*args: Any) -> None:
        if next(calls) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        log_step(*args)

    if kill_at:
        Run.log_step = strike
    if watch:
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *rest: waits.note("wait") if "synchroniz" in str(message) else None
        torch.cuda.set_sync_debug_mode("warn")
    run_script(script, folder, output, words)
    return dict(waits.found)


def measure_script(case: dict, script: str, folder: Path, words: str) -> tuple[float, float]:
    """Images/s, and peak memory in GiB."""
    rate = speed(lambda case: run_script(script, folder, folder / f"{script}_measured", words), case)
    return rate, torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0


def measure_bare(case: dict, script: str, folder: Path, device: str) -> tuple[float, float]:
    """Images/s of forward, backward and step on one batch, and the seconds that a save holds it up."""
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    options = (folder, script == "train_segmentation", device, True)
    rate = speed(train_bare, case, *options)
    save = saves(folder / f"{script}_saves", *train_bare({**case, "steps": 0}, *options))["ours"]
    return rate, statistics.median([save() for _ in range(3)][1:])


def loss_gradients(device: str) -> float:
    """How far the fused loss's gradients are from those of plain float64 lines, relative to the largest."""
    from segmentation_loss import CLASSES, TREE, our_loss, plain_loss

    worst, generator = 0.0, torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES[-1], (2, 64, 64), generator=generator).to(device)
    for kind, outputs in (("tree", CLASSES[-1]), ("independent", sum(CLASSES))):
        scores = (3 * torch.randn(2, outputs, 64, 64, generator=generator)).to(device)
        ours, double = scores.clone().requires_grad_(), scores.double().requires_grad_()
        our_loss(kind).to(device)(ours, labels).backward()
        levels = torch.cat(TREE.marginalize(double.log_softmax(1)), 1) if kind == "tree" else double
        plain_loss(levels, TREE.lift(labels)).backward()
        worst = max(worst, ((ours.grad - double.grad).abs().max() / double.grad.abs().max()).item())
    return worst


if __name__ == "__main__":
    sys.exit(main())
