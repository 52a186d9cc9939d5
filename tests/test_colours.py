"""Pictures that are whole PNG files, show what is right and wrong, and cope with what is absent."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.labels.hierarchy_files import load_hierarchy
from common.model.hierarchy import Hierarchy
from common.report.plots import (
    DIM,
    RIGHT,
    WRONG,
    Example,
    draw_class_bars,
    draw_confusion,
    draw_examples,
    draw_history,
    error_colours,
    leaf_colours,
    level_colours,
    overlay_colours,
)

CLEAN, PEEL, DUST, CRACKS = 0, 2, 3, 9


@pytest.fixture(scope="module")
def artefact() -> Hierarchy:
    return load_hierarchy(Path(__file__).parent.parent / "hierarchies" / "artefact.yaml")[0]


def size_of(path: Path) -> tuple[int, int]:
    """Of a picture that is all there, and alone in its folder."""
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        assert len(np.unique(np.asarray(image))) > 3
        return image.size


def white_example(truth: list[int], prediction: list[int]) -> Example:
    """A white picture of one row, in which colours are not darkened."""
    pixels = np.full((1, len(truth), 3), 255, np.uint8)
    return Example(pixels, np.array([truth]), np.array([prediction]), "white")


def random_example(hierarchy: Hierarchy, shape: tuple[int, int], seed: int) -> Example:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (*shape, 3)).astype(np.uint8)
    truth, prediction = rng.integers(0, hierarchy.num_leaves, (2, *shape)).astype(np.uint8)
    truth[:5] = 255
    return Example(image, truth, prediction, f"picture $ {seed} _^{{ with a long name")


def wide_tree(num_groups: int, num_leaves: int) -> Hierarchy:
    names = [[f"group {index}" for index in range(num_groups)], [f"species {index}" for index in range(num_leaves)]]
    return Hierarchy(["group", "leaf"], names, [[None] * num_groups, [i % num_groups for i in range(num_leaves)]])


# ---- colours


def distances(colours: np.ndarray) -> np.ndarray:
    difference = np.linalg.norm(colours[:, None].astype(float) - colours, axis=2)
    return difference[np.triu_indices(len(colours), 1)]


def test_colours_of_leaves_are_told_apart(artefact):
    colours = leaf_colours(artefact)
    assert colours.dtype == np.uint8 and colours.shape == (16, 3)
    assert distances(colours).min() > 50
    assert np.linalg.norm(colours.astype(float), axis=1).min() > 100  # black is for ignored pixels
    assert np.array_equal(colours, leaf_colours(artefact))


def test_leaves_without_a_group_are_light_grey(artefact):
    clean, *damage = leaf_colours(artefact).astype(int)
    assert np.ptp(clean) <= 1 and clean.min() > 190
    assert min(np.ptp(colour) for colour in damage) > 50


def test_groups_share_hues(artefact):
    def hue(colour: np.ndarray) -> float:
        return Image.fromarray(colour.reshape(1, 1, 3)).convert("HSV").getpixel((0, 0))[0] / 256

    groups, hues = artefact.ancestors[1:, 1].numpy(), np.array([hue(colour) for colour in leaf_colours(artefact)[1:]])
    for index, group in enumerate(groups):
        apart = np.abs((hues - hues[index] + 0.5) % 1 - 0.5)
        assert apart[groups == group].max() < 0.4
    spread = [np.abs(np.exp(2j * np.pi * hues[groups == group]).mean()) for group in range(4)]
    assert min(spread) > 0.5 > np.abs(np.exp(2j * np.pi * hues).mean())


def test_colours_of_every_level(artefact):
    assert [len(level_colours(artefact, level)) for level in artefact.levels] == [2, 4, 16]
    assert np.array_equal(level_colours(artefact, "fine"), level_colours(artefact, 2))
    assert np.array_equal(level_colours(artefact, -1), leaf_colours(artefact))
    clean, damage = level_colours(artefact, 0).astype(int)
    assert np.ptp(clean) <= 1 and np.ptp(damage) > 100
    assert distances(level_colours(artefact, 1)).min() > 80


@pytest.mark.parametrize(("num_groups", "num_leaves"), [(1, 1), (1, 30), (12, 120), (60, 120), (120, 120)])
def test_colours_of_other_trees(num_groups, num_leaves):
    tree = wide_tree(num_groups, num_leaves)
    assert distances(leaf_colours(tree)).min(initial=255) > 5
    assert distances(level_colours(tree, 0)).min(initial=255) > 5


def test_colours_of_one_level():
    flat = Hierarchy(["class"], [["a", "b", "c"]], [[None] * 3])
    assert distances(leaf_colours(flat)).min() > 100
    assert np.array_equal(leaf_colours(flat), level_colours(flat, "class"))


# ---- examples


def test_overlay_has_the_colour_of_the_class(artefact):
    colours = leaf_colours(artefact)
    labels = np.array([[CLEAN, PEEL, -100, DUST]])
    example = white_example([CLEAN, PEEL, CLEAN, 255], [0, 0, 0, 0])
    painted = overlay_colours(example, labels, colours)[0]
    assert painted.dtype == np.uint8
    assert np.abs(painted[:3].astype(int) - [colours[CLEAN], colours[PEEL], DIM]).max() <= 1
    assert painted[3].max() <= 48
    dark = Example(example.image // 4, example.truth, example.prediction, "dark")
    assert (overlay_colours(dark, labels, colours)[0, 1] < painted[1]).any()  # the picture is seen below


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("binary", [DIM, RIGHT, WRONG, RIGHT, RIGHT, WRONG]),
        ("coarse", [DIM, RIGHT, WRONG, RIGHT, WRONG, DIM]),
        ("fine", [DIM, RIGHT, WRONG, WRONG, WRONG, WRONG]),
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
    draw_examples(path, artefact, "fine", examples)
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
    draw_examples(path, artefact, "fine", [Example(np.zeros((32, 32, 3), np.uint8), zeros + PEEL, zeros + DUST, "")])
    assert has(colours[PEEL]) and has(colours[DUST]) and not has(colours[CRACKS])


def test_example_without_a_label(artefact, tmp_path):
    example = random_example(artefact, (30, 30), 0)
    for value in (255, CLEAN):  # Clean has no value at this level
        example.truth[:] = value
        draw_examples(tmp_path / "examples.png", artefact, "coarse", [example])
        assert size_of(tmp_path / "examples.png")[1] > 250


def test_examples_of_many_classes(tmp_path):
    tree = wide_tree(12, 120)
    draw_examples(tmp_path / "examples.png", tree, "leaf", [random_example(tree, (50, 50), 0)])
    assert size_of(tmp_path / "examples.png")[1] > 500


def test_eight_examples_are_less_than_a_megabyte(artefact, tmp_path):
    rows, columns = np.indices((384, 384))
    examples = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        waves = 120 + 60 * np.sin(rows / (9 + seed)) * np.sin(columns / 13)
        image = np.clip(waves[..., None] * (1, 0.8, 0.6) + rng.normal(0, 4, (384, 384, 3)), 0, 255).astype(np.uint8)
        truth, prediction = (rows // 40 + columns // 40) % 16, (rows // 40 + (columns + 5) // 40) % 16
        examples.append(Example(image, truth, prediction, str(seed)))
    draw_examples(tmp_path / "examples.png", artefact, "fine", examples)
    assert (tmp_path / "examples.png").stat().st_size < 1_000_000


# ---- numbers


@pytest.mark.parametrize(("num_classes", "smallest"), [(1, 150), (2, 250), (16, 700), (120, 1500)])
def test_confusion(tmp_path, num_classes, smallest):
    path = tmp_path / "confusion.png"
    names = [f"class $ {index}" for index in range(num_classes)]
    matrix = np.random.default_rng(0).integers(0, 10**6, (num_classes, num_classes + 1))
    matrix[-1] = 0  # absent
    draw_confusion(path, names, matrix, "a title")
    width, height = size_of(path)
    assert smallest < width < 2000 and smallest < height < 2000
    assert path.stat().st_size < 1_000_000


def test_confusion_has_a_column_for_no_value_if_there_is_any(tmp_path):
    path, matrix = tmp_path / "confusion.png", np.array([[3, 1, 0], [0, 2, 0]])
    draw_confusion(path, ["a", "b"], matrix, "")
    narrow = size_of(path)
    matrix[1, 2] = 1
    draw_confusion(path, ["a", "b"], matrix, "")
    assert size_of(path)[0] > narrow[0] + 50


def scores(ious: list[float | None]) -> dict:
    """Of one level; the class without an IoU is absent."""
    rows = [{"iou": iou, "num_pixels": 0 if iou is None or math.isnan(iou) else 1000} for iou in ious]
    return {"mean_iou": 0.5, "per_class": {f"class {index}": row for index, row in enumerate(rows)}}


def test_class_bars(tmp_path):
    path = tmp_path / "bars.png"
    draw_class_bars(path, {"binary": scores([1.0, 0.0]), "fine": scores([0.3, math.nan, None, 0.7])})
    assert 500 < size_of(path)[0] < 1200 and 200 < size_of(path)[1] < 600
    draw_class_bars(path, {"fine": scores([0.5] * 40)})
    assert 900 < size_of(path)[1] < 1500
    draw_class_bars(path, {"fine": {"mean_iou": math.nan, "per_class": scores([None])["per_class"]}})
    assert size_of(path)[1] < 200


def test_history(tmp_path):
    path = tmp_path / "history.png"
    history = [{"global_step": step, "train/loss": 1 / step, "train/learning_rate": 1e-4} for step in range(1, 100)]
    for step in (50, 99, 50):  # resumed from step 50
        measures = {f"eval/levels.{level}.mean_iou": step / 100 for level in ("binary", "fine")}
        history.append(
            {"global_step": step, "eval/loss": None, "eval/levels.fine.per_class.a.mean_iou": 3, **measures}
        )
    draw_history(path, history, "mean_iou")
    assert size_of(path) == (1210, 341)
    draw_history(path, [], "mean_iou")
    assert size_of(path) == (1210, 341)
