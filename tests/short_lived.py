"""A server that forks a child for each request, which runs a script until it is killed; see test_resume.py.

The tests' own process has run threads by then, and a fork of such a process may wait for ever for a lock that none of
its threads will release. This one only imports.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from typing import Any


def strike(owner: Any, name: str, call: int, signals: list[int]) -> None:
    """Send this process signals at the so-many-th call of a function, before it does anything."""
    original, calls = getattr(owner, name), []

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            for number in signals:
                os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)


def run(request: dict[str, Any]) -> int:
    """In the child: the exit status of the script."""
    os.environ.update(request["environment"])
    module, _, owner = request["owner"].partition(":")
    target = importlib.import_module(module)
    strike(getattr(target, owner) if owner else target, request["name"], request["call"], request["signals"])
    if request.get("after"):  # nothing handles SIGALRM: it ends the process wherever it is, as SIGKILL does
        signal.setitimer(signal.ITIMER_REAL, request["after"])
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    try:
        importlib.import_module(request["script"]).main(request["words"])
    except SystemExit as stop:
        return stop.code
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        return 1
    return 0


def serve() -> None:
    """One JSON request a line on stdin, one exit status a line on stdout; negative for a signal."""
    import train_segmentation  # noqa: F401
    import train_taxonomy  # noqa: F401

    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            signal.alarm(120)  # no child outlives its test
            os._exit(run(json.loads(line)))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
