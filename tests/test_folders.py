"""Trees of folders as people have them: what is a split, a class or neither, the same for every tool."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
from PIL import Image

from common.data.folders import find_images, name_splits
from common.data.splits import load_splits
from data_prep import check_images, prepare_table


@pytest.fixture
def tree(tmp_path: Path) -> Callable[..., Path]:
    """A folder with images (and other files, as they are) at these paths."""

    def make(*paths: str) -> Path:
        for number, name in enumerate(paths):
            file = tmp_path / "photos" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            if file.suffix == ".jpg":
                Image.new("RGB", (24, 20), (number % 256, 90, 60)).save(file)
            else:
                file.write_bytes(b"x")
        return tmp_path / "photos"

    return make


def lengths(splits: datasets.DatasetDict) -> dict[str, int]:
    return {split: len(rows) for split, rows in splits.items()}


def prepare(root: Path, output: Path, *words: str) -> datasets.DatasetDict:
    options = ["--image_folder", str(root), "--num_proc", "1", "--output_dir", str(output), *words]
    return datasets.load_from_disk(str(prepare_table.main(options)))


CLASSES = [f"{split}/{kind}/{number}.jpg" for split in ("train", "val") for kind in "ab" for number in range(3)]
FOREIGN = [
    *("train/.ipynb_checkpoints/0.jpg", ".Trash-1000/c/1.jpg", "@eaDir/a/2.jpg", "__MACOSX/train/a/._0.jpg"),
    *("train/a/._0.jpg", "train/a/Thumbs.db", "notes.txt", "val/a/list.txt"),
]


def test_folders_of_other_programs_are_nobodys_class(tree, tmp_path, caplog, capsys):
    root = tree(*CLASSES, *FOREIGN)
    found = find_images(root)
    assert sorted(found.names) == sorted(CLASSES)
    splits = load_splits(str(root), None, {})
    assert lengths(splits) == {"train": 6, "validation": 6}
    assert splits["train"].features["label"].names == ["a", "b"] and splits["train"]["label"][:] == [0, 0, 0, 1, 1, 1]
    assert splits["train"][0]["image"].size == (24, 20)
    assert "2 .txt" in caplog.text and ".Trash-1000" in caplog.text and "@eaDir" in caplog.text
    assert {split: set(rows["label"]) for split, rows in prepare(root, tmp_path / "out").items()} == {
        "train": {"a", "b"},
        "validation": {"a", "b"},
    }
    words = ["--dataset_name", str(root), "--output_dir", str(tmp_path / "checks"), "--num_proc", "0"]
    assert check_images.main(words) == 0
    assert "12 rows checked" in capsys.readouterr().out


def test_splits_are_whole_names_of_folders(tree, tmp_path):
    """A class called train, and files called test: words that say nothing."""
    root = tree("train/0.jpg", "bus/train_1.jpg", "bus/test_wall_0.jpg", "car/validation.jpg", "car/valid/2.jpg")
    splits = load_splits(str(root), None, {})
    assert lengths(splits) == {"train": 4} and splits["train"].features["label"].names == ["bus", "car", "train"]
    found = find_images(tree("val/3.jpg"))
    assert found.splits() == {} and "train and val look like splits, but bus, car" in found.notes[-1]


def test_names_that_are_probably_splits(tree, tmp_path):
    assert name_splits(["train_mini", "val"]) == ({"val": "validation"}, {"train_mini": "train"})
    assert name_splits(["train", "train_mini", "val"])[1] == {}
    assert name_splits(["trainer", "wall"]) == ({}, {})
    root = tree(*(f"{split}/{kind}/{n}.jpg" for split in ("train_mini", "val") for kind in "ab" for n in range(2)))
    found = find_images(root)
    assert found.splits() == {"train_mini": "train", "val": "validation"} and "train_mini" in found.notes[-1]


def test_links_are_followed_inside_of_the_root(tree, tmp_path):
    root = tree(*CLASSES)
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    Image.new("RGB", (8, 8)).save(outside / "x.jpg")
    (root / "test").symlink_to(root / "val")
    (root / "train/c").symlink_to(root / "train/b")
    (root / "train/d").symlink_to(outside)
    (root / "train/a/round").symlink_to(root / "train")
    found = find_images(root)
    assert len(found.names) == 12 + 6 + 3
    assert "test/b/0.jpg" in found.names and "train/c/2.jpg" in found.names
    assert any("train/d" in note and "train/a/round" in note for note in found.notes)
    assert lengths(load_splits(str(root), None, {})) == {"train": 9, "validation": 6, "test": 6}


def test_folders_that_describe_themselves_are_read_by_datasets(tree):
    root = tree("a.jpg", "b.jpg")
    (root / "metadata.csv").write_text("file_name,kind\na.jpg,x\nb.jpg,y\n")
    assert load_splits(str(root), None, {})["train"]["kind"][:] == ["x", "y"]


def test_images_at_another_depth_are_told(tree, caplog):
    root = tree("a/0.jpg", "a/1.jpg", "b/2.jpg", "loose.jpg")
    assert lengths(load_splits(str(root), None, {})) == {"train": 3} and "loose.jpg" in caplog.text


def test_some_of_a_sets_shards_beside_its_card(tmp_path):
    card = "---\ndataset_info:\n  features:\n  - name: kind\n    dtype: string\n  splits:\n  - name: train\n"
    (tmp_path / "README.md").write_text(card + "    num_bytes: 9999\n    num_examples: 99\n---\n")
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_dict({"kind": ["a", "b"]}).to_parquet(tmp_path / "data/train-00000-of-00003.parquet")
    assert load_splits(str(tmp_path), None, {})["train"]["kind"][:] == ["a", "b"]
