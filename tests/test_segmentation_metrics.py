"""SegmentationMetrics against scikit-learn, torchmetrics, the formula of evaluate's mean_iou and Python loops."""

import copy
import math
import random

import evaluate
import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score, precision_recall_fscore_support
from torchmetrics.functional.classification import multiclass_jaccard_index

from common.metrics import segmentation as segmentation_metrics
from common.metrics.report_data import ReportData
from common.metrics.segmentation import SegmentationMetrics
from common.model.hierarchy import Hierarchy
from common.model.tree import IGNORE
from common.report.confusions import ConfusionPairs

NAN = math.nan
LEVELS = ["binary", "coarse", "fine"]


# ---- trees and masks


def damage_tree():
    """Clean has no coarse group, one class of the last level has nothing above it, and 'stained' has no children."""
    names = [["clean", "damaged"], ["broken", "soft", "stained"], ["Clean", "crack", "hole", "rot", "other"]]
    return Hierarchy(LEVELS, names, [[None] * 2, [1, 1, 1], [(0, 0), 0, 0, 1, None]])


def random_tree(seed):
    """Four levels; parents a level above, two above or none, and classes of upper levels without children."""
    rng = random.Random(seed)
    sizes = [3, 5, 7, 12]
    parents = [[None] * sizes[0]]
    for level in range(1, len(sizes)):
        column = []
        for _ in range(sizes[level]):
            above = rng.choice([level - 1] * 6 + [max(level - 2, 0), None])
            column.append(None if above is None else (above, rng.randrange(sizes[above] - 1)))
        parents.append(column)
    return Hierarchy(list("abcd"), [[f"{level}_{i}" for i in range(n)] for level, n in enumerate(sizes)], parents)


def flat_tree(num_leaves):
    return Hierarchy(["class"], [[str(index) for index in range(num_leaves)]], [[None] * num_leaves])


TREES = {"damage": damage_tree(), "random 0": random_tree(0), "random 1": random_tree(1), "flat": flat_tree(4)}


def random_masks(hierarchy, seed=0, shape=(3, 12, 11)):
    """Masks better than chance; a fifth of the pixels is ignored, the last leaf never is a reference."""
    generator = torch.Generator().manual_seed(seed)

    def noisy(labels, num_classes, share):
        noise = torch.randint(num_classes, shape, generator=generator)
        return torch.where((torch.rand(shape, generator=generator) < share) | (labels < 0), noise, labels)

    leaf = torch.randint(max(hierarchy.num_leaves - 1, 1), shape, generator=generator)
    argmax = [noisy(labels, n, 0.2) for labels, n in zip(hierarchy.lift(leaf), hierarchy.num_classes, strict=True)]
    references = leaf.masked_fill(torch.rand(shape, generator=generator) < 0.2, IGNORE)
    return {"leaf": noisy(leaf, hierarchy.num_leaves, 0.4), "argmax": argmax}, references


def counted(hierarchy, predictions, references, **options):
    metric = SegmentationMetrics(hierarchy, **options)
    metric.add_batch(predictions=predictions, references=references)
    return metric


def convert(predictions, function):
    return {"leaf": function(predictions["leaf"]), "argmax": [function(labels) for labels in predictions["argmax"]]}


def confusion_of(metric, level):
    """What the report draws: int64 (references, predictions + 1), the last column for no value."""
    matrix = metric.leaf_confusion()
    assert matrix.dtype == np.int64
    pairs = ConfusionPairs(metric.hierarchy, ReportData.of_leaf_matrix(metric.hierarchy, matrix))
    truth, predicted, count = pairs.of_level(level)
    size = metric.hierarchy.num_classes[level]
    found = np.zeros((size, size + 1), dtype=np.int64)
    np.add.at(found, (truth, np.where(predicted < 0, size, predicted)), count)
    return found


def results_of(metric):
    return {**metric.compute(), "argmax_levels": metric.argmax_levels()}


def assert_same(actual, expected):
    """Equal keys and types of numbers; counts equal, shares to rounding; nan equals nan."""
    assert type(actual) is type(expected)
    if isinstance(expected, dict):
        assert list(actual) == list(expected)
        for key in expected:
            assert_same(actual[key], expected[key])
    else:
        assert actual == (expected if isinstance(expected, int) else pytest.approx(expected, rel=1e-12, nan_ok=True))


@pytest.fixture(params=["joint", "each level"])
def counting(request, monkeypatch):
    """Both ways to count the argmax."""
    if request.param != "joint":
        monkeypatch.setattr(segmentation_metrics, "_JOINT_LIMIT", 0)


# ---- independent definitions


def sklearn_scores(predicted, references, names):
    """One level: flat masks, negative where there is no value."""
    known = references >= 0
    truth, predicted, labels = references[known].numpy(), predicted[known].numpy(), list(range(len(names)))
    options = {"labels": labels, "average": None, "zero_division": np.nan}
    precision, recall, f1, _ = precision_recall_fscore_support(truth, predicted, **options)
    iou = jaccard_score(truth, predicted, labels=labels, average=None, zero_division=0)
    occurs = np.isin(labels, np.union1d(truth, predicted))
    iou[~occurs] = np.nan
    rows = zip(iou, precision, recall, f1, np.bincount(truth, minlength=len(names)), strict=True)
    per_class = [[*map(float, row[:4]), int(row[4])] for row in rows]
    keys = ["iou", "precision", "recall", "f1", "num_pixels"]
    return {
        "mean_iou": float(iou[occurs].mean()),
        "pixel_accuracy": float(accuracy_score(truth, predicted)),
        "mean_f1": float(f1[occurs].mean()),
        "per_class": {name: dict(zip(keys, row, strict=True)) for name, row in zip(names, per_class, strict=True)},
    }


def nodes_up(hierarchy, level, index):
    """A class and everything above it, as a set of (level, class)."""
    nodes, node = set(), (level, index)
    while node is not None:
        nodes.add(node)
        node = hierarchy.parents[node[0]][node[1]]
    return nodes


def loop_scores(hierarchy, predictions, references):
    """The scores over levels, pixel by pixel."""
    last = hierarchy.num_levels - 1
    leaf_right, distances, right, inconsistent = [], [], [], []
    argmax = torch.stack(predictions["argmax"], -1).flatten(0, -2).tolist()
    for leaf, chosen, truth in zip(
        predictions["leaf"].flatten().tolist(), argmax, references.flatten().tolist(), strict=True
    ):
        if truth < 0:
            continue
        true_path, path = (nodes_up(hierarchy, *hierarchy.leaves[index]) for index in (truth, leaf))
        given = set(enumerate(chosen))
        leaf_right.append(leaf == truth)
        common = true_path & path
        distances.append(0 if leaf == truth else last - max(common)[0] if common else last + 1)
        right.append(true_path <= given)
        inconsistent.append(not nodes_up(hierarchy, *max(given)) <= given)
    count = len(right)
    return {
        "path": {
            "full_path_accuracy": sum(leaf_right) / count,
            "tree_inconsistency": 0.0,
            "hierarchical_distance": sum(distances) / count,
        },
        "argmax": {"full_path_accuracy": sum(right) / count, "tree_inconsistency": sum(inconsistent) / count},
    }


@pytest.mark.parametrize("tree", TREES)
def test_level_scores_and_confusion_equal_those_of_sklearn(tree, counting):
    hierarchy = TREES[tree]
    predictions, references = random_masks(hierarchy)
    metric = counted(hierarchy, predictions, references)
    results, of_argmax = metric.compute(), metric.argmax_levels()
    truth = hierarchy.lift(references.flatten())
    path = hierarchy.lift(predictions["leaf"].flatten())
    for level, name in enumerate(hierarchy.levels):
        names, num_classes = hierarchy.display_names(level), hierarchy.num_classes[level]
        assert_same(results["levels"][name], sklearn_scores(path[level], truth[level], names))
        assert_same(of_argmax[name], sklearn_scores(predictions["argmax"][level].flatten(), truth[level], names))
        known = truth[level] >= 0
        predicted = torch.where(path[level] < 0, num_classes, path[level])[known]
        expected = confusion_matrix(truth[level][known], predicted, labels=range(num_classes + 1))[:-1]
        assert np.array_equal(confusion_of(metric, level), expected)
    assert (results["num_samples"], results["num_pixels"]) == (3, (references >= 0).sum().item())


@pytest.mark.parametrize("tree", TREES)
def test_tree_scores_equal_plain_loops(tree, counting):
    predictions, references = random_masks(TREES[tree], seed=1)
    results = counted(TREES[tree], predictions, references).compute()
    expected = loop_scores(TREES[tree], predictions, references)
    assert_same({key: results[key] for key in expected}, expected)
    assert tree == "flat" or 0 < results["argmax"]["tree_inconsistency"] < 1


def test_random_masks_exercise_the_differences():
    hierarchy = TREES["random 0"]
    predictions, references = random_masks(hierarchy)
    truth = torch.stack(hierarchy.lift(references))[:, references >= 0]
    path = torch.stack(hierarchy.lift(predictions["leaf"]))[:, references >= 0]
    assert hierarchy.num_leaves > hierarchy.num_classes[-1] and (references >= hierarchy.num_classes[-1]).any()
    assert all(hierarchy.has_gaps) or (truth < 0).any()
    assert ((truth >= 0) & (path < 0)).any() and ((truth < 0) & (path >= 0)).any()


def test_mean_iou_equals_evaluate_and_torchmetrics_where_they_agree():
    """evaluate's mean_iou sums areas over images and divides once; a class counts if it is in the union anywhere."""
    hierarchy = flat_tree(6)
    predictions, references = random_masks(hierarchy)
    references[references < 0] = 255
    intersection, predicted, labelled = np.zeros(6), np.zeros(6), np.zeros(6)
    for image, truth in zip(predictions["leaf"].numpy(), references.numpy(), strict=True):
        mask = truth != 255
        image, truth = image[mask], truth[mask]
        for total, area in ((intersection, image[image == truth]), (predicted, image), (labelled, truth)):
            total += np.histogram(area, bins=6, range=(0, 5))[0]
    scores = counted(hierarchy, predictions, references.to(torch.uint8)).compute()["levels"]["class"]
    assert scores["mean_iou"] == pytest.approx(np.nanmean(intersection / (predicted + labelled - intersection)))
    assert scores["pixel_accuracy"] == pytest.approx(intersection.sum() / labelled.sum())
    iou = multiclass_jaccard_index(predictions["leaf"], references, 6, average=None, ignore_index=255)
    assert [row["iou"] for row in scores["per_class"].values()] == pytest.approx(iou.tolist(), abs=1e-6)


# ---- by hand


def test_a_clean_pixel_has_no_coarse_class(counting):
    """Pixels: Clean as crack, crack as Clean, crack as crack, ignored, stained as rot."""
    hierarchy = damage_tree()
    clean, crack, rot, stained = (hierarchy.leaf_names().index(name) for name in ("Clean", "crack", "rot", "stained"))
    predictions = {
        "leaf": torch.tensor([[crack, clean, crack, clean, rot]]),
        # The second is Clean, whatever its coarse class; the third is a clean crack; the last is right but no path.
        "argmax": [torch.tensor([x]) for x in ([1, 0, 0, 0, 1], [0, 0, 0, 0, 2], [1, 0, 1, 0, 1])],
    }
    metric = counted(hierarchy, predictions, torch.tensor([[clean, crack, crack, -1, stained]]))
    results = metric.compute()
    assert (results["num_samples"], results["num_pixels"]) == (1, 4)
    coarse = results["levels"]["coarse"]
    assert coarse["per_class"]["broken"] == {"iou": 0.5, "precision": 1.0, "recall": 0.5, "f1": 2 / 3, "num_pixels": 2}
    assert coarse["pixel_accuracy"] == 1 / 3
    assert confusion_of(metric, 1).tolist() == [[1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]]
    # Clean and crack share nothing (3 levels), stained and rot are damaged (2 levels up from the last).
    distance = (3 + 3 + 0 + 2) / 4
    expected = {"full_path_accuracy": 0.25, "tree_inconsistency": 0.0, "hierarchical_distance": distance}
    assert_same(results["path"], expected)
    assert_same(results["argmax"], {"full_path_accuracy": 0.25, "tree_inconsistency": 0.5})


def test_absent_classes_are_nan_and_left_out_of_the_means():
    references = torch.tensor([0, 0, 1, 1, -1])
    leaf = torch.tensor([0, 2, 0, 0, 3])  # 1 is never predicted, 2 never referenced, 3 only at an ignored pixel
    scores = counted(flat_tree(5), {"leaf": leaf, "argmax": [leaf]}, references)
    for levels in (scores.compute()["levels"], scores.argmax_levels()):
        rows = levels["class"]["per_class"]
        assert_same(rows["1"], {"iou": 0.0, "precision": NAN, "recall": 0.0, "f1": 0.0, "num_pixels": 2})
        assert_same(rows["2"], {"iou": 0.0, "precision": 0.0, "recall": NAN, "f1": 0.0, "num_pixels": 0})
        for absent in "34":
            assert_same(rows[absent], {**dict.fromkeys(["iou", "precision", "recall", "f1"], NAN), "num_pixels": 0})
        assert levels["class"]["mean_iou"] == pytest.approx((1 / 4 + 0 + 0) / 3)
        assert levels["class"]["mean_f1"] == pytest.approx((2 / 5 + 0 + 0) / 3)


@pytest.mark.parametrize("images", [0, 2])
def test_nothing_labelled(images, counting):
    predictions, references = random_masks(damage_tree())
    predictions = convert(predictions, lambda labels: labels[:images])
    metric = counted(damage_tree(), predictions, torch.full_like(references[:images], -1))
    results = metric.compute()
    assert (results["num_samples"], results["num_pixels"]) == (images, 0)
    for levels in (results["levels"], metric.argmax_levels()):
        for level in levels.values():
            assert all(math.isnan(level[key]) for key in ("mean_iou", "pixel_accuracy", "mean_f1"))
            assert all(row["num_pixels"] == 0 and math.isnan(row["iou"]) for row in level["per_class"].values())
    assert all(map(math.isnan, [*results["path"].values(), *results["argmax"].values()]))


def test_perfect_masks(counting):
    for hierarchy in TREES.values():
        leaf = torch.arange(hierarchy.num_leaves)
        metric = counted(hierarchy, {"leaf": leaf, "argmax": [a.clamp(min=0) for a in hierarchy.lift(leaf)]}, leaf)
        results = metric.compute()
        assert results["path"] == {
            "full_path_accuracy": 1.0,
            "tree_inconsistency": 0.0,
            "hierarchical_distance": 0.0,
        }
        assert results["argmax"]["full_path_accuracy"] == 1.0
        for level in [*results["levels"].values(), *metric.argmax_levels().values()]:
            assert level["mean_iou"] == level["pixel_accuracy"] == level["mean_f1"] == 1.0


def test_argmax_may_be_left_out():
    predictions, references = random_masks(damage_tree())
    both, leaf_only = (counted(damage_tree(), p, references) for p in (predictions, {"leaf": predictions["leaf"]}))
    assert_same(leaf_only.compute()["levels"], both.compute()["levels"])
    assert all(map(math.isnan, leaf_only.compute()["argmax"].values()))
    leaf_only.add_batch(predictions=predictions, references=references)
    assert_same(leaf_only.compute()["argmax"], both.compute()["argmax"])
    assert_same(leaf_only.argmax_levels(), both.argmax_levels())


# ---- streaming, processes, device


def test_any_split_and_order_gives_the_same(counting):
    hierarchy = TREES["random 1"]
    predictions, references = random_masks(hierarchy, shape=(6, 40, 37))
    expected = results_of(counted(hierarchy, predictions, references))
    for sizes in ([1] * 6, [4, 0, 2], [5, 1]):
        pieces = SegmentationMetrics(hierarchy)
        for index in torch.randperm(6, generator=torch.Generator().manual_seed(0)).split(sizes):
            part = convert(predictions, lambda labels, index=index: labels[index])
            pieces.add_batch(predictions=part, references=references[index])
        assert_same(results_of(pieces), expected)
    single = SegmentationMetrics(hierarchy)
    for image in range(6):
        part = convert(predictions, lambda labels, image=image: labels[image])
        single.add(prediction=part, reference=references[image])
    assert_same(results_of(single), expected)


def test_images_are_counted_by_the_dimensions_of_the_references():
    metric = SegmentationMetrics(flat_tree(2))
    for shape, total in [((4, 2, 3), 4), ((2, 3), 5), ((7,), 6), ((), 7), ((2, 2, 2, 2), 8)]:
        metric.add_batch(predictions={"leaf": torch.zeros(shape).long()}, references=torch.zeros(shape).long())
        assert metric.compute()["num_samples"] == total
    metric.add(prediction={"leaf": torch.zeros(2, 2, 2).long()}, reference=torch.zeros(2, 2, 2).long())
    assert metric.compute()["num_samples"] == 9


def test_processes_reduce_to_the_numbers_of_one(counting):
    hierarchy = TREES["random 0"]
    predictions, references = random_masks(hierarchy)
    whole = counted(hierarchy, predictions, references)
    halves = [
        counted(hierarchy, convert(predictions, lambda labels, half=half: labels[half]), references[half])
        for half in (slice(0, 1), slice(1, 3))
    ]
    sent = [metric._counts.clone() for metric in halves]
    for metric in halves:
        calls = []
        metric.reduce(lambda tensor, calls=calls: calls.append(tensor.dtype) or sum(sent))
        assert calls == [torch.long]
        assert_same(results_of(metric), results_of(whole))


def test_compute_clears_nothing_and_a_copy_counts_for_itself():
    predictions, references = random_masks(damage_tree())
    metric = counted(damage_tree(), predictions, references)
    first, other = results_of(metric), copy.deepcopy(metric)
    assert_same(results_of(metric), first)
    with torch.inference_mode():
        twice = metric.compute(predictions=predictions, references=references)
    assert (twice["num_samples"], twice["num_pixels"]) == (6, 2 * first["num_pixels"])
    assert_same(twice["path"], first["path"])
    assert_same(results_of(other), first)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_dtypes_and_layouts_give_the_same(dtype, counting):
    hierarchy = TREES["random 0"]
    predictions, references = random_masks(hierarchy, shape=(2, 50, 41))
    expected = results_of(counted(hierarchy, predictions, references))
    narrow = torch.where(references < 0, 255 if dtype == torch.uint8 else -7, references).to(dtype)
    before = narrow.clone()
    assert_same(results_of(counted(hierarchy, convert(predictions, lambda x: x.to(dtype)), narrow)), expected)
    assert torch.equal(narrow, before)  # inputs are not written to
    assert_same(results_of(counted(hierarchy, predictions, narrow)), expected)
    strided = convert(predictions, lambda labels: labels.to(dtype).transpose(1, 2))
    assert_same(results_of(counted(hierarchy, strided, narrow.transpose(1, 2))), expected)


@pytest.mark.parametrize("num_leaves", [85, 95, 190, 255])
def test_many_leaves(num_leaves):
    """Around the sizes at which the type of the fused index changes, and up to the most that uint8 can name."""
    hierarchy = flat_tree(num_leaves)
    predictions, references = random_masks(hierarchy, shape=(1, 64, 64))
    predictions["leaf"][0, 0, :2] = references[0, 0, :2] = num_leaves - 1
    narrow = torch.where(references < 0, 255, references).to(torch.uint8)
    metric = counted(hierarchy, convert(predictions, lambda labels: labels.to(torch.uint8)), narrow)
    known = references >= 0
    expected = confusion_matrix(references[known], predictions["leaf"][known], labels=range(num_leaves))
    assert np.array_equal(confusion_of(metric, 0)[:, :-1], expected)


def test_counts_above_2_to_the_24_are_exact():
    hierarchy = flat_tree(3)
    mask = torch.zeros(2**22, dtype=torch.uint8)
    metric = SegmentationMetrics(hierarchy)
    for _ in range(5):
        metric.add_batch(predictions={"leaf": mask, "argmax": [mask]}, references=mask)
    one = torch.tensor([0])
    metric.add_batch(predictions={"leaf": one + 1, "argmax": [one + 1]}, references=one)
    assert confusion_of(metric, 0).tolist()[0] == [5 * 2**22, 1, 0, 0]
    metric.reduce(lambda tensor: tensor * 2**20)
    assert metric.compute()["num_pixels"] == (5 * 2**22 + 1) * 2**20
    per_class = metric.argmax_levels()["class"]["per_class"]
    assert per_class["0"]["num_pixels"] == (5 * 2**22 + 1) * 2**20
    assert per_class["0"]["recall"] == 5 * 2**22 / (5 * 2**22 + 1) < 1


def test_counting_never_looks_at_values(counting):
    """Tensors of the meta device have no values, so that whatever waits for them raises."""
    hierarchy = TREES["random 0"]
    predictions, references = random_masks(hierarchy)
    for dtype in (torch.long, torch.uint8):
        on_meta = convert(predictions, lambda labels, dtype=dtype: labels.to("meta", dtype))
        counted(hierarchy, on_meta, references.to("meta", dtype), device="meta")


def test_elsewhere_wrong_classes_are_set_aside_until_compute(counting):
    """What is done on devices whose values are not looked at, done on the CPU."""
    hierarchy = damage_tree()
    predictions, references = random_masks(hierarchy)
    metric = SegmentationMetrics(hierarchy)
    metric._may_look = False
    metric.add_batch(predictions=predictions, references=references)
    assert_same(results_of(metric), results_of(counted(hierarchy, predictions, references)))
    for name, value in (("leaf", 6), ("leaf", -1), ("argmax", 70_000), ("references", 6), ("references", 2**40)):
        wrong, truth = copy.deepcopy(predictions), references.clone()
        {"leaf": wrong["leaf"], "argmax": wrong["argmax"][1], "references": truth}[name][0, 0, :2] = value
        metric = SegmentationMetrics(hierarchy)
        metric._may_look = False
        metric.add_batch(predictions=wrong, references=truth)
        for read in (metric.compute, metric.argmax_levels, metric.leaf_confusion):
            with pytest.raises(ValueError, match="2 of the pixels counted"):
                read()


def test_memory_does_not_depend_on_the_number_of_images():
    metric = SegmentationMetrics(damage_tree())

    def size():
        return sum(value.nbytes for value in vars(metric).values() if isinstance(value, torch.Tensor))

    before = size()
    for seed in range(5):
        predictions, references = random_masks(damage_tree(), seed)
        metric.add_batch(predictions=predictions, references=references)
    assert size() == before < 10_000


# ---- evaluate


def test_combine():
    hierarchy = damage_tree()
    predictions, references = random_masks(hierarchy)
    expected = counted(hierarchy, predictions, references).compute()
    both = evaluate.combine({"one": SegmentationMetrics(hierarchy), "two": SegmentationMetrics(hierarchy)})
    both.add_batch(predictions=convert(predictions, lambda labels: labels[:2]), references=references[:2])
    both.add(prediction=convert(predictions, lambda labels: labels[2]), reference=references[2])
    results = both.compute()
    for prefix in ("one", "two"):
        assert_same({key: results[f"{prefix}_{key}"] for key in expected}, expected)


# ---- mistakes


def test_wrong_inputs_raise_value_error():
    hierarchy = damage_tree()
    predictions, references = random_masks(hierarchy)
    leaf, argmax = predictions["leaf"], predictions["argmax"]
    beyond = references.clone()
    beyond[0, 0, 0] = hierarchy.num_leaves
    huge = torch.full_like(references, torch.iinfo(torch.long).max)
    wrong = {
        "these must be equal": [
            (predictions, references[:2]),
            ({**predictions, "leaf": leaf[:, :2]}, references),
            ({**predictions, "argmax": [*argmax[:2], argmax[2][0]]}, references),
        ],
        r"argmax of each of the levels \['binary', 'coarse', 'fine'\]": [
            ({**predictions, "argmax": argmax[:2]}, references)
        ],
        "and of .*torch.uint8": [
            (predictions, references.float()),
            ({**predictions, "leaf": leaf.bool()}, references),
        ],
        "must be on cpu": [(predictions, references.to("meta"))],
        r"beyond the last one in the \['references'\]": [
            (predictions, beyond),
            (predictions, huge),
            (predictions, beyond.clamp(min=0).to(torch.uint8)),
            (predictions, references.to(torch.uint8)),  # -100 becomes 156
        ],
        r"in the \['leaf'\]": [
            ({**predictions, "leaf": leaf + 6}, references),
            ({**predictions, "leaf": leaf - 9}, references),
            ({**predictions, "leaf": leaf + 2**32}, references),
        ],
        r"""in the \["argmax of 'coarse'"\]""": [
            ({**predictions, "argmax": [argmax[0], argmax[1] + 3, argmax[2]]}, references)
        ],
    }
    metric = SegmentationMetrics(hierarchy)
    for message, cases in wrong.items():
        for case in cases:
            with pytest.raises(ValueError, match=message):
                metric.add_batch(predictions=case[0], references=case[1])
    assert not metric._counts.any()
    many = torch.zeros(2, 2, dtype=torch.uint8)
    with pytest.raises(ValueError, match="256 leaves do not fit into uint8"):
        counted(flat_tree(256), {"leaf": many}, many)
    for may_look in (True, False):  # a size beyond the type of the predictions
        metric = SegmentationMetrics(flat_tree(256))
        metric._may_look = may_look
        metric.add_batch(predictions={"leaf": many}, references=many.short())
        assert metric.compute()["num_pixels"] == 4


def test_confusion_of_leaves():
    tree = Hierarchy(["g", "s"], [["A", "clean"], ["x", "y"]], [[None, None], [0, 0]])  # leaves x, y, clean
    metric = SegmentationMetrics(tree)
    references, leaf = torch.tensor([[0, 0, 2, -100]]), torch.tensor([[0, 2, 2, 1]])
    metric.add_batch(predictions={"leaf": leaf}, references=references)
    assert metric.leaf_confusion().tolist() == [[1, 0, 1], [0, 0, 0], [0, 0, 1]]
