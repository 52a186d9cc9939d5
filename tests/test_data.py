"""Splits, columns, labels and images on their way in."""

from __future__ import annotations

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import LEVELS, PATHS, make_split, png

from common.data.rows import ImageRows, Samples, collate
from common.data.splits import LabelColumns, check_unseen, choose_rows, get_split, leaves_without_images, load_splits
from common.images.transforms import EvaluationTransform
from common.model.hierarchy import Hierarchy
from common.model.tree import IGNORE


def test_every_way_to_give_a_data_set(fruit, tmp_path):
    whole = load_splits(str(fruit), None, {})
    expected = whole["train"]["species"][:]
    train = whole["train"].cast_column("image", datasets.Image(decode=False))
    train.to_parquet(tmp_path / "train.parquet")
    columns = train.remove_columns("image")
    columns.to_csv(tmp_path / "train.csv")
    columns.to_csv(tmp_path / "train.tsv", sep="\t")
    columns.to_json(tmp_path / "train.jsonl")
    for name in ("train.parquet", "train.csv", "train.tsv", "train.jsonl"):
        loaded = load_splits("unused", None, {"train": str(tmp_path / name), "validation": None})
        assert loaded["train"]["species"][:] == expected, name
    train.save_to_disk(tmp_path / "single")
    assert load_splits(str(tmp_path / "single"), None, {})["train"]["species"][:] == expected
    folder = tmp_path / "images" / "train" / "cherry"
    folder.mkdir(parents=True)
    make_split(2, 1)["image"][0].save(folder / "a.jpg")
    by_folder = load_splits(str(tmp_path / "images"), None, {})["train"]
    assert "image" in by_folder.column_names


def test_data_sets_that_are_not_there(tmp_path):
    for name in ("./nowhere", str(tmp_path / "missing"), "no-such-org/no-such-data"):
        with pytest.raises(ValueError, match="dataset_name"):
            load_splits(name, None, {})
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not really")
    (tmp_path / "table.ods").write_bytes(b"")
    for name, message in (("broken.parquet", "Cannot read"), ("table.ods", "none of .csv"), ("no.csv", "not exist")):
        with pytest.raises(ValueError, match=message):
            load_splits("unused", None, {"train": str(tmp_path / name)})
    with pytest.raises(ValueError, match="No split 'val'.*there are: train"):
        get_split(datasets.DatasetDict(train=make_split(4, 0)), "val", "--validation_split")


def test_labels_from_level_columns_and_from_class_labels(fruit):
    split = load_splits(str(fruit), None, {})["train"]
    columns = LabelColumns(LEVELS)
    tree, report = columns.read_hierarchy(split)
    labels = columns.read_labels(split, tree, "train")
    assert tree.num_classes == (2, 4, 6)
    for row in (0, 3, 11):
        path = PATHS[row % 6]
        for level in range(3):
            known = level < 2 or row % 7 != 3
            assert labels[row, level] == (tree.names[level].index(path[level]) if known else IGNORE)
    names = sorted({path[2] for path in PATHS})
    encoded = split.cast_column("species", datasets.ClassLabel(names=names))
    assert (columns.read_labels(encoded, tree, "train") == labels).all()


def test_one_column_and_no_hierarchy_is_a_tree_of_one_level(fruit):
    split = load_splits(str(fruit), None, {})["train"]
    columns = LabelColumns(label_column="family")
    tree, _ = columns.read_hierarchy(split)
    assert tree.levels == ("family",) and tree.num_classes == (4,)
    assert columns.read_labels(split, tree, "train").shape == (96, 1)


def test_label_options_that_contradict(fruit):
    with pytest.raises(ValueError, match="not both"):
        LabelColumns(LEVELS, "species").columns()
    with pytest.raises(ValueError, match="--level_columns COARSE"):
        LabelColumns().columns()


def test_unseen_class_names_rows():
    tree = Hierarchy(["a"], [["x", "y"]], [[None, None]])
    with pytest.raises(ValueError, match=r"1 classes of level 'a'.*y \(the first in rows \[2\]\)"):
        check_unseen(np.array([[0]]), np.array([[0], [IGNORE], [1]]), tree)
    check_unseen(np.array([[0], [1]]), np.array([[1], [IGNORE]]), tree)


def test_leaves_without_images_are_named():
    tree = Hierarchy(["a", "b"], [["x"], ["p", "q", "r"]], [[None], [0, 0, 0]])
    assert leaves_without_images(np.array([[0, 1], [0, IGNORE]]), tree) == ["p", "r"]
    assert leaves_without_images(np.array([[0, 0], [0, 1], [0, 2]]), tree) == []


def test_chosen_rows_are_random_sorted_and_repeatable():
    rows = choose_rows(1000, 100, seed=1)
    assert len(set(rows.tolist())) == 100 and (np.diff(rows) > 0).all() and rows[-1] > 500
    assert (rows == choose_rows(1000, 100, seed=1)).all() and (rows != choose_rows(1000, 100, seed=2)).any()
    assert (choose_rows(5, None, 0) == np.arange(5)).all()


def test_samples_carry_row_numbers_of_the_whole_table(fruit):
    """With a subset, what is reported and saved must name rows of the data set, not of the subset."""
    split = load_splits(str(fruit), None, {})["validation"]
    transform = EvaluationTransform(16, resize_mode="squash", crop_pct=1.0, interpolation="bilinear")
    labels = np.arange(len(split))[:, None]
    images = Samples(ImageRows(split, "image", "validation"), np.array([3, 8, 20]), transform, labels)
    batch = collate(images.__getitems__([(0, 2), (0, 0)]))
    assert batch["rows"].tolist() == [20, 3] and batch["labels"].tolist() == [[20], [3]]
    assert (images[0, 1]["pixels"] == transform(png(split[8]["image"]))).all()


def test_images_in_a_plain_struct_as_other_programs_write_them(fruit, tmp_path):
    """pandas and polars write bytes and path without the words that make them an Image column."""
    split = load_splits(str(fruit), None, {})["validation"].cast_column("image", datasets.Image(decode=False))
    cells = [{"bytes": None, "path": None}] + split[:3]["image"]
    pq.write_table(pa.table({"image": cells}), tmp_path / "a.parquet")
    plain = load_splits("", None, {"train": str(tmp_path / "a.parquet")})["train"]
    assert not isinstance(plain.features["image"], datasets.Image)
    rows = ImageRows(plain, "image", "train")
    assert rows.encoded([1, 3]) == [cells[1]["bytes"], cells[3]["bytes"]]
    assert rows.check_headers() == ["row 0 of the train split: the row names no file"]


def test_images_may_be_missing_or_of_another_kind(fruit):
    split = load_splits(str(fruit), None, {})["validation"]
    with pytest.raises(ValueError, match="neither images nor paths"):
        ImageRows(split.add_column("number", list(range(len(split)))), "number", "validation")
    holes = datasets.Dataset.from_dict(
        {"image": [split.cast_column("image", datasets.Image(decode=False))[0]["image"], None]}
    )
    rows = ImageRows(holes.cast_column("image", datasets.Image()), "image", "train")
    assert rows.check_headers() == ["row 1 of the train split: the row names no file"]


def test_urls_are_said():
    rows = ImageRows(datasets.Dataset.from_dict({"image": ["https://example.org/a.jpg"]}), "image", "train", ".")
    with pytest.raises(ValueError, match=r"https://example.org/a.jpg is a URL: download the images first"):
        rows.encoded([0])
