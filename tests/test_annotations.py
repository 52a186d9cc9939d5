"""The same picture, drawn in every format of annotations, gives the same mask."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pycocotools.mask as rle
import pytest
from PIL import Image, ImageDraw

from common.data.splits import Reading, load_splits
from data_prep import prepare_table
from data_prep.rows.annotations import draw

TREE = """
levels: [binary, fine]
tree:
  clean: [Clean]
  damage: [Crack, Stain]
"""
HEIGHT, WIDTH = 60, 80
CRACK, STAIN = [10.0, 10.0, 60.5, 12.0, 58.0, 40.2, 12.0, 30.0], [30.0, 5.0, 50.0, 5.0, 50.0, 50.0, 30.0, 50.0]


def runs_of(mask):
    """Lengths of runs of 0 and 1, in rows, beginning with 0."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.ravel().astype(int)])))
    return np.diff(np.concatenate([[0], edges, [mask.size]])).tolist()


def alone(polygon):
    return draw([(1, [polygon])], (HEIGHT, WIDTH), 0) > 0


def points(polygon):
    return np.reshape(polygon, (-1, 2)).tolist()


def coco(regions):
    names = {1: "crack", 7: "Stain"}
    objects = [{"image_id": 3, "category_id": number, "segmentation": region} for number, region in regions]
    return {
        "images": [{"id": 3, "file_name": "wall.png", "height": HEIGHT, "width": WIDTH}],
        "annotations": [*objects, {"image_id": 3, "category_id": 1, "segmentation": [], "bbox": [0, 0, 9, 9]}],
        "categories": [{"id": number, "name": name} for number, name in names.items()],
    }


def coco_polygons(folder):
    (folder / "wall.json").write_text(json.dumps(coco([(1, [CRACK]), (7, [STAIN])])))


def coco_runs(folder):
    """Compressed, and as a list of lengths, down the columns."""
    compressed = rle.encode(np.asfortranarray(alone(CRACK).astype(np.uint8)))
    compressed["counts"] = compressed["counts"].decode()
    plain = {"size": [HEIGHT, WIDTH], "counts": runs_of(alone(STAIN).T)}
    (folder / "wall.json").write_text(json.dumps(coco([(1, compressed), (7, plain)])))


def labelme(folder):
    shapes = [
        {"label": "Crack", "shape_type": "polygon", "points": points(CRACK)},
        {"label": "Stain", "shape_type": "rectangle", "points": [[30, 5], [50, 50]]},
        {"label": "Stain", "shape_type": "linestrip", "points": [[0, 0], [50, 50]]},
    ]
    content = {"imagePath": "..\\pictures\\wall.png", "imageHeight": HEIGHT, "imageWidth": WIDTH, "shapes": shapes}
    (folder / "wall.json").write_text(json.dumps(content))


def labelme_masks(folder):
    shapes = []
    for name, polygon in (("Crack", CRACK), ("Stain", STAIN)):
        rows, columns = np.nonzero(alone(polygon))
        box = [[int(columns.min()), int(rows.min())], [int(columns.max()), int(rows.max())]]
        part = alone(polygon)[box[0][1] : box[1][1] + 1, box[0][0] : box[1][0] + 1]
        buffer = io.BytesIO()
        Image.fromarray(part).save(buffer, "PNG")
        mask = base64.b64encode(buffer.getvalue()).decode()
        shapes.append({"label": name, "shape_type": "mask", "points": box, "mask": mask})
    content = {"imagePath": "wall.png", "imageHeight": HEIGHT, "imageWidth": WIDTH, "shapes": shapes}
    (folder / "wall.json").write_text(json.dumps(content))


def cvat(folder):
    """The first in the file lies on top; one of them is a mask, cut to its box."""
    words = ";".join(f"{x},{y}" for x, y in points(CRACK))
    part = alone(STAIN)[5:50, 30:50]
    mask = (
        f'<mask label="Stain" z_order="1" left="30" top="5" width="20" height="45" rle="{str(runs_of(part))[1:-1]}"/>'
    )
    crack = f'<polygon label="Crack" z_order="0" points="{words}"/>'
    image = f'<image id="0" name="wall.png" width="{WIDTH}" height="{HEIGHT}">{mask}{crack}</image>'
    (folder / "wall.xml").write_text(f"<annotations><version>1.1</version>{image}</annotations>")


@pytest.mark.parametrize("write", [coco_polygons, coco_runs, labelme, labelme_masks, cvat])
def test_every_format_gives_the_same_mask(write, tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "notes").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT), "gray").save(tmp_path / "pictures" / "wall.png")
    (tmp_path / "tree.yaml").write_text(TREE)
    write(tmp_path / "notes")
    words = ["--annotations", str(tmp_path / "notes"), "--image_root", str(tmp_path / "pictures"), "--num_proc", "1"]
    shares = ["--validation_share", "0", "--test_share", "0", "--taxonomy", str(tmp_path / "tree.yaml")]
    prepare_table.main([*words, *shares, "--output_dir", str(tmp_path / "data")])
    (row,) = load_splits(str(tmp_path / "data"), None, {})["train"]
    assert Path(row["image"]).name == "wall.png"
    found = np.asarray(Image.open(next((tmp_path / "data_masks").glob("*.png"))))
    expected = alone(CRACK).astype(np.uint8)
    expected[alone(STAIN)] = 2  # the later object lies over the earlier
    np.testing.assert_array_equal(found, expected)
    assert (found == 2).sum() == 20 * 45
    other = Image.new("1", (WIDTH, HEIGHT))
    ImageDraw.Draw(other).polygon(CRACK, fill=1)  # another library's outlines differ at the border only
    assert (np.asarray(other) != alone(CRACK)).sum() < 0.1 * alone(CRACK).sum()


def test_splits_of_the_files_names(tmp_path):
    tree = tmp_path / "tree.yaml"
    tree.write_text(TREE)
    for split in ("train2017", "val2017"):
        content = coco([(7, [STAIN])])
        content["images"][0]["file_name"] = f"{split}.png"
        (tmp_path / f"instances_{split}.json").write_text(json.dumps(content))
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / f"{split}.png")
    words = ["--annotations", str(tmp_path), "--taxonomy", str(tree), "--output_dir", str(tmp_path / "data")]
    prepare_table.main([*words, "--num_proc", "1"])
    splits = load_splits(str(tmp_path / "data"), None, {})
    assert {name: [Path(path).name for path in rows["image"]] for name, rows in splits.items()} == {
        "train": ["train2017.png"], "validation": ["val2017.png"],
    }  # fmt: skip


def test_mistakes_are_told(tmp_path):
    tree = tmp_path / "tree.yaml"
    tree.write_text(TREE)
    file = tmp_path / "coco.json"

    def run(content, *words):
        file.write_text(json.dumps(content))
        prepare_table.main(
            ["--annotations", str(file), "--taxonomy", str(tree), "--output_dir", str(tmp_path / "data"), *words]
        )

    content = coco([(7, [STAIN])])
    with pytest.raises(ValueError, match=r"an outline has less than three points"):
        run(coco([(7, [[1.0, 2.0, 3.0, 4.0]])]))
    with pytest.raises(ValueError, match="do not fit the image"):
        run(coco([(7, {"size": [2, 2], "counts": [1, 3]})]))
    with pytest.raises(ValueError, match="--background, one of"):
        run(content, "--background", "sky")
    with pytest.raises(ValueError, match="damaged"):
        run({**content, "categories": []})
    content["categories"][1]["name"] = "Rust"
    with pytest.raises(ValueError, match="No leaves of the label tree: {'Rust': 1}"):
        run(content)
    with pytest.raises(ValueError, match="as COCO writes them.*--annotations"):
        load_splits("", None, {"train": str(file)}, Reading())
    with pytest.raises(ValueError, match="as COCO writes them"):
        load_splits(str(file), None, {})
    with pytest.raises(ValueError, match="--image_folder has no columns"):
        prepare_table.main(
            ["--image_folder", str(tmp_path), "--group_column", "x", "--output_dir", str(tmp_path / "d")]
        )
