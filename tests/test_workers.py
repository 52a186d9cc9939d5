"""Workers: deaf to what asks a run to stop, but not to the main process, and gone when that is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY

SIGNALLED = """
import os, signal, subprocess, time
import torch
from torch.utils.data import DataLoader, Dataset
from common.system.workers import start_worker

class Slow(Dataset):
    def __len__(self):
        return 6
    def __getitem__(self, index):
        time.sleep(0.2)
        return index

loader = DataLoader(Slow(), batch_size=None, num_workers=1, worker_init_fn=start_worker)
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


@pytest.mark.slow
def test_a_worker_listens_to_the_main_process_only(tmp_path: Path):
    """In a process of its own: a fork of this one, which has run threads, may hang."""
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "as it should be\n", done.stderr


LOADER = """
from torch.utils.data import DataLoader
from common.system.workers import start_worker

if __name__ == "__main__":
    pages = ["x" * 2**20] * 100  # more than fits into the pipe
    loader = DataLoader(pages, batch_size=None, num_workers=2, worker_init_fn=start_worker, persistent_workers=True)
    batches = iter(loader)
    next(batches)
    print(*[worker.pid for worker in batches._workers], flush=True)
    sys.stdin.read()
"""

POOL = """
from data_prep.parts.parallel import run_pieces

def work(piece):
    print(os.getpid(), end=" ", flush=True)
    time.sleep(600 if piece else 1)
    print(flush=True)

if __name__ == "__main__":
    list(run_pieces(work, {0: 0, 1: 1, 2: 1}, 2, print))
"""


@pytest.mark.parametrize("code", [LOADER, POOL], ids=["loader", "pool"])
@pytest.mark.slow
def test_workers_end_when_their_parent_is_killed(tmp_path: Path, code: str):
    """However busy they are, and though nobody will read what they have to say."""
    script = tmp_path / "parent.py"
    script.write_text(f"import os, sys, time\n{code}")
    how = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": {**os.environ, "PYTHONPATH": str(REPOSITORY)}}
    with subprocess.Popen([sys.executable, script], **how) as parent:
        workers = {int(word) for word in parent.stdout.readline().split()}
        time.sleep(0.5)  # their pipe is full
        os.kill(parent.pid, signal.SIGKILL)
        end = time.monotonic() + 20
        while alive := [worker for worker in workers if Path(f"/proc/{worker}").exists()]:
            if time.monotonic() > end:
                for worker in alive:
                    os.kill(worker, signal.SIGKILL)
                pytest.fail(f"{alive} of {workers} live on")
            time.sleep(0.1)
    assert len(workers) == 2
