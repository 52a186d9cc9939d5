"""predict.py with dense models: the same masks as evaluation, and what is written beside them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from conftest import encode, words_of
from PIL import Image
from transformers import AutoImageProcessor, SegformerImageProcessor

import predict
import train_segmentation
from common.labels.hierarchy_files import load_hierarchy
from common.model.backbones import load_backbone
from common.model.modeling import LabelTreeForSemanticSegmentation
from common.options.prediction import PredictArguments
from common.predict.masks import MaskPredictor, plain_stem
from common.predict.parts import PredictionParts
from common.publish.models import load_saved_model, save_model

LEVELS = ["binary", "coarse", "fine"]


def build(tiles: Path, folder: Path, image_size: int = 64, head: str = "tree", **evaluation: object) -> Path:
    """A model that was never trained, but answers differently from pixel to pixel."""
    torch.manual_seed(0)
    tree, _ = load_hierarchy(tiles / "hierarchy.yaml")
    backbone, _ = load_backbone("timm/test_resnet", pretrained=False, image_size=image_size, pyramid=True)
    settings = {"resize_mode": "squash", "eval_crop": None, "eval_stride": None, "resize_longer": None}
    model = LabelTreeForSemanticSegmentation.build(
        backbone,
        tree,
        head,
        decoder="upernet",
        decoder_channels=16,
        evaluation={**settings, "decoding": "leaf", **evaluation},
    )
    torch.nn.init.normal_(model.heads.weight)
    folder.mkdir()
    colours = {"image_mean": model.config.backbone["mean"], "image_std": model.config.backbone["std"]}
    save_model(model, SegformerImageProcessor(size={"height": image_size, "width": image_size}, **colours), folder)
    return folder


@pytest.fixture(scope="module")
def model(tiles, tmp_path_factory) -> Path:
    return build(tiles, tmp_path_factory.mktemp("dense") / "model")


def command(model: Path, *inputs: object, **options: object) -> list[str]:
    return [str(model), *map(str, inputs), *words_of({"dataloader_num_workers": 0, **options})]


def masks(folder: Path) -> list[Image.Image]:
    return [Image.open(path) for path in sorted(folder.glob("*.png"))]


def same_masks(ours: Path, theirs: Path) -> None:
    pairs = list(zip(masks(ours), masks(theirs), strict=True))
    assert len(pairs) == 13
    for mine, expected in pairs:
        assert mine.mode == "P" and mine.getpalette() == expected.getpalette()
        # In batches of another size numbers are rounded differently, which decides between equals.
        assert (np.asarray(mine) != np.asarray(expected)).mean() < 1e-3
    assert len({value for mask, _ in pairs for value in np.unique(np.asarray(mask))}) > 1, (
        "the model predicts one class only"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"resize_mode": "fit", "head": "independent", "decoding": "levels"},
        {"image_size": 32, "eval_crop": 32, "eval_stride": 20},
    ],
)
def test_equals_evaluation(tiles, tmp_path, changes):
    saved = build(tiles, tmp_path / "model", **changes)
    words = {"eval_only": True, "model_name_or_path": saved, "dataset_name": tiles, "output_dir": tmp_path / "eval"}
    words |= {"save_predictions": True, "no_report": True, "dataloader_num_workers": 0}
    train_segmentation.main(words_of(words))
    predict.main(command(saved, tiles, split="validation", output_dir=tmp_path / "out", per_device_eval_batch_size=5))
    same_masks(tmp_path / "out" / "masks", tmp_path / "eval" / "predictions")
    if not changes:  # nor does the model card's code, which shows whole images
        loaded, processor = load_saved_model(str(saved)), AutoImageProcessor.from_pretrained(saved)
        image = datasets.load_from_disk(tiles)["validation"][0]["image"].convert("RGB")
        with torch.no_grad():
            output = loaded.eval()(**processor(image, return_tensors="pt"))
        answers = loaded.decode(output, size=image.size[::-1])
        assert (answers.leaf[0].numpy() != np.asarray(masks(tmp_path / "out" / "masks")[0])).mean() < 5e-3


@pytest.mark.parametrize("dtype", [pytest.param(torch.bfloat16, marks=pytest.mark.slow), torch.float16])
def test_a_model_saved_in_half_precision(tiles, model, tmp_path, dtype):
    """Predicted, evaluated and trained on, in float32."""
    half = tmp_path / "half"
    shutil.copytree(model, half)
    LabelTreeForSemanticSegmentation.from_pretrained(model).to(dtype).save_pretrained(half)
    assert json.loads((half / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    predict.main(command(half, tiles, split="validation", output_dir=tmp_path / "out"))
    words = {"model_name_or_path": half, "dataset_name": tiles, "no_report": True, "dataloader_num_workers": 0}
    evaluate = {**words, "eval_only": True, "save_predictions": True, "output_dir": tmp_path / "eval"}
    train_segmentation.main(words_of(evaluate))
    same_masks(tmp_path / "out" / "masks", tmp_path / "eval" / "predictions")
    train = {**words, "max_train_steps": 1, "max_eval_samples": 2, "output_dir": tmp_path / "on", "export": "none"}
    results = train_segmentation.main(words_of({**train, "per_device_train_batch_size": 2}))
    assert np.isfinite(results["train"]["loss"]) and load_saved_model(str(tmp_path / "on")).dtype == torch.float32


def test_areas_and_overlays(tiles, model, tmp_path):
    options = {"overlay_size": 40, "mm_per_pixel": 0.5, "format": ["coco", "geojson"]}
    summary = predict.main(command(model, tiles, split="validation", output_dir=tmp_path, **options))
    areas = pd.read_csv(tmp_path / "areas.csv")
    assert areas["mm2"].tolist() == (areas["pixels"] / 4).tolist()
    objects = json.loads((tmp_path / "coco.json").read_text())
    leaves = {entry["id"]: entry["name"] for entry in objects["categories"]}
    found = pd.DataFrame(objects["annotations"]).groupby(["image_id", "category_id"])["area"].sum()
    fine = areas[areas["level"] == "fine"].set_index(["row", "class"])["pixels"]
    assert all(fine[row, leaves[label]] == area for (row, label), area in found.items())
    assert len(list((tmp_path / "geojson").glob("*.geojson"))) == len(objects["images"]) == 13
    tree, _ = load_hierarchy(tiles / "hierarchy.yaml")
    rows = datasets.load_from_disk(tiles)["validation"]
    assert len(areas) == 13 * sum(tree.num_classes)
    for row, part in areas.groupby("row"):
        leaf = np.array(Image.open(tmp_path / part["mask"].iloc[0]))
        assert leaf.shape == rows[row]["image"].size[::-1]
        lifted = tree.lift(torch.from_numpy(leaf))
        for level, name in enumerate(LEVELS):
            here = part[part["level"] == name]
            counts = [int((lifted[level] == label).sum()) for label in range(tree.num_classes[level])]
            assert here["class"].tolist() == list(tree.names[level]) and here["pixels"].tolist() == counts
            assert here["share"].tolist() == pytest.approx([count / leaf.size for count in counts], abs=1e-6)
        overlay = Image.open(tmp_path / "overlays" / f"{Path(part['mask'].iloc[0]).stem}.jpg")
        assert max(overlay.size) == 40
    shares = areas.groupby(["level", "class"])["pixels"].sum() / summary["num_pixels"]
    for level in LEVELS:
        assert summary["areas"][level] == pytest.approx(shares[level].to_dict())


def test_overlays_leave_the_background_as_it_is(tiles, model, tmp_path):
    loaded = load_saved_model(str(model))
    args = PredictArguments(output_dir=tmp_path, overlay_size=8)
    predictor = MaskPredictor(args, Accelerator(cpu=True), [loaded])
    picture = np.full((4, 4, 3), 100, dtype=np.uint8)
    leaf = np.zeros((8, 8), dtype=np.uint8)
    leaf[:4] = 2  # a crack above, clean below
    painted = predictor.overlay(picture, leaf)
    assert (painted[2:] == 100).all()
    assert (painted[:2] == (100 + predictor.colours[2].astype(int)) // 2).all()


def test_windows_on_request(tiles, model, tmp_path):
    """A model that was shown whole images, and images of any size; other ways are other predictions."""
    for name, options in (("whole", {}), ("windows", {"eval_crop": 32, "eval_stride": 24})):
        predict.main(command(model, tiles, split="validation", output_dir=tmp_path / name, **options))
    pairs = zip(masks(tmp_path / "whole" / "masks"), masks(tmp_path / "windows" / "masks"), strict=True)
    sizes = [(first.size == second.size, first.tobytes() == second.tobytes()) for first, second in pairs]
    assert all(size for size, _ in sizes) and not all(same for _, same in sizes)
    with pytest.raises(ValueError, match="differ in: how images are shown"):
        predict.main(command(model, tiles, split="validation", output_dir=tmp_path / "whole", eval_crop=32))
    with pytest.raises(ValueError, match="multiples of 4"):
        predict.main(command(model, tiles, split="validation", output_dir=tmp_path / "whole", eval_crop=33))


def test_resumes_after_a_kill_and_lists_broken_images(tiles, model, tmp_path, monkeypatch):
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, row in enumerate(datasets.load_from_disk(tiles)["validation"]):
        row["image"].save(folder / f"{index:02}.png")
    (folder / "04.png").write_bytes(encode(np.zeros((9, 9, 3), np.uint8))[:40])
    predict.main(command(model, folder, output_dir=tmp_path / "whole"))
    plain = PredictionParts.write
    calls = []

    def killed(self, part, lines):
        calls.append(part)
        if len(calls) == 5:
            raise KeyboardInterrupt
        plain(self, part, lines)

    monkeypatch.setattr(PredictionParts, "write", killed)
    words = command(model, folder, output_dir=tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        predict.main(words)
    assert predict.main(words)["num_broken"] == 1
    for file in ("areas.csv", "problems.csv", "summary.json"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert pd.read_csv(tmp_path / "out" / "problems.csv")["row"].tolist() == [4]
    for kind in ("masks", "overlays"):
        files = sorted(path.name for path in (tmp_path / "out" / kind).iterdir())
        assert len(files) == 12 and files[0].startswith("000000_00.")
        assert files == sorted(path.name for path in (tmp_path / "whole" / kind).iterdir())


def test_names_from_data_do_not_become_paths():
    for name in ("../../x.png", "/etc/passwd", "a/b\\c d.tif", "", ".", "..", "x" * 300):
        stem = plain_stem(name)
        assert "/" not in stem and "\\" not in stem and 0 < len(stem) <= 80
        assert Path(f"out/masks/000001_{stem}.png").resolve().parent == Path("out/masks").resolve()


def test_options_of_the_other_kind_are_told(tiles, model, tmp_path, capfd):
    predict.main(command(model, tiles, split="validation", output_dir=tmp_path, top_k=3, min_confidence=0.5))
    told = capfd.readouterr().err
    assert "--top_k has no effect: the model predicts masks" in told and "--min_confidence has no effect" in told
    assert json.loads((tmp_path / "summary.json").read_text())["num_images"] == 13
