"""Decisions of least expected cost: against loops over all answers, in evaluation and in predict.py."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest
import torch
from test_predict import command, evaluate, model, photos, read, train  # noqa: F401
from test_segmentation_metrics import random_tree

import predict
import train_taxonomy
from common.labels.hierarchy_files import read_costs
from common.metrics.answer_costs import cost_results, fungiclef_tracks
from common.metrics.prediction_table import PredictionTable
from common.model.costs import cheapest, cost_matrix, group_leaves
from common.model.hierarchy import Hierarchy
from common.model.tree import IGNORE

TREE = Hierarchy(
    ["family", "genus", "species"],
    [["A", "B"], ["a", "b", "lone"], ["a1", "a2", "a3", "b1"]],
    [[None, None], [0, 1, 1], [0, 0, 0, 1]],
)  # the leaves are a1, a2, a3, b1 and lone
SETTINGS = {
    "groups": {"edible": ["a", "lone"], "poisonous": ["a3", "b"]},
    "confused": {"poisonous": {"edible": 100}, "edible": {"poisonous": 2}},
    "coarse": 0.25,
}
OF_LEAVES = ["edible", "edible", "poisonous", "poisonous", "edible"]


def cost_of(tree, answer, leaf, of_leaves, settings):
    """Written out: ``answer`` is a node or None."""
    if answer is None:
        return settings.get("unknown", 0.5)
    level, label = answer
    below = [index for index in range(tree.num_leaves) if tree.ancestors[index, level] == label]
    left_out = 0 if answer in tree.leaves else tree.num_levels - 1 - level
    cost = settings.get("coarse", 0.1) * left_out if leaf in below else settings.get("wrong", 1.0)
    groups = {of_leaves[index] for index in below}
    if len(groups) == 1:
        cost += settings.get("confused", {}).get(of_leaves[leaf], {}).get(groups.pop(), 0)
    return cost


def answers(tree):
    return [(level, label) for level, size in enumerate(tree.num_classes) for label in range(size)] + [None]


def decided(tree, leaf, level):
    return None if level < 0 else (level, int(tree.ancestors[leaf, level]))


@pytest.mark.parametrize(("tree", "of_leaves", "settings"), [
    (TREE, OF_LEAVES, SETTINGS),
    (TREE, [None] * 5, {"wrong": 2, "unknown": 0.9}),
    (random_tree(0), [None] * random_tree(0).num_leaves, {"coarse": 0.05, "unknown": 3.0}),
])  # fmt: skip
def test_decisions_are_those_of_loops_over_all_answers(tree, of_leaves, settings):
    matrix = cost_matrix(tree, **settings)
    expected = [
        [cost_of(tree, answer, leaf, of_leaves, settings) for leaf in range(tree.num_leaves)]
        for answer in answers(tree)
    ]
    assert torch.allclose(matrix, torch.tensor(expected))
    chances = (4 * torch.randn(60, tree.num_leaves, generator=torch.Generator().manual_seed(0))).softmax(1)
    found = list(zip(*map(torch.Tensor.tolist, cheapest(tree, matrix, chances)), strict=True))
    for row, (leaf, level) in zip(chances.tolist(), found, strict=True):
        by_answer = [np.dot(row, costs) for costs in expected]
        answer = decided(tree, leaf, level)
        assert by_answer[answers(tree).index(answer)] == pytest.approx(min(by_answer), abs=1e-5)
        below = [i for i in range(tree.num_leaves) if answer is None or tree.ancestors[i, level] == answer[1]]
        assert leaf == max(below, key=row.__getitem__)
    assert len({decided(tree, *each) for each in found}) > 3


def test_finer_classes_decide_on_groups():
    members = group_leaves(TREE, SETTINGS["groups"])
    assert {group: leaves.tolist() for group, leaves in members.items()} == {
        group: [of == group for of in OF_LEAVES] for group in ("edible", "poisonous")
    }
    poison = torch.tensor([[0.0, 0.95, 0.05, 0.0, 0.0]])  # a2, or perhaps a3, which is poisonous
    assert decided(TREE, *map(int, cheapest(TREE, cost_matrix(TREE), poison))) == (2, 1)
    assert decided(TREE, *map(int, cheapest(TREE, cost_matrix(TREE, **SETTINGS), poison))) == (1, 0)
    sure = torch.tensor([[0.0, 1.0, 0.0, 0.0, 0.0]])
    assert decided(TREE, *map(int, cheapest(TREE, cost_matrix(TREE, **SETTINGS), sure))) == (2, 1)


def test_files(tmp_path):
    file = tmp_path / "costs.yaml"
    for text, message in [
        ("wrong: much", "could not convert"),
        ("price: 1", "unexpected keyword argument 'price'"),
        ("groups: {edible: [a4]}", "a4: the label tree has no such class at any level. Did you mean a"),
        ("confused: {edible: {poisonous: 1}}", "poisonous"),
        ("- 1", "mapping"),
    ]:
        file.write_text(text)
        with pytest.raises(ValueError, match=f"Costs .*costs.yaml: .*{message}"):
            read_costs(file, TREE)
    file.write_text(json.dumps(SETTINGS))
    assert read_costs(file, TREE) == SETTINGS


def test_tracks_of_fungiclef():
    """By hand: leaves 0 and 1 are edible, 2 and 3 poisonous, -1 is unknown."""
    pairs = [(0, 0), (0, 1), (2, 0), (2, 3), (1, 3), (2, -1), (0, -1), (-1, 0), (-1, 2), (-1, -1)]
    truth, answer = np.array(pairs).T
    tracks = fungiclef_tracks(answer, truth, np.array([False, False, True, True]))
    assert tracks["track_1"] == pytest.approx(8 / 10)
    assert tracks["track_2"] == pytest.approx((100 + 1 + 100 + 1) / 10)
    assert tracks["track_3"] == pytest.approx(tracks["track_1"] + tracks["track_2"])
    assert tracks["track_4"] == pytest.approx((4 + 2 * 0.1 + 2 * 10) / 10)


def test_costs_of_an_evaluation():
    table = PredictionTable(TREE)
    label = [[0, 0, 0], [0, 0, 1], [0, 0, IGNORE], [1, 1, 3], [0, 0, 2]]
    table.columns = {"leaf": np.array([0, 0, 0, 1, 1]), "level": np.array([2, 1, 2, -1, 2]), "label": np.array(label)}
    results = cost_results(table, SETTINGS)
    assert results["mean_cost"] == pytest.approx((0 + 0.25 + 0.5 + 101) / 4) and results["not_answered"] == 0.2
    assert results["track_2"] == pytest.approx(200 / 4)  # b1, poisonous, without an answer, and a3 as a2
    table.columns = {name: column[:0] for name, column in table.columns.items()}
    assert np.isnan(cost_results(table, {})["mean_cost"])


def test_evaluation_and_prediction_agree(fruit, photos, model, command, tmp_path):  # noqa: F811
    """Recomputed from the probabilities that predict.py writes."""
    file = tmp_path / "costs.yaml"
    tree = train_taxonomy.LabelTreeForImageClassification.read_hierarchy(model)
    file.write_text(json.dumps({"groups": {"poisonous": [tree.names[2][0]]}, "coarse": 0.15, "unknown": 0.55}))
    words = {"dataset_name": fruit, "eval_only": True, "decoding": "cost", "costs": file, "no_report": True}
    words |= {"model_name_or_path": model, "output_dir": tmp_path / "evaluated", "dataloader_num_workers": 0}
    results = train_taxonomy.main([f"--{name}={value}" for name, value in words.items()])["eval"]
    summary = predict.main(command(photos / "table.csv", image_column="file", costs=file, top_k=tree.num_leaves))
    table = read(tmp_path / "out")
    matrix = cost_matrix(tree, **read_costs(file, tree)).numpy()
    names, places = tree.leaf_names(), answers(tree)
    total = []
    for _, row in table.iterrows():
        chances = np.zeros(tree.num_leaves)
        for place in itertools.count(1):
            if f"top{place}" not in row:
                break
            chances[names.index(row[f"top{place}"])] = row[f"top{place}_probability"]
        best = (matrix @ chances).argmin()
        level = None if places[best] is None else tree.levels[places[best][0]]
        assert row["answer_level"] == level or (level is None and pd.isna(row["answer_level"]))
        if level:
            assert row[level] == tree.display_names(places[best][0])[places[best][1]]
        total.append(best)
    labels = pd.read_csv(photos / "table.csv")[tree.levels[-1]]
    known = [(best, names.index(label)) for best, label in zip(total, labels, strict=True) if isinstance(label, str)]
    assert results["costs"]["mean_cost"] == pytest.approx(np.mean([matrix[pair] for pair in known]), abs=1e-6)
    assert results["costs"].keys() >= {"not_answered", "track_4"} and len(set(total)) > 2
    assert summary["predictions"]["answers"]["all"]["num_answered"] == sum(places[best] is not None for best in total)


def test_only_what_is_allowed_is_predicted(photos, model, command, tmp_path):  # noqa: F811
    """The others' probabilities go to the rest in proportion, and levels still agree."""
    tree = train_taxonomy.LabelTreeForImageClassification.read_hierarchy(model)
    family = tree.names[1][0]
    kept = [
        tree.names[2][-1],
        *(name for name, above in zip(tree.names[2], tree.parents[2], strict=True) if above == (1, 0)),
    ]
    (tmp_path / "here.txt").write_text(f"{family}\n\n{tree.names[2][-1].upper()}\n")
    for folder, changes in (("all", {}), ("here", {"allowed": tmp_path / "here.txt"})):
        predict.main(command(photos / "000.jpg", top_k=99, format="jsonl", output_dir=tmp_path / folder, **changes))
    every, some = (json.loads((tmp_path / name / "predictions.jsonl").read_text()) for name in ("all", "here"))
    chances, found = ({entry["leaf"]: entry["probability"] for entry in line["top"]} for line in (every, some))
    total = sum(chances[name] for name in kept)
    assert found == pytest.approx({name: chances[name] / total * (name in kept) for name in chances}, abs=1e-4)
    inside = sum(found[name] for name in kept[1:])
    expected = inside if some["levels"][tree.levels[1]]["name"] == family else found[kept[0]]
    assert some["levels"][tree.levels[1]]["probability"] == pytest.approx(expected, abs=1e-4)
    (tmp_path / "here.txt").write_text("unicorn\n")
    for file, message in (
        (tmp_path / "here.txt", "--allowed unicorn: the label tree has no"),
        ("no.txt", "no file no.txt"),
    ):
        with pytest.raises(ValueError, match=message):
            predict.main(command(photos, allowed=file, output_dir=tmp_path / "none"))


@pytest.mark.slow
def test_two_processes_pay_the_same(options, model, launch, tmp_path):  # noqa: F811
    tree = train_taxonomy.LabelTreeForImageClassification.read_hierarchy(model)
    file = tmp_path / "costs.yaml"
    file.write_text(json.dumps({"groups": {"poisonous": [tree.names[2][0]]}, "coarse": 0.15, "unknown": 0.55}))
    words = {"eval_only": True, "model_name_or_path": model, "decoding": "cost", "costs": file, "no_report": True}
    alone = train_taxonomy.main(options(**words, output_dir=tmp_path / "one"))["eval"]["costs"]
    launch("train_taxonomy.py", 2, options(**words, output_dir=tmp_path / "two"))
    together = json.loads((tmp_path / "two" / "all_results.json").read_text())["eval"]["costs"]
    assert together == pytest.approx(alone) and 0 < alone["mean_cost"] < 1
