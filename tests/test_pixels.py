"""Images reach an encoder as those did that its weights were trained with, wherever the weights are from."""

from __future__ import annotations

import json

import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file

import train_taxonomy
from common.model.backbones import load_backbone
from common.model.encoders import EncoderOptions, _timm_pixels

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
HALF = ([0.5] * 3, [0.5] * 3)
CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def timm_folder(folder, name, **config):
    """A model as on the Hub, but whose configuration says this alone."""
    timm.models.save_for_hf(timm.create_model(name, num_classes=3), folder, safe_serialization=True)
    (folder / "config.json").write_text(json.dumps({"architecture": name, "num_classes": 3, **config}))
    return f"local-dir:{folder}"


def pixels(name, **options):
    spec = load_backbone(str(name), **options)[0].spec
    return spec, (spec["mean"], spec["std"])


@pytest.fixture
def warned(caplog):
    """What has been assumed, in words."""
    return lambda: " ".join(record.getMessage() for record in caplog.records if "Assumed" in record.getMessage())


def test_timm_by_name(warned):
    spec, colours = pixels("timm/test_resnet", pretrained=False)
    assert colours == HALF and spec["image_size"] == 160 and spec["interpolation"] == "bilinear"
    assert (spec["resize_mode"], spec["crop_pct"]) == ("center", 1.0)  # random weights: as there always was
    assert not warned()


def test_timm_weights_from_a_file(tmp_path, warned):
    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "weights.safetensors")
    spec, colours = pixels("timm/test_resnet", weights=tmp_path / "weights.safetensors")
    assert colours == HALF and spec["crop_pct"] == 0.95 and not warned()


def test_timm_folder_that_says_it(tmp_path, warned):
    own = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "nearest", "crop_pct": 0.8}
    own |= {"crop_mode": "squash", "input_size": [3, 96, 96]}
    spec, colours = pixels(timm_folder(tmp_path, "test_resnet", pretrained_cfg=own))
    assert colours == (own["mean"], own["std"]) and not warned()
    assert [spec[key] for key in ("interpolation", "crop_pct", "resize_mode", "image_size")] == [
        "nearest", 0.8, "squash", 96
    ]  # fmt: skip


@pytest.mark.parametrize("form", ["flat", "nested"])
def test_timm_folder_that_leaves_it_out(tmp_path, warned, form):
    """BVRA's models of FungiTastic: the tagged architecture's numbers, not ImageNet's, and a warning that says so."""
    config = {} if form == "flat" else {"pretrained_cfg": {"num_classes": 3}}
    name = timm_folder(tmp_path, "test_vit", **config)
    spec, colours = pixels(name)
    assert colours == HALF != IMAGENET and spec["crop_pct"] == timm.get_pretrained_cfg("test_vit").crop_pct
    assert "mean [0.5, 0.5, 0.5], std [0.5, 0.5, 0.5]" in warned() and "timm's test_vit" in warned()
    assert spec["architecture"] == "test_vit"


def test_the_tag_counts(warned):
    """Weights of one architecture were trained in different ways."""
    tags = timm.list_pretrained("vit_base_patch16_224.*")
    assert len({timm.get_pretrained_cfg(tag).mean for tag in tags}) > 1
    options = EncoderOptions("hf-hub:org/model", True, None, None, None, False)
    for tag in tags:
        assert _timm_pixels(options, {}, tag)["mean"] == list(timm.get_pretrained_cfg(tag).mean)
    assert _timm_pixels(options, {}, "vit_base_patch16_224.of_mine")["mean"] == HALF[0]
    assert _timm_pixels(options, {}, "net_of_mine")["mean"] == IMAGENET[0] and "ImageNet: mean" in warned()


def save(folder, config, processor=None):
    transformers.AutoModelForImageClassification.from_config(config).save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    return folder


def vit(**settings):
    return transformers.ViTConfig(**SMALL, **{"image_size": 32, "patch_size": 8, **settings})


def test_transformers_processor(tmp_path, warned):
    """Size, share and filter are the processor's: DINOv2's configuration has another size."""
    processor = transformers.BitImageProcessor(
        image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6], resample=2, size={"shortest_edge": 40},
        crop_size={"height": 32, "width": 32},
    )  # fmt: skip
    spec, colours = pixels(save(tmp_path, vit(image_size=64), processor))
    assert colours == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]) and spec["interpolation"] == "bilinear"
    assert (spec["image_size"], spec["resize_mode"], spec["crop_pct"]) == (32, "center", 0.8) and not warned()
    assert load_backbone(str(tmp_path), image_size=64)[0].spec["image_size"] == 64


def test_transformers_processor_that_squashes_or_has_a_share(tmp_path, warned):
    squash = transformers.ViTImageProcessor(size={"height": 48, "width": 48})
    spec, colours = pixels(save(tmp_path / "a", vit(), squash))
    assert colours == HALF and (spec["image_size"], spec["resize_mode"], spec["crop_pct"]) == (48, "squash", 1.0)
    convnext = transformers.ConvNextConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1])
    share = transformers.ConvNextImageProcessor(size={"shortest_edge": 64}, crop_pct=0.875)
    spec, colours = pixels(save(tmp_path / "b", convnext, share))
    assert colours == HALF and (spec["image_size"], spec["resize_mode"], spec["crop_pct"]) == (64, "center", 0.875)
    raw = transformers.ViTImageProcessor(size={"height": 32, "width": 32}, do_normalize=False)
    assert pixels(save(tmp_path / "c", vit(), raw))[1] == ([0.0] * 3, [1.0] * 3) and not warned()


def test_transformers_without_a_processor(tmp_path, warned):
    assert pixels(save(tmp_path, vit()))[1] == IMAGENET
    assert "of ImageNet: mean [0.485, 0.456, 0.406], std" in warned() and "--image_mean" in warned()


def test_nested_vision_config(tmp_path, warned):
    vision = {**SMALL, "image_size": 48, "patch_size": 8, "projection_dim": 16}
    config = transformers.CLIPConfig(vision_config=vision, text_config={**SMALL, "vocab_size": 99}, projection_dim=16)
    assert pixels(save(tmp_path, config))[0]["image_size"] == 48 and "mean" in warned()
    sizes = {"size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 48}}
    spec, (mean, std) = pixels(save(tmp_path, config, transformers.CLIPImageProcessor(**sizes)))
    assert spec["image_size"] == 48 and torch.allclose(torch.tensor([mean, std]), torch.tensor(CLIP))


def test_given_numbers_come_first(tmp_path, warned):
    given = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.2, 0.2, 0.2]}
    assert pixels(timm_folder(tmp_path / "a", "test_vit"), **given)[1] == tuple(given.values())
    assert pixels(save(tmp_path / "b", vit()), **given)[1] == tuple(given.values())
    assert "mean" not in warned().replace("--image_mean", "")


def test_in_a_run(options, tmp_path, capfd):
    """From option to saved model, and from that into the next run; numbers there settle it."""
    words = {"max_train_steps": 2, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.2] * 3, "crop_pct": 0.9}
    train_taxonomy.main(options(**words))
    folder = tmp_path / "out"
    spec = json.loads((folder / "config.json").read_text())["backbone"]
    assert (spec["mean"], spec["std"]) == ([0.1, 0.2, 0.3], [0.2] * 3)
    assert json.loads((folder / "preprocessor_config.json").read_text())["image_mean"] == [0.1, 0.2, 0.3]
    again = {"model_name_or_path": folder, "no_pretrained": None, "output_dir": tmp_path / "again"}
    train_taxonomy.main(options(**again, max_train_steps=2, image_mean=[0.5] * 3))
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["backbone"]["mean"] == [0.1, 0.2, 0.3] and config["evaluation"]["crop_pct"] == 0.9
    assert "--image_mean has no effect on a saved model" in capfd.readouterr().err
    with pytest.raises(ValueError, match="--image_std takes three numbers"):
        train_taxonomy.main(options(image_std=[0.5, 0, 0.5]))


@pytest.mark.slow
def test_runs_of_older_code_go_on_as_they_began(options, tmp_path, monkeypatch):
    """Such a run had no scale of its heads, other pixels and a crop of 1, and must end as it would have."""
    name = timm_folder(tmp_path / "net", "test_vit", pretrained_cfg={"mean": [0.3] * 3, "crop_pct": 0.5})
    words = {"model_name_or_path": name, "no_pretrained": None, "checkpointing_steps": 4, "num_train_epochs": 2}
    words["max_train_samples"] = 48
    old = {
        "head_scale": 1.0,
        "image_mean": [0.1] * 3,
        "image_std": [0.2] * 3,
        "crop_pct": 1.0,
        "resize_mode": "center",
    }
    train_taxonomy.main(options(**words, **old, output_dir=tmp_path / "straight"))
    calls, original, identity = [], train_taxonomy.set_learning_rate, train_taxonomy.run_identity

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 11:
            raise KeyboardInterrupt
        original(*args)

    def without_new_options(*args):
        return {key: value for key, value in identity(*args).items() if key not in old or key.startswith("cr")}

    with monkeypatch.context() as patch:
        patch.setattr(train_taxonomy, "set_learning_rate", interrupted)
        patch.setattr(train_taxonomy, "run_identity", without_new_options)
        with pytest.raises(KeyboardInterrupt):
            train_taxonomy.main(options(**words, **old, output_dir=tmp_path / "cut"))
    train_taxonomy.main(options(**words, output_dir=tmp_path / "cut"))
    straight, cut = ((tmp_path / run / "model.safetensors").read_bytes() for run in ("straight", "cut"))
    assert straight == cut
    assert json.loads((tmp_path / "cut" / "config.json").read_text())["head_scale"] == 1.0
    train_taxonomy.main(options(**words, max_train_steps=1, output_dir=tmp_path / "new"))
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert config["backbone"]["mean"] == [0.3] * 3 and config["head_scale"] == pytest.approx(3**-0.5)
    assert config["evaluation"]["crop_pct"] == 0.5
