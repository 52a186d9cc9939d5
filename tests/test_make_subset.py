"""Small subsets: the commonest classes, groups on one side, the same every time, and fit to train on."""

import numpy as np
import pytest
from conftest import LEVELS
from datasets import Dataset, DatasetDict, Image, load_from_disk

from common.labels.hierarchy_files import load_hierarchy
from data_prep import make_subset
from train_taxonomy import main as train


def run(data, output, *words):
    make_subset.main(["--dataset_name", str(data), "--output_dir", str(output), "--level_columns", *LEVELS, *words])
    return load_from_disk(str(output))


SIZES = ["--num_classes", "4", "--num_train_per_class", "5", "--num_validation_per_class", "2"]


def test_a_subset_trains(fruit, options, tmp_path, capsys):
    """Test images come from train, where the data set has none, and from other trees."""
    splits = run(fruit, tmp_path / "small", *SIZES, "--num_test_per_class", "1", "--group_column", "tree")
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 20, "validation": 8, "test": 4}
    for rows in splits.values():
        assert len(np.unique(rows["species"], return_counts=True)[0]) == 4
    trees = {split: set(rows["tree"]) for split, rows in splits.items()}
    assert not trees["train"] & trees["test"] and not trees["train"] & trees["validation"]
    hierarchy, _ = load_hierarchy(tmp_path / "small" / "hierarchy.json")
    assert set(hierarchy.names[-1]) == set(splits["train"]["species"]) and hierarchy.levels == tuple(LEVELS)
    assert set(hierarchy.names[0]) == set(splits["train"]["order"])
    train(options(dataset_name=tmp_path / "small", max_train_steps=1, num_train_epochs=None))
    again = run(fruit, tmp_path / "again", *SIZES, "--num_test_per_class", "1", "--group_column", "tree")
    assert all(again[split]["tree"][:] == splits[split]["tree"][:] for split in splits)
    other = run(fruit, tmp_path / "other", *SIZES, "--group_column", "tree", "--seed", "1")
    assert other["train"]["tree"][:] != splits["train"]["tree"][:]


def test_the_commonest_classes_are_chosen():
    labels = {"train": np.repeat([0, 1, 2, 3, -100], [3, 9, 5, 9, 20])}
    chosen, classes = make_subset.choose_subset(labels, {}, 2, {"train": 4, "validation": 2, "test": 0})
    assert classes == [1, 3]
    assert {split: len(places) for split, places in chosen.items()} == {"train": 8, "validation": 4}
    assert not set(chosen["train"]) & set(chosen["validation"])
    with pytest.raises(ValueError, match="has 4 classes, not 5"):
        make_subset.choose_subset(labels, {}, 5, {"train": 1})


def test_tables_with_paths_are_copied(tmp_path):
    """The folder holds the files; paths that leave the root are refused before anything is written."""
    from PIL import Image as PILImage

    root = tmp_path / "images"
    root.mkdir()
    for number in range(8):
        PILImage.new("RGB", (20, 20), (number, 0, 0)).save(root / f"{number}.png")
    lines = [f"{number}.png,{'ab'[number % 2]}" for number in range(8)]
    (root / "train.csv").write_text("\n".join(["file,kind", *lines]))
    words = ["--train_file", str(root / "train.csv"), "--image_column", "file", "--level_columns", "kind"]
    words += ["--num_classes", "2", "--num_train_per_class", "2", "--num_test_per_class", "1"]
    words += ["--num_validation_per_class", "1", "--output_dir", str(tmp_path / "small")]
    make_subset.main(words)
    splits = load_from_disk(str(tmp_path / "small"))
    for path in root.glob("*.png"):
        path.unlink()
    reds = [row["file"].getpixel((0, 0))[0] for rows in splits.values() for row in rows]
    assert len(set(reds)) == 8 and splits["train"].column_names == ["file", "kind"]
    (root / "train.csv").write_text("file,kind\n../secret.png,a\n../secret.png,b\n")
    (tmp_path / "secret.png").write_bytes(b"")
    words[words.index("--num_validation_per_class") + 1] = words[words.index("--num_test_per_class") + 1] = "0"
    words[-1] = str(tmp_path / "hostile")
    with pytest.raises(ValueError, match="outside of the folder"):
        make_subset.main(words)
    assert not (tmp_path / "hostile").exists()


def test_mistakes_are_told(fruit, tmp_path):
    for words, message in (
        (["--num_classes", "99"], "has 6 classes"),
        (["--num_classes", "0"], "at least 1"),
        (["--num_classes", "2", "--group_column", "bush"], "no column 'bush'"),
    ):
        with pytest.raises(ValueError, match=message):
            run(fruit, tmp_path / "out", *words)
        assert not (tmp_path / "out").exists()
    cells = [{"bytes": b"x", "path": None}] * 2
    only = Dataset.from_dict({"image": cells, "species": ["a", "b"]}).cast_column("image", Image())
    DatasetDict(test=only).save_to_disk(tmp_path / "test")
    with pytest.raises(ValueError, match="No split 'train'"):
        make_subset.main(
            [
                "--dataset_name",
                str(tmp_path / "test"),
                "--level_columns",
                "species",
                "--output_dir",
                str(tmp_path / "o"),
            ]
        )
