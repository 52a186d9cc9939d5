"""Several views and several models: mean probabilities, and masks turned back rightly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import average_runs
import predict
import train_segmentation
import train_taxonomy
from common.model.backbones import load_backbone
from common.model.hierarchy import Hierarchy
from common.model.modeling import LabelTreeForImageClassification, LabelTreeForSemanticSegmentation
from common.predict.views import averaged, load_models, shown_size, views
from common.predict.windows import image_logits


def classifier(tree: Hierarchy, head: str = "tree", seed: int = 0) -> LabelTreeForImageClassification:
    torch.manual_seed(seed)
    backbone, _ = load_backbone("timm/test_vit", pretrained=False, image_size=32)
    model = LabelTreeForImageClassification.build(backbone, tree, head).eval()
    torch.nn.init.normal_(next(model.heads.parameters()), std=0.5)
    return model


def dense(tree: Hierarchy, head: str = "tree") -> LabelTreeForSemanticSegmentation:
    with torch.enable_grad():  # strides are found by gradients
        backbone, _ = load_backbone("timm/test_resnet", pretrained=False, image_size=32, pyramid=True)
    options = {"decoder": "upernet", "decoder_channels": 16}
    return LabelTreeForSemanticSegmentation.build(backbone, tree, head, **options).eval()


@pytest.fixture
def tree() -> Hierarchy:
    return Hierarchy(["genus", "species"], [["a", "b"], ["a1", "a2", "b1"]], [[None, None], [0, 0, 1]])


def level_probabilities(model, logits: torch.Tensor) -> list[torch.Tensor]:
    return [level.exp() for level in model.heads.log_probs(logits)]


@pytest.mark.parametrize("head", ["tree", "independent", "flat"])
@torch.no_grad()
def test_the_average_is_that_of_probabilities_over_models_and_views(tree, head):
    models = [classifier(tree, head, seed) for seed in (0, 1)]
    pixels = torch.randn(3, 3, shown_size(32, "five_crop"), shown_size(32, "five_crop"))
    side, margin = 32, pixels.shape[-1] - 32
    corners = [(0, 0), (0, margin), (margin, 0), (margin, margin), (margin // 2, margin // 2)]
    parts = [
        level_probabilities(model, model(pixels[:, :, y : y + side, x : x + side], logits_only=True))
        for model in models
        for y, x in corners
    ]
    found = level_probabilities(models[0], averaged(models, "five_crop")(pixels, logits_only=True))
    for level in range(2):
        expected = torch.stack([part[level] for part in parts]).mean(0)
        torch.testing.assert_close(found[level], expected, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_views_of_a_symmetric_image_change_nothing(tree):
    half = torch.randn(2, 3, 32, 16)
    pixels = torch.cat([half, half.flip(-1)], -1)
    model = classifier(tree)
    plain = level_probabilities(model, model(pixels, logits_only=True))
    mirrored = level_probabilities(model, averaged([model], "hflip")(pixels, logits_only=True))
    for one, other in zip(plain, mirrored, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert averaged([model], "none") is model


@pytest.mark.parametrize("crop", [None, 32])
@torch.no_grad()
def test_masks_of_turned_images_are_turned_back(tree, crop):
    """Against a loop that turns arrays with NumPy; the image has no symmetry."""
    model, pixels = dense(tree), torch.randn(1, 3, 32, 48 if crop else 32)
    windows = {"eval_crop": crop, "eval_stride": 16, "batch_size": 2}
    found = image_logits(averaged([model], "d4"), pixels, lambda part: part, **windows)
    if crop:  # of each window by itself; without overlap in rows, and blended in columns
        assert found.shape == (1, 3, 8, 12) and torch.isfinite(found).all()
        return
    total = 0
    for turn in range(4):
        for mirror in (False, True):
            image = np.rot90(pixels.numpy(), turn, (2, 3))
            image = image[..., ::-1] if mirror else image
            leaves = model(torch.from_numpy(image.copy()), logits_only=True).softmax(1).numpy()
            leaves = leaves[..., ::-1] if mirror else leaves
            total = total + np.rot90(leaves, -turn, (2, 3)) / 8
    np.testing.assert_allclose(found.exp().numpy(), total, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(found.exp(), model(pixels, logits_only=True).softmax(1), atol=1e-4)


def test_eight_views_are_eight_and_undone(tree):
    image = torch.arange(12.0).view(1, 1, 3, 4)
    shown = [show(image) for show, _ in views("d4", 4)]
    assert len({str(view.tolist()) for view in shown}) == 8
    assert all(torch.equal(undo(show(image)), image) for show, undo in views("d4", 4))


def test_training_evaluation_and_prediction_agree_on_views(options, tmp_path: Path):
    """--eval_only and predict.py find the setting in the model."""
    trained = train_taxonomy.main(options(max_train_steps=4, tta="five_crop"))["eval"]
    saved = {"eval_only": True, "model_name_or_path": tmp_path / "out", "no_pretrained": None}
    again = train_taxonomy.main(options(**saved, output_dir=tmp_path / "again"))["eval"]
    assert again["levels"] == trained["levels"] and again["loss"] == pytest.approx(trained["loss"])
    mirrored = train_taxonomy.main(options(**saved, output_dir=tmp_path / "mirrored", tta="hflip"))["eval"]
    assert mirrored["loss"] != pytest.approx(trained["loss"], rel=1e-6)
    data = options()[options().index("--dataset_name") + 1]
    words = [str(tmp_path / "out"), data, "--split", "validation", "--dataloader_num_workers", "0"]
    found = predict.main([*words, "--output_dir", str(tmp_path / "found")])["predictions"]
    for level, row in trained["levels"].items():
        assert found["accuracy"][level] == pytest.approx(row["accuracy"])


def test_masks_can_be_evaluated_in_views(dense_options, tmp_path: Path):
    plain = train_segmentation.main(dense_options(max_train_steps=2))["eval"]
    assert plain["loss"] > 0
    turned = train_segmentation.main(dense_options(max_train_steps=2, tta="d4", output_dir=tmp_path / "turned"))[
        "eval"
    ]
    assert turned["loss"] != plain["loss"]


def save(model, folder: Path, **evaluation: object) -> Path:
    model.config.evaluation = {"resize_mode": "center", "crop_pct": 1.0, "decoding": "leaf", **evaluation}
    model.save_pretrained(folder)
    return folder


def test_several_models_predict_together(tree, tmp_path: Path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    folders = [str(save(classifier(tree, seed=seed), tmp_path / str(seed))) for seed in (0, 1)]
    shares = []
    for number, words in enumerate([folders[:1], folders[1:], [folders[0], "--more_models", folders[1]]]):
        first, *more = words
        out = tmp_path / f"out{number}"
        rest = ["--format", "jsonl", "--top_k", "3", "--dataloader_num_workers", "0", "--output_dir", str(out)]
        predict.main([first, str(tmp_path / "a.png"), *more, *rest])
        line = json.loads((out / "predictions.jsonl").read_text())
        shares.append({entry["leaf"]: entry["probability"] for entry in line["top"]})
    for leaf, share in shares[2].items():
        assert share == pytest.approx((shares[0][leaf] + shares[1][leaf]) / 2, abs=2e-6)


def test_models_that_differ_are_refused(tree, tmp_path: Path):
    other = Hierarchy(["genus", "species"], [["a", "b"], ["a1", "a2", "b2"]], [[None, None], [0, 0, 1]])
    first = save(classifier(tree), tmp_path / "first")
    for what, model, evaluation in (
        ("label tree", classifier(other), {}),
        ("head", classifier(tree, "independent"), {}),
        ("setting of evaluation", classifier(tree), {"crop_pct": 0.9}),
    ):
        with pytest.raises(ValueError, match=f"another {what} than .*first"):
            load_models([first, save(model, tmp_path / "second", **evaluation)])


# ---- average_runs.py


def test_the_average_of_two_runs_is_evaluated_and_saved(options, tmp_path: Path):
    runs = [tmp_path / "a", tmp_path / "b"]
    for seed, run in enumerate(runs):
        train_taxonomy.main(
            options(output_dir=run, seed=seed, max_train_steps=2, model_name_or_path="timm/test_resnet")
        )
    results = average_runs.main([*map(str, runs), "--output_dir", str(tmp_path / "soup")])
    first, second, soup = load_models([*runs, tmp_path / "soup"])
    weights = [dict(model.named_parameters()) for model in (first, second, soup)]
    for name, value in weights[2].items():
        torch.testing.assert_close(value, (weights[0][name] + weights[1][name]) / 2)
    buffers = [dict(model.named_buffers()) for model in (first, second, soup)]
    name = next(name for name in buffers[2] if name.endswith("running_var"))
    assert not torch.allclose(buffers[2][name], (buffers[0][name] + buffers[1][name]) / 2, rtol=1e-3)  # estimated anew
    assert json.loads((tmp_path / "soup" / "all_results.json").read_text())["eval"] == results["eval"]
    assert "average of the weights of 2 runs" in (tmp_path / "soup" / "README.md").read_text()
    assert soup.config.calibration
    assert "AutoModelForImageClassification" in json.loads((tmp_path / "soup" / "config.json").read_text())["auto_map"]


@pytest.mark.slow
def test_a_greedy_soup_of_masks_is_scored_by_the_script(dense_options, tmp_path: Path):
    run = tmp_path / "a"
    words = dense_options(output_dir=run, max_train_steps=2, model_name_or_path="timm/test_convnext")
    alone = train_segmentation.main(words)["eval"]
    words = [str(run), str(run), "--greedy", "--output_dir", str(tmp_path / "soup")]
    results = average_runs.main(words)["eval"]  # of a run with itself: nothing gets worse, or better
    assert results["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    assert "average of the weights of 2 runs: a, a" in (tmp_path / "soup" / "README.md").read_text()


def test_a_greedy_soup_keeps_what_does_not_hurt():
    values = {(0,): 1.0, (1,): 3.0, (2,): 2.0, (1, 2): 2.5, (1, 0): 3.0}
    assert average_runs.greedy(3, lambda chosen: values[tuple(chosen)]) == [1, 0]


def test_other_architectures_have_no_average(tree):
    with pytest.raises(ValueError, match=r"b has another architecture than a \("):
        average_runs.check_architectures(["a", "b"], [classifier(tree), dense(tree)])
