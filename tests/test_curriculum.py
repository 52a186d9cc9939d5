"""Stages of a training, what is kept while a level is idle, and the weights of levels and classes."""

import logging
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from common.data.sampling import GlobalBatchSampler
from common.losses.class_weights import class_weights
from common.losses.cross_entropy import LevelCrossEntropy
from common.model.heads import HEAD_KINDS, LevelHeads
from common.model.hierarchy import Hierarchy
from common.model.tree import IGNORE
from common.optim.schedule import (
    SCHEDULES,
    Curriculum,
    Stage,
    learning_rate_factor,
    level_weights,
    make_curriculum,
    stage_epochs,
)

LEVELS = ["binary", "coarse", "fine"]


def damage_tree():
    """Clean has no coarse group, one fine class has nothing above it, and 'stained' has no children."""
    names = [["clean", "damaged"], ["broken", "soft", "stained"], ["Clean", "crack", "hole", "rot", "other"]]
    return Hierarchy(LEVELS, names, [[None] * 2, [1, 1, 1], [(0, 0), 0, 0, 1, None]])


TREE = damage_tree()
FLAT = Hierarchy(["class"], [["a", "b"]], [[None, None]])


def options(*curriculum, schedule="span", weights=("rising",)):
    return SimpleNamespace(
        curriculum=list(curriculum) or None, curriculum_schedule=schedule, level_weights=list(weights)
    )


def sampler(num_steps, num_samples=50):
    """Ten samples a step: five steps an epoch by default."""
    return GlobalBatchSampler(num_samples, 10, 10, num_steps)


def stage_weights(given, hierarchy, normalize=True):
    return [stage.weights for stage in make_curriculum(options(*given), hierarchy, None, normalize).stages]


def bounds(curriculum):
    return [(stage.first, stage.end) for stage in curriculum.stages]


# ---- stages


def test_stages_become_steps(caplog):
    args = options("2=1,0,0", "1=leaf", "4=0.2,0.3,1")
    curriculum = make_curriculum(args, TREE, sampler(35), normalize=False)
    assert bounds(curriculum) == [(0, 10), (10, 15), (15, 35)]
    assert [stage.weights for stage in curriculum.stages] == [[1, 0, 0], [0, 0, 1], [0.2, 0.3, 1]]
    for step in range(40):
        expected = 0 if step < 10 else 1 if step < 15 else 2
        assert curriculum.stage(step) is curriculum.stages[expected]
    assert not caplog.records


def test_the_incomplete_batch_is_no_step():
    curriculum = make_curriculum(options("1=leaf", "1=equal"), TREE, sampler(10, num_samples=59))
    assert bounds(curriculum) == [(0, 5), (5, 10)]


@pytest.mark.parametrize(
    "num_steps, expected, word",
    [
        (34, [(0, 10), (10, 15), (15, 34)], "cut off"),
        (15, [(0, 10), (10, 15)], "cut off"),
        (12, [(0, 10), (10, 12)], "cut off"),
        (10, [(0, 10)], "cut off"),
        (1, [(0, 1)], "cut off"),
        (36, [(0, 10), (10, 15), (15, 36)], "prolonged in its last stage"),
        (500, [(0, 10), (10, 15), (15, 500)], "prolonged in its last stage"),
    ],
)
def test_cut_off_and_prolonged(caplog, num_steps, expected, word):
    with caplog.at_level(logging.WARNING):
        curriculum = make_curriculum(options("2=1,0,0", "1=leaf", "4=equal"), TREE, sampler(num_steps))
    assert bounds(curriculum) == expected
    (record,) = caplog.records
    assert record.getMessage() == f"The curriculum has 35 steps, the training {num_steps}: it is {word}."
    assert curriculum.stage(num_steps + 5) is curriculum.stages[-1]


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("num_steps", [1, 5, 7, 100])
def test_without_a_curriculum_there_is_one_stage(caplog, num_steps, normalize):
    curriculum = make_curriculum(options(), TREE, sampler(num_steps), normalize)
    assert bounds(curriculum) == [(0, num_steps)]
    assert curriculum.stages[0].weights == level_weights(["rising"], TREE, normalize)
    assert not caplog.records


def test_to_evaluate_only(caplog):
    curriculum = make_curriculum(options("2=1,0,0", "1=0,0,1"), TREE, None)
    assert curriculum.stages[-1].weights == [0, 0, 1] and len(curriculum.stages) == 2
    assert make_curriculum(options(), TREE, None, False).stages[-1].weights == [0.2, 0.3, 1.0]
    assert not caplog.records


def test_stages_are_normalised_one_by_one():
    args = options("1=2,0,2", "1=rising")
    assert [stage.weights for stage in make_curriculum(args, TREE, sampler(10)).stages] == [
        [0.5, 0, 0.5],
        pytest.approx([0.2 / 1.5, 0.3 / 1.5, 1 / 1.5]),
    ]
    assert stage_weights(args.curriculum, TREE, normalize=False) == [[2, 0, 2], [0.2, 0.3, 1.0]]


@pytest.mark.parametrize(
    "entry", ["20", "", "=", "=leaf", "0=leaf", "-1=leaf", "1.5=leaf", "two=leaf", "1e2=leaf", "+2=leaf", "20:1,0,0"]
)
def test_words_that_are_no_stage(entry):
    with pytest.raises(ValueError, match="--curriculum takes EPOCHS=WEIGHT,WEIGHT,... a stage") as caught:
        stage_epochs(["3=leaf", entry])
    assert str(caught.value).endswith(f"got {entry}")


def test_words_with_spaces():
    assert stage_epochs([" 20 = 1, 0, 0 ", "7=leaf"]) == [20, 7]
    assert stage_weights([" 20 = 1, 0 ,0 ", "7= leaf"], TREE) == [[1, 0, 0], [0, 0, 1]]
    assert stage_epochs([]) == []


@pytest.mark.parametrize(
    "weights, message",
    [
        ("1,0", "--curriculum has 2 numbers for 3 levels"),
        ("1,0,0,0", "--curriculum has 4 numbers for 3 levels"),
        ("", "--curriculum takes numbers or one of"),
        ("1,0,", "--curriculum takes numbers or one of"),
        ("1,0,0=2", "--curriculum takes numbers or one of"),
        ("leaves", "--curriculum takes numbers or one of leaf, equal, leaf_heavy, rising"),
        ("leaf,leaf,leaf", "--curriculum takes numbers or one of"),
        ("0,0,0", "--curriculum must be at least 0, finite and not all 0"),
        ("1,-1,1", "--curriculum must be at least 0, finite and not all 0"),
        ("1,inf,1", "--curriculum must be at least 0, finite and not all 0"),
        ("1,nan,1", "--curriculum must be at least 0, finite and not all 0"),
        ("nan,1,1", "--curriculum must be at least 0, finite and not all 0"),
    ],
)
@pytest.mark.parametrize("normalize", [True, False])
def test_weights_that_do_not_fit(weights, message, normalize):
    with pytest.raises(ValueError, match=message):
        make_curriculum(options("1=leaf", f"2={weights}"), TREE, sampler(15), normalize)


# ---- the learning rate


def two_stages(scope):
    return Curriculum([Stage(0, 40, [1, 0, 0]), Stage(40, 100, [0, 0, 1])], scope)


@pytest.mark.parametrize("warmup_ratio", [0.0, 0.05, 0.126, 1.0])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_learning_rate(schedule, warmup_ratio):
    span, restart = two_stages("span"), two_stages("restart")
    for step in range(100):
        whole = learning_rate_factor(schedule, step, 100, round(warmup_ratio * 100))
        assert span.learning_rate_factor(schedule, step, warmup_ratio) == whole
        first, length = (0, 40) if step < 40 else (40, 60)
        part = learning_rate_factor(schedule, step - first, length, round(warmup_ratio * length))
        assert restart.learning_rate_factor(schedule, step, warmup_ratio) == part


def test_restarts_go_down_and_up_again():
    factors = [two_stages("restart").learning_rate_factor("cosine", step, 0) for step in range(100)]
    assert factors[0] == factors[40] == 1.0 and factors[39] < 0.01 and factors[99] < 0.01
    assert [two_stages("span").learning_rate_factor("cosine", step, 0) for step in (0, 40)] == [
        1.0,
        pytest.approx(0.5 * (1 + math.cos(0.4 * math.pi))),
    ]


@pytest.mark.parametrize("scope", ["span", "restart"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_one_stage_is_a_plain_training(schedule, scope):
    curriculum = make_curriculum(options(schedule=scope), TREE, sampler(37))
    for step in range(37):
        expected = learning_rate_factor(schedule, step, 37, round(0.1 * 37))
        assert curriculum.learning_rate_factor(schedule, step, 0.1) == expected


@pytest.mark.parametrize("scope", ["span", "restart"])
def test_prolonged_stages_have_their_course_prolonged(scope):
    curriculum = make_curriculum(options("1=leaf", "1=equal", schedule=scope), TREE, sampler(25))
    assert curriculum.learning_rate_factor("linear", 24, 0) == pytest.approx(1 / 25 if scope == "span" else 1 / 20)


# ---- words


def test_describe():
    restart, span = two_stages("restart"), two_stages("span")
    assert restart.describe(restart.stages[0], LEVELS) == (
        "stage 1 of 2: binary 1, coarse 0, fine 0 (learning rate restarts)"
    )
    assert (
        span.describe(span.stages[1], LEVELS) == "stage 2 of 2: binary 0, coarse 0, fine 1 (learning rate continues)"
    )
    plain = make_curriculum(options(weights=["1", "1", "1"]), TREE, sampler(10))
    assert plain.describe(plain.stages[0], LEVELS) == "binary 0.333, coarse 0.333, fine 0.333"


def test_equal_stages_are_told_apart():
    curriculum = Curriculum([Stage(0, 5, [1.0]), Stage(5, 10, [1.0])])
    assert curriculum.describe(curriculum.stages[1], ["class"]).startswith("stage 2 of 2")


# ---- weights of levels


@pytest.mark.parametrize(
    "given, expected",
    [
        (["leaf"], [0, 0, 1]),
        (None, [0, 0, 1]),
        (["equal"], [1 / 3] * 3),
        (["leaf_heavy"], [0.25, 0.25, 0.5]),
        (["rising"], [0.2, 0.3, 1.0]),
        (["3", "0", "0.25"], [3, 0, 0.25]),
    ],
)
def test_level_weights(given, expected):
    assert level_weights(given, TREE, normalize=False) == expected
    assert level_weights(given, TREE) == pytest.approx([weight / sum(expected) for weight in expected])
    assert sum(level_weights(given, TREE)) == pytest.approx(1)


@pytest.mark.parametrize(
    "num_levels, expected",
    [(1, [1.0]), (2, [0.2, 1.0]), (4, [0.2, 0.25, 0.3, 1]), (5, [0.2, 0.7 / 3, 0.8 / 3, 0.3, 1])],
)
def test_rising_in_other_trees(num_levels, expected):
    tree = Hierarchy([f"l{i}" for i in range(num_levels)], [["a"]] * num_levels, [[None]] + [[0]] * (num_levels - 1))
    assert level_weights(["rising"], tree, normalize=False) == pytest.approx(expected)


def test_presets_in_a_flat_tree():
    for preset in ("leaf", "equal", "leaf_heavy", "rising"):
        assert level_weights([preset], FLAT) == [1.0]


# ---- weights of classes


@pytest.mark.parametrize("counts", [[900, 90, 9, 1], [10**12, 10**6, 3], [5, 5], [7], [2, 0, 1, 0]])
def test_inverse_sqrt_log_scaled(counts):
    """log(1 + sqrt(1 / f)) as in HeritageArt's POC-5.9, but with mean 1 over the samples; unseen classes get 1."""
    weights = class_weights(torch.tensor(counts), "inverse_sqrt_log_scaled", max_ratio=1e9)
    raw = [math.log(1 + math.sqrt(sum(counts) / count)) if count else None for count in counts]
    mean = sum(count * value for count, value in zip(counts, raw, strict=True) if count) / sum(counts)
    assert weights.dtype == torch.float32
    assert weights.tolist() == pytest.approx([1.0 if value is None else value / mean for value in raw], rel=1e-6)
    assert (weights * torch.tensor(counts)).sum().item() / sum(counts) == pytest.approx(1, rel=1e-6)


def test_the_largest_weight_is_capped():
    counts = torch.tensor([10**9, 10**5, 10, 1, 0])
    free = class_weights(counts, "inverse_sqrt_log_scaled", max_ratio=1e9)
    assert free[3] / free[0] > 12
    capped = class_weights(counts, "inverse_sqrt_log_scaled", max_ratio=9.0)
    assert (capped[:4].max() / capped[:4].min()).item() == pytest.approx(9)
    assert capped[2] == capped[3] and capped[4] == 1
    assert (capped[1] / capped[0]).item() == pytest.approx((free[1] / free[0]).item(), rel=1e-5)  # under the cap
    assert (capped.double() * counts).sum().item() / counts.sum().item() == pytest.approx(1, rel=1e-6)


# ---- counts of upper levels


@pytest.mark.parametrize("seed", range(5))
def test_count_lifted(seed):
    leaf_counts = torch.randint(0, 10**10, (TREE.num_leaves,), generator=torch.Generator().manual_seed(seed))
    expected = [[0] * n for n in TREE.num_classes]
    for (level, index), count in zip(TREE.leaves, leaf_counts.tolist(), strict=True):
        for depth, label in enumerate(TREE.path(level, index)):
            if label != IGNORE:
                expected[depth][label] += count
    counts = TREE.count_lifted(leaf_counts)
    assert all(column.dtype == torch.int64 for column in counts)
    assert [column.tolist() for column in counts] == expected


def test_count_lifted_is_counting_lifted_labels():
    labels = torch.randint(TREE.num_leaves, (500,), generator=torch.Generator().manual_seed(0))
    counts = TREE.count_lifted(torch.bincount(labels, minlength=TREE.num_leaves))
    for column, lifted, n in zip(counts, TREE.lift(labels), TREE.num_classes, strict=True):
        assert torch.equal(column, torch.bincount(lifted[lifted >= 0], minlength=n))


# ---- what an idle level keeps


def rows_of(heads, level):
    first = sum(TREE.num_classes[:level])
    return slice(first, first + TREE.num_classes[level])


def trained(kind, stages, keep=True):
    """Heads and their copies after each stage: AdamW with weight decay on everything, as large as it gets."""
    torch.manual_seed(0)
    heads = LevelHeads(TREE, 6, kind)
    torch.nn.init.normal_(heads.bias)
    optimizer = torch.optim.AdamW(heads.parameters(), lr=0.05, weight_decay=0.5)
    loss_fn = LevelCrossEntropy(heads, [1, 1, 1])
    generator = torch.Generator().manual_seed(1)
    states = [(heads.weight.detach().clone(), heads.bias.detach().clone())]
    for weights in stages:
        loss_fn.weights = weights
        for _ in range(4):
            features = torch.randn(20, 6, generator=generator)
            leaves = torch.randint(TREE.num_leaves, (20,), generator=generator)
            loss_fn(heads(features), torch.stack(TREE.lift(leaves), 1)).backward()
            if keep:
                with heads.untrained_kept(weights):
                    optimizer.step()
            else:
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        states.append((heads.weight.detach().clone(), heads.bias.detach().clone()))
    return heads, states


@pytest.mark.parametrize("weights", [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.5, 0.0, 0.5], [0.0, 1.0, 0.0]])
def test_idle_levels_stay_as_they_are(weights):
    heads, (before, after) = trained("independent", [weights])
    _, (_, plain) = trained("independent", [weights], keep=False)
    for level, weight in enumerate(weights):
        rows = rows_of(heads, level)
        for start, kept, moved in zip(before, after, plain, strict=True):
            if weight:
                assert torch.equal(kept[rows], moved[rows]) and not torch.equal(kept[rows], start[rows])
            else:
                assert torch.equal(kept[rows], start[rows])
        assert not torch.equal(plain[0][rows], before[0][rows])  # weight decay would have changed them all


def test_momentum_of_an_earlier_stage_does_not_move_what_is_idle():
    heads, states = trained("independent", [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.2, 0.3, 1.0]])
    first, second, third = (rows_of(heads, level) for level in range(3))
    for part in range(2):
        start, one, two, three = (state[part] for state in states)
        assert torch.equal(two[first], one[first]) and not torch.equal(one[first], start[first])
        assert torch.equal(one[second], start[second]) and not torch.equal(two[second], one[second])
        assert torch.equal(two[third], start[third])
        assert all(not torch.equal(three[rows], two[rows]) for rows in (first, second, third))


@pytest.mark.parametrize(
    "kind, weights", [*((kind, [0.2, 0.3, 1.0]) for kind in HEAD_KINDS), ("tree", [0.0, 0.0, 1.0])]
)
def test_no_effect_where_everything_is_trained(kind, weights):
    """Of a tree every row takes part in the leaves' scores."""
    _, (_, kept) = trained(kind, [weights])
    _, (_, plain) = trained(kind, [weights], keep=False)
    assert all(torch.equal(*pair) for pair in zip(kept, plain, strict=True))


def test_gradients_and_graph_are_left_alone():
    heads = LevelHeads(TREE, 6, "independent")
    F.mse_loss(heads(torch.ones(2, 6)), torch.zeros(2, 10)).backward()
    gradient = heads.weight.grad.clone()
    with heads.untrained_kept([0.0, 0.0, 1.0]), torch.no_grad():
        heads.weight += 1
    assert torch.equal(heads.weight.grad, gradient) and heads.weight.requires_grad
    assert heads.weight.is_leaf and heads.bias.is_leaf
