"""Saved models for programs without Python or PyTorch: ONNX, checked against the model that it was made from."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import nn

from ..model.modeling import LabelTreeModel
from ..system.files import naming

NEEDED = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-3
"""Largest difference of a log-probability that the check lets pass"""


class _LogProbabilities(nn.Module):
    """Normalised images -> log-probabilities of the leaves, then those of every level."""

    def __init__(self, model: LabelTreeModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        output = self.model(pixel_values)
        return output.logits.float().log_softmax(1), *output.log_probs


def check_export_packages() -> None:
    """ValueError, with what to install, if ONNX cannot be written or checked here."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ValueError(f"Exporting to ONNX needs {', '.join(missing)}: pip install -r requirements-onnx.txt")


def export_onnx(model: LabelTreeModel, path: str | Path) -> float:
    """Write a model, which is moved to the CPU, as ONNX; the largest difference of a log-probability is returned.

    Its input is ``pixel_values``, float32 (batch, 3, side, side), resized and normalised as preprocessor_config.json
    says; the batch may have any size. Its outputs are ``leaf_log_probs`` and, per level, ``log_probs_LEVEL``,
    float32 (batch, classes, ...). The label tree is in the file's metadata, as JSON under ``hierarchy``. What it
    computes for one and for three images is checked.

    Raises:
        ValueError: if a package is missing, or the file computes something else than the model.
    """
    check_export_packages()
    model.set_attn_implementation("eager")  # the fused kinds of some encoders cannot be exported
    wrapped = _LogProbabilities(model.float().cpu()).eval()
    evaluation = model.config.evaluation or {}
    side = evaluation.get("eval_crop") or model.config.backbone["image_size"]
    images = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = wrapped(images)  # first: the label tree makes its look-up tables when it is first used
    names = ["leaf_log_probs", *(f"log_probs_{level}" for level in model.hierarchy.levels)]
    program = torch.onnx.export(
        wrapped,
        (images,),
        dynamo=True,
        input_names=["pixel_values"],
        output_names=names,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    program.model.metadata_props["hierarchy"] = json.dumps(model.hierarchy.to_dict())
    path = Path(path)
    with TemporaryDirectory(prefix=".onnx_", dir=path.parent) as staging, naming(path):
        made = Path(staging) / path.name
        program.save(made)  # what is beyond the 2 GB that ONNX allows goes into a second file, which the first names
        difference = np.max([_difference(str(made), images[:size], expected) for size in (1, len(images))])
        if not difference <= TOLERANCE:
            raise ValueError(f"The ONNX file's log-probabilities differ by up to {difference:.2g} from the model's.")
        path.with_name(f"{path.name}.data").unlink(missing_ok=True)
        for file in sorted(Path(staging).iterdir(), reverse=True):  # the second first
            os.replace(file, path.with_name(file.name))
    return float(difference)


def _difference(file: str, images: torch.Tensor, expected: tuple[torch.Tensor, ...]) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    pairs = zip(session.run(None, {"pixel_values": images.numpy()}), expected, strict=True)
    # Both may be minus infinity.
    gaps = [np.maximum(ours, -1e4) - np.maximum(theirs[: len(images)].numpy(), -1e4) for ours, theirs in pairs]
    return float(np.max([np.abs(gap).max() for gap in gaps]))
