"""Searches and folds shared by several processes, with a stand-in for the scripts that takes no time."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
import yaml
from conftest import LEVELS, REPOSITORY

import sweep
from common.options.arguments import parse_arguments
from common.options.taxonomy import TaxonomyArguments
from train_taxonomy import DEMO_CONFIG

# What sweep.py knows of the scripts: files, statuses and signals. As accurate as its learning rate; trials from the
# fifth on are poor. It is killed, fails or takes its time where a file beside it says so.
STAND_IN = """
import json, os, pathlib, signal, sys, time
import yaml
settings = yaml.safe_load(open(sys.argv[2]))
folder, here = pathlib.Path(settings["output_dir"]), pathlib.Path(__file__).parent
wishes = json.loads((here / "wishes.json").read_text()).get(folder.name, {})
done = int((folder / "checkpoint").read_text()) if (folder / "checkpoint").is_file() else 0
with open(here / "starts.txt", "a") as file:
    file.write(f"{folder.name} {done} {os.getpid()} {os.getppid()}\\n")

def tell(status):
    (folder / "run_status.json").write_text(json.dumps({"status": status}))

def stop(*_):
    tell("stopped")
    sys.exit(85)

signal.signal(signal.SIGTERM, stop)
tell("running")
(folder / "args.yaml").write_text(yaml.safe_dump(settings))
if wishes.get("fails"):
    tell("failed")
    sys.exit(2)
accuracy = wishes.get("accuracy", settings.get("learning_rate", 0.5))
for epoch in range(done, settings.get("num_train_epochs", 2)):
    with open(folder / "history.jsonl", "a") as file:
        file.write(json.dumps({"global_step": epoch, "eval/path.full_path_accuracy": accuracy}) + "\\n")
    (folder / "checkpoint").write_text(str(epoch + 1))
    if wishes.get("killed", 0) > epoch:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(wishes.get("pause", 0))
    while wishes.get("held") and (here / "hold").is_file():
        time.sleep(0.02)
levels = {"species": {"accuracy": accuracy, "macro_f1": 0.5}}
part = {"levels": levels, "path": {"full_path_accuracy": accuracy}}
(folder / "all_results.json").write_text(json.dumps({"eval": part, "test": part}))
tell("finished")
"""
SPACE = {
    "learning_rate": {"low": "1e-3", "high": 0.5, "log": True},
    "head": ["tree", "flat"],
    "level_weights": [["leaf"], [1, 2]],
}


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Words that search with the stand-in."""
    monkeypatch.setattr(sweep, "POLL", 0.02)
    (tmp_path / "train_taxonomy.py").write_text(STAND_IN)
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(SPACE))
    (tmp_path / "wishes.json").write_text("{}")
    words = [str(tmp_path / "train_taxonomy.py"), "--space", str(tmp_path / "space.yaml")]
    return [*words, "--output_dir", str(tmp_path / "out")]


def wish(tmp_path, **wishes):
    (tmp_path / "wishes.json").write_text(json.dumps(wishes))


def starts(tmp_path):
    return [line.split() for line in (tmp_path / "starts.txt").read_text().splitlines()]


def worker(words):
    process = multiprocessing.get_context("fork").Process(target=sweep.main, args=(words,))
    process.start()
    return process


def wait_until(true, meanwhile):
    while not true():
        assert meanwhile()
        time.sleep(0.01)


def wait_for(path: Path, process):
    wait_until(path.is_file, process.is_alive)


def states(out):
    return pd.read_csv(out / "trials.csv", index_col="number")["state"].to_dict()


def test_a_study_by_two_workers_one_of_them_killed(stand_in, tmp_path):
    out, words = tmp_path / "out", [*stand_in, "--trials", "8", "--no_pruning"]
    wish(tmp_path, trial_0000={"pause": 60})
    first = worker(words)
    wait_for(out / "trial_0000" / "checkpoint", first)
    first.kill()
    os.kill(int(starts(tmp_path)[0][2]), signal.SIGKILL)
    first.join()
    wish(tmp_path, **{f"trial_{number:04d}": {"pause": 0.1} for number in range(8)})
    second = worker(words)
    table = sweep.main(words)
    second.join()
    assert second.exitcode == 0
    every = starts(tmp_path)
    assert sorted(name for name, *_ in every) == sorted(
        ["trial_0000", *(f"trial_{number:04d}" for number in range(8))]
    )
    assert [done for name, done, *_ in every if name == "trial_0000"] == ["0", "1"]  # from its checkpoint
    assert len({parent for *_, parent in every}) == 3  # all of them had a part
    study = optuna.load_study(
        study_name="sweep", storage=sweep.JournalStorage(sweep.JournalFileBackend(str(out / "study.log")))
    )
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 8
    assert [trial.user_attrs.get("killed", 0) for trial in study.trials] == [1, *[0] * 7]
    assert len(table) == 8 and len(study.trials[0].intermediate_values) == 2
    best = max(study.trials, key=lambda trial: trial.value)
    saved = yaml.safe_load((out / "best.yaml").read_text())
    assert saved["learning_rate"] == best.value and saved["head"] == best.params["head"]
    assert saved["level_weights"] in SPACE["level_weights"] and "output_dir" not in saved
    assert (out / "trials.png").stat().st_size > 5000
    before = (out / "trials.csv").read_bytes()
    sweep.main(words)  # there is nothing left to do
    assert len(starts(tmp_path)) == 9 and (out / "trials.csv").read_bytes() == before


@pytest.mark.slow
def test_a_training_that_has_outlived_its_worker_is_left_alone(stand_in, tmp_path):
    wish(tmp_path, trial_0000={"held": True})
    (tmp_path / "hold").touch()
    first = worker([*stand_in, "--trials", "2"])
    wait_for(tmp_path / "out" / "trial_0000" / "checkpoint", first)
    first.kill()
    sweep.main([*stand_in, "--trials", "2"])
    assert [name for name, *_ in starts(tmp_path)] == ["trial_0000", "trial_0001"]
    assert states(tmp_path / "out") == {0: "RUNNING", 1: "COMPLETE"}
    (tmp_path / "hold").unlink()
    while sweep.status_of(tmp_path / "out" / "trial_0000") != "finished":
        time.sleep(0.01)
    time.sleep(0.2)  # until it has let go of its lock
    sweep.main([*stand_in, "--trials", "2"])
    assert states(tmp_path / "out") == {0: "COMPLETE", 1: "COMPLETE"}


def test_what_is_worse_than_the_median_is_cut_short(stand_in, tmp_path):
    good = {f"trial_{number:04d}": {"accuracy": 0.8} for number in range(4)}
    wish(tmp_path, **good, trial_0004={"accuracy": 0.1, "pause": 0.05}, trial_0005={"accuracy": 0.1})
    words = [*stand_in, "--trials", "5", "--", "--num_train_epochs", "30"]
    sweep.main(words)
    out = tmp_path / "out"
    assert states(out) == {**dict.fromkeys(range(4), "COMPLETE"), 4: "PRUNED"}
    assert sweep.status_of(out / "trial_0004") == "stopped"
    assert len((out / "trial_0004" / "history.jsonl").read_text().splitlines()) < 25
    sweep.main([*stand_in, "--no_pruning", "--trials", "6", "--", "--num_train_epochs", "30"])
    assert states(out)[5] == "COMPLETE"


def test_low_values_can_be_better(stand_in, tmp_path):
    sweep.main([*stand_in, "--trials", "1", "--", "--metric_for_best_model", "path.full_path_accuracy"])
    with pytest.raises(ValueError, match="was begun with another metric_for_best_model; give another --output_dir"):
        sweep.main([*stand_in, "--trials", "1", "--", "--metric_for_best_model", "loss"])


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)])
def test_a_worker_that_is_to_stop_stops_its_training(stand_in, tmp_path, signal_number):
    wish(tmp_path, trial_0000={"pause": 60})
    process = worker([*stand_in, "--trials", "1"])
    wait_for(tmp_path / "out" / "trial_0000" / "checkpoint", process)
    os.kill(process.pid, signal_number)
    process.join()
    assert process.exitcode == 85 and sweep.status_of(tmp_path / "out" / "trial_0000") == "stopped"
    wish(tmp_path)
    sweep.main([*stand_in, "--trials", "1"])
    assert states(tmp_path / "out") == {0: "COMPLETE"} and [done for _, done, *_ in starts(tmp_path)] == ["0", "1"]


def test_trials_that_fail_or_are_killed_again_and_again(stand_in, tmp_path):
    wish(tmp_path, trial_0000={"fails": True}, trial_0001={"killed": 1}, trial_0002={"killed": 9})
    words = [*stand_in, "--trials", "4", "--", "--num_train_epochs", "9"]
    sweep.main(words)
    assert states(tmp_path / "out") == {0: "FAIL", 1: "COMPLETE", 2: "FAIL", 3: "COMPLETE"}
    counts = pd.Series([name for name, *_ in starts(tmp_path)]).value_counts()
    assert counts.to_dict() == {"trial_0000": 1, "trial_0001": 2, "trial_0002": 3, "trial_0003": 1}
    wish(tmp_path, **{f"trial_{number:04d}": {"fails": True} for number in range(4, 20)})
    with pytest.raises(ValueError, match=r"3 trials in a row have failed; the end of .*trial_0006.log.txt says why"):
        sweep.main([*stand_in, "--trials", "20", "--", "--num_train_epochs", "9"])


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"lerning_rate": [0.1]}, "Unknown option --lerning_rate. Did you mean --learning_rate"),
        ({"learning_rate": {"low": 0, "high": 1}}, "learning_rate must be greater than 0, not 0"),
        ({"head": ["tree", "three"]}, "argument --head: invalid choice: 'three'"),
        ({"dropout": {"low": 0, "high": 0.9, "steps": 0.1}}, "dropout: a list of choices is needed, or low and high"),
        ({"dropout": {"low": 0.5, "high": 0.1}}, "dropout: `low <= high` must hold"),
        ({"learning_rate": {"low": "much", "high": 1}}, "could not convert string to float: 'much'"),
        ({"head": []}, "head: a list"),
        ({"output_dir": ["a", "b"]}, "output_dir: a list"),
        (["head"], "it: must hold options"),
    ],
)
def test_mistakes_in_a_space(stand_in, tmp_path, space, message):
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(space))
    with pytest.raises(ValueError, match=message) as caught:
        sweep.main(stand_in)
    assert "space.yaml" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_the_space_of_the_documentation(stand_in):
    file = str(REPOSITORY / "configs" / "spaces" / "taxonomy.yaml")
    assert "mixup" in sweep.read_space(file, lambda *words: parse_arguments(TaxonomyArguments, words, "", DEMO_CONFIG))


def test_other_mistakes(stand_in, tmp_path):
    with pytest.raises(ValueError, match="predict.py is not one of train_taxonomy.py, train_segmentation.py"):
        sweep.main(["predict.py", *stand_in[1:]])
    with pytest.raises(ValueError, match="No such file"):
        sweep.main([*stand_in[:2], "none.yaml", *stand_in[3:]])
    with pytest.raises(ValueError, match="Did you mean --num_train_epochs"):
        sweep.main([*stand_in, "--", "--num_train_epoch", "3"])
    with pytest.raises(FileNotFoundError, match="none.folds.json"):
        sweep.main([stand_in[0], "--folds", str(tmp_path / "none"), *stand_in[3:]])
    assert not (tmp_path / "out").exists()


def test_folds_killed_half_way(stand_in, tmp_path, capsys):
    folds = {"content_a": 0.2, "content_b": 0.4, "content_c": 0.9}
    (tmp_path / "folds").mkdir()
    (tmp_path / "folds" / "folds.json").write_text(json.dumps(folds))
    wishes = {name: {"accuracy": accuracy} for name, accuracy in folds.items()}
    wish(tmp_path, **{**wishes, "content_b": {"accuracy": 0.4, "pause": 60}})
    words = [stand_in[0], "--folds", str(tmp_path / "folds"), *stand_in[3:]]
    first = worker(words)
    wait_for(tmp_path / "out" / "content_b" / "checkpoint", first)
    assert sweep.main(words) is None  # the second of an array: what is left is the last fold
    assert "content_b: in training elsewhere" in capsys.readouterr().out
    first.kill()
    os.kill(int(starts(tmp_path)[1][2]), signal.SIGKILL)
    first.join()
    wish(tmp_path, **wishes)
    table = sweep.main(words)
    assert [line[:2] for line in starts(tmp_path)] == [
        ["content_a", "0"],
        ["content_b", "0"],
        ["content_c", "0"],
        ["content_b", "1"],
    ]
    numbers = table["levels.species.accuracy"].iloc[0]
    assert numbers["mean"] == pytest.approx(0.5) and numbers["std"] == pytest.approx(np.std([0.2, 0.4, 0.9], ddof=1))
    assert "50.00% ± 36.06%" in capsys.readouterr().out
    rows = pd.read_csv(tmp_path / "out" / "folds" / "comparison.csv", index_col="run")
    assert rows["levels.species.accuracy"].to_dict() == folds
    settings = yaml.safe_load((tmp_path / "out" / "content_b" / "sweep.yaml").read_text())
    assert settings["dataset_name"] == str(tmp_path / "folds" / "content_b") and settings["test_split"] == "test"


@pytest.mark.slow
def test_a_study_of_trainings(options, tmp_path):
    """And that their best settings are a configuration."""
    (tmp_path / "space.yaml").write_text("learning_rate: {low: 1e-3, high: 1e-2, log: true}\nhead: [tree, flat]\n")
    words = [str(REPOSITORY / "train_taxonomy.py"), "--space", str(tmp_path / "space.yaml"), "--trials", "2"]
    table = sweep.main([*words, "--output_dir", str(tmp_path / "out"), "--", *options(output_dir=None)])
    assert list(table["state"]) == ["COMPLETE"] * 2
    best = yaml.safe_load((tmp_path / "out" / "best.yaml").read_text())
    assert best["level_columns"] == LEVELS and 1e-3 <= best["learning_rate"] <= 1e-2
    results = json.loads((tmp_path / "out" / "trial_0001" / "all_results.json").read_text())
    assert table["value"][1] == results["eval"]["path"]["full_path_accuracy"]


@pytest.mark.parametrize(("status", "requeued"), [(85, True), (0, False), (2, False)])
def test_the_batch_file(tmp_path, status, requeued):
    """With programs that only note how they were called: the warning reaches sweep.py, and status 85 requeues."""
    (tmp_path / "scontrol").write_text('#!/bin/bash\necho "scontrol $*" >>"$NOTES"\n')
    (tmp_path / "python").write_text(
        f'#!/bin/bash\necho "python $*" >>"$NOTES"\ntrap "echo told >>$NOTES; exit {status}" TERM\n'
        f"[[ {status} == 85 ]] || exit {status}\ntouch $NOTES.ready\nwhile true; do sleep 0.05; done\n"
    )
    for name in ("scontrol", "python"):
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "NOTES": str(tmp_path / "notes")}
    environment |= {"SLURM_SUBMIT_DIR": str(REPOSITORY), "SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "5"}
    environment |= {"SLURM_ARRAY_TASK_ID": "2", "SLURM_JOB_NAME": "sweep", "SLURM_JOB_NODELIST": "n1"}
    environment |= {"MASTER_ADDR": "n1", "LOGS": str(tmp_path), "SLURM_GPUS_ON_NODE": "2"}
    command = ["bash", str(REPOSITORY / "launch" / "slurm" / "sweep.sbatch"), "train_taxonomy.py", "--folds", "F"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as job:
        if status == 85:
            wait_until((tmp_path / "notes.ready").is_file, lambda: job.poll() is None)
            job.send_signal(signal.SIGUSR1)
        out, _ = job.communicate(timeout=20)
    notes = (tmp_path / "notes").read_text()
    assert job.returncode == (0 if requeued else status) and f"ended with status {status}" in out
    assert "--num_processes 2" in notes and notes.splitlines()[0].endswith("train_taxonomy.py --folds F")
    assert ("scontrol requeue 5_2" in notes) == ("told" in notes) == requeued
