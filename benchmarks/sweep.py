"""Many runs of a script, each once, some at a time; and their results as a Markdown table over seeds."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]


def run_once(script: str, options: str, output: Path, title: str) -> None:
    """Run a script into a folder, unless that holds results already; says how it went."""
    if (output / "all_results.json").is_file():
        return
    output.mkdir(parents=True, exist_ok=True)
    with (output / "log.txt").open("w") as log:
        command = [sys.executable, str(REPOSITORY / script), *options.split(), "--output_dir", str(output)]
        status = subprocess.run(command, stdout=log, stderr=log, env=os.environ).returncode
    tail = (output / "log.txt").read_text().splitlines()[-12:]
    print(f"{title}: status {status}", *(tail if status else []), sep="\n", flush=True)


def table(
    outputs: Mapping[str, Sequence[Path]],
    columns: Sequence[str],
    measures: Callable[[Path], Mapping[str, float]],
    titles: Sequence[str] | None = None,
) -> str:
    """A row a method, mean and standard deviation over its finished runs.

    Args:
        outputs: folders of each method's runs.
        columns: what to show of ``measures``; distances with three digits, all else with one.
        measures: numbers of one run.
        titles: of the columns.
    """
    lines = [
        "| method (runs) | " + " | ".join(titles or columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for method, folders in outputs.items():
        rows = [measures(folder) for folder in folders if (folder / "all_results.json").is_file()]
        if rows:
            cells = [_cell(column, [row[column] for row in rows]) for column in columns]
            lines.append(f"| {method} ({len(rows)}) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(column: str, values: Sequence[float]) -> str:
    digits = 3 if "distance" in column else 1
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"
