"""Published numbers stand only beside runs that were measured in the same way."""

import json

import pytest
import yaml

from benchmarks import published
from common.model.hierarchy import Hierarchy


def finished_run(folder, num_leaves=2829, **changes):
    folder.mkdir()
    leaves = [f"c{number}" for number in range(num_leaves)]
    Hierarchy(["species", "category_id"], [["s"], leaves], [[None], [0] * num_leaves]).save(folder / "hierarchy.json")
    options = {"resize_mode": "squash", "image_size": None, "group_column": "observationID", **changes}
    (folder / "args.yaml").write_text(yaml.safe_dump(options))
    (folder / "config.json").write_text(json.dumps({"backbone": {"image_size": 224}}))
    level = {"accuracy": 0.703, "top3_accuracy": 0.85, "macro_f1": 0.4}
    content = {"levels": {"category_id": level}, "path": {"full_path_accuracy": 0.5}}
    (folder / "all_results.json").write_text(json.dumps({"train": None, "eval": content}))
    return str(folder)


def test_a_run_of_the_same_protocol(tmp_path, capsys):
    rows = published.main(["fungitastic", finished_run(tmp_path / "mine")])
    assert rows[4] == ["BEiT-Base/16", "69.1", "84.6", "42.3", "published"]
    assert rows[5] == ["mine", "70.3", "85.0", "40.0", "this run"]
    assert "2408.13632" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("benchmark", "changes", "message"),
    [
        ("fungitastic", {"num_leaves": 2786}, "2,786 leaves"),
        ("fungitastic", {"resize_mode": "crop"}, "--resize_mode is crop, not squash"),
        ("fungitastic", {"group_column": None}, "do not leak"),
        ("artefact-random", {"num_leaves": 16}, "copies of one artwork"),
        ("entity30", {"num_leaves": 260}, "260 leaves"),
    ],
)
def test_other_protocols_are_refused(tmp_path, benchmark, changes, message):
    with pytest.raises(ValueError, match=message):
        published.main([benchmark, finished_run(tmp_path / "mine", **changes)])
    with pytest.raises(ValueError, match="has no test"):
        published.main([benchmark, finished_run(tmp_path / "other", **changes), "--part", "test"])
