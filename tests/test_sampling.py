"""The order of samples: golden orders, and the same global batches however they are divided."""

import random
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import counted_randomness

from common.data.sampling import GlobalBatchSampler, epoch_order, evaluation_batches, sample_weights, seed_step

# (num_samples, global_batch_size): with and without an incomplete batch at the end of an epoch
SIZES = [(24, 8), (31, 8), (8, 8), (45, 16)]
DIVISIONS = [(1, 8), (1, 2), (2, 4), (2, 2), (4, 1), (8, 1)]


def make_sampler(size=(31, 8), micro=8, num_processes=1, process=0, num_steps=11, seed=3):
    return GlobalBatchSampler(*size, micro, num_steps, seed, process, num_processes)


def global_batches(size, micro, num_processes, state=None, **options):
    """What all processes compute, as one list of keys per optimizer step."""
    streams = []
    for process in range(num_processes):
        sampler = make_sampler(size, micro, num_processes, process, **options)
        if state:
            sampler.load_state_dict(state)
        batches = list(sampler)
        assert len(batches) == len(sampler) and all(len(batch) == micro for batch in batches)
        per_step = sampler.accumulation_steps
        streams.append(
            [sum(batches[start : start + per_step], []) for start in range(0, len(batches), per_step)],
        )
    return [sum(parts, []) for parts in zip(*streams, strict=True)]


# ---- the order


def test_orders_are_the_same_for_ever():
    """Golden: another order would break the resumption of runs that an older version began."""
    assert epoch_order(10, seed=0, epoch=0).tolist() == [0, 7, 8, 6, 9, 5, 1, 3, 2, 4]
    assert epoch_order(12, seed=7, epoch=3).tolist() == [4, 10, 9, 8, 7, 3, 11, 5, 0, 6, 1, 2]


@pytest.mark.parametrize("num_samples", [1, 2, 1000])
def test_epochs_are_different_permutations(num_samples):
    orders = [epoch_order(num_samples, seed, epoch) for seed in (0, 1) for epoch in range(3)]
    for order in orders:
        assert order.dtype == np.int64 and sorted(order.tolist()) == list(range(num_samples))
    if num_samples == 1000:
        assert len({tuple(order) for order in orders}) == len(orders)


def test_one_process_goes_through_the_permutations():
    for size in SIZES:
        num_samples, batch = size
        steps = num_samples // batch
        expected = [
            [
                (epoch, index)
                for index in epoch_order(num_samples, 3, epoch)[start * batch : (start + 1) * batch].tolist()
            ]
            for epoch in range(4)
            for start in range(steps)
        ]
        assert global_batches(size, batch, 1, num_steps=4 * steps) == expected


@pytest.mark.parametrize("num_processes, micro", DIVISIONS)
def test_processes_together_compute_the_global_batches_in_order(num_processes, micro):
    for size in SIZES:
        assert global_batches(size, micro, num_processes) == global_batches(size, size[1], 1)


def test_a_process_computes_a_contiguous_part():
    (whole,) = global_batches((45, 16), 16, 1, num_steps=1)
    batches = list(make_sampler((45, 16), micro=2, num_processes=2, process=1, num_steps=1))
    assert batches == [whole[start : start + 2] for start in range(8, 16, 2)]


def test_each_sample_at_most_once_in_an_epoch():
    for size in SIZES:
        counts = Counter(key for batch in global_batches(size, 2, 2, num_steps=13) for key in batch)
        assert set(counts.values()) == {1}
        assert sum(epoch == 0 for epoch, _ in counts) == size[0] // size[1] * size[1]


def test_other_samples_are_left_out_in_other_epochs():
    batches = global_batches((31, 8), 8, 1, num_steps=30)
    left_out = [set(range(31)) - {i for batch in batches for e, i in batch if e == epoch} for epoch in range(10)]
    assert {len(out) for out in left_out} == {7} and len(set(map(frozenset, left_out))) > 5


@pytest.mark.parametrize("num_processes, micro", DIVISIONS)
def test_resuming_anywhere_with_any_division_goes_on_with_the_same_stream(num_processes, micro):
    for size in SIZES:
        whole = global_batches(size, size[1], 1)
        position = make_sampler(size)
        for step in range(12):
            assert position.global_step == step
            rest = global_batches(size, micro, num_processes, dict(position.state_dict()))
            assert rest == whole[step:]
            position.advance()


def test_position_is_in_global_numbers():
    sampler = make_sampler((31, 8), micro=1, num_processes=4, process=2)
    states = []
    for _ in range(4):
        states.append((*sampler.state_dict().values(), sampler.global_step))
        sampler.advance()
    assert states == [(0, 0, 0), (0, 8, 1), (0, 16, 2), (1, 0, 3)]
    assert sampler.steps_per_epoch == 3 and sampler.accumulation_steps == 2


def test_length_in_epochs_or_steps():
    assert GlobalBatchSampler(31, 8, 4, num_epochs=4).num_steps == 12
    assert len(GlobalBatchSampler(31, 8, 4, num_epochs=4)) == 24
    assert GlobalBatchSampler(31, 8, 4, num_steps=5, num_epochs=4).num_steps == 5


def test_iterating_does_not_move_the_position():
    """Batches that a loader has prefetched are not done yet."""
    sampler = make_sampler()
    first, again = list(sampler), list(sampler)
    assert first == again and sampler.state_dict() == {"epoch": 0, "samples_seen": 0}


def test_nothing_is_left_after_the_last_step():
    sampler = make_sampler(num_steps=2)
    for _ in range(4):  # also if a run is resumed with fewer steps than it has done
        sampler.advance()
    assert list(sampler) == [] and len(sampler) == 0


@pytest.mark.parametrize(
    "size, micro, processes, message",
    [
        ((100, 10), 4, 1, "--global_batch_size 10 is not a multiple of --per_device_train_batch_size 4 x 1 proc"),
        ((100, 8), 4, 3, "8 is not a multiple of .* 4 x 3 processes"),
        ((7, 8), 8, 1, "7 training samples, fewer than one global batch of 8.*lower --global_batch_size"),
    ],
)
def test_sizes_that_do_not_fit(size, micro, processes, message):
    with pytest.raises(ValueError, match=message):
        make_sampler(size, micro, processes)


# ---- evaluation


@pytest.mark.parametrize("num_processes", [1, 2, 3, 8])
def test_evaluation_covers_every_sample_once_in_order(num_processes):
    for num_samples in [0, 1, 2, 5, 17, 64]:
        for batch_size in [1, 4, 100]:
            parts = [evaluation_batches(num_samples, batch_size, part, num_processes) for part in range(num_processes)]
            batches = sum(parts, [])
            assert sum(batches, []) == [(0, index) for index in range(num_samples)]
            assert all(0 < len(batch) <= batch_size for batch in batches)
            shares = [sum(map(len, part)) for part in parts]
            assert max(shares) - min(shares) <= 1


# ---- randomness


def draws():
    return random.random(), np.random.rand(), torch.rand(()).item()


def states():
    numpy_state = np.random.get_state()
    return random.getstate(), numpy_state[1].tolist(), numpy_state[2:], torch.get_rng_state().tolist()


def draws_at(*position):
    with counted_randomness(*position):
        return draws()


def test_counted_draws_depend_on_the_position_alone():
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    first = draws_at(5, 1, 20)
    draws()
    assert draws_at(5, 1, 20) == first
    others = [draws_at(*position) for position in [(5, 1, 21), (5, 2, 20), (6, 1, 20), (5, 20, 1), (1, 5, 20)]]
    for library in range(3):
        assert len({values[library] for values in [first, *others]}) == 6


def test_counted_draws_are_the_same_for_ever():
    assert draws_at(0, 0, 0) == pytest.approx((0.953365316, 0.410056127, 0.951654613))


@pytest.mark.parametrize("fail", [False, True])
def test_counted_randomness_leaves_no_trace(fail):
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    random.gauss(0, 1), np.random.randn()  # both keep a second normal number for the next call
    before = states()
    try:
        with counted_randomness(0, 0, 0):
            draws(), np.random.randn(), random.gauss(0, 1)
            with counted_randomness(0, 0, 1):
                draws()
            if fail:
                raise KeyError
    except KeyError:
        pass
    assert states() == before


def test_nested_positions_do_not_disturb_each_other():
    with counted_randomness(0, 0, 0):
        alone = draws(), draws()
    with counted_randomness(0, 0, 0):
        first = draws()
        draws_at(0, 0, 1)
        assert (first, draws()) == alone


def test_seed_step():
    def drawn(*position):
        seed_step(*position)
        return torch.rand(4).tolist()

    positions = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    values = [drawn(*position) for position in positions]
    assert [drawn(*position) for position in positions] == values
    assert len({tuple(value) for value in values}) == 5


# ---- rare classes more often


@pytest.mark.parametrize("sampling", ["sqrt", "balanced", "repeat_factor"])
def test_classes_are_drawn_as_often_as_asked(sampling):
    sizes = np.array([1000, 100, 10, 1])
    classes = np.repeat(np.arange(4), sizes)
    weights = sample_weights(classes, sampling, threshold=0.1)
    per_class = {
        "sqrt": np.sqrt(sizes),
        "balanced": np.ones(4),
        "repeat_factor": sizes * np.maximum(1, np.sqrt(0.1 / (sizes / sizes.sum()))),
    }[sampling]
    expected = per_class / per_class.sum() * sizes.sum()
    for epoch in range(3):
        order = epoch_order(len(classes), 3, epoch, weights)
        counts = np.bincount(order, minlength=len(classes))
        share = weights / weights.sum() * len(classes)
        assert ((counts == np.floor(share)) | (counts == np.ceil(share)) | (np.abs(counts - share) < 1)).all()
        assert np.abs(np.bincount(classes[order], minlength=4) - expected).max() < 1.5


def test_weighted_order_is_a_function_of_seed_and_epoch():
    weights = np.linspace(1, 3, 50)
    first = epoch_order(50, 1, 2, weights)
    assert (first == epoch_order(50, 1, 2, weights)).all()
    assert not (first == epoch_order(50, 1, 3, weights)).all() and not (first == epoch_order(50, 2, 2, weights)).all()
    assert sample_weights(np.zeros(3), "natural") is None
    equal = epoch_order(50, 1, 2, np.ones(50))
    assert sorted(equal) == list(range(50))
    sampler = GlobalBatchSampler(50, 10, 5, num_epochs=2, weights=weights)
    keys = [key for batch in sampler for key in batch]
    sampler.load_state_dict({"epoch": 1, "samples_seen": 20})
    assert [key for batch in sampler for key in batch] == keys[70:]
