"""From tables and folders to data sets: what is kept, what is left out, and what a kill does."""

from __future__ import annotations

import io
import json
import os
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import COLORS, LEVELS, PATHS, TILES_TREE, draw_tile, encode
from PIL import Image

import train_taxonomy
from common.data.prepared import find_image_root
from common.data.problems import Problem, read_problems, write_problems
from common.data.rows import ImageRows
from common.data.splits import LabelColumns, Reading, check_unseen, load_splits
from common.labels.hierarchy_files import load_hierarchy
from common.labels.table import hierarchy_from_table
from data_prep import check_images
from data_prep.prepare_table import main

REPOSITORY = Path(train_taxonomy.__file__).parent
TINY_MODEL = "--model_name_or_path timm/test_vit --no_pretrained --image_size 32 --per_device_train_batch_size 4 "
TWO_STEPS = (TINY_MODEL + "--max_train_steps 2 --max_eval_samples 8 --dataloader_num_workers 0 --no_report").split()


def jpeg(label: int, size: tuple[int, int] = (40, 30)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, COLORS[label]).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def fruit_rows(count: int = 60) -> list[dict]:
    """Rows of a table; two images an observation."""
    return [
        {"file": f"img/{index}.jpg", **dict(zip(LEVELS, PATHS[index // 2 % 6], strict=True)), "obs": f"o{index // 2}"}
        for index in range(count)
    ]


@pytest.fixture
def fruits(tmp_path: Path) -> Callable[..., Path]:
    """A folder with images and a table of them; gets the rows."""

    def make(rows: list[dict] | None = None, name: str = "table.csv") -> Path:
        rows = fruit_rows() if rows is None else rows
        (tmp_path / "img").mkdir(exist_ok=True)
        for row in rows:
            target = tmp_path / str(row["file"])
            if target.stem.isdigit() and not target.exists():
                target.write_bytes(jpeg(int(target.stem) // 2 % 6))
        table = tmp_path / name
        frame = pd.DataFrame(rows)
        writers = {
            ".csv": lambda: frame.to_csv(table, index=False),
            ".tsv": lambda: frame.to_csv(table, index=False, sep="\t"),
            ".jsonl": lambda: frame.to_json(table, orient="records", lines=True),
            ".parquet": lambda: frame.to_parquet(table),
        }
        writers[table.suffix]()
        return table

    return make


def prepare(table: Path, output: Path, *words: str) -> Path:
    levels = [] if "--label_column" in words else ["--level_columns", *LEVELS]
    options = ["--table", str(table), "--image_column", "file", *levels, "--num_proc", "1"]
    return main([*options, "--output_dir", str(output), *words])


def kinds(folder: Path) -> dict[str, int]:
    return json.loads((folder / "stats.json").read_text())["left_out"]


def check_trainable(folder: Path) -> None:
    """What the trainers ask of labels; ValueError if they would refuse them."""
    splits, columns = datasets.load_from_disk(str(folder)), LabelColumns(LEVELS)
    tree, _ = columns.read_hierarchy(splits["train"])
    check_unseen(*(columns.read_labels(splits[split], tree, split) for split in ("train", "validation")), tree)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- what comes out


@pytest.mark.parametrize("name", ["table.csv", "table.tsv", "table.jsonl", "table.parquet"])
def test_tables_of_every_kind(fruits, tmp_path, name):
    folder = prepare(fruits(name=name), tmp_path / "out", "--group_column", "obs")
    splits = datasets.load_from_disk(str(folder))
    assert list(splits) == ["train", "validation", "test"]
    assert sum(map(len, splits.values())) == 60
    assert splits["train"].column_names == ["image", *LEVELS, "obs"]
    for split in splits.values():
        for row in split:
            index = int(Path(row["image"]).stem)
            assert tuple(row[level] for level in LEVELS) == PATHS[index // 2 % 6] and row["obs"] == f"o{index // 2}"
    groups = [set(split["obs"]) for split in splits.values()]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
    assert kinds(folder) == {}
    assert not (tmp_path / "out.incomplete").exists()


def test_descriptions(fruits, tmp_path):
    folder = prepare(fruits(), tmp_path / "out", "--group_column", "obs", "--title", "Fruit of the forest")
    splits = datasets.load_from_disk(str(folder))
    stats = json.loads((folder / "stats.json").read_text())
    assert stats["num_classes"] == {"order": 2, "family": 4, "species": 6}
    for split, data in splits.items():
        entry = stats["splits"][split]
        assert entry["num_images"] == len(data) and entry["num_groups"] == len(set(data["obs"]))
        for level in LEVELS:
            counts = pd.Series(data[level]).value_counts()
            assert entry["levels"][level]["counts"] == counts.to_dict()
            assert entry["levels"][level]["imbalance_ratio"] == round(counts.max() / counts.min(), 2)
        assert entry["image_sizes"] == {"min_width": 40, "max_width": 40, "min_height": 30, "max_height": 30}
    card = (folder / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["pretty_name"] == "Fruit of the forest" and front["task_categories"] == ["image-classification"]
    about = json.loads((folder / "prepared.json").read_text())
    assert about["image_root"] == str(tmp_path) and about["level_columns"] == LEVELS
    assert about["group_column"] == "obs" and about["image_column"] == "image" and about["mask_column"] is None


def test_the_tree_is_the_one_that_the_trainer_builds(fruits, tmp_path):
    rows = fruit_rows()
    rows[0]["family"] = None  # filled from the others
    rows[2]["species"] = "APPLE"  # merged
    rows[4]["species"] = None  # a partial label
    folder = prepare(fruits(rows), tmp_path / "out")
    train = datasets.load_from_disk(str(folder))["train"]
    tree = hierarchy_from_table({level: train[level] for level in LEVELS})[0]
    assert tree == load_hierarchy(folder / "hierarchy.json")[0]
    assert tree.num_classes == (2, 4, 6)
    every = {Path(row["image"]).stem: row for split in datasets.load_from_disk(str(folder)).values() for row in split}
    assert every["0"]["family"] == "Red" and every["2"]["species"] == "apple" and every["4"]["species"] is None
    notes = json.loads((folder / "stats.json").read_text())["notes"]
    assert any("spellings merged" in note for note in notes) and any("partial labels" in note for note in notes)


def test_embedding_keeps_the_bytes(fruits, tmp_path):
    folder = prepare(fruits(), tmp_path / "out", "--embed")
    train = datasets.load_from_disk(str(folder))["train"].cast_column("image", datasets.Image(decode=False))
    for cell in train["image"]:
        assert cell["bytes"] == (tmp_path / cell["path"]).read_bytes()
    assert json.loads((folder / "prepared.json").read_text())["image_root"] is None


def test_resizing_encodes_once_and_upright(fruits, tmp_path):
    rows = fruit_rows()
    (tmp_path / "img").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: 400 x 300 is shown as 300 x 400
    Image.new("RGB", (400, 300), (200, 30, 30)).save(tmp_path / "img/0.jpg", quality=95, exif=exif)
    Image.new("RGBA", (64, 48), (0, 0, 0, 0)).save(tmp_path / "img/1.jpg", "PNG")
    folder = prepare(fruits(rows), tmp_path / "out", "--resize_shorter", "24", "--quality", "80")
    every = {}
    for split in datasets.load_from_disk(str(folder)).values():
        for cell in split.cast_column("image", datasets.Image(decode=False))["image"]:
            every[cell["path"]] = Image.open(io.BytesIO(cell["bytes"]))
    assert every["img/0.jpg"].size == (24, 32) and not every["img/0.jpg"].getexif()
    assert np.abs(np.asarray(every["img/0.jpg"]).astype(int) - (200, 30, 30)).max() < 8
    assert every["img/1.jpg"].size == (32, 24) and np.asarray(every["img/1.jpg"]).min() > 250  # laid on white
    assert every["img/2.jpg"].size == (32, 24)
    assert {image.format for image in every.values()} == {"JPEG"}


def test_images_in_the_table(fruits, tmp_path):
    """Parquet as the Hub has it: the images themselves, one of them missing."""
    rows = [{**row, "file": {"bytes": jpeg(0), "path": f"{at}.jpg"}} for at, row in enumerate(fruit_rows(40))]
    rows[7]["file"] = {"bytes": None, "path": None}
    pd.DataFrame(rows).to_parquet(tmp_path / "t.parquet")
    folder = prepare(tmp_path / "t.parquet", tmp_path / "out", "--group_column", "obs")
    splits = datasets.load_from_disk(str(folder))
    assert sum(map(len, splits.values())) == 39 and kinds(folder) == {"missing": 1}
    assert splits["train"][0]["image"].size == (40, 30)
    row = splits["validation"].cast_column("image", datasets.Image(decode=False))[0]
    assert row["image"]["bytes"] == jpeg(0)
    index = int(Path(row["image"]["path"]).stem)
    assert row["species"] == PATHS[index // 2 % 6][2]


@pytest.mark.parametrize("kind", ["large", "view", "struct"])
def test_shards_as_polars_and_others_write_them(tmp_path, kind):
    """Images as large or viewed bytes, and a pattern for all shards of the set."""
    text, content = (pa.string_view(), pa.binary_view()) if kind != "large" else (pa.large_string(), pa.large_binary())
    for shard in range(2):
        names = pa.array([f"{at}.jpg" for at in range(6)], text)
        images = pa.array([jpeg(at) for at in range(6)], content)
        cells = pa.StructArray.from_arrays([images, names], ["bytes", "path"]) if kind == "struct" else images
        table = pa.table({"file": cells, "species": pa.array([PATHS[at][2] for at in range(6)], text)})
        pq.write_table(table, tmp_path / f"train-0000{shard}-of-00002.parquet")
    words = ["--table", str(tmp_path / "train-*.parquet"), "--image_column", "file", "--level_columns", "species"]
    words += ["--num_proc", "1", "--test_share", "0", "--output_dir", str(tmp_path / "out")]
    train = datasets.load_from_disk(str(main(words)))["train"].cast_column("image", datasets.Image(decode=False))
    assert len(train) >= 6 and set(train["species"]) == {path[2] for path in PATHS}
    for row in train:
        assert row["image"]["bytes"] == jpeg([path[2] for path in PATHS].index(row["species"]))
    rows = load_splits("", None, {"train": str(tmp_path / "train-*.parquet")}, Reading(images=["file"]))["train"]
    assert len(ImageRows(rows, "file", "train").encoded([3])[0]) == len(jpeg(3))


def test_trains(fruits, tmp_path):
    """With paths; conftest.py's data sets, on which all trainers' tests run, hold their images."""
    folder = prepare(fruits(), tmp_path / "out", "--group_column", "obs")
    options = ["--dataset_name", str(folder), "--level_columns", *LEVELS, "--group_column", "obs", *TWO_STEPS]
    results = train_taxonomy.main([*options, "--output_dir", str(tmp_path / "model")])
    assert results["train"]["global_step"] == 2 and results["eval"]["num_samples"] > 0


def test_images_that_moved_need_the_option(fruits, tmp_path):
    folder = prepare(fruits(), tmp_path / "out")
    (tmp_path / "img").rename(tmp_path / "moved")
    about = json.loads((folder / "prepared.json").read_text())
    (folder / "prepared.json").write_text(json.dumps({**about, "image_root": str(tmp_path / "gone")}))
    with pytest.raises(ValueError, match="--image_root"):
        find_image_root(folder)
    (tmp_path / "moved").rename(tmp_path / "img")
    (folder / "prepared.json").write_text(json.dumps({**about, "image_root": "nowhere"}))
    words = ["--dataset_name", str(folder), "--image_root", str(tmp_path), "--output_dir", str(tmp_path / "checks")]
    assert check_images.main([*words, "--num_proc", "0"]) == 0


def test_masks(tmp_path):
    rng = np.random.default_rng(3)
    rows = []
    for index in range(20):
        image, mask = draw_tile(rng, [[], [1], [2, 3], [3]][index % 4])
        if index == 5:
            mask = np.full_like(mask, 77)
        if index == 6:
            mask = mask[:-1]
        (tmp_path / f"{index}.png").write_bytes(encode(image))
        (tmp_path / f"{index}_mask.png").write_bytes(encode(mask))
        rows.append({"picture": f"{index}.png", "label": f"{index}_mask.png", "tile": index // 2})
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    (tmp_path / "tree.yaml").write_text(TILES_TREE)
    words = ["--table", f"{tmp_path}/t.csv", "--image_column", "picture", "--mask_column", "label"]
    words += ["--taxonomy", f"{tmp_path}/tree.yaml", "--group_column", "tile", "--num_proc", "1"]
    folder = main([*words, "--output_dir", f"{tmp_path}/out"])
    assert kinds(folder) == {"mask values": 1, "sizes differ": 1}
    small = main([*words, "--output_dir", f"{tmp_path}/small", "--resize_shorter", "16"])
    for split in datasets.load_from_disk(str(small)).values():
        for row in split:
            assert row["image"].size == row["mask"].size and min(row["mask"].size) == 16
            assert set(np.unique(row["mask"])) <= {0, 1, 2, 3, 255}
    stats = json.loads((folder / "stats.json").read_text())["splits"]
    data = datasets.load_from_disk(str(folder))
    names = load_hierarchy(folder / "hierarchy.json")[0].leaf_names()
    for split, entry in stats.items():
        masks = [np.asarray(Image.open(tmp_path / name)).ravel() for name in data[split]["mask"]]
        counts = np.bincount(np.concatenate(masks), minlength=256)
        expected = {names[v] if v < len(names) else str(v): int(counts[v]) for v in np.flatnonzero(counts)}
        assert entry["pixels"] == expected
    for number, data in enumerate((folder, small)):
        words = ["--dataset_name", str(data), "--mask_column", "mask", "--num_proc", "0", "--min_side", "1"]
        assert check_images.main([*words, "--output_dir", f"{tmp_path}/checks{number}"]) == 0


# ---- folders


def test_folder_per_class(tmp_path):
    for index in range(24):
        folder = tmp_path / "photos" / PATHS[index % 6][2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index}.jpg").write_bytes(jpeg(index % 6))
    (tmp_path / "photos" / "readme.txt").write_text("no image")
    (tmp_path / "photos" / "loose.jpg").write_bytes(jpeg(0))
    words = ["--image_folder", str(tmp_path / "photos"), "--num_proc", "1"]
    folder = main([*words, "--output_dir", str(tmp_path / "out")])
    splits = datasets.load_from_disk(str(folder))
    assert sum(map(len, splits.values())) == 24 and kinds(folder) == {"no label": 1}
    for row in splits["train"]:
        assert row["image"].split("/")[0] == row["label"]
    assert len(set(splits["train"]["label"])) == 6
    pd.DataFrame(PATHS, columns=LEVELS).to_csv(tmp_path / "tree.csv", index=False)
    more = ["--label_column", "label", "--taxonomy", str(tmp_path / "tree.csv")]
    folder = main([*words, *more, "--output_dir", str(tmp_path / "lifted")])
    train = datasets.load_from_disk(str(folder))["train"]
    assert {tuple(row[level] for level in LEVELS) for row in train} == set(PATHS)


def test_folders_of_splits_and_tiers(tmp_path):
    for index in range(24):
        folder = tmp_path / "photos" / ["train", "train", "val", "testing"][index // 6] / "/".join(PATHS[index % 6])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index}.jpg").write_bytes(jpeg(index % 6))
    words = ["--image_folder", str(tmp_path / "photos"), "--level_columns", *LEVELS, "--num_proc", "1"]
    splits = datasets.load_from_disk(str(main([*words, "--output_dir", str(tmp_path / "out")])))
    assert {split: len(data) for split, data in splits.items()} == {"train": 12, "validation": 6, "test": 6}
    assert {tuple(row[level] for level in LEVELS) for row in splits["test"]} == set(PATHS)


# ---- bad rows


def test_bad_rows_are_left_out_and_listed(fruits, tmp_path):
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.mkdir()
    (outside / "secret.jpg").write_bytes(jpeg(1))
    (tmp_path / "img").mkdir()
    (tmp_path / "img/link.jpg").symlink_to(outside / "secret.jpg")
    (tmp_path / "linked").symlink_to(outside)
    (tmp_path / "img/cut.jpg").write_bytes(jpeg(0)[:200])
    (tmp_path / "img/text.jpg").write_text("no image at all")
    (tmp_path / "img/empty.jpg").write_bytes(b"")
    os.mkfifo(tmp_path / "img/pipe.jpg")
    (tmp_path / "img/folder.jpg").mkdir()
    Image.new("1", (2000, 2000)).save(tmp_path / "img/bomb.png")
    good = fruit_rows(48)
    bad = {
        "../" + outside.name + "/secret.jpg": "outside of the root",
        str(outside / "secret.jpg"): "outside of the root",
        "img/../../" + outside.name + "/secret.jpg": "outside of the root",
        "img/link.jpg": "outside of the root",
        "linked/secret.jpg": "outside of the root",
        "img/cut.jpg": "broken",
        "img/text.jpg": "broken",
        "img/empty.jpg": "broken",
        "img/pipe.jpg": "missing",
        "img/folder.jpg": "missing",
        "img/none.jpg": "missing",
        "": "missing",
        ".": "outside of the root",
        "img/nul\0.jpg": "outside of the root",
        "img/bomb.png": "too large",
        "img/./0.jpg": "listed twice",
    }
    rows = [*good, *({"file": name, **dict(zip(LEVELS, PATHS[0], strict=True)), "obs": "x"} for name in bad)]
    table = fruits(rows)
    with table.open("a") as file:
        file.write("img/1.jpg,Round\n")
    folder = prepare(table, tmp_path / "out", "--max_megapixels", "3.9")
    problems = read_problems(folder / "problems.csv")
    found = {problem.row: problem for problem in problems}
    for number, (name, kind) in enumerate(bad.items(), start=len(good)):
        assert found[number].kind == kind, name
        assert found[number].image in (name, os.path.normpath(name) if name else "")
    assert found[len(rows)].kind == "malformed"
    assert len(problems) == len(bad) + 1
    splits = datasets.load_from_disk(str(folder))
    assert sum(map(len, splits.values())) == len(good)
    assert kinds(folder) == pd.Series([problem.kind for problem in problems]).value_counts().to_dict()
    # The list can be given to other scripts and to this one.
    again = prepare(table, tmp_path / "again", "--exclude_rows", str(folder / "problems.csv"), "--max_megapixels", "5")
    assert "too large" not in kinds(again) and kinds(again)["excluded"] > 5
    assert sum(map(len, datasets.load_from_disk(str(again)).values())) < len(good)  # img/0.jpg was listed


def test_absolute_paths_inside_of_the_root_are_fine(fruits, tmp_path):
    table = fruits()
    frame = pd.read_csv(table)
    frame["file"] = [str(tmp_path / name) for name in frame["file"]]
    frame.to_csv(table, index=False)
    folder = prepare(table, tmp_path / "out")
    assert datasets.load_from_disk(str(folder))["train"][0]["image"].startswith("img/")


def test_excluding_by_row(fruits, tmp_path):
    write_problems(tmp_path / "p.csv", [Problem("", 3, "", "ugly", "x"), Problem("", 4, "img/9.jpg", "ugly", "x")])
    folder = prepare(fruits(), tmp_path / "out", "--exclude_rows", str(tmp_path / "p.csv"))
    names = {Path(name).stem for split in datasets.load_from_disk(str(folder)).values() for name in split["image"]}
    assert names == {str(index) for index in range(60)} - {"3", "9"}


def test_strict_writes_nothing_and_resumes_when_fixed(fruits, tmp_path):
    table = fruits()
    frame = pd.read_csv(table)
    frame.loc[0, "file"] = "../x.jpg"
    frame.to_csv(tmp_path / "bad.csv", index=False)
    with pytest.raises(ValueError, match=r"row 0 \.\./x\.jpg: .*--strict|--strict.*row 0 \.\./x\.jpg"):
        prepare(tmp_path / "bad.csv", tmp_path / "out", "--strict")
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.incomplete").exists()
    whole = (tmp_path / "img/5.jpg").read_bytes()
    (tmp_path / "img/5.jpg").write_bytes(whole[:100])
    with pytest.raises(ValueError, match=r"1 rows have problems.*img/5\.jpg"):
        prepare(table, tmp_path / "out", "--strict")
    assert not (tmp_path / "out").exists()
    (tmp_path / "img/5.jpg").write_bytes(whole)
    folder = prepare(table, tmp_path / "out", "--strict")
    assert sum(map(len, datasets.load_from_disk(str(folder)).values())) == 60


def test_images_that_were_not_there_yet(fruits, tmp_path):
    """The command before the archive was unpacked must not spoil the one after."""
    table = fruits()
    (tmp_path / "img").rename(tmp_path / "packed")
    with pytest.raises(ValueError, match=r"60 rows have problems and no image is left for training: row \d+ img/\d+"):
        prepare(table, tmp_path / "out")
    (tmp_path / "packed").rename(tmp_path / "img")
    assert sum(map(len, datasets.load_from_disk(str(prepare(table, tmp_path / "out"))).values())) == 60


def test_no_row_is_fine(fruits, tmp_path):
    rows = [{**row, "file": f"../x{number}.jpg"} for number, row in enumerate(fruit_rows(4))]
    with pytest.raises(ValueError, match=r"No row can be used; 4 have problems, the first: .* leads out of"):
        prepare(fruits(rows), tmp_path / "out")
    (tmp_path / "empty.csv").write_text("file,order,family,species\n")
    with pytest.raises(ValueError, match="No row can be used"):
        prepare(tmp_path / "empty.csv", tmp_path / "out")


def test_labels_unknown_blank_and_unclear(fruits, tmp_path):
    rows = [{key: value for key, value in row.items() if key not in LEVELS[:2]} for row in fruit_rows()]
    rows[1]["species"], rows[2]["species"], rows[3]["species"] = "durian", None, "Red"  # Red is a family
    table = fruits(rows)
    pd.DataFrame(PATHS, columns=LEVELS).to_csv(tmp_path / "tree.csv", index=False)
    words = ["--label_column", "species", "--taxonomy", str(tmp_path / "tree.csv")]
    folder = prepare(table, tmp_path / "out", *words)
    assert kinds(folder) == {"no label": 1, "unknown label": 1}
    every = {Path(row["image"]).stem: row for split in datasets.load_from_disk(str(folder)).values() for row in split}
    assert [every["3"][level] for level in LEVELS] == ["Round", "Red", None]


# ---- splits


def given_splits() -> list[dict]:
    rows = fruit_rows()
    for index, row in enumerate(rows):
        row["part"] = ["train", "training", "val", "test"][index // 15]
    return rows


@pytest.mark.parametrize("how, expected", [("blank", 60), ("drop", 58), ("keep", 60)])
def test_classes_that_only_evaluation_has(fruits, tmp_path, how, expected):
    rows = given_splits()
    rows[30]["species"] = rows[31]["species"] = "fig"
    rows[30]["family"] = rows[31]["family"] = "Purple"
    table = fruits(rows)
    folder = prepare(table, tmp_path / "out", "--split_column", "part", "--unseen", how)
    splits = datasets.load_from_disk(str(folder))
    assert sum(map(len, splits.values())) == expected
    notes = json.loads((folder / "stats.json").read_text())["notes"]
    assert any("1 classes of level 'family' are in validation or test but not in training, with 2" in n for n in notes)
    tree = load_hierarchy(folder / "hierarchy.json")[0]
    assert ("fig" in tree.names[2]) == (how == "keep")
    if how == "keep":
        with pytest.raises(ValueError, match="fig"):
            check_trainable(folder)
        return
    check_trainable(folder)
    if how == "blank":
        row = next(row for row in splits["validation"] if row["image"] == "img/30.jpg")
        assert [row[level] for level in LEVELS] == [PATHS[3][0], None, None]


def test_a_class_whose_training_images_are_all_broken(fruits, tmp_path):
    """It is known only after the images were looked at; by then the labels have been written."""
    rows = given_splits()
    table = fruits(rows)
    for index, row in enumerate(rows):
        if row["species"] == "leek" and row["part"].startswith("train"):
            (tmp_path / "img" / f"{index}.jpg").write_bytes(b"broken")
    folder = prepare(table, tmp_path / "out", "--split_column", "part", "--embed")
    assert "leek" not in load_hierarchy(folder / "hierarchy.json")[0].names[2]
    splits = datasets.load_from_disk(str(folder))
    partial = [row for split in splits.values() for row in split if row["species"] is None]
    assert partial and all(row["family"] is None and row["order"] == "Long" for row in partial)
    assert all(row["image"].size == (40, 30) for row in partial)
    check_trainable(folder)


def test_given_splits_lose_what_leaks(fruits, tmp_path):
    rows = given_splits()
    rows[0]["obs"] = rows[35]["obs"]  # validation has it too
    rows[1]["file"] = "img/50.jpg"  # test has it too
    rows[2]["part"] = "maybe"
    folder = prepare(fruits(rows), tmp_path / "out", "--split_column", "part", "--group_column", "obs")
    assert kinds(folder) == {"group in two splits": 2, "image in two splits": 1, "no split": 1}
    splits = datasets.load_from_disk(str(folder))
    assert not set(splits["train"]["obs"]) & {*splits["validation"]["obs"], *splits["test"]["obs"]}
    assert not set(splits["validation"]["obs"]) & set(splits["test"]["obs"])


def test_a_table_per_split(fruits, tmp_path):
    rows = fruit_rows()
    table = fruits(rows)
    pd.DataFrame(rows[:40]).to_csv(tmp_path / "a.csv", index=False)
    pd.DataFrame(rows[40:]).to_csv(tmp_path / "b.csv", index=False)
    table.unlink()
    words = ["--train_table", str(tmp_path / "a.csv"), "--validation_table", str(tmp_path / "b.csv")]
    words += ["--image_column", "file", "--level_columns", *LEVELS, "--num_proc", "1"]
    splits = datasets.load_from_disk(str(main([*words, "--output_dir", str(tmp_path / "out")])))
    assert {split: len(data) for split, data in splits.items()} == {"train": 40, "validation": 20}


# ---- what the user can get wrong


@pytest.mark.parametrize(
    "words, message",
    [
        ("", "give --table"),
        ("--table x.csv --image_folder y --level_columns a", "give --table"),
        ("--table x.csv", "say where the labels are"),
        ("--table x.csv --level_columns a", "does not exist"),
        ("--table x.xls --level_columns a", "by its ending"),
        ("--table {table} --level_columns a", "no column 'image'"),
        ("--table {table} --image_column file --level_columns orders", "Did you mean 'order'"),
        ("--table {table} --image_column file --level_columns order --image_root nowhere", "no folder nowhere"),
        ("--table {table} --image_column file --level_columns order --label_column species", "not both"),
        ("--table {table} --image_column file --mask_column order", "--taxonomy"),
        ("--table {table} --image_column file --level_columns order --quality 0", "--quality"),
        ("--table {table} --image_column file --level_columns order --num_proc 0", "--num_proc"),
        ("--table {table} --image_column file --level_columns order --test_share 0.95", "less than 1"),
        ("--table {table} --image_column file --level_columns order --exclude_rows none.csv", "none.csv"),
        ("--table {table} --image_column file --level_columns order --split_column obs", "No row is in training"),
    ],
)
def test_mistakes_are_told_before_any_work(fruits, tmp_path, words, message):
    table = fruits()
    with pytest.raises(ValueError, match=message):
        main([*words.format(table=table).split(), "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.incomplete").exists()


def test_exit_status_and_message(tmp_path, monkeypatch, capfd):
    words = ["--table", str(tmp_path / "no.csv"), "--level_columns", "a", "--output_dir", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["prepare_table.py", *words])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(REPOSITORY / "data_prep/prepare_table.py"), run_name="__main__")
    assert stop.value.code == 2
    assert capfd.readouterr().err.strip().splitlines() == [f"error: The table {tmp_path / 'no.csv'} does not exist."]


def test_what_is_there_is_kept(fruits, tmp_path, capfd):
    table = fruits()
    folder = prepare(table, tmp_path / "out")
    before = files(folder)
    prepare(table, tmp_path / "out", "--num_proc", "2")
    assert "finished already" in capfd.readouterr().err and files(folder) == before
    with pytest.raises(ValueError, match="finished, with other settings"):
        prepare(table, tmp_path / "out", "--seed", "1")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match="not a prepared folder"):
        prepare(table, tmp_path / "mine")
    assert files(folder) == before and (tmp_path / "mine" / "notes.txt").read_text() == "x"


# ---- kills


def kill(server: Callable[..., int], words: list[str], owner: str, name: str, call: int) -> int:
    signals = [int(signal.SIGKILL)]
    return server(script="data_prep.prepare_table", words=words, owner=owner, name=name, call=call, signals=signals)


@pytest.mark.slow
def test_kills_change_nothing(fruits, tmp_path, server):
    rows = given_splits()
    table = fruits(rows)
    for index, row in enumerate(rows):  # so that labels change at the end, too
        if row["species"] == "leek" and row["part"].startswith("train"):
            (tmp_path / "img" / f"{index}.jpg").write_bytes(b"broken")
    options = ["--split_column", "part", "--group_column", "obs", "--resize_shorter", "24"]
    expected = files(prepare(table, tmp_path / "whole", *options))
    words = ["--table", str(table), "--image_column", "file", "--level_columns", *LEVELS, "--num_proc", "1", *options]
    words += ["--output_dir", str(tmp_path / "out")]
    killed = 0
    assert kill(server, words, "tqdm.auto:tqdm", "update", 2) == -signal.SIGKILL  # as all images are stored
    assert not (tmp_path / "out").exists()
    for call in range(1, 100):  # between every two steps of the main process
        status = kill(server, words, "os", "replace", 1 if call < 3 else call - 2)
        if status == 0:
            break
        assert status == -signal.SIGKILL and not (tmp_path / "out").exists()
        killed += 1
    assert killed > 4
    got = files(tmp_path / "out")
    expected["README.md"] = expected["README.md"].replace(b"whole", b"out")
    assert got == expected
    assert not (tmp_path / "out.incomplete").exists()


@pytest.mark.slow
def test_other_settings_start_over(fruits, tmp_path, server, capfd):
    table = fruits()
    words = ["--table", str(table), "--image_column", "file", "--level_columns", *LEVELS, "--num_proc", "1"]
    words += ["--output_dir", str(tmp_path / "out")]
    assert kill(server, words, "tqdm.auto:tqdm", "update", 1) == -signal.SIGKILL
    assert (tmp_path / "out.incomplete").is_dir()
    folder = prepare(table, tmp_path / "out", "--embed")
    assert "starting over" in capfd.readouterr().err
    cell = datasets.load_from_disk(str(folder))["train"].cast_column("image", datasets.Image(decode=False))[0]["image"]
    assert cell["bytes"] == (tmp_path / cell["path"]).read_bytes()
