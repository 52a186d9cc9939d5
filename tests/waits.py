"""Counts what waits for the device in a script's training steps (but the first) and evaluations."""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Waits:
    """To be told of every wait; knows from the stack whether it matters. ``found`` counts those by their place."""

    def __init__(self, script: Any) -> None:
        self.main, self.evaluate = script.main, inspect.unwrap(script.evaluate_model)
        self.log_step = importlib.import_module("common.run.run").Run.log_step
        self.step, self.batches = loop_lines(self.main, "micro_batches = ["), loop_lines(self.evaluate)
        self.found: Counter[str] = Counter()
        self.first: Any = None  # batch of an evaluation: tables go to the device once

    def note(self, what: str) -> None:
        """To be called where it waits; whose code that is is read from the stack."""
        stack, frame = [], sys._getframe(1)
        while frame is not None:
            code, line, waits = frame.f_code, frame.f_lineno, False
            if code is self.log_step.__code__:
                return  # loss and speed are asked for when they are due
            if not any(part in code.co_filename for part in ("/torch/", "gpu.py")):
                stack.append(f"{Path(code.co_filename).name}:{line} {code.co_name}")
            if code is self.main.__code__:
                waits = line in self.step and frame.f_locals["step"] > 0
            elif code is self.evaluate.__code__ and line in self.batches:
                self.first = self.first or frame.f_locals["batch"]
                waits = frame.f_locals["batch"] is not self.first
            if waits:
                self.found[f"{what}: {' < '.join(stack[:8])}"] += 1
                return
            frame = frame.f_back


def loop_lines(function: Callable[..., Any], after: str = "") -> range:
    """Line numbers of the first loop of a function at top level, from the one that contains ``after`` on."""
    lines, first = inspect.getsourcelines(function)
    loops = [node for node in ast.walk(ast.parse("".join(lines))) if isinstance(node, ast.For | ast.While)]
    loop = min(loops, key=lambda node: node.lineno)
    start = next(number for number in range(loop.lineno, loop.end_lineno) if after in lines[number])
    return range(first + start, first + loop.end_lineno)
