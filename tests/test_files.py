"""Files that are complete or absent, numbers that every parser reads."""

from __future__ import annotations

import json
import math

import pytest

from common.system.files import append_history, atomic_write, write_json


def test_json_is_strict_and_replaced_atomically(tmp_path):
    write_json(tmp_path / "a.json", {"x": float("nan"), "y": [1.5, {"z": math.inf}]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": None, "y": [1.5, {"z": None}]}
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert json.loads((tmp_path / "a.json").read_text())["x"] is None  # the old file is intact
    append_history(tmp_path / "h.jsonl", {"a": math.nan})
    append_history(tmp_path / "h.jsonl", {"a": 1})
    assert [json.loads(line) for line in (tmp_path / "h.jsonl").read_text().splitlines()] == [{"a": None}, {"a": 1}]


@pytest.mark.parametrize(("mode", "content"), [("w", "ä\r\n"), ("wb", "ä\r\n".encode())])
def test_a_file_takes_its_name_when_it_is_complete(tmp_path, mode, content):
    path = tmp_path / "file.txt"
    path.write_bytes(b"old")
    with atomic_write(path, mode) as file:
        file.write(content)
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == "ä\r\n".encode()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("exists", [True, False])
def test_an_error_leaves_what_was_there(tmp_path, exists):
    path = tmp_path / "file.txt"
    if exists:
        path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as file:
        file.write("half")
        raise KeyboardInterrupt
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"] * exists
