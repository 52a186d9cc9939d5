"""Saved models as others use them: pipelines, Transformers' Trainer, torch.export, half precision, features."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SegformerImageProcessor, Trainer, TrainingArguments, pipeline

from common.model.backbones import load_backbone
from common.model.hierarchy import Hierarchy
from common.model.modeling import (
    LabelTreeFeatures,
    LabelTreeForImageClassification,
    LabelTreeForSemanticSegmentation,
    LabelTreeModel,
)
from common.predict.windows import Resampler, dense_labels
from common.publish.models import image_processor, load_saved_model

TREE = Hierarchy(["kind", "fine"], [["x", "y"], list("abc")], [[None, None], [0, 0, 1]])
GAPS = Hierarchy(["kind", "fine"], [["x", "y"], list("abc")], [[None, None], [0, 0, None]])
X = -100


@torch.enable_grad()  # it finds out what the pyramid depends on
def build(tree: Hierarchy = TREE, head: str = "tree", dense: bool = False, **options) -> LabelTreeModel:
    torch.manual_seed(0)
    name = "timm/test_resnet" if dense else "timm/test_vit"
    backbone, _ = load_backbone(name, pretrained=False, image_size=32, pyramid=dense)
    kind = LabelTreeForSemanticSegmentation if dense else LabelTreeForImageClassification
    if dense:
        options |= {"decoder": "unet", "decoder_channels": 16}
    model = kind.build(backbone, tree, head, **options).eval()
    torch.nn.init.normal_(model.heads.weight)
    return model


def pixels(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dense", [False, True])
@torch.no_grad()
def test_pipelines_take_any_batch_size_and_know_the_model(dense, caplog):
    model = build(dense=dense)
    processor = image_processor(model.config.backbone, "squash", 1.0)
    if dense:
        processor = SegformerImageProcessor(size={"height": 32, "width": 32})
    noise = np.random.default_rng(0).integers(0, 255, (7, 40, 30, 3)).astype(np.uint8)
    images = [Image.fromarray(pixels) for pixels in noise]
    with caplog.at_level(logging.ERROR, "transformers"):
        logging.getLogger("transformers").propagate = True
        predict = pipeline(f"image-{'segmentation' if dense else 'classification'}", model, image_processor=processor)
    assert "is not supported" not in caplog.text
    single = [[entry["label"] for entry in predict(image)] for image in images]
    for batch_size in (2, 4, 7):
        found = predict(images, batch_size=batch_size)
        assert [[entry["label"] for entry in answer] for answer in found] == single


def test_a_tree_of_one_leaf_says_one():
    model = build(Hierarchy(["only"], [["a"]], [[None]]))
    processor = image_processor(model.config.backbone, "squash", 1.0)
    answer = pipeline("image-classification", model, image_processor=processor)(Image.new("RGB", (9, 9)))
    assert answer == [{"label": "a", "score": 1.0}]


@pytest.mark.parametrize("decoding", ["leaf", "levels"])
@pytest.mark.parametrize("head", ["tree", "independent"])
@pytest.mark.parametrize("dense", [False, True])
@torch.no_grad()
def test_decode_gives_paths_of_the_tree(head, decoding, dense):
    model = build(GAPS, head, dense, evaluation={"decoding": decoding})
    output = model(pixels(8))
    answers = model.decode(output)
    assert model.hierarchy.is_path(answers.path.unbind(1)).all()
    scores = output.log_probs if decoding == "leaf" else [level.exp() for level in output.log_probs]
    totals = []
    for level, index in GAPS.leaves:
        known = [(depth, label) for depth, label in enumerate(GAPS.path(level, index)) if label >= 0]
        weight = 2 / len(known) if decoding == "leaf" and head == "independent" else 1
        totals.append(weight * sum(scores[depth][:, label] for depth, label in known))
    if head == "independent" or decoding == "levels":
        assert torch.equal(answers.leaf, torch.stack(totals, 1).argmax(1))
    else:
        assert torch.equal(answers.leaf, output.logits.argmax(1))
    for level, log_probs in enumerate(output.log_probs):
        label, chance = answers.path[:, level], answers.probabilities[:, level]
        expected = log_probs.exp().gather(1, label.clamp(min=0)[:, None])[:, 0]
        assert torch.equal(chance, expected.where(label >= 0, 0))


@pytest.mark.parametrize(("head", "decoding"), [("tree", "leaf"), ("independent", "levels")])
@torch.no_grad()
def test_decode_answers_for_every_pixel_as_evaluation_does(head, decoding):
    model = build(GAPS, head, True, evaluation={"decoding": decoding})
    images = pixels(1)
    answers = model.decode(model(images), size=(53, 41))
    scores = model.path_scores(model(images, logits_only=True))[0]
    resampler = Resampler(images.shape[2:], (53, 41), 4, "cpu")
    (leaf,) = dense_labels(resampler, [scores], lambda parts: [parts[0].argmax(1)])
    assert torch.equal(answers.leaf[0], leaf.long()) and len(leaf.unique()) > 1
    assert answers.path.shape == answers.probabilities.shape == (1, GAPS.num_levels, 53, 41)


@torch.no_grad()
def test_decode_backs_off_at_the_stored_thresholds():
    stored = {"targets": [0.5, 0.9], "thresholds": [[0.0, 0.0], [0.0, None]]}
    model = build(calibration=stored)
    output = model(pixels())
    assert model.decode(output).level.tolist() == model.decode(output, 0.4).level.tolist() == [1, 1, 1]
    cautious = model.decode(output, target_precision=0.8)
    assert cautious.level.tolist() == [0, 0, 0]
    answer = cautious.describe()[0]
    assert answer["answer"]["text"] == f"kind {answer['levels']['kind']['name']}"
    with pytest.raises(ValueError, match=r"up to 0.9, not 0.95"):
        model.decode(output, target_precision=0.95)
    with pytest.raises(ValueError, match="no calibration"):
        build().decode(output, target_precision=0.8)


# ---- fine-tuning by others


@pytest.mark.parametrize("head", ["tree", "independent"])
@pytest.mark.parametrize("dense", [False, True])
def test_loss_of_leaves_and_paths(head, dense):
    model = build(head=head, dense=dense)
    with torch.no_grad():
        output = model(pixels(), labels=torch.zeros((3, 8, 8) if dense else 3, dtype=torch.long))
    kind, fine = output.log_probs
    expected = -(fine[:, 0].mean() if head == "tree" else (fine[:, 0].mean() + kind[:, 0].mean()) / 2)
    assert output.loss.item() == pytest.approx(expected.item(), abs=1e-5)
    paths = torch.tensor([[0, 0], [1, X], [X, X]])  # one known to its kind, one not at all
    paths = paths[:, :, None, None].expand(-1, -1, 8, 8) if dense else paths
    with torch.no_grad():
        loss = model(pixels(), labels=paths).loss
    chosen = [fine[0, 0], kind[1, 1]] + ([kind[0, 0]] if head == "independent" else [])
    assert loss.item() == pytest.approx(-torch.stack([part.mean() for part in chosen]).mean().item(), abs=1e-5)
    with pytest.raises(ValueError, match="a label 3, but there are 3"):
        model(pixels(), labels=torch.full((3, 8, 8) if dense else (3,), 3))
    with pytest.raises(ValueError, match="labels are leaves"):
        model(pixels(), labels=torch.zeros(3, 5))


def test_trainer_of_transformers(tmp_path):
    model = build(head="tree")
    data = [{"pixel_values": image, "labels": index % 3} for index, image in enumerate(pixels(12))]
    settings = {"per_device_train_batch_size": 4, "num_train_epochs": 2, "report_to": [], "use_cpu": True}
    arguments = TrainingArguments(str(tmp_path), **settings, gradient_checkpointing=True, learning_rate=1e-2)
    before = model.heads.weight.detach().clone()
    trainer = Trainer(model, arguments, train_dataset=data, eval_dataset=data)
    assert np.isfinite(trainer.train().training_loss) and not torch.equal(before, model.heads.weight)
    assert trainer.predict(data).predictions.shape == (12, 3)


@pytest.mark.parametrize("changes", [{"num_labels": 5}, {"id2label": {0: "u", 1: "v", 2: "w"}}])
def test_another_tree_is_an_error_that_says_what_to_do(tmp_path, changes):
    build().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"3 leaves \(a, b, c, ...\).*--model_name_or_path"):
        LabelTreeForImageClassification.from_pretrained(tmp_path, **changes)


@torch.no_grad()
def test_attention_features_and_tuples(tmp_path):
    model = build()
    model.save_pretrained(tmp_path)
    for kind, fused in (("eager", False), ("sdpa", True)):
        loaded = LabelTreeForImageClassification.from_pretrained(tmp_path, attn_implementation=kind).eval()
        assert {part.fused_attn for part in loaded.modules() if hasattr(part, "fused_attn")} == {fused}
        assert torch.allclose(loaded(pixels()).logits, model(pixels()).logits, atol=1e-5)
    with pytest.raises(ValueError, match="flash_attention_2"):
        LabelTreeForImageClassification.from_pretrained(tmp_path, attn_implementation="flash_attention_2")
    features = LabelTreeFeatures.from_pretrained(tmp_path).eval()(pixels()).pooler_output
    assert torch.equal(model.heads(features), model(pixels()).logits)
    assert '"AutoModel": "encoder_models.LabelTreeFeatures"' in (tmp_path / "config.json").read_text()
    logits, log_probs = model(pixels(), return_dict=False)
    assert torch.equal(logits, model(pixels()).logits) and len(log_probs) == 2


@pytest.mark.parametrize("head", ["tree", "independent"])
@torch.no_grad()
def test_export_leaves_nothing_in_the_model(head):
    model, example = build(GAPS, head), pixels()
    program = torch.export.export(model, (example,))
    expected = build(GAPS, head)(example)
    for found in (model(example), program.module()(example)):
        for ours, theirs in zip(found.log_probs, expected.log_probs, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision(tmp_path, dtype):
    build().to(dtype).save_pretrained(tmp_path)
    assert load_saved_model(str(tmp_path)).dtype == torch.float32
    half = LabelTreeForImageClassification.from_pretrained(tmp_path).eval()
    assert half.dtype == dtype and half(pixels()).log_probs[0].dtype == torch.float32  # images are float32
