"""What happens only on a GPU, where there is one: ``pytest -m slow -n 4 tests/test_on_gpu.py``, in a few minutes.

Both scripts in fp16 and bf16 and with ``--compile``; ``--deterministic`` twice, and killed and resumed, to the same
bytes; no step waits for the device; with two GPUs, DDP with SyncBatchNorm; gradients of the fused segmentation loss.
Without a GPU, what a CPU can do of it, with tiny networks.
"""

from __future__ import annotations

import hashlib
import importlib
import itertools
import json
import multiprocessing
import os
import signal
import sys
import warnings
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY
from waits import Waits

sys.path.append(str(REPOSITORY / "benchmarks"))

from segmentation_loss import CLASSES, TREE, our_loss, plain_loss
from side_by_side import apart, balanced_tree, draw_data, run_script

pytestmark = pytest.mark.slow

GPU = torch.cuda.is_available()
SCRIPTS = {
    "train_taxonomy": "--level_columns group species --ema_decay 0.9 --mixup 0.2 --dropout 0.1 --model_name_or_path "
    + ("timm/vit_tiny_patch16_224 --image_size 224" if GPU else "timm/test_vit --image_size 32"),
    "train_segmentation": "--mask_column mask --hierarchy {folder}/hierarchy.json --head independent "
    + ("--model_name_or_path timm/resnet18 --image_size 256 --decoder_channels 256" if GPU else "")
    + ("" if GPU else "--model_name_or_path timm/test_resnet --image_size 32 --decoder_channels 16"),
}
WAYS = {"plain": "", "bf16": "--mixed_precision bf16", "fp16": "--mixed_precision fp16", "compiled": "--compile"}
WAYS |= {"watched": "", **dict.fromkeys(("deterministic", "again", "killed"), "--deterministic")}
STEPS, KILLED_AT = 12, 8
needs_gpu = pytest.mark.skipif(not GPU, reason="there is no GPU")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    multiprocessing.set_forkserver_preload(list(SCRIPTS))
    folder = tmp_path_factory.mktemp("gpu")
    draw_data(folder, 320, balanced_tree((2, 4), ("group", "species")), train=1024 if GPU else 64, validation=16)
    return folder


@pytest.fixture(params=list(SCRIPTS))
def script(request) -> str:
    return request.param


def words_of(folder: Path, script: str, more: str) -> str:
    words = f"{SCRIPTS[script]} --per_device_train_batch_size 4 --global_batch_size 8 --max_train_steps {STEPS} "
    words += f"--checkpointing_steps 4 --learning_rate 1e-4 --dataloader_num_workers {8 if GPU else 0} {more}"
    return words.format(folder=folder)


@cache
def trained(folder: Path, script: str, way: str) -> tuple[Path, dict[str, int]]:
    """The output folder of a run in a process of its own, and what waited for the device."""
    output, words = folder / f"{script}_{way}", words_of(folder, script, WAYS[way])
    if way == "killed":
        with pytest.raises(BrokenProcessPool):
            apart(train, script, folder, output, words, KILLED_AT)
    return output, apart(train, script, folder, output, words, 0, way == "watched")


def train(script: str, folder: Path, output: Path, words: str, kill_at: int = 0, watch: bool = False) -> dict:
    """Run a script, and be killed at a step; what waited for the device."""
    from common.run.run import Run

    waits, calls, log_step = Waits(importlib.import_module(script)), itertools.count(1), Run.log_step

    def strike(*args) -> None:
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


def loss_of(output: Path) -> float:
    return json.loads((output / "all_results.json").read_text())["eval"]["loss"]


def digests(output: Path) -> dict[str, str]:
    """Of the model, and of all tensors of the newest checkpoint."""
    files = [output / "model.safetensors", *sorted(output.glob("checkpoints/latest/*.safetensors"))]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@needs_gpu
@pytest.mark.parametrize("way", ["bf16", "fp16", "compiled"])
def test_ways_to_compute_learn_the_same(folder, script, way):
    expected, found = (loss_of(trained(folder, script, one)[0]) for one in ("plain", way))
    assert found == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("way", [pytest.param("again", marks=needs_gpu), "killed"])
def test_deterministic_runs_end_with_the_same_bytes(folder, script, way):
    expected, found = (digests(trained(folder, script, one)[0]) for one in ("deterministic", way))
    assert len(expected) > 1 and found == expected


@needs_gpu
def test_no_step_waits(folder, script):
    assert trained(folder, script, "watched")[1] == {}


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are not two GPUs")
def test_two_gpus(folder, script, launch):
    words = words_of(folder, script, "--batch_norm sync --no_pretrained --no_report")
    words += f" --train_file {folder}/train.csv --validation_file {folder}/validation.csv --output_dir {folder}/two"
    launch(f"{script}.py", 2, words.split())
    assert loss_of(folder / "two") == pytest.approx(loss_of(trained(folder, script, "plain")[0]), rel=0.05)


@pytest.mark.parametrize(("kind", "outputs"), [("tree", CLASSES[-1]), ("independent", sum(CLASSES))])
def test_gradients_of_the_fused_loss(kind, outputs):
    """Against plain lines in float64."""
    device, generator = "cuda" if GPU else "cpu", torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES[-1], (2, 64, 64), generator=generator).to(device)
    scores = (3 * torch.randn(2, outputs, 64, 64, generator=generator)).to(device)
    ours, double = scores.clone().requires_grad_(), scores.double().requires_grad_()
    our_loss(kind).to(device)(ours, labels).backward()
    levels = torch.cat(TREE.marginalize(double.log_softmax(1)), 1) if kind == "tree" else double
    plain_loss(levels, TREE.lift(labels)).backward()
    assert (ours.grad - double.grad).abs().max() <= 1e-4 * double.grad.abs().max()
