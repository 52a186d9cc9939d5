"""Answers at the level that a model can be sure of."""

import numpy as np
import pytest
import torch

from common.labels.encoding import UNKNOWN, find_labels
from common.metrics.calibration import is_right
from common.model.answers import answer_levels, answer_text, path_probabilities
from common.model.hierarchy import Hierarchy
from common.model.tree import IGNORE

TREE = Hierarchy(
    ["family", "genus", "species"],
    [["Amanitaceae", "Boletaceae"], ["Amanita", "Boletus"], ["Amanita muscaria", "edulis", "Sine genere"]],
    [[None, None], [0, 1], [0, 1, [0, 1]]],
)
X = IGNORE


def test_path_probabilities():
    log_probs = [torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.5, 0.125, 0.375]]).log()]
    assert path_probabilities(log_probs, [torch.tensor([1]), torch.tensor([2])]).tolist() == [[0.25, 0.375]]
    assert path_probabilities(log_probs, [torch.tensor([X]), torch.tensor([0])]).tolist() == [[0, 0.5]]


def test_answer_is_the_finest_level_that_reaches_its_threshold():
    chances = torch.tensor(
        [[0.9, 0.8, 0.7], [0.9, 0.8, 0.6], [0.9, 0.5, 0.1], [0.5, 0.4, 0.1], [0.2, 0.9, 0.3]], dtype=torch.float64
    )
    path = torch.zeros((5, 3), dtype=torch.long)
    assert answer_levels(chances, path, [0.9, 0.8, 0.7]).tolist() == [2, 1, 0, -1, 1]
    assert answer_levels(chances, path, [0.9, None, 0.7]).tolist() == [2, 0, 0, -1, -1]
    assert answer_levels(chances, path, [None] * 3).tolist() == [-1] * 5
    path[0, 2] = X  # a path that ends at the genus
    assert answer_levels(chances, path, [0.0] * 3).tolist() == [1, 2, 2, 2, 2]


def test_what_labels_can_judge():
    path = np.array([[0, 0, 0]] * 6)
    labels = np.array([[0, 0, 0], [0, 0, X], [0, 1, X], [X, X, X], [0, UNKNOWN, UNKNOWN], [1, X, 2]])
    judged, right = is_right(path, labels)
    assert judged.tolist() == [[1, 1, 1], [1, 1, 0], [1, 1, 0], [0, 0, 0], [1, 1, 1], [1, 1, 1]]
    assert right.tolist() == [[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0]]
    # Named, but not in the tree, and nothing said about the genus: it may be the one predicted.
    assert is_right(path[:1], np.array([[0, X, UNKNOWN]]))[0].tolist() == [[True, False, True]]
    # The path ends early: nothing is answered there, so there is nothing to judge.
    assert is_right(np.array([[0, 0, X]]), np.array([[0, 0, 0]]))[0].tolist() == [[True, True, False]]


def test_labels_that_the_tree_lacks():
    rows = [
        ("Amanitaceae", "Amanita", "amanita  MUSCARIA"),
        (None, None, "edulis"),
        ("Amanitaceae", "Amanita", "Amanita nova"),
        ("Russulaceae", "Russula", None),
        ("Boletaceae", "Amanita", "Amanita muscaria"),  # contradicts the tree
        (None, None, None),
    ]
    columns = [[row[level] and " ".join(row[level].split()) for row in rows] for level in range(3)]
    assert find_labels(TREE, columns).tolist() == [
        [0, 0, 0],
        [1, 1, 1],
        [0, 0, UNKNOWN],
        [UNKNOWN, UNKNOWN, X],
        [1, UNKNOWN, UNKNOWN],
        [X, X, X],
    ]


@pytest.mark.parametrize(
    ("path", "level", "text"),
    [
        ((0, 0, 0), 2, "Amanita muscaria"),
        ((1, 1, 1), 2, "Boletus edulis"),
        ((0, X, 2), 2, "Sine genere"),
        ((0, 0, 0), 1, "Amanita sp."),
        ((0, 0, X), 0, "family Amanitaceae"),
        ((0, 0, 0), -1, "not identified"),
    ],
)
def test_answers_as_people_write_them(path, level, text):
    assert answer_text(TREE, path, level) == text


def test_answers_in_other_trees():
    tree = Hierarchy(["binary", "fine"], [["damage"], ["crack"]], [[None], [0]])
    assert [answer_text(tree, (0, 0), level) for level in (0, 1)] == ["binary damage", "crack"]
