"""The files in accelerate_configs are what accelerate reads, and start as many processes as they say."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType

import train_taxonomy
from common.run import processes

REPOSITORY = Path(__file__).parent.parent
FILES = sorted((REPOSITORY / "accelerate_configs").glob("*.yaml"))


def test_all_are_there():
    names = "cpu cpu_2proc multi_gpu multi_node single_gpu_bf16 single_gpu_fp16"
    assert [file.stem for file in FILES] == names.split()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_accelerate_takes_the_command_of_the_comment(file, monkeypatch):
    """Parsed and validated by accelerate itself, with the file and the words that its comment shows."""
    monkeypatch.chdir(REPOSITORY)
    config = load_config_from_file(str(file))
    command = re.search(r"^# +accelerate launch (.*)", file.read_text(), re.MULTILINE).group(1)
    words = [word for word in shlex.split(command) if word != "..."]
    args, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    assert args.config_file == f"accelerate_configs/{file.name}"
    assert (REPOSITORY / args.training_script).is_file()
    assert args.mixed_precision == config.mixed_precision == defaults.mixed_precision
    several = file.stem not in ("cpu", "single_gpu_bf16", "single_gpu_fp16")
    assert (args.num_processes > 1) == several
    assert args.multi_gpu == (file.stem in ("cpu_2proc", "multi_gpu", "multi_node"))
    assert args.num_machines == (2 if file.stem == "multi_node" else 1)
    assert not args.use_fsdp and not args.use_deepspeed


@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_sharding_is_refused(kind, monkeypatch, tmp_path):
    """What accelerate reports is a stand-in: without GPUs it starts neither."""
    monkeypatch.setattr(processes, "Accelerator", lambda **_: SimpleNamespace(distributed_type=kind, num_processes=1))
    args = train_taxonomy.TaxonomyArguments(output_dir=str(tmp_path))
    with pytest.raises(ValueError, match=f"{kind.value} is not supported.*--multi_gpu"):
        processes.make_accelerator(args)


@pytest.mark.slow
def test_number_of_processes(fruit, tmp_path):
    """Two steps of a real training, through accelerate launch; test_readme.py has the demos on one process."""
    probe = tmp_path / "probe.py"
    probe.write_text(
        f"""
import os, sys
from pathlib import Path
sys.path.insert(0, {str(REPOSITORY)!r})
import torch
import train_taxonomy
from accelerate import PartialState
train_taxonomy.main(sys.argv[1:])
state = PartialState()
Path({str(tmp_path)!r}, f"process{{state.process_index}}").write_text(
    f"{{state.num_processes}} {{state.device.type}} {{torch.cuda.is_available()}}"
)
"""
    )
    words = ["--dataset_name", str(fruit), "--level_columns", "order", "family", "species", "--image_size", "32"]
    words += ["--model_name_or_path", "timm/test_resnet", "--no_pretrained", "--max_train_steps", "2"]
    words += ["--max_eval_samples", "8", "--global_batch_size", "8", "--dataloader_num_workers", "0", "--no_report"]
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    command = [*launch, "--config_file", str(FILES[0].parent / "cpu_2proc.yaml"), str(probe), *words]
    done = subprocess.run(
        [*command, "--output_dir", str(tmp_path / "output")], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(file.name for file in tmp_path.glob("process*")) == ["process0", "process1"]
    assert {file.read_text().split()[0] for file in tmp_path.glob("process*")} == {"2"}
    assert {file.read_text().split()[1] for file in tmp_path.glob("process*")} == {"cpu"}
    assert json.loads((tmp_path / "output" / "all_results.json").read_text())["train"]["global_step"] == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU to hide")
def test_gpus_are_hidden_from_two_processes_on_cpus(tmp_path):
    probe = tmp_path / "probe.py"
    probe.write_text("import torch; assert not torch.cuda.is_available()")
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    subprocess.run([*launch, "--config_file", str(FILES[0].parent / "cpu_2proc.yaml"), str(probe)], check=True)
