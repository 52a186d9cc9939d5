"""Predictions of every evaluated image: the same however they were batched, and in a table that people read."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet
import pytest
import torch
from accelerate import Accelerator

from common.metrics import prediction_table as module
from common.metrics.prediction_table import PredictionTable
from common.model.hierarchy import Hierarchy
from common.model.tree import IGNORE

# The leaves are x (A), x (B), and Z, which has no class at the level s.
TREE = Hierarchy(["g", "s"], [["A", "B", "Z"], ["x", "x"]], [[None] * 3, [0, 1]])


def random_batch(num_images: int = 12):
    rng = torch.Generator().manual_seed(0)
    leaf_logits = torch.randn(num_images, 3, generator=rng)
    log_probs = TREE.marginalize(leaf_logits.log_softmax(1))
    labels = torch.stack(TREE.lift(torch.randint(0, 3, (num_images,), generator=rng)), 1)
    leaf = leaf_logits.argmax(1)
    return torch.randperm(num_images, generator=rng), labels, log_probs, leaf_logits, leaf, leaf % 2


def part(batch, index):
    rows, labels, log_probs, *others = batch
    return rows[index], labels[index], [level[index] for level in log_probs], *(other[index] for other in others)


def collected(batches, complete: bool = True) -> PredictionTable:
    table = PredictionTable(TREE, complete=complete)
    for batch in batches:
        table.add(*batch)
    table.gather(Accelerator(cpu=True))
    return table


def test_columns():
    rows, labels, log_probs, leaf_logits, leaf, level = batch = random_batch()
    table, columns = collected([batch]), collected([batch]).columns
    assert columns["row"].tolist() == sorted(rows.tolist())
    order = rows.argsort()
    assert np.array_equal(columns["label"], labels[order]) and np.array_equal(columns["leaf"], leaf[order])
    assert np.array_equal(columns["level"], level[order])
    for place, index in enumerate(order.tolist()):
        probabilities = leaf_logits[index].softmax(0)
        assert columns["leaf_probability"][place] == pytest.approx(probabilities.max().item(), abs=1e-6)
        path = TREE.ancestors[leaf[index]].tolist()
        assert table.best_path[place].tolist() == path
        levels = zip(log_probs, path, strict=True)
        expected = [level[index, label].exp().item() if label >= 0 else 0 for level, label in levels]
        assert columns["best_path_probability"][place] == pytest.approx(expected, abs=1e-6)
        assert columns["argmax"][place].tolist() == [level[index].argmax().item() for level in log_probs]
        assert columns["top_leaves"][place].tolist() == probabilities.argsort(descending=True).tolist()
    assert set(collected([batch], complete=False).columns) == set(list(columns)[:7])


def test_batches_and_processes_change_nothing(monkeypatch):
    batch = random_batch()
    whole = collected([batch]).columns
    small = collected([part(batch, index) for index in torch.arange(12).split(5)]).columns
    assert all(np.array_equal(whole[name], small[name]) for name in whole)
    # Two processes, of which the second has no image.
    sent: list = []
    monkeypatch.setattr(module, "gather_object", lambda parts: sent.extend(parts) or [*sent])
    several = type("Accelerator", (), {"num_processes": 2})()
    for batches in ([], [batch]):
        table = PredictionTable(TREE, complete=True)
        for each in batches:
            table.add(*each)
        table.gather(several)
    assert all(np.array_equal(whole[name], table.columns[name]) for name in whole)
    assert all(whole[name].dtype == table.columns[name].dtype for name in whole)


def test_adding_never_waits_for_the_device():
    """Tensors of the meta device have no values, so that whatever looks at them raises."""
    rows, labels, log_probs, *others = random_batch()
    there = [labels.to("meta"), [level.to("meta") for level in log_probs], *(other.to("meta") for other in others)]
    PredictionTable(TREE, "meta", complete=True).add(rows, *there)


def test_written_table_names_classes_and_is_sorted_by_row(tmp_path):
    log_probs = [
        torch.tensor([[0.25, 0.6, 0.15], [0.0, 1.0, 0.0]]).log(),
        torch.tensor([[0.5, 0.3], [0.0, 1.0]]).log(),
    ]
    leaf_logits = torch.tensor([[0.2, 0.1, 0.7], [0.0, 1.0, 0.0]]).log()
    labels = torch.tensor([[0, IGNORE], [1, 1]])
    table = collected([(torch.tensor([7, 2]), labels, log_probs, leaf_logits, *[torch.tensor([2, 1])] * 2)])
    table.write(tmp_path / "p.parquet", ["", "", "b.jpg", *[""] * 5])
    found = pyarrow.parquet.read_table(tmp_path / "p.parquet").to_pydict()
    levels = [f"{level}_{column}" for level in "gs" for column in ("label", "best_path", "best_path_probability")]
    assert set(found) >= {"row", "top5_leaves", "top5_probabilities", "g_argmax", "s_argmax_probability", *levels}
    assert found["row"] == [2, 7] and found["image"] == ["b.jpg", None]
    assert found["s_label"] == ["x (B)", None] and found["g_label"] == ["B", "A"] and found["g_argmax"] == ["B", "B"]
    assert found["g_best_path"] == ["B", "Z"] and found["s_best_path"] == ["x (B)", None]
    assert found["g_best_path_probability"] == pytest.approx([1, 0.15]) and found["s_best_path_probability"][1] == 0
    assert found["top5_leaves"] == [["x (B)", "x (A)", "Z"], ["Z", "x (A)", "x (B)"]]
    assert found["top5_probabilities"][1] == pytest.approx([0.7, 0.2, 0.1])
    assert [file.name for file in tmp_path.iterdir()] == ["p.parquet"]


def test_without_images_there_is_no_file(tmp_path):
    table = collected([])
    assert table.best_path.shape == (0, 2) and table.columns["top_leaves"].shape == (0, 3)
    table.write(tmp_path / "p.parquet", ["", "", "b.jpg", *[""] * 5])
    assert not list(tmp_path.iterdir())
