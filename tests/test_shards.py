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
from data_prep.folder.shards import Shard, ShardMaker, make_shards, open_arrow, read_result, write_arrow

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


def make_work(folder: Path, store: Store, num_rows: int = 6) -> tuple[ShardMaker, list[Shard]]:
    for index in range(num_rows):
        Image.new("RGB", (8, 9), (index, 0, 0)).save(folder / f"{index}.png")
    (folder / "shards").mkdir(exist_ok=True)
    table = pa.table({"image": [f"{index}.png" for index in range(num_rows)], "label": ["a"] * num_rows})
    write_arrow(folder / "plan.arrow", table.schema, iter(table.to_batches()))
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()}) if store.embeds else pa.string()
    schema = pa.schema({"image": kind, "label": pa.string()})
    work = ShardMaker(folder / "shards", folder / "plan.arrow", schema, store, os.path.realpath(folder))
    return work, [Shard(number, "train", 2 * number, 2 * number + 2) for number in range(num_rows // 2)]


def test_any_number_of_processes_writes_the_same(tmp_path):
    contents = []
    for num_proc in (1, 2):
        folder = tmp_path / str(num_proc)
        folder.mkdir()
        work, shards = make_work(folder, Store("image", embed=True))
        done: list[int] = []
        make_shards(work, shards, num_proc, done.append)
        assert sum(done) == 6
        contents.append({path.name: path.read_bytes() for path in work.folder.iterdir()})
    assert contents[0] == contents[1] and len(contents[0]) == 6
    table = open_arrow(work.folder / "data-00001.arrow")
    assert table["image"][0].as_py() == {"bytes": (folder / "2.png").read_bytes(), "path": "2.png"}
    result = read_result(work.folder, shards[1])
    assert result.rows == [2, 3]
    assert result.sizes == [[8, 9]] * 2 and result.num_bytes > 0


def test_what_is_finished_is_not_made_again(tmp_path):
    work, shards = make_work(tmp_path, Store("image"))
    make_shards(work, shards, 1, lambda _: None)
    for index in range(6):
        (tmp_path / f"{index}.png").unlink()
    before = (work.folder / "data-00000.arrow").read_bytes()
    (work.folder / "data-00002.json").unlink()  # a kill between the two files of a shard
    make_shards(work, shards, 1, lambda _: None)
    assert (work.folder / "data-00000.arrow").read_bytes() == before
    assert [kind for _, kind, _ in read_result(work.folder, shards[2]).problems] == ["missing", "missing"]


@pytest.mark.parametrize(
    "module", ["folder.shards", "folder.scan_store", "prepare_table", "prepare_fungitastic", "prepare_artefact"]
)
def test_workers_are_small(module):
    """Python imports the script anew in every worker: it must not bring half a gigabyte of packages along."""
    code = f"import sys, data_prep.{module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert not {"torch", "timm", "transformers", "datasets", "pandas"} & set(done.stdout.split())


def test_a_killed_worker_is_explained(tmp_path):
    work, shards = make_work(tmp_path, DyingStore("image"))
    with pytest.raises(ValueError, match="smaller --num_proc"):
        make_shards(work, shards, 2, lambda _: None)


def test_workers_die_with_their_parent(tmp_path):
    work, _ = make_work(tmp_path, SlowStore("image"), 40)
    code = (
        "import sys; sys.path[:0] = sys.argv[1:3]\n"
        "if __name__ == '__main__':\n"
        "    import test_shards as t; from pathlib import Path\n"
        "    work, shards = t.make_work(Path(sys.argv[3]), t.SlowStore('image'), 40)\n"
        "    t.make_shards(work, shards, 2, lambda _: None)\n"
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
    finished = len(list(work.folder.glob("*.json")))
    assert finished < 20
    assert all(json.loads(path.read_text())["rows"] for path in work.folder.glob("*.json"))


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state not in "ZX"
