"""Parts that are whole or absent, and what a restart does with them."""

import json
import threading

import numpy as np
import pytest

from common.predict.parts import STATE_FILE, PredictionParts, plan_parts


def test_every_row_is_in_one_part():
    for num_rows in [0, 1, 63, 64, 65, 1000, 100_000]:
        parts = plan_parts(num_rows, 512)
        assert np.array_equal(np.concatenate([*parts, np.empty(0, dtype=int)]), np.arange(num_rows))
        assert max(map(len, parts), default=0) <= 512


def test_groups_stay_together():
    groups = ["a", "b", None, "a", None, "c", *["big"] * 100, "b"]
    parts = plan_parts(len(groups), 4, groups)
    assert sorted(np.concatenate(parts)) == list(range(len(groups)))
    for part in parts:
        for group in {groups[row] for row in part} - {None}:
            assert {row for row in range(len(groups)) if groups[row] == group} <= set(part.tolist())


FINGERPRINT = {"the model": "m", "--top_k": 5}


def test_goes_on_where_it_stopped(tmp_path):
    parts = PredictionParts(tmp_path / "out", 3, FINGERPRINT)
    assert parts.begin() == [0, 1, 2]
    parts.write(1, [{"row": 1, "image": "ä"}])
    (parts.folder / "part_000002.jsonl.tmp").write_text('{"row"')  # killed while writing
    assert PredictionParts(tmp_path / "out", 3, FINGERPRINT).begin() == [0, 2]
    parts.write(2, [])
    parts.write(0, [{"row": 0}, {"row": 2}])
    assert list(parts.lines()) == [{"row": 0}, {"row": 2}, {"row": 1, "image": "ä"}]
    parts.finish()
    assert not parts.folder.exists()
    assert PredictionParts(tmp_path / "out", 3, FINGERPRINT).begin() is None


def test_an_unserializable_line_leaves_no_part(tmp_path):
    parts = PredictionParts(tmp_path, 1, FINGERPRINT)
    parts.begin()
    with pytest.raises(TypeError):
        parts.write(0, [{"row": 0}, {"row": object()}])
    assert parts.begin() == [0]


def test_other_results_are_left_alone(tmp_path):
    PredictionParts(tmp_path / "out", 3, FINGERPRINT).begin()
    with pytest.raises(ValueError, match="differ in: --top_k. Give a new folder"):
        PredictionParts(tmp_path / "out", 3, {**FINGERPRINT, "--top_k": 3}).begin()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds other files .config.json"):
        PredictionParts(tmp_path / "model", 3, FINGERPRINT).begin()
    (tmp_path / "out" / STATE_FILE).write_text("{")
    with pytest.raises(ValueError, match="Cannot read"):
        PredictionParts(tmp_path / "out", 3, FINGERPRINT).begin()
    assert json.loads((tmp_path / "model" / "config.json").read_text()) == {}


def test_waits_for_other_processes(tmp_path):
    parts = PredictionParts(tmp_path, 2, FINGERPRINT)
    parts.begin()
    parts.write(0, [])
    threading.Timer(0.1, parts.write, (1, [{"row": 1}])).start()
    parts.wait(seconds=0.01)
    assert list(parts.lines()) == [{"row": 1}]
