"""Worker processes: the same files however many there are, small ones."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
from datasets import Dataset
from PIL import Image

from data_prep.folder.images import Store
from data_prep.folder.pieces import PieceMaker, make_pieces


@dataclass(frozen=True)
class DyingStore(Store):
    """Dies as if memory had run out."""

    def __call__(self, image, mask=None):
        os.kill(os.getpid(), signal.SIGKILL)


def make_work(folder: Path, store: Store, num_rows: int = 6) -> tuple[PieceMaker, list[list[str]]]:
    for index in range(num_rows):
        Image.new("RGB", (8, 9), (index, 0, 0)).save(folder / f"{index}.png")
    (folder / "pieces").mkdir(exist_ok=True)
    maker = PieceMaker(folder / "pieces", store, os.path.realpath(folder))
    return maker, [[f"{index}.png"] for index in range(num_rows)]


@pytest.mark.slow
def test_any_number_of_processes_writes_the_same(tmp_path):
    contents = []
    for num_proc in (1, 2):
        folder = tmp_path / str(num_proc)
        folder.mkdir()
        maker, rows = make_work(folder, Store("image", embed=True))
        done: list[int] = []
        files = make_pieces(maker, rows, 2, num_proc, done.append)
        assert sum(done) == 6 and len(files) == 3
        contents.append([path.read_bytes() for path in files])
    assert contents[0] == contents[1]
    first, second = Dataset.from_file(str(files[1]))
    content = (folder / "2.png").read_bytes()
    assert first["image"] == {"bytes": content, "path": "2.png"} and first["at"] == 2
    assert (second["at"], second["width"], second["height"], first["num_bytes"]) == (3, 8, 9, len(content))


def test_what_is_finished_is_not_made_again(tmp_path):
    maker, rows = make_work(tmp_path, Store("image"))
    files = make_pieces(maker, rows, 2, 1, lambda _: None)
    for index in range(6):
        (tmp_path / f"{index}.png").unlink()
    before = files[0].read_bytes()
    files[2].unlink()
    assert make_pieces(maker, rows, 2, 1, lambda _: None) == files and files[0].read_bytes() == before
    made = Dataset.from_file(str(files[2]))
    assert made["at"][:] == [4, 5] and made["kind"][:] == ["missing", "missing"] and made["image"][0] is None


def test_a_killed_worker_is_explained(tmp_path):
    maker, rows = make_work(tmp_path, DyingStore("image"))
    with pytest.raises(ValueError, match="smaller --num_proc"):
        make_pieces(maker, rows, 2, 2, lambda _: None)
