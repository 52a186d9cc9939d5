"""The same names in every tracker, pictures where they can be shown, and one run however often it is resumed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train_segmentation
import train_taxonomy
from common.run.trackers import tracked

NAMES = {
    "train/loss",
    "train/learning_rate",
    "train/epoch_loss",
    "train/images_per_second",
    "eval/loss",
    "eval/species/accuracy",
    "eval/species/macro_f1",
    "eval/path/full_path_accuracy",
    "eval/argmax/tree_inconsistency",
}


pytestmark = pytest.mark.with_report


def test_names():
    entry = {"eval/levels.fine.per_class.St. John.iou": 1, "eval/path.full_path_accuracy": 2, "train/loss": 3}
    assert tracked(entry) == {
        "eval/fine/per_class/St/ John/iou": 1,
        "eval/path/full_path_accuracy": 2,
        "train/loss": 3,
    }


def events_of(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder / "label-tree"))
    events.Reload()
    return events


@pytest.mark.slow
def test_tensorboard(options, tmp_path):
    results = train_taxonomy.main(options(report_to="tensorboard", num_train_epochs=2, logging_steps=12))
    events = events_of(tmp_path / "out")
    assert set(events.Tags()["scalars"]) >= NAMES
    assert [event.step for event in events.Scalars("eval/species/accuracy")] == [12, 24]
    best = max(event.value for event in events.Scalars("eval/path/full_path_accuracy"))
    assert best == pytest.approx(results["eval"]["path"]["full_path_accuracy"])
    assert events.Tags()["images"] == ["examples/examples"]
    image = events.Images("examples/examples")[0]
    assert image.width > 500 and image.step == 24


@pytest.mark.slow
def test_tensorboard_goes_on_after_a_stop(dense_options, tmp_path, monkeypatch):
    """What came after the checkpoint is told once."""
    words = dense_options(report_to="tensorboard", num_train_epochs=2, logging_steps=1, max_eval_samples=3)
    evaluate, calls = train_segmentation.evaluate_model, []

    def fail_late(*args):
        calls.append(1)
        if len(calls) == 2:
            raise OSError("the power is gone")
        return evaluate(*args)

    with monkeypatch.context() as patch:
        patch.setattr(train_segmentation, "evaluate_model", fail_late)
        with pytest.raises(OSError):
            train_segmentation.main(words)
    before = json.loads((tmp_path / "out" / "tracker_run.json").read_text())
    train_segmentation.main(words)
    assert json.loads((tmp_path / "out" / "tracker_run.json").read_text()) == before
    events = events_of(tmp_path / "out")
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 13))
    shown = {f"examples/{kind}_{level}" for kind in ("examples", "worst") for level in ("binary", "coarse", "fine")}
    assert set(events.Tags()["images"]) == shown


def test_a_new_run_has_a_new_name(options, tmp_path):
    words = options(report_to="tensorboard", no_report=True)
    names = []
    for _ in range(2):
        train_taxonomy.main([*words, "--resume_from_checkpoint", "none"])
        names.append(json.loads((tmp_path / "out" / "tracker_run.json").read_text())["run"])
    assert names[0] != names[1]


@pytest.mark.slow
def test_wandb_offline(options, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    train_taxonomy.main(options(report_to="wandb", logging_steps=12))
    (file,) = (tmp_path / "out" / "wandb").glob("offline-run-*/*.wandb")
    run = json.loads((tmp_path / "out" / "tracker_run.json").read_text())["run"]
    assert file.name == f"run-{run}.wandb"
    content = file.read_bytes()  # of records that hold the names as they are
    assert all(name.encode() in content for name in NAMES)
    assert list(file.parent.glob("files/media/images/examples/*.png"))


def test_trackio(options, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    train_taxonomy.main(options(report_to="trackio", logging_steps=12))
    run = json.loads((tmp_path / "out" / "tracker_run.json").read_text())["run"]
    logs = SQLiteStorage.get_logs("label-tree", f"out-{run}")
    assert {name for entry in logs for name in entry} >= NAMES


def test_a_tracker_that_cannot_start_is_told(options, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("no API key")

    monkeypatch.setattr("accelerate.Accelerator.init_trackers", refuse)
    with pytest.raises(ValueError, match="--report_to tensorboard: RuntimeError: no API key"):
        train_taxonomy.main(options(report_to="tensorboard"))
