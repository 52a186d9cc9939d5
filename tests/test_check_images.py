"""Every kind of damage is found, named, and left out by what reads problems.csv."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
from conftest import TILES_TREE, encode
from PIL import Image

from common.data.problems import read_problems
from data_prep import check_images
from train_taxonomy import main as train


def picture(rng, side=32, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (side, side, 3)).astype(np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def bomb(width, height):
    """A PNG that says it is huge, and has nothing in it."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.fixture
def table(tmp_path):
    """A folder of images of every kind of trouble, and the table that names them."""
    rng = np.random.default_rng(0)
    root = tmp_path / "images"
    root.mkdir()
    contents = {
        "good.png": picture(rng),
        "good.jpg": picture(rng, kind="JPEG"),
        "cut.jpg": picture(rng, 64, "JPEG")[:-200],
        "cut.png": picture(rng)[:-60],
        "empty.jpg": b"",
        "text.jpg": b"hello",
        "small.png": picture(rng, 8),
        "really_png.jpg": picture(rng),
        "bomb.png": bomb(60_000, 60_000),
    }
    for name, content in contents.items():
        (root / name).write_bytes(content)
    (tmp_path / "secret.png").write_bytes(picture(rng))
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    names = [*contents, "link.png", "../secret.png", str(tmp_path / "secret.png"), "gone.png", ""]
    lines = [f"{name},{'ab'[index % 2]}" for index, name in enumerate(names)]
    (root / "train.csv").write_text("\n".join(["file,kind", *lines]) + "\n")
    return root / "train.csv", names


EXPECTED = {
    **{"cut.jpg": "broken", "cut.png": "broken", "empty.jpg": "broken", "text.jpg": "broken"},
    **{"small.png": "tiny", "really_png.jpg": "wrong type", "bomb.png": "too large"},
    **{"link.png": "outside of the root", "../secret.png": "outside of the root"},
    **{"gone.png": "missing", "": "missing"},
}


@pytest.mark.parametrize("num_proc", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_every_kind_of_trouble(table, tmp_path, num_proc, capsys):
    file, names = table
    words = ["--train_file", str(file), "--image_column", "file", "--output_dir", str(tmp_path / "out")]
    assert check_images.main([*words, "--num_proc", str(num_proc)]) == 1
    problems = read_problems(tmp_path / "out" / "problems.csv")
    expected = EXPECTED | {str(tmp_path / "secret.png"): "outside of the root"}
    assert {problem.image: problem.kind for problem in problems} == expected
    assert all(names[problem.row] == problem.image and problem.split == "train" for problem in problems)
    assert "14 rows checked, 12 with problems" in capsys.readouterr().out
    again = [*words, "--exclude_rows", str(tmp_path / "out" / "problems.csv"), "--num_proc", "0"]
    again[again.index(str(tmp_path / "out"))] = str(tmp_path / "second")
    assert check_images.main(again) == 0
    assert read_problems(tmp_path / "second" / "problems.csv") == []


def test_a_row_that_ends_its_process():
    """test_parallel.py has what is around it."""
    assert json.loads(check_images.CRASH["problems"])[0][0] == "crashes the decoder"


def test_masks(tmp_path, capsys):
    rng = np.random.default_rng(0)
    (tmp_path / "tree.yaml").write_text(TILES_TREE)
    good = rng.integers(0, 4, (32, 32)).astype(np.uint8)
    unknown, other = good.copy(), good[:20]
    unknown[3, 4] = 77
    for name, mask in (("good", good), ("unknown", unknown), ("other", other)):
        (tmp_path / f"{name}.png").write_bytes(encode(mask))
    (tmp_path / "broken.png").write_bytes(encode(good)[:-40])
    (tmp_path / "image.png").write_bytes(picture(rng))
    names = ["good", "unknown", "other", "broken"]
    (tmp_path / "train.csv").write_text("image,mask\n" + "".join(f"image.png,{name}.png\n" for name in names))
    words = ["--train_file", str(tmp_path / "train.csv"), "--mask_column", "mask", "--num_proc", "0"]
    words += ["--hierarchy", str(tmp_path / "tree.yaml"), "--output_dir", str(tmp_path / "out")]
    assert check_images.main(words) == 1
    problems = read_problems(tmp_path / "out" / "problems.csv")
    assert [(p.row, p.kind) for p in problems] == [(1, "mask: values"), (2, "mask: other size"), (3, "mask: broken")]
    assert "77" in problems[0].problem and "32 x 20" in problems[1].problem


@pytest.mark.parametrize("orientation", ["upright", "raw"])
def test_masks_drawn_on_photographs_as_they_lie(tmp_path, orientation):
    (tmp_path / "tree.yaml").write_text(TILES_TREE)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 24), "red").save(tmp_path / "image.jpg", exif=exif)
    (tmp_path / "mask.png").write_bytes(encode(np.zeros((24, 40), np.uint8)))
    (tmp_path / "train.csv").write_text("image,mask\nimage.jpg,mask.png\n")
    words = ["--train_file", str(tmp_path / "train.csv"), "--mask_column", "mask", "--num_proc", "0"]
    words += ["--hierarchy", str(tmp_path / "tree.yaml"), "--output_dir", str(tmp_path / "out")]
    assert check_images.main([*words, "--mask_orientation", orientation]) == int(orientation == "upright")


def test_trainers_leave_the_rows_out(fruit, options, tmp_path, capsys):
    """A file about other data is refused."""
    problems = tmp_path / "problems.csv"
    problems.write_text("split,row,image,kind,problem\ntrain,5,5.jpg,broken,x\nvalidation,7,7.jpg,broken,x\n")
    train(options(exclude_rows=[problems], max_train_steps=1))
    told = capsys.readouterr().err
    assert "train: 1 of 96 rows are left out." in told
    assert "95 for training, 40 for validation" in told
    for line, message in (("5,6.jpg", "made for other data"), ("500,", "has 96 rows")):
        problems.write_text(f"split,row,image,kind,problem\ntrain,{line},broken,x\n")
        with pytest.raises(ValueError, match=message):
            train(options(exclude_rows=[problems]))
