"""The two scripts tell the same story: what differs between their loops is named here, line by line."""

from __future__ import annotations

import ast
import difflib
import inspect
import re
from types import ModuleType

import train_segmentation
import train_taxonomy

LOOP_DIFFERS = """
- labels = [batch["labels"].to(device, non_blocking=True) for batch in micro_batches]
+ labels = [masks_to_labels(batch["labels"].to(device, non_blocking=True)) for batch in micro_batches]
- pixels, mixed_with, share = mix(pixels, labels[micro_step], step)
- loss = loss_fn(logits, labels[micro_step], denominators, mixed_with, share)
+ loss = loss_fn(logits, labels[micro_step], denominators)
- run.finish(results, model, load_examples)
+ run.finish(results, model, draw=draw)
"""


def loop(script: ModuleType) -> list[str]:
    """The lines of ``main`` from the training loop's banner to its end."""
    lines = inspect.getsource(script.main).splitlines()
    start = next(number for number, line in enumerate(lines) if re.fullmatch(r"\s*# -+ training loop", line))
    return [line.strip() for line in lines[start:]]


def test_loops_differ_by_what_is_named():
    lines = difflib.ndiff(loop(train_taxonomy), loop(train_segmentation))
    assert [line for line in lines if line[0] in "+-"] == LOOP_DIFFERS.strip().splitlines()


def test_sections_and_shared_functions_stand_in_the_same_order():
    def headings(script: ModuleType) -> list[str]:
        return re.findall(r"^ *# -{20,} ?(\w.*)$|^# -{20,}\n# (\w.*)$", inspect.getsource(script), re.MULTILINE)

    assert headings(train_taxonomy) == headings(train_segmentation) != []

    def functions(script: ModuleType) -> list[str]:
        return [node.name for node in ast.parse(inspect.getsource(script)).body if isinstance(node, ast.FunctionDef)]

    ours, theirs = functions(train_taxonomy), functions(train_segmentation)
    shared = [name for name in ours if name in theirs]
    assert [name for name in theirs if name in ours] == shared and len(shared) > 8


def test_the_loop_is_in_main():
    """Forward, loss, backward, clipping and the optimizer's step are there to be read."""
    for script in (train_taxonomy, train_segmentation):
        text = "\n".join(loop(script))
        places = [text.index(call) for call in ("wrapped(", "loss_fn(", "backward(", "clip_gradients(", ".step()")]
        assert places == sorted(places)
        assert not [
            node for node in ast.parse(inspect.getsource(script)).body if getattr(node, "name", "") == "Trainer"
        ]
