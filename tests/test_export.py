"""ONNX files that compute what the model does, or are absent."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from test_saved_models import save

import export_onnx as script
import train_taxonomy
from common.model.backbones import load_backbone
from common.model.hierarchy import Hierarchy
from common.model.modeling import LabelTreeForSemanticSegmentation, LabelTreeModel
from common.publish import onnx_export as export

TREE = Hierarchy(
    ["kind", "group", "fine"], [["x", "y"], ["p", "q", "r"], list("abcd")], [[None] * 2, [0, 1, 1], [0, 0, 1, None]]
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A dense model with gaps in its tree, exported by the script once: the folder, and what torch.onnx made of it."""
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("dense") / "model"
    torch.manual_seed(0)
    backbone, _ = load_backbone("timm/test_resnet", pretrained=False, image_size=64, pyramid=True)
    model = LabelTreeForSemanticSegmentation.build(
        backbone, TREE, "independent", decoder="unet", decoder_channels=16, evaluation={"eval_crop": None}
    )
    model.save_pretrained(folder)
    programs, make = [], torch.onnx.export
    with pytest.MonkeyPatch.context() as patch:

        def export_once(*words, **options):
            programs.append(make(*words, **options))
            return programs[0]

        patch.setattr(torch.onnx, "export", export_once)
        script.main([str(folder), "--output", str(folder.parent / "dense.onnx")])
    return folder, programs[0]


def outputs_of(file: Path, model: LabelTreeModel, pixels: torch.Tensor) -> tuple[list[str], list[np.ndarray]]:
    """Names and values that a file computes, after making sure that the model computes the same."""
    session = pytest.importorskip("onnxruntime").InferenceSession(str(file))
    with torch.no_grad():
        output = model(pixels)
    found = session.run(None, {"pixel_values": pixels.numpy()})
    for ours, theirs in zip(found, [output.logits.log_softmax(1), *output.log_probs], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    stored = session.get_modelmeta().custom_metadata_map["hierarchy"]
    assert Hierarchy.from_dict(json.loads(stored)) == model.hierarchy
    return [output.name for output in session.get_outputs()], found


@pytest.mark.slow
def test_dense_models_with_gaps_in_the_tree(exported):
    folder, _ = exported
    assert {file.name for file in folder.parent.iterdir()} == {"model", "dense.onnx"}
    model = LabelTreeForSemanticSegmentation.from_pretrained(folder).eval()
    names, values = outputs_of(folder.parent / "dense.onnx", model, torch.randn(2, 3, 64, 64))
    assert names == ["leaf_log_probs", "log_probs_kind", "log_probs_group", "log_probs_fine"]
    assert [part.shape[1] for part in values] == [TREE.num_leaves, 2, 3, 4]


@pytest.mark.slow
def test_a_file_that_computes_something_else_is_not_kept(exported, monkeypatch):
    folder, program = exported
    monkeypatch.setattr(torch.onnx, "export", lambda *words, **options: program)
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(ValueError, match="differ by up to"):
        script.main([str(folder)])
    assert not list(folder.glob("*.onnx*")) and not list(folder.glob(".*"))


@pytest.mark.slow
def test_large_models_have_a_second_file_that_moves_along(exported, tmp_path, monkeypatch):
    folder, program = exported
    monkeypatch.setattr(torch.onnx, "export", lambda *words, **options: program)
    monkeypatch.setattr("torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD", 0)
    script.main([str(folder), "--output", str(tmp_path / "large.onnx")])
    assert {file.name for file in tmp_path.iterdir()} == {"large.onnx", "large.onnx.data"}
    shutil.copytree(tmp_path, tmp_path / "elsewhere")
    model = LabelTreeForSemanticSegmentation.from_pretrained(folder).eval()
    outputs_of(tmp_path / "elsewhere" / "large.onnx", model, torch.randn(1, 3, 64, 64))
    monkeypatch.undo()
    monkeypatch.setattr(torch.onnx, "export", lambda *words, **options: program)
    script.main([str(folder), "--output", str(tmp_path / "large.onnx")])  # small again: the second one is stale
    assert not (tmp_path / "large.onnx.data").exists()


@pytest.mark.slow
def test_a_backbone_of_transformers_is_exported(tmp_path):
    pytest.importorskip("onnxruntime")
    folder, _ = save("beit", False, tmp_path)
    script.main([str(folder)])
    assert (folder / "model.onnx").is_file()


@pytest.mark.slow
def test_training_exports_the_model_that_it_saved(options, tmp_path):
    train_taxonomy.main(options(export="onnx", max_train_steps=2))
    model = train_taxonomy.LabelTreeForImageClassification.from_pretrained(tmp_path / "out").eval()
    names, _ = outputs_of(tmp_path / "out" / "model.onnx", model, torch.randn(5, 3, 32, 32))
    assert names == ["leaf_log_probs", "log_probs_order", "log_probs_family", "log_probs_species"]


def test_missing_packages_are_named_before_training(options, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(ValueError, match="needs onnxscript: pip install -r requirements-onnx.txt"):
        train_taxonomy.main(options(export="onnx"))
    with pytest.raises(ValueError, match="needs onnxscript"):
        script.main([str(tmp_path)])


def test_mistakes(tmp_path):
    with pytest.raises(ValueError, match="no folder; say with --output"):
        script.main(["someone/something"])
    with pytest.raises(ValueError, match="There is no folder"):
        script.main([str(tmp_path), "--output", str(tmp_path / "no" / "model.onnx")])
    with pytest.raises(ValueError, match="Cannot load the model|holds no model"):
        script.main([str(tmp_path)])
