"""Kills between any two steps, flipped bits, full disks: always the old checkpoint or the new one, bit for bit."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import safetensors.torch
import torch

from common.checkpoint import folder as folders
from common.checkpoint import layouts
from common.checkpoint.checkpointer import Checkpointer
from common.checkpoint.layouts import ArtifactLayout, Layout
from common.system.lock import RunLock

LINK = ArtifactLayout.link_name
LAYOUTS = {"plain": Layout, "artifact": ArtifactLayout}


def content(step: int) -> tuple[dict, dict]:
    """Tensors and state that follow from the step alone."""
    weight = torch.arange(12.0).reshape(3, 4) * math.pi + step / 7
    groups = {"model": {"w": weight, "b": weight[0].bfloat16()}, "optimizer": {"step": torch.tensor(float(step))}}
    return groups, {"step": step, "loss": math.pi * step, "history": [0.1, math.nan]}


def save(checkpointer: Checkpointer, step: int, **options) -> None:
    checkpointer.save(step, *content(step), wait=True, **options)


def assert_is(loaded, step: int) -> None:
    """Bit-identical to what was saved for the step."""
    groups, state = content(step)
    assert loaded is not None and loaded.step == step
    assert repr(loaded.state) == repr(state)
    assert_same(loaded.tensors, groups)


def assert_same(left: dict, right: dict) -> None:
    assert {group: set(tensors) for group, tensors in left.items()} == {g: set(t) for g, t in right.items()}
    for group, tensors in right.items():
        for name, tensor in tensors.items():
            found = left[group][name]
            assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape), name
            assert bytes_of(found) == bytes_of(tensor), name


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def names(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()}


def visible(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir() and not path.is_symlink())


# ---- round trips


def awkward_tensors() -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(6, 8, generator=generator)
    special = torch.tensor([math.nan, math.inf, -math.inf, -0.0, 5e-324, 1e-40], dtype=torch.float64)
    dtypes = [torch.float16, torch.bfloat16, torch.int8, torch.int16, torch.int32, torch.uint8, torch.bool]
    return {
        "model": {
            "transposed": base.t(),
            "strided": base[::2, 1::3],
            "expanded": base[:1].expand(5, 8),
            "channels_last": torch.randn(2, 3, 4, 5, generator=generator).to(memory_format=torch.channels_last),
            "shared": base,
            "shared again": base.view(-1),
            "ö/name.with.dots": base[0],
            "parameter": torch.nn.Parameter(base[1].clone()),
        },
        "ema": {},
        "optimizer": {
            "scalar": torch.tensor(3.5),
            "special": special,
            "special32": special.float(),
            "none": torch.empty(0, 3),
            "int64": torch.tensor([-(2**63), 2**63 - 1]),
            "complex": torch.complex(base[2], base[3]),
            **{str(dtype): (base[:3, :5] * 10).to(dtype) for dtype in dtypes},
        },
    }


def test_awkward_tensors_and_states_come_back_bit_by_bit(tmp_path):
    groups = awkward_tensors()
    state = {"nan": math.nan, "inf": [-math.inf, math.inf], "x": 0.1 + 0.2, "tiny": 5e-324, "deep": {"ü": None}}
    (tmp_path / "config.json").write_text("{}")
    checkpointer = Checkpointer(tmp_path / "run")
    checkpointer.save(7, groups, state, extra_files={"config.json": tmp_path / "config.json"})
    loaded = checkpointer.load()
    assert_same(loaded.tensors, groups)
    assert repr(loaded.state) == repr(state) and loaded.path == tmp_path / "run" / "checkpoint-00000007"
    assert (loaded.path / "config.json").read_text() == "{}"
    assert names(loaded.path) == {"config.json", "manifest.json", "state.json"} | {
        f"{group}.safetensors" for group in groups
    }
    assert os.readlink(tmp_path / "run" / "latest") == "checkpoint-00000007"
    for group, tensors in groups.items():  # others read the files, too
        assert safetensors.torch.load_file(loaded.path / f"{group}.safetensors").keys() == tensors.keys()


def test_any_process_reads_with_an_object_of_its_own(tmp_path):
    assert Checkpointer(tmp_path / "none").load() is None and not (tmp_path / "none").exists()
    for step in (5, 100_000_000):
        save(Checkpointer(tmp_path), step)
    assert_is(Checkpointer(tmp_path).load(), 100_000_000)
    assert_is(Checkpointer(tmp_path).load(tmp_path / "checkpoint-00000005"), 5)
    assert_is(Checkpointer(tmp_path).load(tmp_path / "latest"), 100_000_000)


@pytest.mark.parametrize(
    ("groups", "state", "extra", "error", "message"),
    [
        ({"m": {"x": torch.empty(2, device="meta")}}, {}, {}, ValueError, "m: x .* does not fit into safetensors"),
        ({"m": {"x": torch.eye(2).to_sparse()}}, {}, {}, ValueError, "does not fit into safetensors"),
        ({}, {"a": object()}, {}, TypeError, "not JSON serializable"),
    ],
)
def test_what_cannot_be_saved_is_refused_at_once(tmp_path, groups, state, extra, error, message):
    checkpointer = Checkpointer(tmp_path)
    with pytest.raises(error, match=message):
        checkpointer.save(1, groups, state, extra_files=extra)
    save(checkpointer, 1)
    assert_is(checkpointer.load(), 1)


def test_one_checkpoint_is_not_enough(tmp_path):
    with pytest.raises(ValueError, match="--keep_last 1: keep at least 2"):
        Checkpointer(tmp_path, keep_last=1)


# ---- the thread


class Held(Checkpointer):
    """Stops its thread at one point until told to go on, and lists the points."""

    def __init__(self, *args, at: str = "swept", **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.stop_at, self.reached, self.go, self.points = at, threading.Event(), threading.Event(), []

    def _at(self, point: str) -> None:
        self.points.append(point)
        if point == self.stop_at:
            self.reached.set()
            assert self.go.wait(60)


def test_save_returns_first_and_keeps_what_was_there(tmp_path):
    checkpointer = Held(tmp_path)
    groups, state = content(1)
    checkpointer.save(1, groups, state)
    assert checkpointer.reached.wait(60) and visible(tmp_path) == []  # nothing is written yet
    for tensors in groups.values():
        for tensor in tensors.values():
            tensor.fill_(0)
    state["history"].clear()
    checkpointer.go.set()
    checkpointer.wait()
    assert_is(checkpointer.load(), 1)


def test_two_saves_are_never_under_way_at_once(tmp_path):
    checkpointer = Held(tmp_path, at="linked")
    checkpointer.save(1, *content(1))
    assert checkpointer.reached.wait(60)
    second = threading.Thread(target=checkpointer.save, args=(2, *content(2)))
    second.start()
    second.join(0.05)
    assert second.is_alive() and checkpointer.points.count("swept") == 1  # it waits for the first
    checkpointer.go.set()
    second.join(60)
    assert_is(checkpointer.load(), 2)
    assert_is(checkpointer.load(tmp_path / "checkpoint-00000001"), 1)
    checkpointer.close()
    checkpointer.close()


def test_memory_is_used_again(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    save(checkpointer, 1)
    place = checkpointer._memory["model", "w"].data_ptr()
    save(checkpointer, 2)
    assert checkpointer._memory["model", "w"].data_ptr() == place
    checkpointer.save(3, {"model": {"large": torch.ones(1000)}}, {}, wait=True)
    save(checkpointer, 4)  # small again, in the larger memory
    assert_is(checkpointer.load(), 4)


SCRIPT = """
import sys, time, torch
from common.checkpoint.checkpointer import Checkpointer
class Slow(Checkpointer):
    def _at(self, point):
        time.sleep(0.02)
        if self.root.name == "full" and point == "folder synced":
            raise OSError(28, "No space left on device")
checkpointers = [Slow(sys.argv[1] + "/whole"), Slow(sys.argv[1] + "/full")]
for checkpointer in checkpointers:
    checkpointer.save(3, {"model": {"x": torch.ones(3)}}, {})
"""


@pytest.mark.slow
def test_the_interpreter_finishes_saves_before_it_exits_and_says_what_failed(tmp_path):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=True)
    assert Checkpointer(tmp_path / "whole").load().step == 3
    assert done.stderr.count("step 3 could not be saved") == 1 and names(tmp_path / "full") == set()


# ---- kills


def killed(root: Path, point: int, *arguments, layout: Layout | None = None, **options) -> bool:
    """Save in a fork that kills itself at the n-th point; whether it got there. Fails the test if the save fails."""
    process = os.fork()
    if process == 0:
        with contextlib.suppress(BaseException):
            logging.disable()
            Killed(root, layout=layout, at=point).save(*arguments, wait=True, **options)
            os._exit(0)
        os._exit(1)
    status = os.waitpid(process, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


class Killed(Checkpointer):
    """Kills its process at the n-th point."""

    def __init__(self, *args, at: int, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.left = at

    def _at(self, point: str) -> None:
        self.left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def previous_saves(root: Path, layout: Layout) -> None:
    """Steps 10, 20 and 30, ten of them forced, and a damaged 40 (the next step) that nothing links to."""
    checkpointer = Checkpointer(root, layout=layout)
    for step in (10, 20, 30):
        save(checkpointer, step, force=step == 10)
    good = layout.linked(root)
    save(checkpointer, 40)
    damage(layout.linked(root) / "model.safetensors")
    layout.link(good, lambda point: None)


@pytest.mark.parametrize(
    ("name", "force"),
    [("plain", False), pytest.param("artifact", False, marks=pytest.mark.slow), ("artifact", True)],
)
def test_a_kill_between_any_two_steps_leaves_the_old_or_the_new_one(tmp_path, name, force):
    layout = LAYOUTS[name]()
    previous_saves(tmp_path / "start", layout)
    found, point = [], 0
    while True:
        root = tmp_path / f"run{point}"
        shutil.copytree(tmp_path / "start", root, symlinks=True)
        was_killed = killed(root, point, 40, *content(40), layout=layout, force=force)
        loaded = Checkpointer(root, layout=layout).load()
        assert_is(loaded, loaded.step)
        found.append(loaded.step)
        after = Checkpointer(root, layout=layout)
        save(after, 50, force=force)
        save(after, 60)
        assert_is(after.load(), 60)
        assert not [path for path in names(root) if path.startswith(".")]
        if name == "plain":
            assert visible(root) == ["checkpoint-00000050", "checkpoint-00000060"]
        if not was_killed:
            break
        shutil.rmtree(root)
        point += 1
    assert point >= 10 and sorted(found) == found and set(found) == {30, 40}


@pytest.mark.parametrize("name", ["plain", "artifact"])
def test_a_kill_in_the_first_save_leaves_nothing_or_all_of_it(tmp_path, name):
    layout, found, point = LAYOUTS[name](), [], 0
    while killed(tmp_path / str(point), point, 1, *content(1), layout=layout):
        loaded = Checkpointer(tmp_path / str(point), layout=layout).load()
        found.append(loaded is not None)
        if loaded:
            assert_is(loaded, 1)
        after = Checkpointer(tmp_path / str(point), layout=layout)
        save(after, 1)
        assert_is(after.load(), 1)
        point += 1
    assert sorted(found) == found and set(found) == {False, True}


def test_a_kill_while_a_whole_checkpoint_of_that_step_is_replaced(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, {}, {"run": "old"}, wait=True)  # the only one
    point, found = 0, []
    while killed(tmp_path, point, 1, {}, {"run": "new"}):
        found.append(Checkpointer(tmp_path).load().state["run"])
        Checkpointer(tmp_path).save(1, {}, {"run": "old"}, wait=True)
        point += 1
    assert found[0] == "old" and found[-1] == "new" and visible(tmp_path) == ["checkpoint-00000001"]


# ---- damage


def test_a_flipped_bit_anywhere_is_found(tmp_path, caplog):
    checkpointer = Checkpointer(tmp_path)
    save(checkpointer, 1)
    save(checkpointer, 2)
    folder = tmp_path / "checkpoint-00000002"
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        # Every fifth byte of the manifest, blanks included; elsewhere one in 31, with another bit each.
        for place in range(0, len(whole), 5 if path.name == "manifest.json" else 31):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << (place % 8)
            path.write_bytes(flipped)
            caplog.clear()
            assert checkpointer.load().step == 1, (path.name, place)
            assert str(folder) in caplog.text and path.name in caplog.text
        path.write_bytes(whole)
    assert_is(checkpointer.load(), 2)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def become_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("harm", [damage, truncate, empty, lengthen, Path.unlink, become_a_folder])
@pytest.mark.parametrize("file", ["model.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("name", ["plain", "artifact"])
def test_a_harmed_checkpoint_is_passed_over_and_replaced(tmp_path, caplog, harm, file, name):
    layout = LAYOUTS[name]()
    checkpointer = Checkpointer(tmp_path, layout=layout)
    save(checkpointer, 1)
    save(checkpointer, 2)
    folder = layout.linked(tmp_path)
    harm(folder / file)
    checkpointer = Checkpointer(tmp_path, layout=layout)
    assert_is(checkpointer.load(), 1)
    assert f"{folder} is not used: " in caplog.text and "Falling back on " in caplog.text
    with pytest.raises(ValueError, match=f"{folder.name} is not an intact checkpoint"):
        checkpointer.load(folder)
    save(checkpointer, 2)
    assert_is(checkpointer.load(), 2)
    assert_is(checkpointer.load(layout.linked(tmp_path)), 2)


def test_what_only_looks_like_a_checkpoint_stops_nothing_and_stays(tmp_path, caplog):
    checkpointer = Checkpointer(tmp_path)
    save(checkpointer, 1)
    (tmp_path / "checkpoint-00000500").mkdir()  # half-deleted
    (tmp_path / "checkpoint-00000501").write_text("a file")
    (tmp_path / "checkpoint-00000502").symlink_to("nowhere")
    for number, text in enumerate(['{"format": 2}', "[]", "null", '{"a": 1', "[" * 100_000, '{"format": 1}']):
        (tmp_path / f"checkpoint-{600 + number:08d}").mkdir()
        (tmp_path / f"checkpoint-{600 + number:08d}" / "manifest.json").write_text(text)
    foreign = names(tmp_path) - {"latest", "checkpoint-00000001"}
    (tmp_path / "checkpoint-500").mkdir()  # another program's
    (tmp_path / "checkpoint-best").mkdir()
    assert_is(checkpointer.load(), 1)
    assert all(f"{name} is not used: " in caplog.text for name in foreign)
    assert "is of format 2, and this program reads format 1" in caplog.text
    for step in (2, 3, 4):
        save(checkpointer, step)
    assert_is(checkpointer.load(), 4)
    kept = {"latest", "checkpoint-500", "checkpoint-best", "checkpoint-00000003", "checkpoint-00000004"}
    assert names(tmp_path) == foreign | kept
    save(checkpointer, 500)  # except where its name is needed
    assert_is(checkpointer.load(), 500)


def test_nothing_whole_is_an_error_and_not_a_fresh_start(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    save(checkpointer, 1)
    save(checkpointer, 2)
    truncate(tmp_path / "checkpoint-00000001" / "state.json")
    damage(tmp_path / "checkpoint-00000002" / "model.safetensors")
    with pytest.raises(ValueError, match=r"none of them is intact.*bytes instead of.*--resume_from_checkpoint none"):
        checkpointer.load()
    save(checkpointer, 3)
    assert_is(checkpointer.load(), 3)


@pytest.mark.parametrize("kind", ["missing", "dangling", "garbage", "loop", "file", "folder", "copy"])
def test_the_link_may_be_anything(tmp_path, kind):
    checkpointer = Checkpointer(tmp_path)
    save(checkpointer, 1)
    save(checkpointer, 2)
    link = tmp_path / "latest"
    link.unlink()
    if kind in {"dangling", "garbage", "loop"}:
        os.symlink({"dangling": "checkpoint-00000009", "garbage": "/dev/null", "loop": "latest"}[kind], link)
    elif kind == "file":
        link.write_text("checkpoint-00000001")
    elif kind == "folder":
        link.mkdir()
    elif kind == "copy":  # as tools that follow links make it
        shutil.copytree(tmp_path / "checkpoint-00000002", link)
    assert_is(checkpointer.load(), 2)
    save(checkpointer, 3)
    assert os.readlink(link) == "checkpoint-00000003"
    assert_is(checkpointer.load(), 3)


def test_a_dangling_link_alone_is_nothing_to_load(tmp_path, caplog):
    (tmp_path / "latest").symlink_to("checkpoint-00000009")
    assert Checkpointer(tmp_path).load() is None and "checkpoint-00000009, which is gone" in caplog.text


# ---- what stays


def test_the_newest_stay_and_what_links_name_whatever_their_times(tmp_path):
    checkpointer = Checkpointer(tmp_path, keep_last=3)
    for step in (9, 10, 11, 100, 99_999_999, 100_000_000):
        save(checkpointer, step)
        os.utime(tmp_path / f"checkpoint-{step:08d}", (10**9 - step, 10**9 - step))  # newest seems oldest
        if step == 10:
            (tmp_path / "best").symlink_to("checkpoint-00000010")
    kept = ["checkpoint-00000010", "checkpoint-00000100", "checkpoint-100000000", "checkpoint-99999999"]
    assert visible(tmp_path) == kept


def test_a_run_that_goes_back_keeps_its_own_and_not_those_of_before(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    for step in (10, 20, 30):
        save(checkpointer, step)
    for step in (1, 2):  # it began anew in the same folder
        save(checkpointer, step)
    assert visible(tmp_path) == ["checkpoint-00000001", "checkpoint-00000002"]
    damage(tmp_path / "checkpoint-00000002" / "state.json")
    assert_is(checkpointer.load(), 1)


def test_damaged_ones_do_not_count_among_those_to_keep(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    save(checkpointer, 1)
    save(checkpointer, 2)
    damage(tmp_path / "checkpoint-00000002" / "model.safetensors")
    assert_is(checkpointer.load(), 1)
    save(checkpointer, 3)
    assert visible(tmp_path) == ["checkpoint-00000001", "checkpoint-00000003"]


def test_the_same_step_twice(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    save(checkpointer, 1)
    save(Checkpointer(tmp_path), 1)
    assert_is(checkpointer.load(), 1)
    groups, state = content(1)
    checkpointer.save(1, groups, {**state, "evaluated": True}, wait=True)
    assert checkpointer.load().state["evaluated"] and visible(tmp_path) == ["checkpoint-00000001"]


def test_left_overs_of_dead_runs_go_with_the_next_save(tmp_path):
    rests = ["incomplete", "deleted", "replaced"]
    for number, kind in enumerate(rests):
        (tmp_path / f".checkpoint-0000000{number}.{kind}-17-00ab" / "x").mkdir(parents=True)
    (tmp_path / ".latest.temporary-17-00ab").symlink_to("checkpoint-00000001")
    (tmp_path / ".other.incomplete-17-00ab").mkdir()  # not of checkpoints
    (tmp_path / "checkpoint-00000002").mkdir()
    save(Checkpointer(tmp_path), 3)
    assert names(tmp_path) == {".other.incomplete-17-00ab", "checkpoint-00000002", "checkpoint-00000003", "latest"}


# ---- disks


class Full(Checkpointer):
    """Its disk is full from the n-th point on."""

    at, error = 10**9, errno.ENOSPC

    def _at(self, point: str) -> None:
        self.at -= 1
        if self.at < 0:
            raise OSError(self.error, os.strerror(self.error))


@pytest.mark.parametrize("name", ["plain", "artifact"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk_at_any_point(tmp_path, name, error):
    layout, failures, found = LAYOUTS[name](), 0, []
    for point in range(100):
        root = tmp_path / str(point)
        save(Checkpointer(root, layout=layout), 1)
        checkpointer = Full(root, layout=layout)
        checkpointer.at, checkpointer.error = point, error
        checkpointer._failed = True  # otherwise a warning would do
        checkpointer.save(2, *content(2))
        try:
            checkpointer.wait()
        except OSError as failure:
            failures += 1
            reason = "the disk is full" if error == errno.ENOSPC else "the folder is read-only"
            assert re.search(
                rf"step 2 could not be saved in .*: {reason} .*previous checkpoint, \S+, is", str(failure)
            )
            assert failure.errno == error
        done = checkpointer.at >= 0
        checkpointer.at = 10**9
        loaded = checkpointer.load()
        assert_is(loaded, loaded.step)
        found.append(loaded.step)
        assert not [path for path in names(root) if path.startswith(".")]
        save(checkpointer, 3)
        assert_is(checkpointer.load(), 3)
        if done:
            break
    assert failures >= 7 and sorted(found) == found and set(found) == {1, 2}


@pytest.mark.parametrize("function", ["fsync", "rename", "replace", "symlink", "mkdir", "open", "write"])
def test_a_full_disk_in_any_call(tmp_path, monkeypatch, function):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    class FullFile:
        """Takes some bytes, and then no more."""

        def __init__(self, *args):
            self.file, self.left = open(*args), 100  # noqa: SIM115

        def write(self, data):
            self.left -= len(data)
            return self.file.write(data) if self.left > 0 else full()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *args):
            self.file.close()

    checkpointer = Checkpointer(tmp_path)
    save(checkpointer, 1)
    with monkeypatch.context() as patch:
        if function in {"open", "write"}:
            patch.setattr(folders, "open", full if function == "open" else FullFile, raising=False)
        elif function == "mkdir":
            patch.setattr(Path, "mkdir", full)
        else:
            patch.setattr(os, function, full)
        checkpointer.save(2, *content(2))
        checkpointer.save(3, *content(3))  # one that fails is a warning
        with pytest.raises(OSError, match="disk is full .*The previous checkpoint, checkpoint-00000001, is intact"):
            checkpointer.save(4, *content(4))  # the next save says it
    loaded = checkpointer.load()
    assert_is(loaded, 1)
    save(checkpointer, 4)
    assert_is(checkpointer.load(), 4)
    assert not [path for path in names(tmp_path) if path.startswith(".")]


def test_a_disk_that_cannot_delete_has_saved(tmp_path, monkeypatch, caplog):
    checkpointer = Checkpointer(tmp_path)
    save(checkpointer, 1)
    save(checkpointer, 2)
    monkeypatch.setattr(layouts.shutil, "rmtree", lambda path: os.stat(tmp_path / "missing"))
    save(checkpointer, 3)
    assert "could not be deleted" in caplog.text
    assert_is(checkpointer.load(), 3)


def test_a_disk_without_links(tmp_path, monkeypatch, caplog):
    def no_links(*args):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "symlink", no_links)
    checkpointer = Checkpointer(tmp_path)
    for step in (1, 2, 3):
        save(checkpointer, step)
    assert visible(tmp_path) == ["checkpoint-00000002", "checkpoint-00000003"] and "has no links" in caplog.text
    assert_is(checkpointer.load(), 3)


# ---- the artifact protocol


def test_numbers_links_and_forced_folders_of_artifacts(tmp_path):
    checkpointer = Checkpointer(tmp_path, layout=ArtifactLayout())
    for step, force in ((100, False), (200, True), (300, False), (300, True)):
        save(checkpointer, step, force=force)
    folders = [f"AtomicDirectory_checkpoint_{end}" for end in ("0", "1_force", "2", "3_force")]
    assert visible(tmp_path) == folders
    assert os.readlink(tmp_path / LINK) == str(tmp_path / folders[-1])
    for folder, step in zip(folders, (100, 200, 300, 300), strict=True):  # each stands alone
        alone = tmp_path / "alone" / folder
        shutil.copytree(tmp_path / folder, alone)
        assert_is(Checkpointer(tmp_path / "alone", layout=ArtifactLayout()).load(alone), step)


def test_what_lies_above_the_linked_folder_was_never_finished(tmp_path):
    checkpointer = Checkpointer(tmp_path, layout=ArtifactLayout())
    save(checkpointer, 1)
    for end in ("1", "2_force", "7"):  # as their saver leaves them: made, not filled
        (tmp_path / f"AtomicDirectory_checkpoint_{end}").mkdir()
    (tmp_path / f"{LINK}_temp").symlink_to("AtomicDirectory_checkpoint_1")
    assert_is(checkpointer.load(), 1)
    save(checkpointer, 2)
    assert visible(tmp_path) == ["AtomicDirectory_checkpoint_0", "AtomicDirectory_checkpoint_1"]
    assert_is(checkpointer.load(), 2)
    assert not os.path.lexists(tmp_path / f"{LINK}_temp")


def test_a_whole_forced_folder_above_the_linked_one_is_kept_and_its_number_not_used(tmp_path):
    checkpointer = Checkpointer(tmp_path, layout=ArtifactLayout())
    save(checkpointer, 1)
    save(checkpointer, 2, force=True)
    os.remove(tmp_path / LINK)
    (tmp_path / LINK).symlink_to("AtomicDirectory_checkpoint_0")  # somebody goes back
    assert_is(checkpointer.load(), 1)
    save(checkpointer, 5, force=True)
    assert visible(tmp_path) == [f"AtomicDirectory_checkpoint_{end}" for end in ("0", "1_force", "2_force")]


@pytest.mark.parametrize("relative", [False, True])
def test_an_artifact_that_moved_is_itself_and_not_the_original(tmp_path, relative):
    layout = ArtifactLayout(relative_link=relative)
    save(Checkpointer(tmp_path / "a", layout=layout), 1)
    shutil.copytree(tmp_path / "a", tmp_path / "b", symlinks=True)
    save(Checkpointer(tmp_path / "a", layout=layout), 2)
    loaded = Checkpointer(tmp_path / "b", layout=layout).load()
    assert_is(loaded, 1)
    assert loaded.path.parent == tmp_path / "b"
    shutil.rmtree(tmp_path / "a")
    checkpointer = Checkpointer(tmp_path / "b", layout=layout)
    assert_is(checkpointer.load(), 1)
    save(checkpointer, 2)
    assert (tmp_path / "b" / LINK).resolve() == tmp_path / "b" / "AtomicDirectory_checkpoint_1"
    assert visible(tmp_path / "b") == ["AtomicDirectory_checkpoint_0", "AtomicDirectory_checkpoint_1"]
    if relative:
        assert os.readlink(tmp_path / "b" / LINK) == "AtomicDirectory_checkpoint_1"


def test_the_platform_deletes_what_it_does_not_ship(tmp_path):
    checkpointer = Checkpointer(tmp_path, layout=ArtifactLayout())
    for step in (1, 2, 3):
        save(checkpointer, step, force=step == 1)
    shutil.rmtree(tmp_path / "AtomicDirectory_checkpoint_1")
    damage(tmp_path / "AtomicDirectory_checkpoint_2" / "manifest.json")
    assert_is(checkpointer.load(), 1)  # the forced one is all that is left
    save(checkpointer, 4)
    assert os.path.basename(os.readlink(tmp_path / LINK)) == "AtomicDirectory_checkpoint_3"
    shutil.rmtree(tmp_path / "AtomicDirectory_checkpoint_3")  # the link dangles; numbers still grow
    save(checkpointer, 5)
    assert os.path.basename(os.readlink(tmp_path / LINK)) == "AtomicDirectory_checkpoint_4"


# ---- the lock

HOLDER = """
import sys
from common.system.lock import RunLock
lock = RunLock(sys.argv[1])
print("in", flush=True)
input()
"""


def test_a_folder_in_use_is_refused_until_its_user_is_dead(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
    )
    try:
        assert holder.stdout.readline() == b"in\n"
        with pytest.raises(ValueError, match=rf"in use by another run \(process {holder.pid} on .*, started 20"):
            RunLock(tmp_path)
    finally:
        holder.kill()
        holder.wait()
        holder.stdin.close()
        holder.stdout.close()
    with RunLock(tmp_path):
        with pytest.raises(ValueError, match=f"process {os.getpid()} on"):
            RunLock(tmp_path)
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    RunLock(tmp_path).release()


def test_a_forked_worker_does_not_hold_the_lock(tmp_path):
    lock = RunLock(tmp_path)
    ready, go_on = os.pipe(), os.pipe()
    worker = os.fork()
    if worker == 0:
        os.write(ready[1], b"x")
        os.read(go_on[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    lock.release()  # as the kernel does when this process is killed
    RunLock(tmp_path).release()
    os.write(go_on[1], b"x")
    os.waitpid(worker, 0)
    for end in (*ready, *go_on):
        os.close(end)


def test_without_locks_a_warning_must_do(tmp_path, monkeypatch, caplog):
    def no_locks(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with RunLock(tmp_path / "new"):
        assert "has no locks" in caplog.text


def test_a_folder_that_cannot_be_written_is_said_at_once(tmp_path, monkeypatch):
    def read_only(*args):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(OSError, match="cannot be written: Read-only file system"):
        RunLock(tmp_path)
