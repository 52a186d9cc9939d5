"""The model card: metadata that the Hub understands, code that runs, and names that stay text."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard
from markupsafe import Markup
from PIL import Image

import train_segmentation
import train_taxonomy
from common.publish.card import MARKER, UNKNOWN_MODEL, base_model, hub_id, plain_markdown

pytestmark = pytest.mark.with_report


def run_its_code(folder: Path, tmp_path: Path) -> str:
    """What the card's code prints, in a process without this repository."""
    Image.new("RGB", (50, 40), "red").save(tmp_path / "image.jpg")
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2 and all(UNKNOWN_MODEL in block for block in blocks)
    program = "\n".join(blocks).replace(UNKNOWN_MODEL, str(folder))
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_card_of_a_classifier(options, tmp_path):
    results = train_taxonomy.main(options(license="cc-by-4.0"))
    folder = tmp_path / "out"
    card = ModelCard.load(folder / "README.md")
    data = card.data.to_dict()
    assert data["library_name"] == "transformers" and data["pipeline_tag"] == "image-classification"
    assert data["license"] == "cc-by-4.0" and "base_model" not in data and "datasets" not in data
    assert card.data.model_name == "out"
    values = {result.metric_name: result.metric_value for result in card.data.eval_results}
    levels = results["eval"]["levels"]
    assert values["order accuracy"] == pytest.approx(levels["order"]["accuracy"])
    assert values["species macro F1"] == pytest.approx(levels["species"]["macro_f1"])
    assert values["every level right"] == pytest.approx(results["eval"]["path"]["full_path_accuracy"])
    assert all(result.dataset_split == "validation" for result in card.data.eval_results)
    assert f"| species | 6 | {100 * levels['species']['accuracy']:.2f}% |" in card.text
    lines = card.text.splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("| level |"))
    table = lines[start : start + 5]
    assert [line.split("|")[1].strip() for line in table] == ["level", "---", *levels]
    assert len({line.count("|") for line in table}) == 1 and lines[start - 1] == lines[start + 5] == ""
    assert not re.search(r",\S", card.text[: card.text.index("## How to use")])
    assert all((folder / path).is_file() for path in re.findall(r"!\[.*?\]\((.*?)\)", card.text))
    assert "plots/examples.jpg" in card.text and "report.html" in card.text
    assert str(tmp_path) not in card.content
    shown = run_its_code(folder, tmp_path)
    assert [line.split(":")[0] for line in shown.splitlines()] == ["order", "family", "species"]


def test_card_of_a_segmentation_model(dense_options, tmp_path):
    train_segmentation.main(dense_options(no_report=True))
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.pipeline_tag == "image-segmentation" and card.data.to_dict()["metrics"] == ["f1", "mean_iou"]
    assert "report.html" not in card.text and "![" not in card.text
    shown = run_its_code(tmp_path / "out", tmp_path)
    assert [line.split()[0] for line in shown.splitlines()] == ["binary", "coarse", "fine"]


def test_a_card_that_somebody_wrote_is_left_alone(options, tmp_path, capfd):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "README.md").write_text("My own words.")
    train_taxonomy.main(options(no_report=True))
    assert (folder / "README.md").read_text() == "My own words."
    assert "it is left as it is" in capfd.readouterr().err
    (folder / "README.md").write_text(f"# Old\n{MARKER}\n")
    train_taxonomy.main(options(no_report=True))
    assert "library_name" in (folder / "README.md").read_text()


def test_evaluation_alone_writes_no_card(options, tmp_path):
    train_taxonomy.main(options(no_report=True, output_dir=tmp_path / "model"))
    changes = {"eval_only": True, "model_name_or_path": tmp_path / "model", "no_pretrained": None, "image_size": None}
    train_taxonomy.main(options(**changes, no_report=True, output_dir=tmp_path / "again"))
    assert json.loads((tmp_path / "again" / "all_results.json").read_text())["train"] is None
    assert not (tmp_path / "again" / "README.md").exists()


@pytest.mark.parametrize(
    "name, shown",
    [
        ("a|b", r"a\|b"),
        ("<script>", "&lt;script&gt;"),
        ("[x](http://evil)", r"\[x\](http://evil)"),
        ("two\nlines `code` *b* _i_", r"two lines \`code\` \*b\* \_i\_"),
        (Markup("<b>"), "<b>"),
    ],
)
def test_names_stay_text(name, shown):
    assert plain_markdown(name) == shown


def test_what_can_be_a_name_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "mine").mkdir(parents=True)
    assert [hub_id(name) for name in ("org/name", "data/mine", "name", "/abs/x", "a/b/c", None)] == [
        "org/name",
        *[None] * 5,
    ]

    def of(name: str, **changes) -> str | None:
        return base_model(
            SimpleNamespace(model_name_or_path=name, **{"no_pretrained": False, "backbone_weights": None, **changes})
        )

    assert of("timm/resnet18.a1_in1k") == "timm/resnet18.a1_in1k" and of("hf-hub:BVRA/beit") == "BVRA/beit"
    assert of("org/name", no_pretrained=True) is None and of("data/mine") is None
