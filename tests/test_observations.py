"""Several photographs of one thing: their mean probabilities, against NumPy, and in a run."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from test_saved_use import build, pixels

import train_taxonomy
from common.metrics.observations import Observations
from common.metrics.taxonomy import TaxonomyMetrics


def random_logits(model, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    outputs = model.compute_logits(pixels()).shape[1]
    return 3 * torch.randn(count, outputs, generator=generator)


@pytest.mark.parametrize("head", ["tree", "independent"])
@torch.no_grad()
def test_mean_probabilities_are_those_of_numpy(head):
    model, random = build(head=head), np.random.default_rng(0)
    tree = model.hierarchy
    leaf, groups = torch.from_numpy(random.integers(tree.num_leaves, size=40)), random.integers(12, size=40)
    for group in set(groups.tolist()):  # one thing, one label
        leaf[groups == group] = int(leaf[np.flatnonzero(groups == group)[0]])
    labels, logits = tree.ancestors[leaf].numpy(), random_logits(model, 40)
    rows = torch.from_numpy(random.permutation(40)[:35])  # some images are left out

    together = Observations(groups, labels, model, "cpu")
    halves = [Observations(groups, labels, model, "cpu") for _ in range(2)]
    for index, part in enumerate(rows.split(8)):
        together.add(part, logits[part])
        halves[index % 2].add(part.flip(0), logits[part].flip(0))
    results = together.compute(TaxonomyMetrics(tree), lambda sums: sums)
    total = halves[0].sums + halves[1].sums
    assert halves[1].compute(TaxonomyMetrics(tree), lambda _: total) == results  # exactly

    shares = model.heads.normalized(logits).double().exp().numpy()
    seen = sorted({*groups[rows].tolist()})
    means = np.stack([shares[[row for row in rows.tolist() if groups[row] == group]].mean(0) for group in seen])
    output = model.complete(torch.from_numpy(means).log().float())
    truth = torch.from_numpy(np.stack([labels[np.flatnonzero(groups == group)[0]] for group in seen]))
    expected = TaxonomyMetrics(tree)
    predicted = {"log_probs": output.log_probs, "path": model.decode(output).path.unbind(1)}
    expected.add_batch(predictions=predicted, references=truth)
    assert results["num_samples"] == len(seen)
    for level, scores in expected.compute()["levels"].items():
        assert results["levels"][level] == pytest.approx(scores, abs=1e-6, nan_ok=True)
    assert results["path"] == pytest.approx(expected.compute()["path"], nan_ok=True)


@pytest.mark.with_report
def test_a_run_evaluates_observations_too(options, tmp_path):
    """By the order, whose images are one thing; a blank is one of its own."""
    results = train_taxonomy.main(
        options(
            eval_group_column="order",
            metric_for_best_model="observations.levels.order.accuracy",
            max_train_steps=2,
            save_predictions=True,
        )
    )["eval"]
    table = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    assert results["observations"]["num_samples"] == table["order_label"].fillna(table["row"].astype(str)).nunique()
    assert results["observations"]["levels"].keys() == results["levels"].keys()
    stored = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert stored["eval"]["observations"]["path"] == results["observations"]["path"]
    for file in ("report.html", "README.md"):
        assert "bservations" in (tmp_path / "out" / file).read_text()
    with pytest.raises(ValueError, match="is not among the results"):
        train_taxonomy.main(options(metric_for_best_model="observations.levels.order.accuracy"))
