"""What all benchmarks share: alternatives timed in turns, in one process, and a table of ratios."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping

import torch


def machine() -> str:
    """One line about where this runs."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads of {os.cpu_count()} CPU cores, {device}"


def in_turns(
    ways: Mapping[str, Callable[[], object]], rounds: int, cpu_time: bool = False, repeats: int = 1
) -> dict[str, list[float]]:
    """Seconds of each call, one warm-up round apart; what disturbs one alternative disturbs the others as well.

    Args:
        ways: name -> the work.
        rounds: how often each is done.
        cpu_time: count the seconds that this process computes, which other work on the machine does not lengthen.
        repeats: how often in a turn; the mean counts, so that short work is timed as in a loop.
    """
    clock = time.process_time if cpu_time else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            started = clock()
            for _ in range(repeats):
                way()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                seconds[name].append((clock() - started) / repeats)
    return seconds


def table(seconds: Mapping[str, list[float]], ours: str, amount: float = 1, unit: str = "ms") -> str:
    """Medians with their range, and how many times ours each takes.

    Args:
        seconds: of :func:`in_turns`.
        ours: the name to compare with.
        amount: how much was done in each call, with a unit such as ``images/s``; without one, milliseconds are shown.
        unit: of the numbers.
    """

    def shown(value: float) -> str:
        return f"{value * 1e3:,.3g}" if unit == "ms" else f"{amount / value:,.0f}"

    base = statistics.median(seconds[ours])
    lines = [f"| | {unit}, median | range | time / ours |", "|---|---|---|---|"]
    for name, values in seconds.items():
        ratio = statistics.median(values) / base
        spread = " to ".join(shown(value) for value in (min(values), max(values)))
        lines.append(f"| {name} | {shown(statistics.median(values))} | {spread} | {ratio:.2f} |")
    return "\n".join(lines)
