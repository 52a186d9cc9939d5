"""Several runs in one table, against means and deviations computed by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

import compare_runs

METRIC = "levels.species.accuracy"


def make_run(folder: Path, accuracy: float | None, **arguments) -> str:
    """An output folder with little in it."""
    folder.mkdir(parents=True)
    measures = {"full_path_accuracy": accuracy, "tree_inconsistency": 0.0, "hierarchical_distance": 1.5}
    levels = {name: {"accuracy": accuracy, "macro_f1": 0.25, "ece": 0.1} for name in ("genus", "species")}
    content = {"train": None, "eval": {"loss": 1.25, "levels": levels, "path": measures, "argmax": measures}}
    (folder / "all_results.json").write_text(json.dumps(content))
    settings = {"output_dir": str(folder), "head": "tree", "seed": 0, "level_weights": ["leaf"], **arguments}
    (folder / "args.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    lines = [{"global_step": step, f"eval/{METRIC}": step / 100} for step in (1, 5, 3)]
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


@pytest.fixture
def folders(tmp_path) -> list[str]:
    found = [make_run(tmp_path / "runs" / f"tree_{seed}", 0.5 + 0.1 * seed, seed=seed) for seed in range(3)]
    return [*found, make_run(tmp_path / "runs" / "flat", 0.4, head="flat", level_weights=["1", "2"])]


def test_each_run_and_what_is_different_about_it(folders, tmp_path, capsys):
    table = compare_runs.main([*folders, "--output_dir", str(tmp_path / "out")])
    assert table.index.tolist() == ["tree_0", "tree_1", "tree_2", "flat"]
    assert table[METRIC].tolist() == pytest.approx([0.5, 0.6, 0.7, 0.4])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["run", "head", "seed", "level_weights"] and "output_dir" not in lines[0]
    assert lines[4].split()[:5] == ["flat", "flat", "0", "1", "2"] and "40.00%" in lines[4] and "1.500" in lines[4]
    saved = pd.read_csv(tmp_path / "out" / "comparison.csv", index_col="run")
    assert np.allclose(saved.to_numpy(), table.to_numpy()) and list(saved) == list(table)
    rows = (tmp_path / "out" / "comparison.md").read_text().splitlines()
    assert len(rows) == 2 + 4 and all(row.count("|") == rows[0].count("|") for row in rows)
    with Image.open(tmp_path / "out" / "comparison.png") as image:
        assert image.width > 1000
    assert not list((tmp_path / "out").glob("*.tmp"))


def test_groups_have_mean_and_sample_deviation(folders, tmp_path, capsys):
    words = [*folders, "--group_by", "head", "--metrics", METRIC, "loss", "--output_dir", str(tmp_path / "out")]
    table = compare_runs.main(words)
    assert table[(METRIC, "mean")].to_dict() == pytest.approx({"tree": 0.6, "flat": 0.4})
    assert table[(METRIC, "std")]["tree"] == pytest.approx(np.std([0.5, 0.6, 0.7], ddof=1))
    assert np.isnan(table[(METRIC, "std")]["flat"])
    assert table[("runs", "")].tolist() == [3, 1]
    out = capsys.readouterr().out
    assert "60.00% ± 10.00%" in out and "1.2500 ± 0.0000" in out and "40.00% ±" not in out
    saved = pd.read_csv(tmp_path / "out" / "comparison.csv")
    assert list(saved) == ["head", f"{METRIC} mean", f"{METRIC} std", "loss mean", "loss std", "runs"]
    two = compare_runs.main([*folders, "--group_by", "head", "level_weights", "--output_dir", str(tmp_path / "two")])
    assert two.index.tolist() == [("tree", "leaf"), ("flat", "1 2")]


def test_a_number_that_a_run_lacks(folders, tmp_path, capsys):
    folders.append(make_run(tmp_path / "runs" / "nan", None))
    table = compare_runs.main([*folders, "--output_dir", str(tmp_path / "out")])
    assert np.isnan(table[METRIC]["nan"])
    assert " - " in capsys.readouterr().out.splitlines()[5] + " "


def test_names_for_people():
    names = ["levels.fine.mean_iou", "path.full_path_accuracy", "argmax.tree_inconsistency", "loss"]
    shown = ["fine mean IoU", "full path accuracy", "argmax tree inconsistency", "loss"]
    assert [compare_runs.title(name) for name in names] == shown


def test_one_run(tmp_path):
    folder = make_run(tmp_path / "alone", 0.5)
    (tmp_path / "alone" / "history.jsonl").unlink()
    assert compare_runs.main([folder, "--output_dir", str(tmp_path / "out")]).index.tolist() == ["alone"]


@pytest.mark.parametrize(
    "change, words, message",
    [
        (lambda folder: (folder / "all_results.json").unlink(), [], "holds no all_results.json: .* has not finished"),
        (lambda folder: (folder / "args.yaml").unlink(), [], "holds no args.yaml"),
        (lambda folder: (folder / "all_results.json").write_text("{"), [], "results cannot be read"),
        (lambda folder: (folder / "all_results.json").write_text('{"train": 1}'), [], "results cannot be read"),
        (lambda folder: (folder / "args.yaml").write_text("[1"), [], "results cannot be read"),
        (lambda folder: None, ["--metrics", "levels.order.accuracy"], "no run has the metric levels.order.accuracy"),
        (lambda folder: None, ["--group_by", "fold"], "no run has that option"),
        (lambda folder: None, ["SAME"], "given twice"),
    ],
)
def test_mistakes_are_one_message_and_write_nothing(tmp_path, change, words, message):
    folder = tmp_path / "run"
    name = make_run(folder, 0.5)
    change(folder)
    words = [name if word == "SAME" else word for word in words]
    with pytest.raises(ValueError, match=message):
        compare_runs.main([name, *words, "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_unimportant_options_exist():
    """The list names options, not something that was renamed."""
    from train_segmentation import SegmentationArguments

    assert set(SegmentationArguments.__dataclass_fields__) >= compare_runs.UNIMPORTANT
