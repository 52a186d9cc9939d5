"""Objects in masks: outlines and run lengths that give the mask again, as other libraries read them."""

import json

import numpy as np
from matplotlib.path import Path as Outline
from PIL import Image
from pycocotools.coco import COCO

from common.predict.objects import find_objects, write_objects

NAMES = ("Clean", "Crack", "Stain")


def filled(geometry, height, width):
    """Pixels whose centres lie inside, by matplotlib: in the outer ring of a part and in none of its holes."""
    centres = np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), -1).reshape(-1, 2)
    parts = [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]
    found = np.zeros(height * width, bool)
    for outer, *holes in parts:
        inside = Outline(outer).contains_points(centres)
        for hole in holes:
            inside &= ~Outline(hole).contains_points(centres)
        found |= inside
    return found.reshape(height, width)


def test_objects_give_the_mask_again(tmp_path):
    leaf = np.zeros((30, 40), np.uint8)
    leaf[2:9, 3:12] = 1
    leaf[4:6, 5:8] = 2  # in a hole
    leaf[20, 20] = leaf[21, 21] = leaf[22, 20] = 1  # one object over corners
    leaf[:, 39] = 2
    rng = np.random.default_rng(0)
    leaf[12:18, 2:14] = rng.integers(0, 3, (6, 12))
    (tmp_path / "masks").mkdir()
    Image.fromarray(leaf).save(tmp_path / "masks" / "000004_wall.png")
    line = {"row": 4, "image": "wall.jpg", "mask": "masks/000004_wall.png", "pixels": []}
    write_objects([line], tmp_path, NAMES, [False, True, True], ["csv", "coco", "geojson"], 0.5)

    features = json.loads((tmp_path / "geojson" / "000004_wall.geojson").read_text())["features"]
    assert len(features) == len(list(find_objects(leaf, [False, True, True])))
    drawn = np.zeros_like(leaf)
    for feature in features:
        facts, pixels = feature["properties"], filled(feature["geometry"], *leaf.shape)
        assert not drawn[pixels].any()
        drawn[pixels] = NAMES.index(facts["class"])
        assert facts["area"] == pixels.sum() and facts["area_mm2"] == pixels.sum() / 4
    np.testing.assert_array_equal(drawn, leaf)

    coco = COCO(tmp_path / "coco.json")
    assert coco.loadImgs([4]) == [{"id": 4, "file_name": "wall.jpg", "height": 30, "width": 40}]
    assert {entry["name"] for entry in coco.loadCats(coco.getCatIds())} == {"Crack", "Stain"}
    drawn = np.zeros_like(leaf)
    for entry in coco.loadAnns(coco.getAnnIds(imgIds=[4])):
        pixels = coco.annToMask(entry) > 0
        drawn[pixels] = entry["category_id"]
        left, top, width, height = entry["bbox"]
        assert pixels[top : top + height, left : left + width].sum() == entry["area"] == pixels.sum()
    np.testing.assert_array_equal(drawn, leaf)
