"""Compare finished runs of train_taxonomy.py or train_segmentation.py: one table and one plot.

    python compare_runs.py output/independent output/tree
    python compare_runs.py output/fold_* --group_by head            # mean and deviation over folds or seeds
    python compare_runs.py output/fold_* --group_by --part test     # the same over all, of what --test_split scored
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
from matplotlib.figure import Figure

from common.metrics.results import cell, flatten, in_words
from common.report.figures import DPI, GREY, save_figure, shortened
from common.run.command import run
from common.system.files import atomic_write, read_history

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

    With ``--group_by`` the columns are (metric, ``mean`` or ``std``) and ``("runs", "")``. Raises ValueError for
    anything that the user can fix.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="OUTPUT_DIR", help="Output folder of a finished run.")
    parser.add_argument(
        "--group_by",
        nargs="*",
        metavar="OPTION",
        help="Average runs with the same values of these; all if none is named.",
    )
    parser.add_argument("--part", choices=["eval", "test"], default="eval", help="Validation, or --test_split.")
    parser.add_argument("--metrics", nargs="+", metavar="NAME", help="Entries of the part in all_results.json.")
    parser.add_argument("--output_dir", default="comparison", help="Folder for the table and the plot.")
    args = parser.parse_args(argv)
    results, options, history = read_runs(args.folders, args.part)
    metrics = choose_metrics(results, args.metrics)
    for option in args.group_by or ():
        if option not in options:
            raise ValueError(f"--group_by {option}: no run has that option; see args.yaml of a run")

    # ---- the table, as numbers and as text
    table = results.reindex(columns=metrics).astype(float)
    means, deviations, rows = table, None, options.index
    if args.group_by is not None:
        keys = options[args.group_by] if args.group_by else pd.DataFrame({"of": "all"}, options.index)
        groups = table.groupby([keys[name] for name in keys], sort=False)
        table = groups.agg(["mean", "std"])
        means, deviations = table.xs("mean", axis=1, level=1), table.xs("std", axis=1, level=1)
        table["runs"] = groups.size()
        shown = table.index.to_frame(index=False).assign(runs=table["runs"].tolist())
        rows = keys.agg(" ".join, axis=1)
    else:
        differing = [name for name in options if name not in UNIMPORTANT and options[name].nunique() > 1]
        shown = options[differing].rename_axis("run").reset_index()
    for name in metrics:
        numbers = zip(*(frame[name] for frame in (means, deviations) if frame is not None), strict=True)
        shown[title(name)] = [" ± ".join(text(name, x) for x in pair if x == x) or "-" for pair in numbers]
    print(shown.to_string(index=False))

    # ---- files
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    columns = [" ".join(filter(None, column)) if isinstance(column, tuple) else column for column in table]
    with atomic_write(folder / "comparison.csv") as file:
        table.set_axis(columns, axis=1).to_csv(file)
    lines = [list(shown.columns), ["---"] * len(shown.columns), *shown.values.tolist()]
    with atomic_write(folder / "comparison.md") as file:
        for line in lines:
            file.write("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |\n")
    draw(folder / "comparison.png", means, deviations, list(rows), history)
    print(f"\nThe same is in {folder}: comparison.csv, comparison.md, comparison.png.")
    return table


# ---- reading


def read_runs(folders: Sequence[str], part: str) -> tuple[pd.DataFrame, pd.DataFrame, list[list[dict[str, Any]]]]:
    """Results of a part, options as text (a row for each run), and the lines of each history.jsonl.

    A run's name is the part of its path that differs from the others'.

    Raises:
        ValueError: if a folder is given twice, or a run has not finished, or its files are damaged.
    """
    paths = [Path(folder).resolve() for folder in folders]
    twice = sorted({str(path) for path in paths if paths.count(path) > 1})
    if twice:
        raise ValueError(f"given twice: {', '.join(twice)}")
    results, options, histories = [], [], []
    for folder in paths:
        try:
            content = json.loads((folder / "all_results.json").read_text(encoding="utf-8"))
            results.append(dict(flatten(content[part])))
            options.append(dict(yaml.safe_load((folder / "args.yaml").read_text(encoding="utf-8"))))
            histories.append(read_history(folder / "history.jsonl"))
        except FileNotFoundError as error:
            missing = Path(error.filename).name
            raise ValueError(
                f"{folder} holds no {missing}: not an output folder, or the run has not finished"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
            raise ValueError(f"{folder}: its results cannot be read ({type(error).__name__}: {error})") from None
    common = Path(os.path.commonpath(paths)) if len(paths) > 1 else paths[0].parent
    names = [str(path.relative_to(common)) if path != common else path.name for path in paths]
    table = pd.DataFrame(options, index=names, dtype=object).fillna("-")
    table = table.map(lambda value: " ".join(map(str, value)) if isinstance(value, list) else str(value))
    return pd.DataFrame(results, index=pd.Index(names, name="run")), table, histories


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


# ---- names and numbers for people


def title(metric: str) -> str:
    """A metric's name for people: ``levels.fine.mean_iou`` is fine mean IoU."""
    return " ".join(in_words(part) for part in metric.removeprefix("levels.").removeprefix("path.").split("."))


def measure(metric: str) -> str:
    """The last part of a metric's name, which tells what kind of number it is."""
    return metric.rpartition(".")[2]


def text(metric: str, value: float) -> str:
    """A number as text."""
    return f"{value:.4f}" if measure(metric) == "loss" else cell(measure(metric), value)


# ---- the plot


def draw(
    path: Path,
    means: pd.DataFrame,
    deviations: pd.DataFrame | None,
    rows: Sequence[str],
    histories: Sequence[list[dict[str, Any]]],
) -> None:
    """Write a PNG: every metric that is a share, and the last level's over the steps of training.

    ``rows`` names the row of the tables that each run belongs to.
    """
    no_shares = ("loss", "ece", "hierarchical_distance")
    shares = [name for name in means if measure(name) not in no_shares and not measure(name).startswith("num_")]
    labels = [" ".join(key) if isinstance(key, tuple) else key for key in means.index]
    figure = Figure((12, 4.6), dpi=DPI, layout="constrained")
    left, right = figure.subplots(1, 2)
    for row, label in enumerate(labels):
        place = np.arange(len(shares)) + 0.5 * ((row + 0.5) / len(labels) - 0.5)
        spread = None if deviations is None else 100 * deviations[shares].iloc[row].fillna(0)
        points = 100 * means[shares].iloc[row]
        left.errorbar(place, points, spread, fmt="o", capsize=3, label=shortened(label, 40))
    left.set_xticks(range(len(shares)), [shortened(title(name), 28) for name in shares], rotation=35, ha="right")
    left.set_ylabel("percent")
    main = [name for name in shares if name.startswith("levels.") and measure(name) == measure(shares[0])]
    metric = (main or shares or list(means))[-1]
    for row, lines in zip(rows, histories, strict=True):
        points = pd.DataFrame(lines, columns=["global_step", f"eval/{metric}"]).dropna().groupby("global_step").last()
        right.plot(points, ".-", color=f"C{labels.index(row) % 10}", linewidth=1.2)
    if not any(len(line.get_xdata()) for line in right.lines):
        right.text(0.5, 0.5, "nothing recorded", color=GREY, ha="center", transform=right.transAxes)
    right.set_title(f"{title(metric)} during training", fontsize=10)
    right.set_xlabel("step")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    for axes in (left, right):
        axes.grid(color="#e5e5e5", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    save_figure(figure, path)


if __name__ == "__main__":
    run(main)
