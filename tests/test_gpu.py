"""Both scripts as a GPU would see them: nothing in a step waits for the device, and no devices are mixed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import transformers
from conftest import REPOSITORY
from fake_gpu import fake_gpu, waits_on_a_gpu

import train_segmentation
import train_taxonomy

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
TRANSFORMERS = {
    "beit": transformers.BeitConfig(**SMALL, image_size=32, patch_size=8, use_relative_position_bias=True),
    "segformer": transformers.SegformerConfig(
        depths=[1] * 4, hidden_sizes=[8, 8, 16, 16], num_attention_heads=[1] * 4, decoder_hidden_size=8
    ),
}
IMAGES = {
    "plain": {},
    "mixed": {"mixup": 0.8, "cutmix": 1.0, "ema_decay": 0.9, "label_smoothing": 0.1, "head": "independent"},
    "batch_norm": {
        "model_name_or_path": "timm/test_resnet",
        "global_batch_size": 16,
        "class_weighting": "inverse_sqrt",
    },
    "frozen": {"model_name_or_path": "timm/test_resnet", "batch_norm": "frozen", "head": "flat", "max_grad_norm": 0},
    "convnext": {
        "model_name_or_path": "timm/test_convnext",
        "logit_adjustment": 1.0,
        "tta": "five_crop",
        "level_weights": "equal",
    },
    "relative": {"model_name_or_path": "timm/test_vit_relpos", "decoding": "levels", "save_predictions": True},
    "beit": {"model_name_or_path": "beit"},
    "timm_beit": {"model_name_or_path": "timm_beit", "image_size": 32},
}
MASKS = {
    "plain": {},
    "dice": {"loss": "dice", "dice_over": "batch", "head": "independent", "ema_decay": 0.9, "decoding": "levels"},
    "cross_entropy": {
        "loss": "cross_entropy",
        "class_weighting": "inverse_sqrt",
        "head": "flat",
        "decoder": "unet",
        "tta": "d4",
    },
    "segformer": {"model_name_or_path": "segformer", "global_batch_size": 16, "rare_crop": 0.5},
    "windows": {"eval_crop": 32, "model_name_or_path": "timm/test_convnext", "channels_last": True},
    "beit": {"model_name_or_path": "beit", "image_size": 32},
}


SHALLOW_BEIT = {"architecture": "beit_base_patch16_224", "pretrained_cfg": {}, "model_args": {"depth": 2}}


def run(script, options, tmp_path: Path, changes: dict) -> dict[str, int]:
    if changes.get("model_name_or_path") == "timm_beit":
        (tmp_path / "config.json").write_text(json.dumps(SHALLOW_BEIT))
        changes = {**changes, "model_name_or_path": f"local-dir:{tmp_path}"}
    if changes.get("model_name_or_path") in TRANSFORMERS:
        TRANSFORMERS[changes["model_name_or_path"]].save_pretrained(tmp_path / "backbone")
        changes = {**changes, "model_name_or_path": tmp_path / "backbone"}
    with waits_on_a_gpu(script) as waits:
        results = script.main(options(max_train_steps=2, max_eval_samples=5, per_device_eval_batch_size=4, **changes))
    assert results["eval"]["loss"] > 0
    return dict(waits)


def cases(names: Mapping[str, dict]) -> list:
    quick = ("plain", "mixed")
    return [pytest.param(name, marks=[] if name in quick else pytest.mark.slow) for name in names]


@pytest.mark.parametrize("case", cases(IMAGES))
def test_training_on_images_never_waits(options, tmp_path: Path, case: str):
    assert run(train_taxonomy, options, tmp_path, IMAGES[case]) == {}


@pytest.mark.parametrize("case", cases(MASKS))
def test_training_on_masks_never_waits(dense_options, tmp_path: Path, case: str):
    assert run(train_segmentation, dense_options, tmp_path, MASKS[case]) == {}


@pytest.mark.parametrize(
    ("mistake", "what"),
    [
        (lambda x: x.sum().item(), "_local_scalar_dense"),
        (lambda x: float(x.max()), "_local_scalar_dense"),
        (lambda x: x if x.sum() > 0 else -x, "_local_scalar_dense"),
        (lambda x: x[x > 0], "index"),
        (lambda x: x.masked_fill_(x > 0, 0).nonzero(), "nonzero"),
        (lambda x: x.tolist(), "tolist"),
        (lambda x: x.cpu(), "_to_copy to the host"),
        (lambda x: torch.tensor([1.0], device=x.device), "_to_copy from the host"),
        (lambda x: x[torch.tensor([1, 0])], "index: indices from the host"),
    ],
)
def test_what_waits_is_noticed(mistake, what: str):
    """The fake GPU itself: each of these makes the host wait for a real one."""
    noticed = []
    with fake_gpu(noticed.append):
        mistake(torch.ones(2, 3).to("cuda", non_blocking=True))
    assert what in noticed


def test_mixed_devices_raise_and_gradients_are_right():
    weight = torch.arange(6.0).view(2, 3)
    with fake_gpu(lambda what: None):
        on_gpu = weight.to("cuda").requires_grad_()
        with pytest.raises(RuntimeError, match="same device"):
            on_gpu * torch.ones(3)
        (on_gpu.softmax(1)[:, 0].sum() * 2).backward()
        gradient = on_gpu.grad.cpu()
    host = weight.clone().requires_grad_()
    (host.softmax(1)[:, 0].sum() * 2).backward()
    assert torch.equal(gradient, host.grad)


@pytest.mark.slow
def test_the_benchmark_of_a_gpu_runs_on_a_cpu():
    command = [sys.executable, "benchmarks/gpu.py", "--device", "cpu", "--tiny"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = [line.split("|") for line in done.stdout.splitlines() if line.startswith("| tiny")]
    assert len(rows) == 2 and all(float(cell) > 0 for row in rows for cell in row[2:5])
