"""Launches that cannot work are refused in one line; one process works while the others wait."""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import textwrap

import pytest
from accelerate import Accelerator
from conftest import REPOSITORY

from common.run import processes
from common.run.processes import on_main_process

ARGS = argparse.Namespace(dataloader_num_workers=1)


def test_srun_without_a_launcher(monkeypatch):
    for name, value in {"SLURM_NTASKS": "4", "SLURM_STEP_ID": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ValueError, match="srun started 4 tasks.*accelerate launch"):
        processes._check_environment(ARGS)
    monkeypatch.setenv("WORLD_SIZE", "4")  # a launcher has set it
    processes._check_environment(ARGS)


def test_world_size(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "")
    processes._check_environment(ARGS)
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ValueError, match="WORLD_SIZE is 'two'"):
        processes._check_environment(ARGS)


def test_small_shared_memory(monkeypatch, caplog):
    monkeypatch.setattr(processes, "MIN_SHARED_MEMORY", 1 << 60)
    processes._check_environment(argparse.Namespace(dataloader_num_workers=0))
    assert not caplog.text
    processes._check_environment(ARGS)
    assert "--shm-size" in caplog.text


def test_no_line_is_longer_than_a_screen(monkeypatch, capsys):
    monkeypatch.setattr(logging.root, "handlers", [])
    processes._setup_logging()
    logging.getLogger("a table").warning("%s", [*range(10_000)])
    assert len(capsys.readouterr().err) == processes.SCREEN + 1


def test_one_process_does_it_itself():
    accelerator = Accelerator(cpu=True)
    assert on_main_process(accelerator, lambda: 3) == 3
    with pytest.raises(ValueError, match="wrong"):
        on_main_process(accelerator, lambda: (_ for _ in ()).throw(ValueError("wrong")))


@pytest.mark.slow
def test_two_processes_share_results_and_errors(tmp_path):
    """The second process gets what is shared, and raises what the first raised, of the same kind."""
    script = tmp_path / "both.py"
    script.write_text(
        textwrap.dedent("""
            import sys
            from pathlib import Path

            from accelerate import Accelerator
            from common.run.processes import local_main_first, on_main_process, wait_for_all

            accelerator = Accelerator(cpu=True)
            index = accelerator.process_index
            said = [on_main_process(accelerator, lambda: index + 7, share=True)]
            said.append(on_main_process(accelerator, lambda: 1))
            for kind in (ValueError, OSError):
                def fail():
                    raise kind("broken")
                try:
                    on_main_process(accelerator, fail)
                except kind as error:
                    said.append(str(error))
            with local_main_first(accelerator):
                pass
            wait_for_all()
            Path(sys.argv[1], str(index)).write_text(str(said))
        """)
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0"]
    done = subprocess.run(
        [*command, "--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0", str(script), str(tmp_path)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "0").read_text() == "[7, 1, 'broken', 'broken']"
    assert (tmp_path / "1").read_text() == "[7, None, 'broken', 'broken']"
