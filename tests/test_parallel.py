"""Work on rows: resumable, and rows that kill their process do not end the script."""

import os
from functools import partial

import numpy as np
import pytest

from common.system.lock import RunLock
from data_prep.parts.parallel import map_rows, work_folder


def square(row, deadly=()):
    if row in deadly:
        os._exit(7)  # as a decoder that crashes does
    return {"square": row * row}


def lost(row):
    return {"square": -1}


def never(row):
    raise AssertionError("it is finished")


@pytest.mark.slow
def test_a_row_that_kills_its_process_is_the_only_one_lost(tmp_path):
    work = partial(square, deadly=(1, 9))
    results = map_rows(work, lost, range(12), tmp_path, "x", num_proc=2, chunk_rows=4)
    expected = np.arange(12) ** 2
    expected[[1, 9]] = -1
    np.testing.assert_array_equal(results["square"], expected)


def test_finished_chunks_are_not_done_again(tmp_path):
    rows = np.arange(5, 35)
    first = map_rows(square, lost, rows, tmp_path, "x", num_proc=0, chunk_rows=8)
    np.testing.assert_array_equal(first["square"], rows**2)
    again = map_rows(never, lost, rows, tmp_path, "x", num_proc=0, chunk_rows=8)
    np.testing.assert_array_equal(first["square"], again["square"])
    chunk = tmp_path / "x-000002.npz"
    chunk.write_bytes(chunk.read_bytes()[:-9])  # as a power cut may leave it
    with pytest.raises(AssertionError, match="finished"):
        map_rows(never, lost, rows, tmp_path, "x", num_proc=0, chunk_rows=8)


def test_work_of_other_settings_is_thrown_away(tmp_path, capsys):
    output = tmp_path / "out"
    for settings, left, told in (("a", False, ""), ("a", True, "Resuming in"), ("b", False, "starting over")):
        with pytest.raises(KeyboardInterrupt), work_folder(output, settings) as folder:
            assert (folder / "x.npz").exists() is left and told in capsys.readouterr().err
            (folder / "x.npz").touch()
            raise KeyboardInterrupt
    with work_folder(output, "b") as folder:
        assert (folder / "x.npz").exists()
    assert not folder.exists() and not output.exists()


def test_two_at_once_are_refused(tmp_path):
    with (
        RunLock(tmp_path / "out.incomplete"),
        pytest.raises(ValueError, match="in use"),
        work_folder(tmp_path / "out", "a"),
    ):
        pass
