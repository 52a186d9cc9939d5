"""Samples of scores against F.interpolate and Python loops, and windows against the whole image at once."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from common.images.mask_transforms import Geometry, MaskEvaluationTransform
from common.predict.windows import Resampler, dense_labels, image_logits, warn_of_scale, window_starts


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def resample(scores, resized, size, output_stride=4):
    return Resampler(resized, size, output_stride, "cpu").rows(scores, 0, size[0])


def sliding_logits(model, pixels, size, stride, batch_size):
    """Of an image (3, height, width) that is prepared already."""

    def dense(windows, logits_only):
        return model(windows)

    options = {"eval_crop": size, "eval_stride": stride, "batch_size": batch_size}
    return image_logits(dense, pixels[None], lambda part: part, **options)


# ---- from scores to pixels


@pytest.mark.parametrize("grid", [(1, 1), (7, 5), (16, 16), (3, 40)])
def test_four_times_is_interpolate(grid):
    scores = noise(3, *grid)
    size = grid[0] * 4, grid[1] * 4
    expected = F.interpolate(scores[None], scale_factor=4, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(resample(scores, size, size), expected)


@pytest.mark.parametrize("size", [(61, 33), (5, 7), (28, 20), (1, 1), (100, 3)])
def test_whole_cells_to_any_size_is_interpolate(size):
    scores = noise(3, 7, 5)
    expected = F.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(resample(scores, (28, 20), size), expected)


@pytest.mark.parametrize("output_stride", [1, 2, 8])
def test_other_strides(output_stride):
    scores = noise(2, 6, 4)
    expected = F.interpolate(scores[None], size=(37, 50), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(
        resample(scores, (6 * output_stride, 4 * output_stride), (37, 50), output_stride), expected
    )


def one_by_one(scores, resized, size, output_stride):
    """Bilinear by definition: the centre of each pixel wanted, in cells of the scores, all in Python."""
    values = scores.double().tolist()

    def taps(index, shown, wanted, cells):
        position = (index + 0.5) * shown / wanted / output_stride - 0.5
        position = min(max(position, 0.0), cells - 1.0)
        low = min(math.floor(position), cells - 1)
        return low, min(low + 1, cells - 1), position - low

    result = torch.zeros((len(values), *size), dtype=torch.float64)
    for row in range(size[0]):
        top, bottom, down = taps(row, resized[0], size[0], scores.shape[1])
        for column in range(size[1]):
            left, right, across = taps(column, resized[1], size[1], scores.shape[2])
            for channel, plane in enumerate(values):
                above = plane[top][left] * (1 - across) + plane[top][right] * across
                below = plane[bottom][left] * (1 - across) + plane[bottom][right] * across
                result[channel, row, column] = above * (1 - down) + below * down
    return result


def test_odd_sizes_and_padding():
    for grid, resized, size in [
        ((8, 8), (32, 32), (50, 80)),  # squashed
        ((8, 8), (20, 32), (50, 80)),  # fit, padded below
        ((8, 8), (32, 21), (33, 22)),  # no whole number of cells
        ((8, 8), (32, 1), (200, 3)),  # a sliver
        ((8, 8), (1, 1), (4, 4)),
        ((8, 8), (31, 29), (7, 5)),  # the original is smaller than what the model was shown
        ((10, 9), (39, 33), (39, 33)),  # windows at the image's own size
        ((1, 1), (3, 2), (5, 4)),
        ((7, 7), (30, 30), (41, 17)),  # a model that rounds down: no cell for the last pixels
    ]:
        scores = noise(2, *grid)
        expected = one_by_one(scores, resized, size, 4)
        torch.testing.assert_close(resample(scores, resized, size).double(), expected, rtol=1e-5, atol=1e-5)


def test_many_sizes():
    rng = np.random.default_rng(0)
    for seed in range(60):
        resized = rng.integers(1, 30, 2).tolist()
        grid = [-(-side // 4) + int(extra) for side, extra in zip(resized, rng.integers(0, 3, 2), strict=True)]
        size = rng.integers(1, 20, 2).tolist()
        scores = noise(1, *grid, seed=seed)
        expected = one_by_one(scores, resized, size, 4)
        torch.testing.assert_close(resample(scores, resized, size).double(), expected, rtol=1e-5, atol=1e-5)


def test_far_padding_does_not_matter():
    """Cells that lie a whole cell beyond the image never count."""
    scores = noise(2, 8, 8)
    other = scores.clone()
    other[:, 6:], other[:, :, 7:] = 1e6, -1e6
    assert torch.equal(resample(scores, (20, 23), (50, 57)), resample(other, (20, 23), (50, 57)))


@pytest.mark.parametrize("step", [1, 2, 7, 50, 51])
def test_rows_in_strips(step):
    scores = noise(3, 8, 6)
    resampler = Resampler((30, 24), (51, 40), 4, "cpu")
    whole = resampler.rows(scores, 0, 51)
    strips = [resampler.rows(scores, first, min(first + step, 51)) for first in range(0, 51, step)]
    assert torch.equal(torch.cat(strips, 1), whole)


# ---- labels


def argmax(parts):
    return [part.argmax(1) for part in parts]


@pytest.mark.parametrize("max_elements", [1, 100, 41 * 9, 41 * 9 * 2 + 5, 5000, 2**24])
def test_labels_do_not_depend_on_memory(max_elements):
    scores = [noise(5, 8, 8), noise(4, 8, 8, seed=1)]
    resampler = Resampler((30, 32), (53, 41), 4, "cpu")
    held = []

    def label(parts):
        held.append(sum(part.numel() for part in parts))
        assert all(part.shape[0] == 1 and part.shape[2:] == parts[0].shape[2:] for part in parts)
        return argmax(parts)

    labels = dense_labels(resampler, scores, label, max_elements)
    for given, result in zip(scores, labels, strict=True):
        expected = resample(given, (30, 32), (53, 41)).argmax(0)
        assert result.shape == (53, 41) and result.dtype == torch.uint8
        assert torch.equal(result.long(), expected)
    assert max(held) <= max(max_elements, 41 * 9)  # a row at least
    assert sum(held) == 53 * 41 * 9


@pytest.mark.parametrize("channels, dtype", [(255, torch.uint8), (256, torch.int16), (300, torch.int16)])
def test_labels_have_room_for_every_class(channels, dtype):
    scores = torch.zeros(channels, 2, 2)
    scores[channels - 1] = 1
    (labels,) = dense_labels(Resampler((8, 8), (9, 9), 4, "cpu"), [scores], argmax)
    assert labels.dtype == dtype and (labels == channels - 1).all()


def test_labels_from_several_scores_at_once():
    scores = [noise(3, 4, 4), noise(3, 4, 4, seed=1)]
    (labels,) = dense_labels(Resampler((16, 16), (20, 20), 4, "cpu"), scores, lambda parts: [sum(parts).argmax(1)], 99)
    assert torch.equal(labels.long(), resample(sum(scores), (16, 16), (20, 20)).argmax(0))


# ---- windows


def test_windows_cover_everything():
    for size in (4, 8, 20):
        for stride in range(1, size + 1):
            for length in range(1, 70):
                starts = window_starts(length, size, stride)
                covered = set().union(*(range(start, start + size) for start in starts))
                assert covered >= set(range(length))
                assert starts == sorted(set(starts)) and starts[0] == 0
                assert starts[-1] + size == max(length, size)
                assert all(second - first <= stride for first, second in zip(starts, starts[1:], strict=False))
                assert len(starts) == 1 + max(0, math.ceil((length - size) / stride))  # none too many


def local(pixels):
    """A model that looks at nothing outside of its cell."""
    mean = F.avg_pool2d(pixels, 4)
    return torch.cat([mean, mean[:, :1] * mean[:, 1:2] + 3], 1)


def whole(pixels, model=local):
    padded = F.pad(pixels, (0, -pixels.shape[2] % 4, 0, -pixels.shape[1] % 4))
    return model(padded[None])


SIZES = [(32, 32), (33, 32), (61, 75), (64, 40), (35, 130), (100, 99)]


def test_local_models_do_not_notice():
    for stride in [4, 12, 20, 32]:
        for size in SIZES:
            pixels = noise(3, *size)
            scores = sliding_logits(local, pixels, 32, stride, 3)
            assert scores.shape == (1, 4, -(-size[0] // 4), -(-size[1] // 4)) and scores.dtype == torch.float32
            torch.testing.assert_close(scores, whole(pixels), rtol=1e-5, atol=1e-5)


def test_constant_scores_stay_constant():
    for size in SIZES:
        scores = sliding_logits(lambda windows: torch.full((len(windows), 2, 8, 8), 7.0), noise(3, *size), 32, 12, 4)
        torch.testing.assert_close(scores, torch.full_like(scores, 7.0))


def by_position(windows):
    """Scores that differ from window to window at the same place: blending shows."""
    return F.avg_pool2d(windows, 4) - windows.mean((2, 3), keepdim=True)


def test_batch_size_does_not_matter():
    pixels = noise(3, 61, 75)
    expected = sliding_logits(by_position, pixels, 32, 20, 1)
    sizes = []

    def model(windows):
        sizes.append(len(windows))
        return by_position(windows)

    for batch_size in (2, 5, 12, 100):
        sizes.clear()
        torch.testing.assert_close(sliding_logits(model, pixels, 32, 20, batch_size), expected)
        assert max(sizes) <= batch_size and sum(sizes) == 3 * 4


def test_blending_by_hand():
    """Two windows side by side that overlap by half: the middle of a window counts most, its border least."""
    pixels = torch.cat([torch.zeros(3, 16, 8), torch.ones(3, 16, 16)], 2)

    def model(windows):  # 0 for the left window, 1 for the right one
        return windows[:, :1, :1, :1].expand(-1, -1, 4, 4)

    scores = sliding_logits(model, pixels, 16, 8, 8)
    weights = [1, 2, 2, 1]
    overlap = [weights[i] / (weights[i] + weights[i + 2]) for i in range(2)]
    torch.testing.assert_close(scores[0, 0], torch.tensor([0, 0, *overlap, 1, 1]).expand(4, -1))


def test_low_precision_is_blended_in_float32():
    pixels = noise(3, 61, 75)
    scores = sliding_logits(lambda windows: local(windows).bfloat16(), pixels, 32, 12, 2)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, whole(pixels).bfloat16().float(), rtol=1e-5, atol=1e-5)


def test_nothing_is_kept_for_gradients():
    weight = torch.ones(1, requires_grad=True)
    assert not sliding_logits(lambda windows: local(windows) * weight, noise(3, 40, 40), 32, 20, 2).requires_grad


@pytest.mark.parametrize("stride", [2, 30])
def test_strides_that_do_not_fit(stride):
    with pytest.raises(AssertionError):
        sliding_logits(local, noise(3, 40, 40), 32, stride, 2)


@pytest.mark.parametrize("size", [(9, 40), (40, 9), (1, 1), (31, 30), (5, 100)])
def test_images_smaller_than_a_window(size):
    """Evaluation pads them; the padding does not come back."""
    image = torch.randint(256, (3, *size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    mask = torch.zeros(size, dtype=torch.uint8)
    sample = MaskEvaluationTransform(Geometry(32, windows=True), (0.5, 0.5, 0.5))(image, mask)
    seen = []

    def model(windows):
        seen.append(windows.shape[2:])
        return local(windows)

    pixels = sample["pixels"].float()
    scores = sliding_logits(model, pixels, 32, 20, 2)
    assert set(seen) == {(32, 32)}
    torch.testing.assert_close(scores, whole(pixels))
    (labels,) = dense_labels(Resampler(sample["resized"], size, 4, "cpu"), [scores[0]], argmax)
    assert labels.shape == size
    assert torch.equal(labels.long(), resample(scores[0], size, size).argmax(0))


def test_a_mask_survives_the_way_through_windows():
    """Squares in the image come out where they were, whatever the size: nothing is shifted."""
    for height, width in ((70, 90), (67, 93), (33, 65)):
        truth = torch.zeros((height, width), dtype=torch.uint8)
        truth[8:24, 20:40] = 1
        truth[-9:, -25:] = 1
        image = (truth * 200).expand(3, -1, -1)
        sample = MaskEvaluationTransform(Geometry(32, windows=True), (0.0, 0.0, 0.0))(image, truth)

        def model(windows):
            mean = F.avg_pool2d(windows[:, :1], 4)
            return torch.cat([100 - mean, mean - 100], 1)

        scores = sliding_logits(model, sample["pixels"].float(), 32, 20, 4)
        (labels,) = dense_labels(Resampler(sample["resized"], truth.shape, 4, "cpu"), [scores[0]], argmax)
        wrong = labels != truth
        assert not wrong[9:23, 21:39].any() and wrong.float().mean() < 0.03
        centres = [part[:30, :50].nonzero().float().mean(0) for part in (truth, labels)]
        torch.testing.assert_close(*centres, rtol=0, atol=0.05)


def test_blending_is_seamless():
    """On a smooth image, windows that disagree as a whole leave no edge: neighbours differ by little anywhere."""
    ramp = torch.linspace(0, 1, 1000).expand(3, 700, 1000)
    offsets = iter(torch.rand(100, generator=torch.Generator().manual_seed(0)))

    def model(windows):
        return torch.stack([F.avg_pool2d(window[:1], 4) + next(offsets) for window in windows])

    scores = sliding_logits(model, ramp, 256, 168, 2)[0, 0]
    for axis in (0, 1):
        assert scores.diff(dim=axis).abs().max() < 0.06  # the windows differ by up to 1
    assert scores.diff(dim=1).mean() * 249 > 0.3


def test_windows_for_models_trained_on_squashed_images(caplog):
    for evaluation, crop in (
        ({"resize_mode": "fit"}, 64),
        ({"resize_mode": "squash", "eval_crop": 64}, 32),
        ({}, None),
    ):
        warn_of_scale(evaluation, crop)
    assert not caplog.records
    warn_of_scale({"resize_mode": "squash", "eval_crop": None}, 64)
    assert "Train with --eval_crop" in caplog.text
