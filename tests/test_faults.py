"""Disks that do not answer, or are full: tried again, told in one line, and never a status that is not true."""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file
from test_checkpoint import assert_is, content, save
from torch.utils.data import DataLoader

import train_taxonomy
from common.checkpoint.checkpointer import Checkpointer
from common.data import splits
from common.data.rows import ImageRows, Samples
from common.images import mask_files
from common.images.encoded import EncodedImage
from common.images.files import check_file, load_image
from common.run import command
from common.run.stopping import RunStatus, Stopped
from common.system import files
from common.system.files import StorageError, append_history, atomic_write, error_number, naming, retried, write_json
from common.system.workers import start_worker

TRANSIENT = [errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.EINTR, errno.ECONNRESET, errno.EBUSY]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(files, "PAUSES", (0, 0, 0))


class Flaky:
    """Takes the place of a function and fails so many times; then it does what the function does."""

    def __init__(self, owner, name, times, number=errno.ESTALE, only=""):
        self.function, self.left, self.number, self.only = getattr(owner, name), times, number, only

    def __call__(self, *args, **kwargs):
        if self.left and self.only in str(args[0] if args else ""):
            self.left -= 1
            raise OSError(self.number, os.strerror(self.number), str(args[0]))
        return self.function(*args, **kwargs)


@pytest.fixture
def flaky(monkeypatch):
    def make(owner, name, times, **how):
        fault = Flaky(owner, name, times, **how)
        monkeypatch.setattr(owner, name, fault)
        return fault

    return make


# ---- transient errors


@pytest.mark.parametrize("number", TRANSIENT)
def test_tried_again(number, caplog):
    calls = []

    @retried
    def work(result):
        calls.append(1)
        if len(calls) < 3:
            raise OSError(number, "no answer")
        return result

    assert work(7) == 7 and len(calls) == 3 and caplog.text.count("trying again") == 2
    with pytest.raises(StorageError, match="no answer"):
        retried(lambda: (_ for _ in ()).throw(OSError(number, "no answer")))()


@pytest.mark.parametrize(
    "error", [OSError("truncated"), OSError(errno.ENOENT, "none"), ValueError("wrong"), KeyError(1)]
)
def test_other_errors_are_not_tried_again(error):
    calls = []

    @retried
    def work():
        calls.append(1)
        raise error

    with pytest.raises(type(error)):
        work()
    assert len(calls) == 1


def test_the_number_of_an_error():
    cause = OSError(errno.EIO, "x")
    wrapped = ValueError("a data set cannot be loaded")
    wrapped.__cause__ = cause
    assert error_number(wrapped) == errno.EIO and error_number(ValueError("x")) is None
    assert error_number(SafetensorError("I/O error: No space left on device (os error 28)")) == errno.ENOSPC


@pytest.fixture
def image_file(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8) % 3).save(path)
    return str(path)


@pytest.mark.parametrize(
    "read",
    [
        lambda path: np.asarray(load_image(path)),
        lambda path: check_file(path),
        lambda path: EncodedImage(path).pixels().numpy(),
        lambda path: mask_files.read_mask(path, 3),
    ],
    ids=["load_image", "check_file", "EncodedImage", "read_mask"],
)
def test_images_and_masks_are_read_again(image_file, flaky, read):
    expected = read(image_file)
    for times, fails in ((3, False), (4, True)):
        for owner, name in ((builtins, "open"), (io, "open")):
            flaky(owner, name, times, only="a.png")
        if fails:
            with pytest.raises(StorageError, match="a.png"):
                read(image_file)
        else:
            np.testing.assert_equal(read(image_file), expected)


@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.slow)])  # torch waits 5 s for it
@pytest.mark.parametrize("on_bad_sample", ["error", "replace", "drop"])
def test_an_image_that_cannot_be_read_is_not_a_broken_one(image_file, flaky, num_workers, on_bad_sample):
    """The run ends, and may be started again; the image is not replaced, dropped or listed."""
    rows = ImageRows(datasets.Dataset.from_dict({"image": [image_file] * 3}), "image", "train")
    samples = Samples(rows, np.arange(3), EncodedImage.pixels, on_bad_sample=on_bad_sample)
    loader = DataLoader(
        samples, batch_size=None, sampler=[(0, 1)], num_workers=num_workers, worker_init_fn=start_worker
    )
    flaky(io, "open", 99, only="a.png")
    with pytest.raises(StorageError) as caught:
        next(iter(loader))
    assert (
        str(caught.value) == f"[Errno {errno.ESTALE}] {os.strerror(errno.ESTALE)}: '{image_file}' (after 4 attempts)"
    )
    flaky(builtins, "open", 99, only="a.png")
    with pytest.raises(StorageError):
        rows.check_headers()


def test_tables_are_read_again(tmp_path, flaky):
    table = tmp_path / "rows.csv"
    table.write_text("image,label\na.png,x\n")
    fault = flaky(splits, "read_table", 2)
    assert splits.load_splits("", None, {"train": str(table)})["train"][0] == {"image": "a.png", "label": "x"}
    assert fault.left == 0


def test_json_and_history_are_written_again(tmp_path, flaky):
    flaky(os, "replace", 2)
    write_json(tmp_path / "a.json", {"x": 1})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
    append_history(tmp_path / "history.jsonl", {"x": 1})
    flaky(io, "open", 2, only="history")
    append_history(tmp_path / "history.jsonl", {"x": 2})
    assert (tmp_path / "history.jsonl").read_text() == '{"x": 1}\n{"x": 2}\n'


def test_half_a_line_of_history_is_taken_back(tmp_path, monkeypatch):
    path = tmp_path / "history.jsonl"
    append_history(path, {"x": 1})
    opened = Path.open

    class Half:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, line):
            return self.file.write(line[: len(line) // 2])

        def __getattr__(self, name):
            return getattr(self.file, name)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda self, *args, **how: Half(opened(self, *args, **how)))
        with pytest.raises(OSError, match=r"history.jsonl could not be written: the disk is full\."):
            append_history(path, {"x": 2})
    assert path.read_text() == '{"x": 1}\n'


# ---- checkpoints


def test_a_checkpoint_is_written_again(tmp_path, flaky):
    checkpointer = Checkpointer(tmp_path)
    flaky(os, "rename", 2, number=errno.EIO)
    save(checkpointer, 1)
    assert_is(checkpointer.load(), 1)
    flaky(io, "open", 2, number=errno.EIO, only="weights")
    assert_is(Checkpointer(tmp_path).load(), 1)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_one_failed_save_is_a_warning_and_two_in_a_row_end_the_run(tmp_path, flaky, caplog, number):
    checkpointer, kind = Checkpointer(tmp_path), OSError if number == errno.ENOSPC else StorageError
    save(checkpointer, 1)
    fault = flaky(os, "rename", 99, number=number)
    save(checkpointer, 2)
    assert "step 2 could not be saved" in caplog.text and "checkpoint-00000001, is intact" in caplog.text
    fault.left = 0
    save(checkpointer, 3)
    assert_is(checkpointer.load(), 3)
    fault.left = 99
    save(checkpointer, 4)
    with pytest.raises(kind, match="step 5 could not be saved"):
        save(checkpointer, 5)
    assert_is(checkpointer.load(), 3)


def test_the_first_save_of_all_must_not_fail(tmp_path, flaky):
    flaky(os, "rename", 99, number=errno.ENOSPC)
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, *content(1))
    with pytest.raises(OSError, match="the disk is full"):
        checkpointer.wait()


# ---- full disks


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def write_numpy(path):
    with atomic_write(path, "wb") as file:
        file.write(b"x")
        raise OSError("100 requested and 10 written")  # NumPy's words


@pytest.mark.parametrize("free", [0, 1000])
def test_libraries_that_lose_the_reason(tmp_path, monkeypatch, free):
    state = os.statvfs(tmp_path)
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result((*state[:4], free, *state[5:])))
    with pytest.raises(OSError, match="the disk is full" if not free else "requested"):
        write_numpy(tmp_path / "a.npz")
    assert not list(tmp_path.iterdir())


def test_safetensors_has_errors_of_its_own():
    error = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(OSError, match=r"^x could not be written: the disk is full\.$"), naming("y"), naming("x"):
        raise error
    with pytest.raises(SafetensorError), naming("/proc/x"):  # as long as the words are what they are
        save_file({"a": torch.zeros(3)}, "/proc/nowhere/x")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("wrong"), "failed"),
        (OSError(errno.ENOSPC, "full"), "failed"),
        (OSError(errno.EIO, "no answer"), "crashed"),
        (StorageError("no answer"), "crashed"),
        (RuntimeError("CUDA error"), "crashed"),
        (Stopped("SIGTERM"), "stopped"),
    ],
)
@pytest.mark.parametrize("is_full", [False, True])
def test_the_status_says_how_a_run_ended(tmp_path, monkeypatch, error, status, is_full):
    """Also on a disk that takes no new file, and no new block."""
    told = RunStatus(tmp_path, True)
    with pytest.raises(type(error)), told.of_run():
        told.set("running", global_step=12_345, num_steps=99_999)
        if is_full:
            monkeypatch.setattr(files, "atomic_write", full)
        raise error
    found = json.loads((tmp_path / "run_status.json").read_text())
    assert found["status"] == status and found["global_step"] == 12_345
    assert [path.name for path in tmp_path.iterdir()] == ["run_status.json"]


def test_the_first_to_fail_says_why(tmp_path):
    """The others notice that the connection is gone, and must not have the job requeued."""
    first, second = RunStatus(tmp_path, True), RunStatus(tmp_path, False)
    with pytest.raises(RuntimeError), first.of_run():
        with pytest.raises(ValueError), second.of_run():
            raise ValueError("a broken image")
        first.set("running", global_step=3)
        raise RuntimeError("connection closed by peer")
    found = json.loads((tmp_path / "run_status.json").read_text())
    assert (found["status"], found["reason"]) == ("failed", "a broken image")


@pytest.mark.parametrize(("error", "code"), [(StorageError("x"), 1), (OSError(errno.ENOSPC, "x"), 2)])
def test_exit_statuses(error, code, capfd):
    with pytest.raises(SystemExit) as stop:
        command.run(lambda: (_ for _ in ()).throw(error))
    assert stop.value.code == code and capfd.readouterr().err.startswith("error: ")


def test_a_cache_that_is_read_only_names_the_variable(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for place, hint in ((tmp_path / "datasets", True), (tmp_path.parent / "data", False)):
        cause = OSError(errno.EROFS, "Read-only file system", str(place))
        error = ValueError(f"Cannot read the train file: {cause}")
        error.__cause__ = cause
        with pytest.raises(SystemExit):
            command.run(lambda error=error: (_ for _ in ()).throw(error))
        assert ("Set HF_HOME" in capfd.readouterr().err) is hint


class TinyDisk:
    """A disk that takes no new bytes in files whose name has ``where``, however they are written."""

    def __init__(self, monkeypatch, where):
        opened = io.open

        def open_(file, mode="r", *args, **kwargs):
            stream = opened(file, mode, *args, **kwargs)
            if where in str(file) and set(mode) & set("wxa"):
                stream.close()
                Path(file).unlink()
                full()
            return stream

        monkeypatch.setattr(io, "open", open_)
        monkeypatch.setattr(builtins, "open", open_)


@pytest.mark.parametrize(
    "file", ["args.yaml", "hierarchy.json", "history.jsonl", "report_data.npz", "model.safetensors"]
)
def test_a_run_on_a_full_disk_says_what_could_not_be_written(options, tmp_path, monkeypatch, file):
    if file == "model.safetensors":
        words = "Error while serializing: I/O error: No space left on device (os error 28)"
        saved = train_taxonomy.LabelTreeForImageClassification.save_pretrained

        def save_pretrained(self, folder, *args, **how):
            if tmp_path in Path(folder).parents:
                raise SafetensorError(words)
            return saved(self, folder, *args, **how)

        monkeypatch.setattr(train_taxonomy.LabelTreeForImageClassification, "save_pretrained", save_pretrained)
    else:
        TinyDisk(monkeypatch, file)
    with pytest.raises(OSError, match=rf"{file} could not be written: the disk is full\.$"):
        train_taxonomy.main(options(max_train_steps=1))
    found = json.loads((tmp_path / "out" / "run_status.json").read_text())
    assert found["status"] == "failed" and file in found["reason"]
