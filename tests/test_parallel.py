"""Chunks of rows: resumable, and rows that kill their process do not end the script."""

import os
from dataclasses import dataclass

import numpy as np
import pytest

from data_prep.parts.parallel import run_chunks, work_folder


@dataclass
class Square:
    """Squares row numbers; some rows kill their process."""

    deadly: tuple[int, ...] = ()
    never: bool = False

    def run(self, rows):
        assert not self.never
        if set(rows) & set(self.deadly):
            os._exit(7)  # as a decoder that crashes does
        return {"square": np.array([row * row for row in rows])}

    def lost(self, row):
        return {"square": np.array([-1])}


def test_a_row_that_kills_its_process_is_the_only_one_lost(tmp_path):
    results = run_chunks(Square((5, 17)), 30, tmp_path, "x", num_proc=2, chunk_rows=8)
    expected = np.arange(30) ** 2
    expected[[5, 17]] = -1
    np.testing.assert_array_equal(results["square"], expected)


def test_finished_chunks_are_not_done_again(tmp_path):
    first = run_chunks(Square(), 30, tmp_path, "x", num_proc=0, chunk_rows=8)
    again = run_chunks(Square(never=True), 30, tmp_path, "x", num_proc=0, chunk_rows=8)
    np.testing.assert_array_equal(first["square"], again["square"])
    (tmp_path / "x-000002.npz").unlink()
    with pytest.raises(AssertionError):
        run_chunks(Square(never=True), 30, tmp_path, "x", num_proc=0, chunk_rows=8)


def test_work_of_other_settings_is_thrown_away(tmp_path):
    output = tmp_path / "out"
    for settings, left in (("a", False), ("a", True), ("b", False)):
        with pytest.raises(KeyboardInterrupt), work_folder(output, settings) as folder:
            assert (folder / "x.npz").exists() is left
            (folder / "x.npz").touch()
            raise KeyboardInterrupt
    with work_folder(output, "b") as folder:
        assert (folder / "x.npz").exists()
    assert not folder.exists() and not output.exists()
