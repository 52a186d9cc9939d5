"""Saved folders load with Transformers alone: another process, another folder, without this repository."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import REPOSITORY, png
from PIL import Image
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    SegformerImageProcessor,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

import train_segmentation
import train_taxonomy
from common.images.transforms import EvaluationTransform
from common.model.backbones import load_backbone
from common.model.hierarchy import Hierarchy
from common.model.modeling import LabelTreeForImageClassification, LabelTreeForSemanticSegmentation
from common.publish.models import image_processor, save_model

TREE = Hierarchy(["kind", "fine"], [["x", "y"], list("abc")], [[None, None], [0, 0, 1]])
SMALL = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16}
TRANSFORMERS = {
    "beit": (BeitForImageClassification, BeitConfig, {**SMALL, "image_size": 32, "patch_size": 8}),
    "vit": (ViTForImageClassification, ViTConfig, {**SMALL, "image_size": 32, "patch_size": 8}),
    "swin": (
        SwinForImageClassification,
        SwinConfig,
        {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
    ),
}
CLASSIFIERS = ["timm/test_resnet", "timm/test_vit", "timm/test_convnext", "timm/test_efficientnet", *TRANSFORMERS]
DENSE = ["timm/test_resnet", "timm/test_vit", "timm/test_convnext", "nvidia/mit-b0", "beit"]
CODE = """
import json, sys, torch
from transformers import AutoImageProcessor, pipeline
from transformers import AutoModelForImageClassification, AutoModelForSemanticSegmentation
try:
    import common
    raise AssertionError("the repository is on the path")
except ImportError:
    pass
found = {}
for folder in sys.argv[2:]:
    dense = "dense_" in folder
    kind = AutoModelForSemanticSegmentation if dense else AutoModelForImageClassification
    model = kind.from_pretrained(folder, trust_remote_code=True).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        output = model(pixels)
    task = "image-segmentation" if dense else "image-classification"
    answer = pipeline(task, model=model, image_processor=processor)(sys.argv[1])
    found[folder] = {
        "log_probs": [level.flatten().tolist() for level in output.log_probs],
        "shapes": [list(level.shape) for level in output.log_probs],
        "labels": sorted({entry["label"] for entry in answer}),
        "id2label": model.config.id2label,
    }
print(json.dumps(found))
"""


def source(name: str, folder: Path) -> str:
    """A name that load_backbone takes; small Transformers models are written first."""
    if name not in TRANSFORMERS:
        return name
    kind, config, settings = TRANSFORMERS[name]
    torch.manual_seed(0)
    kind(config(**settings)).save_pretrained(folder / name)
    return str(folder / name)


def save(name: str, dense: bool, folder: Path) -> tuple[Path, torch.nn.Module]:
    torch.manual_seed(0)
    backbone, _ = load_backbone(source(name, folder), pretrained=name in TRANSFORMERS, image_size=32, pyramid=dense)
    if dense:
        options = {"decoder": "unet", "decoder_channels": 16}
        model = LabelTreeForSemanticSegmentation.build(backbone, TREE, "tree", **options)
        processor = SegformerImageProcessor(size={"height": 32, "width": 32})
    else:
        model = LabelTreeForImageClassification.build(backbone, TREE, "tree")
        processor = image_processor(backbone.spec, "center", 1.0)
    saved = folder / f"{'dense_' if dense else ''}{name.replace('/', '_')}_model"
    save_model(model, processor, saved)
    return saved, model.eval()


@pytest.mark.slow
def test_every_kind_of_backbone_loads_without_the_repository(tmp_path):
    models = dict(
        [save(name, False, tmp_path) for name in CLASSIFIERS] + [save(name, True, tmp_path) for name in DENSE]
    )
    Image.effect_noise((40, 36), 80).convert("RGB").save(tmp_path / "image.png")
    words = [sys.executable, "-c", CODE, str(tmp_path / "image.png"), *map(str, models)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for folder, model in models.items():
        theirs = found[str(folder)]
        with torch.no_grad():
            ours = model(pixels).log_probs
        assert theirs["shapes"] == [list(level.shape) for level in ours], folder
        for level, expected in zip(theirs["log_probs"], ours, strict=True):
            assert level == pytest.approx(expected.flatten().tolist(), abs=1e-5), folder
        assert theirs["id2label"] == {"0": "a", "1": "b", "2": "c"}
        assert set(theirs["labels"]) <= set("abc") and theirs["labels"], folder


@pytest.mark.slow
def test_trained_models_load_with_transformers_alone(options, dense_options, fruit, tiles, tmp_path):
    """In another process and folder, without this repository; the pipelines say what the scripts saved."""
    folders = [tmp_path / "classifier", tmp_path / "dense"]
    train_taxonomy.main(options(save_predictions=True, output_dir=folders[0]))
    train_segmentation.main(dense_options(save_predictions=True, num_train_epochs=2, output_dir=folders[1]))
    images = [tmp_path / "image.jpg", tmp_path / "image.png"]
    for file, data, row in zip(images, (fruit, tiles), (5, 2), strict=True):
        plain = datasets.load_from_disk(data)["validation"].cast_column("image", datasets.Image(decode=False))
        file.write_bytes(plain[row]["image"]["bytes"])
    code = f"""
import json, numpy, sys, torch
from transformers import AutoImageProcessor, pipeline
from transformers import AutoModelForImageClassification, AutoModelForSemanticSegmentation
assert "{REPOSITORY}" not in sys.path
answers, shapes = [], []
tasks = ["image-classification", "image-segmentation"]
kinds = [AutoModelForImageClassification, AutoModelForSemanticSegmentation]
for task, kind, folder, image in zip(tasks, kinds, sys.argv[1::2], sys.argv[2::2]):
    model = kind.from_pretrained(folder, trust_remote_code=True)
    pipe = pipeline(task, model=model, image_processor=AutoImageProcessor.from_pretrained(folder))
    answers.append(pipe(image, top_k=5) if task == "image-classification" else pipe(image))
    shapes.append([list(level.shape) for level in model(torch.zeros(2, 3, 32, 32)).log_probs])
numpy.savez("found.npz", **{{entry["label"]: numpy.asarray(entry["mask"]) for entry in answers[1]}})
print(json.dumps([answers[0], shapes]))
"""
    words = [str(word) for pair in zip(folders, images, strict=True) for word in pair]
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    answer, shapes = json.loads(done.stdout.strip().splitlines()[-1])
    assert shapes == [[[2, 2], [2, 4], [2, 6]], [[2, 2, 8, 8], [2, 2, 8, 8], [2, 4, 8, 8]]]
    ours = pd.read_parquet(folders[0] / "predictions.parquet").iloc[5]
    assert [entry["label"] for entry in answer] == list(ours["top5_leaves"])
    assert [entry["score"] for entry in answer] == pytest.approx(list(ours["top5_probabilities"]), abs=0.02)
    mask = np.asarray(Image.open(folders[1] / "predictions" / "000002.png"))
    found, theirs = np.load(tmp_path / "found.npz"), np.full(mask.shape, -1)
    for name in found:
        theirs[found[name] > 0] = ["clean", "scratch", "crack", "hole"].index(name)
    assert (mask == theirs).mean() > 0.99  # the processor resizes with another library


def test_a_new_model_takes_the_place_of_all_files_of_an_old_one(tmp_path):
    backbone, _ = load_backbone("timm/test_resnet", pretrained=False, image_size=32)
    model = LabelTreeForImageClassification.build(backbone, TREE, "tree")
    stale = ["model.onnx", "model.onnx.data", "model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    kept = ["README.md", "notes.onnx.txt", "report.html"]
    for name in [*stale, *kept]:
        (tmp_path / name).write_text("old")
    save_model(model, image_processor(backbone.spec, "center", 1.0), tmp_path)
    files = {file.name for file in tmp_path.iterdir()}
    assert files.isdisjoint(stale) and files >= {*kept, "model.safetensors", "config.json"}


@pytest.mark.parametrize("mode", ["center", "squash"])
@pytest.mark.parametrize("crop_pct", [1.0, 0.875])
def test_saved_processor_prepares_images_as_evaluation_does(mode, crop_pct):
    spec = {"image_size": 32, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25], "interpolation": "bilinear"}
    pixels = np.random.default_rng(0).integers(0, 255, (6, 8, 3)).astype(np.uint8)
    image = Image.fromarray(pixels).resize((90, 70), Image.Resampling.BICUBIC)
    ours = EvaluationTransform(32, resize_mode=mode, crop_pct=crop_pct, interpolation="bilinear")
    expected = (ours(png(image)).float() / 255 - np.array(spec["mean"])[:, None, None]) / np.array(spec["std"])[
        :, None, None
    ]
    theirs = image_processor(spec, mode, crop_pct)(image, return_tensors="pt")["pixel_values"][0]
    assert theirs.shape == expected.shape
    assert (theirs - expected).abs().mean() < 0.02  # of values with a deviation of about 1
