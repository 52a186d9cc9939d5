"""The report: complete, self-contained, harmless whatever names are in it, and readable on a phone."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pages import Page, look_in_browser
from PIL import Image
from summaries import HOSTILE, TREE, run_summary

import train_taxonomy
from common.metrics.report_data import REPORT_DATA_FILE, ReportData
from common.report.image_examples import Picture
from common.report.mask_examples import MaskExample, draw_plots, keep_for_plots
from common.report.report import draw_report, thumbnail
from common.report.summary import RunSummary, data_name, shareable, shareable_line
from common.system.files import append_history

SECTIONS = {"run", "levels", "training", "watched", "classes", "confused", "examples", "reliability", "confusion"}
ALWAYS = {"run", "levels", "skipped", "settings"}


def picture(row: int) -> Picture:
    noise = np.random.default_rng(row).integers(0, 255, (80, 300, 3)).astype(np.uint8)
    return Picture(Image.fromarray(noise), f"/home/me/{row}.jpg", HOSTILE[row % 6], HOSTILE[(row + 1) % 6], 0.5)


def examples(data: ReportData) -> dict[str, list[Picture]]:
    assert data.count.sum() == 36 * 37 // 2
    return {"right": [picture(row) for row in range(8)], "near": [], "far": [picture(9)]}


@pytest.fixture
def summary(tmp_path) -> RunSummary:
    """Of a trained classifier: every section, with names that would like to be more than text."""
    found = run_summary(tmp_path / "out")
    truth, predicted = np.indices((6, 6)).reshape(2, -1)
    data = ReportData(truth + 2, predicted, np.arange(36) + 1, reliability=np.ones((2, 3, 15)) / [[4], [8], [10]])
    data.save(found.output_dir / REPORT_DATA_FILE)
    for step in (10, 20):
        append_history(found.output_dir / "history.jsonl", {"global_step": step, "train/loss": 1 / step})
    return found


def test_a_classifier(summary):
    draw_report(summary, examples)
    page = Page(summary.output_dir / "report.html")
    assert page.wrong == [] and page.ids == SECTIONS | ALWAYS
    assert "Training report: out" in page.text and "the model is the best by loss" in page.text
    assert "2.0 minutes of training" in page.text and "25.0% every level right" in page.text
    assert "5 training steps, because their loss was NaN or infinite." in page.text
    # The class n...n is watched: the fifth of six, whose row of the matrix has the counts 25 to 30.
    assert f"{sum(range(25, 31))} images of this class (class). Right at <b>group</b>" in page.text
    assert f"class {29 / sum(range(25, 31)):.1%}." in page.text
    assert "Wrong but near" not in page.text and page.text.count("Wrong and far") == 1
    assert page.text.count("predicted as") == 9 + 3 + 2  # examples, watched classes, confused pairs and matrices
    assert "probability 50.0%, .../9.jpg" in page.text and "/home/me" not in page.text
    table = pd.read_csv(summary.output_dir / "metrics_per_class.csv", keep_default_na=False)
    assert table["level"].tolist() == [TREE.levels[0]] * 2 + [TREE.levels[1]] * 6
    last = table[table["level"] == "class"]
    assert last["class"].tolist() == HOSTILE and last["path"][2] == f"A & B > {HOSTILE[0]}"
    assert last["labelled"].tolist() == [sum(range(start, start + 6)) for start in range(1, 37, 6)]
    assert float(last["recall"].iloc[4]) == pytest.approx(29 / sum(range(25, 31)))
    plots = {file.name for file in (summary.output_dir / "plots").iterdir()}
    assert plots == {
        "confusion__b_group__b_.png",
        "confusion_class.png",
        "examples.jpg",
        "history.png",
        "reliability.png",
    }
    assert len(page.images) == 9 + len(plots) - 1  # examples.jpg is for the model card
    assert not list(summary.output_dir.glob("**/*.tmp"))


def test_hostile_names_stay_text(summary):
    draw_report(summary, examples)
    page = Page(summary.output_dir / "report.html")
    for name in HOSTILE:
        assert name in page.text or name in page.text.replace(" ", "")
    assert "default-src 'none'" in page.source


@pytest.mark.slow
def test_in_a_browser(summary, tmp_path):
    draw_report(summary, examples)
    look_in_browser(summary.output_dir / "report.html", tmp_path)


def test_sections_without_content_are_left_out(summary):
    for name in (REPORT_DATA_FILE, "history.jsonl"):
        (summary.output_dir / name).unlink()
    results = {"train": None, "eval": summary.results["eval"]}  # as of --eval_only
    draw_report(replace(summary, results=results, skipped=[]), lambda data: pytest.fail("nothing to load"))
    page = Page(summary.output_dir / "report.html")
    assert page.wrong == [] and page.ids == ALWAYS and 'href="#watched"' not in page.source
    assert page.text.startswith("Evaluation report: out") and "No broken images skipped" in page.text
    assert "No training step." in page.text and "minutes of training" not in page.text


@pytest.mark.parametrize("in_browser", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_segmentation_model(summary, tmp_path, in_browser):
    folder = summary.output_dir
    scores = {"mean_iou": 0.5, "mean_f1": 0.5, "per_class": {name: {"iou": 0.5, "num_pixels": 7} for name in HOSTILE}}
    results = {**summary.results["eval"], "levels": dict.fromkeys(TREE.levels, scores)}
    masks = np.random.default_rng(0).integers(0, 6, (2, 30, 40)).astype(np.uint8)
    shown = [MaskExample(np.zeros((30, 40, 3), np.uint8), *masks, name=HOSTILE[0])]
    keep_for_plots(folder, results, {"examples": shown, "worst": shown * 2})
    ReportData.of_leaf_matrix(TREE, np.arange(36).reshape(6, 6)).save(folder / REPORT_DATA_FILE)
    changes = {"unit": "pixels", "measures": ("mean_iou", "mean_f1"), "results": {**summary.results, "eval": results}}
    draw_report(replace(summary, **changes), draw=partial(draw_plots, folder, hierarchy=TREE))
    page = Page(folder / "report.html")
    assert page.wrong == [] and page.ids == (SECTIONS | ALWAYS) - {"reliability"}
    assert f"{sum(range(24, 30))} pixels of this class (class)" in page.text and "50.0% class mean IoU" in page.text
    plots = {file.name for file in (folder / "plots").iterdir()}
    assert {f"{kind}_{level}.png" for kind in ("examples", "worst") for level in ("_b_group__b_", "class")} < plots
    assert "iou.png" in plots and len(page.images) == len(plots)
    if in_browser:
        look_in_browser(folder / "report.html", tmp_path)


def test_older_plots_go(summary):
    plots = summary.output_dir / "plots"
    plots.mkdir()
    (plots / "confusion_of_another_tree.png").write_text("old")
    draw_report(summary)
    assert not (plots / "confusion_of_another_tree.png").exists() and (plots / "history.png").is_file()


def test_a_report_that_fails_is_a_warning(summary, caplog):
    def fail(folder: Path) -> None:
        raise MemoryError("no memory to draw")

    draw_report(summary, draw=fail)
    assert "could not be drawn (MemoryError: no memory to draw)" in caplog.text
    assert not (summary.output_dir / "report.html").exists()


def test_thumbnails_are_small():
    found = thumbnail(picture(1))
    assert found["source"].startswith("data:image/jpeg;base64,") and len(found["source"]) < 30_000
    assert found["name"] == ".../1.jpg" and (found["width"], found["height"]) == (200, 53)


def test_a_wrong_name_to_watch_is_an_error_before_training(options, monkeypatch):
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


def test_settings_are_shown_without_folders(summary):
    assert shareable("/home/me/data") == ".../data" and shareable("org/model") == "org/model"
    assert shareable(["/a/b", 3]) == [".../b", 3] and shareable(0.5) == 0.5
    draw_report(summary)
    page = Page(summary.output_dir / "report.html")
    assert ".../out" in page.text and "/home/me" not in page.source


def test_data_have_a_name(tmp_path):
    named = {"validation_file": None, "train_file": None, "dataset_name": "org/set", "dataset_config_name": "small"}
    assert data_name(named) == "org/set (small)"
    assert data_name({**named, "dataset_name": str(tmp_path), "dataset_config_name": None}) == tmp_path.name
    assert data_name({**named, "train_file": "/a/t.csv", "validation_file": "/a/v.csv"}) == "t.csv, v.csv"
