"""Which segmented images are shown, and what is right and wrong in them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from common.labels.hierarchy_files import load_hierarchy
from common.model.hierarchy import Hierarchy
from common.report import mask_examples as module
from common.report.colours import leaf_colours
from common.report.mask_examples import (
    DIM,
    RIGHT,
    WRONG,
    ExampleKeeper,
    MaskExample,
    choose_for_classes,
    draw_examples,
    draw_plots,
    error_colours,
    keep_for_plots,
    mean_recall,
    overlay_colours,
)

TREE = Hierarchy(["a/b", "fine"], [["clean", "damage"], ["c", "x", "y"]], [[None, None], [0, 1, 1]])


def masks(num_images: int, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Truth and prediction of images of various sizes; some pixels are ignored, and the first image completely."""
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
    pixels = np.tile([5, 1, 0], (len(images), 1))
    keeper = ExampleKeeper(np.arange(len(images)), pixels, "folder/{}.png".format, num_examples=2, num_worst=3)
    for row, (truth, leaf) in enumerate(images):
        keeper.add(row, torch.full((3, 24, 24), row, dtype=torch.uint8), (20, 24), truth, leaf)
    return keeper.gather(Accelerator(cpu=True))


@pytest.mark.parametrize("at_once", [1, 4, 100])
def test_the_worst_are_those_with_the_lowest_recall(at_once, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", at_once)
    images = masks(11)
    shares = {}
    for row, (truth, leaf) in enumerate(images[1:], 1):
        classes = [label for label in range(3) if (truth == label).any()]
        shares[row] = np.mean([(leaf == truth)[truth == label].double().mean() for label in classes])
    expected = sorted(shares, key=shares.get)[:3]
    found = kept(images)["worst"]
    assert [example.name for example in found] == [f"{shares[row]:.0%} of {row}.png" for row in expected]
    for row, example in zip(expected, found, strict=True):
        assert (example.image == row).all() and example.image.shape[:2] == tuple(images[row][0].shape)
        assert np.array_equal(example.truth, images[row][0]) and np.array_equal(example.prediction, images[row][1])


def test_large_masks_are_kept_small():
    truth = torch.zeros(900, 450, dtype=torch.uint8)
    found = kept([(truth, truth.long())])
    assert found["examples"][0].truth.shape == found["worst"][0].image.shape[:2] == (384, 192)
    assert found["worst"][0].name == "100% of 0.png"


def test_mean_recall():
    truth = np.array([[0, 0, 0, 0, 1, 255]], dtype=np.uint8)
    assert mean_recall(truth, np.array([[0, 0, 0, 1, 0, 1]], dtype=np.uint8)) == pytest.approx((3 / 4 + 0) / 2)
    assert mean_recall(truth, truth) == 1
    assert math.isnan(mean_recall(np.full((2, 2), 255, dtype=np.uint8), np.zeros((2, 2), dtype=np.uint8)))


def test_chosen_examples_cover_the_classes():
    pixels = np.array([[9, 0, 0, 0], [5, 1, 0, 0], [5, 0, 2, 2], [5, 1, 1, 0]])
    assert choose_for_classes(np.array([10, 11, 12, 13]), pixels, 2) == [12, 13]


def test_plots_are_drawn_from_what_was_kept(tmp_path):
    levels = {name: {"mean_iou": 0.5, "per_class": {"c": {"iou": 0.5, "num_pixels": 3}}} for name in TREE.levels}
    keep_for_plots(tmp_path, {"levels": levels}, kept(masks(5)))
    (tmp_path / "plots").mkdir()
    draw_plots(tmp_path, tmp_path / "plots", TREE)
    expected = {f"{kind}_{level}.png" for kind in ("examples", "worst") for level in ("a_b", "fine")}
    assert {file.name for file in (tmp_path / "plots").iterdir()} == expected | {"iou.png"}
    assert {file.name for file in tmp_path.iterdir()} == {"plots", "plots.npz"}


# ---- drawing

CLEAN, PEEL, DUST, CRACKS = 0, 2, 3, 9
FINE = 2


@pytest.fixture(scope="module")
def artefact() -> Hierarchy:
    return load_hierarchy(Path(__file__).parent.parent / "hierarchies" / "artefact.yaml")[0]


def size_of(path: Path) -> tuple[int, int]:
    """Of a figure that is complete, and alone in its folder."""
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        assert len(np.unique(np.asarray(image))) > 3
        return image.size


def white_example(truth: list[int], prediction: list[int]) -> MaskExample:
    """A white picture of one row, in which colours are not darkened."""
    pixels = np.full((1, len(truth), 3), 255, np.uint8)
    return MaskExample(pixels, np.array([truth]), np.array([prediction]), "white")


def random_example(hierarchy: Hierarchy, shape: tuple[int, int], seed: int) -> MaskExample:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (*shape, 3)).astype(np.uint8)
    truth, prediction = rng.integers(0, hierarchy.num_leaves, (2, *shape)).astype(np.uint8)
    truth[:5] = 255
    return MaskExample(image, truth, prediction, f"picture $ {seed} _^{{ with a long name")


def test_overlay_has_the_colour_of_the_class(artefact):
    colours = leaf_colours(artefact)
    labels = np.array([[CLEAN, PEEL, -100, DUST]])
    example = white_example([CLEAN, PEEL, CLEAN, 255], [0, 0, 0, 0])
    painted = overlay_colours(example, labels, colours)[0]
    assert painted.dtype == np.uint8
    assert np.abs(painted[:3].astype(int) - [colours[CLEAN], colours[PEEL], DIM]).max() <= 1
    assert painted[3].max() <= 48
    dark = MaskExample(example.image // 4, example.truth, example.prediction, "dark")
    assert (overlay_colours(dark, labels, colours)[0, 1] < painted[1]).any()  # the picture is seen below


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (0, [DIM, RIGHT, WRONG, RIGHT, RIGHT, WRONG]),
        (1, [DIM, RIGHT, WRONG, RIGHT, WRONG, DIM]),
        (2, [DIM, RIGHT, WRONG, WRONG, WRONG, WRONG]),
    ],
)
def test_wrong_is_red_and_right_is_green(artefact, level, expected):
    truth = [CLEAN, PEEL, PEEL, PEEL, PEEL, CLEAN, 255, -100]
    prediction = [CLEAN, PEEL, CLEAN, CRACKS, DUST, DUST, PEEL, PEEL]
    painted = error_colours(artefact, level, white_example(truth, prediction))[0]
    assert np.abs(painted[:6].astype(int) - expected).max() <= 1
    assert painted[6:].max() <= 48


def test_examples(artefact, tmp_path):
    path = tmp_path / "examples.png"
    shapes = [(64, 64), (40, 90), (300, 60)]
    examples = [random_example(artefact, shape, seed) for seed, shape in enumerate(shapes)]
    draw_examples(path, artefact, FINE, examples)
    three = size_of(path)
    draw_examples(path, artefact, 1, examples[:1])  # replaces
    one = size_of(path)
    assert one[0] == three[0] and 700 < one[0] < 1200
    assert one[1] + 300 < three[1] < 1200


def test_legend_has_what_is_shown(artefact, tmp_path):
    def has(colour: np.ndarray) -> bool:
        pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)[-60:]
        return bool((np.abs(pixels - colour.astype(int)).max(2) <= 1).any())

    path, colours = tmp_path / "examples.png", leaf_colours(artefact)
    zeros = np.zeros((32, 32), int)
    draw_examples(path, artefact, FINE, [MaskExample(np.zeros((32, 32, 3), np.uint8), zeros + PEEL, zeros + DUST, "")])
    assert has(colours[PEEL]) and has(colours[DUST]) and not has(colours[CRACKS])


def test_example_without_a_label(artefact, tmp_path):
    example = random_example(artefact, (30, 30), 0)
    for value in (255, CLEAN):  # Clean has no value at this level
        example.truth[:] = value
        draw_examples(tmp_path / "examples.png", artefact, 1, [example])
        assert size_of(tmp_path / "examples.png")[1] > 250


def test_examples_of_many_classes(tmp_path):
    names = [[f"group {index}" for index in range(12)], [f"species {index}" for index in range(120)]]
    tree = Hierarchy(["group", "leaf"], names, [[None] * 12, [index % 12 for index in range(120)]])
    draw_examples(tmp_path / "examples.png", tree, 1, [random_example(tree, (50, 50), 0)])
    assert size_of(tmp_path / "examples.png")[1] > 500


def test_eight_examples_are_less_than_a_megabyte(artefact, tmp_path):
    rows, columns = np.indices((384, 384))
    examples = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        waves = 120 + 60 * np.sin(rows / (9 + seed)) * np.sin(columns / 13)
        image = np.clip(waves[..., None] * (1, 0.8, 0.6) + rng.normal(0, 4, (384, 384, 3)), 0, 255).astype(np.uint8)
        truth, prediction = (rows // 40 + columns // 40) % 16, (rows // 40 + (columns + 5) // 40) % 16
        examples.append(MaskExample(image, truth, prediction, str(seed)))
    draw_examples(tmp_path / "examples.png", artefact, FINE, examples)
    assert (tmp_path / "examples.png").stat().st_size < 1_000_000
