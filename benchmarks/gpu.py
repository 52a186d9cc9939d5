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

import argparse
import ast
import hashlib
import importlib
import inspect
import itertools
import json
import multiprocessing
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # asking for GPUs must not initialise CUDA before a fork

GROUPS, NUM_CLASSES, SIDE = 2, 4, 320
COLUMNS = ["image", "mask", "group", "species"]
SCRIPTS = {
    "train_taxonomy": "--level_columns group species --ema_decay 0.9 --mixup 0.2 --dropout 0.1",
    "train_segmentation": "--mask_column mask --hierarchy {folder}/tree.yaml --head independent",
}
CHECKED = {
    "train_taxonomy": [("timm/vit_tiny_patch16_224", 224), ("timm/test_vit", 32)],
    "train_segmentation": [
        ("timm/resnet18 --decoder_channels 64", 256),
        ("timm/test_resnet --decoder_channels 16", 64),
    ],
}
"""Model and image size of the checks, and the tiny ones"""
WAYS = {"plain": "", "bf16": "--mixed_precision bf16"}
WAYS |= dict.fromkeys(("deterministic", "again", "killed"), "--deterministic")
ON_A_GPU = {"fp16": "--mixed_precision fp16", "compiled": "--compile", "watched": ""}
STEPS, KILLED_AT = 12, 8
RESULT = "result: "
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models, few steps: tests the command itself")
    options = parser.parse_args()
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    from benchmarks.side_by_side import machine

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
        self.folder, self.device, self.tiny = folder, device, tiny
        self.processes = multiprocessing.get_context("forkserver")
        self.processes.set_forkserver_preload([*SCRIPTS, "benchmarks.checkpoint_stall"])
        draw(folder, 64 if tiny else 8192)

    def check(self) -> dict[str, str]:
        """Check -> what came out."""
        gpu, checks = self.device == "cuda", {}
        ways = WAYS | (ON_A_GPU if gpu else {})
        with ThreadPoolExecutor(4 if gpu else 1) as pool:
            runs = {(script, way): pool.submit(self.train, script, way) for script in SCRIPTS for way in ways}
            gradients = pool.submit(self.apart, self.folder / "gradients", loss_gradients, self.device)
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

    def words(self, script: str, output: Path, model: str, size: int, batch: int, steps: int, more: str) -> list[str]:
        words = "--train_file {folder}/train.csv --validation_file {folder}/validation.csv --no_report "
        words += f"--model_name_or_path {model} --no_pretrained --image_size {size} --checkpointing_seconds 0 "
        words += f"--per_device_train_batch_size {batch} --max_train_steps {steps} --output_dir {output} "
        words += f"--dataloader_num_workers {0 if self.tiny else 8} {SCRIPTS[script]} {more}"
        return words.format(folder=self.folder).split()

    def checked(self, script: str, way: str, more: str) -> tuple[Path, list[str]]:
        """Output folder and command line of a checked run."""
        output, model = self.folder / f"{script}_{way}", CHECKED[script][self.tiny]
        more += " --global_batch_size 8 --checkpointing_steps 4 --learning_rate 1e-4"
        return output, self.words(script, output, *model, 4, STEPS, more)

    def train(self, script: str, way: str) -> tuple[Path, Any]:
        """Run a script; its output folder, and what it reports."""
        output, words = self.checked(script, way, (WAYS | ON_A_GPU)[way])
        if way == "killed":
            status = self.run(output, run_script, script, words, KILLED_AT)
            assert status == -signal.SIGKILL, f"it was to be killed, and ended with {status}"
        return output, self.apart(output, run_script, script, words, 0, way == "watched")

    def run(self, name: Path, work: Callable[..., object], *args: object) -> int:
        """The exit status of some work in a process of its own."""
        process = self.processes.Process(target=logged, args=(f"{name}.log", work, *args))
        process.start()
        process.join(240)
        process.kill()
        process.join()
        return process.exitcode

    def apart(self, name: Path, work: Callable[..., object], *args: object) -> Any:
        """What some work returned in a process of its own."""
        status, log = self.run(name, work, *args), Path(f"{name}.log").read_text()
        assert status == 0, f"exit status {status}: {log[-1500:]}"
        return json.loads(log.rpartition(RESULT)[2].splitlines()[0])

    def two_gpus(self, script: str, alone: tuple[Path, Any]) -> str:
        import torch

        if torch.cuda.device_count() < 2:
            return "not looked at: there is one GPU"
        output, words = self.checked(script, "two_gpus", "--batch_norm sync")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", f"{script}.py"]
        done = subprocess.run([*command, *words], capture_output=True, text=True)
        assert done.returncode == 0 and "x 2 processes x" in done.stderr, done.stderr[-1500:]
        return near(alone, (output, None), 0.05)

    def measure(self, script: str, model: str, size: int, batch: int) -> list[float]:
        """Images/s of the bare loop and of the script, their ratio, GiB, and seconds that a save takes."""
        steps, output = 12 if self.tiny else 120, self.folder / f"{script}_measured"
        more = f"--mixed_precision bf16 --logging_steps {steps // 6}"
        words = self.words(script, output, model, size, batch, steps, more)
        memory = self.apart(output, run_script, script, words)["memory"]
        log = Path(f"{output}.log").read_text().replace(",", "")
        ours = statistics.median(map(float, re.findall(r"([\d.]+) images/s", log)[2:]))
        case = {"model": model, "image_size": size, "batch": batch, "steps": steps, "every": steps // 6}
        bare, stall = self.apart(self.folder / "bare", run_bare, script, case, self.device, str(self.folder))
        return [bare, ours, ours / bare, memory, stall]


def outcome(check: Callable[..., str], *args: Any) -> str:
    """What a check says; if it or a run before it fails, that."""
    try:
        return check(*(value.result() if isinstance(value, Future) else value for value in args))
    except Exception as error:  # the other checks go on
        return f"FAILED: {' '.join(str(error).split())}"


def draw(folder: Path, rows: int) -> None:
    """Tables of photographs with two levels and masks of four classes."""
    import numpy as np
    import pandas as pd
    from PIL import Image

    from benchmarks.input import drawn

    rng, lines = np.random.default_rng(0), []
    for index, file in enumerate(drawn(folder / "images", SIDE)):
        blocks = Image.fromarray(rng.integers(0, NUM_CLASSES, (6, 8), dtype=np.uint8))
        mask = file.with_suffix(".png")
        blocks.resize((SIDE, SIDE * 3 // 4), Image.Resampling.NEAREST).save(mask)
        kind = index % NUM_CLASSES
        lines.append((f"images/{file.name}", f"images/{mask.name}", f"group{kind % GROUPS}", f"class{kind}"))
    for split, count in (("train", rows), ("validation", 16)):
        table = pd.DataFrame([lines[row % len(lines)] for row in range(count)], columns=COLUMNS)
        table.to_csv(folder / f"{split}.csv", index=False)
    tree = "levels: [group, species]\ntree:\n  group0: [class0, class2]\n  group1: [class1, class3]\n"
    (folder / "tree.yaml").write_text(tree + "classes: [class0, class1, class2, class3]\n")


# ---- what is said of finished runs


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


def quiet(watched: tuple[Path, Any]) -> str:
    assert not watched[1]["waits"], watched[1]["waits"]
    return "nothing waits for the device"


def exact(error: float) -> str:
    assert error <= 1e-4, f"{error:.0e} from float64's"
    return f"within {error:.0e} of float64's"


# ---- in processes of their own


def logged(log: str, work: Callable[..., object], *args: object) -> None:
    """Call with all output in a file, and the result at its end."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1), os.dup2(file, 2)
    print(f"{RESULT}{json.dumps(work(*args))}", flush=True)


def run_script(script: str, words: list[str], kill_at: int = 0, watch: bool = False) -> dict[str, Any]:
    """Run a script: peak memory in GiB, and what waited for the device."""
    import torch

    from common.run.run import Run

    module, calls, log_step = importlib.import_module(script), itertools.count(1), Run.log_step

    def strike(*args: Any) -> None:
        if next(calls) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        log_step(*args)

    waits = Waits(module)
    if kill_at:
        Run.log_step = strike
    if watch:
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *rest: waits.note("wait") if "synchroniz" in str(message) else None
        torch.cuda.set_sync_debug_mode("warn")
    module.main(words)
    memory = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    return {"memory": memory, "waits": waits.found}


class Waits:
    """Counts what waits for the device in a script's training steps (but the first) and evaluations."""

    def __init__(self, script: Any) -> None:
        self.main, self.evaluate = script.main, inspect.unwrap(script.evaluate_model)
        self.log_step = importlib.import_module("common.run.run").Run.log_step
        self.step, self.batches = loop_lines(self.main, "micro_batches = ["), loop_lines(self.evaluate)
        self.found: Counter[str] = Counter()
        self.first: Any = None  # batch of an evaluation: tables go to the device once

    def note(self, what: str) -> None:
        """To be called where it waits; whose code that is is read from the stack."""
        stack, frame = [], sys._getframe(1)
        while frame is not None:
            code, line, waits = frame.f_code, frame.f_lineno, False
            if code is self.log_step.__code__:
                return  # loss and speed are asked for when they are due
            if not any(part in code.co_filename for part in ("/torch/", "gpu.py")):
                stack.append(f"{Path(code.co_filename).name}:{line} {code.co_name}")
            if code is self.main.__code__:
                waits = line in self.step and frame.f_locals["step"] > 0
            elif code is self.evaluate.__code__ and line in self.batches:
                self.first = self.first or frame.f_locals["batch"]
                waits = frame.f_locals["batch"] is not self.first
            if waits:
                self.found[f"{what}: {' < '.join(stack[:8])}"] += 1
                return
            frame = frame.f_back


def loop_lines(function: Callable[..., Any], after: str = "") -> range:
    """Line numbers of the first loop of a function at top level, from the one that contains ``after`` on."""
    lines, first = inspect.getsourcelines(function)
    loops = [node for node in ast.walk(ast.parse("".join(lines))) if isinstance(node, ast.For | ast.While)]
    loop = min(loops, key=lambda node: node.lineno)
    start = next(number for number in range(loop.lineno, loop.end_lineno) if after in lines[number])
    return range(first + start, first + loop.end_lineno)


def run_bare(script: str, case: dict, device: str, folder: str) -> list[float]:
    """Images/s of forward, backward and step on one batch, and the seconds that a save holds it up."""
    import torch
    from accelerate import Accelerator

    from benchmarks.checkpoint_stall import groups_of, measure
    from benchmarks.loop import bare_loop, build

    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    model = build(case, pyramid=script == "train_segmentation").to(device)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    speed = bare_loop(case, model, optimizer, device, bf16=True)
    accelerator, saves = Accelerator(cpu=device == "cpu"), Path(folder) / "saves"
    stall = measure(saves, 2, accelerator, lambda: groups_of(model, optimizer), only_ours=True)
    return [speed, statistics.median(stall["ours"][1:])]


def loss_gradients(device: str) -> float:
    """How far the fused loss's gradients are from those of plain float64 lines, relative to the largest."""
    import torch

    from benchmarks.segmentation_loss import CLASSES, TREE, our_loss, plain_loss

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
