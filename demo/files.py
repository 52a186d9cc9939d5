"""How all demo data get into their folder: in one step, in the folder named and nowhere else, and quietly."""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager, suppress
from pathlib import Path

import datasets

DONE_MARK = "dataset_dict.json"
OWN_ENTRIES = frozenset({"train", "validation", "README.md"})
SPLITS = ("train", "validation")


@contextmanager
def quiet_unless_terminal() -> Iterator[None]:
    """Hide the progress bars of `datasets` where they would fill a log file."""

    hide = not sys.stderr.isatty() and not datasets.are_progress_bars_disabled()
    if hide:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            datasets.enable_progress_bars()


def check_replaceable(folder: Path, own_entries: Set[str] = OWN_ENTRIES) -> None:
    """Refuse to replace a folder that may hold something else than an unfinished data set of ours.

    Raises:
        ValueError: it does, or the path is not a folder.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    others = {entry.name for entry in folder.iterdir()} - own_entries if folder.exists() else set()
    if others:
        raise ValueError(f"{folder} already holds other files ({', '.join(sorted(others)[:3])}); name a new folder")


def write_atomically(folder: Path, write: Callable[[Path], None]) -> None:
    """Call `write` with the path of a new folder and give what it wrote the name `folder` in one step.

    What is already at `folder` is kept where it is finished, and replaced where it is not.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        # A folder inside, because the temporary folder itself is closed to other users.
        target = Path(scratch) / "data"
        write(target)
        if not (folder / DONE_MARK).exists():
            with suppress(FileNotFoundError):
                os.replace(folder, Path(scratch) / "unfinished")
        try:
            os.replace(target, folder)
        except OSError:
            if not (folder / DONE_MARK).exists():
                raise
