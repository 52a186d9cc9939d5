"""How long a command takes to answer: --help, a wrong option, and the first training step of the demo's model.

Each command is started anew, as from a shell, and ended when it has answered. The demo is drawn at the first call.

    python benchmarks/first_second.py --folder first_second --rounds 5
"""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

from side_by_side import REPOSITORY, command_line, in_turns, machine, table

STEP = "first training step of the demo"


def main() -> None:
    parser = command_line(__doc__, rounds=5)
    parser.add_argument("--folder", type=Path, required=True, help="for the demo's data and the run")
    options = parser.parse_args()
    data = options.folder / "demo"
    until("", "data_prep/make_demo.py", "taxonomy", "--output_dir", str(data))
    words = f"--config {REPOSITORY}/configs/taxonomy_demo.yaml --dataset_name {data} --logging_steps 1 --no_report"
    words += f" --output_dir {options.folder}/output --resume_from_checkpoint none"
    ways = {STEP: partial(until, "step 1/", "train_taxonomy.py", *words.split())}
    for script in ("train_taxonomy.py", "train_segmentation.py", "predict.py"):
        ways[f"`{script} --help`"] = partial(until, "--output_dir", script, "--help")
        ways[f"`{script} --wrong_option`"] = partial(until, "Unknown option", script, "--wrong_option")
    print(machine(), table(in_turns(ways, options.rounds), STEP), sep="\n\n")


def until(said: str, script: str, *words: str) -> None:
    """Start a command, and end it when a line holds this; without a word, when it is done."""
    command = [sys.executable, REPOSITORY / script, *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        found = any(said and said in line for line in process.stdout)
        if found:
            process.kill()
    assert found or (not said and process.returncode == 0), command


if __name__ == "__main__":
    main()
