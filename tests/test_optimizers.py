"""--optimizer, --head_lr_scale, --lr_scheduler_type plateau, and the batch sizes that people did not give."""

from __future__ import annotations

import argparse
import copy
import json

import pytest
import torch
from accelerate import Accelerator
from timm.layers import EvoNorm2dB0
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

import train_taxonomy
from common.optim.parameters import check_optimizer, make_optimizer
from common.optim.schedule import Plateau
from common.optim.skipping import RunningStatistics, skipped_if
from common.run.setup import make_sampler


@pytest.mark.parametrize("name", ["sgd", "lion", "lamb"])
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


def test_level_weights_fit_the_head(options, tmp_path):
    """Independent heads all train at the defaults."""
    train_taxonomy.main(options(head="independent", num_train_epochs=8))
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())["eval"]
    assert results["levels"]["order"]["accuracy"] > 0.9
