"""Published results beside finished runs, if both were measured in the same way; a run of another protocol is refused.

    python benchmarks/published.py fungitastic output/fungitastic_beit output/fungitastic_published

What must agree, as ``published.yaml`` says beside the numbers: the number of classes of the last level, how images are
shown, and groups that no two splits share.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import yaml

from common.metrics.results import flatten
from common.model.hierarchy import Hierarchy

BENCHMARKS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))


def main(argv: Sequence[str] | None = None) -> list[list[str]]:
    """Print the table, and return it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("benchmark", choices=BENCHMARKS)
    parser.add_argument("runs", nargs="*", help="output folders of finished runs")
    parser.add_argument("--part", choices=["eval", "test"], default="eval", help="validation, or --test_split")
    args = parser.parse_args(argv)
    benchmark = BENCHMARKS[args.benchmark]
    rows = []
    for name, values in benchmark["rows"].items():
        rows.append([name, *("–" if value is None else f"{value:.1f}" for value in values), "published"])
    rows += [run_row(benchmark, Path(run), args.part) for run in args.runs]
    print(f"{args.benchmark}: {benchmark['source']}")
    for row in (["", *(measure.rpartition(".")[2] for measure in benchmark["measures"]), ""], *rows):
        print("  ".join([row[0].ljust(30), *(cell.rjust(18) for cell in row[1:])]))
    return rows


def run_row(benchmark: Mapping[str, Any], folder: Path, part: str) -> list[str]:
    """A run's numbers. ValueError names every way in which it was measured otherwise."""
    tree = Hierarchy.from_dict(json.loads((folder / "hierarchy.json").read_text(encoding="utf-8")))
    options = yaml.safe_load((folder / "args.yaml").read_text(encoding="utf-8"))
    results = json.loads((folder / "all_results.json").read_text(encoding="utf-8"))
    config = folder / "config.json"  # the size is the backbone's own where no option says it
    if config.is_file():
        options["image_size"] = json.loads(config.read_text(encoding="utf-8"))["backbone"]["image_size"]
    differs = [benchmark["leaks"]] if "leaks" in benchmark else []
    if tree.num_leaves != benchmark["num_leaves"]:
        differs.append(f"its tree has {tree.num_leaves:,} leaves, the published one {benchmark['num_leaves']:,}")
    for name, value in benchmark.get("options", {}).items():
        if options.get(name) != value:
            differs.append(f"--{name} is {options.get(name)}, not {value}")
    if "group" in benchmark and options.get("group_column") != benchmark["group"]:
        differs.append(f"without --group_column {benchmark['group']} nobody has checked that its splits do not leak")
    if part not in results:
        differs.append(f"all_results.json has no {part}; --test_split scores it")
    if differs:
        raise ValueError(f"{folder} cannot stand beside these numbers: {'; '.join(differs)}.")
    numbers = dict(flatten(results[part]))
    measures = [measure.replace("LAST", tree.levels[-1]) for measure in benchmark["measures"]]
    missing = [measure for measure in measures if measure not in numbers]
    if missing:
        raise ValueError(f"{folder} did not measure {', '.join(missing)}: evaluate it again, with --top_k 3.")
    return [folder.name, *(f"{100 * numbers[measure]:.1f}" for measure in measures), "this run"]


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")
