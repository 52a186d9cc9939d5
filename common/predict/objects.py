"""Objects of predicted masks, as other programs read them: COCO JSON with run lengths, GeoJSON with outlines."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as rle
from contourpy import contour_generator
from PIL import Image
from scipy import ndimage

from ..system.files import write_json


def find_objects(leaf: np.ndarray, wanted: Sequence[bool]) -> Iterator[tuple[int, tuple[slice, slice], np.ndarray]]:
    """Connected regions (also over corners) of wanted leaves in a mask: leaf, place, its pixels there, bool (h, w)."""
    for label in np.unique(leaf).tolist():
        if wanted[label]:
            numbered, _ = ndimage.label(leaf == label, np.ones((3, 3)))
            for number, place in enumerate(ndimage.find_objects(numbered), start=1):
                yield label, place, numbered[place] == number


def outline(place: tuple[slice, slice], region: np.ndarray) -> dict[str, Any]:
    """A region as a geometry of GeoJSON, in pixels from the upper left corner, y down; holes are rings of their own.

    The line runs half way between the centres of pixels, so that drawing it anew gives the same pixels.
    """
    corner = np.array([place[1].start, place[0].start]) - 0.5
    drawn = contour_generator(z=np.pad(region, 1).astype(float), fill_type="OuterOffset").filled(0.5, 2)
    polygons = [
        [(points[start:end] + corner).tolist() for start, end in zip(offsets[:-1], offsets[1:], strict=True)]
        for points, offsets in zip(*drawn, strict=True)
    ]
    single = len(polygons) == 1
    return {"type": "Polygon" if single else "MultiPolygon", "coordinates": polygons[0] if single else polygons}


def write_objects(
    lines: Iterable[Mapping[str, Any]],
    output_dir: Path,
    names: Sequence[str],
    wanted: Sequence[bool],
    formats: Collection[str],
    mm_per_pixel: float | None = None,
) -> None:
    """Write geojson/<mask>.geojson of each image and coco.json of all, as far as ``formats`` ask for them.

    Args:
        lines: of the images, with ``row``, ``image`` and ``mask``, a file in the output folder.
        output_dir: of the predictions.
        names: of the leaves, whose numbers are the values in masks and the category ids in coco.json.
        wanted: leaves that are objects; the others are background.
        formats: ``coco``, ``geojson`` or both.
        mm_per_pixel: for areas in square millimetres.
    """
    images, annotations = [], []
    for line in lines:
        with Image.open(output_dir / line["mask"]) as image:
            leaf = np.asarray(image)
        size = {"height": leaf.shape[0], "width": leaf.shape[1]}
        images.append({"id": line["row"], "file_name": line["image"], **size})
        features = []
        for label, place, region in find_objects(leaf, wanted):
            pixels = int(region.sum())
            facts = {"area": pixels} | ({"area_mm2": pixels * mm_per_pixel**2} if mm_per_pixel else {})
            if "geojson" in formats:
                properties = {"class": names[label], **facts}
                features.append({"type": "Feature", "geometry": outline(place, region), "properties": properties})
            if "coco" in formats:
                whole = np.zeros(leaf.shape, np.uint8, order="F")
                whole[place] = region
                runs = rle.encode(whole)
                facts |= {"segmentation": {"size": leaf.shape, "counts": runs["counts"].decode()}, "iscrowd": 0}
                facts |= {"bbox": [place[1].start, place[0].start, *region.shape[::-1]], "category_id": label}
                annotations.append({"id": len(annotations) + 1, "image_id": line["row"], **facts})
        if "geojson" in formats:
            file = output_dir / "geojson" / f"{Path(line['mask']).stem}.geojson"
            file.parent.mkdir(exist_ok=True)
            write_json(file, {"type": "FeatureCollection", "features": features})
    if "coco" in formats:
        categories = [{"id": label, "name": name} for label, name in enumerate(names) if wanted[label]]
        write_json(output_dir / "coco.json", {"images": images, "annotations": annotations, "categories": categories})
