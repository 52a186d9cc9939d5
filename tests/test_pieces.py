"""Worker processes: the same files however many there are, small ones, and none that outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from datasets import Dataset
from PIL import Image

from data_prep.folder.images import Store
from data_prep.folder.pieces import PieceMaker, make_pieces

REPOSITORY = Path(__file__).parents[1]


@dataclass(frozen=True)
class SlowStore(Store):
    """Notes its process, then takes its time."""

    def __call__(self, image, mask=None):
        Path(image.content + f".{os.getpid()}.seen").touch()
        time.sleep(0.3)
        return super().__call__(image)


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


def test_workers_die_with_their_parent(tmp_path):
    maker, _ = make_work(tmp_path, SlowStore("image"), 40)
    code = (
        "import sys; sys.path[:0] = sys.argv[1:3]\n"
        "if __name__ == '__main__':\n"
        "    import test_pieces as t; from pathlib import Path\n"
        "    maker, rows = t.make_work(Path(sys.argv[3]), t.SlowStore('image'), 40)\n"
        "    t.make_pieces(maker, rows, 2, 2, lambda _: None)\n"
    )
    (tmp_path / "script.py").write_text(code)
    command = [sys.executable, str(tmp_path / "script.py"), str(REPOSITORY), str(REPOSITORY / "tests"), str(tmp_path)]
    with subprocess.Popen(command) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("*.seen")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.kill()
    workers = {int(path.name.split(".")[-2]) for path in tmp_path.glob("*.seen")}
    assert workers
    deadline = time.monotonic() + 20
    while any(map(is_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_alive, workers))
    finished = list(maker.folder.glob("*.arrow"))
    assert len(finished) < 20
    assert all(len(Dataset.from_file(str(path))) == 2 for path in finished)


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state not in "ZX"
