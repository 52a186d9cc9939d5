"""Tiny copies of published layouts, each down to a prepared folder."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from common.data.splits import load_splits
from data_prep.prepare_table import main
from data_prep.rows.layouts import recognise

VOC_TREE = (
    "levels: [kind, class]\ntree:\n  nothing: [background]\n  thing: [cat, dog]\nclasses: [background, cat, dog]\n"
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


def draw(root: Path, names: Iterable[str]) -> None:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 16), (number % 256, number // 256, 70)).save(root / name)


def draw_masks(root: Path, names: Iterable[str]) -> None:
    values = np.zeros((16, 20), np.uint8)
    values[4:9, 3:12], values[10, :] = 1, 255
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(root / name)


def command(root: Path, *words: str) -> list[str]:
    return ["--image_folder", str(root), "--num_proc", "1", *words]


def prepare(root: Path, layout: str, *words: str) -> datasets.DatasetDict:
    assert recognise(root) == layout
    options = command(root, "--output_dir", str(root.parent / "out"))
    with pytest.raises(ValueError, match=f"--layout {layout}"):
        main(options)
    return datasets.load_from_disk(str(main([*options, *words, "--layout", layout])))


def lengths(splits: datasets.DatasetDict) -> dict[str, int]:
    return {split: len(rows) for split, rows in splits.items()}


def test_inaturalist(root):
    categories = [
        {"id": at, "name": f"Amanita {name}", "kingdom": "Fungi", "family": "Amanitaceae", "genus": "Amanita"}
        for at, name in enumerate(["muscaria", "citrina"])
    ]
    for split, count in (("train_mini", 6), ("val", 4)):
        images = [{"id": at, "file_name": f"{split}/{at % 2}/{at}.jpg"} for at in range(count)]
        marks = [{"id": at, "image_id": at, "category_id": at % 2} for at in range(count)]
        content = {"images": images, "categories": categories, "annotations": marks}
        (root / f"{split}.json").write_text(json.dumps(content))
        draw(root, [image["file_name"] for image in images])
    splits = prepare(root, "inaturalist")
    assert lengths(splits) == {"train": 6, "validation": 4}
    assert splits["train"].column_names == ["image", "kingdom", "family", "genus", "species"]
    assert all(
        row["species"].endswith(["muscaria", "citrina"][int(row["image"].split("/")[1])]) for row in splits["train"]
    )


def test_plantnet(root):
    names = {"1355868": "Lactuca virosa L.", "1355920": "Pelargonium capitatum"}
    (root / "plantnet300K_species_id_2_name.json").write_text(json.dumps(names))
    rows = {}
    for at in range(12):
        kind, split = list(names)[at % 2], ["train", "train", "train", "val", "test", "test"][at // 2]
        rows[f"a{at}"] = {"species_id": kind, "obs_id": str(at // 4), "organ": "leaf", "split": split}
    draw(root, [f"images/{row['split']}/{row['species_id']}/{key}.jpg" for key, row in rows.items()])
    (root / "plantnet300K_metadata.json").write_text(json.dumps(rows))
    splits = prepare(root, "plantnet")
    assert lengths(splits) == {"train": 4, "validation": 2, "test": 4}  # observation 1 is in train and validation
    assert set(splits["train"]["genus"]) == {"Lactuca", "Pelargonium"} and set(splits["train"]["group"]) == {"0"}


def test_cub(root):
    names = [f"00{1 + at % 2}.Bird/Bird_{at}.jpg" for at in range(10)]
    lists = {
        "images.txt": [f"{at + 1} {name}" for at, name in enumerate(names)],
        "image_class_labels.txt": [f"{at + 1} {1 + at % 2}" for at in range(10)],
        "classes.txt": ["1 001.Black_footed_Albatross", "2 002.Laysan_Albatross"],
        "train_test_split.txt": [f"{at + 1} {int(at < 8)}" for at in range(10)],
    }
    for name, lines in lists.items():
        (root / name).write_text("\n".join(lines) + "\n")
    draw(root, [f"images/{name}" for name in names])
    splits = prepare(root, "cub", "--validation_share", "0.3")
    assert lengths(splits) == {"train": 6, "validation": 2, "test": 2}  # validation is drawn from train
    assert set(splits["train"]["label"]) == {"001.Black_footed_Albatross", "002.Laysan_Albatross"}


def test_darwin_core(root):
    ranks = "kingdom\tphylum\tclass\torder\tfamily\tgenus\tspecies"
    lines = [f'{at}\tFungi\tB\tA\tO\tF\tG\tG {"ab"[at % 2]}\ta "quote' for at in range(10)]
    (root / "occurrence.txt").write_text("\n".join([f"gbifID\t{ranks}\tlocality", *lines]) + "\n")
    media = [f"{at}\thttps://example.org/{at}/photo{at}_{n}.jpeg" for at in range(10) for n in (1, 2)]
    (root / "multimedia.txt").write_text("\n".join(["gbifID\tidentifier", *media]) + "\n")
    draw(root, [f"images/photo{at}_1.jpg" for at in range(10)])
    draw(root, [f"images/{at}_2.jpg" for at in range(9)])
    splits = prepare(root, "darwin_core", "--level_columns", "genus", "species", "--test_share", "0")
    assert sum(lengths(splits).values()) == 19
    for rows in splits.values():
        assert all(row["species"] == f"G {'ab'[int(row['group']) % 2]}" for row in rows)
    assert not set(splits["train"]["group"]) & set(splits["validation"]["group"])


def pairs_in_folders(root: Path, kind: str) -> None:
    images, masks = {
        "beside": ("images/{split}/{n}.jpg", "annotations/{split}/{n}.png"),
        "below": ("{split}/img/{n}.jpg", "{split}/lab/{n}_mask.png"),
        "words": ("{split}_img/{n}.jpg", "{split}_lab/{n}.png"),
        "names": ("{split}/{n}.jpg", "{split}/{n}_gt.png"),
        "city": ("{split}/{n}.jpg", "{split}/{n}_gtFine_labelIds.png"),
        "kinds": ("{split}/{n}.jpg", "{split}/{n}.png"),
    }[kind]
    places = [{"split": split, "n": n} for split in ("train", "val") for n in range(3)]
    draw(root, [images.format(**place) for place in places])
    draw_masks(root, [masks.format(**place) for place in places[:-1]])


@pytest.mark.parametrize("kind", ["beside", "below", "words", "names", "city", "kinds"])
def test_folders_of_images_and_masks(root, kind, tmp_path):
    pairs_in_folders(root, kind)
    (tmp_path / "tree.yaml").write_text(VOC_TREE)
    splits = prepare(root, "pairs", "--taxonomy", str(tmp_path / "tree.yaml"))
    assert lengths(splits) == {"train": 3, "validation": 2}
    assert all(Path(row["image"]).stem == Path(row["mask"]).stem[:1] for row in splits["train"])
    problems = (tmp_path / "out" / "problems.csv").read_text()
    assert "the row has no mask" in problems and problems.count("\n") == 2
    words = ["--layout", "pairs", "--taxonomy", str(tmp_path / "tree.yaml"), "--missing_mask", "clean"]
    splits = datasets.load_from_disk(str(main(command(root, *words, "--output_dir", str(tmp_path / "all")))))
    assert lengths(splits) == {"train": 3, "validation": 3} and not np.asarray(splits["validation"][2]["mask"]).any()


def test_images_without_a_mask_in_parquet(root, tmp_path):
    draw(root, ["image.png"])
    draw_masks(root, ["mask.png"])
    image, mask = ((root / name).read_bytes() for name in ("image.png", "mask.png"))
    pd.DataFrame({"image": [image] * 4, "mask": [mask, None, mask, None]}).to_parquet(root / "rows.parquet")
    (tmp_path / "tree.yaml").write_text(VOC_TREE)
    words = ["--table", str(root / "rows.parquet"), "--mask_column", "mask", "--taxonomy", str(tmp_path / "tree.yaml")]
    words += ["--missing_mask", "clean", "--background", "dog", "--validation_share", "0", "--test_share", "0"]
    rows = datasets.load_from_disk(str(main([*words, "--num_proc", "1", "--output_dir", str(tmp_path / "out")])))
    assert [np.unique(np.asarray(row["mask"])).tolist() for row in rows["train"]] == [[0, 1, 255], [2]] * 2


def test_voc(root, tmp_path):
    for split, names in (("train", "abcd"), ("val", "ef")):
        (root / "ImageSets/Segmentation").mkdir(parents=True, exist_ok=True)
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(names) + "\n")
        draw(root, [f"JPEGImages/{name}.jpg" for name in names])
        draw_masks(root, [f"SegmentationClass/{name}.png" for name in names])
    draw(root, ["JPEGImages/unlisted.jpg"])
    (tmp_path / "tree.yaml").write_text(VOC_TREE)
    splits = prepare(root, "voc", "--taxonomy", str(tmp_path / "tree.yaml"), "--embed")
    assert lengths(splits) == {"train": 4, "validation": 2}
    assert np.asarray(splits["train"][0]["mask"])[5, 5] == 1


def test_cityscapes(root, tmp_path):
    places = [
        (split, city, f"{city}_000{n}_19") for split, city in (("train", "ulm"), ("val", "bonn")) for n in range(3)
    ]
    draw(root, [f"leftImg8bit/{split}/{city}/{name}_leftImg8bit.png" for split, city, name in places])
    draw_masks(root, [f"gtFine/{split}/{city}/{name}_gtFine_labelIds.png" for split, city, name in places[:-1]])
    draw(root, [f"gtFine/{split}/{city}/{name}_gtFine_color.png" for split, city, name in places])
    (tmp_path / "tree.yaml").write_text(VOC_TREE)
    splits = prepare(root, "cityscapes", "--taxonomy", str(tmp_path / "tree.yaml"))
    assert lengths(splits) == {"train": 3, "validation": 2} and set(splits["train"]["group"]) == {"ulm"}


@pytest.mark.parametrize("above", ["", "bottle/"])
def test_mvtec(root, tmp_path, above):
    """Masks are white on black, those of what is good are missing; images stay where they are."""
    draw(root, [f"{above}{part}/{n}.png" for part in ("train/good", "test/good", "test/broken") for n in range(4)])
    defect = np.zeros((16, 20), np.uint8)
    defect[2:5, 3:9] = 255
    for n in range(4):
        (root / f"{above}ground_truth/broken").mkdir(parents=True, exist_ok=True)
        Image.fromarray(defect).save(root / f"{above}ground_truth/broken/{n}_mask.png")
    (tmp_path / "tree.yaml").write_text("levels: [state]\ntree: [good, broken]\n")
    (tmp_path / "colours.yaml").write_text("good: black\nbroken: '#ffffff'\n")
    files = ["--taxonomy", str(tmp_path / "tree.yaml"), "--mask_palette", str(tmp_path / "colours.yaml")]
    splits = prepare(root, "mvtec", *files, "--missing_mask", "clean", "--validation_share", "0.25")
    assert lengths(splits) == {"train": 3, "validation": 1, "test": 8} and isinstance(splits["test"][0]["image"], str)
    for row in splits["test"]:
        assert (np.asarray(row["mask"]) == (defect > 0) * ("broken" in row["image"])).all()
    with pytest.raises(
        ValueError, match="8 rows have problems.*the row has no mask .see --missing_mask"
    ):  # of what is good
        main(command(root, "--layout", "mvtec", *files, "--output_dir", str(tmp_path / "fewer")))


def test_severstal(root, tmp_path):
    """Run lengths go down the columns, from 1 on; images that the table does not list have no defect."""
    draw(root, [f"train_images/{name}.jpg" for name in "abcdefgh"])
    runs = {"a": "1 3 17 2", "b": "320 1"}
    lines = [f"{name}.jpg,{at + 1},{text}" for at, (name, text) in enumerate(runs.items())]
    (root / "train.csv").write_text("\n".join(["ImageId,ClassId,EncodedPixels", *lines, "b.jpg,1,33 16", "c.jpg,2,"]))
    (tmp_path / "tree.yaml").write_text(VOC_TREE)
    words = ["--taxonomy", str(tmp_path / "tree.yaml"), "--missing_mask", "clean", "--validation_share", "0.3"]
    masks = {}
    for rows in prepare(root, "severstal", *words).values():
        masks |= {Path(row["image"]).stem: np.asarray(row["mask"]) for row in rows}
    assert sorted(masks) == [*"abcdefgh"] and not any(masks[name].any() for name in "cdefgh")
    assert np.argwhere(masks["a"]).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0]] and masks["a"].max() == 1
    assert masks["b"][15, 19] == 2 and (masks["b"][:, 2] == 1).all() and (masks["b"] > 0).sum() == 17
    with pytest.raises(ValueError, match="as Kaggle writes them.*--annotations"):
        load_splits("", None, {"train": str(root / "train.csv")})
    (root / "train.csv").write_text("ImageId_ClassId,EncodedPixels,note\na.jpg_1,319 9,\n")
    with pytest.raises(ValueError, match="train.csv.*beyond the image"):
        main(command(root, "--layout", "severstal", *words, "--output_dir", str(tmp_path / "other")))


@pytest.mark.parametrize("late", [False, True])
def test_fungiclef(root, late):
    tables = f"{'metadata/FungiTastic-FewShot/FungiTastic-FewShot-{}' if late else 'FungiCLEF2023_{}_metadata'}.csv"
    names = "filename,category_id,observationId" if late else "image_path,class_id,observationID"
    for split in ("train", "val", "test"):
        file = root / tables.format(split.title() if late else split)
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = [f"{split}{n}.JPG,{n % 2 - (split == 'val')},{split}{n // 2},Amanita,A{n % 2},1" for n in range(4)]
        head = f"{names},genus,species,poisonous" if split != "test" else "filename,observationID"
        file.write_text("\n".join([head, *(lines if split != "test" else ["test0.JPG,9"])]))
        draw(root, [f"DF20/{size}/{split}{n}.jpg" for size in ("300p", "720p") for n in range(4)])
    splits = prepare(root, "fungiclef", "--keep_columns", "poisonous")
    assert lengths(splits) == {"train": 4, "validation": 4}
    assert splits["train"].column_names == ["image", "genus", "species", "group", "poisonous"]
    assert splits["validation"]["species"][:] == [None, "A1"] * 2 and "300p" in splits["train"]["image"][0]


def test_ade20k_ignores_0(root, tmp_path):
    draw(root, [f"images/{split}/{n}.jpg" for split in ("training", "validation") for n in range(2)])
    draw_masks(root, [f"annotations/{split}/{n}.png" for split in ("training", "validation") for n in range(2)])
    tree = VOC_TREE.replace("background", "other").replace("levels", "ignore: [0]\nlevels")
    (tmp_path / "tree.yaml").write_text(tree)
    splits = prepare(root, "pairs", "--taxonomy", str(tmp_path / "tree.yaml"))
    assert set(np.unique(np.asarray(splits["train"][0]["mask"]))) == {1, 255}


def test_what_cannot_be_read_is_named(root, tmp_path):
    draw(root, ["a/0.jpg", "b/1.jpg"])
    assert recognise(root) is None
    words = ["--image_folder", str(root), "--output_dir", str(tmp_path / "out"), "--layout"]
    with pytest.raises(ValueError, match="not of the layout plantnet.*plantnet300K_metadata.json"):
        main([*words, "plantnet"])
    pairs_in_folders(root, "beside")
    with pytest.raises(ValueError, match="--taxonomy FILE"):
        main([*words, "pairs"])
