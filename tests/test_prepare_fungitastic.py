"""FungiTastic's published layout, with dirt in it, down to training on the result."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pandas as pd
import pytest
from PIL import Image

import train_taxonomy
from common.data.problems import read_problems
from common.labels.hierarchy_files import load_hierarchy
from data_prep.prepare_fungitastic import main

LEVELS = ["phylum", "class", "order", "family", "genus", "species"]
PATHS = [
    ("Basidiomycota", "Agaricomycetes", "Agaricales", "Amanitaceae", "Amanita", "Amanita muscaria"),
    ("Basidiomycota", "Agaricomycetes", "Agaricales", "Amanitaceae", "Amanita", "Amanita citrina"),
    ("Basidiomycota", "Agaricomycetes", "Boletales", "Boletaceae", "Boletus", "Boletus edulis"),
    ("Ascomycota", "Pezizomycetes", "Pezizales", "Morchellaceae", "Morchella", "Morchella esculenta"),
]


def rows_of(split: str, count: int) -> list[dict]:
    """Two photographs an observation, in the columns of the real files (not all of them)."""
    return [
        {
            "eventDate": "2020-09-01",
            "habitat": "Mixed woodland",
            "scientificName": f"{PATHS[index // 2 % 4][5]} (L.) Lam.",
            "kingdom": "Fungi",
            **dict(zip(LEVELS, PATHS[index // 2 % 4], strict=True)),
            "observationID": f"{ {'Train': 1, 'Val': 2, 'Test': 3}[split] }{index // 2:04d}",
            "filename": f"{split}-{index}.JPG",
            # The fourth species comes in two forms, as in the real data.
            "category_id": index // 2 % 4 + (index // 2 % 8 == 7),
            "poisonous": int(index // 2 % 4 == 0),
        }
        for index in range(count)
    ]


@pytest.fixture
def download(tmp_path: Path) -> Callable[..., Path]:
    """The unpacked archives; ``tables`` are file name -> rows."""

    def make(tables: dict[str, list[dict]] | None = None, top: str = "FungiTastic", size: str = "300p") -> Path:
        root = tmp_path / "download"
        tables = published() if tables is None else tables
        (root / "metadata" / top).mkdir(parents=True, exist_ok=True)
        for name, rows in tables.items():
            pd.DataFrame(rows).to_csv(root / "metadata" / top / name, index=False)
            folder = root / top / ("train" if "Train" in name else "val" if "Val" in name else "test") / size
            folder.mkdir(parents=True, exist_ok=True)
            for index, row in enumerate(rows):
                if "/" not in str(row["filename"]) and "none" not in str(row["filename"]):
                    Image.new("RGB", (40, 30), (60 * (index // 2 % 4), 90, 50)).save(
                        folder / str(row["filename"]), "JPEG"
                    )
        return root

    return make


def published() -> dict[str, list[dict]]:
    return {
        "FungiTastic-Train.csv": rows_of("Train", 32),
        "FungiTastic-ClosedSet-Val.csv": rows_of("Val", 16),
        "FungiTastic-ClosedSet-Test.csv": rows_of("Test", 8),
    }


def prepare(root: Path, output: Path, *words: str) -> Path:
    return main(["--root", str(root), "--output_dir", str(output), "--num_proc", "1", *words])


def rows_by_name(folder: Path) -> dict[str, dict]:
    return {Path(row["image"]).name: row for split in datasets.load_from_disk(str(folder)).values() for row in split}


def test_the_published_layout(download, tmp_path):
    folder = prepare(download(), tmp_path / "out")
    splits = datasets.load_from_disk(str(folder))
    assert {split: len(data) for split, data in splits.items()} == {"train": 32, "validation": 16, "test": 8}
    assert splits["train"].column_names[:8] == ["image", *LEVELS, "observationID"]
    assert {"scientificName", "poisonous", "eventDate", "category_id"} <= set(splits["train"].column_names)
    row = splits["validation"][0]
    assert row["image"] == "FungiTastic/val/300p/Val-0.JPG" and row["poisonous"] == "1"
    tree = load_hierarchy(folder / "hierarchy.json")[0]
    assert tree.num_classes == (2, 2, 3, 3, 3, 4)
    for level, names in zip(LEVELS, tree.names, strict=True):
        assert list(names) == sorted({row[level] for row in rows_of("Train", 32)})
    assert json.loads((folder / "stats.json").read_text())["left_out"] == {}


def test_trains_as_configured(download, tmp_path):
    folder = prepare(download(), tmp_path / "out", "--resize_shorter", "24")
    config = Path(train_taxonomy.__file__).parent / "configs" / "fungitastic_beit.yaml"
    options = f"--config {config} --dataset_name {folder} --model_name_or_path timm/test_vit --no_pretrained "
    options += "--image_size 32 --global_batch_size 4 --per_device_train_batch_size 4 --max_train_steps 2 "
    options += f"--mixed_precision no --dataloader_num_workers 0 --no_report --output_dir {tmp_path / 'model'}"
    assert train_taxonomy.main(options.split())["train"]["global_step"] == 2


def test_seventh_level(download, tmp_path):
    folder = prepare(download(), tmp_path / "out", "--with_category_id")
    tree = load_hierarchy(folder / "hierarchy.json")[0]
    assert tree.levels == (*LEVELS, "category_id") and tree.num_classes[-2:] == (4, 5)
    assert tree.path_names(6, tree.names[6].index("4"))[5] == "Morchella esculenta"


def test_dirt(download, tmp_path):
    tables = published()
    train, validation = tables["FungiTastic-Train.csv"], tables["FungiTastic-ClosedSet-Val.csv"]
    train[0]["filename"] = "../../../secret.JPG"
    train[1]["filename"] = "/etc/none.JPG"
    train[2]["filename"] = "none.JPG"
    train[3]["species"] = None
    train[4]["genus"] = "  BOLETUS "
    train[5]["family"] = None
    train[8]["category_id"] = -1
    train[9]["category_id"] = "unclear"
    train[10]["observationID"] = None
    for level in LEVELS:
        train[11][level] = None
    validation[0]["observationID"] = validation[1]["observationID"] = train[12]["observationID"]
    validation[2]["category_id"], validation[2]["genus"] = -1, "Limacella"  # a genus that training has not
    del validation[5]["scientificName"]
    folder = prepare(download(tables), tmp_path / "out")
    found = {(problem.split, problem.row): problem.kind for problem in read_problems(folder / "problems.csv")}
    assert found == {
        ("train", 0): "outside of the root",
        ("train", 1): "outside of the root",
        ("train", 2): "missing",
        ("train", 11): "no label",
        ("train", 12): "observation in two splits",
        ("train", 13): "observation in two splits",
    }
    rows = rows_by_name(folder)
    assert rows["Train-3.JPG"]["species"] is None and rows["Train-3.JPG"]["genus"] == "Amanita"
    assert rows["Train-4.JPG"]["genus"] == "Boletus" and rows["Train-5.JPG"]["family"] == "Boletaceae"
    assert rows["Train-8.JPG"]["species"] is None and rows["Train-8.JPG"]["genus"] == "Amanita"
    assert rows["Train-9.JPG"]["species"] == "Amanita muscaria" and rows["Train-9.JPG"]["category_id"] is None
    assert [rows["Val-2.JPG"][level] for level in LEVELS[3:]] == ["Amanitaceae", None, None]
    splits = datasets.load_from_disk(str(folder))
    assert not set(splits["train"]["observationID"]) & set(splits["validation"]["observationID"])
    notes = "\n".join(json.loads((folder / "stats.json").read_text())["notes"])
    assert "unknown species" in notes and "'Limacella'" not in notes.split("label tree")[0]


def test_a_malformed_line_costs_that_line(download, tmp_path):
    root = download()
    table = root / "metadata/FungiTastic/FungiTastic-Train.csv"
    lines = table.read_text().splitlines()
    lines.insert(3, "cut off,in the")
    table.write_text("\r\n".join(["\ufeff" + lines[0], *lines[1:], "", ""]))
    folder = prepare(root, tmp_path / "out")
    assert len(datasets.load_from_disk(str(folder))["train"]) == 32
    assert [problem.kind for problem in read_problems(folder / "problems.csv")] == ["malformed"]


@pytest.mark.parametrize("names", [("Val", "Test"), ("ClosedSet-Val", "ClosedSet-Test")])
def test_mini_in_both_of_its_versions(download, tmp_path, names):
    tables = published().values()
    named = (f"FungiTastic-Mini-{name}.csv" for name in ("Train", *names))
    root = download(dict(zip(named, tables, strict=True)), "FungiTastic-Mini", "fullsize")
    folder = prepare(root, tmp_path / "out", "--subset", "mini")
    assert datasets.load_from_disk(str(folder))["test"][0]["image"] == "FungiTastic-Mini/test/fullsize/Test-0.JPG"


def test_other_tests_and_sizes(download, tmp_path):
    tables = published()
    tables["FungiTastic-DNA-Test.csv"] = rows_of("Test", 4)
    tables["FungiTastic-OpenSet-Val.csv"] = [{**row, "category_id": -1} for row in rows_of("Val", 6)]
    root = download(tables)
    (root / "FungiTastic/test/300p").rename(root / "FungiTastic/dna-300p")
    (root / "FungiTastic/dna").mkdir()
    (root / "FungiTastic/dna-300p").rename(root / "FungiTastic/dna/300p")
    splits = datasets.load_from_disk(str(prepare(root, tmp_path / "dna", "--test", "DNA")))
    assert len(splits["test"]) == 4 and splits["test"][0]["image"].startswith("FungiTastic/dna/300p/")
    splits = datasets.load_from_disk(str(prepare(root, tmp_path / "o", "--test", "none", "--validation", "OpenSet")))
    assert list(splits) == ["train", "validation"] and set(splits["validation"]["species"]) == {None}
    with pytest.raises(ValueError, match="No images.*500p"):
        prepare(root, tmp_path / "big", "--size", "500")


def test_what_is_missing_is_named(download, tmp_path):
    with pytest.raises(ValueError, match="no folder metadata"):
        prepare(tmp_path, tmp_path / "out")
    root = download()
    with pytest.raises(ValueError, match="FungiTastic-OpenSet-Test.csv"):
        prepare(root, tmp_path / "out", "--test", "OpenSet")
    table = root / "metadata/FungiTastic/FungiTastic-ClosedSet-Val.csv"
    pd.read_csv(table).drop(columns=["genus"]).to_csv(table, index=False)
    with pytest.raises(ValueError, match="ClosedSet-Val.csv has no column 'genus'"):
        prepare(root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_columns_that_are_not_needed_may_be_missing(download, tmp_path):
    root = download()
    for table in (root / "metadata/FungiTastic").iterdir():
        pd.read_csv(table).drop(columns=["poisonous", "category_id", "kingdom"]).to_csv(table, index=False)
    folder = prepare(root.parent / "download", tmp_path / "out")
    assert "poisonous" not in datasets.load_from_disk(str(folder))["train"].column_names
    assert any("category_id" in note for note in json.loads((folder / "stats.json").read_text())["notes"])
