"""A server that forks children for each request, which run a script until they are killed; see test_resume.py.

The tests' own process has run threads by then, and a fork of such a process may wait for ever for a lock that none of
its threads will release. This one only imports.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
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
    os.environ.update(request.get("environment", {}))
    if "owner" in request:
        module, _, owner = request["owner"].partition(":")
        target = importlib.import_module(module)
        strike(getattr(target, owner) if owner else target, request["name"], request["call"], request["signals"])
    if request.get("after"):  # nothing handles SIGALRM: it ends the process wherever it is, as SIGKILL does
        signal.setitimer(signal.ITIMER_REAL, request["after"])
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    if "stderr" in request:
        os.dup2(os.open(request["stderr"], os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    try:
        importlib.import_module(request["script"]).main(request["words"])
    except SystemExit as stop:
        return stop.code
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        return 1
    return 0


def together(count: int) -> list[dict[str, str]]:
    """What a launcher tells each of so many processes; one process is told nothing."""
    if count == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    return [
        {name: str(value) for name, value in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()}
        for rank in range(count)
    ]


def serve() -> None:
    """One JSON request a line on stdin, one exit status a line on stdout; negative for a signal."""
    import train_segmentation  # noqa: F401
    import train_taxonomy  # noqa: F401

    for line in sys.stdin:
        request, children = json.loads(line), []
        for environment in together(request.get("processes", 1)):
            children.append(os.fork())
            if children[-1] == 0:
                signal.alarm(120)  # no child outlives its test
                os.environ.update(environment)
                os._exit(run(request))
        statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(next((status for status in statuses if status), 0), flush=True)


if __name__ == "__main__":
    serve()
