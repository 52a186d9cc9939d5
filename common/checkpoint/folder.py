"""One checkpoint: a folder of safetensors, state.json and small files, with a manifest of their sizes and SHA-256."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from ..system.files import StorageError, naming, retried

MANIFEST, STATE, SUFFIX = "manifest.json", "state.json", ".safetensors"
FORMAT = 1

Groups = dict[str, dict[str, torch.Tensor]]

_read_file = retried(Path.read_bytes)


class BadCheckpointError(ValueError):
    """A folder is no intact checkpoint; the message is the reason, without the folder's name."""


@dataclass(frozen=True)
class Checkpoint:
    """What was saved: the step, the state, groups of tensors on the CPU, and the folder, which has the extra files."""

    step: int
    state: dict[str, Any]
    tensors: Groups
    path: Path


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json.

    Args:
        step: of the training, when it was saved.
        serial: one more than that of the save before. It orders folders as they were written, also where a run went
            back to an earlier step or began anew; neither names nor times of files can.
        groups: of tensors, each in the file ``<group>.safetensors``.
        files: ``size`` in bytes and hexadecimal ``sha256`` of all files but the manifest.
    """

    step: int
    serial: int
    groups: list[str]
    files: dict[str, dict[str, Any]]

    def encode(self) -> bytes:
        """JSON that holds the SHA-256 of itself."""
        content = {"format": FORMAT, **vars(self)}
        digest = hashlib.sha256(json.dumps(content, indent=1, sort_keys=True).encode()).hexdigest()
        return json.dumps({**content, "sha256": digest}, indent=1, sort_keys=True).encode()

    @staticmethod
    def read(folder: Path) -> Manifest:
        """The manifest of a folder; BadCheckpointError if that is not intact. No other file is looked at."""
        if not folder.is_dir():
            raise BadCheckpointError("it is not a folder")
        try:
            data = _read_file(folder / MANIFEST)
        except FileNotFoundError:
            text = f"it has no {MANIFEST}: it is incomplete or no checkpoint of this program"
            raise BadCheckpointError(text) from None
        except (OSError, StorageError) as error:
            raise BadCheckpointError(f"{MANIFEST} cannot be read: {error}") from error
        try:
            content = json.loads(data)
            found = content.pop("format")
            content.pop("sha256", None)
            manifest = Manifest(**content) if found == FORMAT else None
        except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
            raise BadCheckpointError(f"{MANIFEST} is damaged") from None
        if manifest is None:
            raise BadCheckpointError(f"{MANIFEST} is of format {found}, and this program reads format {FORMAT}")
        if manifest.encode() != data:
            # Compared byte by byte: a flipped bit in a blank or in the digest itself is damage, too.
            raise BadCheckpointError(f"{MANIFEST} is damaged: it does not match its own SHA-256")
        return manifest


def manifests(folders: list[Path]) -> dict[Path, Manifest]:
    """The folders that have an intact manifest, with it."""
    found = {}
    for folder in folders:
        try:
            found[folder] = Manifest.read(folder)
        except BadCheckpointError:
            continue
    return found


def looks_complete(folder: Path) -> bool:
    """Whether a folder has an intact manifest and files of the right lengths; costs no reading of these."""
    try:
        return all(_size(folder / name) == entry["size"] for name, entry in Manifest.read(folder).files.items())
    except BadCheckpointError:
        return False


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise BadCheckpointError(f"{path.name} cannot be read: {error.strerror}") from error


def read_checkpoint(folder: Path, manifest: Manifest) -> Checkpoint:
    """Load a folder, each file read once and every byte verified; BadCheckpointError if one is not as written."""
    state: dict[str, Any] = {}
    tensors: Groups = {group: {} for group in manifest.groups}
    for name, entry in manifest.files.items():
        size = _size(folder / name)
        if size != entry["size"]:
            raise BadCheckpointError(f"{name} has {size:,} bytes instead of {entry['size']:,}")
        try:
            data = _read_file(folder / name)
        except (OSError, StorageError) as error:
            raise BadCheckpointError(f"{name} cannot be read: {error}") from error
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise BadCheckpointError(f"{name} is damaged: its SHA-256 is not the one in {MANIFEST}")
        if name == STATE:
            state = json.loads(data)
        elif name.removesuffix(SUFFIX) in tensors:
            tensors[name.removesuffix(SUFFIX)] = safetensors.torch.load(data)
    return Checkpoint(manifest.step, state, tensors, folder)


def write_checkpoint(
    folder: Path, step: int, serial: int, tensors: Groups, files: Mapping[str, bytes], at: Callable[[str], None]
) -> None:
    """Fill a folder and wait until all of it is on the disk; ``at`` is called after each file."""
    entries = {}
    for group, values in tensors.items():
        path = folder / f"{group}{SUFFIX}"
        with naming(path):
            safetensors.torch.save_file(values, path)
        entries[path.name] = _synced(path)
        at(f"{path.name} written")
    manifest = Manifest(step, serial, list(tensors), entries)
    for name, data in files.items():
        entries[name] = _write(folder / name, data)
        at(f"{name} written")
    _write(folder / MANIFEST, manifest.encode())
    at("manifest written")
    sync_folder(folder)


def _write(path: Path, data: bytes) -> dict[str, Any]:
    with open(path, "xb") as file:
        file.write(data)
    return _synced(path)


def _synced(path: Path) -> dict[str, Any]:
    """A file's entry in the manifest, once it is on the disk."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
        return {"size": _size(path), "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, on file systems that can say so."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}:
            raise
    finally:
        os.close(handle)
