"""ARTeFACT's layouts, on the Hub and as files: masks, splits, tiles, and scans larger than memory should hold."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import train_segmentation
from common.data.problems import read_problems
from common.images.files import check_file, load_image
from common.labels.hierarchy_files import load_hierarchy
from data_prep.folder.images import BadRowError, ImageFile
from data_prep.folder.scans import ScanStore, load_reduced, rows_of
from data_prep.prepare_artefact import COLOURS, HIERARCHY, main, palette_of

REPOSITORY = Path(train_segmentation.__file__).parent
NAMES = list(COLOURS)[:-1]
PALETTE = dict(palette_of(NAMES))
CONTENTS = ["Artistic depiction", "Photographic depiction", "Line art", "Geometric patterns"]


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def draw(index: int, size: tuple[int, int] = (60, 40)) -> tuple[Image.Image, np.ndarray]:
    """A scan with two kinds of damage and background at the left."""
    pixels = np.random.default_rng(index).integers(60, 200, (size[1], size[0], 3)).astype(np.uint8)
    mask = np.zeros(size[::-1], np.uint8)
    mask[5:20, 10:30], mask[25:35, 20:50], mask[:, :4] = index % 15 + 1, (index + 7) % 15 + 1, 255
    return Image.fromarray(pixels), mask


def coloured(mask: np.ndarray) -> Image.Image:
    colours = np.zeros((*mask.shape, 3), np.uint8)
    for colour, value in PALETTE.items():
        colours[mask == value] = [colour >> 16, colour >> 8 & 255, colour & 255]
    return Image.fromarray(colours)


def hub_rows(count: int = 16) -> list[dict]:
    rows = []
    for index in range(count):
        image, mask = draw(index)
        rows.append(
            {
                "id": f"art{index // 2}" + ("" if index % 2 == 0 else "_aug1"),
                "image": {"bytes": encode(image), "path": f"{index}.png"},
                "annotation": {"bytes": encode(Image.fromarray(mask)), "path": f"{index}.png"},
                "annotation_rgb": {"bytes": encode(coloured(mask)), "path": f"{index}.png"},
                "material": ["Paper", "Canvas"][index // 2 % 2],
                "content": CONTENTS[index // 2 % 4],
                "type": "Painting",
            }
        )
    return rows


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A folder of Parquet files as the Hub has it."""
    return save(tmp_path / "hub", hub_rows())


def save(folder: Path, rows: list[dict]) -> Path:
    (folder / "data").mkdir(parents=True)
    half = len(rows) // 2
    for number, part in enumerate((rows[:half], rows[half:])):
        data = datasets.Dataset.from_list(part)
        for name in ("image", "annotation", "annotation_rgb"):
            if name in part[0]:
                data = data.cast_column(name, datasets.Image())
        data.to_parquet(folder / "data" / f"train-0000{number}-of-00002.parquet")
    return folder


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The local layout."""
    folder = tmp_path / "files"
    for name in ("images", "annotations"):
        (folder / name).mkdir(parents=True)
    rows = []
    for index in range(12):
        image, mask = draw(index)
        image.save(folder / "images" / f"art{index}.jpg")
        Image.fromarray(mask).save(folder / "annotations" / f"art{index}.png")
        rows.append({"id": f"art{index}", "material": "Paper", "content": CONTENTS[index % 4], "type": "x"})
    pd.DataFrame(rows).to_csv(folder / "metadata.csv", index=False)
    return folder


def prepare(output: Path, *words: object) -> Path:
    return main([*map(str, words), "--output_dir", str(output), "--num_proc", "1"])


def load(folder: Path) -> dict[str, list[dict]]:
    return {split: list(data) for split, data in datasets.load_from_disk(str(folder)).items()}


def kinds(folder: Path) -> dict[str, int]:
    return json.loads((folder / "stats.json").read_text())["left_out"]


def test_from_the_hub_to_training(hub, tmp_path):
    folder = prepare(tmp_path / "out", "--dataset_name", hub, "--tile", "24")
    splits = load(folder)
    assert list(splits) == ["train", "validation"]
    artworks = [{row["artwork"] for row in rows} for rows in splits.values()]
    assert not artworks[0] & artworks[1]
    assert artworks[0] | artworks[1] == {f"art{index}" for index in range(8)}
    assert set(load_hierarchy(folder / "hierarchy.json")[0].names[2]) == set(NAMES)
    config = REPOSITORY / "configs" / "artefact_unet_dice.yaml"
    options = (
        f"--config {config} --hierarchy {HIERARCHY} --dataset_name {folder} --model_name_or_path timm/test_resnet "
    )
    options += "--no_pretrained --image_size 64 --decoder_channels 16 --global_batch_size 2 "
    options += "--per_device_train_batch_size 2 --max_train_steps 2 --mixed_precision no --dataloader_num_workers 0 "
    options += "--no_report "
    results = train_segmentation.main([*options.split(), "--output_dir", str(tmp_path / "model")])
    assert results["train"]["global_step"] == 2


def test_masks_keep_their_values(hub, tmp_path):
    folder = prepare(tmp_path / "out", "--dataset_name", hub, "--resize_longer", "30")
    seen = 0
    for row in [row for rows in load(folder).values() for row in rows]:
        index = 2 * int(row["id"][3]) + row["id"].endswith("_aug1")
        original = draw(index)[1]
        assert row["image"].size == row["annotation"].size == (30, 20) and row["scale"] == 0.5
        assert (np.asarray(row["annotation"]) == original[1::2, 1::2]).all()  # the nearest to every centre
        seen += 1
    assert seen == 16
    entry = json.loads((folder / "stats.json").read_text())["splits"]["train"]["pixels"]
    total = sum(np.bincount(np.asarray(row["annotation"]).ravel(), minlength=256) for row in load(folder)["train"])
    assert entry == {NAMES[v] if v < 16 else str(v): int(total[v]) for v in np.flatnonzero(total)}


def test_full_size_keeps_the_bytes(hub, tmp_path):
    folder = prepare(tmp_path / "out", "--dataset_name", hub, "--full_size")
    data = datasets.load_from_disk(str(folder))["train"].cast_column("image", datasets.Image(decode=False))
    expected = {row["id"]: row["image"]["bytes"] for row in hub_rows()}
    assert all(row["image"]["bytes"] == expected[row["id"]] for row in data)


def test_tiles_cover_the_scan(files, tmp_path):
    folder = prepare(tmp_path / "out", "--root", files, "--tile", "24", "--quality", "100")
    pieces: dict[str, list[dict]] = {}
    for row in [row for rows in load(folder).values() for row in rows]:
        pieces.setdefault(row["id"], []).append(row)
    assert len(pieces) == 12
    for name, tiles in pieces.items():
        assert {(tile["tile_x"], tile["tile_y"]) for tile in tiles} == {(x, y) for x in (0, 24, 48) for y in (0, 24)}
        image = np.asarray(Image.open(files / "images" / f"{name}.jpg")).astype(int)
        mask = draw(int(name[3:]))[1]
        for tile in tiles:
            place = np.s_[tile["tile_y"] :, tile["tile_x"] :]
            height, width = np.asarray(tile["annotation"]).shape
            assert (np.asarray(tile["annotation"]) == mask[place][:height, :width]).all()
            assert np.abs(np.asarray(tile["image"]) - image[place][:height, :width]).mean() < 6  # of noise


def test_tiles_of_background_are_left_out(tmp_path):
    rows = hub_rows()
    mask = np.full((40, 60), 255, np.uint8)
    mask[:20, :20] = 3
    rows[0]["annotation"]["bytes"] = encode(Image.fromarray(mask))
    rows[1]["annotation"]["bytes"] = encode(Image.fromarray(np.full_like(mask, 255)))
    rows = [{key: value for key, value in row.items() if key != "annotation_rgb"} for row in rows]
    folder = prepare(tmp_path / "out", "--dataset_name", save(tmp_path / "hub", rows), "--tile", "20")
    every = [row for rows in load(folder).values() for row in rows]
    assert [(row["tile_x"], row["tile_y"]) for row in every if row["id"] == "art0"] == [(0, 0)]
    assert kinds(folder) == {"no label": 1}


def test_bad_rows(files, tmp_path):
    mask = draw(0)[1]
    mask[0, 50] = 16
    Image.fromarray(mask).save(files / "annotations/art0.png")
    Image.fromarray(mask[1:]).save(files / "annotations/art1.png")
    (files / "annotations/art2.png").unlink()
    (files / "images/art3.jpg").write_bytes((files / "images/art3.jpg").read_bytes()[:300])
    coloured(draw(4)[1]).save(files / "annotations/art4.png")
    odd = coloured(draw(5)[1])
    odd.putpixel((50, 1), (1, 2, 3))
    odd.save(files / "annotations/art5.png")
    secret = files.parent / "secret.png"
    secret.write_bytes((files / "annotations/art6.png").read_bytes())
    (files / "annotations/art6.png").unlink()
    (files / "annotations/art6.png").symlink_to(secret)
    with (files / "metadata.csv").open("a") as file:
        file.write("../secret,Paper,Line art,x\nart7,Paper,Line art,x\n,Paper,Line art,x\n")
    folder = prepare(tmp_path / "out", "--root", files)
    found = {problem.row: problem.kind for problem in read_problems(folder / "problems.csv")}
    assert found == {
        0: "mask values",
        1: "sizes differ",
        2: "missing",
        3: "broken",
        5: "mask values",
        6: "outside of the root",
        12: "missing",
        13: "listed twice",
        14: "missing",
    }
    every = {row["id"]: row for rows in load(folder).values() for row in rows}
    assert (np.asarray(every["art4"]["annotation"]) == draw(4)[1]).all()  # it was in colours


def test_the_order_of_classes_is_checked_against_colours(tmp_path):
    rows = hub_rows()
    mask = draw(0)[1]
    swapped = np.where(mask == 1, 2, mask).astype(np.uint8)
    rows[0]["annotation"]["bytes"] = encode(Image.fromarray(swapped))
    folder = save(tmp_path / "hub", rows)
    with pytest.raises(ValueError, match="value 2 is shown in the colour of value 1"):
        prepare(tmp_path / "out", "--dataset_name", folder)
    assert not (tmp_path / "out").exists()


def test_held_out_contents(hub, tmp_path):
    folder = prepare(tmp_path / "a", "--dataset_name", hub, "--split_by", "content", "--validation_values", "Line art")
    splits = load(folder)
    assert {row["content"] for row in splits["validation"]} == {"Line art"}
    assert "Line art" not in {row["content"] for row in splits["train"]}
    splits = load(prepare(tmp_path / "b", "--dataset_name", hub, "--split_by", "material"))
    assert not {row["material"] for row in splits["train"]} & {row["material"] for row in splits["validation"]}
    with pytest.raises(ValueError, match="No image has the content"):
        prepare(tmp_path / "c", "--dataset_name", hub, "--split_by", "content", "--test_values", "Sculpture")


@pytest.mark.parametrize(
    "words, message",
    [
        ("--root x --dataset_name y", "not both"),
        ("--root nowhere", "metadata.csv"),
        ("--full_size --tile 5", "--full_size"),
        ("--tile 0", "--tile"),
        ("--validation_values a", "--split_by"),
        ("--dataset_name ./nowhere", "nowhere"),
    ],
)
def test_mistakes(tmp_path, words, message):
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path / "out", *words.split())


# ---- large scans


@pytest.fixture
def streamed(monkeypatch) -> None:
    """Small images take the way of large ones."""
    monkeypatch.setattr("data_prep.folder.scans.LARGE", 100)


SCANS = {
    "RGB": lambda image: encode(image),
    "grey": lambda image: encode(image.convert("L")),
    "palette": lambda image: encode(image.quantize(32)),
    "transparent": lambda image: encode(Image.merge("RGBA", [*image.split(), image.getchannel(0)])),
    "TIFF": lambda image: encode(image, "TIFF", compression="tiff_lzw"),
    "JPEG": lambda image: encode(image, "JPEG", quality=95),
    "turned": lambda image: encode(image, "PNG", exif=turned(6)),
    "mirrored": lambda image: encode(image, "TIFF", exif=turned(5)),
    "16 bits": lambda image: encode(Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)),
    "CMYK": lambda image: encode(image.convert("CMYK"), "TIFF"),
}


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("kind", SCANS)
def test_streamed_scans_look_like_others(streamed, kind):
    """Against decoding as a whole, with Pillow."""
    x, y = np.meshgrid(np.linspace(0, 255, 150), np.linspace(0, 255, 100))
    image = Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8))
    content = SCANS[kind](image)
    size = check_file(content)[1]
    whole = load_image(content)
    assert whole.size == size
    bands = list(rows_of(content, size, 37))
    assert [len(band) for band in bands[:-1]] == [37] * (len(bands) - 1)
    assert np.abs(np.concatenate(bands).astype(int) - np.asarray(whole)).max() <= 1
    target = (size[0] // 3, size[1] // 3)
    reduced = load_reduced(content, size, target)
    expected = whole.resize(target, Image.Resampling.LANCZOS)
    assert reduced.size == target
    assert np.abs(np.asarray(reduced).astype(int) - np.asarray(expected)).mean() < 2


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_scans_that_end_early_are_broken(streamed, kind):
    content = encode(draw(0, (300, 200))[0], kind)
    with pytest.raises(BadRowError, match=".") as found:
        ImageFile(content[: len(content) // 2], "").checked_size(300)
    assert found.value.kind == "broken"


def test_streaming_notices_what_the_header_does_not_tell(streamed):
    content = bytearray(encode(draw(0, (300, 200))[0]))
    content[len(content) // 2 : len(content) // 2 + 50] = bytes(50)
    ImageFile(bytes(content), "").checked_size(300)
    with pytest.raises(OSError):
        load_reduced(bytes(content), (300, 200), (30, 20))
    with pytest.raises(OSError):
        list(rows_of(bytes(content), (300, 200), 50))


def test_masks_of_every_kind(streamed):
    mask = draw(3)[1]
    palette = Image.fromarray(mask)
    palette.putpalette(list(range(255, -1, -1)) * 3)
    kinds = [
        encode(Image.fromarray(mask)),
        encode(palette),
        encode(coloured(mask)),
        encode(Image.fromarray(np.stack([mask] * 3, -1))),
        encode(Image.fromarray(mask.astype(np.uint16))),
        encode(Image.fromarray(mask), "TIFF"),
    ]
    store = ScanStore("image", "mask", num_classes=len(NAMES), palette=palette_of(NAMES))
    picture = encode(draw(3)[0])

    def stored(content: bytes) -> np.ndarray:
        (row,) = store(ImageFile(picture, "a.png"), ImageFile(content, "b.png"))
        return np.asarray(Image.open(io.BytesIO(row["mask"]["bytes"])))

    for content in kinds:
        assert (stored(content) == mask).all()
    with pytest.raises(BadRowError, match="#010203"):
        stored(encode(Image.new("RGB", (60, 40), (1, 2, 3))))
    with pytest.raises(BadRowError, match="transparent"):
        stored(encode(Image.new("RGBA", (60, 40), (0, 0, 0, 9))))


@pytest.mark.slow
def test_a_scan_of_120_megapixels_in_little_memory(tmp_path):
    """12,000 x 10,000 pixels are 480 MB in Pillow, and a mask is 120 MB; the process may grow by 450 MB."""
    code = (
        "import resource, sys; sys.path.insert(0, sys.argv[1])\n"
        "from data_prep.folder.scans import ScanStore\n"
        "from data_prep.folder.images import ImageFile\n"
        "from PIL import Image; Image.MAX_IMAGE_PIXELS = None\n"
        "rss = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "before = rss()\n"
        "for how in ({'resize_longer': 2048}, {'tile': 2500}):\n"
        "    store = ScanStore('image', 'annotation', max_megapixels=300, num_classes=16, **how)\n"
        "    cells = store(ImageFile(sys.argv[2], 'a'), ImageFile(sys.argv[3], 'a'))\n"
        "    print(len(cells), *cells[0]['size'], end=' ')\n"
        "print(int(rss() - before))\n"
    )
    image, mask = tmp_path / "image.png", tmp_path / "mask.png"
    Image.new("RGB", (12000, 10000), (120, 90, 40)).save(image, compress_level=1)
    Image.new("L", (12000, 10000), 5).save(mask, compress_level=1)
    command = [sys.executable, "-c", code, str(REPOSITORY), str(image), str(mask)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *made, grown = map(int, done.stdout.split())
    assert made == [1, 2048, 1707, 20, 2500, 2500]
    assert grown < 450
