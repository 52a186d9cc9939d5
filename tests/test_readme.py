"""The commands in the README do what it says: run where that is possible offline, parsed where it is not."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import PATHS, make_split

import train_taxonomy
from data_prep import make_demo

REPOSITORY = Path(train_taxonomy.__file__).parent
README = (REPOSITORY / "README.md").read_text()
COMMANDS = [
    line.strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]
TRAINING = [command for command in COMMANDS if "train_taxonomy.py" in command and "pip install" not in command]
FASTER = "--no_pretrained --max_train_steps 2 --max_eval_samples 8 --image_size 32 --dataloader_num_workers 0"


def options_of(command: str) -> list[str]:
    return shlex.split(command.split("train_taxonomy.py", 1)[1])


def test_the_two_commands_stand_in_the_readme():
    assert "pip install -r requirements.txt && accelerate launch train_taxonomy.py" in COMMANDS
    assert "pip install -r requirements-dev.txt && pytest" in COMMANDS
    assert len(TRAINING) >= 4


def test_demo_runs_through_accelerate_launch(tmp_path):
    """The first command, cut short; without any other option."""
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "train_taxonomy.py"]
    words = ["--max_train_steps", "3", "--max_eval_samples", "20", "--output_dir", str(tmp_path)]
    done = subprocess.run([*command, *words], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / "all_results.json").read_text())
    assert list(results["eval"]["levels"]) == ["phylum", "class", "order", "family", "genus", "species"]


@pytest.fixture(scope="module")
def user_folder(tmp_path_factory):
    """What a reader has: tables of images, a tree, the drawn data, a trained model."""
    folder = tmp_path_factory.mktemp("user")
    data = folder / "data"
    data.mkdir()
    for split, seed in (("train", 1), ("validation", 2)):
        rows = []
        for index, image in enumerate(make_split(42, seed)["image"]):
            image.save(data / f"{split}{index}.jpg")
            rows.append([f"{split}{index}.jpg", *PATHS[index % 6]])
        pd.DataFrame(rows, columns=["file", "family", "genus", "species"]).to_csv(data / f"{split}.csv", index=False)
    pd.DataFrame(PATHS, columns=["family", "genus", "species"]).to_csv(data / "tree.csv", index=False)
    make_demo.main(["taxonomy", "--output_dir", str(data / "fungarium")])
    return folder


@pytest.mark.parametrize("command", TRAINING)
def test_training_commands(command, user_folder, monkeypatch):
    monkeypatch.chdir(user_folder)
    options = [word.replace("configs/", f"{REPOSITORY}/configs/") for word in options_of(command)]
    if "fungitastic" in command or not options:  # needs a download; the demo is run above
        train_taxonomy.parse_arguments(train_taxonomy.TaxonomyArguments, options, "", train_taxonomy.DEMO_CONFIG)
        return
    if "--eval_only" in options:
        trained = (
            "--dataset_name data/fungarium --level_columns class order family genus species --output_dir output/mine"
        )
        train_taxonomy.main([*f"--model_name_or_path timm/test_vit {FASTER} {trained}".split()])
        results = train_taxonomy.main([*options, "--max_eval_samples", "8"])
        assert (user_folder / "output/again/predictions.parquet").is_file()
    else:
        results = train_taxonomy.main([*options, *FASTER.split(), "--per_device_train_batch_size", "8"])
        assert results["train"]["global_step"] == 2
    assert results["eval"]["num_samples"] == 8


@pytest.mark.parametrize("file", sorted((REPOSITORY / "configs").glob("*.yaml")), ids=lambda file: file.name)
def test_configs_parse(file):
    words = ["--config", str(file), "--dataset_name", "somewhere"]
    args = train_taxonomy.parse_arguments(train_taxonomy.TaxonomyArguments, words, "", train_taxonomy.DEMO_CONFIG)
    for name, value in yaml.safe_load(file.read_text()).items():
        assert getattr(args, name) == value


def test_every_file_that_the_readme_names_exists():
    for name in re.findall(r"\]\(([\w./-]+)\)", README) + re.findall(r"`(\w+/[\w.-]+\.\w+)`", README):
        assert (REPOSITORY / name).exists(), name
