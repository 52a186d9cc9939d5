"""Folds: groups and augmented copies on one side only, classes spread, and trainers that read them."""

import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, DatasetDict

from common.data.splits import load_splits
from common.system.files import atomic_folder
from data_prep import make_folds
from train_segmentation import main as train_segmentation


@pytest.fixture
def works(tmp_path: Path) -> Path:
    """120 works in three materials, with augmented copies, in two splits that ignore both."""
    rows = [(f"w{work}", ["wood", "glass", "oil/canvas"][work % 3], f"c{work % 4}") for work in range(120)]
    rows += [(f"w{work}_aug{copy}", *rows[work][1:]) for work in range(120) for copy in range(2)]
    rows = [(*row, f"half {row[2] in ('c0', 'c1')}") for row in rows]
    columns = ["id", "material", "kind", "half"]
    order = np.random.default_rng(0).permutation(len(rows))

    def split(part):
        return Dataset.from_dict({name: [rows[row][at] for row in part] for at, name in enumerate(columns)})

    DatasetDict(train=split(order[:200]), validation=split(order[200:])).save_to_disk(tmp_path / "works")
    return tmp_path / "works"


def run(data, output, *words):
    make_folds.main(["--dataset_name", str(data), "--output_dir", str(output), *words])
    return {folder.name: load_splits(str(folder), None, {}) for folder in sorted(output.iterdir()) if folder.is_dir()}


def base(name):
    return name.split("_aug")[0]


def check(folds):
    """Works on one side only, and copies in train only."""
    for splits in folds.values():
        works = {split: {base(name) for name in splits[split]["id"]} for split in ("train", "validation", "test")}
        assert all(works.values())
        assert not works["train"] & works["validation"] and not works["test"] & (works["train"] | works["validation"])
        assert any("_aug" in name for name in splits["train"]["id"])
        assert not any("_aug" in name for split in ("validation", "test") for name in splits[split]["id"])


def test_a_fold_for_each_value(works, tmp_path):
    folds = run(works, tmp_path / "folds", "--leave_out", "material", "--group_column", "id", "--stratify_by", "kind")
    assert list(folds) == ["material_glass", "material_oil_canvas", "material_wood"]
    check(folds)
    for name, value in (("material_glass", "glass"), ("material_oil_canvas", "oil/canvas")):
        assert set(folds[name]["test"]["material"]) == {value} and len(folds[name]["test"]) == 40
        for split in ("train", "validation"):
            assert value not in folds[name][split]["material"]
            assert set(folds[name][split]["kind"]) == {"c0", "c1", "c2", "c3"}
    summary = json.loads((tmp_path / "folds" / "folds.json").read_text())
    assert summary["material_wood"]["test"] == {"num_rows": 40, "num_groups": 40, "num_classes": 4}
    assert not list(tmp_path.glob("*.incomplete"))


def test_random_folds_cover_every_work_once(works, tmp_path):
    folds = run(works, tmp_path / "folds", "--num_folds", "4", "--group_column", "id", "--stratify_by", "kind")
    check(folds)
    tested = [name for splits in folds.values() for name in splits["test"]["id"]]
    assert sorted(tested) == sorted(f"w{work}" for work in range(120))
    for splits in folds.values():
        counts = np.unique(splits["test"]["kind"], return_counts=True)[1]
        assert counts.min() >= 5 and counts.max() <= 10
    again = run(works, tmp_path / "again", "--num_folds", "4", "--group_column", "id", "--stratify_by", "kind")
    assert [s["test"]["id"][:] for s in again.values()] == [s["test"]["id"][:] for s in folds.values()]


def test_groups_that_reach_into_the_test_part_are_left_out():
    groups = np.array([0, 0, 1, 1, 2, 3, 4, 5])
    values = ["a", "b", "b", "b", "c", "c", "c", None]
    folds = make_folds.make_folds(groups, np.zeros(8, dtype=int), np.zeros(8, dtype=bool), values=values)
    assert folds["a"][:2].tolist() == [2, make_folds.NOWHERE]
    assert set(folds["a"][2:].tolist()) == {0, 1}


def test_names_of_any_script_and_classes_of_a_few_images(tmp_path):
    """A class that a fold cannot learn is in none of its parts; random folds test each other one everywhere else."""
    rows = [("solo", 0), *[("pair", n) for n in range(2)], *[("three", n) for n in range(3)]]
    rows += [("many", number) for number in range(30)]
    lines = [f"{kind}{n}.png,{kind},{'油画' if n % 2 else 'γραφή'},{kind}{n}\n" for kind, n in rows]
    (tmp_path / "all.csv").write_text("image,kind,place,id\n" + "".join(lines), encoding="utf-8")
    words = ["--train_file", str(tmp_path / "all.csv"), "--group_column", "id", "--stratify_by", "kind"]
    for name, how in (("folds", ["--num_folds", "5"]), ("places", ["--leave_out", "place"])):
        make_folds.main([*words, *how, "--output_dir", str(tmp_path / name)])
    for fold in (tmp_path / "folds").glob("fold_*"):
        splits = load_splits(str(fold), None, {})
        assert {*splits["validation"]["kind"], *splits["test"]["kind"]} <= set(splits["train"]["kind"])
    tested = [load_splits(str(fold), None, {})["test"]["id"] for fold in sorted((tmp_path / "folds").glob("fold_*"))]
    assert sorted(name for names in tested for name in names) == sorted(f"{kind}{n}" for kind, n in rows[1:])
    assert sorted(folder.name for folder in (tmp_path / "places").glob("place_*")) == ["place_γραφή", "place_油画"]


def test_folds_spread_rare_classes():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(300), 4)
    classes = np.repeat(rng.choice(10, 300, p=np.array([300, 60, 40, 30, 20, 20, 10, 10, 6, 4]) / 500), 4)
    folds = make_folds.make_folds(groups, classes, np.zeros(1200, bool), num_folds=5, validation_share=0.2)
    for parts in folds.values():
        assert abs((parts == 2).mean() - 0.2) < 0.02 and abs((parts == 1).mean() - 0.16) < 0.02
        for kind in np.unique(classes):
            total = (classes == kind).sum()
            assert abs((parts[classes == kind] == 2).sum() - 0.2 * total) <= 8


def test_a_trainer_reads_a_fold(tiles, dense_options, tmp_path):
    """The label tree comes along, images are not copied, and both folders can be moved together."""
    words = ["--num_folds", "3", "--group_column", "tile"]
    run(tiles, tmp_path / "folds", *words)
    fold = tmp_path / "folds" / "fold_0"
    assert sorted(file.name for file in fold.iterdir()) == ["hierarchy.yaml", "rows.csv", "selection.json"]
    results = train_segmentation(
        dense_options(dataset_name=fold, group_column="tile", max_train_steps=1, num_train_epochs=None)
    )
    assert 0 <= results["eval"]["levels"]["fine"]["mean_iou"] <= 1


def test_a_changed_source_is_noticed(works, tmp_path):
    run(works, tmp_path / "folds", "--num_folds", "2", "--group_column", "id")
    fold = tmp_path / "folds" / "fold_0"
    works.rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="does not exist"):
        load_splits(str(fold), None, {})
    splits = load_splits(str(tmp_path / "elsewhere"), None, {})
    DatasetDict(train=splits["train"].select(range(9)), validation=splits["validation"]).save_to_disk(works)
    with pytest.raises(ValueError, match="its source now has"):
        load_splits(str(fold), None, {})


def test_tables_with_paths(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "all.csv").write_text("image,place\n" + "".join(f"{i}.png,p{i % 3}\n" for i in range(30)))
    words = ["--train_file", str(tmp_path / "data" / "all.csv"), "--leave_out", "place"]
    make_folds.main([*words, "--output_dir", str(tmp_path / "folds")])
    splits = load_splits(str(tmp_path / "folds" / "place_p1"), None, {})
    assert sorted(splits["test"]["image"]) == sorted(f"{i}.png" for i in range(1, 30, 3))
    source = json.loads((tmp_path / "folds" / "place_p1" / "selection.json").read_text())
    assert source["image_root"] == "../../data" and source["files"] == {"train": "../../data/all.csv"}


def test_mistakes_are_told(works, tmp_path):
    for words, message in (
        (["--leave_out", "matter"], "no column 'matter'"),
        (["--num_folds", "1", "--group_column", "id"], "at least 2"),
        (["--num_folds", "3", "--validation_share", "1"], "between 0 and 1"),
        (["--num_folds", "3", "--group_column", "id", "--augmented_pattern", "("], "--augmented_pattern"),
        (["--num_folds", "2", "--group_column", "half"], "nothing is left for|too few"),
        (["--num_folds", "3", "--group_column", "kind", "--id_column", "material"], "is in two groups"),
    ):
        with pytest.raises(ValueError, match=message):
            run(works, tmp_path / "folds", *words)
        assert not (tmp_path / "folds").exists()
    (tmp_path / "folds").mkdir()
    (tmp_path / "folds" / "notes.txt").touch()
    with pytest.raises(ValueError, match="already exists"):
        run(works, tmp_path / "folds", "--num_folds", "3", "--group_column", "id")


def test_an_interrupted_folder_has_no_name(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "out") as folder:
        (folder / "half").touch()
        raise KeyboardInterrupt
    assert not (tmp_path / "out").exists()
    with atomic_folder(tmp_path / "out") as folder:
        assert not list(folder.iterdir())
        (folder / "whole").touch()
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["whole"]
