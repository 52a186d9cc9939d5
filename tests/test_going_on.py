"""From one's own model: more classes, another head, another image size; and backbones that people ask for."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import timm
import torch
import transformers
import yaml
from conftest import LEVELS
from safetensors.torch import load_file, save_file

import train_segmentation
import train_taxonomy
from common.model.backbones import load_backbone, resized
from common.model.hierarchy import Hierarchy
from common.model.modeling import LabelTreeForImageClassification, LabelTreeForSemanticSegmentation
from common.optim.tuning import prepare_tuning

TREE = Hierarchy(["genus", "species"], [["x", "w"], ["y", "z"]], [[None, None], [0, 0]])
ROOT = Path(__file__).parents[1]


# ---- more classes


def without(fruit, folder, family):
    """The same images, but for those of a family."""
    splits = datasets.load_from_disk(str(fruit))
    splits = splits.filter(lambda row: row["family"] != family)
    splits.save_to_disk(folder)
    return folder


def test_more_classes_and_another_head(options, fruit, tmp_path, capfd):
    """Without training, the classes that the first model knew are told apart as it did."""
    fewer = without(fruit, tmp_path / "fewer", "Green")
    train_taxonomy.main(
        options(dataset_name=fewer, learning_rate=1e-2, num_train_epochs=2, output_dir=tmp_path / "first")
    )
    first = LabelTreeForImageClassification.from_pretrained(tmp_path / "first")
    second = {"model_name_or_path": tmp_path / "first", "no_pretrained": None, "image_size": None}
    for head in ("tree", "flat"):
        folder = tmp_path / head
        train_taxonomy.main(options(**second, head=head, learning_rate=1e-9, max_train_steps=1, output_dir=folder))
        model = LabelTreeForImageClassification.from_pretrained(folder)
        pixels = torch.randn(4, 3, 32, 32)
        before, after = first.eval()(pixels).logits, model.eval()(pixels).logits
        names = [list(m.config.id2label.values()) for m in (first, model)]
        assert len(names[0]) == 5 and len(names[1]) == 6
        torch.testing.assert_close(after[:, [names[1].index(n) for n in names[0]]], before, rtol=1e-3, atol=1e-3)
    # fruit has 2 orders, 4 families and 6 species; a family has gone with its only species
    assert "The saved model knows 10 of 12 classes by name" in capfd.readouterr().err


def test_the_decoder_goes_along(dense_options, tiles, tmp_path):
    train_segmentation.main(dense_options(decoder="unet", max_train_steps=1, output_dir=tmp_path / "first"))
    second = {
        "model_name_or_path": tmp_path / "first",
        "no_pretrained": None,
        "image_size": None,
        "decoder_channels": None,
    }
    train_segmentation.main(
        dense_options(**second, head="flat", learning_rate=1e-9, max_train_steps=1, output_dir=tmp_path / "second")
    )
    first, other = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    kept = [name for name in first if name.startswith("decoder.")]
    assert kept and all(torch.allclose(first[name], other[name], atol=1e-6) for name in kept)


# ---- another image size


@pytest.mark.parametrize("name", ["timm/test_vit", "timm/test_resnet", "timm/beit_base_patch16_224", "vit", "pyramid"])
def test_another_size(name, tmp_path):
    """As the same weights would be loaded for that size by timm or Transformers themselves."""
    torch.manual_seed(0)
    if name == "pyramid":
        backbone, _ = load_backbone("timm/test_vit", pretrained=False, pyramid=True)
        assert resized(backbone, 64).spec["image_size"] == 64
        return
    if name == "vit":
        small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        model = transformers.ViTForImageClassification(transformers.ViTConfig(**small, image_size=32, patch_size=8))
        model.save_pretrained(tmp_path / "vit")
        backbone, expected = (load_backbone(str(tmp_path / "vit"), image_size=size)[0] for size in (None, 64))
        assert resized(backbone, 64).spec == expected.spec
    else:
        architecture, small = name.removeprefix("timm/"), {"depth": 1} if "beit" in name else {}
        model = timm.create_model(architecture, num_classes=3, **small)
        save_file(model.state_dict(), tmp_path / "model.safetensors")
        config = {"architecture": architecture, "pretrained_cfg": {"num_classes": 3}, "model_args": small}
        (tmp_path / "config.json").write_text(json.dumps(config))
        backbone, _ = load_backbone(f"local-dir:{tmp_path}", image_size=model.default_cfg["input_size"][-1])
        sized = {} if "resnet" in name else {"img_size": 64}
        expected = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=3, **sized)
        expected.reset_classifier(0)
    found, pixels = resized(backbone, 64), torch.randn(2, 3, 64, 64)
    assert found.spec["image_size"] == 64
    torch.testing.assert_close(found.eval()(pixels), expected.eval()(pixels), rtol=1e-4, atol=1e-5)


def test_a_saved_model_takes_another_size(options, tmp_path):
    train_taxonomy.main(options(max_train_steps=1, output_dir=tmp_path / "first"))
    again = {"model_name_or_path": tmp_path / "first", "no_pretrained": None, "image_size": 64, "max_train_steps": 1}
    train_taxonomy.main(options(**again, output_dir=tmp_path / "second"))
    model = LabelTreeForImageClassification.from_pretrained(tmp_path / "second")
    assert model.config.backbone["image_size"] == 64 and model.backbone.model.pos_embed.shape[1] == 1 + 16
    with pytest.raises(ValueError, match="image_size 48 differs from the saved model's 64"):
        train_taxonomy.main(
            options(
                **{**again, "model_name_or_path": tmp_path / "second", "image_size": 48, "eval_only": True},
                output_dir=tmp_path / "third",
            )
        )


# ---- backbones

CONFIGS = sorted(ROOT.glob("configs/backbone_*.yaml"))
SMALL = {
    "dinov3": {"depth": 1},
    "clip": {"depth": 1},
    "eva02": {"depth": 1},
    "siglip": {"depth": 1},
    "convnextv2": {"depths": [1, 1, 1, 1]},
    "swinv2": {"depths": [1, 1, 1, 1]},
}


@pytest.mark.parametrize("file", CONFIGS, ids=[file.stem for file in CONFIGS])
def test_backbones_of_the_configs(file, tmp_path):
    """timm has the weights that a configuration names; one block of the network trains for its script."""
    config = yaml.safe_load(file.read_text())
    name = config["model_name_or_path"].removeprefix("timm/")
    assert name in timm.list_pretrained() or config.get("backbone_weights")
    (small,) = (value for part, value in SMALL.items() if part in name)
    (tmp_path / "config.json").write_text(
        json.dumps({"architecture": name.split(".")[0], "pretrained_cfg": {}, "model_args": small})
    )
    dense = {"decoder": config["decoder"], "decoder_channels": 16} if "decoder" in config else {}
    backbone, _ = load_backbone(f"local-dir:{tmp_path}", pretrained=False, image_size=64, pyramid=bool(dense))
    kind = LabelTreeForSemanticSegmentation if dense else LabelTreeForImageClassification
    model = kind.build(backbone, TREE, "tree", **dense).train()
    prepare_tuning(model, config.get("tune", "full"), 4)
    trained = [value for value in model.parameters() if value.requires_grad]
    logits = model(torch.randn(2, 3, 64, 64), logits_only=True)
    assert not dense or logits.shape[2:] == (16, 16)
    logits.square().mean().backward()
    torch.optim.SGD(trained, 0.1).step()
    assert any(value.grad is not None and value.grad.abs().max() > 0 for value in trained)


def test_weights_of_open_clip(tmp_path):
    """BioCLIP's file has open_clip's names, and a text encoder; the result is timm's own model."""
    model = timm.create_model("vit_medium_patch32_clip_224", num_classes=0, depth=2, img_size=64)
    renamed = {
        "visual.proj": torch.randn(model.embed_dim, 7),
        "token_embedding.weight": torch.randn(3, 4),
        "logit_scale": torch.ones(()),
    }
    swaps = [
        ("patch_embed.proj", "conv1"),
        ("pos_embed", "positional_embedding"),
        ("cls_token", "class_embedding"),
        ("norm_pre", "ln_pre"),
    ]
    swaps += [
        ("blocks.", "transformer.resblocks."),
        ("attn.qkv.", "attn.in_proj_"),
        ("attn.proj", "attn.out_proj"),
        ("mlp.fc1", "mlp.c_fc"),
        ("mlp.fc2", "mlp.c_proj"),
        ("norm1", "ln_1"),
        ("norm2", "ln_2"),
    ]
    for key, value in model.state_dict().items():
        value = value[0, 0] if key == "cls_token" else value[0] if key == "pos_embed" else value
        key = "ln_post." + key.removeprefix("norm.") if key.startswith("norm.") else key
        for ours, theirs in swaps:
            key = key.replace(ours, theirs)
        renamed[f"visual.{key}"] = value.clone()
    save_file(renamed, tmp_path / "open_clip_model.safetensors")
    (tmp_path / "config.json").write_text(
        json.dumps({"architecture": "vit_medium_patch32_clip_224", "pretrained_cfg": {}, "model_args": {"depth": 2}})
    )
    loaded, _ = load_backbone(
        f"local-dir:{tmp_path}", weights=str(tmp_path / "open_clip_model.safetensors"), image_size=64
    )
    pixels = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(loaded.eval()(pixels), model.eval()(pixels))


# ---- decoders for frozen ViTs


@pytest.mark.parametrize("decoder", ["linear", "segformer"])
def test_decoders_train_and_load_again(decoder, dense_options, tmp_path):
    words = {"decoder": decoder, "tune": "head", "model_name_or_path": "timm/test_vit"}
    train_segmentation.main(dense_options(**words, num_train_epochs=1))
    model = LabelTreeForSemanticSegmentation.from_pretrained(tmp_path / "out").eval()
    assert len(model.backbone.resizers) == (4 if decoder == "segformer" else 0)
    with torch.no_grad():
        assert model(torch.randn(1, 3, 50, 70)).logits.shape[2:] == (13, 18)


# ---- features, computed once


def test_features_are_computed_once(options, tmp_path, monkeypatch, capfd):
    """With as many views as epochs training sees what it would see without; a second start computes nothing."""
    plain = {"hflip": 0, "color_jitter": 0, "crop_scale": 1.0, "aspect_ratio": 1.0}
    words = {
        "tune": "head",
        "num_train_epochs": 2,
        "model_name_or_path": "timm/test_resnet",
        "logging_steps": 1,
        **plain,
    }
    without = train_taxonomy.main(options(**words, output_dir=tmp_path / "without"))
    cached = {"cache_features": tmp_path / "features", "feature_views": 2}
    once = train_taxonomy.main(options(**words, **cached, output_dir=tmp_path / "once"))
    assert once["eval"]["loss"] == pytest.approx(without["eval"]["loss"], rel=1e-4)
    assert "% right by five nearest neighbours" in capfd.readouterr().err
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("without", "once"))
    assert all(torch.allclose(a[name], b[name], rtol=1e-3, atol=1e-3) for name in a)
    files = sorted((tmp_path / "features").glob("*.npy"))
    assert len(files) > 2 and np.load(files[0]).dtype == np.float32
    monkeypatch.setattr(np, "save", lambda *_: pytest.fail("computed again"))
    train_taxonomy.main(options(**words, **cached, output_dir=tmp_path / "again"))
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "once" / "model.safetensors"
    ).read_bytes()


def test_features_of_images_that_do_not_decode(options, fruit, tmp_path):
    splits = datasets.load_from_disk(str(fruit)).cast_column("image", datasets.Image(decode=False))
    broken = splits["train"].map(
        lambda row, i: {"image": {"bytes": b"\xff\xd8no", "path": "x.jpg"}} if i == 5 else row, with_indices=True
    )
    splits["train"] = broken.cast_column("image", datasets.Image())
    splits["validation"] = splits["validation"].cast_column("image", datasets.Image())
    splits.save_to_disk(tmp_path / "data")
    words = {
        "tune": "head",
        "dataset_name": tmp_path / "data",
        "cache_features": tmp_path / "features",
        "level_columns": LEVELS,
    }
    results = train_taxonomy.main(options(**words, on_bad_sample="skip", max_train_steps=12))
    assert results["train"]["global_step"] == 12
    assert "row 5 of the train split" in (tmp_path / "out" / "skipped_images.json").read_text()


def test_features_need_a_frozen_backbone(options, tmp_path):
    for words in ({}, {"tune": "head", "mixup": 0.2}, {"tune": "lora"}, {"tune": "head", "unfreeze_after": 1}):
        with pytest.raises(
            ValueError, match="--cache_features goes with --tune head, and with no unfreeze_after, mixup"
        ):
            train_taxonomy.main(options(cache_features=tmp_path, **words))
