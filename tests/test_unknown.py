"""What the label tree lacks: scores against scikit-learn, in evaluation and in predict.py."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score
from test_predict import command, model, photos, read  # noqa: F401

import predict
import train_taxonomy
from common.labels.encoding import UNKNOWN
from common.metrics.prediction_table import PredictionTable
from common.metrics.unknown import unknown_below, unknown_results
from common.model.answers import SCORES, known_scores
from common.model.hierarchy import Hierarchy
from common.model.tree import IGNORE

TREE = Hierarchy(["genus", "species"], [["A", "B"], ["a1", "a2", "b1"]], [[None, None], [0, 0, 1]])


def test_scores():
    logits = torch.tensor([[2.0, 1.0, -1.0]])
    chances = logits.softmax(1)[0].tolist()
    path = torch.tensor([[chances[0] + chances[1], chances[0]]])
    expected = [chances[0], 2.0, np.log(np.exp([2.0, 1.0, -1.0]).sum()), -chances[1]]
    assert known_scores(logits, path)[0].tolist() == pytest.approx(expected, abs=1e-6)
    assert known_scores(logits, path[:, 1:])[0, 3] == pytest.approx(chances[0] - 1, abs=1e-6)  # of one level


def test_results_are_those_of_scikit_learn():
    random = np.random.default_rng(0)
    labels = np.array([[0, 0]] * 40 + [[0, UNKNOWN]] * 15 + [[UNKNOWN, IGNORE]] * 5 + [[1, IGNORE]] * 20)
    table = PredictionTable(TREE)
    known = random.normal(size=(80, 4)).round(1) + (labels[:, :1] == 0)
    table.columns = {"label": labels, "known": known, "leaf": np.arange(80) % 3}
    results, bounds = unknown_results(table), unknown_below(table)
    assert results["num_unknown"] == 20
    for index, score in enumerate(SCORES):
        inside, outside = known[:40, index], known[40:60, index]
        auroc = roc_auc_score([1] * 40 + [0] * 20, np.append(inside, outside))
        assert results[score]["auroc"] == pytest.approx(auroc)
        assert (inside >= bounds[score]).mean() >= 0.95 and np.isclose(bounds[score], inside).any()
        assert results[score]["tnr_at_95_tpr"] == np.mean(outside < bounds[score])
    right = [place % 3 != 2 for place in range(40, 55)]  # a1 and a2 are of genus A
    assert results["levels"]["genus"] == pytest.approx(np.mean(right)) and np.isnan(results["levels"]["species"])
    table.columns["label"] = np.full((80, 2), IGNORE)
    assert unknown_below(table) == {} and unknown_results(table)["num_unknown"] == 0


def test_names_that_the_tree_lacks_are_scored_and_told(photos, model, command, tmp_path):  # noqa: F811
    table = pd.read_csv(photos / "table.csv")
    new = pd.Series(table.index % 4 == 0)
    table.loc[new & table["species"].notna(), "species"] = "Novum inauditum"
    table.to_csv(photos / "unknown.csv", index=False)
    words = {"validation_file": photos / "unknown.csv", "image_column": "file", "eval_only": True, "no_report": True}
    words |= {"model_name_or_path": model, "dataloader_num_workers": 0, "save_predictions": True}
    words |= {"output_dir": tmp_path / "evaluated"}
    with pytest.raises(ValueError, match="not in the label tree of the training data.*Novum inauditum"):
        train_taxonomy.main([f"--{name}={value}" for name, value in words.items()])
    results = train_taxonomy.main([*(f"--{name}={value}" for name, value in words.items()), "--score_unknown"])["eval"]
    count = (table["species"] == "Novum inauditum").sum()
    assert results["unknown"]["num_unknown"] == count and 0 <= results["unknown"]["tree"]["auroc"] <= 1
    assert results["levels"]["species"]["num_labelled"] == (table["species"].notna()).sum() - count
    saved = pd.read_parquet(tmp_path / "evaluated" / "predictions.parquet")
    assert saved.loc[new.to_numpy(), "species_label"].isna().all()

    calibration = tmp_path / "evaluated" / "calibration.json"
    for score in ("probability", "tree"):
        settings = {"unknown": score, "calibration": calibration, "output_dir": tmp_path / score}
        predict.main(command(photos / "unknown.csv", image_column="file", min_confidence=0.0, **settings))
        found = read(tmp_path / score)
        assert (found["answer_level"].isna() == found["unknown"]).all()
        known = found[~new.to_numpy() & table["species"].notna().to_numpy()]
        assert 1 - known["unknown"].mean() >= 0.95
        if score == "probability":
            assert found["known_score"].to_numpy() == pytest.approx(found["top1_probability"].to_numpy(), abs=1e-5)
        else:
            above = found["species_probability"] - found["family_probability"]
            assert found["known_score"].to_numpy() == pytest.approx(above.to_numpy(), abs=1e-5)
            assert results["unknown"][score]["tnr_at_95_tpr"] == pytest.approx(
                found.loc[new.to_numpy() & (table["species"] == "Novum inauditum").to_numpy(), "unknown"].mean()
            )
