"""Many trainings for one question: search for good options with Optuna, or train all folds of a cross-validation.

    python sweep.py train_taxonomy.py --config C.yaml --space SPACE.yaml --trials 20 --output_dir output/sweep
    python sweep.py train_segmentation.py --config C.yaml --folds data/folds --output_dir output/folds
    python sweep.py train_taxonomy.py --space SPACE.yaml --output_dir output/sweep -- --num_train_epochs 5

The script's own options follow "--". The same command, started elsewhere on the same disk, shares the work; started
again after a kill, it goes on: docs/sweeps.md.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import yaml
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import TrialState

import compare_runs
from common.metrics.results import flatten, is_better
from common.options.arguments import parse_arguments
from common.options.segmentation import SegmentationArguments
from common.options.taxonomy import TaxonomyArguments
from common.report.figures import save_figure
from common.run.command import run
from common.run.stopping import STATUS_FILE, STOPPED_STATUS, StopRequest
from common.system.files import atomic_write, read_history, read_yaml
from common.system.lock import RunLock

SCRIPTS = {"train_taxonomy.py": TaxonomyArguments, "train_segmentation.py": SegmentationArguments}
OWN = {"output_dir", "resume_from_checkpoint"}  # every training has its own
POLL = 1.0  # seconds between looks at a training
MAX_KILLED = 3  # times that a trial may be killed before it counts as failed
MAX_FAILED = 3  # trials in a row, after which a person should look
UNPRUNED = {"n_startup_trials": 4, "n_warmup_steps": 1}  # complete trials, and evaluations, before any is cut short

Settings = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> pd.DataFrame | None:
    """Train until no trial or fold is left for this process; returns the trials, or what the folds have in the mean.

    Raises:
        ValueError: for anything that the user can fix.
        SystemExit: with status 85 if it was stopped; the same command goes on.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("script", metavar="SCRIPT", help="train_taxonomy.py or train_segmentation.py")
    parser.add_argument("--config", help="YAML file with the options that all trainings share")
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--space", help="YAML file with the options to search: choices, or low and high")
    kind.add_argument("--folds", type=Path, help="folder of make_folds.py")
    parser.add_argument("--output_dir", required=True, type=Path, help="a folder for each training, and the results")
    parser.add_argument("--trials", type=int, default=20, help="of all processes together (default 20)")
    parser.add_argument("--no_pruning", action="store_true", help="train to the end what is worse than the median")
    parser.add_argument("--launch", default=sys.executable, help='such as "accelerate launch --multi_gpu"')
    argv = list(sys.argv[1:] if argv is None else argv)
    own = argv.index("--") if "--" in argv else len(argv)
    args = parser.parse_args(argv[:own])
    name = Path(args.script).stem
    if f"{name}.py" not in SCRIPTS:
        raise ValueError(f"{args.script} is not one of {', '.join(SCRIPTS)}.")
    words = [*(["--config", args.config] if args.config else []), *argv[own + 1 :]]
    demo = Path(__file__).parent / "configs" / f"{name.removeprefix('train_')}_demo.yaml"

    def parse(*more: str) -> Any:
        return parse_arguments(SCRIPTS[f"{name}.py"], [*words, *more], __doc__, demo)

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    options = parse()
    shared = {key: value for key, value in vars(options).items() if key in options.given - OWN}
    space = read_space(args.space, parse) if args.space else {}
    names = json.loads((args.folds / "folds.json").read_text(encoding="utf-8")) if args.folds else {}
    folds = {name: str(args.folds / name) for name in names}
    check_begun(args.output_dir, {**shared, "space": space, "folds": folds})
    with StopRequest() as stop:
        train_one = partial(train, [*shlex.split(args.launch), args.script], stop)
        if args.folds:
            return train_folds(args.output_dir, folds, shared, train_one)
        return search(args, shared, space, options.metric_for_best_model, train_one)


def check_begun(folder: Path, settings: Settings) -> None:
    """Note the settings in the folder; ValueError if it was begun with others, or its disk has no locks."""
    with RunLock(folder / "locks", wait=True) as lock:
        if not lock.exclusive:
            raise ValueError(f"{folder}: this file system has no locks, without which work cannot be shared.")
        begun = read_yaml(folder / "settings.yaml") if (folder / "settings.yaml").is_file() else settings
        if different := sorted(key for key in begun | settings if begun.get(key) != settings.get(key)):
            raise ValueError(f"{folder} was begun with another {', '.join(different)}; give another --output_dir.")
        write_yaml(folder / "settings.yaml", settings)


def write_yaml(path: Path, content: Settings) -> None:
    """A file that ``--config`` takes."""
    with atomic_write(path) as file:
        yaml.safe_dump(content, file, sort_keys=False)


def train(
    command: Sequence[str],
    stop: StopRequest,
    folder: Path,
    settings: Settings,
    lock: RunLock,
    hopeless: Callable[[], bool] = lambda: False,
) -> str:
    """Train into a folder, or go on there: finished, pruned, failed or crashed; SystemExit if this process is to stop.

    Args:
        command: starts the script.
        stop: what this process was asked; the training then ends with a checkpoint.
        folder, settings: of the training.
        lock: of the training, which holds it too, so that nobody else trains there as long as it lives.
        hopeless: asked now and then; whether to prune.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_yaml(folder / "sweep.yaml", {**settings, "output_dir": str(folder)})
    (folder / STATUS_FILE).unlink(missing_ok=True)
    words, pruned, asked = [*command, "--config", str(folder / "sweep.yaml")], False, False
    with (folder / "log.txt").open("a") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True, pass_fds=[lock.fileno()])
        while process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(POLL)
            pruned = pruned or hopeless()
            if (pruned or stop.here()) and not asked:
                process.terminate()
                asked = True
    status = status_of(folder, "failed" if process.returncode > 0 else "crashed")
    if process.returncode and not pruned and (status == "stopped" or stop.here()):
        print(f"{folder.name} was stopped; the same command goes on.", flush=True)
        sys.exit(STOPPED_STATUS)
    return "finished" if not process.returncode else "pruned" if pruned else status.replace("running", "crashed")


def status_of(folder: Path, default: str = "") -> str:
    """What a training has last said of itself."""
    with suppress(OSError, ValueError):
        return json.loads((folder / STATUS_FILE).read_text(encoding="utf-8"))["status"]
    return default


# ---- searching


def read_space(path: str, parse: Callable[..., Any]) -> dict[str, Any]:
    """Option -> list of choices, or bounds: keywords of ``Trial.suggest_float``.

    Raises:
        ValueError: the file is no such thing, or names an option or a value that there is not.
    """
    name = "it"
    try:
        content = read_yaml(path)
        if not isinstance(content, dict):
            raise ValueError("must hold options, such as 'head: [tree, flat]' or 'mixup: {low: 0, high: 0.4}'.")
        for name, entry in content.items():
            if isinstance(entry, dict) and {"low", "high"} <= entry.keys() <= {"low", "high", "step", "log"}:
                entry |= {key: float(value) for key, value in entry.items() if isinstance(value, str)}  # 1e-5 in YAML
            elif not isinstance(entry, list) or not entry or name in OWN:
                raise ValueError("a list of choices is needed, or low and high, with step or log.")
            for value in entry if isinstance(entry, list) else (entry["low"], entry["high"]):
                parse(*([f"--{name}", *map(str, value)] if isinstance(value, list) else [f"--{name}={value}"]))
            drawn(optuna.create_study().ask(), {name: entry})
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"--space {path}: {name}: {error}") from error
    return content


def drawn(trial: optuna.trial.BaseTrial, space: Mapping[str, Any]) -> Settings:
    """The options of a trial, as it has drawn them before or draws them now."""
    found = {}
    for name, entry in space.items():
        if isinstance(entry, list):
            words = [str(choice) for choice in entry]
            found[name] = entry[words.index(trial.suggest_categorical(name, words))]
        else:
            whole = all(isinstance(value, int) for value in entry.values())
            found[name] = (trial.suggest_int if whole else trial.suggest_float)(name, **entry)
    return found


def search(
    args: argparse.Namespace, shared: Settings, space: Mapping[str, Any], metric: str, train_one: Callable[..., str]
) -> pd.DataFrame:
    """Take trials, one after the other, until there are enough; writes and returns the table of all."""
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(args.output_dir / "study.log"))),
        study_name="sweep",
        load_if_exists=True,
        direction="maximize" if is_better(metric, 1, 0) else "minimize",
        sampler=optuna.samplers.TPESampler(constant_liar=True),
        pruner=optuna.pruners.NopPruner() if args.no_pruning else optuna.pruners.MedianPruner(**UNPRUNED),
    )
    states = {"finished": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
    failed = 0
    while claimed := claim(study, args):
        trial, folder, lock = claimed
        with lock:
            settings, value = {**shared, **drawn(trial, space)}, None
            outcome = train_one(folder, settings, lock, partial(hopeless, trial, folder / "history.jsonl", metric))
            if outcome == "finished":
                results = json.loads((folder / "all_results.json").read_text(encoding="utf-8"))
                value = dict(flatten(results["eval"]))[metric]
            if outcome in states:  # else it is taken up again, from its last checkpoint
                study.tell(trial, value, states[outcome])
        print(f"{folder.name}: {outcome}" + ("" if value is None else f", {metric} {value:.4f}"), flush=True)
        failed = failed + 1 if outcome == "failed" else 0
        if failed == MAX_FAILED:
            raise ValueError(f"{failed} trials in a row have failed; the end of {folder / 'log.txt'} says why.")
    table = study.trials_dataframe(("number", "state", "value", "duration", "params"))
    with RunLock(args.output_dir / "locks", wait=True), atomic_write(args.output_dir / "trials.csv") as file:
        table.to_csv(file, index=False)
        if study.get_trials(states=[TrialState.COMPLETE]):
            write_yaml(args.output_dir / "best.yaml", {**shared, **drawn(study.best_trial, space)})
            axes = optuna.visualization.matplotlib.plot_slice(study, target_name=metric)
            save_figure(np.ravel(axes)[0].figure, args.output_dir / "trials.png")
    print(table.sort_values("value", ascending=study.direction.name == "MINIMIZE").to_string(index=False))
    return table


def claim(study: optuna.Study, args: argparse.Namespace) -> tuple[optuna.Trial, Path, RunLock] | None:
    """A trial that nobody trains any more, or else a new one: with its folder, and locked."""
    locks = args.output_dir / "locks"
    with RunLock(locks, wait=True):
        for left in study.get_trials(states=[TrialState.RUNNING]):
            name, trial = f"trial_{left.number:04d}", optuna.Trial(study, left._trial_id)
            with suppress(ValueError):  # it is in training
                lock = RunLock(locks / name)
                killed = left.user_attrs.get("killed", 0) + (status_of(args.output_dir / name) != "stopped")
                trial.set_user_attr("killed", killed)
                if killed < MAX_KILLED:
                    return trial, args.output_dir / name, lock
                lock.release()
                study.tell(trial, state=TrialState.FAIL)
        if len(study.trials) >= args.trials:
            return None
        trial = study.ask()
        name = f"trial_{trial.number:04d}"
        return trial, args.output_dir / name, RunLock(locks / name)


def hopeless(trial: optuna.Trial, history: Path, metric: str) -> bool:
    """Tell the study of evaluations that it does not know; whether the others were better at this point."""
    known = trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values
    with suppress(ValueError):  # a line is being written
        values = [line[f"eval/{metric}"] for line in read_history(history) if f"eval/{metric}" in line]
        for number in range(len(known), len(values)):
            trial.report(np.nan if values[number] is None else values[number], number)
    return trial.should_prune()


# ---- folds


def train_folds(
    output_dir: Path, folds: Mapping[str, str], shared: Settings, train_one: Callable[..., str]
) -> pd.DataFrame | None:
    """Train the folds that nobody trains; when all are done, print and return mean and deviation over their tests."""
    outcomes = dict.fromkeys(folds, "in training elsewhere")
    for name, fold in folds.items():
        try:
            lock = RunLock(output_dir / "locks" / name)
        except ValueError:
            continue
        with lock:
            done = status_of(output_dir / name) == "finished"
            settings = {"test_split": "test", **shared, "dataset_name": fold}
            outcomes[name] = "finished" if done else train_one(output_dir / name, settings, lock)
    print(*(f"{name}: {outcome}" for name, outcome in outcomes.items()), sep="\n")
    if set(outcomes.values()) != {"finished"}:
        print(f"The same command trains the rest; {output_dir}/FOLD/log.txt says what failed.")
        return None
    words = [*(str(output_dir / name) for name in folds), "--part", "test", "--output_dir"]
    compare_runs.main([*words, str(output_dir / "folds")])
    return compare_runs.main([*words, str(output_dir / "mean"), "--group_by"])


if __name__ == "__main__":
    run(main)
