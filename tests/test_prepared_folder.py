"""prepared.json: what the trainers take from it, and what they do with a damaged one."""

from __future__ import annotations

import json

import pytest

from common.data.prepared import read_image_root, read_prepared
from common.options.shared import CommonArguments


def test_folders_without_it_are_fine(tmp_path):
    assert read_prepared(tmp_path) is None and read_image_root(tmp_path) is None
    assert read_image_root("danielaivanova/damaged-media") is None


def test_image_root(tmp_path):
    (tmp_path / "prepared.json").write_text(json.dumps({"format": 1, "image_root": "/data/images"}))
    assert str(read_image_root(tmp_path)) == "/data/images"
    (tmp_path / "prepared.json").write_text(json.dumps({"format": 1, "image_root": None}))
    assert read_image_root(tmp_path) is None


@pytest.mark.parametrize("text", ["", "[1]", '{"format": 99}', "{", "\x00"])
def test_damage_is_told(tmp_path, text):
    (tmp_path / "prepared.json").write_text(text)
    with pytest.raises(ValueError, match=r"prepared\.json"):
        read_prepared(tmp_path)


@pytest.mark.parametrize("root, idle", [("/data/images", False), (None, True)])
def test_image_root_has_an_effect_where_paths_are_stored(tmp_path, root, idle):
    (tmp_path / "prepared.json").write_text(json.dumps({"format": 1, "image_root": root}))
    told = CommonArguments(dataset_name=str(tmp_path), image_root="elsewhere").without_effect()
    assert any("--image_root" in line for line in told) == idle
