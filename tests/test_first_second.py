"""What a user asks first is answered before libraries that take seconds are imported."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import REPOSITORY

from common.run.command import run

SLOW = {"torch", "timm", "transformers", "datasets", "pandas", "accelerate", "matplotlib"}
RUN = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print(*sorted(set(sys.modules) & {}))
"""


@pytest.mark.parametrize("script", ["train_taxonomy.py", "train_segmentation.py", "predict.py"])
@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--help"], 0, "--dataloader_num_workers"),
        (["--dataloader_num_wrkers", "3"], 2, "Did you mean --dataloader_num_workers?"),
        (["--dataloader_num_workers", "many"], 2, "invalid int value: 'many'"),
    ],
)
def test_help_and_wrong_options_import_no_torch(script, words, status, said):
    words = ["MODEL", "INPUT", *words] if script == "predict.py" else words
    command = [sys.executable, "-c", RUN.replace("{}", repr(SLOW)), script, *words]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == status and said in done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == ""  # none of them was imported


def test_bars_of_libraries_are_off_where_nobody_watches_a_command(monkeypatch, capfd):
    """And stay as they are for whoever calls main() itself."""
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    monkeypatch.setenv("HF_DATASETS_DISABLE_PROGRESS_BARS", "0")  # what the user says stays
    run(lambda: None)
    assert os.environ.pop("HF_HUB_DISABLE_PROGRESS_BARS") == "1"
    assert os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] == "0"
