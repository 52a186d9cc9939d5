"""Tiny copies of published layouts, each down to a prepared folder."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

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


def prepare(root: Path, layout: str, *words: str) -> datasets.DatasetDict:
    assert recognise(root) == layout
    options = ["--image_folder", str(root), "--num_proc", "1", "--output_dir", str(root.parent / "out")]
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
    }[kind]
    places = [{"split": split, "n": n} for split in ("train", "val") for n in range(3)]
    draw(root, [images.format(**place) for place in places])
    draw_masks(root, [masks.format(**place) for place in places[:-1]])


@pytest.mark.parametrize("kind", ["beside", "below", "words", "names"])
def test_folders_of_images_and_masks(root, kind, tmp_path):
    pairs_in_folders(root, kind)
    (tmp_path / "tree.yaml").write_text(VOC_TREE)
    splits = prepare(root, "pairs", "--taxonomy", str(tmp_path / "tree.yaml"))
    assert lengths(splits) == {"train": 3, "validation": 2}
    assert all(Path(row["image"]).stem == Path(row["mask"]).stem[:1] for row in splits["train"])
    problems = (tmp_path / "out" / "problems.csv").read_text()
    assert "the row has no mask" in problems and problems.count("\n") == 2


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


def test_what_cannot_be_read_is_named(root, tmp_path):
    draw(root, ["a/0.jpg", "b/1.jpg"])
    assert recognise(root) is None
    words = ["--image_folder", str(root), "--output_dir", str(tmp_path / "out"), "--layout"]
    with pytest.raises(ValueError, match="not of the layout plantnet.*plantnet300K_metadata.json"):
        main([*words, "plantnet"])
    pairs_in_folders(root, "beside")
    with pytest.raises(ValueError, match="--taxonomy FILE"):
        main([*words, "pairs"])
