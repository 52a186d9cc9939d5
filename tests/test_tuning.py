"""--tune head and lora, and --gradient_checkpointing: what is trained, kept and saved."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForImageClassification

import train_segmentation
import train_taxonomy
from common.model.backbones import load_backbone
from common.model.hierarchy import Hierarchy
from common.model.modeling import LabelTreeForImageClassification, LabelTreeForSemanticSegmentation
from common.optim.batch_norm import set_train_mode
from common.optim.tuning import HeldBack, merged, prepare_tuning

TREE = Hierarchy(["genus", "species"], [["x", "w"], ["y", "z"]], [[None, None], [0, 0]])
SCRIPTS = {"taxonomy": train_taxonomy, "segmentation": train_segmentation}


@pytest.fixture(params=["taxonomy", pytest.param("segmentation", marks=pytest.mark.slow)])
def script(request):
    return request.param


def build(name, tmp_path=None, pyramid=False):
    torch.manual_seed(0)
    if name == "beit":
        small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        config = transformers.BeitConfig(**small, image_size=32, patch_size=8, use_relative_position_bias=True)
        config.save_pretrained(tmp_path / "config")
        name = str(tmp_path / "config")
    backbone, _ = load_backbone(name, pretrained=False, image_size=32, pyramid=pyramid)
    kind, dense = LabelTreeForImageClassification, {}
    if pyramid:
        kind, dense = LabelTreeForSemanticSegmentation, {"decoder": "unet", "decoder_channels": 16}
    model = kind.build(backbone, TREE, "tree", **dense)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if "gamma" in key or "lambda" in key:  # a millionth at first
                value.fill_(0.5)
    return model


@pytest.mark.parametrize("pyramid", [False, True])
@pytest.mark.parametrize("name", ["timm/test_vit", "timm/test_resnet", "timm/test_convnext", "beit"])
def test_lora_is_merged_into_a_plain_model(name, pyramid, tmp_path):
    model = build(name, tmp_path, pyramid)
    plain = model.state_dict().keys()
    prepare_tuning(model, "lora", 4)
    added = {key: value for key, value in model.named_parameters() if ".lora_" in key}
    trained = {key for key, value in model.named_parameters() if value.requires_grad and "backbone.model." in key}
    assert added and trained == set(added)
    with torch.no_grad():
        for value in added.values():
            value.normal_(std=0.1)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = build(name, tmp_path, pyramid).eval()(pixels).logits
        with_lora, as_saved = model.eval()(pixels).logits, merged(model)(pixels).logits
    assert (with_lora - before).abs().max() > 1e-4
    torch.testing.assert_close(as_saved, with_lora, rtol=1e-4, atol=1e-5)
    merged(model).save_pretrained(tmp_path / "saved")
    assert type(model).from_pretrained(tmp_path / "saved").state_dict().keys() == plain
    assert not any("lora" in key for key in load_file(tmp_path / "saved" / "model.safetensors"))
    if not pyramid:  # with Transformers alone
        loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "saved", trust_remote_code=True).eval()
        torch.testing.assert_close(loaded(pixels).logits, with_lora, rtol=1e-4, atol=1e-5)
    model.train()(pixels, logits_only=True).square().mean().backward()
    assert all(value.grad is not None for value in added.values())


def test_nothing_to_add_to():
    model = build("timm/test_vit")
    model.backbone.model = nn.Identity()
    with pytest.raises(ValueError, match="--tune lora: Identity has no linear layer"):
        prepare_tuning(model, "lora", 4)


@pytest.mark.parametrize("tune", ["head", "lora"])
def test_frozen_batch_norm_stays_frozen(tune):
    model = build("timm/test_resnet", pyramid=True)
    prepare_tuning(model, tune, 4)
    before = {name: value.clone() for name, value in model.backbone.model.named_buffers()}
    set_train_mode(model, "local")
    assert model.training and model.decoder.training and model.backbone.model.training == (tune == "lora")
    model(torch.randn(2, 3, 32, 32), logits_only=True)
    assert len(before) > 10 and all(torch.equal(value, before[n]) for n, value in model.backbone.model.named_buffers())


@pytest.mark.parametrize("name", ["timm/test_vit", "timm/test_convnext", "beit"])
def test_gradients_are_the_same_with_checkpointing(name, tmp_path):
    pixels, gradients = torch.randn(2, 3, 32, 32), []
    for checkpointing in (False, True):
        model = build(name, tmp_path)
        prepare_tuning(model, "lora" if name == "beit" else "full", 4, checkpointing)
        assert checkpointing == any(
            getattr(m, a, False) for m in model.modules() for a in ("gradient_checkpointing", "grad_checkpointing")
        )
        torch.manual_seed(1)
        loss = model.train()(pixels, logits_only=True).square().mean()
        loss.backward()
        gradients.append([loss.detach(), *(value.grad for value in model.parameters() if value.grad is not None)])
    assert len(gradients[0]) > 5 and all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


# ---- runs


def losses(folder):
    lines = map(json.loads, (folder / "history.jsonl").read_text().splitlines())
    return [line["train/loss"] for line in lines if "train/loss" in line]


def cut_off_and_whole(module, words_of, steps, tmp_path, monkeypatch):
    """A run that is interrupted at these steps, counted from each start, ends with the same bytes."""
    module.main(words_of("whole"))
    seed_step = module.seed_step
    for step in steps:
        calls = []

        def interrupted(*args, calls=calls, step=step):
            calls.append(1)
            if len(calls) == step:
                raise KeyboardInterrupt
            seed_step(*args)

        with monkeypatch.context() as patch:
            patch.setattr(module, "seed_step", interrupted)
            with pytest.raises(KeyboardInterrupt):
                module.main(words_of("cut"))
    module.main(words_of("cut"))
    for name in ("model.safetensors", "history.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("tune", ["head", "lora"])
def test_cut_off_runs_end_as_if_nothing_had_happened(script, tune, options, dense_options, tmp_path, monkeypatch):
    """With an average of the weights; checkpoints hold what is trained alone, and only that is what moved."""
    make, module = {"taxonomy": options, "segmentation": dense_options}[script], SCRIPTS[script]
    words = {"tune": tune, "max_train_steps": 6, "checkpointing_steps": 2, "ema_decay": 0.9, "eval_epochs": 1}
    cut_off_and_whole(module, lambda folder: make(**words, output_dir=tmp_path / folder), [5], tmp_path, monkeypatch)
    file = max((tmp_path / "whole" / "checkpoints").rglob("weights.safetensors"))
    kept = [name for name in load_file(file) if name.startswith("backbone.model.") and "running" not in name]
    assert all(".lora_" in name or "num_batches" in name for name in kept) and any("lora" in n for n in kept) == (
        tune == "lora"
    )
    plain = load_file(tmp_path / "whole" / "model.safetensors")
    assert not any("lora" in name for name in plain)


@pytest.mark.parametrize(
    ("script", "tune"),
    [
        ("taxonomy", "head"),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("taxonomy", "lora"), ("segmentation", "head"))),
    ],
)
def test_cut_off_before_and_after_the_backbone_is_trained_too(
    script, tune, options, dense_options, tmp_path, monkeypatch, capfd
):
    make, module = {"taxonomy": options, "segmentation": dense_options}[script], SCRIPTS[script]
    small = {"max_train_samples": 16, "per_device_train_batch_size": 4, "num_train_epochs": 2}
    words = {"tune": tune, "checkpointing_steps": 1, "unfreeze_after": 1, "model_name_or_path": "timm/test_resnet"}
    words |= {"metric_for_best_model": "loss", "lr_scheduler_type": "constant", "warmup_ratio": 0, **small}
    before = []

    def remember(args, model, *others):  # the backbone as it is at the beginning
        before.append({name: value.detach().clone() for name, value in model.backbone.model.named_parameters()})
        return make_optimizer(args, model, *others)

    make_optimizer = module.make_optimizer
    monkeypatch.setattr(module, "make_optimizer", remember)
    # Four steps an epoch: cut off in the third step, in the sixth (the first after the third is the third again).
    cut_off_and_whole(
        module, lambda folder: make(**words, output_dir=tmp_path / folder), [3, 4], tmp_path, monkeypatch
    )
    file = max((tmp_path / "whole" / "checkpoints").rglob("weights.safetensors"))
    after, names = load_file(file), [name for name in before[0] if "lora" not in name]
    assert all((after[f"backbone.model.{name}"] != before[0][name]).any() for name in names)
    assert "has no effect" not in capfd.readouterr().err
    # An epoch alone is that of a backbone that stays as it is.
    late = {**words, "num_train_epochs": 1}
    module.main(make(**late, output_dir=tmp_path / "late"))
    assert "--unfreeze_after has no effect: the training ends after 4 steps" in capfd.readouterr().err
    module.main(make(**{**late, "unfreeze_after": None}, output_dir=tmp_path / "never"))
    model, other = (load_file(tmp_path / name / "model.safetensors") for name in ("late", "never"))
    assert all(torch.equal(model[name], other[name]) for name in model)


def test_held_back_weights():
    model, args = build("timm/test_resnet", pyramid=True), SimpleNamespace(tune="lora", unfreeze_after=2)
    prepare_tuning(model, "lora", 4, unfreeze=True)
    unused = next(value for name, value in model.backbone.model.named_parameters() if "lora" not in name)
    unused.requires_grad_(False)  # as a dry run finds it
    backbone = HeldBack(args, model, SimpleNamespace(steps_per_epoch=3, num_steps=9))
    norms = [module for module in model.backbone.model.modules() if isinstance(module, nn.BatchNorm2d)]
    for step, trained in ((0, False), (5, False), (6, True), (8, True)):
        assert backbone.released(model, step) is model
        set_train_mode(model, "local")
        assert len(norms) > 2 and {norm.training for norm in norms[1:]} == {trained}
        model(torch.randn(2, 3, 32, 32), logits_only=True).square().mean().backward()
        named = [(name, value) for name, value in model.backbone.model.named_parameters() if value is not unused]
        assert {value.grad is not None for name, value in named if "lora" not in name} == {trained}
        assert all(value.grad is not None for name, value in named if "lora" in name)
        assert not unused.requires_grad
        model.zero_grad()


def test_another_backbone_is_refused(options, tmp_path):
    """No checkpoint holds frozen weights, so they must be those that the run began with."""
    for seed in (0, 1):
        state = build("timm/test_vit").backbone.model.state_dict()
        torch.manual_seed(seed)
        noise = {name: torch.randn_like(value) for name, value in state.items()}
        noise |= {"head.weight": torch.zeros(5, 64), "head.bias": torch.zeros(5)}
        save_file(noise, tmp_path / f"{seed}.safetensors")
    words = {"tune": "head", "no_pretrained": None, "image_size": 160}
    train_taxonomy.main(options(**words, max_train_steps=2, backbone_weights=tmp_path / "0.safetensors"))
    with pytest.raises(ValueError, match="frozen weights differ"):
        train_taxonomy.main(options(**words, max_train_steps=4, backbone_weights=tmp_path / "1.safetensors"))


def test_settings_without_effect(options, capfd):
    train_taxonomy.main(options(lora_rank=4, unfreeze_after=1, max_train_steps=1))
    words = {"tune": "head", "layer_decay": 0.7, "gradient_checkpointing": True, "resume_from_checkpoint": "none"}
    train_taxonomy.main(options(**words, max_train_steps=1))
    said = capfd.readouterr().err
    for name in ("lora_rank", "unfreeze_after", "layer_decay", "gradient_checkpointing"):
        assert f"--{name} has no effect" in said


@pytest.mark.slow
@pytest.mark.parametrize("tune", ["head", "lora"])
def test_two_processes(script, tune, options, dense_options, tmp_path, launch):
    make, module = {"taxonomy": options, "segmentation": dense_options}[script], SCRIPTS[script]
    words = {
        "tune": tune,
        "max_train_steps": 4,
        "logging_steps": 1,
        "global_batch_size": 8,
        "gradient_checkpointing": tune == "lora" or None,
    }
    words |= {"model_name_or_path": "timm/test_convnext", "max_train_samples": 16, "unfreeze_after": 1}
    module.main(make(**words, output_dir=tmp_path / "one"))
    launch(
        module.__name__ + ".py", 2, make(**{**words, "per_device_train_batch_size": 4}, output_dir=tmp_path / "two")
    )
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)
