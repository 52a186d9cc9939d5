"""The pages keep their word: commands run, or parse where data or a cluster are missing; what they name exists."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pandas as pd
import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from accelerate.state import AcceleratorState, GradientState, PartialState
from conftest import PATHS, make_split, make_tiles
from datasets import Dataset, DatasetDict
from torch.distributed.run import get_args_parser

import predict
import train_segmentation
import train_taxonomy
from common.run.arguments import parse_arguments, parse_command

REPOSITORY = Path(train_taxonomy.__file__).parent
FILES = ["README.md", *sorted(f"docs/{file.name}" for file in (REPOSITORY / "docs").glob("*.md"))]
FILES += ["data_prep/README.md", "launch/README.md"]
PAGES = {name: (REPOSITORY / name).read_text(encoding="utf-8") for name in FILES}
LINKED = PAGES | {name: (REPOSITORY / name).read_text() for name in ("benchmarks/README.md", "CHANGELOG.md")}

TRAINERS = {
    "train_taxonomy.py": (train_taxonomy, train_taxonomy.TaxonomyArguments),
    "train_segmentation.py": (train_segmentation, train_segmentation.SegmentationArguments),
}
OTHER_PROGRAMS = {"cat", "cd", "export", "git", "hf", "pytest", "python3.11", "rsync", "source", "squeue", "tail"}
LEVELS = ["family", "genus", "species"]
FUNGITASTIC_LEVELS = ["phylum", "class", "order", *LEVELS]

# What makes the commands small enough for a test; the later word wins.
SMALL_EVALUATION = "--max_eval_samples 8 --dataloader_num_workers 0 --no_report"
SMALL_TRAINING = (
    f"{SMALL_EVALUATION} --no_pretrained --max_train_steps 2 --global_batch_size 2 --per_device_train_batch_size 2"
)
SMALL = {
    "train_taxonomy.py": f"{SMALL_TRAINING} --model_name_or_path timm/test_vit --image_size 32",
    "train_segmentation.py": f"{SMALL_TRAINING} --model_name_or_path timm/test_resnet --image_size 64 "
    "--decoder_channels 16",
    "predict.py": "--dataloader_num_workers 0",
    "data_prep/make_demo.py": "--num_train 200 --num_validation 100",
    "data_prep/prepare_table.py": "--num_proc 1",
    "data_prep/make_subset.py": "--num_classes 3 --num_train_per_class 2",
    "data_prep/find_leaks.py": "--num_proc 1",
    "data_prep/check_images.py": "--num_proc 1",
}
# Their data are not here: the tests of these scripts make some. The last needs a model that is sure of itself.
PARSED_ONLY = {
    "data_prep/prepare_fungitastic.py",
    "data_prep/prepare_artefact.py",
    "--push_to_hub",
    "--target_precision",
}


# ---- from pages to commands


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a page, in order."""
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", PAGES[page], re.DOTALL | re.MULTILINE)


def commands(page: str) -> list[list[str]]:
    """The words of each command of a page, in order; ``A && B`` are two."""
    found = []
    for line in "".join(blocks(page, "bash")).splitlines():
        words = shlex.split(line, comments=True)
        while "&&" in words:
            end = words.index("&&")
            found.append(words[:end])
            words = words[end + 1 :]
        found.append(words)
    return [words for words in found if words]


def our_script(words: list[str]) -> tuple[str, list[str]] | None:
    """The script of ours that a command starts, and its words; what starts it is checked by its own parser."""
    program, *rest = words
    if program == "python":
        return rest[0], rest[1:]
    if program in ("accelerate", "torchrun"):
        parser = launch_command_parser() if program == "accelerate" else get_args_parser()
        launched = parser.parse_args(rest[1:] if program == "accelerate" else rest)
        assert (REPOSITORY / (getattr(launched, "config_file", None) or "README.md")).is_file()
        return launched.training_script, launched.training_script_args
    if program in ("sbatch", "launch/slurm/chain.sh"):
        start = next(index for index, word in enumerate(words) if word.endswith(".sbatch"))
        assert program == "sbatch" or (REPOSITORY / program).is_file()
        return submitted(Path(words[start]), words[start + 1 :])
    if program in ("isc", "pip"):
        assert words[:2] in (["isc", "train"], ["pip", "install"]) and (REPOSITORY / words[-1]).is_file()
        return None
    assert program in OTHER_PROGRAMS
    return None


def submitted(batch_file: Path, words: list[str]) -> tuple[str, list[str]]:
    """The script that a batch file of launch/slurm runs, and its words."""
    assert (REPOSITORY / batch_file).is_file()
    if batch_file.stem == "predict":
        return "predict.py", words
    if batch_file.stem == "encoders":
        return "train_segmentation.py", ["--config", "configs/artefact_segformer_b3.yaml", *words]
    if batch_file.stem == "evaluate":  # its settings are those of the training in the folder that it is given
        return words[0], words[2:]
    return words[0], words[1:]


# ---- running and parsing


class Parsed(Exception):
    """Raised in place of what a script does once its command line is parsed."""


def parse(script: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a script's own parser read the words, and no more."""
    if script in TRAINERS:
        module, kind = TRAINERS[script]
        parse_arguments(kind, words, "", module.DEMO_CONFIG)
    elif script == "predict.py":
        parse_command(predict.PredictArguments, words, "", **predict.WORDS)
    else:
        parse_args = argparse.ArgumentParser.parse_args

        def stop(parser: argparse.ArgumentParser, *given: object) -> None:
            parse_args(parser, *given)
            raise Parsed

        with monkeypatch.context() as patch, pytest.raises(Parsed):
            patch.setattr(argparse.ArgumentParser, "parse_args", stop)
            load(script).main(words)


def load(script: str) -> object:
    """The module of a script."""
    assert (REPOSITORY / script).is_file(), script
    return importlib.import_module(script.removesuffix(".py").replace("/", "."))


def run(script: str, words: list[str]) -> object:
    """Run a script's ``main``, made small, as in a process of its own; and see that it wrote what it was told to."""
    small = SMALL_EVALUATION if "--eval_only" in words else SMALL.get(script, "")
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
        for name in ("mine", "independent", "tree"):
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
    """The six levels and the group column of FungiTastic."""
    for level in FUNGITASTIC_LEVELS[:3]:
        data = data.add_column(level, [f"the {level}"] * len(data))
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
        contents = [["parchment", "glass", "paper"][index % 3] for index in range(6) for _ in range(2)]
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
    assert "pip install -r requirements.txt && accelerate launch train_taxonomy.py" in lines
    assert "pip install -r requirements-dev.txt && pytest" in lines


@pytest.mark.parametrize("page", PAGES)
def test_commands_parse(page, clone, monkeypatch):
    """Every command of every page, by the parsers of what it starts."""
    monkeypatch.chdir(clone)
    for words in commands(page):
        script = our_script(words)
        if script is not None:
            parse(*script, monkeypatch)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "bash")])
def test_commands_run(page, own_clone):
    """In the order of the page, each with what those before have written; with small networks in place of theirs."""
    scripts = runnable(page)
    assert scripts or page == "docs/publishing.md"
    for script, words in scripts:
        run(script, words)


@pytest.mark.slow
@pytest.mark.parametrize("script", TRAINERS)
def test_demo_runs_through_accelerate_launch(script, tmp_path):
    """The README's first command, cut short; it leaves the files that the pages list."""
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", script, "--save_predictions"]
    words = ["--max_train_steps", "3", "--max_eval_samples", "20", "--output_dir", str(tmp_path)]
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


@pytest.mark.parametrize("page", [page for page in PAGES if page != "README.md" and blocks(page, "yaml")])
def test_yaml_blocks_are_settings(page, tmp_path):
    for block in blocks(page, "yaml"):
        (tmp_path / "settings.yaml").write_text(block)
        words = ["--config", str(tmp_path / "settings.yaml"), "--dataset_name", "somewhere"]
        parse_arguments(train_segmentation.SegmentationArguments, words, "", train_segmentation.DEMO_CONFIG)


@pytest.mark.parametrize("file", sorted((REPOSITORY / "configs").glob("*.yaml")), ids=lambda file: file.name)
def test_configs_parse(file):
    script = "train_segmentation.py" if re.search("mask_column|decoder", file.read_text()) else "train_taxonomy.py"
    module, kind = TRAINERS[script]
    words = ["--config", str(file), "--dataset_name", "somewhere"]
    args = parse_arguments(kind, words, "", module.DEMO_CONFIG)
    for name, value in yaml.safe_load(file.read_text()).items():
        if name == "curriculum":
            value = [f"{stage['epochs']}={','.join(map(str, stage['level_weights']))}" for stage in value]
        elif name == "level_weights":
            value = [str(weight) for weight in value]
        assert getattr(args, name) == value


# ---- words, links, files and options


def prose(text: str) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(page: str) -> set[str]:
    """What GitHub calls the headings of a page."""
    found: dict[str, int] = defaultdict(int)
    names = set()
    for heading in re.findall(r"^#+ (.*)", prose(LINKED[page]), re.MULTILINE):
        name = re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        names.add(f"{name}-{found[name]}" if found[name] else name)
        found[name] += 1
    return names


def test_the_readme_is_short():
    assert len(PAGES["README.md"].split()) <= 1600


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith(("docs", "launch"))])
def test_pages_say_whom_they_are_for(page):
    assert re.match(r"# .+\n\nFor \w+", PAGES[page])


def test_the_readme_links_every_page():
    links = re.findall(r"\]\(([^)#]+)", PAGES["README.md"])
    assert {page for page in PAGES if page.startswith("docs/")} <= set(links)


def test_no_page_repeats_another():
    """Twelve words in a row that stand in two pages are too many."""
    seen: dict[tuple[str, ...], str] = {}
    for page in (page for page in PAGES if page != "data_prep/README.md"):
        words = re.findall(r"\w+", prose(PAGES[page]))
        for sequence in zip(*(words[start:] for start in range(12)), strict=False):
            assert seen.setdefault(sequence, page) == page, f"{page} and {seen[sequence]}: {' '.join(sequence)}"


@pytest.mark.parametrize("page", LINKED)
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", prose(LINKED[page])):
        if target.startswith("http"):
            continue
        file = (REPOSITORY / page).parent / target if target else REPOSITORY / page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(str(file.resolve().relative_to(REPOSITORY))), f"{target}#{anchor}"


@pytest.mark.parametrize("page", [page for page in LINKED if page != "CHANGELOG.md"])
def test_files_exist(page):
    """Each path in a folder of the repository, and each script and job file."""
    roots = [REPOSITORY, (REPOSITORY / page).parent]
    folders = [entry for root in roots for entry in root.glob("[a-z]*") if entry.name not in ("output", "data")]
    names = {file.name for folder in folders for file in folder.rglob("*.*")} | {file.name for file in folders}
    for text in re.findall(r"`([^`\n]+)`", prose(LINKED[page])):
        for word in re.findall(r"[\w./*-]+", text):
            if word.partition("/")[0] in {folder.name for folder in folders if folder.is_dir()} and "/" in word:
                assert any(list(root.glob(word.rstrip("/"))) for root in roots), word
            elif re.search(r"\w\.(py|sh|sbatch|isc)$|^requirements.*\.txt$", word):
                assert Path(word).name in names, word


def test_options_exist(monkeypatch):
    """Each ``--option`` that stands in running text is one of a script, of accelerate or of sbatch."""
    known = {"partition", "account", "signal", "time", "array", "cpus-per-task"}
    for parser in (launch_command_parser(), *argparse_parsers(monkeypatch)):
        known |= {word.lstrip("-") for word in parser._option_string_actions}
    for kind in (predict.PredictArguments, *(kind for _, kind in TRAINERS.values())):
        known |= {entry.name for entry in fields(kind)}
    for page, text in PAGES.items():
        for name in re.findall(r"(?<![\w-])--([a-z][\w-]*)", prose(text)):
            assert name in known | {"help", "config"}, f"{page}: --{name}"


def argparse_parsers(monkeypatch: pytest.MonkeyPatch) -> list[argparse.ArgumentParser]:
    """Of the scripts that use argparse themselves."""
    found = []

    def keep(parser: argparse.ArgumentParser, *_: object) -> None:
        found.append(parser)
        raise Parsed

    scripts = [*REPOSITORY.glob("*.py"), *(REPOSITORY / "data_prep").glob("*.py")]
    monkeypatch.chdir(REPOSITORY)
    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", keep)
        for script in scripts:
            if "__main__" in script.read_text() and script.name not in (*TRAINERS, "predict.py"):
                with pytest.raises(Parsed):
                    load(str(script.relative_to(REPOSITORY))).main([])
    subparsers = [action for parser in found for action in parser._actions if action.dest == "command"]
    return [*found, *(parser for action in subparsers for parser in action.choices.values())]


def test_batch_files_are_bash():
    for file in (REPOSITORY / "launch" / "slurm").glob("*.s*"):
        subprocess.run(["bash", "-n", str(file)], check=True)
        for name in re.findall(r"configs/\S+\.yaml", file.read_text()):
            assert "$" in name or (REPOSITORY / name).is_file()


def test_array_covers_the_encoders():
    text = (REPOSITORY / "launch" / "slurm" / "encoders.sbatch").read_text()
    names = re.search(r"encoders=\((.*)\)", text).group(1).split()
    assert f"--array=0-{len(names) - 1}" in text
    for name in names:
        assert (REPOSITORY / "configs" / f"artefact_{name}.yaml").is_file()
