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
from conftest import PATHS, make_split, make_tiles

import predict
import train_segmentation
import train_taxonomy
from common.run.arguments import parse_command
from data_prep import make_demo

REPOSITORY = Path(train_taxonomy.__file__).parent
README = (REPOSITORY / "README.md").read_text()
COMMANDS = [
    line.strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]
SCRIPTS = {"train_taxonomy.py": train_taxonomy, "train_segmentation.py": train_segmentation}
ARGUMENTS = {
    "train_taxonomy.py": train_taxonomy.TaxonomyArguments,
    "train_segmentation.py": train_segmentation.SegmentationArguments,
}
TRAINING = [command for command in COMMANDS if re.search(r"train_\w+\.py", command) and "pip install" not in command]
FASTER = "--no_pretrained --max_train_steps 2 --max_eval_samples 8 --dataloader_num_workers 0"


def script_and_options(command: str) -> tuple[str, list[str]]:
    script = re.search(r"train_\w+\.py", command).group()
    return script, shlex.split(command.split(script, 1)[1])


def parse(script: str, words: list[str]) -> object:
    return SCRIPTS[script].parse_arguments(ARGUMENTS[script], words, "", SCRIPTS[script].DEMO_CONFIG)


def test_the_two_commands_stand_in_the_readme():
    assert "pip install -r requirements.txt && accelerate launch train_taxonomy.py" in COMMANDS
    assert "pip install -r requirements-dev.txt && pytest" in COMMANDS
    assert len(TRAINING) >= 4


@pytest.mark.parametrize(
    "script, levels",
    [
        ("train_taxonomy.py", ["phylum", "class", "order", "family", "genus", "species"]),
        ("train_segmentation.py", ["binary", "coarse", "fine"]),
    ],
)
def test_demo_runs_through_accelerate_launch(script, levels, tmp_path):
    """The first command, cut short; without any other option."""
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", script]
    words = ["--max_train_steps", "3", "--max_eval_samples", "20", "--output_dir", str(tmp_path)]
    done = subprocess.run([*command, *words], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / "all_results.json").read_text())
    assert list(results["eval"]["levels"]) == levels


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
    for split, seed in (("train", 1), ("validation", 2)):
        tiles = make_tiles(12, seed)
        for index, row in enumerate(tiles):
            row["image"].save(data / f"{split}{index}.png")
            row["mask"].save(data / f"{split}{index}_mask.png")
        names = [[f"{split}{index}.png", f"{split}{index}_mask.png", f"{split}{index}"] for index in range(12)]
        table = pd.DataFrame(names, columns=["image", "mask", "artwork"])
        table.to_csv(data / f"masks_{split}.csv", index=False)
    (data / "damage.yaml").write_text(re.search(r"```yaml\n(# data/damage.yaml\n.*?)```", README, re.DOTALL).group(1))
    make_demo.main(["taxonomy", "--output_dir", str(data / "fungarium")])
    for index, image in enumerate(make_split(120, 3)["image"]):
        (folder / "photos" / PATHS[index % 6][-1]).mkdir(parents=True, exist_ok=True)
        image.save(folder / "photos" / PATHS[index % 6][-1] / f"{index}.jpg")
    command = next(line for line in COMMANDS if "--image_folder photos" in line)
    words = [f"{REPOSITORY}/{word}" if word.endswith(".py") else word for word in shlex.split(command)[1:]]
    subprocess.run([sys.executable, *words], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.mark.parametrize("command", TRAINING)
def test_training_commands(command, user_folder, monkeypatch):
    monkeypatch.chdir(user_folder)
    script, options = script_and_options(command)
    options = [word.replace("configs/", f"{REPOSITORY}/configs/") for word in options]
    if "configs/" in command or not options:  # needs a download; the demos are run above
        parse(script, options)
        return
    faster = [*FASTER.split(), "--image_size", "64" if script == "train_segmentation.py" else "32"]
    if "--eval_only" in options:
        trained = (
            "--dataset_name data/fungarium --level_columns class order family genus species --output_dir output/mine "
            "--resume_from_checkpoint none"
        )
        train_taxonomy.main(["--model_name_or_path", "timm/test_vit", *faster, *trained.split()])
        results = train_taxonomy.main([*options, "--max_eval_samples", "8"])
        assert (user_folder / "output/again/predictions.parquet").is_file()
    else:
        # Another command may have left checkpoints in the folder that this one names.
        afresh = [] if "--resume_from_checkpoint" in options else ["--resume_from_checkpoint", "none"]
        results = SCRIPTS[script].main([*options, *faster, *afresh, "--per_device_train_batch_size", "2"])
        assert results["train"]["global_step"] == 2
    assert results["eval"]["num_samples"] == 8


@pytest.mark.parametrize("command", [command for command in COMMANDS if "predict.py" in command])
def test_prediction_commands(command, user_folder, tmp_path, monkeypatch):
    """That for observations runs, on a model of its own; the others are parsed."""
    words = shlex.split(command.split("predict.py", 1)[1])
    if "--group_by" not in words:
        assert parse_command(predict.PredictArguments, words, "", **predict.WORDS).model.startswith("output/")
        return
    monkeypatch.chdir(user_folder)
    labels = "--level_columns family genus species --model_name_or_path timm/test_vit --image_size 32"
    files = "--train_file data/train.csv --validation_file data/validation.csv --image_column file"
    train_taxonomy.main([*files.split(), *labels.split(), *FASTER.split(), "--output_dir", str(tmp_path / "model")])
    table = pd.read_csv("data/validation.csv")
    table.assign(observation=table.index // 3).to_csv("data/new.csv", index=False)
    words[words.index("output/mine")] = str(tmp_path / "model")
    summary = predict.main([*words, "--dataloader_num_workers", "0"])
    assert summary["groups"]["num"] == 14 and summary["predictions"]["num"] == 42


@pytest.mark.parametrize("file", sorted((REPOSITORY / "configs").glob("*.yaml")), ids=lambda file: file.name)
def test_configs_parse(file):
    script = (
        "train_segmentation.py" if "mask_column" in file.read_text() or "segm" in file.name else "train_taxonomy.py"
    )
    args = parse(script, ["--config", str(file), "--dataset_name", "somewhere"])
    for name, value in yaml.safe_load(file.read_text()).items():
        if name == "curriculum":
            value = [f"{stage['epochs']}={','.join(map(str, stage['level_weights']))}" for stage in value]
        elif name == "level_weights":
            value = [str(weight) for weight in value]
        assert getattr(args, name) == value


def test_every_file_that_the_readme_names_exists():
    for name in re.findall(r"\]\(([\w./-]+)\)", README) + re.findall(r"`(\w+/[\w.-]+\.\w+)`", README):
        assert (REPOSITORY / name).exists(), name
