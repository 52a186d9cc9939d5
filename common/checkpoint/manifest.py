"""What a checkpoint folder holds, written down with sizes and SHA-256, so that a reader knows whether it is intact."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import StorageError, retried

NAME = "manifest.json"
FORMAT = 1
CHUNK = 8 << 20

_read_file = retried(Path.read_bytes)

Buffer = bytes | memoryview
Content = tuple[Buffer, ...]
"""Of a file: buffers to write one after the other."""


class BadCheckpointError(ValueError):
    """A folder is no intact checkpoint; the message is the reason, without the folder's name."""


@dataclass(frozen=True)
class FileEntry:
    """A file's length in bytes and its SHA-256 in hexadecimal."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json.

    Args:
        step: of the training, when it was saved.
        serial: one more than that of the save before. It orders folders as they were written, also where a run went
            back to an earlier step or began anew; neither names nor times of files can.
        groups: of tensors, each in the file ``<group>.safetensors``.
        files: all files but the manifest.
    """

    step: int
    serial: int
    groups: tuple[str, ...]
    files: Mapping[str, FileEntry]

    def encode(self) -> bytes:
        """JSON that ends with the SHA-256 of itself."""
        return _seal(
            {
                "format": FORMAT,
                "step": self.step,
                "serial": self.serial,
                "groups": list(self.groups),
                "files": {name: vars(entry) for name, entry in self.files.items()},
            }
        )

    @staticmethod
    def read(folder: Path) -> Manifest:
        """The manifest of a folder; BadCheckpointError if that is not intact. No other file is looked at."""
        try:
            if not folder.is_dir():
                raise BadCheckpointError("it is not a folder")
            data = _read_file(folder / NAME)
        except FileNotFoundError:
            raise BadCheckpointError(f"it has no {NAME}: it is incomplete or no checkpoint of this program") from None
        except (OSError, StorageError) as error:
            raise BadCheckpointError(f"{NAME} cannot be read: {error}") from error
        return _decode(data)


def _seal(content: dict[str, Any]) -> bytes:
    body = json.dumps(content, indent=1, sort_keys=True).encode()
    return json.dumps({**content, "sha256": hashlib.sha256(body).hexdigest()}, indent=1, sort_keys=True).encode()


def _decode(data: bytes) -> Manifest:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        raise BadCheckpointError(f"{NAME} is damaged") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else None
        raise BadCheckpointError(f"{NAME} is of format {found}, and this program reads format {FORMAT}")
    content.pop("sha256", None)
    if _seal(content) != data:
        # Compared byte by byte: a flipped bit in a blank or in the digest itself is damage, too.
        raise BadCheckpointError(f"{NAME} is damaged: it does not match its own SHA-256")
    try:
        files = {name: FileEntry(**entry) for name, entry in content["files"].items()}
        return Manifest(content["step"], content["serial"], tuple(content["groups"]), files)
    except (AttributeError, KeyError, TypeError):
        raise BadCheckpointError(f"{NAME} lacks what format {FORMAT} has") from None


# ---- files


def looks_complete(folder: Path) -> bool:
    """Whether a folder has an intact manifest and files of the right lengths; costs no reading of these."""
    try:
        check_sizes(folder, Manifest.read(folder))
    except BadCheckpointError:
        return False
    return True


def check_sizes(folder: Path, manifest: Manifest) -> None:
    """BadCheckpointError if a file is missing or of another length; costs no reading."""
    for name, entry in manifest.files.items():
        try:
            size = (folder / name).stat().st_size
        except OSError as error:
            raise BadCheckpointError(f"{name} cannot be read: {error.strerror}") from error
        if size != entry.size:
            raise BadCheckpointError(f"{name} has {size:,} bytes instead of {entry.size:,}")


def verified_files(folder: Path, manifest: Manifest) -> Iterator[tuple[str, bytes]]:
    """Read a folder's files one by one, each once; BadCheckpointError at the first whose bytes are not as written."""
    check_sizes(folder, manifest)
    for name, entry in manifest.files.items():
        try:
            data = _read_file(folder / name)
        except (OSError, StorageError) as error:
            raise BadCheckpointError(f"{name} cannot be read: {error}") from error
        if describe([data]) != entry:
            raise BadCheckpointError(f"{name} is damaged: its SHA-256 is not the one in {NAME}")
        yield name, data


def write_file(path: Path, parts: Iterable[Buffer]) -> FileEntry:
    """Write a new file and wait until it is on the disk; hashed on the way, while the bytes are at hand."""
    digest, size = hashlib.sha256(), 0
    with open(path, "xb") as file:
        for chunk in _chunks(parts):
            digest.update(chunk)
            file.write(chunk)
            size += len(chunk)
        file.flush()
        os.fsync(file.fileno())
    return FileEntry(size, digest.hexdigest())


def describe(parts: Iterable[Buffer]) -> FileEntry:
    """What :func:`write_file` would return, without writing."""
    digest, size = hashlib.sha256(), 0
    for chunk in _chunks(parts):
        digest.update(chunk)
        size += len(chunk)
    return FileEntry(size, digest.hexdigest())


def _chunks(parts: Iterable[Buffer]) -> Iterator[memoryview]:
    for part in parts:
        view = memoryview(part)
        for start in range(0, len(view), CHUNK):
            yield view[start : start + CHUNK]
