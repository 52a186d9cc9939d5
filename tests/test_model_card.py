"""The model card: metadata that the Hub understands, code that runs, and names that stay text."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from huggingface_hub import ModelCard
from pages import Page
from PIL import Image
from summaries import OPTIONS, run_summary

import train_segmentation
import train_taxonomy
from common.metrics.report_data import REPORT_DATA_FILE, ReportData
from common.publish.card import MARKER, UNKNOWN_MODEL, base_model, hub_id, plain_markdown, write_card
from common.report.summary import RunSummary


@pytest.fixture
def summary(tmp_path) -> RunSummary:
    return run_summary(tmp_path / "out")


def written(summary: RunSummary, **options) -> ModelCard:
    """The card of a run with other options."""
    write_card(replace(summary, options={**OPTIONS, **options}))
    return ModelCard.load(summary.output_dir / "README.md")


# ---- what a card says of a run


def test_metadata(summary):
    card = written(summary)
    data = card.data.to_dict()
    assert data["library_name"] == "transformers" and data["pipeline_tag"] == "image-classification"
    assert data["license"] == "cc-by-4.0" and "base_model" not in data and data["datasets"] == ["org/data"]
    assert card.data.model_name == "out" and data["metrics"] == ["accuracy", "f1"]
    values = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert values == {
        "<b>group</b> accuracy": 0.5,
        "<b>group</b> macro F1": 0.25,
        "class accuracy": 0.5,
        "class macro F1": 0.25,
        "every level right": 0.25,
    }
    assert {result.dataset_split for result in card.data.eval_results} == {"validation"}
    assert {result.task_name for result in card.data.eval_results} == {"Image Classification"}
    assert "datasets" not in written(summary, dataset_name="demo").data.to_dict()
    summary.results["eval"]["levels"]["class"]["accuracy"] = None  # as NaN comes back from JSON
    assert "class accuracy" not in {result.metric_name for result in written(summary).data.eval_results}


def test_text(summary):
    text = written(summary).text
    lines = text.splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("| level |"))
    assert lines[start + 3].startswith("| class | 6 | 50.00% |") and lines[start - 1] == lines[start + 4] == ""
    assert len({line.count("|") for line in lines[start : start + 4]}) == 1
    assert "- per-level argmax: full path 25.00%, not in the tree 0.00%" in text
    assert not re.search(r",\S", text[start : text.index("## How to use")])
    assert "<script>" not in text and "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "report.html" not in text and "![" not in text and "Hardest classes" not in text
    assert text.count(UNKNOWN_MODEL) == 3 and "AutoModelForImageClassification" in text
    assert (summary.output_dir / "README.md").read_text().endswith("\n")


def test_files_of_the_run_are_shown(summary):
    folder = summary.output_dir
    (folder / "plots").mkdir()
    for name in ("report.html", "plots/history.png", "plots/iou.png"):
        (folder / name).touch()
    ReportData(np.array([2, 2, 3]), np.array([0, 1, 1]), np.array([3, 1, 9])).save(folder / REPORT_DATA_FILE)
    text = written(summary).text
    assert re.findall(r"!\[.*?\]\((.*?)\)", text) == ["plots/history.png", "plots/iou.png"]
    assert "is in `report.html`" in text
    assert "4 of the 6 classes of the last level do not occur in the evaluation data." in text
    assert r"&lt;script&gt;alert(1)&lt;/script&gt; 85.7%, " in text  # the hardest one: 3 of 4 found, and nothing else


def test_model_on_the_hub(summary):
    card = written(summary, push_to_hub=True, hub_model_id="someone/fruit-tree")
    assert card.data.model_name == "fruit-tree" and card.text.count("someone/fruit-tree") == 3
    assert written(summary, hub_model_id="someone/fruit-tree").data.model_name == "out"  # it is not uploaded


def test_a_card_that_somebody_wrote_is_left_alone(summary, caplog):
    path = summary.output_dir / "README.md"
    path.write_text("My own words.")
    write_card(summary)
    assert path.read_text() == "My own words." and "it is left as it is" in caplog.text
    path.write_text(f"# Old\n{MARKER}\n")
    assert written(summary).data.license == "cc-by-4.0"


def test_a_card_that_fails_is_a_warning(summary, caplog):
    write_card(replace(summary, results={"eval": {}, "train": None}))
    assert "The model card could not be written (KeyError: 'levels')" in caplog.text
    assert not list(summary.output_dir.iterdir())


@pytest.mark.parametrize(
    "name, shown",
    [
        ("a|b", r"a\|b"),
        ("<script>", "&lt;script&gt;"),
        ("[x](http://evil)", r"\[x\](http://evil)"),
        ("two\nlines `code` *b* _i_", r"two lines \`code\` \*b\* \_i\_"),
        ({"a_b": ["*", 3, None]}, {r"a\_b": [r"\*", 3, None]}),
    ],
)
def test_names_stay_text(name, shown):
    assert plain_markdown(name) == shown


def test_what_can_be_a_name_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "mine").mkdir(parents=True)
    names = ("org/name", "data/mine", "name", "/abs/x", "a/b/c")
    assert [hub_id(name) for name in names] == ["org/name", *[None] * 4]

    def of(name: str, **changes) -> str | None:
        return base_model({**OPTIONS, "model_name_or_path": name, "no_pretrained": False, **changes})

    assert of("timm/resnet18.a1_in1k") == "timm/resnet18.a1_in1k" and of("hf-hub:BVRA/beit") == "BVRA/beit"
    assert of("org/name", no_pretrained=True) is None and of("data/mine") is None


# ---- whole runs


def run_its_code(folders: list[Path], tmp_path: Path) -> list[list[str]]:
    """What each card's code prints, in a process without this repository."""
    Image.new("RGB", (50, 40), "red").save(tmp_path / "image.jpg")
    program = ""
    for folder in folders:
        blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
        assert len(blocks) == 2 and all(UNKNOWN_MODEL in block for block in blocks)
        program += "\n".join([*blocks, "print('---')\n"]).replace(UNKNOWN_MODEL, str(folder))
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return [part.strip().splitlines() for part in done.stdout.split("---")[:-1]]


@pytest.mark.with_report
def test_report_card_predictions_and_metrics_agree(options, tmp_path):
    words = options(watch=["cherry"], save_predictions=True, num_train_epochs=2)
    results, folder = train_taxonomy.main(words)["eval"], tmp_path / "out"
    page, card = Page(folder / "report.html"), ModelCard.load(folder / "README.md")
    values = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert values["species macro F1"] == pytest.approx(results["levels"]["species"]["macro_f1"])
    assert page.wrong == [] and "96 for training, 41 for validation" in page.text
    assert "plots/examples.jpg" in card.text and "report.html" in card.text and str(tmp_path) not in card.content
    table = pd.read_parquet(folder / "predictions.parquet")
    cherries = table[table.species_label == "cherry"]
    assert f"{len(cherries)} images of this class (species)" in page.text
    assert f"species {(cherries.species_best_path == 'cherry').mean():.1%}" in page.text
    data = ReportData.load(folder / REPORT_DATA_FILE)
    count, right, confidence = data.reliability.transpose(1, 0, 2)
    assert data.count.sum() == 41
    ece = np.abs(right - confidence).sum(1) / count.sum(1)
    assert ece == pytest.approx([level["ece"] for level in results["levels"].values()])
    for kind, rows in data.examples.items():
        for row, *_, probability in rows:
            entry = table.iloc[int(row)]
            assert (entry.species_label == entry.species_best_path) == (kind == "right")
            assert kind == "right" or (entry.family_label == entry.family_best_path) == (kind == "near")
            assert entry.species_best_path_probability == pytest.approx(probability, abs=1e-6)


@pytest.mark.slow
@pytest.mark.with_report
def test_cards_of_both_scripts_have_code_that_runs(options, dense_options, tmp_path):
    classifier, dense = tmp_path / "classifier", tmp_path / "dense"
    train_taxonomy.main(options(output_dir=classifier, no_report=True))
    train_segmentation.main(dense_options(output_dir=dense, watch=["scratch"], max_eval_samples=8))
    page = Page(dense / "report.html")
    scratch = json.loads((dense / "all_results.json").read_text())["eval"]["levels"]["fine"]["per_class"]["scratch"]
    assert page.wrong == [] and f"{scratch['num_pixels']:,.0f} pixels of this class (fine)" in page.text
    assert f"fine {scratch['recall']:.1%}" in page.text
    assert ModelCard.load(dense / "README.md").data.pipeline_tag == "image-segmentation"
    shown = run_its_code([classifier, dense], tmp_path)
    assert [line.split(":")[0] for line in shown[0]] == ["order", "family", "species"]
    assert [line.split()[0] for line in shown[1]] == ["binary", "coarse", "fine"]


@pytest.mark.slow
@pytest.mark.with_report
def test_evaluation_alone_has_a_report_and_no_card(options, tmp_path):
    train_taxonomy.main(options(no_report=True, output_dir=tmp_path / "model", max_train_steps=1))
    changes = {"eval_only": True, "model_name_or_path": tmp_path / "model", "no_pretrained": None, "image_size": None}
    train_taxonomy.main(options(**changes, output_dir=tmp_path / "again"))
    assert not (tmp_path / "model" / "report.html").exists() and (tmp_path / "model" / "README.md").exists()
    assert Page(tmp_path / "again" / "report.html").text.startswith("Evaluation report")
    assert json.loads((tmp_path / "again" / "all_results.json").read_text())["train"] is None
    assert not (tmp_path / "again" / "README.md").exists()
