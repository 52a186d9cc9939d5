"""TaxonomyMetrics against scikit-learn, torchmetrics and plain Python loops."""

import copy
import math
import os
import random

import evaluate
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, top_k_accuracy_score
from torchmetrics.functional.classification import multiclass_calibration_error
from torchmetrics.functional.classification.calibration_error import _ce_compute

from common.metrics.taxonomy import TaxonomyMetrics
from common.model.hierarchy import Hierarchy
from common.model.tree import IGNORE

SEEDS = range(4)
NAN = math.nan


# ---- random trees and predictions


def random_tree(seed):
    """Four levels; parents a level above, two above or none, and classes of upper levels without children."""
    rng = random.Random(seed)
    sizes = [rng.randint(3, 4), rng.randint(6, 8), rng.randint(9, 12), rng.randint(20, 30)]
    parents = [[None] * sizes[0]]
    for level in range(1, len(sizes)):
        column = []
        for _ in range(sizes[level]):
            above = rng.choice([level - 1] * 6 + [max(level - 2, 0), None])
            # The last class of a level never has a child.
            column.append(None if above is None else (above, rng.randrange(sizes[above] - 1)))
        parents.append(column)
    names = [[f"{level}_{index}" for index in range(size)] for level, size in enumerate(sizes)]
    return Hierarchy(["a", "b", "c", "d"], names, parents)


def random_batch(hierarchy, seed, num_samples=160):
    """Predictions somewhat better than chance and partly labelled references."""
    generator = torch.Generator().manual_seed(seed)
    leaves = torch.randint(hierarchy.num_leaves, (num_samples,), generator=generator)
    leaves[: num_samples // 2] %= hierarchy.num_classes[-1]
    references = torch.stack(hierarchy.lift(leaves), 1)
    log_probs = []
    for level, num_classes in enumerate(hierarchy.num_classes):
        scores = 2 * torch.randn(num_samples, num_classes, generator=generator)
        known = references[:, level] >= 0
        scores[known, references[known, level]] += 3
        log_probs.append(scores.log_softmax(1))
    depth = torch.randint(2 * hierarchy.num_levels, (num_samples, 1), generator=generator)
    references[torch.arange(hierarchy.num_levels) >= depth] = IGNORE
    predictions = {"log_probs": log_probs, "path": hierarchy.lift(hierarchy.path_scores(log_probs).argmax(1))}
    return predictions, references


def counted(hierarchy, predictions, references, **options):
    metric = TaxonomyMetrics(hierarchy, **options)
    metric.add_batch(predictions=predictions, references=references)
    return metric


def part(predictions, references, index):
    cut = {key: [tensor[index] for tensor in column] for key, column in predictions.items()}
    return {"predictions": cut, "references": references[index]}


def assert_same(actual, expected, tolerance=1e-6):
    """Equal keys, equal types of numbers, counts exactly equal and means equal to the tolerance; nan equals nan."""
    assert type(actual) is type(expected)
    if isinstance(expected, dict):
        assert list(actual) == list(expected)
        for key in expected:
            assert_same(actual[key], expected[key], tolerance)
    elif isinstance(expected, int):
        assert actual == expected
    else:
        assert actual == pytest.approx(expected, abs=tolerance, rel=0, nan_ok=True)


# ---- independent definitions


def level_scores(log_probs, predicted, references, num_bins=15):
    """One level: tensors (batch, classes), (batch,), (batch,)."""
    known = references >= 0
    log_probs, predicted, references = log_probs[known], predicted[known], references[known]
    occurring = sorted({*references.tolist(), *predicted.tolist()} - {IGNORE})
    num_classes = log_probs.shape[1]
    confidence = [0.0 if c < 0 else math.exp(row[c]) for row, c in zip(log_probs, predicted, strict=True)]
    right = (predicted == references).double()
    ece = _ce_compute(torch.tensor(confidence, dtype=torch.double), right, num_bins)
    top5 = 1.0
    if num_classes > 5:
        top5 = top_k_accuracy_score(references, log_probs, k=5, labels=range(num_classes))
    return {
        "accuracy": float(accuracy_score(references, predicted)),
        "top5_accuracy": float(top5),
        "macro_f1": float(f1_score(references, predicted, average="macro", labels=occurring, zero_division=0)),
        "mean_confidence": sum(confidence) / len(confidence),
        "ece": ece.item(),
        "num_labelled": len(references),
    }


def nodes_up(hierarchy, level, index):
    """A class and everything above it, as a set of (level, class)."""
    nodes, node = set(), (level, index)
    while node is not None:
        nodes.add(node)
        node = hierarchy.parents[node[0]][node[1]]
    return nodes


def tree_scores(hierarchy, predicted, references, may_be_absent):
    """Full-path accuracy, inconsistency and distance of rows of labels, in loops over Python integers."""
    last = hierarchy.num_levels - 1
    full, inconsistent, distances = [], [], []
    for chosen, truth in zip(predicted.tolist(), references.tolist(), strict=True):
        given = {(level, label) for level, label in enumerate(chosen) if label >= 0}
        finest = max(given)
        inconsistent.append(not nodes_up(hierarchy, *finest) <= given)
        if truth[last] < 0:
            continue
        if may_be_absent:
            full.append(chosen == truth)
            path = given
        else:
            full.append(all(c == t for c, t in zip(chosen, truth, strict=True) if t >= 0))
            path = nodes_up(hierarchy, last, chosen[last])
        common = nodes_up(hierarchy, last, truth[last]) & path
        distances.append(last - max(common)[0] if common else last + 1)
    return {
        "full_path_accuracy": sum(full) / len(full),
        "tree_inconsistency": sum(inconsistent) / len(inconsistent),
        "hierarchical_distance": sum(distances) / len(distances),
    }


@pytest.mark.parametrize("seed", SEEDS)
def test_random_data_exercises_the_differences(seed):
    hierarchy = random_tree(seed)
    predictions, references = random_batch(hierarchy, seed)
    path = torch.stack(predictions["path"], 1)
    argmax = torch.stack([scores.argmax(1) for scores in predictions["log_probs"]], 1)
    fully = references[:, -1] >= 0
    assert hierarchy.num_leaves > hierarchy.num_classes[-1]  # leaves at upper levels
    assert (references[fully] < 0).any() and fully.any() and not fully.all()  # gaps, and partial labels
    assert (references < 0).all(1).any()  # samples without any label
    assert ((path != argmax) & (path >= 0)).any() and (path[fully, -1] < 0).any() and (path[:, 0] < 0).any()


@pytest.mark.parametrize("seed", SEEDS)
def test_level_scores_equal_those_of_sklearn_and_torchmetrics(seed):
    hierarchy = random_tree(seed)
    predictions, references = random_batch(hierarchy, seed)
    metric = counted(hierarchy, predictions, references)
    argmax = [scores.argmax(1) for scores in predictions["log_probs"]]
    of_levels = counted(hierarchy, {**predictions, "path": argmax}, references)
    for level, name in enumerate(hierarchy.levels):
        scores, labels = predictions["log_probs"][level], references[:, level]
        assert_same(metric.compute()["levels"][name], level_scores(scores, predictions["path"][level], labels))
        of_argmax = of_levels.compute()["levels"][name]
        assert_same(of_argmax, level_scores(scores, scores.argmax(1), labels))
        public = multiclass_calibration_error(scores.exp(), labels, scores.shape[1], 15, ignore_index=IGNORE)
        assert of_argmax["ece"] == pytest.approx(public.item(), abs=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_tree_scores_equal_plain_loops(seed):
    hierarchy = random_tree(seed)
    predictions, references = random_batch(hierarchy, seed)
    results = counted(hierarchy, predictions, references).compute()
    path = torch.stack(predictions["path"], 1)
    argmax = torch.stack([scores.argmax(1) for scores in predictions["log_probs"]], 1)
    assert_same(results["path"], tree_scores(hierarchy, path, references, may_be_absent=True))
    assert_same(results["argmax"], tree_scores(hierarchy, argmax, references, may_be_absent=False))
    assert results["path"]["tree_inconsistency"] == 0 < results["argmax"]["tree_inconsistency"] < 1
    assert results["path"]["full_path_accuracy"] != results["argmax"]["full_path_accuracy"]
    assert results["num_samples"] == len(references)


def test_inconsistency_is_measured_for_the_path_too():
    hierarchy = random_tree(0)
    predictions, references = random_batch(hierarchy, 0)
    predictions["path"] = [scores.argmax(1) for scores in predictions["log_probs"]]
    results = counted(hierarchy, predictions, references).compute()
    assert results["path"]["tree_inconsistency"] == results["argmax"]["tree_inconsistency"] > 0


@pytest.mark.parametrize("num_bins", [1, 4, 40])
def test_num_bins(num_bins):
    hierarchy = random_tree(1)
    predictions, references = random_batch(hierarchy, 1)
    metric = counted(hierarchy, predictions, references, num_bins=num_bins)
    expected = level_scores(predictions["log_probs"][-1], predictions["path"][-1], references[:, -1], num_bins)
    assert_same(metric.compute()["levels"]["d"], expected)


# ---- a tree small enough to count by hand


@pytest.fixture
def small():
    """x > (p, q); y > r; z is a leaf of the upper level."""
    return Hierarchy(["kind", "sort"], [["x", "y", "z"], ["p", "q", "r"]], [[None] * 3, [0, 0, 1]])


def small_batch():
    """Four samples. Argmax per level: (x, q), (y, p), (y, r), (x, p); paths: (x, q), (x, p), (z, -), (x, p)."""
    kind = torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.1, 0.5, 0.4], [1.0, 0.0, 0.0]])
    sort = torch.tensor([[0.2, 0.6, 0.2], [0.8, 0.1, 0.1], [0.1, 0.1, 0.8], [1.0, 0.0, 0.0]])
    path = [torch.tensor([0, 0, 2, 0]), torch.tensor([1, 0, IGNORE, 0])]
    references = torch.tensor([[0, 0], [0, 0], [1, 2], [1, IGNORE]])
    return {"log_probs": [kind.log(), sort.log()], "path": path}, references


def test_known_numbers(small):
    metric = counted(small, *small_batch(), num_bins=2)
    # kind, path: right right wrong wrong at 0.7 0.3 0.4 1.0; the bins {0.3, 0.4} and {0.7, 1.0} have accuracy 0.5.
    # x: 2 right of 3 predicted and 2 labelled, y: 0 of 0 and 2, z: 0 of 1 and 0.
    kind = {
        "accuracy": 0.5,
        "top5_accuracy": 1.0,
        "macro_f1": (4 / 5 + 0 + 0) / 3,
        "mean_confidence": 0.6,
        "ece": (abs(1 - 0.7) + abs(1 - 1.7)) / 4,
        "num_labelled": 4,
    }
    # sort, path: wrong right wrong at 0.6 0.8 0 (no value); p: 1 right of 1 and 2, q: 0 of 1 and 0, r: 0 of 0 and 1.
    sort = {
        "accuracy": 1 / 3,
        "top5_accuracy": 1.0,
        "macro_f1": (2 / 3 + 0 + 0) / 3,
        "mean_confidence": 1.4 / 3,
        "ece": abs(1 - 1.4) / 3,
        "num_labelled": 3,
    }
    # Distances over the first three samples. Path: 1 (x shared), 0, 2 (nothing shared). Argmax: 1, 0 (leaf), 0.
    expected = {
        "num_samples": 4,
        "levels": {"kind": kind, "sort": sort},
        "path": {"full_path_accuracy": 1 / 3, "tree_inconsistency": 0.0, "hierarchical_distance": 1.0},
        "argmax": {"full_path_accuracy": 1 / 3, "tree_inconsistency": 0.25, "hierarchical_distance": 1 / 3},
    }
    assert_same(metric.compute(), expected)


@pytest.mark.parametrize(
    ("confidences", "ece"),
    [
        ([0.75, 1.0, 1.0, 0.75], abs(2 - 3.5) / 4),  # right right wrong wrong, all within (0.5, 1]
        ([0.25, 0.5, 0.75, 0.75], abs(2 - 0.75) / 4 + abs(0 - 1.5) / 4),  # two in (0, 0.5], two in (0.5, 1]
    ],
)
def test_bins_contain_their_upper_edge(small, confidences, ece):
    predictions, references = small_batch()
    chosen = torch.tensor(confidences, dtype=torch.double)
    predictions["log_probs"][0] = torch.stack([chosen, 1 - chosen, torch.zeros(4)], 1).log()
    predictions["path"][0] = torch.zeros(4, dtype=torch.long)
    metric = counted(small, predictions, references, num_bins=2)
    assert metric.compute()["levels"]["kind"]["ece"] == pytest.approx(ece)


def test_full_path_needs_the_gaps_of_the_reference():
    """A last-level class straight under the root: its path has no value in the level between."""
    hierarchy = Hierarchy(["a", "b", "c"], [["x"], ["p"], ["s", "t"]], [[None], [0], [(0, 0), 0]])
    log_probs = [torch.zeros(2, 1), torch.zeros(2, 1), torch.tensor([[0.9, 0.1]] * 2).log()]
    path = [torch.tensor([0, 0]), torch.tensor([IGNORE, 0]), torch.tensor([0, 0])]
    references = torch.tensor([[0, IGNORE, 0]] * 2)
    results = counted(hierarchy, {"log_probs": log_probs, "path": path}, references).compute()
    assert results["path"]["full_path_accuracy"] == 0.5  # the second path has a class where there is none
    assert results["argmax"]["full_path_accuracy"] == 1.0
    assert results["path"]["hierarchical_distance"] == 0.0


def test_distance_uses_the_place_of_the_true_leaf_in_the_tree(small):
    """A reference known at the last level only still has its ancestors."""
    predictions, _ = small_batch()
    references = torch.tensor([[IGNORE, 0], [IGNORE, 0], [IGNORE, 2], [IGNORE, IGNORE]])
    results = counted(small, predictions, references).compute()
    assert results["path"]["hierarchical_distance"] == 1.0
    assert results["argmax"]["hierarchical_distance"] == pytest.approx(1 / 3)


def test_perfect_and_worst_predictions():
    hierarchy = random_tree(2)
    leaves = torch.arange(hierarchy.num_classes[-1])
    truth = hierarchy.lift(leaves)
    sure = [torch.full((len(leaves), num_classes), -1e4) for num_classes in hierarchy.num_classes]
    for scores, labels in zip(sure, truth, strict=True):
        scores.scatter_(1, labels.clamp(min=0)[:, None], 0)
    metric = counted(hierarchy, {"log_probs": sure, "path": truth}, torch.stack(truth, 1))
    ideal = {"accuracy": 1.0, "top5_accuracy": 1.0, "macro_f1": 1.0, "mean_confidence": 1.0, "ece": 0.0}
    for scores in metric.compute()["levels"].values():
        assert scores.pop("num_labelled") > 0
        assert_same(scores, ideal)
    ideal = {"full_path_accuracy": 1.0, "tree_inconsistency": 0.0, "hierarchical_distance": 0.0}
    assert_same(metric.compute()["path"], ideal)
    assert metric.compute()["argmax"]["full_path_accuracy"] == 1.0
    assert metric.compute()["argmax"]["hierarchical_distance"] == 0.0

    flat = Hierarchy(["a", "b"], [list("xy"), list("pqrstu")], [[None] * 2, [0, 0, 0, 1, 1, 1]])
    sure = [torch.tensor([[0, -1e4]] * 3), torch.tensor([[0, -1, -2, -3, -4, -1e4]] * 3)]
    labels = torch.tensor([[1, 5]] * 3)
    path = [torch.zeros(3, dtype=torch.long)] * 2
    metric = counted(flat, {"log_probs": sure, "path": path}, labels)
    worst = {"accuracy": 0.0, "top5_accuracy": 0.0, "macro_f1": 0.0, "mean_confidence": 1.0, "ece": 1.0}
    assert_same(metric.compute()["levels"]["b"], {**worst, "num_labelled": 3})
    worst = {"full_path_accuracy": 0.0, "tree_inconsistency": 0.0, "hierarchical_distance": 2.0}
    assert_same(metric.compute()["path"], worst)


def test_top5_takes_the_fifth_class_and_not_the_sixth():
    names = [str(index) for index in range(8)]
    hierarchy = Hierarchy(["a"], [names], [[None] * 8])
    log_probs = torch.arange(0, -8, -1.0).repeat(8, 1)
    path = [torch.zeros(8, dtype=torch.long)]
    metric = counted(hierarchy, {"log_probs": [log_probs], "path": path}, torch.arange(8)[:, None])
    assert metric.compute()["levels"]["a"]["top5_accuracy"] == 5 / 8


# ---- classes and levels that do not occur


def test_level_without_labels_is_nan_and_the_others_are_not(small):
    predictions, references = small_batch()
    references[:, 1] = IGNORE
    results = counted(small, predictions, references).compute()
    names = ["accuracy", "top5_accuracy", "macro_f1", "mean_confidence", "ece"]
    assert_same(results["levels"]["sort"], {**dict.fromkeys(names, NAN), "num_labelled": 0})
    assert not any(math.isnan(value) for value in results["levels"]["kind"].values())
    assert_same(results["path"], {"full_path_accuracy": NAN, "tree_inconsistency": 0.0, "hierarchical_distance": NAN})


def test_nothing_counted(small):
    results = TaxonomyMetrics(small).compute()
    assert results["num_samples"] == 0 and math.isnan(results["argmax"]["tree_inconsistency"])


def test_predictions_of_unlabelled_samples_count_for_no_level(small):
    predictions, references = small_batch()
    expected = counted(small, predictions, references).compute()["levels"]
    more = {key: [torch.cat([tensor, tensor]) for tensor in column] for key, column in predictions.items()}
    unlabelled = torch.cat([references, torch.full_like(references, IGNORE)])
    assert_same(counted(small, more, unlabelled).compute()["levels"], expected)


# ---- streaming, processes, device


@pytest.mark.parametrize("sizes", [(160,), (1,) * 160, (100, 0, 60), (7, 153)])
def test_any_split_into_batches_gives_the_same(sizes):
    hierarchy = random_tree(3)
    predictions, references = random_batch(hierarchy, 3)
    whole, pieces = counted(hierarchy, predictions, references), TaxonomyMetrics(hierarchy)
    for index in torch.randperm(160, generator=torch.Generator().manual_seed(0)).split(sizes):
        pieces.add_batch(**part(predictions, references, index))
    assert_same(pieces.compute(), whole.compute(), tolerance=1e-12)


def test_single_samples():
    hierarchy = random_tree(3)
    predictions, references = random_batch(hierarchy, 3, num_samples=20)
    metric = TaxonomyMetrics(hierarchy)
    for index in range(20):
        sample = part(predictions, references, index)
        metric.add(prediction=sample["predictions"], reference=sample["references"])
    assert_same(metric.compute(), counted(hierarchy, predictions, references).compute(), tolerance=1e-12)


def test_processes_reduce_to_the_numbers_of_one():
    hierarchy = random_tree(0)
    predictions, references = random_batch(hierarchy, 0)
    whole = counted(hierarchy, predictions, references)
    metrics = [TaxonomyMetrics(hierarchy) for _ in range(3)]
    for metric, index in zip(metrics, torch.arange(160).split([30, 90, 40]), strict=True):
        metric.add_batch(**part(predictions, references, index))
    sent = [[], [], []]  # what each process would hand to the collective, before any of them is changed
    for process, metric in enumerate(metrics):
        metric.reduce(lambda tensor, process=process: sent[process].append(tensor.clone()) or tensor)
    assert [tensor.dtype for tensor in sent[0]] == [torch.long, torch.double]
    for metric in metrics:
        sums = iter([sum(tensors) for tensors in zip(*sent, strict=True)])
        metric.reduce(lambda tensor, sums=sums: next(sums))
        assert_same(metric.compute(), whole.compute())


def test_compute_clears_nothing():
    hierarchy = random_tree(0)
    predictions, references = random_batch(hierarchy, 0)
    metric = counted(hierarchy, predictions, references)
    first = metric.compute()
    assert_same(metric.compute(), first)
    metric.add_batch(predictions=predictions, references=references)
    twice = metric.compute()
    assert twice["num_samples"] == 320
    assert_same(twice["path"], first["path"])
    assert_same(TaxonomyMetrics(hierarchy).compute(predictions=predictions, references=references), first)


def test_a_copy_counts_for_itself(small):
    metric = TaxonomyMetrics(small)
    other = copy.deepcopy(metric)
    predictions, references = small_batch()
    other.add_batch(predictions=predictions, references=references)
    assert (metric.compute()["num_samples"], other.compute()["num_samples"]) == (0, 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    hierarchy = random_tree(1)
    generator = torch.Generator().manual_seed(1)
    _, references = random_batch(hierarchy, 1)
    # Distinct multiples of 1/4 are exact in both types and tie nowhere.
    log_probs = [
        torch.stack([-torch.randperm(num_classes, generator=generator) / 4 for _ in references])
        for num_classes in hierarchy.num_classes
    ]
    path = hierarchy.lift(hierarchy.path_scores(log_probs).argmax(1))
    exact = counted(hierarchy, {"log_probs": log_probs, "path": path}, references)
    half = counted(hierarchy, {"log_probs": [scores.to(dtype) for scores in log_probs], "path": path}, references)
    assert_same(half.compute(), exact.compute(), tolerance=1e-12)


def test_inputs_with_gradients_and_inference_mode(small):
    predictions, references = small_batch()
    expected = counted(small, predictions, references).compute()
    with_grad = {**predictions, "log_probs": [scores.requires_grad_() for scores in predictions["log_probs"]]}
    metric = counted(small, with_grad, references)
    assert_same(metric.compute(), expected)
    tracked = []
    metric.reduce(lambda tensor: tracked.append(tensor.requires_grad) or tensor)
    assert tracked == [False, False]
    metric = TaxonomyMetrics(small)
    with torch.inference_mode():
        metric.add_batch(predictions=predictions, references=references)
    assert_same(metric.compute(), expected)


def test_nan_probabilities_are_seen_and_break_nothing(small):
    predictions, references = small_batch()
    predictions["log_probs"] = [torch.full_like(scores, NAN) for scores in predictions["log_probs"]]
    results = counted(small, predictions, references).compute()
    assert math.isnan(results["levels"]["kind"]["mean_confidence"]) and math.isnan(results["levels"]["kind"]["ece"])
    assert results["levels"]["kind"]["num_labelled"] == 4 and results["levels"]["kind"]["accuracy"] == 0.5


def test_counting_never_looks_at_values():
    """Tensors of the meta device have no values, so that whatever waits for them raises."""
    for looking in (torch.Tensor.item, torch.Tensor.nonzero, lambda mask: mask[mask], lambda mask: mask.cpu()):
        with pytest.raises((RuntimeError, NotImplementedError)):
            looking(torch.ones(1, dtype=torch.bool, device="meta"))
    hierarchy = random_tree(0)
    predictions, references = random_batch(hierarchy, 0)
    predictions = {key: [tensor.to("meta") for tensor in column] for key, column in predictions.items()}
    counted(hierarchy, predictions, references.to("meta"), device="meta")


def test_memory_is_linear_in_the_classes():
    num_leaves = 100_000
    names = [["x", "y"], [str(index) for index in range(num_leaves)]]
    hierarchy = Hierarchy(["a", "b"], names, [[None] * 2, [index % 2 for index in range(num_leaves)]])
    references = torch.tensor([[1, num_leaves - 1], [0, 2]])
    log_probs = [torch.zeros(2, 2), torch.full((2, num_leaves), -9.0).scatter_(1, references[:, 1:], -1)]
    metric = counted(hierarchy, {"log_probs": log_probs, "path": list(references.T)}, references)
    sizes = [value.nbytes for value in vars(metric).values() if isinstance(value, torch.Tensor)]
    assert sum(sizes) < 64 * num_leaves
    assert metric.compute()["levels"]["b"]["macro_f1"] == 1.0


# ---- evaluate


def test_combine(small):
    predictions, references = small_batch()
    expected = counted(small, predictions, references).compute()
    both = evaluate.combine({"few": TaxonomyMetrics(small), "many": TaxonomyMetrics(small, num_bins=1)})
    both.add_batch(**part(predictions, references, slice(3)))
    last = part(predictions, references, 3)
    both.add(prediction=last["predictions"], reference=last["references"])
    results = both.compute()
    assert_same({key: results[f"few_{key}"] for key in expected}, expected)
    assert results["many_levels"]["kind"]["ece"] != expected["levels"]["kind"]["ece"]
    assert_same(evaluate.combine([TaxonomyMetrics(small)]).compute(*small_batch()), expected)


def test_writes_nothing_to_disk(small, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError(f"made a directory: {args}")

    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(os, "makedirs", refuse)
    monkeypatch.chdir(home)
    predictions, references = small_batch()
    metric = counted(small, predictions, references)
    metric.compute(predictions=predictions, references=references)
    del metric
    assert list(tmp_path.rglob("*")) == [home]


# ---- mistakes


def test_wrong_inputs_raise_value_error(small):
    predictions, references = small_batch()
    kind, sort = predictions["log_probs"]
    path = predictions["path"]
    beyond = references.clone()
    beyond[0, 0] = 3  # would be the first class of the next level
    wrong = {
        "the hierarchy asks for": [
            ({**predictions, "log_probs": [kind]}, references),
            ({**predictions, "log_probs": [kind, sort[:, :2]]}, references),
            ({**predictions, "log_probs": [kind, sort[:3]]}, references),
            ({**predictions, "path": path[:1]}, references),
            ({**predictions, "path": [path[0], path[1][:, None]]}, references),
            (predictions, references[:, :1]),
            (predictions, references[:3]),
        ],
        "int64": [(predictions, references.float()), ({**predictions, "path": [p.int() for p in path]}, references)],
        r"beyond the last one of the levels \['kind'\]": [
            (predictions, beyond),
            ({**predictions, "path": [path[0] + 3, path[1]]}, references),
        ],
        "must be on cpu": [(predictions, references.to("meta"))],
    }
    metric = TaxonomyMetrics(small)
    for message, cases in wrong.items():
        for case in cases:
            with pytest.raises(ValueError, match=message):
                metric.add_batch(predictions=case[0], references=case[1])
    assert metric.compute()["num_samples"] == 0
