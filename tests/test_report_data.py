"""What an evaluation leaves for its report, against counting by hand."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from common.metrics.prediction_table import PredictionTable
from common.metrics.report_data import EXAMPLE_KINDS, ReportData
from common.model.hierarchy import Hierarchy
from common.model.tree import IGNORE

TREE = Hierarchy(
    ["family", "genus", "species"],
    [["F", "G"], ["f1", "f2", "g1"], ["a", "b", "c", "d"]],
    [[None, None], [0, 0, 1], [0, 0, 1, 2]],
)
FIRST = [0, 2, 5]


def random_batches(num_batches: int, seed: int = 0, size: int = 50):
    """Labels that end at any level or are missing, logits, and leaves that are their argmax."""
    rng = torch.Generator().manual_seed(seed)
    for batch in range(num_batches):
        truth = torch.randint(0, 4, (size,), generator=rng)
        labels = torch.stack(TREE.lift(truth), 1)
        depth = torch.randint(0, 4, (size,), generator=rng)
        depth = torch.where(torch.rand(size, generator=rng) < 0.5, 3, depth)
        labels[torch.arange(3) >= depth[:, None]] = IGNORE
        logits = torch.randn(size, 4, generator=rng)
        yield torch.arange(size) + size * batch, labels, logits, logits.argmax(1)


def collected(batches, tree: Hierarchy = TREE) -> ReportData:
    table = PredictionTable(tree)
    for rows, labels, logits, leaf in batches:
        table.add(rows, labels, tree.marginalize(logits.log_softmax(1)), logits, leaf, leaf)
    table.gather(Accelerator(cpu=True))
    return ReportData.of_predictions(table)


def test_counts_are_those_of_a_loop():
    expected: Counter = Counter()
    for _, labels, _, leaf in random_batches(7):
        for row, predicted in zip(labels.tolist(), leaf.tolist(), strict=True):
            known = [level for level, label in enumerate(row) if label >= 0]
            if known:
                expected[FIRST[known[-1]] + row[known[-1]], predicted] += 1
    found = collected(random_batches(7))
    assert dict(zip(zip(found.truth, found.predicted, strict=True), found.count, strict=True)) == expected


def test_examples_are_of_their_kind_and_mistakes_the_most_confident():
    parent = [0, 0, 1, 2]
    best: dict[str, dict[tuple[int, int], float]] = {kind: {} for kind in EXAMPLE_KINDS}
    for _, labels, logits, leaf in random_batches(7):
        confidence = logits.double().softmax(1).amax(1)
        columns = labels[:, 2].tolist(), leaf.tolist(), confidence.tolist()
        for truth, predicted, probability in zip(*columns, strict=True):
            if truth >= 0:
                near = parent[truth] == parent[predicted]
                kind = "right" if truth == predicted else "near" if near else "far"
                pairs = best[kind]
                pairs[truth, predicted] = max(probability, pairs.get((truth, predicted), 0))
    found = collected(random_batches(7)).examples
    assert set(found) == set(EXAMPLE_KINDS)
    for kind, rows in found.items():
        assert len(rows) == 12 and len(set(rows[:, 0])) == 12
        pairs = list(zip(rows[:, 1].astype(int), rows[:, 2].astype(int), strict=True))
        assert set(pairs) <= set(best[kind])
        distinct = list(dict.fromkeys(pairs))
        assert pairs[: len(distinct)] == distinct  # each pair once before any twice
        if kind != "right":
            assert [row[3] for row in rows[: len(distinct)]] == pytest.approx([best[kind][pair] for pair in distinct])
            assert rows[0, 3] == pytest.approx(max(best[kind].values()))


def test_nothing_at_all():
    found = collected([])
    assert len(found.count) == 0 and all(len(rows) == 0 for rows in found.examples.values())


def test_one_level_has_no_near_mistakes():
    flat = Hierarchy(["class"], [["a", "b"]], [[None, None]])
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    found = collected([(torch.arange(2), torch.tensor([[1], [1]]), logits, logits.argmax(1))], flat).examples
    assert [len(found[kind]) for kind in EXAMPLE_KINDS] == [1, 0, 1]


def test_saved_and_loaded(tmp_path):
    before = collected(random_batches(3))
    before.reliability = np.ones((3, 3, 15))
    before.save(tmp_path / "r.npz")
    after = ReportData.load(tmp_path / "r.npz")
    assert np.array_equal(before.truth, after.truth) and np.array_equal(before.count, after.count)
    assert all(np.array_equal(before.examples[kind], after.examples[kind]) for kind in EXAMPLE_KINDS)
    assert after.reliability.shape == (3, 3, 15) and [file.name for file in tmp_path.iterdir()] == ["r.npz"]


def test_from_a_matrix_of_leaves():
    tree = Hierarchy(["g", "s"], [["A", "clean"], ["x", "y"]], [[None, None], [0, 0]])  # leaves x, y, clean
    found = ReportData.of_leaf_matrix(tree, np.array([[5, 0, 1], [0, 0, 0], [2, 0, 7]]))
    assert list(zip(found.truth, found.predicted, found.count, strict=True)) == [
        (2, 0, 5),
        (2, 2, 1),
        (1, 0, 2),
        (1, 2, 7),
    ]
