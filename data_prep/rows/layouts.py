"""Published layouts of data sets, each a function from a folder to rows: cells by column.

The columns are ``image`` and perhaps ``mask``, paths relative to the folder; ``split``; ``group``; and all others are
levels of labels, coarse to fine.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyarrow as pa

from common.data.folders import SPLIT_NAMES, find_images, name_splits
from common.labels.annotation_files import annotation_kind
from common.labels.table_files import blank_words, read_table
from data_prep.parts.columns import IMAGE, MASK, ROW, SPLIT

from .row_set import RowSet, text_column

Row = dict[str, str | None]

RANKS = ("kingdom", "phylum", "class", "order", "family", "genus", "species")
IMAGE_WORDS = {"image", "images", "img", "imgs", "photos"}
MASK_WORDS = {
    *("mask", "masks", "label", "labels", "lab", "annotation", "annotations", "annot", "gt", "gts", "seg", "truth"),
    *("groundtruth", "segmentation", "segmentations"),
}
MASK_ENDING = re.compile(r"[_-](masks?|gt|lab|labels?|seg|segmentation|L|gtFine_labelIds)$")

# ---- labels


def inaturalist(root: Path) -> Iterator[Row]:
    """iNaturalist of all years: ``train.json`` (else ``train_mini.json``, ``train2018.json``) and ``val.json``."""
    exact, likely = name_splits(file.stem for file in sorted(root.glob("*.json")))
    for name, split in (exact | likely).items():
        content = json.loads((root / f"{name}.json").read_text("utf-8"))
        images = {entry["id"]: entry["file_name"] for entry in content["images"]}
        classes = {entry["id"]: entry for entry in content.get("categories", ())}
        for entry in content.get("annotations", ()):
            found = classes[entry["category_id"]]
            labels = {rank: found.get(rank) for rank in RANKS[:-1]} | {"species": found["name"]}
            yield {"image": images[entry["image_id"]], "split": split, **labels}


def plantnet(root: Path) -> Iterator[Row]:
    """PlantNet-300K: ``plantnet300K_metadata.json`` and the names of species; observations are groups."""
    metadata = json.loads((root / "plantnet300K_metadata.json").read_text("utf-8"))
    names = json.loads((root / "plantnet300K_species_id_2_name.json").read_text("utf-8"))
    files = _by_stem(root)
    for key, entry in metadata.items():
        species = names[entry["species_id"]]
        labels = {"genus": re.split("[ _]", species)[0], "species": species}
        yield {"image": files.get(key), "split": entry["split"], "group": str(entry["obs_id"]), **labels}


def darwin_core(root: Path) -> Iterator[Row]:
    """A Darwin Core archive as GBIF makes it, with the images of ``multimedia.txt``; occurrences are groups.

    A file is called as in its address there, or by the occurrence's id, with ``_1``, ``_2`` if it has several.
    """
    files, count = _by_stem(root), Counter()
    occurrences = {row["gbifID"]: row for row in _table(root / "occurrence.txt")}
    for row in _table(root / "multimedia.txt"):
        key = row["gbifID"]
        count[key] += 1
        stems = (Path(row.get("identifier") or "").stem, f"{key}_{count[key]}", key)
        image = next((files[stem] for stem in stems if stem in files), None)
        yield {"image": image, "group": key, **{rank: occurrences.get(key, {}).get(rank) for rank in RANKS}}


def cub(root: Path) -> Iterator[Row]:
    """CUB-200-2011 and NABirds: lists of images, of classes, and of what is for training."""

    def read(name: str) -> dict[str, str]:
        return dict(line.split(maxsplit=1) for line in (root / name).read_text("utf-8").splitlines() if line.strip())

    labels, classes, train = map(read, ("image_class_labels.txt", "classes.txt", "train_test_split.txt"))
    for key, name in read("images.txt").items():
        split = "train" if train[key] == "1" else "test"
        yield {"image": f"images/{name}", "split": split, "label": classes[labels[key]]}


def fungiclef(root: Path) -> Iterator[Row]:
    """FungiCLEF of 2022 to 2025: tables of a split each, of which those without labels are passed over.

    Of an unknown species, number -1, the ranks above are kept.
    """
    files = _by_stem(root)
    for file in sorted({table for place in ("", "*/", "metadata/*FewShot/") for table in root.glob(f"{place}*.csv")}):
        split = next((word for word in re.split("[^a-z]+", file.stem.lower()) if word in SPLIT_NAMES), None)
        for row in _table(file):
            number = row.get("class_id") or row.get("category_id")
            if number:
                labels = {rank: row.get(rank) for rank in RANKS} | ({"species": None} if float(number) < 0 else {})
                group = row.get("observationID") or row.get("observationId")
                others = {"split": split, "group": group, "poisonous": row.get("poisonous")}
                yield {"image": files.get(Path(row.get("image_path") or row["filename"]).stem), **others, **labels}


def _by_stem(root: Path) -> dict[str, str]:
    """The file of each name; of several sizes the first, such as 300p."""
    return {Path(name).stem: name for name in reversed(find_images(root).names)}


def _table(path: Path) -> list[Row]:
    columns = read_table(path).columns
    return pa.table({name: blank_words(columns[name])[0] for name in columns.column_names}).to_pylist()


# ---- masks


def pairs(root: Path) -> Iterator[Row]:
    """A folder of images beside a folder of masks of the same names; or ``_mask``, ``_gt``, ``_lab`` after the names.

    In one folder x.png is the mask of x.jpg. Folders may be divided into splits, above or below, or be called as
    ``train_img`` and ``train_lab``. ADE20K and DeepCrack are of this kind.
    """
    images, masks = {}, {}
    for name in find_images(root).names:
        *folders, stem = Path(name).with_suffix("").parts
        words = [word for folder in folders for word in re.split("[_-]", folder.lower())]
        key = (*(word for word in words if word not in MASK_WORDS | IMAGE_WORDS), MASK_ENDING.sub("", stem))
        is_mask = bool(MASK_WORDS & set(words)) or MASK_ENDING.search(stem) is not None
        is_mask |= name.lower().endswith(".png") and images.get(key, "").rpartition(".")[0] == name[:-4]
        (masks if is_mask else images)[key] = name
    for key, name in images.items():
        split = next((word for word in key[:-1] if word in SPLIT_NAMES), None)
        yield {"image": name, "mask": masks.get(key), "split": split}


def voc(root: Path) -> Iterator[Row]:
    """Pascal VOC: ``JPEGImages``, ``SegmentationClass``, and the lists of ``ImageSets/Segmentation``."""
    for split in ("train", "val", "test"):
        file = root / "ImageSets" / "Segmentation" / f"{split}.txt"
        for name in file.read_text("utf-8").split() if file.is_file() else ():
            yield {"image": f"JPEGImages/{name}.jpg", "mask": f"SegmentationClass/{name}.png", "split": split}


def cityscapes(root: Path) -> Iterator[Row]:
    """Cityscapes: ``leftImg8bit`` beside the label ids of ``gtFine``, both by splits and cities; these are groups."""
    for image in sorted(root.glob("leftImg8bit/*/*/*_leftImg8bit.*")):
        _, split, city, name = image.relative_to(root).parts
        mask = Path("gtFine", split, city, f"{name.rpartition('_')[0]}_gtFine_labelIds.png")
        found = str(mask) if (root / mask).is_file() else None
        yield {"image": str(image.relative_to(root)), "mask": found, "split": split, "group": city}


def mvtec(root: Path) -> Iterator[Row]:
    """MVTec AD, one object or all: ``test/DEFECT`` and its masks in ``ground_truth/DEFECT``, none of what is good."""
    for name in find_images(root).names:
        *above, split, kind, _ = Path(name).parts
        mask = Path(*above, "ground_truth", kind, f"{Path(name).stem}_mask.png")
        if split in SPLIT_NAMES:
            yield {"image": name, "mask": str(mask) if (root / mask).is_file() else None, "split": split}


# ---- which, and what it gives

FUNGI = "FungiCLEF*train*.csv|*/FungiCLEF*train*.csv|DF20*train*.csv|*/DF20*train*.csv|metadata/*/*FewShot-Train.csv"
LAYOUTS = {
    "voc": (voc, ("ImageSets/Segmentation", "JPEGImages", "SegmentationClass")),
    "plantnet": (plantnet, ("plantnet300K_metadata.json", "plantnet300K_species_id_2_name.json")),
    "inaturalist": (inaturalist, ("train*.json",)),
    "darwin_core": (darwin_core, ("occurrence.txt", "multimedia.txt")),
    "cub": (cub, ("images.txt", "image_class_labels.txt", "classes.txt", "train_test_split.txt")),
    "fungiclef": (fungiclef, (FUNGI,)),
    "cityscapes": (cityscapes, ("leftImg8bit", "gtFine")),
    "mvtec": (mvtec, ("train/good|*/train/good", "ground_truth|*/ground_truth")),
    "severstal": (None, ("train_images", "train.csv")),
    "pairs": (pairs, ()),
}
"""Of each its function, and the files that tell it (patterns, or one of several); pairs: most images have a mask"""


def recognise(root: Path) -> str | None:
    """The layout of a folder, if it is a known one."""
    for name, (_, marks) in LAYOUTS.items():
        there = all(any(any(root.glob(part)) for part in mark.split("|")) for mark in marks)
        if marks and there and (name != "severstal" or annotation_kind(root / "train.csv")[0]):
            return name
    found = [row["mask"] is not None for row in pairs(root)]
    return "pairs" if sum(found) > len(found) / 2 else None


def read_layout(root: Path, name: str) -> tuple[RowSet, list[str]]:
    """The rows of a folder in a known layout, and the levels of their labels, coarse to fine; none for masks.

    Raises:
        ValueError: what the layout consists of is missing or damaged.
    """
    try:
        frame = pd.DataFrame([{"split": None, **row} for row in LAYOUTS[name][0](root)], dtype=object)
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{root} is not of the layout {name}: {type(error).__name__}: {error}.") from error
    if not len(frame):
        raise ValueError(f"{root} is not of the layout {name}: it has no images.")
    frame[SPLIT] = text_column(SPLIT_NAMES.get(split, "") for split in frame["split"])
    frame[ROW] = range(len(frame))
    fixed = (IMAGE, MASK, "group", "split", "poisonous", SPLIT, ROW)
    return RowSet(frame), [column for column in frame if column not in fixed and frame[column].notna().any()]
