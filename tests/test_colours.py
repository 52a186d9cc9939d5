"""Colours of classes, which a person has to tell apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.labels.hierarchy_files import load_hierarchy
from common.model.hierarchy import Hierarchy
from common.report.colours import leaf_colours, level_colours


@pytest.fixture(scope="module")
def artefact() -> Hierarchy:
    return load_hierarchy(Path(__file__).parent.parent / "hierarchies" / "artefact.yaml")[0]


def wide_tree(num_groups: int, num_leaves: int) -> Hierarchy:
    names = [[f"group {index}" for index in range(num_groups)], [f"species {index}" for index in range(num_leaves)]]
    return Hierarchy(["group", "leaf"], names, [[None] * num_groups, [i % num_groups for i in range(num_leaves)]])


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
    assert [len(level_colours(artefact, level)) for level in range(3)] == [2, 4, 16]
    assert np.array_equal(level_colours(artefact, 2), leaf_colours(artefact))
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
    assert np.array_equal(leaf_colours(flat), level_colours(flat, 0))
