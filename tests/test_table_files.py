"""Tables as people have them: the same cells through every door."""

from __future__ import annotations

import logging
import unicodedata
from types import SimpleNamespace

import datasets
import numpy as np
import pandas as pd
import pytest

from common.data.drawing import draw_splits, number_groups
from common.data.rows import ImageRows
from common.data.splits import LabelColumns, Reading, check_groups, load_splits, open_table, read_cells, read_groups
from common.labels.doubts import PLACEHOLDERS
from common.labels.encoding import short_list
from common.labels.hierarchy_files import key_labels, load_hierarchy
from common.labels.table import hierarchy_from_table
from common.labels.table_files import read_table
from common.model.tree import fold_name
from common.run.setup import _draw_validation
from data_prep.rows.tables import read_tables

EXCEL = [("slægt", "art"), ("Ærtetrøffel", "første"), ("Boletus", "cèpe")]


def write(path, rows, sep=",", encoding="utf-8"):
    path.write_bytes("".join(sep.join(row) + "\n" for row in rows).encode(encoding))
    return path


def cells(path, column, **reading):
    """A column through the trainers' door and through that of data_prep; both say the same."""
    rows = load_splits("unused", None, {"train": str(path)}, Reading(**reading))["train"]
    prepared = read_tables({"train": path}, [column], [], reading=Reading(**reading)).frame[column].tolist()
    assert read_cells(rows, column) == prepared
    return prepared


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl", "xlsx"])
def test_text_is_text(tmp_path, kind):
    codes = ["007", "7", "1.10", "1.1", "5E4", "50000", "0016E5", " x ", "2020-01-01", "True", "00:10"]
    frame = pd.DataFrame({"code": codes})
    path = tmp_path / f"table.{kind}"
    {
        "csv": lambda: frame.to_csv(path, index=False),
        "parquet": lambda: frame.to_parquet(path),
        "jsonl": lambda: frame.to_json(path, orient="records", lines=True),
        "xlsx": lambda: frame.to_excel(path, index=False),
    }[kind]()
    assert cells(path, "code") == [code.strip() for code in codes]


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "xlsx"])
def test_numbers_become_text_in_one_way(tmp_path, kind):
    frame = pd.DataFrame({"id": [12345678901234567, 5, 7], "x": [7.0, 1.5, np.nan]})
    path = tmp_path / f"table.{kind}"
    if kind == "xlsx":
        frame["id"] = [1234567, 5, 7]
        frame.to_excel(path, index=False)
    else:
        frame.to_parquet(path) if kind == "parquet" else frame.to_json(path, orient="records", lines=True)
    assert cells(path, "id") == [str(number) for number in frame["id"]] and cells(path, "x") == ["7", "1.5", None]


def test_missing_values_are_counted_aloud_and_can_be_changed(tmp_path, caplog):
    words = ["a", "", "NA", "N/A", "n/a", "NaN", "nan", "null", "NULL", "-", "None", " - "]
    path = write(tmp_path / "t.csv", [("x", "other"), *((word, "1") for word in words)])
    caplog.set_level(logging.INFO)
    assert cells(path, "x") == ["a", *[None] * 9, "None", None]
    assert "x 10 ('empty' 1" in caplog.text and "'-' 2" in caplog.text and "--missing_values" in caplog.text
    assert cells(path, "x", missing=["a"])[:3] == [None, None, "NA"]


def test_words_are_blank_in_data_sets_too_but_for_class_names(tmp_path):
    rows = datasets.Dataset.from_dict({"label": [0, 1], "text": ["NA", "b"], "image": ["x", "y"]})
    rows.cast_column("label", datasets.ClassLabel(names=["NA", "b"])).save_to_disk(tmp_path / "set")
    loaded = load_splits(str(tmp_path / "set"), None, {})["train"]
    assert read_cells(loaded, "label") == ["NA", "b"] and read_cells(loaded, "text") == [None, "b"]
    assert loaded.column_names == ["label", "text", "image"] and loaded.cache_files


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".txt"])
@pytest.mark.parametrize("sep", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_what_excel_writes(tmp_path, ending, sep, encoding):
    path = write(tmp_path / f"t{ending}", EXCEL, sep, encoding)
    table = read_table(path)
    assert table.columns.to_pydict() == {"slægt": ["Ærtetrøffel", "Boletus"], "art": ["første", "cèpe"]}
    assert bool(table.notes) == (encoding == "cp1252")
    tree, report = load_hierarchy(path)
    assert tree.names[0] == ("Boletus", "Ærtetrøffel") and report == table.notes


def test_quotes_enclose_fields_but_not_between_tabs(tmp_path):
    (tmp_path / "a.csv").write_text('x;y\n"a;b";"two\nlines"\n"say ""q""";z\n')
    assert read_table(tmp_path / "a.csv").columns.to_pydict() == {"x": ["a;b", 'say "q"'], "y": ["two\nlines", "z"]}
    places = ["x" * 140_000, '"half', "b", 'half"', "c"] * 8
    write(tmp_path / "b.csv", [("file", "place"), *((f"{n}.jpg", place) for n, place in enumerate(places))], "\t")
    assert cells(tmp_path / "b.csv", "file") == [f"{n}.jpg" for n in range(40)]
    assert cells(tmp_path / "b.csv", "place") == places


@pytest.mark.parametrize(
    "text",
    [
        'a,b,c\n1,"oak 5 cm,x\n2,beech,y\n3,elm,z\n4,5",x\n5,fir,y\n',  # up to the next stray one
        'a,b,c\n1,"oak,x\n2,beech,y\n3,elm,z\n',  # up to the end
        'a,b\n1,x\n2,"y\n3,"z"\n',  # up to an honest one
    ],
)
def test_a_stray_quote_does_not_swallow_rows(tmp_path, text):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(
        ValueError, match=r't.csv: a quote \("\) in line [23] opens a cell that goes on to line [3456]'
    ):
        read_table(tmp_path / "t.csv")


def test_quotes_that_are_no_mistake(tmp_path):
    (tmp_path / "t.csv").write_text('a,b,c\n1,"two\nlines, and\nmore",x\n2,5" pipe,"say ""hi"""\n')
    assert read_table(tmp_path / "t.csv").columns["b"].to_pylist() == ["two\nlines, and\nmore", '5" pipe']


def test_a_folder_of_tables_is_text_too(tmp_path):
    for split, code in (("train", "007"), ("test", "1.10")):
        (tmp_path / f"{split}.csv").write_text(f"image;code\na.jpg;{code}\n")
    splits = load_splits(str(tmp_path), None, {})
    assert {split: rows["code"][0] for split, rows in splits.items()} == {"train": "007", "test": "1.10"}


def test_rows_that_do_not_fit_are_named_by_their_lines(tmp_path):
    path = write(tmp_path / "t.tsv", [("a", "b"), ("1", "2"), (), ("3",), ("4", "5", "6"), ("7", "8")], "\t")
    rows, table = open_table(path, Reading())
    assert rows["a"][:] == ["1", "7"] and table.numbers.tolist() == [0, 3]
    assert {row: told.split("ends in ")[1] for row, told in table.malformed.items()} == {1: "line 4)", 2: "line 5)"}
    with pytest.raises(ValueError, match=r"2 rows of the train file .*row 1.*line 4"):
        load_splits("unused", None, {"train": str(path)})


def test_paths(tmp_path):
    folder = tmp_path / "my data [2024]"
    folder.mkdir()
    (folder / unicodedata.normalize("NFD", "cèpe.jpg")).write_bytes(b"x")
    reading = Reading(images=["file"], suffix=".jpg")
    path = write(folder / "t.csv", [("file", "label"), (unicodedata.normalize("NFC", "cèpe"), "a"), ("b\\c.JPG", "b")])
    pd.read_csv(path).to_parquet(folder / "t.parquet")
    for name in ("t.csv", "t.parquet"):
        rows = load_splits("unused", None, {"train": str(folder / name)}, reading)["train"]
        assert rows["file"][:] == [unicodedata.normalize("NFC", "cèpe.jpg"), "b/c.JPG"]
    first = ImageRows(rows, "file", "train", folder).encoded([0])[0]
    assert first == str(folder / unicodedata.normalize("NFD", "cèpe.jpg"))
    write(path, [("file", "label"), ("https://example.org/a.jpg", "a")])
    with pytest.raises(ValueError, match="addresses on the web"):
        load_splits("unused", None, {"train": str(path)}, reading)


def test_messages_fit_a_screen(tmp_path):
    (tmp_path / "big.json").write_text("{" + ", ".join(f'"{n}": {{"a": 1}}' for n in range(5000)) + "}")
    with pytest.raises(ValueError, match=r"one object with the keys 0, 1.*5,000") as caught:
        load_splits("unused", None, {"train": str(tmp_path / "big.json")})
    assert len(str(caught.value)) < 500 and len(short_list(["x" * 10_000] * 100)) < 2000
    write(tmp_path / "t.csv", [[f"column {n}" for n in range(1000)], ["1"] * 1000])
    with pytest.raises(ValueError, match="no column 'file'"):
        read_tables({"": tmp_path / "t.csv"}, ["file"], [])


def test_a_group_is_one_group_however_it_is_written(tmp_path):
    train = write(tmp_path / "a.csv", [("g",), ("1008.0",), ("9.0",), ("0016E5",)])
    validation = write(tmp_path / "b.csv", [("g",), ("1008",), ("10",)])
    splits = load_splits("unused", None, {"train": str(train), "validation": str(validation)})
    with pytest.raises(ValueError, match="1 values of --group_column g .* 1008:"):
        check_groups(splits["train"], splits["validation"], "g")
    assert read_groups(splits["train"], "g") == ["1008", "9", "0016E5"]


def test_a_key_column_names_paths(tmp_path):
    rows = [("code", "family", "genus", "species"), ("AM.MU", "F", "A", "a m"), ("AM.VI", "F", "A", "a v")]
    path = write(tmp_path / "tree.csv", rows)
    tree, report = load_hierarchy(path, key="code")
    assert tree.levels == ("family", "genus", "species") and not report
    assert key_labels(path, "code", tree) == {"am.mu": (0, 0, 0), "am.vi": (0, 0, 1)}
    labels = LabelColumns(label_column="code", hierarchy_file=str(path)).read_labels(
        datasets.Dataset.from_dict({"code": ["AM.VI", None]}), tree, "train"
    )
    assert labels.tolist() == [[0, 0, 1], [-100] * 3]
    assert load_hierarchy(path, key="species")[0].levels == rows[0]
    write(path, [*rows, ("AM.MU", "F", "A", "a v")])
    with pytest.raises(ValueError, match="row 4: code 'AM.MU' has more than one path"):
        key_labels(path, "code", tree)


def test_doubtful_orders_are_asked_about():
    wrong = {"species": ["a1", "a2", "b1"], "genus": ["A", "A", "B"], "family": ["F"] * 3}
    assert "species 3 > genus 2 > family 1: are they coarse to fine?" in hierarchy_from_table(wrong)[1][0]
    assert not hierarchy_from_table(dict(reversed(wrong.items())))[1]


def test_one_odd_parent_is_probably_a_mistake():
    species = [f"s{n % 2}" for n in range(12)]
    columns = {"family": ["Typo"] + ["F"] * 11, "genus": ["G"] * 12, "species": species}
    tree, report = hierarchy_from_table(columns)
    assert tree.num_classes == (2, 2, 3) and "probably a mistake" in report[0] and "row 0" in report[0]
    rows = datasets.Dataset.from_dict(columns)
    labels = LabelColumns(list(columns), conflicts="majority")
    tree, report = labels.read_hierarchy(rows)
    assert tree.num_classes == (1, 1, 2) and "moved" in report[0]
    assert labels.read_labels(rows, tree, "train").tolist() == [[0, 0, n % 2] for n in range(12)]
    with pytest.raises(ValueError, match="probably a mistake"):
        hierarchy_from_table(columns, conflicts="error")


def test_placeholders_are_asked_about():
    genera = [f"g{n}" for n in range(3)]
    report = " ".join(hierarchy_from_table({"genus": genera, "species": ["Unknown"] * 3})[1])
    assert "if it means that the species is not known" in report and "--missing_values NA" in report
    assert not [line for line in hierarchy_from_table({"g": genera, "s": ["alba"] * 3})[1] if "--missing" in line]
    assert all(fold_name(word) == word for word in PLACEHOLDERS)


def test_unicode_forms_are_one_name():
    forms = [unicodedata.normalize(form, "cèpe") for form in ("NFC", "NFD", "NFD")]
    tree, report = hierarchy_from_table({"a": forms})
    assert tree.names == (("cèpe",),) and "spellings merged" in report[0]


def test_drawn_splits_keep_groups_and_classes():
    groups = number_groups([None if n % 10 == 9 else f"g{n // 4}" for n in range(200)])
    paths = np.arange(200) // 20
    drawn = draw_splits(groups, paths, (0.2,), seed=0)
    assert not set(groups[drawn == 0]) & set(groups[drawn == 1]) and set(paths[drawn == 0]) == set(paths)
    assert 20 <= drawn.sum() <= 50


def test_validation_is_drawn_from_training_by_groups(caplog):
    columns = {"image": [f"{n}.jpg" for n in range(60)], "obs": [str(n // 2) for n in range(60)], "s": ["a", "b"] * 30}
    args = SimpleNamespace(
        train_split="train", validation_split="validation", group_column="obs", image_column="image", seed=0,
        level_columns=["s"], label_column=None,
    )  # fmt: skip
    splits = datasets.DatasetDict(train=datasets.Dataset.from_dict(columns), test=datasets.Dataset.from_dict(columns))
    drawn = _draw_validation(args, splits)
    assert not set(drawn["train"]["obs"]) & set(drawn["validation"]["obs"])
    assert len(drawn["train"]) + len(drawn["validation"]) == 60 and 2 <= len(drawn["validation"]) <= 8
    assert "training images were drawn for it, by obs" in caplog.text
    few = splits["train"].remove_columns("obs").add_column("obs", ["x", "y"] * 30)
    with pytest.raises(ValueError, match="the 2 groups of training are too few"):
        _draw_validation(args, datasets.DatasetDict(train=few, test=few))
