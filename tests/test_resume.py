"""Runs that are killed, stopped and moved end as if nothing had happened."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, launcher
from safetensors.torch import load_file

import train_segmentation
import train_taxonomy
from common.checkpoint.checkpointer import Checkpointer
from common.checkpoint.state import TrainState
from common.images.transforms import MixImages
from common.run.stopping import STOPPED_STATUS
from common.system.lock import RunLock

RANDOM = {
    "taxonomy": {"mixup": 0.5, "cutmix": 0.5, "auto_augment": "rand-m9-mstd0.5-inc1", "drop_path_rate": 0.2},
    "segmentation": {"model_name_or_path": "timm/test_convnext", "head": "independent", "aux_weight": 0.4},
}
SCRIPTS = {"taxonomy": train_taxonomy, "segmentation": train_segmentation}


@pytest.fixture(params=["taxonomy", pytest.param("segmentation", marks=pytest.mark.slow)])
def script(request) -> str:
    """test_twins.py holds the loops of both equal; the second one's is run in .ci/run."""
    return request.param


@pytest.fixture
def words(script, options, dense_options, tmp_path) -> Callable[..., list[str]]:
    """A command line of the script with everything random on: 12 steps in two epochs, with accumulation and EMA."""
    make = {"taxonomy": options, "segmentation": dense_options}[script]
    size = {"taxonomy": 48, "segmentation": 24}[script]

    def command(**changes: object) -> list[str]:
        settings = {
            "max_train_samples": size,
            "max_eval_samples": 12,
            "global_batch_size": size // 6,
            "per_device_train_batch_size": size // 12,
            "num_train_epochs": 2,
            "dropout": 0.2,
            "ema_decay": 0.9,
            "checkpointing_steps": 2,
            "logging_steps": 3,
            "learning_rate": 5e-3,
            **RANDOM[script],
            **changes,
        }
        return make(**settings)

    return command


def outcome(folder: Path) -> dict[str, object]:
    """What must not depend on how often a run was cut off."""
    results = json.loads((folder / "all_results.json").read_text())
    for name in ("seconds", "images_per_second"):
        del results["train"][name]
    return {
        "weights": (folder / "model.safetensors").read_bytes(),
        "history": (folder / "history.jsonl").read_text(),
        "results": results,
    }


WHOLE: dict[str, dict[str, object]] = {}


@pytest.fixture
def whole(script, words, tmp_path) -> dict[str, object]:
    """The outcome of a run of the script that nothing disturbs; trained once."""
    if script not in WHOLE:
        SCRIPTS[script].main(words(output_dir=tmp_path / "whole"))
        WHOLE[script] = outcome(tmp_path / "whole")
    return WHOLE[script]


@pytest.fixture
def dies(server) -> Callable[..., int]:
    """Run a script in a child that gets signals (SIGKILL) at the so-many-th call of a function; its exit status."""

    def run(
        script: str,
        words: list[str],
        owner: object,
        name: str,
        call: int,
        signals: Sequence[int] = (signal.SIGKILL,),
        after: float = 0.0,
        **environment: str,
    ) -> int:
        return server(
            script=SCRIPTS[script].__name__,
            words=words,
            owner=f"{owner.__module__}:{owner.__name__}" if isinstance(owner, type) else owner.__name__,
            name=name,
            call=call,
            signals=[int(number) for number in signals],
            after=after,
            environment=environment,
        )

    return run


# ---- killed


def test_killed_anywhere_ends_as_if_nothing_had_happened(script, words, whole, tmp_path, dies):
    """In mid-epoch, in mid-accumulation, in mid-save, in an evaluation, and twice in one epoch; byte for byte."""
    module = SCRIPTS[script]
    command = words(output_dir=tmp_path / "cut")
    places = [
        ("set_learning_rate", module, 4),  # the beginning of a step
        ("seed_step", module, 4),  # the second half of an accumulated step
        ("_at", Checkpointer, 7),
        ("evaluate_model", module, 1),
        ("_at", Checkpointer, 4),
        ("save_evaluation", module, 1),  # the best model is written, what belongs to it is not
    ]
    statuses = [dies(script, command, owner, name, call) for name, owner, call in places]
    assert set(statuses) <= {-signal.SIGKILL, 0} and statuses.count(-signal.SIGKILL) >= 4  # some come after the end
    SCRIPTS[script].main(command)
    assert outcome(tmp_path / "cut") == whole


@pytest.mark.slow
def test_killed_at_random_moments_with_batch_norm(script, words, tmp_path, dies):
    """Three times in one run after the other, whatever it is doing; byte for byte, running statistics included."""
    settings = {"model_name_or_path": "timm/test_resnet", "checkpointing_steps": 1}
    began = time.monotonic()
    SCRIPTS[script].main(words(**settings, output_dir=tmp_path / "whole"))
    duration = time.monotonic() - began
    draw, kills, runs = random.Random(0), 0, 0
    while kills < 3:
        command, status, runs = words(**settings, output_dir=tmp_path / f"cut {runs}"), -1, runs + 1
        while status:
            status = dies(script, command, SCRIPTS[script], "main", 0, after=duration * draw.uniform(0.2, 1))
            assert status in (0, -signal.SIGALRM)
            kills += status != 0
        assert outcome(tmp_path / f"cut {runs - 1}") == outcome(tmp_path / "whole")
    print(f"{kills} kills in {runs} runs")


def test_workers_do_not_matter(script, words, whole, tmp_path, dies):
    """With loader processes that live on, and that have prefetched when the run is killed."""
    command = words(output_dir=tmp_path / "cut", dataloader_num_workers=1)
    assert dies(script, command, SCRIPTS[script], "set_learning_rate", 6) == -signal.SIGKILL
    SCRIPTS[script].main(command)
    assert outcome(tmp_path / "cut") == whole


# ---- stopped


@pytest.mark.parametrize("where", ["set_learning_rate", "evaluate_model"])
def test_a_signal_stops_with_a_checkpoint(words, script, whole, tmp_path, monkeypatch, where):
    command = words(output_dir=tmp_path / "cut", checkpointing_steps="epoch")
    original, calls = getattr(SCRIPTS[script], where), []

    def signalled(*args):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(SCRIPTS[script], where, signalled)
        before = signal.getsignal(signal.SIGTERM)
        with pytest.raises(SystemExit) as stop:
            SCRIPTS[script].main(command)
    assert stop.value.code == STOPPED_STATUS and signal.getsignal(signal.SIGTERM) is before
    status = json.loads((tmp_path / "cut" / "run_status.json").read_text())
    assert status["status"] == "stopped" and "SIGTERM" in status["reason"]
    assert status["global_step"] == {"set_learning_rate": 2, "evaluate_model": 12}[where]
    SCRIPTS[script].main(command)
    assert json.loads((tmp_path / "cut" / "run_status.json").read_text())["status"] == "finished"
    assert outcome(tmp_path / "cut") == whole


@pytest.mark.slow
def test_a_signal_to_all_processes_stops_with_a_checkpoint(options, tmp_path):
    """Launchers and Slurm tell everyone, processes that load data included."""
    settings = {"num_train_epochs": 30, "dataloader_num_workers": 1, "per_device_train_batch_size": 4}
    command = launcher("train_taxonomy.py", 2, options(**settings, logging_steps=1))
    with subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True) as run:
        history = tmp_path / "out" / "history.jsonl"
        wait_for(lambda: run.poll() is not None or (history.exists() and history.read_text().count("\n") > 2))
        run.send_signal(signal.SIGTERM)  # the launcher sends it to the process group of each of its processes
        said = run.communicate(timeout=120)[1]
    status = json.loads((tmp_path / "out" / "run_status.json").read_text())
    assert status["status"] == "stopped" and 0 < status["global_step"] < status["num_steps"], said
    assert (tmp_path / "out" / "checkpoints" / f"checkpoint-{status['global_step']:08d}").is_dir()
    assert "DataLoader worker" not in said


def wait_for(ready: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_second_signal_exits_at_once(options, dies):
    twice = [signal.SIGUSR1, signal.SIGUSR1]
    assert dies("taxonomy", options(), train_taxonomy, "set_learning_rate", 1, twice) == 128 + signal.SIGUSR1


def test_slurm_may_say_it_again(options, dies):
    """It does while it ends a job, and kills in the end anyway."""
    twice, slurm = [signal.SIGTERM, signal.SIGTERM], {"SLURM_JOB_ID": "1"}
    assert dies("taxonomy", options(), train_taxonomy, "set_learning_rate", 1, twice, **slurm) == STOPPED_STATUS
    twice = [signal.SIGTERM, signal.SIGINT]
    assert dies("taxonomy", options(), train_taxonomy, "set_learning_rate", 1, twice, **slurm) == 128 + signal.SIGINT


def test_the_time_budget_stops_a_run(options, tmp_path):
    with pytest.raises(SystemExit) as stop:
        train_taxonomy.main(options(max_train_minutes=1e-6))
    assert stop.value.code == STOPPED_STATUS
    status = json.loads((tmp_path / "out" / "run_status.json").read_text())
    assert status["status"] == "stopped" and "--max_train_minutes" in status["reason"]
    train_taxonomy.main(options())


# ---- other numbers of processes


@pytest.mark.slow
def test_one_process_then_two_then_one(dense_options, tmp_path, launch):
    """The same global batches, so that the loss of every step is the same but for the order of sums."""
    script = "train_segmentation.py"
    settings = {
        "model_name_or_path": "timm/test_convnext",
        "global_batch_size": 8,
        "lr_scheduler_type": "constant",
        "warmup_ratio": 0,
        "logging_steps": 1,
        "checkpointing_steps": 1,
        "num_train_epochs": None,
        "aux_weight": 0.4,
        "loss": ["focal=0.5", "tversky=0.5", "lovasz=0.5"],
    }
    one = {**settings, "per_device_train_batch_size": 8}
    train_segmentation.main(dense_options(**one, max_train_steps=9, output_dir=tmp_path / "whole"))
    train_segmentation.main(dense_options(**one, max_train_steps=2, output_dir=tmp_path / "cut"))
    two = dense_options(**settings, max_train_steps=4, output_dir=tmp_path / "cut")
    two[two.index("--per_device_train_batch_size") + 1] = "4"
    launch(script, 2, two)
    train_segmentation.main(dense_options(**one, max_train_steps=9, output_dir=tmp_path / "cut"))

    def losses(folder: Path) -> dict[int, float]:
        lines = map(json.loads, (folder / "history.jsonl").read_text().splitlines())
        return {line["global_step"]: line["train/loss"] for line in lines if "train/loss" in line}

    whole, cut = losses(tmp_path / "whole"), losses(tmp_path / "cut")
    assert list(cut) == list(range(1, 10))
    assert list(cut.values()) == pytest.approx(list(whole.values()), rel=1e-3)


# ---- where a run starts


def test_a_finished_run_is_not_trained_again(options, tmp_path, monkeypatch):
    first = train_taxonomy.main(options(max_train_steps=3))
    monkeypatch.setattr(train_taxonomy, "seed_step", lambda *args: pytest.fail("trained again"))
    again = train_taxonomy.main(options(max_train_steps=3))
    assert again["train"]["global_step"] == 3 and again["eval"]["loss"] == first["eval"]["loss"]


def test_starting_over_and_starting_from_another_run(options, tmp_path, capfd):
    train_taxonomy.main(options(max_train_steps=3))
    train_taxonomy.main(options(max_train_steps=3, resume_from_checkpoint="none"))
    assert "earlier checkpoints are now in" in capfd.readouterr().err
    assert len(list((tmp_path / "out").glob("checkpoints*"))) == 2
    elsewhere = {"output_dir": tmp_path / "other", "resume_from_checkpoint": tmp_path / "out"}
    results = train_taxonomy.main(options(max_train_steps=5, **elsewhere))
    assert results["train"]["global_step"] == 5
    assert "Resuming from step 3" in capfd.readouterr().err
    with pytest.raises(ValueError, match="no checkpoint at|is not an intact checkpoint"):
        train_taxonomy.main(options(output_dir=tmp_path / "third", resume_from_checkpoint=tmp_path / "nowhere"))


def test_another_run_is_refused(options):
    train_taxonomy.main(options(max_train_steps=2))
    for changes, said in (
        ({"learning_rate": 1e-5}, "learning_rate was 0.003, now 1e-05"),
        ({"per_device_train_batch_size": 4}, "global_batch_size was 8, now 4"),
        ({"max_train_samples": 50}, "training images was 96, now 50"),
        ({"level_columns": ["order", "species"]}, "level_columns"),
    ):
        with pytest.raises(ValueError, match=said):
            train_taxonomy.main(options(**{"max_train_steps": 2, **changes}))


def test_a_broken_checkpoint_is_passed_over(options, tmp_path, capfd):
    settings = {"checkpointing_steps": 2, "max_train_steps": 5}
    train_taxonomy.main(options(**settings, output_dir=tmp_path / "whole"))
    train_taxonomy.main(options(**settings))
    newest = sorted((tmp_path / "out" / "checkpoints").glob("checkpoint-*"))[-1]
    file = newest / "weights.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    train_taxonomy.main(options(**settings))
    assert "Falling back on" in capfd.readouterr().err
    assert outcome(tmp_path / "out") == outcome(tmp_path / "whole")


def test_a_full_disk_ends_the_run_and_spares_what_is_there(words, script, whole, tmp_path, monkeypatch):
    """At the second save that fails; the first is a warning."""
    points: list[str] = []

    def full(self, point: str) -> None:
        points.append(point)
        if points.count("manifest written") == 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "_at", full)
        with pytest.raises(
            OSError, match="step 8 could not be saved.*the disk is full.*checkpoint-00000004, is intact"
        ):
            SCRIPTS[script].main(words(output_dir=tmp_path / "cut"))
    assert json.loads((tmp_path / "cut" / "run_status.json").read_text())["status"] == "failed"
    SCRIPTS[script].main(words(output_dir=tmp_path / "cut"))
    assert outcome(tmp_path / "cut") == whole


def test_a_refused_run_changes_nothing(options, tmp_path):
    """The folder is in use, or its checkpoints are of another run: what the first run wrote stays, byte for byte."""
    train_taxonomy.main(options(max_train_steps=2))

    def files() -> dict[str, bytes]:
        found = [path for path in (tmp_path / "out").rglob("*") if path.is_file() and path.name != ".lock"]
        return {str(path): path.read_bytes() for path in found}

    before = files()
    with RunLock(tmp_path / "out"), pytest.raises(ValueError, match="in use"):
        train_taxonomy.main(options(max_train_steps=3))
    assert files() == before
    with pytest.raises(ValueError, match="another run"):
        train_taxonomy.main(options(max_train_steps=2, level_columns=["order", "species"]))
    assert files() == before


# ---- losses that are NaN or infinite


def with_bad_losses(monkeypatch: pytest.MonkeyPatch, bad: set[int]) -> None:
    """At these steps activations, and with them the loss and BatchNorm's statistics, are NaN."""
    original = MixImages.__call__

    def mixed(self, pixels, labels, step):
        return original(self, pixels * float("nan") if step in bad else pixels, labels, step)

    monkeypatch.setattr(MixImages, "__call__", mixed)


def with_bad_gradients(monkeypatch: pytest.MonkeyPatch, bad: set[int]) -> None:
    """At these steps the loss is finite, and one gradient is not."""
    original, calls = train_taxonomy.clip_gradients, []

    def clipped(accelerator, model, max_norm):
        calls.append(1)
        if len(calls) - 1 in bad:
            model.heads.weight.grad[0, 0] = float("inf")
        return original(accelerator, model, max_norm)

    monkeypatch.setattr(train_taxonomy, "clip_gradients", clipped)


@pytest.mark.parametrize("spoil", [with_bad_losses, with_bad_gradients])
@pytest.mark.parametrize("max_grad_norm", [0, 1])
def test_a_bad_step_changes_nothing_and_is_counted(options, tmp_path, monkeypatch, spoil, max_grad_norm):
    """Neither weights nor BatchNorm's statistics, the moving average or the optimizer; but the position moves on."""
    spoil(monkeypatch, {2, 3})
    settings = {"model_name_or_path": "timm/test_resnet", "ema_decay": 0.5, "max_grad_norm": max_grad_norm}
    monkeypatch.setattr(TrainState, "is_good", lambda *args, **kwargs: True)  # to see what it would have saved
    words = options(**settings, max_train_steps=4, checkpointing_steps=1, keep_last=9, weight_decay=0.5)
    results = train_taxonomy.main(words)
    assert results["train"]["skipped_steps"] == 2 and np.isfinite(results["eval"]["loss"])
    for group in ("weights", "ema", "optimizer"):
        files = [f"checkpoints/checkpoint-{step:08d}/{group}.safetensors" for step in (1, 2, 4)]
        first, second, last = (load_file(tmp_path / "out" / file) for file in files)
        assert any("running_var" in name for name in second) or group == "optimizer"
        assert all(torch.equal(second[name], last[name]) for name in second)
        assert not all(torch.equal(first[name], second[name]) for name in first)


def test_no_checkpoint_is_written_or_deleted_while_steps_are_bad(options, tmp_path, monkeypatch):
    """Otherwise the ones to fall back on would soon all be of the time after it went wrong."""
    with_bad_losses(monkeypatch, {4, 5, 6})
    train_taxonomy.main(options(max_train_steps=8, checkpointing_steps=1, keep_last=9))
    steps = sorted(int(folder.name[-8:]) for folder in (tmp_path / "out" / "checkpoints").glob("checkpoint-*"))
    assert steps == [1, 2, 3, 4, 8]


def test_weights_that_are_not_finite_are_never_saved(options, tmp_path, monkeypatch):
    original = train_taxonomy.update_ema

    def poison(ema, model, step, nonfinite):
        original(ema, model, step, nonfinite)
        if step == 5:
            model.heads.bias.data[0] = float("nan")

    monkeypatch.setattr(train_taxonomy, "update_ema", poison)
    with pytest.raises(ValueError, match="NaN or infinite for the last 3 steps"):
        train_taxonomy.main(options(ema_decay=0.9, checkpointing_steps=1, max_skipped_steps=2, logging_steps=1))
    for folder in (tmp_path / "out" / "checkpoints").glob("checkpoint-*"):
        assert int(folder.name[-8:]) < 5
        assert all(value.isfinite().all() for value in load_file(folder / "weights.safetensors").values())


def test_too_many_bad_steps_end_the_run(options, tmp_path, monkeypatch):
    with_bad_losses(monkeypatch, set(range(3, 100)))
    with pytest.raises(ValueError, match=r"NaN or infinite for the last 5 .*last checkpoint before that is of step 2"):
        train_taxonomy.main(options(max_skipped_steps=4, logging_steps=4, checkpointing_steps=2))
    assert json.loads((tmp_path / "out" / "run_status.json").read_text())["status"] == "failed"


# ---- Strong Compute's ISC


def ship(artifact: Path, fresh: Path) -> None:
    """As the platform does: what the link names and what is forced, into an empty folder elsewhere."""
    link = artifact / "AtomicDirectory.latest_checkpoint"
    fresh.mkdir()
    kept = {Path(os.readlink(link)).name} if link.is_symlink() else set()
    kept |= {folder.name for folder in artifact.iterdir() if folder.name.endswith("_force")}
    for name in kept:
        shutil.copytree(artifact / name, fresh / name)
    if link.is_symlink():
        os.symlink(os.readlink(link), fresh / link.name)


@pytest.mark.slow
def test_cycles_on_the_isc(script, words, whole, tmp_path, dies):
    status, artifact = -signal.SIGKILL, tmp_path / "artifact0"
    artifact.mkdir()
    for cycle in range(9):
        command = words(output_dir=tmp_path / f"machine{cycle}", checkpointing_steps=1)
        platform = {"CHECKPOINT_ARTIFACT_PATH": str(artifact)}
        status = dies(script, command, SCRIPTS[script], "set_learning_rate", 4, **platform)
        if status == 0:
            break
        ship(artifact, tmp_path / f"artifact{cycle + 1}")
        shutil.rmtree(artifact)  # absolute links now lead nowhere
        artifact = tmp_path / f"artifact{cycle + 1}"
    assert status == 0 and cycle >= 2
    assert outcome(tmp_path / f"machine{cycle}") == whole
    assert any(folder.name.endswith("_force") for folder in artifact.iterdir())
