"""Compare finished runs of train_taxonomy.py or train_segmentation.py: one table and one plot.

    python compare_runs.py output/independent output/tree
    python compare_runs.py output/fold_* --group_by head            # mean and deviation over folds or seeds
    python compare_runs.py output/* --metrics levels.species.macro_f1 path.hierarchical_distance

Each folder is the --output_dir of a run. The table is printed, and written as comparison.csv and comparison.md beside
comparison.png. Without --group_by there is a row for each run, with the options in which the runs differ.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
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


def main(argv: Sequence[str] | None = None) -> pd.DataFrame:
    """Print and write the comparison; returns the table as numbers, with a row for each run or group.

    With ``--group_by`` the columns are (metric, ``mean`` or ``std``) and ``("runs", "")``.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="OUTPUT_DIR", help="Output folder of a finished run.")
    parser.add_argument(
        "--group_by", nargs="+", default=[], metavar="OPTION", help="Average runs with the same values of these."
    )
    parser.add_argument("--metrics", nargs="+", metavar="NAME", help="Entries of eval in all_results.json.")
    parser.add_argument("--output_dir", default="comparison", help="Folder for the table and the plot.")
    args = parser.parse_args(argv)
    try:
        results, options, history = read_runs(args.folders)
        metrics = choose_metrics(results, args.metrics)
        table = make_table(results.reindex(columns=metrics).astype(float), options, args.group_by)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    shown = printable(table, options, metrics, args.group_by)
    print(shown.to_string(index=False))
    columns = [" ".join(filter(None, column)) if isinstance(column, tuple) else column for column in table]
    with atomic_write(folder / "comparison.csv") as file:
        table.set_axis(columns, axis=1).to_csv(file)
    with atomic_write(folder / "comparison.md") as file:
        file.write(markdown(shown))
    rows = options[args.group_by].agg(" ".join, axis=1) if args.group_by else options.index
    draw(folder / "comparison.png", table, metrics, list(rows), history)
    print(f"\nThe same is in {folder}: comparison.csv, comparison.md, comparison.png.")
    return table


# ---- reading


def read_runs(folders: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame, list[list[dict[str, Any]]]]:
    """Results, options as text (a row for each run), and the lines of each history.jsonl.

    A run's name is the part of its path that differs from the others'.

    Raises:
        ValueError: if a folder is given twice, or a run has not finished, or its files are damaged.
    """
    paths = [Path(folder).resolve() for folder in folders]
    twice = sorted({str(path) for path in paths if paths.count(path) > 1})
    if twice:
        raise ValueError(f"given twice: {', '.join(twice)}")
    common = Path(os.path.commonpath(paths)) if len(paths) > 1 else paths[0].parent
    names = [str(path.relative_to(common)) if path != common else path.name for path in paths]
    results, options, history = zip(*map(read_run, paths), strict=True)
    text = pd.DataFrame(list(options), index=names, dtype=object).map(option_text)
    return pd.DataFrame(list(results), index=pd.Index(names, name="run")), text, list(history)


def read_run(folder: Path) -> tuple[dict[str, float | None], dict[str, Any], list[dict[str, Any]]]:
    """Results, options and history of a run; ValueError if it has not finished, or its files are damaged."""
    try:
        content = json.loads((folder / "all_results.json").read_text(encoding="utf-8"))
        options = yaml.safe_load((folder / "args.yaml").read_text(encoding="utf-8"))
        history = folder / "history.jsonl"
        lines = history.read_text(encoding="utf-8").splitlines() if history.is_file() else []
        return dict(flatten(content["eval"])), dict(options), [json.loads(line) for line in lines]
    except FileNotFoundError as error:
        missing = Path(error.filename).name
        raise ValueError(f"{folder} holds no {missing}: not an output folder, or the run has not finished") from None
    except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise ValueError(f"{folder}: its results cannot be read ({type(error).__name__}: {error})") from None


def option_text(value: Any) -> str:
    """An option's value as text; ``-`` for ``None``, and where a run lacks the option."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "-" if value is None or value != value else str(value)  # pandas fills gaps with NaN


def choose_metrics(results: pd.DataFrame, asked: Sequence[str] | None) -> list[str]:
    """The metrics asked for; by default the first one of each level and those of complete paths.

    Raises:
        ValueError: if no run has one of them.
    """
    if not asked:
        levels = [name for name in results if name.startswith("levels.") and name.count(".") == 2]
        main = [name for name in levels if name.endswith((".accuracy", ".mean_iou"))]
        last = [name for name in levels if name.endswith(".macro_f1")][-1:]
        return [*main, *last, "path.full_path_accuracy", "argmax.tree_inconsistency", "path.hierarchical_distance"]
    for name in asked:
        if name not in results:
            few = [other for other in results if ".per_class." not in other]
            raise ValueError(f"no run has the metric {name}; there are {', '.join(few)}")
    return list(asked)


# ---- tables


def make_table(numbers: pd.DataFrame, options: pd.DataFrame, group_by: Sequence[str]) -> pd.DataFrame:
    """The numbers of each run, or mean and deviation of the runs that agree in ``group_by``; see :func:`main`."""
    for option in group_by:
        if option not in options:
            raise ValueError(f"--group_by {option}: no run has that option; see args.yaml of a run")
    if not group_by:
        return numbers
    groups = numbers.groupby([options[option] for option in group_by], sort=False)
    table = groups.agg(["mean", "std"])
    table["runs"] = groups.size()
    return table


def printable(
    table: pd.DataFrame, options: pd.DataFrame, metrics: Sequence[str], group_by: Sequence[str]
) -> pd.DataFrame:
    """The table as text: shares in percent, and deviations where there are several runs."""
    if group_by:
        shown = table.index.to_frame(index=False)
        shown["runs"] = table["runs"].tolist()
    else:
        differing = [name for name in options if name not in UNIMPORTANT and options[name].nunique() > 1]
        shown = options[differing].rename_axis("run").reset_index()
    for name in metrics:
        cells = zip(table[name]["mean"], table[name]["std"], strict=True) if group_by else [(x,) for x in table[name]]
        shown[title(name)] = [" ± ".join(text(name, x) for x in cell if x == x) or "-" for cell in cells]
    return shown


def title(metric: str) -> str:
    """A metric's name for people: ``levels.fine.mean_iou`` is fine mean IoU."""
    return " ".join(in_words(part) for part in metric.removeprefix("levels.").removeprefix("path.").split("."))


def measure(metric: str) -> str:
    """The last part of a metric's name, which tells what kind of number it is."""
    return metric.rpartition(".")[2]


def text(metric: str, value: float) -> str:
    """A number as text."""
    return f"{value:.4f}" if measure(metric) == "loss" else cell(measure(metric), value)


def markdown(shown: pd.DataFrame) -> str:
    """The table in Markdown."""
    rows = [list(shown.columns), ["---"] * len(shown.columns), *shown.values.tolist()]
    return "".join("| " + " | ".join(str(value).replace("|", "\\|") for value in row) + " |\n" for row in rows)


# ---- the plot


def draw(
    path: Path,
    table: pd.DataFrame,
    metrics: Sequence[str],
    rows: Sequence[str],
    history: Sequence[list[dict[str, Any]]],
) -> None:
    """Write a PNG: every metric that is a share, and the last level's over the steps of training.

    ``rows`` names the row of the table that each run belongs to.
    """
    shares = [name for name in metrics if measure(name) not in ("loss", "ece", "hierarchical_distance")]
    shares = [name for name in shares if not measure(name).startswith("num_")]
    labels = [" ".join(key) if isinstance(key, tuple) else key for key in table.index]
    figure = Figure((12, 4.6), dpi=DPI, layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_metrics(left, table, shares, labels)
    main = [name for name in shares if name.startswith("levels.") and measure(name) == measure(shares[0])]
    _draw_history(right, (main or shares or list(metrics))[-1], [labels.index(row) for row in rows], history)
    handles = left.get_legend_handles_labels()
    if handles[0]:
        figure.legend(*handles, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    for axes in (left, right):
        axes.grid(color="#e5e5e5", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    save_figure(figure, path)


def _draw_metrics(axes: Axes, table: pd.DataFrame, shares: Sequence[str], labels: Sequence[str]) -> None:
    """A point per metric and row of the table, with the deviation over runs."""
    grouped = table.columns.nlevels > 1
    means, deviations = (table.xs(key, axis=1, level=1) if grouped else table for key in ("mean", "std"))
    for row, label in enumerate(labels):
        place = np.arange(len(shares)) + 0.5 * ((row + 0.5) / len(labels) - 0.5)
        spread = 100 * deviations[shares].iloc[row].fillna(0) if grouped else None
        axes.errorbar(
            place, 100 * means[shares].iloc[row], spread, fmt="o", capsize=3 * grouped, label=shortened(label, 40)
        )
    axes.set_xticks(range(len(shares)), [shortened(title(name), 28) for name in shares], rotation=35, ha="right")
    axes.set_ylabel("percent")


def _draw_history(axes: Axes, metric: str, rows: Sequence[int], history: Sequence[list[dict[str, Any]]]) -> None:
    """A line per run, in the colour of its row."""
    key = f"eval/{metric}"
    for row, lines in zip(rows, history, strict=True):
        points = sorted({line["global_step"]: line[key] for line in lines if line.get(key) is not None}.items())
        if points:
            axes.plot(*np.array(points, dtype=float).T, ".-", color=f"C{row % 10}", linewidth=1.2)
    if not axes.lines:
        axes.text(0.5, 0.5, "nothing recorded", color=GREY, ha="center", transform=axes.transAxes)
    axes.set_title(f"{title(metric)} during training", fontsize=10)
    axes.set_xlabel("step")


if __name__ == "__main__":
    main()
