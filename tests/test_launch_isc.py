"""The launch files of the ISC: what its documentation asks for, and commands that our scripts and torchrun take."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

import train_segmentation
import train_taxonomy

REPOSITORY = Path(__file__).parent.parent
FILES = sorted((REPOSITORY / "launch" / "isc").glob("*.isc"))
SCRIPTS = {
    "train_segmentation.py": (train_segmentation, train_segmentation.SegmentationArguments),
    "train_taxonomy.py": (train_taxonomy, train_taxonomy.TaxonomyArguments),
}
ENVIRONMENT = {  # what the platform sets on a node, here the first of two with four GPUs each
    "NNODES": "2",
    "N_PROC": "4",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
    "NODE_RANK": "0",
    "CHECKPOINT_ARTIFACT_PATH": "/artifacts/checkpoint",
    "LOSSY_ARTIFACT_PATH": "/artifacts/lossy",
    "CRUD_ARTIFACT_PATH": "/artifacts/crud",
}
REQUIRED = {"isc_project_id": str, "experiment_name": str, "gpus": int, "command": str}
OPTIONAL = {
    "compute_mode": str,
    "max_rapid_cycles": int,
    "dataset_id_list": list,
    "input_artifact_id_list": list,
    "burst_shape_priority_list": list,
}


def test_both_are_there():
    assert [file.name for file in FILES] == ["segmentation.isc", "taxonomy.isc"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_keys(file):
    content = tomllib.loads(file.read_text())
    assert set(REQUIRED) <= set(content) <= set(REQUIRED | OPTIONAL)
    assert all(isinstance(value, (REQUIRED | OPTIONAL)[key]) for key, value in content.items())
    assert 1 <= content["gpus"] <= 72
    assert content["compute_mode"] in ("cycle", "interruptible", "burst")
    assert "\n" not in content["command"]
    assert set(re.findall(r"\$(\w+)", content["command"])) <= set(ENVIRONMENT)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_command(file, monkeypatch):
    """Expanded by a shell, as on a node; then parsed by torchrun and by the script, with its config file."""
    monkeypatch.chdir(REPOSITORY)
    content = tomllib.loads(file.read_text())
    command = content["command"].replace("<dataset-id>", "some-id")
    *before, launch = command.split(" && ")
    assert before[0].startswith("source ") and before[1].startswith("cd ")
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {launch}"], env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True
    ).stdout.split("\n")[:-1]
    assert words[0] == "torchrun"
    args = get_args_parser().parse_args(words[1:])
    assert (args.nnodes, args.nproc_per_node, args.node_rank) == ("2", "4", 0)
    assert (args.master_addr, args.master_port) == ("10.0.0.1", 29500)
    module, kind = SCRIPTS[args.training_script]
    options = module.parse_arguments(kind, args.training_script_args, "", module.DEMO_CONFIG)
    assert options.dataset_name == "/data/some-id"
    assert options.output_dir.startswith("/artifacts/crud/")
    share = (options.global_batch_size or 0) / content["gpus"]
    assert share == int(share), "the global batch size does not divide by the GPUs"
    micro = options.per_device_train_batch_size
    assert not micro or share % min(share, micro) == 0, "nor by what fits on one"
