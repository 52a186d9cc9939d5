"""Loader workers and signals: deaf to what asks a run to stop, but not to the main process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from conftest import REPOSITORY

SIGNALLED = """
import os, signal, subprocess, time
import torch
from torch.utils.data import DataLoader, Dataset
from common.data.rows import leave_signals_to_main_process

class Slow(Dataset):
    def __len__(self):
        return 6
    def __getitem__(self, index):
        time.sleep(0.2)
        return index

loader = DataLoader(Slow(), batch_size=None, num_workers=1, worker_init_fn=leave_signals_to_main_process)
batches = iter(loader)
got = [next(batches)]
worker = batches._workers[0]
for name in ("TERM", "USR1", "INT", "TERM"):
    subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
got += list(batches)
assert got == list(range(6)), got

batches = iter(loader)
next(batches)
worker = batches._workers[0]
torch.utils.data._utils.signal_handling._remove_worker_pids(id(batches))  # its end is no error here
worker.terminate()
worker.join(10)
assert worker.exitcode == 0, worker.exitcode
print("as it should be")
os._exit(0)
"""


def test_a_worker_listens_to_the_main_process_only(tmp_path: Path):
    """In a process of its own: a fork of this one, which has run threads, may hang."""
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "as it should be\n", done.stderr
