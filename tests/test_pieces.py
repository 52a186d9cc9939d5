"""Worker processes: the same files however many there are, small ones, and none that outlives its parent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from data_prep.folder.images import Store
from data_prep.folder.pieces import PieceMaker, make_pieces, open_arrow

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
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()}) if store.embeds else pa.string()
    maker = PieceMaker(folder / "pieces", pa.schema({"image": kind}), store, os.path.realpath(folder))
    return maker, [[f"{index}.png"] for index in range(num_rows)]


def test_any_number_of_processes_writes_the_same(tmp_path):
    contents = []
    for num_proc in (1, 2):
        folder = tmp_path / str(num_proc)
        folder.mkdir()
        maker, rows = make_work(folder, Store("image", embed=True))
        done: list[int] = []
        found = make_pieces(maker, rows, 2, num_proc, done.append)
        assert sum(done) == 6
        contents.append({path.name: path.read_bytes() for path in maker.folder.iterdir()})
    assert contents[0] == contents[1] and len(contents[0]) == 6
    table = open_arrow(maker.folder / "00001.arrow")
    assert table["image"][0].as_py() == {"bytes": (folder / "2.png").read_bytes(), "path": "2.png"}
    sizes = [(folder / f"{row}.png").stat().st_size for row in (2, 3)]
    rows = [[row, 8, 9, size, {}] for row, size in zip((2, 3), sizes, strict=True)]
    assert found["00001"] == {"rows": rows, "problems": []}


def test_what_is_finished_is_not_made_again(tmp_path):
    maker, rows = make_work(tmp_path, Store("image"))
    make_pieces(maker, rows, 2, 1, lambda _: None)
    for index in range(6):
        (tmp_path / f"{index}.png").unlink()
    before = (maker.folder / "00000.arrow").read_bytes()
    (maker.folder / "00002.json").unlink()  # a kill between the two files of a piece
    found = make_pieces(maker, rows, 2, 1, lambda _: None)
    assert (maker.folder / "00000.arrow").read_bytes() == before
    assert [(row, kind) for row, kind, _ in found["00002"]["problems"]] == [(4, "missing"), (5, "missing")]


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
    finished = len(list(maker.folder.glob("*.json")))
    assert finished < 20
    assert all(json.loads(path.read_text())["rows"] for path in maker.folder.glob("*.json"))


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state not in "ZX"
