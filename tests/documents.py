"""The pages for readers, the commands in them, and the parsers of what those commands start."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from collections import defaultdict
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser
from torch.distributed.run import get_args_parser

import predict
import train_segmentation
import train_taxonomy
from common.options.arguments import parse_arguments, parse_command

REPOSITORY = Path(train_taxonomy.__file__).parent
FILES = ["README.md", *sorted(f"docs/{file.name}" for file in (REPOSITORY / "docs").glob("*.md"))]
FILES += ["data_prep/README.md", "launch/README.md"]
PAGES = {name: (REPOSITORY / name).read_text(encoding="utf-8") for name in FILES}
LINKED = PAGES | {name: (REPOSITORY / name).read_text() for name in ("benchmarks/README.md", "CHANGELOG.md")}

TRAINERS = {
    "train_taxonomy.py": (train_taxonomy, train_taxonomy.TaxonomyArguments),
    "train_segmentation.py": (train_segmentation, train_segmentation.SegmentationArguments),
}
OTHER_PROGRAMS = {"cat", "cd", "export", "git", "hf", "pytest", "python3", "rsync", "source", "squeue", "tail"}


# ---- reading


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


# ---- commands and parsers


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
    if batch_file.stem in ("predict", "sweep"):
        return f"{batch_file.stem}.py", words
    if batch_file.stem == "encoders":
        return "train_segmentation.py", ["--config", "configs/artefact_segformer_b3.yaml", *words]
    if batch_file.stem == "evaluate":  # its settings are those of the training in the folder that it is given
        return words[0], words[2:]
    return words[0], words[1:]


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
        patch.setattr(argparse.ArgumentParser, "parse_known_args", keep)
        for script in scripts:
            if "__main__" in script.read_text() and script.name not in (*TRAINERS, "predict.py"):
                with pytest.raises(Parsed):
                    load(str(script.relative_to(REPOSITORY))).main([])
    subparsers = [action for parser in found for action in parser._actions if action.dest == "command"]
    return [*found, *(parser for action in subparsers for parser in action.choices.values())]
