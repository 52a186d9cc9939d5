"""The command line: dataclasses of options, YAML files that set their defaults, and errors that help.

Precedence, the later wins: the defaults of the dataclasses; the demo's YAML file if the demo is trained; ``--config
FILE``; the command line. Unknown keys and options are errors that suggest the nearest one.
"""

from __future__ import annotations

import math
import sys
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, asdict, field, fields
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from ..system.files import atomic_write, read_yaml

Arguments = TypeVar("Arguments")

RANGES = {
    "greater than 0": lambda value: 0 < value < math.inf,
    "at least 0": lambda value: value >= 0,
    "at least 2": lambda value: value >= 2,
    "at least 1": lambda value: value >= 1,
    "from 0 up to 1": lambda value: 0 <= value <= 1,
    "over 0 and up to 1": lambda value: 0 < value <= 1,
    "at least 0 and less than 1": lambda value: 0 <= value < 1,
}


def option(default: Any, help: str, must_be: str | None = None, group: str = "") -> Any:
    """A dataclass field that becomes an option of the command line.

    Args:
        default: its value if nobody gives one; ``None`` if that is decided later.
        help: a sentence for ``--help``.
        must_be: for numbers, one of :data:`RANGES`.
        group: title under which ``--help`` shows it and those that follow.
    """
    assert must_be is None or must_be in RANGES
    metadata = {"help": help, "must_be": must_be, "group": group}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def default_of(entry: Field) -> Any:
    """What an option is if nobody gives it."""
    return entry.default if entry.default is not MISSING else entry.default_factory()


def out_of_range(arguments: Any) -> list[str]:
    """A sentence for each number outside of its range."""
    return [
        f"--{entry.name} must be {must_be}, not {value}"
        for entry in fields(arguments)
        if (must_be := entry.metadata["must_be"]) is not None
        for value in [getattr(arguments, entry.name)]
        if value is not None and not RANGES[must_be](value)
    ]


def changed(arguments: Any, name: str) -> bool:
    """Whether an option has another value than its default."""
    entry = next(entry for entry in fields(arguments) if entry.name == name)
    return getattr(arguments, name) != default_of(entry)


def save_arguments(arguments: Any, path: str | Path) -> None:
    """Write the resolved arguments as YAML; ``--config`` reads it."""
    with atomic_write(path) as file:
        file.write(yaml.safe_dump(asdict(arguments), sort_keys=False))


def groups_of(kind: type) -> dict[str, list[Field]]:
    """A script's options by the titles under which ``--help`` shows them."""
    groups: dict[str, list[Field]] = {}
    title = ""
    for entry in fields(kind):
        title = entry.metadata["group"] or title
        groups.setdefault(title, []).append(entry)
    return groups


def parse_arguments(
    kind: type[Arguments], argv: Sequence[str] | None, description: str, demo_config: str | Path
) -> Arguments:
    """Parse and validate the command line of a script.

    Args:
        kind: the script's dataclass.
        argv: the words of the command line, ``sys.argv[1:]`` by default.
        description: shown by ``--help``.
        demo_config: YAML file with the defaults of the demo.

    Returns:
        The options; ``given`` names those of the command line and of ``--config``, whatever their values.

    Raises:
        ValueError: for unknown options or keys, wrong values, and settings that contradict each other.
    """
    parser = _Parser(kind, description, "[--config FILE] [--OPTION VALUE ...]")
    parser.add_argument("--config", help="YAML file that sets defaults for the options above; the command line wins.")
    first = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)  # what decides on defaults
    for name in ("config", "dataset_name", "train_file", "validation_file"):
        first.add_argument(f"--{name}", nargs="?")
    words = _words(argv)
    if {"-h", "--help"} & set(words):
        parser.print_help()
        sys.exit(0)
    config = first.parse_known_args(words)[0].config
    words = [*(_yaml_words(parser, config) if config else []), *words]
    chosen, demo = first.parse_known_args(words)[0], []
    if chosen.dataset_name in (None, "demo") and not (chosen.train_file or chosen.validation_file):
        demo = _yaml_words(parser, demo_config)
    values = vars(parser.parse([*demo, *words]))
    values.pop("config")
    arguments = kind(**values)
    arguments.given = {word[2:].split("=")[0].replace("-", "_") for word in words if word.startswith("--")}
    arguments.validate()
    return arguments


def parse_command(kind: type[Arguments], argv: Sequence[str] | None, description: str, **words: Any) -> Arguments:
    """Parse and validate a command line whose options come with plain words before or between them.

    Args:
        kind: the script's dataclass; ``words`` are fields of it, too.
        argv: the words of the command line, ``sys.argv[1:]`` by default.
        description: shown by ``--help``.
        words: name of each plain word -> what argparse's ``add_argument`` takes.

    Raises:
        ValueError: as :func:`parse_arguments`.
    """
    parser = _Parser(kind, description, " ".join([*map(str.upper, words), "[--OPTION VALUE ...]"]), words)
    arguments = kind(**vars(parser.parse(argv)))
    arguments.validate()
    return arguments


def _words(argv: Sequence[str] | None) -> list[str]:
    return list(sys.argv[1:] if argv is None else argv)


YES, NO = ("yes", "true", "t", "y", "1"), ("no", "false", "f", "n", "0")


class _Help(RawDescriptionHelpFormatter, ArgumentDefaultsHelpFormatter):
    """Examples as lines, and every option's default."""


class _Parser(ArgumentParser):
    """Options from the fields of dataclasses; raises instead of exiting, and suggests."""

    def __init__(self, kind: type, description: str, usage: str, words: Mapping[str, dict[str, Any]] = {}) -> None:
        super().__init__(description=description, usage=f"%(prog)s {usage}", formatter_class=_Help, allow_abbrev=False)
        for name, settings in words.items():
            self.add_argument(name, **settings)
        hints = get_type_hints(kind)
        self.fields = {entry.name: entry for entry in fields(kind) if entry.name not in words}
        for title, entries in groups_of(kind).items():
            group = self.add_argument_group(title)
            for entry in entries:
                if entry.name in self.fields:
                    names = dict.fromkeys([f"--{entry.name}", f"--{entry.name.replace('_', '-')}"])
                    settings = {"help": entry.metadata["help"], "default": default_of(entry)}
                    group.add_argument(*names, **settings, **_settings(hints[entry.name]))

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)

    def parse(self, argv: Sequence[str] | None) -> Any:
        values, unknown = self.parse_known_intermixed_args(_words(argv))
        if unknown:
            raise ValueError(self.unknown(unknown[0]))
        return values

    def unknown(self, word: str) -> str:
        """What to say of a word that is no option."""
        name = word.split("=")[0].lstrip("-").replace("-", "_")
        known = [action.dest for action in self._actions]
        near = get_close_matches(name, known, 1, 0.7)
        if not word.startswith("-"):
            return f"Unexpected word {word!r}; options start with --."
        return f"Unknown option --{name}." + (f" Did you mean --{near[0]}?" if near else " See --help.")


def _settings(hint: Any) -> dict[str, Any]:
    """What argparse is told of a field's type."""
    if get_origin(hint) in (Union, UnionType):
        hint = next(kind for kind in get_args(hint) if kind is not NoneType)
    if get_origin(hint) is Literal:
        return {"choices": get_args(hint)}
    if get_origin(hint) is list:
        return {"type": get_args(hint)[0], "nargs": "+"}
    return {"type": _boolean, "nargs": "?", "const": True} if hint is bool else {"type": hint}


def _boolean(word: str) -> bool:
    if word.lower() not in (*YES, *NO):
        raise ArgumentTypeError(f"{word!r} is neither true nor false")
    return word.lower() in YES


def _yaml_words(parser: _Parser, path: str | Path) -> list[str]:
    """A YAML file's settings as words of a command line, so that both are checked in the same way."""
    if not Path(path).is_file():
        raise ValueError(f"No configuration file at {path} (--config).")
    try:
        content = read_yaml(path) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold one setting a line, 'name: value'.")
    words: list[str] = []
    for key, value in content.items():
        words += _yaml_option(parser, path, str(key), value)
    try:
        parser.parse(words)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return words


def _yaml_option(parser: _Parser, path: str | Path, key: str, value: Any) -> list[str]:
    if key not in parser.fields:
        near = get_close_matches(key.replace("-", "_"), parser.fields, 1, 0.7)
        raise ValueError(f"{path}: Unknown key {key}." + (f" Did you mean {near[0]}?" if near else " See --help."))
    if value is None:
        return []
    if isinstance(value, list):
        return [f"--{key}", *(_stage(path, entry) if isinstance(entry, dict) else str(entry) for entry in value)]
    if isinstance(value, dict):
        raise ValueError(f"{path}: the value of {key} must not be a mapping.")
    if isinstance(value, bool) and not isinstance(parser.fields[key].default, bool):
        value = "yes" if value else "no"  # YAML reads an unquoted no as false; --mixed_precision takes the word
    return [f"--{key}={value}"]


def _stage(path: str | Path, entry: dict[str, Any]) -> str:
    """A stage of a curriculum, ``{epochs: 20, level_weights: [1, 0, 0]}``, as the command line has it."""
    if set(entry) != {"epochs", "level_weights"} or not isinstance(entry["level_weights"], list):
        raise ValueError(f"{path}: a stage needs epochs and level_weights (a list), and nothing else; got {entry}.")
    return f"{entry['epochs']}={','.join(map(str, entry['level_weights']))}"
