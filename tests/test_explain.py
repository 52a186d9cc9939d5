"""Grad-CAM against gradients by brute force, and its pictures in the report."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from PIL import Image
from torchvision.transforms.v2 import functional

import train_taxonomy
from common.data.rows import ImageRows
from common.metrics.report_data import ReportData
from common.model.backbones import load_backbone
from common.model.hierarchy import Hierarchy
from common.model.modeling import LabelTreeForImageClassification
from common.report.explain import Explainer, grad_cam
from common.report.image_examples import load_pictures

TREE = Hierarchy(["genus", "species"], [["x", "w"], ["y", "z"]], [[None, None], [0, 0]])


def build(name, tmp_path):
    torch.manual_seed(0)
    if name == "beit":
        small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        transformers.BeitConfig(**small, image_size=64, patch_size=8).save_pretrained(tmp_path / "config")
        name = str(tmp_path / "config")
    backbone, _ = load_backbone(name, pretrained=False, image_size=64)
    model = LabelTreeForImageClassification.build(backbone, TREE, "tree")
    with torch.no_grad():
        for key, value in model.named_parameters():
            value.copy_(0.5 if "gamma" in key or "lambda" in key else value + 0.05 * torch.randn_like(value))
    return model.eval()


@pytest.mark.parametrize(
    ("name", "module", "first"),
    [
        ("timm/test_resnet", "layer4", None),
        ("timm/test_convnext", "norm_pre", None),
        ("timm/test_vit", "blocks.5.norm1", 1),  # its heads read the class token alone
        ("beit", "beit.layernorm", 1),
    ],
)
def test_as_by_brute_force(name, module, first, tmp_path):
    """The weight of a channel is what the logit gains, per place, if all places of the channel are raised."""
    model, pixels = build(name, tmp_path), torch.randn(1, 3, 64, 64)
    target, seen = model.backbone.model.get_submodule(module), []

    def logits(channel: int = 0, raised: float = 0.0) -> torch.Tensor:
        def raise_channel(_, __, output):
            places = output[0] if first is None else output[0, first:].T
            seen.append(places.clone())
            places[channel] += raised

        handle = target.register_forward_hook(raise_channel)
        with torch.no_grad():
            found = model.heads.leaf_logits(model.compute_logits(pixels))[0]
        handle.remove()
        return found

    logits()
    step, channels = 0.05, range(len(seen[0]))
    gains = torch.stack([(logits(channel, step) - logits(channel, -step)) / (2 * step) for channel in channels])
    warm = 0
    for leaf, gain in enumerate(gains.T):
        heat = (seen[0].flatten(1) * gain[:, None]).sum(0).relu()
        found = grad_cam(model, pixels, leaf)
        assert found.shape[0] == found.shape[1] > 1
        torch.testing.assert_close(found.flatten(), heat / heat.max().clamp(min=1e-12), rtol=0.03, atol=0.03)
        warm += bool(found.max() == 1)
    assert warm


def test_pictures_of_what_counted(tmp_path):
    build("timm/test_resnet", tmp_path).save_pretrained(tmp_path / "model")
    noise = np.random.default_rng(0).integers(0, 255, (80, 120, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    images = ImageRows(Dataset.from_dict({"image": ["a.png"]}), "image", "validation", tmp_path)
    shown = functional.resize(torch.as_tensor(noise).movedim(2, 0), [96, 96])  # more than the model is shown
    images.apply = lambda transform, row, source: shown
    kinds = ("right", "near", "far")
    examples = {kind: np.array([[0, leaf, leaf, 0.5]]) for leaf, kind in enumerate(kinds)}
    data = ReportData(np.array([1]), np.array([1]), np.array([1]), examples)
    found = load_pictures(images, TREE, Explainer(tmp_path / "model", None), data)
    pictures = [found[kind][0].explained for kind in kinds]
    assert {picture.size for picture in pictures} == {(64, 64)} and found["right"][0].image.size == (120, 80)
    plain = np.asarray(functional.center_crop(shown, 64).movedim(0, 2), int)
    changes = np.stack([np.abs(np.asarray(picture, int) - plain).max(2) for picture in pictures])
    assert changes.max() > 50 and (changes < 3).any() and len({picture.tobytes() for picture in pictures}) > 1
    assert load_pictures(images, TREE, None, data)["right"][0].explained is None


@pytest.mark.slow
@pytest.mark.with_report
def test_a_report_with_explanations(options, tmp_path):
    words = {"explain": True, "max_train_steps": 2}
    train_taxonomy.main(options(**words))
    out = tmp_path / "out"
    assert Image.open(out / "plots" / "explained.png").width > 500
    assert "(Grad-CAM)" in (out / "report.html").read_text()
    evaluated = {"eval_only": True, "model_name_or_path": out, "tta": "five_crop", "output_dir": tmp_path / "again"}
    train_taxonomy.main(options(**words, **evaluated))
    assert (tmp_path / "again" / "plots" / "explained.png").is_file()
    train_taxonomy.main(options(**evaluated))
    assert not (tmp_path / "again" / "plots" / "explained.png").exists()
