"""The commands of the README and of the other pages do what these say, with small networks and a few images."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState
from conftest import PATHS, make_split, make_tiles
from datasets import Dataset, DatasetDict
from documents import PAGES, REPOSITORY, TRAINERS, blocks, commands, load, our_script, parse

LEVELS = ["family", "genus", "species"]
FUNGITASTIC_LEVELS = ["phylum", "class", "order", *LEVELS]

# What makes the commands small enough for a test; the later word wins.
# bf16 takes fifty times as long on a CPU that has no instructions for it.
SMALL_EVALUATION = "--max_eval_samples 8 --dataloader_num_workers 0 --no_report --mixed_precision no"
SMALL_TRAINING = (
    f"{SMALL_EVALUATION} --no_pretrained --max_train_steps 2 --global_batch_size 2 --per_device_train_batch_size 2"
)
SMALL = {
    "train_taxonomy.py": f"{SMALL_TRAINING} --model_name_or_path timm/test_vit --image_size 32",
    "train_segmentation.py": f"{SMALL_TRAINING} --model_name_or_path timm/test_resnet --image_size 64 "
    "--decoder_channels 16",
    "predict.py": "--dataloader_num_workers 0",
    "average_runs.py": f"-- {SMALL_EVALUATION}",
    "data_prep/make_demo.py": "--num_train 200 --num_validation 100",
    "data_prep/prepare_table.py": "--num_proc 1",
    "data_prep/make_subset.py": "--num_classes 3 --num_train_per_class 2",
    "data_prep/compute_statistics.py": "--num_proc 0",
    "data_prep/find_leaks.py": "--num_proc 0",
    "data_prep/check_images.py": "--num_proc 0",
}
# What takes long, or needs data, the Hub, or a model that is sure of itself; other tests run these.
PARSED_ONLY = {
    "sweep.py",
    "--annotations",
    "export_onnx.py",
    "data_prep/prepare_fungitastic.py",
    "data_prep/prepare_artefact.py",
    "--push_to_hub",
    "--target_precision",
}


def run(script: str, words: list[str]) -> object:
    """Run a script's ``main``, made small, as in a process of its own; and see that it wrote what it was told to."""
    small = SMALL_EVALUATION if "--eval_only" in words else SMALL.get(script, "")
    if any("windows" in word for word in words):
        small += " --eval_crop 64 --resize_longer 64"
    for state in (GradientState, AcceleratorState, PartialState):
        state._reset_state()
    words = [name for word in words for name in (sorted(map(str, Path().glob(word))) if "*" in word else [word])]
    result = load(script).main([*words, *small.split()])
    if "--output_dir" in words:
        assert any(Path(words[words.index("--output_dir") + 1]).iterdir())
    if script in TRAINERS:
        assert 0 < result["eval"]["num_samples"] <= 8 and (result["train"] or {"global_step": 2})["global_step"] == 2
    return result


def runnable(page: str) -> list[tuple[str, list[str]]]:
    """The commands of a page that can run offline; the demos, which draw their data, have a test of their own."""
    found = []
    for command in commands(page):
        script = our_script(command)
        if script is None or script in found:
            continue
        words = {script[0], *script[1]}
        is_demo = script[0] in TRAINERS and not words & {"--dataset_name", "--train_file"}
        if not is_demo and not words & PARSED_ONLY:
            found.append(script)
    return found


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of the repository, and in it what a reader has: images, masks, tables, data sets, trained models."""
    folder = tmp_path_factory.mktemp("clone")
    for entry in REPOSITORY.iterdir():
        if not entry.name.startswith(".") and entry.name not in ("data", "output", "venv"):
            (folder / entry.name).symlink_to(entry)
    make_photographs(folder)
    make_masks(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (demo,) = (
            words
            for words in commands("docs/fungi.md")
            if words[:3] == ["python", "data_prep/make_demo.py", "taxonomy"]
        )
        run(*our_script(demo))
        trained = [words for page in ("docs/fungi.md", "README.md") for words in commands(page)]
        for output in ("output/fungarium", "output/damage"):
            run(*our_script(next(words for words in trained if words[-1] == output)))
        no_checkpoints = shutil.ignore_patterns("checkpoints")
        for name in ("mine", "independent", "tree", "seed_0", "seed_1", "seed_2"):
            shutil.copytree("output/fungarium", f"output/{name}", ignore=no_checkpoints)
        for name in ("fold_a", "fold_b", "artefact_segformer_b3"):
            shutil.copytree("output/damage", f"output/{name}", ignore=no_checkpoints)
    return folder


def make_photographs(folder: Path) -> None:
    """Tables, folders of classes and data sets of the fruit that all tests know."""
    for name in ("data", "raw", "new_photos"):
        (folder / name).mkdir()
    splits = {}
    for split, seed in (("train", 1), ("validation", 2)):
        images = make_split(42, seed)
        splits[split] = images.rename_columns({"order": "family", "family": "genus", "tree": "observation"})
        rows = []
        for index, image in enumerate(images["image"]):
            path = PATHS[index % len(PATHS)]
            rows.append([f"{split}{index}.jpg", *path, f"{split}{index // 3}"])
            copies = [folder / "data" / rows[-1][0], folder / "raw" / rows[-1][0]]
            for tier in ("photos", "raw/photos"):
                (folder / tier / path[-1]).mkdir(parents=True, exist_ok=True)
                copies.append(folder / tier / path[-1] / rows[-1][0])
            for file in [*copies, folder / "new_photos" / f"{index}.jpg"]:
                image.save(file)
        table = pd.DataFrame(rows, columns=["file", *LEVELS, "observation"])
        for file in (f"data/{split}.csv", "data/new.csv", "raw/fungi.csv"):
            table.to_csv(folder / file, index=False)
    pd.DataFrame(PATHS, columns=LEVELS).to_csv(folder / "data" / "tree.csv", index=False)
    DatasetDict(splits).save_to_disk(folder / "data" / "mine")
    DatasetDict({split: with_upper_levels(data) for split, data in splits.items()}).save_to_disk(
        folder / "data/fungitastic"
    )


def with_upper_levels(data: Dataset) -> Dataset:
    """The seven levels and the group column of FungiTastic."""
    for level in FUNGITASTIC_LEVELS[:3]:
        data = data.add_column(level, [f"the {level}"] * len(data))
    data = data.add_column("category_id", [f"category of {name}" for name in data["species"]])
    return data.rename_column("observation", "observationID")


def make_masks(folder: Path) -> None:
    """Tables and data sets of the tiles that all tests know; the label tree is that of the README."""
    for name in ("scans", "data/scans"):
        (folder / name).mkdir()
    (tree,) = blocks("README.md", "yaml")
    for file in ("data/damage.yaml", "raw/damage.yaml"):
        (folder / file).write_text(tree)
    splits = {}
    for split, seed in (("train", 1), ("validation", 2)):
        tiles = make_tiles(12, seed)
        contents = [["Line art", "Photograph", "Text"][index % 3] for index in range(6) for _ in range(2)]
        splits[split] = tiles.rename_columns({"mask": "annotation", "tile": "id"}).add_column("content", contents)
        rows = [[f"{split}{index}.png", f"{split}{index}_mask.png", f"{split}{index}"] for index in range(12)]
        for tile, (image, mask, _) in zip(tiles, rows, strict=True):
            for place in ("data", "raw"):
                tile["image"].save(folder / place / image)
                tile["mask"].save(folder / place / mask)
            tile["image"].save(folder / "scans" / image)
            tile["image"].save(folder / "data" / "scans" / image)
        table = pd.DataFrame(rows, columns=["image", "mask", "artwork"])
        for file in (f"data/masks_{split}.csv", "raw/damage.csv"):
            table.to_csv(folder / file, index=False)
    DatasetDict(splits).save_to_disk(folder / "data" / "artefact")
    shutil.copy(REPOSITORY / "hierarchies" / "artefact.yaml", folder / "data" / "artefact" / "hierarchy.yaml")


@pytest.fixture
def own_clone(clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy for one test, as its current folder."""
    shutil.copytree(clone, tmp_path / "clone", symlinks=True)
    monkeypatch.chdir(tmp_path / "clone")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    yield tmp_path / "clone"


def test_the_two_commands_stand_in_the_readme():
    lines = "".join(blocks("README.md", "bash")).splitlines()
    assert "pip install -r requirements.txt -c constraints.txt && accelerate launch train_taxonomy.py" in lines
    assert "pip install -r requirements-dev.txt -c constraints.txt && pytest" in lines


@pytest.mark.parametrize("page", PAGES)
def test_commands_parse(page, clone, monkeypatch):
    """Every command of every page, by the parsers of what it starts."""
    monkeypatch.chdir(clone)
    for words in commands(page):
        script = our_script(words)
        if script is not None:
            parse(*script, monkeypatch)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "bash") and page != "docs/publishing.md"])
def test_commands_run(page, own_clone):
    """In the order of the page, each with what those before have written; with small networks in place of theirs."""
    scripts = runnable(page)
    assert scripts
    for script, words in scripts:
        run(script, words)


@pytest.mark.slow
@pytest.mark.parametrize("script", TRAINERS)
def test_demo_runs_through_accelerate_launch(script, tmp_path):
    """The README's first command, cut short; it leaves the files that the pages list."""
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", script, "--save_predictions"]
    words = ["--max_train_steps", "3", "--max_eval_samples", "8", "--output_dir", str(tmp_path)]
    words += ["--global_batch_size", "2", "--per_device_train_batch_size", "2"]
    done = subprocess.run([*command, *words], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    levels = FUNGITASTIC_LEVELS if script == "train_taxonomy.py" else ["binary", "coarse", "fine"]
    assert list(json.loads((tmp_path / "all_results.json").read_text())["eval"]["levels"]) == levels
    table = PAGES["docs/metrics.md"].partition("## Files in output_dir")[2].partition("##")[0]
    names = [
        name
        for row in table.splitlines()
        if row.startswith("| `")
        for name in re.findall("`([^`]+)`", row.split("|")[1])
    ]
    other = "predictions/" if script == "train_taxonomy.py" else "predictions.parquet"
    for name in set(names) - {"calibration.json", "skipped_images.json", other}:
        assert list(tmp_path.glob(name)), name


def test_python_blocks_run(own_clone):
    code = "\n".join(block for page in PAGES for block in blocks(page, "python"))
    exec(f"{code}\nassert classify('new_photos/0.jpg') and segment('scans/train0.png')", {})
