"""--optimizer, --head_lr_scale, --lr_scheduler_type plateau, and the batch sizes that people did not give."""

from __future__ import annotations

import argparse
import copy
import json
import math
from pathlib import Path

import pytest
import timm
import torch
import yaml
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import save_file
from timm.layers import EvoNorm2dB0
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

import train_segmentation
import train_taxonomy
from common.optim.parameters import check_optimizer, make_optimizer
from common.optim.schedule import Plateau
from common.optim.skipping import RunningStatistics, skipped_if
from common.run.processes import backward
from common.run.progress import too_short
from common.run.range_test import smoothed
from common.run.setup import make_sampler


@pytest.mark.parametrize("name", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("sgd", "lion")), "lamb"])
def test_optimizers_of_timm_train_and_resume(options, tmp_path, monkeypatch, name):
    words = {"optimizer": name, "max_train_steps": 6, "head_lr_scale": 3.0, "checkpointing_steps": 2}
    train_taxonomy.main(options(**words, output_dir=tmp_path / "straight"))
    original = train_taxonomy.set_learning_rate
    calls = []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(train_taxonomy, "set_learning_rate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_taxonomy.main(options(**words, output_dir=tmp_path / "cut"))
    train_taxonomy.main(options(**words, output_dir=tmp_path / "cut"))
    straight, cut = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("straight", "cut"))
    assert straight == cut and len(calls) == 4


@pytest.mark.parametrize("name", ["adamw", "sgd", "nesterov", "lamb", "adan", "lion"])
@pytest.mark.parametrize("skipped", [0, 2])
def test_a_skipped_step_leaves_every_optimizer_as_it_was(name, skipped):
    """Also the first one, and what optimizers count for themselves: the steps after it are the same."""
    outcomes = []
    for bad in (None, skipped):
        torch.manual_seed(0)
        model = nn.Module()
        model.backbone, model.heads = nn.Module(), nn.Linear(6, 3)
        model.backbone.model = nn.Sequential(nn.Linear(4, 6))
        args = {"learning_rate": 0.01, "weight_decay": 0.05, "layer_decay": 1.0, "head_lr_scale": 1.0, "momentum": 0.9}
        args = argparse.Namespace(optimizer=name, adam_beta1=0.9, adam_beta2=0.99, **args)
        optimizer = Accelerator(cpu=True).prepare(make_optimizer(args, model, torch.device("cpu")))
        steps = [(step, 0.0) for step in range(4)]
        if bad is not None:
            steps.insert(bad, (9, 1.0))
        for step, nonfinite in steps:
            pixels = torch.randn(5, 4, generator=torch.Generator().manual_seed(step))
            pixels = pixels * float("nan") if nonfinite else pixels
            model.heads(model.backbone.model(pixels)).square().sum().backward()
            with skipped_if(torch.tensor(nonfinite), optimizer):
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        outcomes.append([value.detach() for value in model.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*outcomes, strict=True))


def test_every_buffer_that_a_forward_pass_moves_is_put_back():
    """timm's EvoNorm has a running variance, and is no BatchNorm."""
    model = nn.Sequential(EvoNorm2dB0(4), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
    statistics, before = RunningStatistics(model), copy.deepcopy(model.state_dict())
    for nonfinite in (1.0, 0.0):
        statistics.remember()
        model.train()(torch.full((2, 4, 3, 3), float("nan") if nonfinite else 1.0))
        statistics.restore_if(torch.tensor(nonfinite))
        same = [torch.equal(value, before[name]) for name, value in model.state_dict().items() if "running" in name]
        assert len(same) == 3 and set(same) == {bool(nonfinite)}


def test_unknown_optimizer():
    check_optimizer("adamw")
    with pytest.raises(ValueError, match="--optimizer lyon.*did you mean lion"):
        check_optimizer("lyon")


def test_heads_have_a_rate_of_their_own(options, monkeypatch):
    groups = []
    original = train_taxonomy.make_optimizer

    def remembered(args, model, device):
        optimizer = original(args, model, device)
        groups.extend((len(group["params"]), group["base_lr"]) for group in optimizer.param_groups)
        return optimizer

    monkeypatch.setattr(train_taxonomy, "make_optimizer", remembered)
    train_taxonomy.main(options(head_lr_scale=10, learning_rate=1e-3, max_train_steps=1))
    rates = {rate for _, rate in groups}
    assert rates == {1e-3, 1e-2} and sum(count for count, rate in groups if rate == 1e-2) == 2


def test_plateau_is_pytorchs_also_after_a_resume():
    losses = [3.0, 2.0, 2.0, 2.1, 2.2, 1.9, 1.95, 2.0, 2.0, float("nan"), 1.0, 1.0]
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs, ours = ReduceLROnPlateau(optimizer, factor=0.5, patience=1, eps=0), Plateau(0.5, 1)
    expected, found = [], []
    for loss in losses:
        theirs.step(loss)
        expected.append(optimizer.param_groups[0]["lr"])
        ours.step(loss)
        found.append(ours.factor)
        again = Plateau(0.5, 1)
        again.load_state_dict(json.loads(json.dumps(ours.state_dict())))
        ours = again
    assert found == expected and expected[-1] < 1


def test_plateau_lowers_the_rate_in_a_run(options, tmp_path):
    words = {"lr_scheduler_type": "plateau", "plateau_patience": 0, "warmup_ratio": 0, "logging_steps": 1}
    train_taxonomy.main(options(**words, learning_rate=1e-12, num_train_epochs=4))
    history = [json.loads(line) for line in (tmp_path / "out" / "history.jsonl").read_text().splitlines()]
    rates = [line["train/learning_rate"] for line in history if "train/loss" in line]
    assert rates[0] == 1e-12 and rates[-1] <= 0.9e-12


@pytest.mark.parametrize(
    "num_samples, expected", [(16, 4), (3, 2), (1, 1), (100, 12), (256, 32), (20_000, 32), (300, 32)]
)
def test_batches_shrink_with_the_data(num_samples, expected):
    args = argparse.Namespace(
        per_device_train_batch_size=None, global_batch_size=None, max_train_steps=None, epochs=1, seed=0
    )
    sampler = make_sampler(args, Accelerator(cpu=True), num_samples)
    assert sampler.micro_batch_size == sampler.global_batch_size == expected


@pytest.mark.parametrize("script", ["train_taxonomy", "train_segmentation"])
def test_rates_are_tried_and_drawn(script, options, dense_options, tmp_path):
    """A hundred steps at rising rates in a folder of its own; the run's own folder and results stay as they are."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "all_results.json").write_text("{}")
    main, words = {
        "train_taxonomy": (train_taxonomy.main, options),
        "train_segmentation": (train_segmentation.main, dense_options),
    }[script]
    size = {"max_train_steps": 40, "num_train_epochs": 9, "per_device_train_batch_size": 2}
    found = main(words(**size, find_learning_rate=True, learning_rate=1e-2))
    rates = [row["learning_rate"] for row in found["rates"]]
    assert rates[0] == pytest.approx(1e-5) and rates == sorted(rates) and len(rates) <= 16
    assert all(math.isfinite(row["loss"]) for row in found["rates"][:8])
    inside = folder / "learning_rate"
    with Image.open(inside / "learning_rate.png") as picture:
        assert min(picture.size) > 200
    history = [json.loads(line) for line in (inside / "history.jsonl").read_text().splitlines()]
    assert [line["train/learning_rate"] for line in history][-1] == pytest.approx(1.0) and len(history) == 40
    assert not (inside / "model.safetensors").exists() and (folder / "all_results.json").read_text() == "{}"
    assert not list(inside.glob("checkpoints/*"))


def test_smoothed_losses():
    assert smoothed([2.0] * 5) == pytest.approx([2.0] * 5)
    assert smoothed([1.0, 3.0], beta=0.5) == pytest.approx([1.0, (0.5 * 0.5 + 0.5 * 3) / 0.75])
    assert math.isnan(smoothed([1.0, math.inf, 1.0])[-1])


def test_heads_learn_faster_where_they_are_new(options, tmp_path):
    """Ten times the backbone's rate on weights from a file; the same rate on random ones, and on a saved model."""

    def scale(**changes):
        train_taxonomy.main(options(max_train_steps=1, **changes))
        folder = Path(changes.get("output_dir", tmp_path / "out"))
        return yaml.safe_load((folder / "args.yaml").read_text())["head_lr_scale"]

    save_file(timm.create_model("test_vit", img_size=32).state_dict(), tmp_path / "weights.safetensors")
    weights = {"no_pretrained": None, "backbone_weights": tmp_path / "weights.safetensors"}
    assert scale() == 1.0
    assert scale(output_dir=tmp_path / "a", **weights) == 10.0
    assert scale(output_dir=tmp_path / "b", head_lr_scale=3, **weights) == 3.0
    assert scale(output_dir=tmp_path / "e", layer_decay=0.8, **weights) == 1.0
    again = {"no_pretrained": None, "model_name_or_path": tmp_path / "a"}
    assert scale(output_dir=tmp_path / "c", **again) == 1.0
    assert scale(output_dir=tmp_path / "d", head="flat", **again) == 10.0


def test_a_training_that_was_too_short_is_told():
    falling, flat = [{"train/loss": loss} for loss in (2.5, 2.4, 2.3, 2.2)], [{"train/loss": 2.3}] * 4
    unsure = {"levels": {"genus": {}, "species": {"accuracy": 0.41, "mean_confidence": 0.12}}}
    said = too_short([*falling, {"eval/loss": 1.0}], unsure, epochs=10, learning_rate=1e-4)
    assert "from 2.4 to 2.2" in said and "12 % sure" in said and "41 %" in said
    assert "--num_train_epochs 30" in said and "--learning_rate 0.0003" in said
    assert too_short(flat, unsure, 10, 1e-4) is None
    sure = {"levels": {"species": {"accuracy": 0.41, "mean_confidence": 0.4}}}
    assert too_short(falling, sure, 10, 1e-4) is None
    assert too_short(falling, {"levels": {"fine": {"mean_iou": 0.3}}}, 10, 1e-4) is None
    assert too_short(falling[:1], unsure, 10, 1e-4) is None


def test_the_scaler_of_fp16_skips_a_step_whose_loss_alone_is_infinite():
    """Its gradients are finite, and it goes by these; the step must change nothing, and be seen by all processes."""
    weight, scaler = nn.Parameter(torch.ones(2)), torch.amp.GradScaler("cpu")
    optimizer = torch.optim.AdamW([weight])
    accelerator = argparse.Namespace(num_processes=1, backward=lambda loss: scaler.scale(loss).backward())
    for infinite, moved in ((0.0, True), (math.inf, False), (0.0, True)):
        before = weight.detach().clone()
        backward(accelerator, weight.sum() + infinite)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert bool((weight != before).all()) == moved and (weight.isfinite()).all()
