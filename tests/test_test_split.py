"""--test_split: scored once, after training, by the best model, and only if asked."""

from __future__ import annotations

import json

import datasets
import pandas as pd
import pytest
from conftest import make_split, make_tiles

import train_segmentation
import train_taxonomy


@pytest.fixture
def three_parts(tmp_path):
    splits = {"train": make_split(96, 1), "validation": make_split(41, 2), "test": make_split(37, 3)}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "parts")
    return tmp_path / "parts"


@pytest.mark.with_report
def test_the_best_model_is_scored(options, three_parts, tmp_path, capfd):
    """The numbers are those of --eval_only on that split, of the model that was saved; the rest does not change."""
    words = {"dataset_name": three_parts, "num_train_epochs": 3, "learning_rate": 2e-2, "save_predictions": True}
    words |= {"max_train_samples": 48}
    without = train_taxonomy.main(options(**words, no_report=True, output_dir=tmp_path / "without"))
    assert "--test_split test" in capfd.readouterr().err and "test" not in without
    results = train_taxonomy.main(options(**words, test_split="test"))
    assert results["eval"] == without["eval"]
    again = train_taxonomy.main(
        options(
            dataset_name=three_parts,
            model_name_or_path=tmp_path / "out",
            eval_only=True,
            validation_split="test",
            image_size=None,
            no_pretrained=None,
            no_report=True,
            output_dir=tmp_path / "again",
        )
    )
    assert again["eval"] == results["test"]
    assert json.loads((tmp_path / "out" / "all_results.json").read_text())["test"]["num_samples"] == 37
    assert len(pd.read_parquet(tmp_path / "out" / "predictions_test.parquet")) == 37
    shown = f"{100 * results['test']['levels']['order']['accuracy']:.2f}%"
    report = (tmp_path / "out" / "report.html").read_text()
    assert shown in report.split("Test split, scored once by the best model")[1]
    assert shown in (tmp_path / "out" / "README.md").read_text().split("On the test split, scored once:")[1]
    assert "On the test split" not in (tmp_path / "without" / "README.md").read_text()
    assert len(pd.read_parquet(tmp_path / "out" / "predictions.parquet")) == 41


def test_it_can_be_asked_for_later(options, three_parts, tmp_path, monkeypatch):
    """The same command with the option: nothing is trained again."""
    words = {"dataset_name": three_parts, "max_train_steps": 3}
    train_taxonomy.main(options(**words))
    monkeypatch.setattr(train_taxonomy, "seed_step", lambda *args: pytest.fail("trained again"))
    assert train_taxonomy.main(options(**words, test_split="test"))["test"]["num_samples"] == 37


@pytest.mark.slow
def test_two_processes(options, three_parts, tmp_path, launch):
    words = {"dataset_name": three_parts, "max_train_steps": 3, "test_split": "test", "global_batch_size": 8}
    one = train_taxonomy.main(options(**words))
    launch("train_taxonomy.py", 2, options(**words, per_device_train_batch_size=4, output_dir=tmp_path / "two"))
    two = json.loads((tmp_path / "two" / "all_results.json").read_text())
    assert two["test"]["num_samples"] == 37
    assert two["test"]["loss"] == pytest.approx(one["test"]["loss"], rel=1e-3)


def test_masks(dense_options, tiles, tmp_path):
    parts = datasets.load_from_disk(tiles)
    parts["test"] = make_tiles(9, 5)
    parts.save_to_disk(tmp_path / "parts")
    (tmp_path / "parts" / "hierarchy.yaml").write_text((tiles / "hierarchy.yaml").read_text())
    words = {"dataset_name": tmp_path / "parts", "max_train_steps": 2, "save_predictions": True}
    results = train_segmentation.main(dense_options(**words, test_split="test"))
    assert results["test"]["num_samples"] == 9
    assert len(list((tmp_path / "out" / "predictions_test").glob("*.png"))) == 9
    assert len(list((tmp_path / "out" / "predictions").glob("*.png"))) == 13


def test_a_split_that_is_not_there(options):
    with pytest.raises(ValueError, match=r"No split 'holdout' in the data set \(--test_split\)"):
        train_taxonomy.main(options(test_split="holdout"))
