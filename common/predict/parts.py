"""Predictions in parts, each written by one process; a restart computes those that are missing."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..system.files import atomic_write, write_json

STATE_FILE = "prediction_state.json"


def plan_parts(num_rows: int, largest: int, groups: Sequence[str | None] | None = None) -> list[np.ndarray]:
    """Row numbers of each part. They do not depend on the number of processes, so that a restart may have another.

    Args:
        num_rows: number of images.
        largest: rows in a part; fewer if that would give fewer than 64 parts.
        groups: of each row; the rows of a group stay together, in the order of first appearance. Rows with ``None``
            are groups of their own.
    """
    size = min(largest, max(1, -(-num_rows // 64)))
    members: dict[Any, list[int]] = {}
    for row, group in enumerate([None] * num_rows if groups is None else groups):
        members.setdefault(row if group is None else group, []).append(row)
    parts: list[list[int]] = []
    for rows in members.values():
        if parts and len(parts[-1]) + len(rows) <= size:
            parts[-1] += rows
        else:
            parts.append(list(rows))
    return [np.array(part) for part in parts]


def check_output_dir(output_dir: str | Path) -> None:
    """ValueError if a folder holds files other than those of a prediction."""
    folder = Path(output_dir)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; --output_dir names a folder.")
    here = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    at_once = (".lock", "parts", f"{STATE_FILE}.tmp")  # all that a run leaves that was killed at its very start
    here = [name for name in here if name not in at_once]
    if here and STATE_FILE not in here:
        raise ValueError(
            f"{folder} holds other files ({', '.join(here[:3])}{', ...' if here[3:] else ''}); "
            "give a new folder with --output_dir."
        )


class PredictionParts:
    """The parts of a prediction within its output folder.

    ``fingerprint`` is of the model, the images and the options that the predictions depend on, by their names.
    """

    def __init__(self, output_dir: str | Path, num_parts: int, fingerprint: Mapping[str, Any]) -> None:
        self.output_dir, self.num_parts = Path(output_dir), num_parts
        self.fingerprint = json.loads(json.dumps(fingerprint))
        self.folder = self.output_dir / "parts"
        self.state_file = self.output_dir / STATE_FILE

    def begin(self) -> list[int] | None:
        """Make the folder, or find the results of an earlier run (main process only).

        Returns:
            The parts still to do; ``None`` if everything is finished.

        Raises:
            ValueError: if the folder holds something else.
        """
        check_output_dir(self.output_dir)
        finished = False
        if self.state_file.exists():
            try:
                state = json.loads(self.state_file.read_text(encoding="utf-8"))
                found, finished = state["fingerprint"], state["finished"]
            except (OSError, ValueError, TypeError, KeyError) as error:
                raise ValueError(f"Cannot read {self.state_file}: {error}; give a new folder.") from error
            different = [name for name, value in self.fingerprint.items() if found.get(name) != value]
            if different:
                raise ValueError(
                    f"{self.output_dir} holds predictions that differ in: {', '.join(different)}. Give a new folder "
                    "with --output_dir, or delete that one."
                )
        if finished or not self.state_file.exists():
            shutil.rmtree(self.folder, ignore_errors=True)
        if finished:
            return None
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write_state(finished=False)
        return [part for part in range(self.num_parts) if not self._file(part).is_file()]

    def _write_state(self, finished: bool) -> None:
        write_json(self.state_file, {"finished": finished, "fingerprint": self.fingerprint})

    def _file(self, part: int) -> Path:
        return self.folder / f"part_{part:06d}.jsonl"

    def write(self, part: int, lines: Sequence[Mapping[str, Any]]) -> None:
        """Write a part: a line for each image, group or problem."""
        with atomic_write(self._file(part)) as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)

    def wait(self, seconds: float = 0.5) -> None:
        """Wait until all parts are written, checking every so many seconds.

        A collective operation would time out where one process takes hours longer than another.
        """
        missing = range(self.num_parts)
        while missing := [part for part in missing if not self._file(part).is_file()]:
            time.sleep(seconds)

    def lines(self) -> Iterator[dict[str, Any]]:
        """All lines of all parts, in order."""
        for part in range(self.num_parts):
            with self._file(part).open(encoding="utf-8") as stream:
                yield from map(json.loads, stream)

    def finish(self) -> None:
        """Remove the parts, which are merged now."""
        self._write_state(finished=True)
        shutil.rmtree(self.folder, ignore_errors=True)
