"""What is inside a checkpoint folder: tensors as safetensors, the state as JSON, a few files; nothing is pickled."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from .manifest import NAME as MANIFEST
from .manifest import BadCheckpointError, Content, Manifest, describe, verified_files

STATE = "state.json"
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """What was saved: the step, the state, groups of tensors on the CPU, and the folder, which has the extra files."""

    step: int
    state: dict[str, Any]
    tensors: dict[str, dict[str, torch.Tensor]]
    path: Path


@dataclass(frozen=True)
class Job:
    """One save: where to, and the contents of all files in memory."""

    step: int
    force: bool
    groups: tuple[str, ...]
    files: Mapping[str, Content]


def contents(
    state: Mapping[str, Any], extra_files: Mapping[str, str | Path], groups: Mapping[str, Content]
) -> dict[str, Content]:
    """The files of a checkpoint by name.

    Args:
        state: JSON with string keys.
        extra_files: small files by name; read now.
        groups: of tensors, as safetensors.

    Raises:
        ValueError: a file or group cannot have its name.
        TypeError: the state is not JSON.
    """
    files: dict[str, Content] = {f"{group}{SUFFIX}": content for group, content in groups.items()}
    files[STATE] = (_to_json(state),)
    for name in [*files, *extra_files]:
        if not re.fullmatch(r"[\w-][\w.-]*", name) or name == MANIFEST or (name in extra_files and name in files):
            raise ValueError(f"A checkpoint cannot have a file or a group of tensors named {name!r}.")
    return {**files, **{name: (Path(path).read_bytes(),) for name, path in extra_files.items()}}


def read_checkpoint(folder: Path, manifest: Manifest) -> Checkpoint:
    """Load a folder, verifying every byte; BadCheckpointError if it is not as written."""
    state: dict[str, Any] = {}
    tensors = {}
    for name, data in verified_files(folder, manifest):
        if name == STATE:
            state = json.loads(data)
        elif name.removesuffix(SUFFIX) in manifest.groups:
            tensors[name.removesuffix(SUFFIX)] = safetensors.torch.load(data)
    return Checkpoint(manifest.step, state, {group: tensors[group] for group in manifest.groups}, folder)


def holds(folder: Path, job: Job) -> bool:
    """Whether a folder is complete and has the very content that is to be saved; looks at what is cheap first."""
    try:
        manifest = Manifest.read(folder)
        if (manifest.step, manifest.groups, set(manifest.files)) != (job.step, job.groups, set(job.files)):
            return False
        if any(describe(job.files[name]) != manifest.files[name] for name in sorted(job.files, key=STATE.__ne__)):
            return False
        return all(name in job.files for name, _ in verified_files(folder, manifest))
    except BadCheckpointError:
        return False


def _to_json(state: Mapping[str, Any]) -> bytes:
    _check_keys(state, "state")
    return json.dumps(state).encode()


def _check_keys(value: Any, place: str) -> None:
    """TypeError if a key is no string: JSON would turn it into one, and it would come back as something else."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            if not isinstance(key, str):
                raise TypeError(f"The key {key!r} of {place} is no string; JSON has no other keys.")
            _check_keys(entry, f"{place}.{key}")
    elif isinstance(value, list | tuple):
        for entry in value:
            _check_keys(entry, place)
