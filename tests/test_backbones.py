"""Encoders of both libraries behind one interface, built offline; weights from files and from a (local) hub cache."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file

from common.model.backbones import Backbone, load_backbone
from common.model.encoders import first_line
from common.model.hierarchy import Hierarchy
from common.model.modeling import LabelTreeForImageClassification

TREE = Hierarchy(["genus", "species"], [["x", "w"], ["y", "z"]], [[None, None], [0, 0]])

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
TRANSFORMERS = {
    "beit": transformers.BeitConfig(**SMALL, image_size=32, patch_size=8, use_relative_position_bias=True),
    "vit": transformers.ViTConfig(**SMALL, image_size=32, patch_size=8),
    "swin": transformers.SwinConfig(embed_dim=12, depths=[1, 1], num_heads=[1, 2], window_size=4, image_size=32),
    "convnext": transformers.ConvNextConfig(hidden_sizes=[8, 16, 16, 24], depths=[1, 1, 1, 1], image_size=32),
    "dinov2": transformers.Dinov2Config(**{**SMALL, "image_size": 32, "patch_size": 8}),
    "resnet": transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
}
TIMM = ["test_vit", "test_convnext", "test_efficientnet", "test_resnet", "test_byobnet", "mobilenetv3_small_050"]


def same_outputs(first: torch.nn.Module, second: torch.nn.Module, size: int) -> bool:
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        a, b = first.eval()(pixels), second.eval()(pixels)
    a, b = (getattr(output, "logits", output) for output in (a, b))
    return torch.equal(a, b) and a.std() > 0


def check(backbone: Backbone, folder: Path) -> None:
    """Features of the announced size, gradients everywhere, and the same model after saving and loading."""
    size = backbone.spec["image_size"]
    features = backbone(torch.randn(2, 3, size, size))
    assert features.shape == (2, backbone.num_features)
    model = LabelTreeForImageClassification.build(backbone, TREE, "tree")
    model.train()
    model(torch.randn(4, 3, size, size), logits_only=True).square().sum().backward()
    for name, parameter in model.named_parameters():  # DDP needs a gradient of each
        if not name.endswith("mask_token"):  # the dry run freezes it
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    model.save_pretrained(folder)
    assert json.loads(json.dumps(backbone.spec)) == backbone.spec
    assert same_outputs(model, LabelTreeForImageClassification.from_pretrained(folder), size)


@pytest.mark.parametrize("name", TIMM)
def test_timm(name, tmp_path):
    backbone, classifier = load_backbone(f"timm/{name}", pretrained=False, image_size=64, drop_path_rate=0.1)
    assert classifier is None and backbone.spec["image_size"] == 64
    check(backbone, tmp_path)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers(name, tmp_path):
    TRANSFORMERS[name].save_pretrained(tmp_path / "config")
    backbone, classifier = load_backbone(str(tmp_path / "config"), pretrained=False, image_size=32)
    assert classifier is None
    check(backbone, tmp_path / "saved")


def test_transformers_weights_classifier_and_preprocessing(tmp_path):
    torch.manual_seed(0)
    stock = transformers.BeitForImageClassification(
        transformers.BeitConfig(**SMALL, image_size=32, patch_size=8, num_labels=7)
    )
    torch.nn.init.normal_(stock.classifier.weight)
    stock.save_pretrained(tmp_path)
    transformers.BeitImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6], resample=2).save_pretrained(
        tmp_path
    )
    backbone, classifier = load_backbone(str(tmp_path))
    assert (backbone.spec["mean"], backbone.spec["interpolation"]) == ([0.1, 0.2, 0.3], "bilinear")
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(classifier(backbone.eval()(pixels)), stock.eval()(pixels).logits)


def test_transformers_position_embeddings_follow_another_image_size(tmp_path):
    transformers.ViTForImageClassification(TRANSFORMERS["vit"]).save_pretrained(tmp_path)
    backbone, _ = load_backbone(str(tmp_path), image_size=48)
    assert backbone(torch.randn(1, 3, 48, 48)).shape == (1, 32)


def test_timm_from_the_hub(tmp_path, monkeypatch):
    """`hf-hub:` with a cache as a download leaves it; the saved model must not need it any more."""
    torch.manual_seed(0)
    stock = timm.create_model("test_vit", num_classes=5, img_size=32)
    torch.nn.init.normal_(stock.head.weight)
    snapshot = tmp_path / "models--org--fungi" / "snapshots" / ("0" * 40)
    timm.models.save_for_hf(stock, snapshot, model_args={"img_size": 32}, safe_serialization=True)
    refs = tmp_path / "models--org--fungi" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    backbone, classifier = load_backbone("hf-hub:org/fungi")
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(classifier(backbone.eval()(pixels)), stock.eval()(pixels))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "gone"))
    check(backbone, tmp_path / "saved")


def test_weights_from_a_file(tmp_path):
    torch.manual_seed(0)
    stock = timm.create_model("test_resnet", num_classes=9)
    save_file(stock.state_dict(), tmp_path / "good.safetensors")
    backbone, classifier = load_backbone("timm/test_resnet", weights=str(tmp_path / "good.safetensors"))
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(classifier(backbone.eval()(pixels)), stock.eval()(pixels))
    with pytest.raises(ValueError, match="do not fit the backbone.*missing.*unexpected"):
        load_backbone("timm/test_vit", weights=str(tmp_path / "good.safetensors"))


def test_unknown_and_unreachable_names(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("timm/no_such_net", "hf-hub:no/such", "no-such-org/no-such-model"):
        with pytest.raises(ValueError, match=f"Cannot load the backbone '{name}'"):
            load_backbone(name)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "401 Client Error.\n\nCannot access gated repo.\nYou may need to log in.",
            "401 Client Error. You may need to log in",
        ),
        (
            "x/y is not a folder\nSee the docs\npass a token having permission",
            "x/y is not a folder. pass a token having permission",
        ),
        ("404 Not Found\nmake sure you are authenticated.\nmore", "404 Not Found. make sure you are authenticated"),
        ("one\ntwo", "one"),
        ("", "OSError"),
    ],
)
def test_messages_keep_the_line_that_helps(text, shown):
    error = OSError(text)
    assert first_line(error) == shown
    outer = ValueError("Cannot load it\nfor reasons")
    outer.__cause__ = error
    assert first_line(outer) == f"Cannot load it: {shown}"
