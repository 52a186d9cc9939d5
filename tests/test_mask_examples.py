"""Which segmented images are kept to be looked at."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from common.model.hierarchy import Hierarchy
from common.report import mask_pictures as mask_report
from common.report.mask_pictures import ExampleKeeper, choose_examples, draw_plots, found_share, keep_for_plots

TREE = Hierarchy(["a/b", "fine"], [["clean", "damage"], ["c", "x", "y"]], [[None, None], [0, 1, 1]])


def masks(num_images: int, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Truth and prediction of images of various sizes; some pixels are ignored, and the first image wholly."""
    rng = np.random.default_rng(seed)
    found = []
    for index in range(num_images):
        size = tuple(rng.integers(20, 60, 2))
        truth = rng.integers(0, 3, size)
        predicted = np.where(rng.random(size) < rng.random(), truth, rng.integers(0, 3, size))
        truth[:, :2] = 255
        truth[:] = 255 if index == 0 else truth
        found.append((torch.from_numpy(truth).to(torch.uint8), torch.from_numpy(predicted)))
    return found


def kept(images) -> dict:
    keeper = ExampleKeeper(np.arange(len(images)), np.tile([5, 1, 0], (len(images), 1)), num_examples=2, num_worst=3)
    for row, (truth, leaf) in enumerate(images):
        keeper.add(row, torch.full((3, 24, 24), row, dtype=torch.uint8), (20, 24), truth, leaf)
    return keeper.gather(Accelerator(cpu=True))


@pytest.mark.parametrize("at_once", [1, 4, 100])
def test_the_worst_are_those_with_the_least_found(at_once, monkeypatch):
    monkeypatch.setattr(mask_report, "AT_ONCE", at_once)
    images = masks(11)
    shares = {}
    for row, (truth, leaf) in enumerate(images[1:], 1):
        classes = [label for label in range(3) if (truth == label).any()]
        shares[row] = np.mean([(leaf == truth)[truth == label].double().mean() for label in classes])
    expected = sorted(shares, key=shares.get)[:3]
    found = kept(images)["worst"]
    assert [example.name for example in found] == [f"row {row}: {shares[row]:.0%} found" for row in expected]
    for row, example in zip(expected, found, strict=True):
        assert (example.image == row).all() and example.image.shape[:2] == tuple(images[row][0].shape)
        assert np.array_equal(example.truth, images[row][0]) and np.array_equal(example.prediction, images[row][1])


def test_large_masks_are_kept_small():
    truth = torch.zeros(900, 450, dtype=torch.uint8)
    found = kept([(truth, truth.long())])
    assert found["examples"][0].truth.shape == found["worst"][0].image.shape[:2] == (384, 192)
    assert found["worst"][0].name == "row 0: 100% found"


def test_found_share():
    truth = np.array([[0, 0, 0, 0, 1, 255]], dtype=np.uint8)
    assert found_share(truth, np.array([[0, 0, 0, 1, 0, 1]], dtype=np.uint8)) == pytest.approx((3 / 4 + 0) / 2)
    assert found_share(truth, truth) == 1
    assert math.isnan(found_share(np.full((2, 2), 255, dtype=np.uint8), np.zeros((2, 2), dtype=np.uint8)))


def test_chosen_examples_cover_the_classes():
    pixels = np.array([[9, 0, 0, 0], [5, 1, 0, 0], [5, 0, 2, 2], [5, 1, 1, 0]])
    assert choose_examples(np.array([10, 11, 12, 13]), pixels, 2) == [12, 13]


def test_plots_are_drawn_from_what_was_kept(tmp_path):
    levels = {name: {"mean_iou": 0.5, "per_class": {"c": {"iou": 0.5, "num_pixels": 3}}} for name in TREE.levels}
    keep_for_plots(tmp_path, {"levels": levels}, kept(masks(5)))
    (tmp_path / "plots").mkdir()
    draw_plots(tmp_path, tmp_path / "plots", TREE)
    expected = {f"{kind}_{level}.png" for kind in ("examples", "worst") for level in ("a_b", "fine")}
    assert {file.name for file in (tmp_path / "plots").iterdir()} == expected | {"iou.png"}
    assert {file.name for file in tmp_path.iterdir()} == {"plots", "plots.npz"}
