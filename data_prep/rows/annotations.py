"""Annotations as COCO, LabelMe, CVAT and Kaggle write them, drawn as masks: a table with images and masks.

Objects are drawn in the order of the file, later over earlier; those of CVAT by their z_order first. Outlines are
filled by pycocotools, whatever the format.
"""

from __future__ import annotations

import base64
import io
import os
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pycocotools.mask as rle
import torch
from PIL import Image

from common.data.folders import SPLIT_NAMES, find_images
from common.images.files import check_file
from common.images.mask_files import IGNORED_PIXEL
from common.labels.annotation_files import annotation_kind
from common.model.hierarchy import Hierarchy
from common.model.tree import fold_name
from common.report.colours import leaf_colours
from common.report.prediction_masks import save_mask
from common.system.files import atomic_write

Annotated = tuple[str, tuple[int, int] | None, str, list[tuple[str, Any]]]
"""Of an image the name, (height, width) if known, perhaps the split, and from back to front the class of each object
with its region: outlines [[x, y, x, y, ...], ...], COCO's or Kaggle's run lengths, or (left, top, bool (h, w))"""


def read_coco(content: Mapping[str, Any], skipped: Counter[str]) -> Iterator[Annotated]:
    """The images of a COCO file; ``skipped`` counts objects that have no area, by their kind."""
    names = {category["id"]: category["name"] for category in content["categories"]}
    objects = defaultdict(list)
    for entry in content["annotations"]:
        if entry.get("segmentation"):
            objects[entry["image_id"]].append((names[entry["category_id"]], entry["segmentation"]))
        else:
            skipped["box without outline"] += 1
    for image in content["images"]:
        yield image["file_name"], (image["height"], image["width"]), "", objects[image["id"]]


def read_labelme(content: Mapping[str, Any], skipped: Counter[str]) -> Iterator[Annotated]:
    """The image of a LabelMe file."""
    shapes = []
    for entry in content["shapes"]:
        kind, points = entry.get("shape_type") or "polygon", np.array(entry["points"], float)
        (left, top), (right, bottom) = points.min(0), points.max(0)
        if kind == "mask":
            pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(entry["mask"])))) > 0
            shapes.append((entry["label"], (round(left), round(top), pixels)))
        elif kind == "rectangle":
            shapes.append((entry["label"], [_box(left, top, right, bottom)]))
        elif kind == "polygon":
            shapes.append((entry["label"], [points.ravel().tolist()]))
        else:
            skipped[kind] += 1
    yield content["imagePath"], (content["imageHeight"], content["imageWidth"]), "", shapes


def read_cvat(content: ElementTree.Element, skipped: Counter[str]) -> Iterator[Annotated]:
    """The images of a file of "CVAT for images"."""
    for image in content.iter("image"):
        shapes = []
        for entry in sorted(image, key=lambda entry: int(entry.get("z_order", 0))):
            label = entry.get("label")
            if entry.tag == "polygon":
                shapes.append((label, [list(map(float, re.split("[,;]", entry.get("points"))))]))
            elif entry.tag == "box":
                shapes.append((label, [_box(*(float(entry.get(key)) for key in ("xtl", "ytl", "xbr", "ybr")))]))
            elif entry.tag == "mask":
                left, top, width, height = (int(float(entry.get(key))) for key in ("left", "top", "width", "height"))
                runs = list(map(int, entry.get("rle").split(",")))
                shapes.append(
                    (label, (left, top, np.repeat(np.arange(len(runs)) % 2 > 0, runs).reshape(height, width)))
                )
            elif entry.tag != "tag":
                skipped[entry.tag] += 1
        yield image.get("name"), (int(image.get("height")), int(image.get("width"))), image.get("subset", ""), shapes


def read_kaggle(content: pd.DataFrame, skipped: Counter[str]) -> Iterator[Annotated]:
    """The images of a CSV of run lengths: ``ImageId`` and ``ClassId`` (or both in one), ``EncodedPixels``."""
    if "ImageId_ClassId" in content:
        content[["ImageId", "ClassId"]] = content["ImageId_ClassId"].str.rsplit("_", n=1, expand=True)
    for name, rows in content.assign(ClassId=content.get("ClassId", "1")).groupby("ImageId", sort=False):
        runs = rows[["ClassId", "EncodedPixels"]].dropna()  # blank: nothing is there
        yield name, None, "", list(runs.itertuples(index=False, name=None))


def _box(left: float, top: float, right: float, bottom: float) -> list[float]:
    return [left, top, right, top, right, bottom, left, bottom]


READERS = {"COCO": read_coco, "LabelMe": read_labelme, "CVAT": read_cvat, "Kaggle": read_kaggle}


def draw(shapes: Sequence[tuple[int, Any]], size: tuple[int, int], background: int) -> np.ndarray:
    """uint8 (height, width): objects (class, region) over the background, later over earlier.

    Raises:
        ValueError: an outline has less than three points, or run lengths are of another size.
    """
    mask = np.full(size, background, np.uint8)
    for label, region in shapes:
        if isinstance(region, tuple):
            left, top, pixels = region
            part = mask[top : top + pixels.shape[0], left : left + pixels.shape[1]]
            part[pixels[: part.shape[0], : part.shape[1]]] = label
            continue
        if isinstance(region, str):  # "start length start length": down the columns, from 1 on
            starts, lengths = np.array(region.split(), int).reshape(-1, 2).T
            edges = np.stack([starts - 1, starts - 1 + lengths], 1).ravel()
            region = {"size": size, "counts": np.diff(edges, prepend=0, append=size[0] * size[1]).tolist()}
        if isinstance(region, list):
            if min(map(len, region)) < 6:
                raise ValueError("an outline has less than three points")
            region = rle.merge(rle.frPyObjects(region, *size))
        elif isinstance(region["counts"], list):
            if min(region["counts"]) < 0:
                raise ValueError("run lengths overlap, or reach beyond the image")
            region = rle.frPyObjects(region, *region["size"])
        pixels = rle.decode(region)
        if pixels.shape != tuple(size):
            raise ValueError(f"run lengths for {pixels.shape} pixels do not fit the image's {tuple(size)}")
        mask[pixels > 0] = label
    return mask


def leaf_values(tree: Hierarchy, background: str | None) -> tuple[dict[str, int], int]:
    """The value of each name of a leaf, and of ``ignore``; and of what no object covers, by default clean or the like.

    Raises:
        ValueError: it is not said which that is.
    """
    leaves = {fold_name(name): number for number, name in enumerate(tree.leaf_names())}
    named = {**leaves, **dict.fromkeys(("ignore", "__ignore__"), IGNORED_PIXEL)}
    usual = ("background", "clean", "none", "good")
    rest = fold_name(background or next((name for name in usual if name in leaves), ""))
    if rest not in named:
        raise ValueError(f"Say which class is outside of all objects: --background, one of {[*leaves, 'ignore']}.")
    return named, named[rest]


def draw_annotations(
    source: Path,
    tree: Hierarchy,
    image_root: Path | None,
    background: str | None,
    folder: Path,
    unlisted: bool = False,
) -> tuple[Path, list[str]]:
    """Draw the masks of all images of a file, or of all files in a folder, and write a table masks.csv beside them.

    Its columns are ``image``, ``mask``, ``folder`` and, if all images have one, ``split``.

    Args:
        source: file or folder.
        tree: labels must be its leaves (Kaggle's may be their numbers), or ``ignore`` and ``__ignore__``.
        image_root: folder that images lie in; by default that of the file of annotations.
        background: leaf of what no object covers, or ``ignore``.
        folder: for masks and table; made if missing.
        unlisted: whether other images below ``image_root`` are in the table too, without a mask.

    Returns:
        The folder that the table's paths start from; and what people should know.

    Raises:
        ValueError: nothing is found, a name is no leaf, or a file is damaged.
    """
    named, rest = leaf_values(tree, background)
    named["_background_"] = rest
    rows, skipped, unknown, palette = [], Counter(), Counter(), leaf_colours(tree).flatten().tolist()
    folder.mkdir(parents=True, exist_ok=True)
    for path in [source] if source.is_file() else sorted(source.rglob("*")):
        kind, content = annotation_kind(path)
        if kind == "Kaggle":
            named = {**{str(number): number for number in range(tree.num_leaves)}, **named}
        try:
            for name, size, split, shapes in READERS[kind](content, skipped) if kind else ():
                unknown.update(label for label, _ in shapes if fold_name(label) not in named)
                labelled = [(named.get(fold_name(label), 0), region) for label, region in shapes]
                image = _find(name.replace("\\", "/"), path, image_root)
                mask = folder.resolve() / f"{len(rows):06d}_{image.stem}.png"
                if size is None:
                    size = check_file(str(image))[1][::-1] if image.is_file() else (1, 1)
                    labelled = labelled if image.is_file() else []
                with atomic_write(mask, "wb") as file:
                    save_mask(file, torch.from_numpy(draw(labelled, size, rest)), palette)
                split = _split(split, path.stem, path.parent.name)
                rows.append({"image": image, "mask": mask, "folder": image.parent.name, "split": split})
        except (LookupError, TypeError, ValueError, AttributeError, OSError) as error:
            raise ValueError(f"{path} ({kind}) is damaged: {type(error).__name__}: {error}") from error
    if unknown:
        raise ValueError(f"No leaves of the label tree: {dict(unknown.most_common(10))}; it has {tree.leaf_names()}.")
    if not rows:
        raise ValueError(f"No annotations of COCO, LabelMe, CVAT or Kaggle are in {source} (--annotations).")
    notes, listed = [f"{len(rows)} masks were drawn into {folder}."], {row["image"] for row in rows}
    for name in find_images(image_root or source.parent).names if unlisted else ():
        image = Path(image_root or source.parent, name).resolve()
        if image not in listed and folder.resolve() not in image.parents:
            split = _split(image.parent.name, source.stem)
            rows.append({"image": image, "mask": None, "folder": image.parent.name, "split": split})
    frame = pd.DataFrame(rows)
    root = os.path.commonpath([*frame["image"], *frame["mask"].dropna()])
    frame[["image", "mask"]] = frame[["image", "mask"]].map(lambda path: path and os.path.relpath(path, root))
    with atomic_write(folder / "masks.csv") as file:
        (frame if frame["split"].all() else frame.drop(columns="split")).to_csv(file, index=False)
    notes += [f"{count} objects of kind {kind} have no area: they were skipped." for kind, count in skipped.items()]
    return Path(root), notes


def _split(*names: str) -> str:
    """The split that the first of some names tells, such as instances_train2017."""
    words = [word.lower() for name in names for word in re.split(r"[\W_]+|(?=\d{4})", name)]
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), "")


def _find(name: str, annotations: Path, root: Path | None) -> Path:
    """The image's file, or where it should be."""
    beside = annotations.parent
    folders = [root] if root else [beside, beside.parent, beside.parent / "images"]
    tries = [Path(folder, part) for part in (name, os.path.basename(name)) for folder in folders]
    return next((path for path in tries if path.is_file()), tries[0]).resolve()
