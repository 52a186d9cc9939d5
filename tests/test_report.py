"""The reports that runs of both scripts end with."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from pages import Page, look_in_browser

import train_segmentation
import train_taxonomy
from common.metrics.report_data import EVIDENCE_FILE, Evidence
from common.report import report as reporting
from common.report.summary import shareable, shareable_line

pytestmark = pytest.mark.with_report


def test_report_of_a_classifier(options, tmp_path):
    results = train_taxonomy.main(options(watch=["cherry", "round"], save_predictions=True, num_train_epochs=2))
    folder = tmp_path / "out"
    page = Page(folder / "report.html")
    assert page.wrong == []
    sections = {"run", "levels", "training", "watched", "classes", "confused", "examples", "reliability", "confusion"}
    assert page.ids == sections | {"skipped", "settings"}
    table = pd.read_parquet(folder / "predictions.parquet")
    cherries = table[table.species_label == "cherry"]
    assert f"{len(cherries)} images of this species" in page.text
    recall = (cherries.species_best_path == "cherry").mean()
    assert f"species {recall:.1%}" in page.text
    assert "96 for training, 41 for validation" in page.text and "No broken images" in page.text
    assert f"{100 * results['eval']['levels']['order']['accuracy']:.1f}%" in page.text
    assert str(tmp_path) not in page.text.replace(page.text[page.text.index("args.yaml") :], "")
    # The evidence agrees with the predictions that were saved.
    evidence = Evidence.load(folder / EVIDENCE_FILE)
    assert evidence.count.sum() == 41
    ece = np.abs(evidence.reliability[:, 1] - evidence.reliability[:, 2]).sum(1) / evidence.reliability[:, 0].sum(1)
    assert ece == pytest.approx([level["ece"] for level in results["eval"]["levels"].values()])
    labelled = [level["num_labelled"] for level in results["eval"]["levels"].values()]
    assert evidence.reliability[:, 0].sum(1).tolist() == labelled
    for kind, rows in evidence.examples.items():
        for row, *_, probability in rows:
            entry = table.iloc[int(row)]
            assert (entry.species_label == entry.species_best_path) == (kind == "right")
            assert kind == "right" or (entry.family_label == entry.family_best_path) == (kind == "near")
            assert entry.species_best_path_probability == pytest.approx(probability, abs=1e-6)
    look_in_browser(folder / "report.html", tmp_path)


def test_report_of_a_segmentation_model(dense_options, tmp_path):
    results = train_segmentation.main(dense_options(watch=["scratch"]))
    folder = tmp_path / "out"
    page = Page(folder / "report.html")
    assert page.wrong == [] and {"watched", "classes", "confused", "examples", "confusion"} <= page.ids
    scratch = results["eval"]["levels"]["fine"]["per_class"]["scratch"]
    assert f"{scratch['num_pixels']:,.0f} pixels of this fine" in page.text
    assert f"fine {scratch['recall']:.1%}" in page.text
    plots = {file.name for file in (folder / "plots").iterdir()}
    shown = {f"{kind}_{level}.png" for kind in ("examples", "worst") for level in ("binary", "coarse", "fine")}
    assert shown | {"iou.png", "history.png"} <= plots
    assert len(page.images) == len(plots)
    look_in_browser(folder / "report.html", tmp_path)


def test_evaluation_alone_has_a_report_too(options, tmp_path):
    train_taxonomy.main(options(no_report=True, output_dir=tmp_path / "model"))
    assert not (tmp_path / "model" / "report.html").exists() and not (tmp_path / "model" / "plots").exists()
    changes = {"eval_only": True, "model_name_or_path": tmp_path / "model", "no_pretrained": None, "image_size": None}
    train_taxonomy.main(options(**changes, output_dir=tmp_path / "again"))
    page = Page(tmp_path / "again" / "report.html")
    assert page.wrong == [] and "training" not in page.ids and "confusion" in page.ids
    assert page.text.startswith("Evaluation report")


def test_a_report_that_fails_loses_nothing(options, tmp_path, monkeypatch, capfd):
    def fail(*_):
        raise MemoryError("no room to draw")

    monkeypatch.setattr(reporting, "draw_history", fail)
    train_taxonomy.main(options())
    assert "could not be drawn (MemoryError: no room to draw)" in capfd.readouterr().err
    assert json.loads((tmp_path / "out" / "all_results.json").read_text())["eval"]["num_samples"] == 41
    assert not (tmp_path / "out" / "report.html").exists()


def test_watching_what_is_not_there_is_told_before_training(options, monkeypatch):
    monkeypatch.setattr(train_taxonomy, "build_model", lambda *_: pytest.fail("a model was built"))
    with pytest.raises(ValueError, match="--watch chery: .* Did you mean cherry"):
        train_taxonomy.main(options(watch=["chery"]))


@pytest.mark.parametrize(
    "line, shown",
    [
        ("row 3 of the train split, file /home/me/my images/a b.jpg: cut off", "file .../a b.jpg: cut off"),
        ("row 3 of the train split, file images/a.jpg: cut off", "file images/a.jpg: cut off"),
    ],
)
def test_broken_images_are_named_without_their_folders(line, shown):
    assert shareable_line(line).endswith(f"split, {shown}")


def test_settings_are_shown_without_folders():
    assert shareable("/home/me/data") == ".../data" and shareable("org/model") == "org/model"
    assert shareable(["/a/b", 3]) == [".../b", 3] and shareable(0.5) == 0.5
