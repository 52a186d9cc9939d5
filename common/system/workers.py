"""What the processes that a run starts do first, in loaders and in pools. Imports no torch."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading


def start_worker(worker: int = 0) -> None:
    """In a loader's worker: end with the main process, ignore signals that ask the run to stop, share its memory.

    The step in progress still needs the worker. Launchers, Slurm and Ctrl-C signal all processes of a run. The main
    process ends workers that hang by SIGTERM, so that counts if it comes from there; a thread checks who sent it.
    """
    gc.freeze()  # the collector would write to each object that came with the fork, and so copy its page
    for number in (signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # before there are threads to take it
        threading.Thread(target=_end_when_told, daemon=True).start()
    end_with_parent()


def _end_when_told() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def end_with_parent() -> None:
    """In a child process: end when the parent has, however it died.

    It would wait for ever: for work, or for a reader of its full pipe, whose other end it holds itself. The sentinel
    is a pipe that later children of the same parent hold open, too; they end first. Not ``PR_SET_PDEATHSIG``: that
    strikes when the thread that started the child ends, and comes from the server where a fork server is between.
    """

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
