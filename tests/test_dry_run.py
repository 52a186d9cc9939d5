"""What the dry run finds in the first seconds, and that it leaves everything as it was."""

from __future__ import annotations

import argparse
from functools import partial

import pytest
import torch
from accelerate import Accelerator
from torch import nn

import train_segmentation
import train_taxonomy
from common.model.backbones import load_backbone
from common.model.hierarchy import Hierarchy
from common.model.modeling import LabelTreeForImageClassification
from common.optim.batch_norm import prepare_batch_norm, set_train_mode
from common.run.dry_run import dry_run

TREE = Hierarchy(["a", "b"], [["x"], ["y", "z"]], [[None], [0, 0]])


def make(name: str = "timm/test_resnet") -> LabelTreeForImageClassification:
    torch.manual_seed(0)
    backbone, _ = load_backbone(name, pretrained=False, image_size=32)
    return LabelTreeForImageClassification.build(backbone, TREE, "tree")


def run(model: nn.Module, loss_of=None, **options: object) -> None:
    args = argparse.Namespace(model_name_or_path="a_model", image_size=32, ema_decay=0.0, **options)

    def loss(pixels: torch.Tensor) -> torch.Tensor:
        return model.train()(pixels).logits.square().mean()

    dry_run(args, Accelerator(cpu=True), model, loss_of or loss, 4)


def test_everything_is_as_it_was():
    model = make()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert any("running_mean" in name for name in before)
    state = torch.get_rng_state()
    run(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_parameters_without_a_gradient_are_frozen(caplog):
    """Several processes would wait for their gradients for ever."""
    model = make()
    model.unused = nn.Linear(2, 2)
    with caplog.at_level("INFO"):
        run(model)
    assert not model.unused.weight.requires_grad and model.heads.weight.requires_grad
    assert "2 parameters get no gradient and are frozen: unused.weight, unused.bias" in caplog.text


def test_a_model_that_cannot_be_saved_is_refused():
    model = make()
    model.tied = nn.Linear(2, 2)
    model.tied_again = nn.Linear(2, 2)
    model.tied_again.weight = model.tied.weight
    with pytest.raises(ValueError, match="a_model: this backbone can be trained, but not saved and loaded again"):
        run(model)


def test_a_model_that_loads_as_another_one_is_refused(monkeypatch):
    monkeypatch.setattr(LabelTreeForImageClassification, "from_pretrained", lambda folder: make("timm/test_vit"))
    with pytest.raises(ValueError, match="gives other logits"):
        run(make())


def test_too_little_memory_names_what_to_lower():
    def loss(pixels: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    with pytest.raises(ValueError, match="Out of memory.*of 4 images of 32 px.*Lower --per_device_train_batch_size"):
        run(make(), loss)


def test_one_image_and_batch_norm():
    def loss(pixels: torch.Tensor) -> torch.Tensor:
        return nn.BatchNorm1d(3)(pixels.mean((2, 3))[:1]).sum()

    with pytest.raises(ValueError, match="raise --per_device_train_batch_size, or use --batch_norm frozen"):
        run(make(), loss)


@pytest.mark.parametrize(
    "name, message",
    [
        ("timm/coat_lite_tiny", "not saved and loaded again .*shared tensors"),
        ("timm/crossvit_9_240", "does not train at 32 px .*Leave --image_size out"),
    ],
)
def test_backbones_that_cannot_be_trained_here(options, name, message):
    """Shared tensors that safetensors refuses; a network of one fixed size."""
    with pytest.raises(ValueError, match=f"(?s){name}.*{message}"):
        train_taxonomy.main(options(model_name_or_path=name, max_train_steps=1))


@pytest.mark.parametrize("script, make_words", [(train_taxonomy, "options"), (train_segmentation, "dense_options")])
def test_scripts_do_it_before_they_scan_data(script, make_words, request, monkeypatch):
    monkeypatch.setattr(script, "dry_run", lambda *args: (_ for _ in ()).throw(ValueError("first")))
    monkeypatch.setattr(script.setup, "check_images", lambda *args: pytest.fail("scanned"))
    with pytest.raises(ValueError, match="first"):
        script.main(request.getfixturevalue(make_words)(max_train_steps=1))


# ---- BatchNorm


def test_frozen_statistics_do_not_depend_on_how_a_batch_is_split():
    model, pixels = make().eval(), torch.randn(4, 3, 32, 32)
    before = {name: value.clone() for name, value in model.named_buffers()}
    set_train_mode(model, "frozen")
    whole = model(pixels).logits
    parts = torch.cat([model(pixels[:1]).logits, model(pixels[1:]).logits])
    assert torch.allclose(whole, parts, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    set_train_mode(model, "local")
    assert not torch.allclose(model(pixels).logits, torch.cat([model(pixels[:2]).logits, model(pixels[2:]).logits]))


def test_split_batches_are_warned_about(caplog):
    prepare = partial(prepare_batch_norm, num_processes=1, size=8)
    prepare(make(), "local", accumulation_steps=1)
    prepare(make("timm/test_vit"), "local", accumulation_steps=4)  # has none
    prepare(make(), "frozen", accumulation_steps=4)
    assert not caplog.text
    prepare(make(), "local", accumulation_steps=4)
    assert "BatchNorm" in caplog.text and "--batch_norm frozen" in caplog.text
    with pytest.raises(ValueError, match="sync needs GPUs"):
        prepare_batch_norm(make(), "sync", num_processes=2, accumulation_steps=1, size=8)
