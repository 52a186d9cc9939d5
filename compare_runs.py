"""Compare finished runs of train_taxonomy.py or train_segmentation.py: one table and one plot.

    python compare_runs.py output/independent output/tree
    python compare_runs.py output/fold_* --group_by head            # mean and deviation over folds or seeds
    python compare_runs.py output/* --metrics levels.species.macro_f1 path.hierarchical_distance

Each folder is the --output_dir of a run. The table is printed, and written as comparison.csv and comparison.md beside
comparison.png. Without --group_by each run has a row, and beside it stand the options in which the runs differ.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.files import atomic_write
from common.metrics.results import cell, flatten, in_words
from common.report.figures import DPI, GREY, save_figure, shortened

# Options that name things of a run, or how it was carried out, rather than what it was.
# fmt: off
UNIMPORTANT = {
    "output_dir", "report_to", "checkpointing_steps", "checkpointing_seconds", "keep_last", "resume_from_checkpoint",
    "max_train_minutes", "dataloader_num_workers", "logging_steps", "save_predictions", "watch", "no_report",
    "push_to_hub", "hub_model_id", "hub_private", "hub_strategy", "license", "cache_decoded",
}
# fmt: on


@dataclass
class Run:
    """What a run left behind.

    Attributes:
        name: the part of the folder's path in which it differs from the others.
        results: names as in ``--metric_for_best_model`` -> numbers; nan where a run had none.
        arguments: of args.yaml.
        history: lines of history.jsonl.
    """

    name: str
    results: dict[str, float]
    arguments: dict[str, Any]
    history: list[dict[str, Any]]


def main(argv: Sequence[str] | None = None) -> pd.DataFrame:
    """Print and write the comparison; returns the table as numbers, a row a run or group.

    With ``--group_by`` the columns are (metric, ``mean`` or ``std``) and ``("runs", "")``.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="OUTPUT_DIR", help="Output folder of a finished run.")
    parser.add_argument(
        "--group_by", nargs="+", default=[], metavar="OPTION", help="Average runs that agree in these."
    )
    parser.add_argument("--metrics", nargs="+", metavar="NAME", help="Entries of eval in all_results.json.")
    parser.add_argument("--output_dir", default="comparison", help="Folder for the table and the plot.")
    args = parser.parse_args(argv)
    try:
        runs = read_runs(args.folders)
        metrics = choose_metrics(runs, args.metrics)
        table = make_table(runs, metrics, args.group_by)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    shown = printable(table, runs, metrics, args.group_by)
    print(shown.to_string(index=False))
    columns = [" ".join(filter(None, column)) if isinstance(column, tuple) else column for column in table]
    with atomic_write(folder / "comparison.csv") as file:
        table.set_axis(columns, axis=1).to_csv(file)
    with atomic_write(folder / "comparison.md") as file:
        file.write(markdown(shown))
    draw(folder / "comparison.png", runs, table, metrics, args.group_by)
    print(f"\nThe same is in {folder}: comparison.csv, comparison.md, comparison.png.")
    return table


# ---- reading


def read_runs(folders: Sequence[str]) -> list[Run]:
    """All runs; ValueError if a folder holds none, or is named twice."""
    paths = [Path(folder).resolve() for folder in folders]
    twice = sorted({str(path) for path in paths if paths.count(path) > 1})
    if twice:
        raise ValueError(f"named twice: {', '.join(twice)}")
    common = Path(os.path.commonpath(paths)) if len(paths) > 1 else paths[0].parent
    return [read_run(path, str(path.relative_to(common)) if path != common else path.name) for path in paths]


def read_run(folder: Path, name: str) -> Run:
    """One run; ValueError if it has not finished, or its files are damaged."""
    try:
        content = json.loads((folder / "all_results.json").read_text(encoding="utf-8"))
        results = {key: np.nan if value is None else value for key, value in flatten(content["eval"])}
        arguments = yaml.safe_load((folder / "args.yaml").read_text(encoding="utf-8"))
        history = folder / "history.jsonl"
        lines = history.read_text(encoding="utf-8").splitlines() if history.is_file() else []
        return Run(name, results, dict(arguments), [json.loads(line) for line in lines])
    except FileNotFoundError as error:
        missing = Path(error.filename).name
        raise ValueError(f"{folder} holds no {missing}: it is no output folder, or the run has not finished") from None
    except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise ValueError(f"{folder}: its results cannot be read ({type(error).__name__}: {error})") from None


def choose_metrics(runs: Sequence[Run], asked: Sequence[str] | None) -> list[str]:
    """The metrics asked for; or each level's first measure, that every level is right, and the distance.

    Raises:
        ValueError: if no run has one of them.
    """
    known = list(dict.fromkeys(name for run in runs for name in run.results))
    if not asked:
        levels = [name for name in known if name.startswith("levels.") and name.count(".") == 2]
        main = [name for name in levels if name.endswith((".accuracy", ".mean_iou"))]
        last = [name for name in levels if name.endswith(".macro_f1")][-1:]
        return [*main, *last, "path.full_path_accuracy", "argmax.tree_inconsistency", "path.hierarchical_distance"]
    for name in asked:
        if name not in known:
            few = [other for other in known if ".per_class." not in other]
            raise ValueError(f"no run has the metric {name}; there are {', '.join(few)}")
    return list(asked)


# ---- tables


def make_table(runs: Sequence[Run], metrics: Sequence[str], group_by: Sequence[str]) -> pd.DataFrame:
    """Numbers, indexed by run or by the values of ``group_by``; see :func:`main`."""
    numbers = pd.DataFrame([{name: run.results.get(name, np.nan) for name in metrics} for run in runs], dtype=float)
    if not group_by:
        return numbers.set_index(pd.Index([run.name for run in runs], name="run"))
    for option in group_by:
        if not any(option in run.arguments for run in runs):
            raise ValueError(f"--group_by {option}: no run has that option; see args.yaml of a run")
    for option in group_by:
        numbers[option] = [value_of(run, option) for run in runs]
    groups = numbers.groupby(list(group_by), sort=False)
    table = groups.agg(["mean", "std"])
    table["runs"] = groups.size()
    return table


def value_of(run: Run, option: str) -> str:
    """An option's value in a form that compares and prints."""
    value = run.arguments.get(option)
    return " ".join(map(str, value)) if isinstance(value, list) else "-" if value is None else str(value)


def differing_options(runs: Sequence[Run]) -> list[str]:
    """The options of consequence that are not the same in all runs."""
    names = dict.fromkeys(name for run in runs for name in run.arguments if name not in UNIMPORTANT)
    return [name for name in names if len({value_of(run, name) for run in runs}) > 1]


def printable(
    table: pd.DataFrame, runs: Sequence[Run], metrics: Sequence[str], group_by: Sequence[str]
) -> pd.DataFrame:
    """The table as text: shares in percent, and deviations where there are several runs."""
    if not group_by:
        columns = {"run": [run.name for run in runs]}
        columns |= {name: [value_of(run, name) for run in runs] for name in differing_options(runs)}
        columns |= {title(name): [text(name, value) for value in table[name]] for name in metrics}
        return pd.DataFrame(columns)
    keys = table.index.to_frame(index=False)
    columns = {name: keys[name].tolist() for name in group_by} | {"runs": table[("runs", "")].tolist()}
    for name in metrics:
        pairs = zip(table[(name, "mean")], table[(name, "std")], strict=True)
        columns[title(name)] = [text(name, mean) + deviation(name, std) for mean, std in pairs]
    return pd.DataFrame(columns)


def title(metric: str) -> str:
    """A metric's name for people: ``levels.fine.mean_iou`` is fine mean IoU."""
    return " ".join(in_words(part) for part in metric.removeprefix("levels.").removeprefix("path.").split("."))


def measure(metric: str) -> str:
    """The last part of a metric's name, which says what kind of number it is."""
    return metric.rpartition(".")[2]


def text(metric: str, value: float) -> str:
    """A number as text."""
    if np.isnan(value):
        return "-"
    return f"{value:.4f}" if measure(metric) == "loss" else cell(measure(metric), value)


def deviation(metric: str, value: float) -> str:
    """A standard deviation as text; none of a single run."""
    return "" if np.isnan(value) else f" ± {text(metric, value)}"


def markdown(shown: pd.DataFrame) -> str:
    """The table in Markdown."""
    rows = [list(shown.columns), ["---"] * len(shown.columns), *shown.values.tolist()]
    return "".join("| " + " | ".join(str(value).replace("|", "\\|") for value in row) + " |\n" for row in rows)


# ---- the plot


def draw(
    path: Path, runs: Sequence[Run], table: pd.DataFrame, metrics: Sequence[str], group_by: Sequence[str]
) -> None:
    """Write a PNG: every metric that is a share, and the last level's as training went on."""
    shares = [name for name in metrics if measure(name) not in ("loss", "ece", "hierarchical_distance")]
    shares = [name for name in shares if not measure(name).startswith("num_")]
    labels = [" ".join(map(str, key)) if isinstance(key, tuple) else str(key) for key in table.index]
    figure = Figure((12, 4.6), dpi=DPI, layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_metrics(left, table, shares, labels, bool(group_by))
    main = [name for name in shares if name.startswith("levels.") and measure(name) == measure(shares[0])]
    course = (main or shares or list(metrics))[-1]
    groups = [" ".join(value_of(run, option) for option in group_by) if group_by else run.name for run in runs]
    _draw_courses(right, runs, course, [labels.index(group) for group in groups])
    handles = left.get_legend_handles_labels()
    if handles[0]:
        figure.legend(*handles, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    for axes in (left, right):
        axes.grid(color="#e5e5e5", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    save_figure(figure, path)


def _draw_metrics(axes: Axes, table: pd.DataFrame, shares: Sequence[str], labels: Sequence[str], mean: bool) -> None:
    """A point per metric and row of the table, with the deviation over runs."""
    for row, label in enumerate(labels):
        numbers = table.iloc[row]
        place = np.arange(len(shares)) + 0.5 * ((row + 0.5) / len(labels) - 0.5)
        values = np.array([numbers[(name, "mean") if mean else name] for name in shares], dtype=float)
        spread = np.array([numbers[(name, "std")] if mean else 0 for name in shares], dtype=float)
        axes.errorbar(
            place, 100 * values, 100 * np.nan_to_num(spread), fmt="o", capsize=3 * mean, label=shortened(label, 40)
        )
    axes.set_xticks(range(len(shares)), [shortened(title(name), 28) for name in shares], rotation=35, ha="right")
    axes.set_ylabel("percent")


def _draw_courses(axes: Axes, runs: Sequence[Run], metric: str, rows: Sequence[int]) -> None:
    """A line per run, in the colour of its row."""
    key = f"eval/{metric}"
    for run, row in zip(runs, rows, strict=True):
        points = sorted({line["global_step"]: line[key] for line in run.history if line.get(key) is not None}.items())
        if points:
            axes.plot(*np.array(points, dtype=float).T, ".-", color=f"C{row % 10}", linewidth=1.2)
    if not axes.lines:
        axes.text(0.5, 0.5, "nothing recorded", color=GREY, ha="center", transform=axes.transAxes)
    axes.set_title(f"{title(metric)} as training went on", fontsize=10)
    axes.set_xlabel("step")


if __name__ == "__main__":
    main()
