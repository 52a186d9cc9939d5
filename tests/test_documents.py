"""What the pages name exists: links, files, options and settings; and they are short, each for someone, none twice."""

from __future__ import annotations

import re
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from documents import LINKED, PAGES, REPOSITORY, TRAINERS, anchors, argparse_parsers, blocks, prose

import predict
import train_segmentation
from common.options.arguments import parse_arguments


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
    folders = [
        entry for root in roots for entry in root.glob("[a-z]*") if entry.name not in ("output", "data", "venv")
    ]
    names = {file.name for folder in folders for file in folder.rglob("*.*")} | {file.name for file in folders}
    for text in re.findall(r"`([^`]+)`", prose(LINKED[page])):
        for word in re.findall(r"[\w./*-]+", text):
            if word.partition("/")[0] in {folder.name for folder in folders if folder.is_dir()} and "/" in word:
                assert any(list(root.glob(word.rstrip("/"))) for root in roots), word
            elif re.search(r"\w\.(py|sh|sbatch|isc)$|^requirements.*\.txt$", word):
                assert Path(word).name in names, word


def test_options_exist(monkeypatch):
    """Each ``--option`` that stands in running text is one of a script, of accelerate or of sbatch."""
    known = {"partition", "account", "signal", "time", "array", "cpus-per-task", "shm-size"}
    for parser in (launch_command_parser(), *argparse_parsers(monkeypatch)):
        known |= {word.lstrip("-") for word in parser._option_string_actions}
    for kind in (predict.PredictArguments, *(kind for _, kind in TRAINERS.values())):
        known |= {entry.name for entry in fields(kind)}
    for page, text in PAGES.items():
        for name in re.findall(r"(?<![\w-])--([a-z][\w-]*)", prose(text)):
            assert name in known | {"help", "config"}, f"{page}: --{name}"


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
        assert getattr(args, name) in (value, [value])  # one word for an option that takes several


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
