"""Published results beside finished runs, if both were measured in the same way; a run of another protocol is refused.

    python benchmarks/published.py fungitastic output/fungitastic_beit output/fungitastic_published

What must agree: the number of classes of the last level, how images are shown, and groups that no two splits share.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import yaml

from common.metrics.results import flatten
from common.model.hierarchy import Hierarchy


@dataclass
class Benchmark:
    """Published rows, and what a run must agree in to stand beside them.

    Attributes:
        measures: columns, as entries of ``eval`` or ``test`` of all_results.json; LAST is the last level.
        rows: name of the model (pixels of its input where they differ) to one percentage per measure, ``None`` if not
            reported.
        source: where the numbers are from.
        num_leaves: classes of the last level.
        options: options that must have this value.
        group: what no two splits may share, as a column was named in ``--group_column``.
        leaks: why no run can be compared, if none can.
    """

    measures: Sequence[str]
    rows: dict[str, Sequence[float | None]]
    source: str
    num_leaves: int
    options: dict[str, Any] = field(default_factory=dict)
    group: str | None = None
    leaks: str | None = None


TOP = ("levels.LAST.accuracy", "levels.LAST.top3_accuracy", "levels.LAST.macro_f1")
PATH = ("path.full_path_accuracy",)
IOU = ("levels.LAST.mean_iou",)
HCAST = "FPA of H-CAST, arXiv 2406.11608, README of its code"
ARTEFACT = "the earlier project on ARTeFACT"

BENCHMARKS = {
    "fungitastic": Benchmark(
        TOP,
        {
            "ResNet-50": (61.7, 79.3, 35.2),
            "EfficientNet-B3": (61.9, 79.2, 36.0),
            "ConvNeXt-Base": (66.9, 84.0, 41.0),
            "ViT-Base/16": (68.0, 84.9, 39.9),
            "BEiT-Base/16": (69.1, 84.6, 42.3),
        },
        "FungiTastic, arXiv 2408.13632, closed set at 224 pixels: categories, squashed photographs",
        2829,
        {"resize_mode": "squash", "image_size": 224},
        "observationID",
    ),
    "fungitastic-species": Benchmark(
        ("levels.LAST.accuracy", *PATH),
        {"six independent heads": (45.43, 30.29)},
        "the earlier project on FungiTastic: species, six levels",
        2786,
        {"image_size": 224},
        "observationID",
    ),
    "inat21-mini": Benchmark(PATH, {"H-CAST": (65.00,)}, HCAST, 10_000),
    "entity13": Benchmark(PATH, {"H-CAST": (85.61,)}, HCAST, 260),
    "entity30": Benchmark(PATH, {"H-CAST": (84.86,)}, HCAST, 240),
    "living17": Benchmark(PATH, {"H-CAST": (85.11,)}, HCAST, 68),
    "nonliving26": Benchmark(PATH, {"H-CAST": (82.53,)}, HCAST, 104),
    "cityscapes": Benchmark(
        IOU,
        {"HSSN, DeepLabV3+ ResNet-101": (81.61,)},
        "Deep Hierarchical Semantic Segmentation, arXiv 2203.14335, in mmsegmentation, one scale",
        19,
    ),
    "artefact-content": Benchmark(
        IOU,
        {"flat": (9.14,), "hierarchical UPerNet": (11.41,)},
        f"{ARTEFACT}: mean of folds that leave one content type out",
        16,
        group="content",
    ),
    "artefact-random": Benchmark(
        IOU,
        {"MaxViT-Tiny": (37.55,)},
        f"{ARTEFACT}: a random split",
        16,
        leaks="its split is random over augmented copies: copies of one artwork are in training and in validation",
    ),
}


def main(argv: Sequence[str] | None = None) -> list[list[str]]:
    """Print the table, and return it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("benchmark", choices=BENCHMARKS)
    parser.add_argument("runs", nargs="*", help="output folders of finished runs")
    parser.add_argument("--part", choices=["eval", "test"], default="eval", help="validation, or --test_split")
    args = parser.parse_args(argv)
    benchmark = BENCHMARKS[args.benchmark]
    rows = [[name, *map(percent, values), "published"] for name, values in benchmark.rows.items()]
    rows += [run_row(benchmark, Path(run), args.part) for run in args.runs]
    print(f"{args.benchmark}: {benchmark.source}")
    for row in (["", *(measure.rpartition(".")[2] for measure in benchmark.measures), ""], *rows):
        print("  ".join([row[0].ljust(30), *(cell.rjust(18) for cell in row[1:])]))
    return rows


def run_row(benchmark: Benchmark, folder: Path, part: str) -> list[str]:
    """A run's numbers. ValueError names every way in which it was measured otherwise."""
    tree = Hierarchy.from_dict(json.loads((folder / "hierarchy.json").read_text(encoding="utf-8")))
    options = yaml.safe_load((folder / "args.yaml").read_text(encoding="utf-8"))
    results = json.loads((folder / "all_results.json").read_text(encoding="utf-8"))
    config = folder / "config.json"  # the size is the backbone's own where no option says it
    if config.is_file():
        options["image_size"] = json.loads(config.read_text(encoding="utf-8"))["backbone"]["image_size"]
    differs = [benchmark.leaks] if benchmark.leaks else []
    if tree.num_leaves != benchmark.num_leaves:
        differs.append(f"its tree has {tree.num_leaves:,} leaves, the published one {benchmark.num_leaves:,}")
    for name, value in benchmark.options.items():
        if options.get(name) != value:
            differs.append(f"--{name} is {options.get(name)}, not {value}")
    if benchmark.group is not None and options.get("group_column") != benchmark.group:
        differs.append(f"without --group_column {benchmark.group} nobody has checked that its splits do not leak")
    if part not in results:
        differs.append(f"all_results.json has no {part}; --test_split scores it")
    if differs:
        raise ValueError(f"{folder} cannot stand beside these numbers: {'; '.join(differs)}.")
    numbers = dict(flatten(results[part]))
    measures = [measure.replace("LAST", tree.levels[-1]) for measure in benchmark.measures]
    missing = [measure for measure in measures if measure not in numbers]
    if missing:
        raise ValueError(f"{folder} did not measure {', '.join(missing)}: evaluate it again, with --top_k 3.")
    return [folder.name, *(percent(100 * numbers[measure]) for measure in measures), "this run"]


def percent(value: float | None) -> str:
    """For the table; a dash where nothing was reported."""
    return "–" if value is None else f"{value:.1f}"


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")
