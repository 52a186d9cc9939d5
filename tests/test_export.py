"""ONNX files that compute what the model does, or are not there."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import export_onnx as script
import train_taxonomy
from common.model.backbones import load_backbone
from common.model.hierarchy import Hierarchy
from common.model.modeling import LabelTreeForSemanticSegmentation
from common.publish import onnx_export as export

TREE = Hierarchy(
    ["kind", "group", "fine"], [["x", "y"], ["p", "q", "r"], list("abcd")], [[None] * 2, [0, 1, 1], [0, 0, 1, None]]
)


def test_training_exports_the_model_that_it_saved(options, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    train_taxonomy.main(options(export="onnx", max_train_steps=2))
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    assert [output.name for output in session.get_outputs()] == [
        *("leaf_log_probs", "log_probs_order", "log_probs_family", "log_probs_species")
    ]
    pixels = torch.randn(5, 3, 32, 32)
    model = train_taxonomy.LabelTreeForImageClassification.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        expected = model(pixels)
    found = session.run(None, {"pixel_values": pixels.numpy()})
    for ours, theirs in zip(found, [expected.logits.log_softmax(1), *expected.log_probs], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    stored = session.get_modelmeta().custom_metadata_map["hierarchy"]
    assert Hierarchy.from_dict(json.loads(stored)) == model.hierarchy


def dense_model(tmp_path):
    torch.manual_seed(0)
    backbone, _ = load_backbone("timm/test_resnet", pretrained=False, image_size=64, pyramid=True)
    model = LabelTreeForSemanticSegmentation.build(
        backbone, TREE, "independent", decoder="unet", decoder_channels=16, evaluation={"eval_crop": None}
    )
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_dense_models_with_gaps_in_the_tree(tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    path = script.main([str(dense_model(tmp_path)), "--output", str(tmp_path / "dense.onnx")])
    assert path == tmp_path / "dense.onnx" and path.is_file()
    assert "differ by at most" in capsys.readouterr().out


def test_a_file_that_computes_something_else_is_not_kept(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    folder = dense_model(tmp_path)
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(ValueError, match="differ by up to"):
        script.main([str(folder)])
    assert not list(folder.glob("*.onnx*")) and not list(folder.glob(".*"))


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
