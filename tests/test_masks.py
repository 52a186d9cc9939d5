"""Mask files of every kind against the leaves they stand for, palettes, and masks beside their images."""

import io
import json
import os
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngInfo

from common.data.masks import MaskedImageRows, MaskReader, read_palette
from common.data.parts import Data, Part
from common.data.rows import ImageRows, ProblemLog
from common.images.files import BadSampleError
from common.images.mask_files import IGNORED_PIXEL, read_mask
from common.labels.hierarchy_files import load_hierarchy, read_ignored
from common.model.hierarchy import Hierarchy
from common.run.mask_setup import _check_labelled, look_at_masks

ARTEFACT = Path(__file__).parents[1] / "hierarchies" / "artefact.yaml"
NAMES = ["Clean", "Material loss", "Peel", "Dust", "Scratch"]
MASK = np.array([[0, 1, 2], [3, 4, 255]], np.uint8)


def flat_tree(names):
    return Hierarchy(["class"], [names], [[None] * len(names)])


TREE = flat_tree(NAMES)


def encode(image, kind="PNG", **options):
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def raw_png(width, depth, colour_type, *rows):
    """PNG files that Pillow cannot write."""
    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def palette_mask(values, transparent=None):
    image = Image.fromarray(np.asarray(values, np.uint8)).convert("L")
    image.putpalette([90, 10, 0] + [channel for index in range(1, 256) for channel in (index, 255 - index, 7)])
    assert image.mode == "P"
    return encode(image, **({} if transparent is None else {"transparency": transparent}))


def read(content, tree=TREE, palette=None):
    values = MaskReader(tree, palette)(content)
    assert values.dtype == np.uint8
    return values.tolist()


# ---- kinds of files


def test_grey_palette_and_grey_in_rgb():
    expected = MASK.tolist()
    assert read(encode(MASK)) == expected
    assert read(palette_mask(MASK)) == expected
    assert read(palette_mask(MASK, transparent=0)) == expected  # the numbers count, not how they look
    assert read(encode(np.repeat(MASK[..., None], 3, 2))) == expected
    assert read(encode(MASK, "TIFF")) == read(encode(MASK, "BMP")) == expected
    assert read(encode(np.repeat(MASK[..., None], 3, 2), "WEBP", lossless=True)) == expected


def test_paths(tmp_path):
    (tmp_path / "mask.png").write_bytes(encode(MASK))
    assert read(str(tmp_path / "mask.png")) == MASK.tolist()


def test_opaque_alpha_is_left_out():
    opaque = np.full(MASK.shape, 255, np.uint8)
    grey_alpha = Image.merge("LA", [Image.fromarray(MASK), Image.fromarray(opaque)])
    assert read(encode(grey_alpha)) == MASK.tolist()
    assert read(encode(np.stack([MASK, MASK, MASK, opaque], -1))) == MASK.tolist()


@pytest.mark.parametrize("alpha", [0, 128, 254])
def test_transparency_is_refused(alpha, tmp_path):
    alphas = np.full(MASK.shape, 255, np.uint8)
    alphas[1, 2] = alpha
    grey_alpha = encode(Image.merge("LA", [Image.fromarray(MASK), Image.fromarray(alphas)]))
    rgba = encode(np.stack([MASK, MASK, MASK, alphas], -1))
    (tmp_path / "grey.json").write_text(json.dumps({name: [i] * 3 for i, name in enumerate([*NAMES, "ignore"])}))
    for content in (grey_alpha, rgba):
        for palette in (None, tmp_path / "grey.json"):  # what is not there has no colour either
            with pytest.raises(ValueError, match="partly transparent"):
                read(content, palette=palette)


def test_one_bit():
    black_and_white = Image.fromarray(np.array([[0, 255, 255]], np.uint8)).convert("1")
    assert black_and_white.mode == "1"
    assert read(encode(black_and_white)) == [[0, 1, 1]]


@pytest.mark.parametrize("depth", [2, 4])
def test_few_bits_are_not_spread(depth):
    """Pillow shows the values of such files as shades: 3 of 2 bits, 15 of 4 bits as 255."""
    values = list(range(2**depth))
    bits = "".join(f"{value:0{depth}b}" for value in values)
    row = int(bits, 2).to_bytes(len(bits) // 8)
    assert read(raw_png(len(values), depth, 0, row), flat_tree([str(value) for value in values])) == [values]
    if depth == 4:
        with pytest.raises(ValueError, match=r"mask values \[5, 6, 7, 8, 9\] are neither a class \(0 to 4\)"):
            read(raw_png(len(values), depth, 0, row))


def test_16_bit_grey():
    assert read(encode(MASK.astype(np.uint16))) == MASK.tolist()
    assert Image.open(io.BytesIO(encode(MASK.astype(np.uint16)))).mode == "I;16"
    for value in (5, 256, 257, 65_535):  # 256 is not 0, and 65,535 is not "ignored"
        with pytest.raises(ValueError, match=rf"mask values \[{value}\] are neither"):
            read(encode(np.array([[0, value]], np.uint16)))


@pytest.mark.parametrize("colour_type, channels", [(2, [3, 3, 3]), (4, [3, 65_535]), (6, [3, 3, 3, 65_535])])
def test_16_bit_colour_is_refused(colour_type, channels):
    """Pillow would hand over the upper byte of each channel: a mask of class 0 alone."""
    row = struct.pack(f">{len(channels)}H", *channels)
    with pytest.raises(ValueError, match="16 bits a channel"):
        read(raw_png(1, 16, colour_type, row))


def test_32_bit_tiff():
    assert read(encode(MASK.astype(np.int32), "TIFF")) == MASK.tolist()
    for value in (-1, -2, 5, 256, 2**31 - 1):  # -1 is not 255
        with pytest.raises(ValueError, match=rf"mask values \[{value}\] are neither"):
            read(encode(np.array([[0, value]], np.int32), "TIFF"))


def test_colours_without_a_palette():
    colours = np.zeros((2, 2, 3), np.uint8)
    colours[1, 1] = (0, 0, 1)
    with pytest.raises(ValueError, match=r"has colours \(RGB\).*--mask_palette"):
        read(encode(colours))
    with pytest.raises(ValueError, match="--mask_palette"):
        read(encode(np.dstack([colours, np.full((2, 2), 255, np.uint8)])))


def test_values_that_mean_nothing():
    values = np.zeros((4, 7), np.uint8)
    values[2, 5], values[3, 0], values[3, 1] = 5, 254, 99
    with pytest.raises(ValueError) as caught:
        read(encode(values))
    assert str(caught.value) == (
        "mask values [5, 99, 254] are neither a class (0 to 4) nor 255 for ignored (see --ignore_values), the first "
        "in row 2, column 5"
    )
    with pytest.raises(ValueError, match=r"row 2, column 5$"):
        read(palette_mask(values))


def test_many_values_that_mean_nothing_are_cut_short():
    with pytest.raises(ValueError, match=r"mask values \[5, 6, 7, 8, 9\] are"):
        read(encode(np.arange(255, dtype=np.uint8)[None]))


def test_jpeg_hint():
    steps = np.zeros((16, 16), np.uint8)
    steps[:, 5:] = 255
    for content in (encode(steps, "JPEG", quality=50), encode(np.zeros((16, 16), np.uint8), "JPEG")):
        with pytest.raises(ValueError, match="a JPEG file cannot be a mask"):  # by kind: also if values are right
            read(content)
    with pytest.raises(ValueError) as caught:
        read(encode(np.full((2, 2), 77, np.uint8)))
    assert "JPEG" not in str(caught.value)


def test_everything_ignored():
    assert read(encode(np.full((3, 2), 255, np.uint8))) == [[IGNORED_PIXEL] * 2] * 3


def test_as_many_leaves_as_a_byte_tells_apart():
    values = np.arange(256, dtype=np.uint8)[None]
    assert read(encode(values), flat_tree([str(index) for index in range(255)])) == values.tolist()
    with pytest.raises(ValueError, match="up to 255 classes apart; the label tree has 256"):
        MaskReader(flat_tree([str(index) for index in range(256)]))


def test_leaves_of_upper_levels_count():
    tree = Hierarchy(["coarse", "fine"], [["a", "b"], ["x", "y"]], [[None, None], [0, 0]])
    assert tree.leaf_names() == ["x", "y", "b"]
    assert read(encode(np.array([[0, 1, 2]], np.uint8)), tree) == [[0, 1, 2]]
    with pytest.raises(ValueError, match="0 to 2"):
        read(encode(np.array([[3]], np.uint8)), tree)


# ---- palettes


COLOURS = {
    "Clean": [0, 0, 0],
    "Material loss": [255, 0, 0],
    "Peel": "#00ff00",
    "Dust": "#0000FE",
    "Scratch": [1, 2, 3],
    "ignore": [255, 255, 255],
}
PAINTED = np.array([[[0, 0, 0], [255, 0, 0], [0, 255, 0]], [[0, 0, 254], [1, 2, 3], [255, 255, 255]]], np.uint8)


def write_palette(folder, changes=None, name="palette.json"):
    content = {**COLOURS, **(changes or {})}
    (folder / name).write_text(json.dumps({key: value for key, value in content.items() if value != "leave out"}))
    return folder / name


def test_palette_by_name(tmp_path):
    palette = write_palette(tmp_path)
    assert read(encode(PAINTED), palette=palette) == MASK.tolist()
    assert read(encode(PAINTED, "TIFF"), palette=palette) == MASK.tolist()
    opaque = np.dstack([PAINTED, np.full(MASK.shape, 255, np.uint8)])
    assert read(encode(opaque), palette=palette) == MASK.tolist()


def test_palette_of_a_palette_file(tmp_path):
    """Their colours count; the numbers are another matter."""
    image = Image.new("P", (3, 2))
    image.putpalette([1, 2, 3, 255, 255, 255, 0, 255, 0, 0, 0, 254, 0, 0, 0, 255, 0, 0])
    image.putdata([4, 5, 2, 3, 0, 1])
    assert read(encode(image), palette=write_palette(tmp_path)) == MASK.tolist()


def test_palette_of_grey_and_black_and_white_files(tmp_path):
    palette = write_palette(tmp_path)
    assert read(encode(np.array([[0, 255]], np.uint8)), palette=palette) == [[0, 255]]
    assert read(encode(np.array([[0, 255]], np.uint8) > 0), palette=palette) == [[0, 255]]


def test_palette_in_yaml(tmp_path):
    (tmp_path / "palette.yaml").write_text(
        "# colours\nclean: [0, 0, 0]\nMATERIAL  LOSS: [255, 0, 0]\nPeel: '#0f0'\nDust: \"#0000fe\"\n"
        "Scratch: [1, 2, 3]\nIgnore: white\n"
    )
    assert read(encode(PAINTED), palette=tmp_path / "palette.yaml") == MASK.tolist()


def test_palette_without_ignore(tmp_path):
    palette = write_palette(tmp_path, {"ignore": "leave out"})
    assert read(encode(PAINTED[:1]), palette=palette) == MASK[:1].tolist()
    with pytest.raises(ValueError, match="mask colours #ffffff are not in the palette"):
        read(encode(PAINTED), palette=palette)


def test_palette_in_json_indented_with_tabs(tmp_path):
    (tmp_path / "tabs.json").write_text(json.dumps(COLOURS, indent="\t"))
    assert read(encode(PAINTED), palette=tmp_path / "tabs.json") == MASK.tolist()


def test_unknown_colours_in_a_mask(tmp_path):
    painted = PAINTED.copy()
    painted[0, 0], painted[1, 1] = (0, 1, 0), (255, 254, 253)
    with pytest.raises(ValueError, match=r"mask colours #000100, #fffefd are not in the palette \(--mask_palette\)"):
        read(encode(painted), palette=write_palette(tmp_path))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"Peel": "leave out", "Dust": "leave out"}, r"unknown \[\], without a colour \['Peel', 'Dust'\]"),
        ({"Rust": [9, 9, 9]}, r"unknown \['Rust'\], without a colour \[\]"),
        ({"Peel": "leave out", "Peal": [0, 255, 0]}, r"unknown \['Peal'\], without a colour \['Peel'\]"),
        ({"Peel": [255, 0, 0]}, "the colour of 'Peel' stands twice"),
        ({"Peel": "red"}, "the colour of 'Peel' stands twice"),
        ({"ignore": "#000"}, "the colour of 'ignore' stands twice"),
        ({"PEEL": [7, 7, 7]}, r"listed twice: \['peel'\]"),
        ({"Ignore": [7, 7, 7]}, r"listed twice: \['ignore'\]"),
        *(
            ({"Peel": colour}, "colour of 'Peel' must be three integers from 0 to 255")
            for colour in (
                [0, 256, 0],
                [0, -1, 0],
                [0, 1],
                [0, 1, 2, 3],
                [0.0, 1.0, 0.5],  # shares would all become 0 and 1
                [True, False, False],
                ["0", "1", "2"],
                [0, None, 1],
                7,
                None,
                {"red": 1, "green": 2, "blue": 3},
                "#12345",
                "no colour",
                "",
                float("inf"),
                [float("nan")] * 3,
            )
        ),
    ],
)
def test_palettes_that_do_not_fit(tmp_path, changes, message):
    palette = write_palette(tmp_path, changes)
    with pytest.raises(ValueError, match=message) as caught:
        read_palette(palette, TREE)
    assert str(palette) in str(caught.value)


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "must hold one line a class"),
        ("- [0, 0, 0]\n", "must hold one line a class"),
        ("Clean: [0, 0, 0]\nClean: [1, 1, 1]\n", r"listed twice: \['Clean'\]"),
        ('{"Clean": [0, 0, 0], "Clean": [1, 1, 1]}', r"listed twice: \['Clean'\]"),
        ("Clean: [0, 0\n", "Palette .*palette.yaml: "),
        ("? [1, 2]\n: [0, 0, 0]\n", "Palette .*palette.yaml"),
        (b"\xff\xfeno text", "Palette .*palette.yaml: "),
    ],
)
def test_files_that_are_no_palette(tmp_path, content, message):
    content = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "palette.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_palette(tmp_path / "palette.yaml", TREE)


def test_colour_swallowed_as_a_comment(tmp_path):
    """``Peel: #00ff00`` is an empty value in YAML; the message says what to do."""
    (tmp_path / "palette.yaml").write_text("".join(f"{name}: #00ff0{i}\n" for i, name in enumerate(NAMES)))
    with pytest.raises(ValueError, match="'#rrggbb' in quotes, not None"):
        read_palette(tmp_path / "palette.yaml", TREE)


def test_missing_palette(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ValueError, match=r"No palette file at .*\(--mask_palette\)"):
            MaskReader(TREE, path)


# ---- beside their images


def photo(height, width, seed=0, kind="PNG", **options):
    noise = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return encode(noise, kind, **options)


def byte_rows(images, masks, reader=None, names=True):
    def column(contents, folder):
        return [
            content and {"bytes": content, "path": f"{folder}/{row}.png" if names else None}
            for row, content in enumerate(contents)
        ]

    dataset = datasets.Dataset.from_dict({"image": column(images, "photos"), "mask": column(masks, "masks")})
    for name in ("image", "mask"):
        dataset = dataset.cast_column(name, datasets.Image())
    return make_rows(dataset, None, reader)


def path_rows(images, masks, root):
    return make_rows(datasets.Dataset.from_dict({"image": images, "mask": masks}), root)


def make_rows(dataset, root, reader=None):
    images, masks = (ImageRows(dataset, column, "train", root) for column in ("image", "mask"))
    return MaskedImageRows(images, masks, reader or MaskReader(TREE))


def load(rows, index):
    return rows.load(index, rows.encoded([index])[0])


def test_pixels_and_mask():
    content = photo(2, 3)
    rows = byte_rows([content, photo(4, 5, 1)], [encode(MASK), encode(np.full((4, 5), 2, np.uint8))])
    assert len(rows) == 2
    image, mask = load(rows, 0)
    assert image.dtype == mask.dtype == torch.uint8
    assert torch.equal(image, torch.from_numpy(np.array(Image.open(io.BytesIO(content)))).movedim(-1, 0))
    assert mask.tolist() == MASK.tolist()
    assert load(rows, 1)[0].shape == (3, 4, 5)
    assert not rows.check_headers()


def test_bad_value_names_row_and_file():
    rows = byte_rows([photo(2, 3)] * 3, [encode(MASK), encode(MASK), encode(MASK + 20)])
    with pytest.raises(BadSampleError) as caught:
        load(rows, 2)
    message = str(caught.value)
    assert message.startswith("mask in row 2 of the train split, file masks/2.png: mask values [19, 20, 21, 22, 23]")
    assert message.endswith("row 0, column 0")


def test_column_without_file_names():
    rows = byte_rows([photo(2, 3)], [encode(MASK + 20)], names=False)
    with pytest.raises(BadSampleError, match=r"^mask in row 0 of the train split: mask values"):
        load(rows, 0)


def no_decoding(monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", refuse)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_sizes_that_differ(kind):
    rows = byte_rows([photo(2, 3, kind=kind), photo(2, 3, kind=kind)], [encode(MASK), encode(MASK.T)])
    message = "mask in row 1 of the train split, file masks/1.png: it is 2 x 3 pixels large, its image 3 x 2"
    with pytest.raises(BadSampleError) as caught:
        load(rows, 1)
    assert str(caught.value) == message
    assert rows.check_headers() == [message]


def test_headers_are_enough_where_nothing_is_wrong(monkeypatch):
    images = [photo(2, 3), photo(2, 3, kind="JPEG"), photo(2, 3, kind="JPEG", exif=rotated(3))]
    rows = byte_rows(images, [encode(MASK), palette_mask(MASK), encode(MASK.astype(np.uint16))])
    no_decoding(monkeypatch)
    assert rows.check_headers() == []


def rotated(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_rotated_image_with_an_upright_mask(kind):
    for orientation in range(1, 9):
        shape = (3, 2) if orientation >= 5 else (2, 3)  # as stored; seen, it is 2 rows of 3
        rows = byte_rows([photo(*shape, kind=kind, exif=rotated(orientation))], [encode(MASK)])
        assert rows.check_headers() == []
        image, mask = load(rows, 0)
        assert image.shape == (3, 2, 3) and mask.tolist() == MASK.tolist()
        wrong = byte_rows([photo(*shape[::-1], kind=kind, exif=rotated(orientation))], [encode(MASK)])
        (problem,) = wrong.check_headers()
        with pytest.raises(BadSampleError) as caught:
            load(wrong, 0)
        assert str(caught.value) == problem
        assert problem.endswith("it is 3 x 2 pixels large, its image 2 x 3")


@pytest.mark.parametrize("orientation, stored", [(3, MASK[::-1, ::-1]), (6, MASK.T[::-1]), (8, MASK.T[:, ::-1])])
def test_rotated_masks_are_turned_like_images(orientation, stored):
    content = encode(np.ascontiguousarray(stored), exif=rotated(orientation))
    assert read(content) == MASK.tolist()
    rows = byte_rows([photo(2, 3)], [content])
    assert rows.check_headers() == []
    assert load(rows, 0)[1].tolist() == MASK.tolist()


def test_rotation_told_behind_the_pixels():
    """PNG allows it; only decoding finds it."""
    content = photo(3, 2)
    end = len(content) - 12
    content = content[:end] + chunk(b"eXIf", rotated(6).tobytes()[6:]) + content[end:]
    rows = byte_rows([content], [encode(MASK)])
    assert load(rows, 0)[0].shape == (3, 2, 3)
    assert rows.check_headers() == []


def test_headers_that_make_no_sense():
    """Then nothing is turned."""
    note = PngInfo()
    note.add_text("Raw profile type exif", "\n\n\nno number")
    for contents in ((photo(2, 3, pnginfo=note), encode(MASK)), (photo(2, 3), encode(MASK, pnginfo=note))):
        rows = byte_rows([contents[0]], [contents[1]])
        assert rows.check_headers() == [] and load(rows, 0)[1].tolist() == MASK.tolist()


def test_masks_drawn_on_images_as_they_lie(caplog):
    """The image's orientation turns both, unless the mask has one of its own."""
    for orientation, stored in [(3, MASK[::-1, ::-1]), (6, MASK.T[::-1]), (8, MASK.T[:, ::-1])]:
        stored = np.ascontiguousarray(stored)
        for own, values in ((None, stored), (rotated(orientation), stored), (rotated(1), stored)):
            image = photo(*stored.shape, exif=rotated(orientation))
            rows = byte_rows([image], [encode(values, **({"exif": own} if own else {}))], MaskReader(TREE, raw=True))
            assert rows.check_headers() == [] and load(rows, 0)[1].tolist() == MASK.tolist()
    assert not caplog.records
    rows = byte_rows([photo(2, 3, exif=rotated(3))], [encode(MASK[::-1, ::-1].copy())])
    assert rows.check_headers() == []
    assert (
        "EXIF turns 1 images, such as row 0 of the train split" in caplog.text
        and "mask_orientation raw" in caplog.text
    )


def test_values_that_are_ignored(tmp_path):
    reader = MaskReader(TREE, ignored=[11, 2])
    assert reader(encode(np.array([[0, 11], [2, 255]], np.uint8))).tolist() == [[0, 255], [255, 255]]
    with pytest.raises(ValueError, match=r"mask values \[12\] are"):
        reader(encode(np.array([[12]], np.uint8)))
    for name, text in (
        ("tree.yaml", "levels: [a]\ntree: [x, y]\nignore: [11]"),
        ("tree.yml", "levels: [a]\nclasses: [x, y]"),
    ):
        (tmp_path / name).write_text(text)
        assert load_hierarchy(tmp_path / name)[0].leaf_names() == ["x", "y"]
    assert read_ignored(tmp_path / "tree.yaml") == [11] and read_ignored(tmp_path / "tree.yml") == []
    flat_tree(["x", "y"]).save(tmp_path / "tree.json")
    content = json.loads((tmp_path / "tree.json").read_text())
    (tmp_path / "tree.json").write_text(json.dumps({**content, "ignore": [0]}))
    assert load_hierarchy(tmp_path / "tree.json")[0].num_leaves == 2 and read_ignored(tmp_path / "tree.json") == [0]
    (tmp_path / "tree.yaml").write_text("levels: [a]\ntree: [x]\nignore: eleven")
    with pytest.raises(ValueError, match="'ignore' must be a list of mask values, not 'eleven'"):
        read_ignored(tmp_path / "tree.yaml")


def test_floats_with_whole_values():
    assert read(encode(MASK.astype(np.float32), "TIFF")) == MASK.tolist()
    for wrong in (0.5, np.nan, np.inf):
        with pytest.raises(ValueError, match="fractions"):
            read(encode(np.array([[0, wrong]], np.float32), "TIFF"))


def test_colours_of_a_mask_of_many_rows():
    """It is looked up in bands."""
    values = np.arange(700, dtype=np.uint8)[:, None].repeat(3, 1) % 3
    colours = np.array([(0, 0, 0), (255, 0, 0), (1, 2, 3)], np.uint8)
    palette = {0: 0, 0xFF0000: 1, 0x010203: 2}
    assert (read_mask(encode(colours[values]), 3, palette) == values).all()
    colours[2] = 9
    with pytest.raises(ValueError, match="mask colours #090909 are not in the palette"):
        read_mask(encode(colours[values]), 3, palette)


def test_ignored_pixels_are_told(caplog):
    caplog.set_level("INFO")
    _check_labelled("training", np.array([3, 0, 5]), 2, ["a", "b", "c"])
    assert "training masks: 20 % of the pixels are ignored" in caplog.text
    with pytest.raises(ValueError, match="No pixel of the validation masks is labelled"):
        _check_labelled("validation", np.zeros(3), 9, ["a", "b", "c"])
    with pytest.raises(ValueError, match=r"values 0 \(a\) and 255.*is 255 the foreground\?.*'b: \"#ffffff\"'"):
        _check_labelled("training", np.array([90, 0]), 10, ["a", "b"])
    _check_labelled("training", np.array([90, 0]), 0, ["a", "b"])


@pytest.mark.parametrize("part", ["training", "validation", "test"])
def test_masks_of_every_part_are_looked_at_before_training(part):
    masks = {name: np.full_like(MASK, 255) if name == part else MASK for name in ("training", "validation", "test")}
    parts = [Part(byte_rows([photo(2, 3)], [encode(mask)]), None, np.arange(1)) for mask in masks.values()]
    data = Data(flat_tree(list("abcdefgh")), *parts)
    args = SimpleNamespace(class_weighting="none", copy_paste=0, balanced_crop=False, dataloader_num_workers=1)
    with pytest.raises(ValueError, match=f"No pixel of the {part} masks is labelled"):
        look_at_masks(args, Accelerator(cpu=True), data, ProblemLog("error"))


def test_missing_masks():
    rows = byte_rows([photo(2, 3)] * 2, [encode(MASK), None])
    with pytest.raises(BadSampleError, match="^mask in row 1 of the train split: "):
        load(rows, 1)
    (problem,) = rows.check_headers()
    assert problem.startswith("mask in row 1 of the train split: ")
    counts, _, problems = rows.count_pixels(np.arange(2), 1)
    assert len(problems) == 1 and counts[1].sum() == 0


def test_missing_images():
    rows = byte_rows([None, photo(2, 3)], [encode(MASK), encode(MASK)])
    (problem,) = rows.check_headers()
    assert problem.startswith("row 0 of the train split: ")
    with pytest.raises(BadSampleError, match="^row 0 of the train split: "):
        load(rows, 0)


@pytest.mark.parametrize("keep", [0.5, 0.95, 0])
def test_truncated_masks(keep):
    content = encode(np.random.default_rng(0).integers(0, 5, (40, 40), dtype=np.uint8))
    content = content[: max(4, int(len(content) * keep))]
    rows = byte_rows([photo(40, 40)], [content])
    with pytest.raises(BadSampleError, match="^mask in row 0 of the train split, file masks/0.png: "):
        load(rows, 0)
    (problem,) = rows.check_headers()
    assert problem.startswith("mask in row 0 of the train split, file masks/0.png: ")


def test_damage_that_the_file_end_does_not_show():
    content = bytearray(encode(np.random.default_rng(0).integers(0, 5, (40, 40), dtype=np.uint8)))
    middle = len(content) // 2
    content[middle : middle + 40] = bytes(40)
    rows = byte_rows([photo(40, 40)], [bytes(content)])
    with pytest.raises(BadSampleError, match="^mask in row 0 of the train split, file masks/0.png: "):
        load(rows, 0)
    assert len(rows.count_pixels(np.arange(1), 1)[-1]) == 1


def test_paths_start_at_the_root(tmp_path):
    for folder in ("data/photos", "data/masks"):
        (tmp_path / folder).mkdir(parents=True)
    for row in range(2):
        (tmp_path / f"data/photos/{row}.png").write_bytes(photo(2, 3, row))
        (tmp_path / f"data/masks/{row}.png").write_bytes(encode(MASK))
    masks = ["masks/0.png", str(tmp_path / "data/masks/1.png")]
    rows = path_rows(["photos/0.png", "photos/1.png"], masks, tmp_path / "data")
    assert rows.check_headers() == []
    assert all(load(rows, row)[1].tolist() == MASK.tolist() for row in range(2))
    assert rows.count_pixels(np.arange(2), 2)[-1] == []


def test_paths_that_leave_the_root(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data2").mkdir()
    (tmp_path / "data/image.png").write_bytes(photo(2, 3))
    for name in ("mask.png", "data2/mask.png"):
        (tmp_path / name).write_bytes(encode(MASK))
    os.symlink(tmp_path / "mask.png", tmp_path / "data/link.png")
    masks = ["../mask.png", str(tmp_path / "mask.png"), "link.png", "../data2/mask.png"]
    rows = path_rows(["image.png"] * 4, masks, tmp_path / "data")
    for row, mask in enumerate(masks):
        with pytest.raises(BadSampleError, match="outside of the folder") as caught:
            load(rows, row)
        assert str(caught.value).startswith(f"mask in row {row} of the train split, file {mask}: ")
    problems = rows.check_headers()
    assert len(problems) == 4 and all("mask" in line and "outside of the folder" in line for line in problems)
    assert len(rows.count_pixels(np.arange(4), 2)[-1]) == 4


def test_paths_to_nothing(tmp_path):
    (tmp_path / "image.png").write_bytes(photo(2, 3))
    rows = path_rows(["image.png"], ["gone.png"], tmp_path)
    (problem,) = rows.check_headers()
    assert problem == "mask in row 0 of the train split, file gone.png: No such file"
    with pytest.raises(BadSampleError, match=r"^Missing mask: mask in row 0 .*--on_bad_sample skip"):
        ProblemLog("error").add([problem])
    with pytest.raises(BadSampleError, match="^mask in row 0 of the train split, file gone.png: "):
        load(rows, 0)


# ---- counting


@pytest.mark.parametrize("num_threads", [1, 2, 7])
def test_count_pixels(num_threads):
    rng = np.random.default_rng(3)
    masks = [rng.choice([0, 1, 2, 3, 4, 255], tuple(rng.integers(1, 9, 2))).astype(np.uint8) for _ in range(75)]
    encoded = [encode(mask) if index % 3 else palette_mask(mask) for index, mask in enumerate(masks)]
    encoded[40], encoded[7] = b"no image at all", encode(np.full((2, 2), 9, np.uint8))
    rows = byte_rows([photo(1, 1)] * 75, encoded)
    wanted = np.concatenate([np.arange(3, 75), [0]])  # not all, and not in order
    counts, ignored, problems = rows.count_pixels(wanted, num_threads)
    expected = [np.bincount(masks[row].ravel(), minlength=256)[:5] for row in wanted]
    for row in (40, 7):
        expected[row - 3] = np.zeros(5, np.int64)
    assert counts.dtype == np.int64 and counts.shape == (73, 5)
    np.testing.assert_array_equal(counts, expected)
    unlabelled = [0 if row in (40, 7) else (masks[row] == 255).sum() for row in wanted]
    np.testing.assert_array_equal(ignored, unlabelled)
    assert [line.split(",")[0] for line in problems] == [f"mask in row {row} of the train split" for row in (40, 7)]


def test_count_nothing():
    counts, ignored, problems = byte_rows([photo(2, 3)], [encode(MASK)]).count_pixels(np.arange(0), 2)
    assert counts.shape == (0, 5) and ignored.shape == (0,) and problems == []


# ---- the tree of ARTeFACT


def test_artefact_tree():
    tree, resolved = load_hierarchy(ARTEFACT)
    assert resolved == [] and tree.levels == ("binary", "coarse", "fine")
    groups = {
        "Structural": ["Material loss", "Peel", "Fold", "Cracks", "Puncture"],
        "Surface": ["Dust", "Hair", "Dirt", "Writing", "Staining", "Stamp", "Sticker"],
        "Color": ["Burn marks"],
        "Optical": ["Scratch", "Lightleak"],
    }
    group_of = {name: group for group, names in groups.items() for name in names}
    order = "Clean,Material loss,Peel,Dust,Scratch,Hair,Dirt,Fold,Writing,Cracks,Staining,Stamp,Sticker,Puncture"
    order = [*order.split(","), "Burn marks", "Lightleak"]
    assert tree.leaf_names() == order  # of the values in the published masks
    assert set(tree.names[0]) == {"Clean", "Damage"} and set(tree.names[1]) == set(groups)
    paths = [tree.path_names(2, index) for index in range(16)]
    assert paths[0] == ("Clean", None, "Clean")
    assert paths[1:] == [("Damage", group_of[name], name) for name in order[1:]]


def test_masks_of_artefact():
    tree, _ = load_hierarchy(ARTEFACT)
    values = np.array([[*range(16), 255]], np.uint8)
    assert read(encode(values), tree) == values.tolist()
    with pytest.raises(ValueError, match=r"mask values \[16\] are neither a class \(0 to 15\)"):
        read(encode(np.array([[16]], np.uint8)), tree)


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("  - Dust\n", "", r"not in 'classes' \['Dust'\]"),
        ("[Dust, Hair,", "[Hair,", r"not in the tree \['Dust'\]"),
        ("  - Dust\n", "  - Dust\n  - Dust\n", r"listed twice \['Dust'\]"),
        ("Color: [Burn marks]", "Color: [Burn marks, Dust]", r"listed twice \['Dust'\]"),
        ("  - Dust\n", "  - Dost\n", r"not in the tree \['Dost'\], not in 'classes' \['Dust'\]"),
        ("    Color: [Burn marks]\n", "    Color:\n", "Color"),
    ],
)
def test_changes_that_break_the_tree(tmp_path, old, new, message):
    text = ARTEFACT.read_text()
    assert old in text
    (tmp_path / "tree.yaml").write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=message):
        load_hierarchy(tmp_path / "tree.yaml")
