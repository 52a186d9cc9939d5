"""Images of every kind against the colours they show, augmentation, and what happens on the device."""

import io
import struct
import zlib
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import counted_randomness, png
from PIL import Image, ImageOps
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import normalize

from common.images import encoded, files
from common.images.encoded import EncodedImage
from common.images.files import BAD_IMAGE, ORIENTATION, check_file, load_image
from common.images.mask_files import read_mask
from common.images.transforms import LONGEST, EvaluationTransform, MixImages, Normalize, TrainTransform

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels_of(image):
    assert image.mode == "RGB"
    return [list(map(tuple, row)) for row in np.asarray(image).tolist()]


def loaded(*args, **options):
    return pixels_of(load_image(encode(*args, **options)))


def array_image(rows, dtype):
    return Image.fromarray(np.array(rows, dtype=dtype))


def greys(*values):
    return [[(value,) * 3 for value in values]]


def photo(width=60, height=40, seed=0):
    noise = np.random.default_rng(seed).integers(0, 255, (height // 4, width // 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


# ---- kinds of files


def test_bytes_and_paths(tmp_path):
    content = encode(Image.new("RGB", (3, 2), RED))
    (tmp_path / "a.png").write_bytes(content)
    for source in (content, str(tmp_path / "a.png"), tmp_path / "a.png"):
        assert pixels_of(load_image(source)) == [[RED] * 3] * 2


def test_grey_and_black_and_white():
    assert loaded(array_image([[0, 100, 255]], np.uint8)) == greys(0, 100, 255)
    assert loaded(array_image([[0, 100, 255]], np.uint8).convert("1", dither=0)) == greys(0, 0, 255)


def test_grey_with_transparency():
    image = Image.new("LA", (3, 1))
    for x, pixel in enumerate([(0, 255), (0, 0), (100, 51)]):
        image.putpixel((x, 0), pixel)
    assert loaded(image) == greys(0, 255, 224)  # 100 * 0.2 + 255 * 0.8


def test_colour_with_transparency_is_laid_on_white():
    image = Image.new("RGBA", (4, 1))
    for x, pixel in enumerate([(255, 0, 0, 255), (255, 0, 0, 0), (0, 0, 0, 0), (255, 0, 0, 51)]):
        image.putpixel((x, 0), pixel)
    assert loaded(image) == [[RED, WHITE, WHITE, (255, 204, 204)]]
    assert loaded(image, kind="WEBP", lossless=True, exact=True) == [[RED, WHITE, WHITE, (255, 204, 204)]]


def palette_image():
    image = Image.new("P", (3, 1))
    image.putpalette([*RED, *GREEN, *BLUE])
    image.putdata([0, 1, 2])
    return image


@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF", "BMP"])
def test_palette(kind):
    assert loaded(palette_image(), kind) == [[RED, GREEN, BLUE]]


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_palette_with_transparency(kind):
    assert loaded(palette_image(), kind, transparency=1) == [[RED, WHITE, BLUE]]


def test_palette_with_shades_of_transparency():
    assert loaded(palette_image(), transparency=bytes([255, 0, 51])) == [[RED, WHITE, (204, 204, 255)]]


def test_one_transparent_colour():
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), BLUE)
    assert loaded(image, transparency=RED) == [[WHITE, BLUE]]
    assert loaded(array_image([[7, 9]], np.uint8), transparency=7) == greys(255, 9)


def test_cmyk_jpeg():
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert np.abs(np.asarray(load_image(encode(image, "JPEG", quality=95))).astype(int) - RED).max() < 8
    assert loaded(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "TIFF") == [[RED]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled(kind):
    assert loaded(array_image([[0, 257, 25_700, 65_535]], np.uint16), kind) == greys(0, 1, 100, 255)
    assert loaded(array_image([[0, 1000, 4095]], np.uint16), kind) == greys(0, 4, 16)  # dark, but not clipped


def test_16_bit_colour_png():
    """Pillow cannot write one."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    row = b"\0" + struct.pack(">6H", 65_535, 25_700, 0, 0, 0, 65_535)
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    assert pixels_of(load_image(b"\x89PNG\r\n\x1a\n" + data)) == [[(255, 100, 0), BLUE]]


@pytest.mark.parametrize(
    "values, expected",
    [
        ([0.0, 0.2, 1.0], (0, 51, 255)),
        ([0.0, 1.0, 1.0], (0, 255, 255)),  # black and white
        ([-0.5, 0.1, 0.2], (0, 26, 51)),
        ([0.0, 100.0, 255.0], (0, 100, 255)),
        ([0.0, 25_700.0, 65_535.0], (0, 100, 255)),
        ([0.0, 100_000.0, 200_000.0], (0, 128, 255)),
        ([0.0, float("nan"), 0.4], (0, 0, 102)),
    ],
)
def test_floating_point_tiff(values, expected):
    assert loaded(array_image([values], np.float32), "TIFF") == greys(*expected)


def test_32_bit_tiff():
    assert loaded(array_image([[0, 1, 100, 255]], np.int32), "TIFF") == greys(0, 1, 100, 255)
    assert loaded(array_image([[0, 65_535, 131_070]], np.int32), "TIFF") == greys(0, 128, 255)


@pytest.mark.parametrize("mode", ["RGB", "I;16", "RGBA"])
def test_exif_orientation(mode):
    """What lies in the file, by the definition of the tag: (first row, first column) are at the (side, side) named."""
    for orientation in range(1, 9):
        shown = np.array([[10, 20, 30], [40, 50, 60]])
        stored = {
            1: shown,
            2: shown[:, ::-1],
            3: shown[::-1, ::-1],
            4: shown[::-1],
            5: shown.T,
            6: shown.T[::-1],
            7: shown.T[::-1, ::-1],
            8: shown.T[:, ::-1],
        }[orientation]
        exif = Image.Exif()
        exif[274] = orientation
        image = array_image(stored * 257, np.uint16) if mode == "I;16" else array_image(stored, np.uint8).convert(mode)
        result = load_image(encode(image, exif=exif))
        assert np.asarray(result)[..., 0].tolist() == shown.tolist()
        assert result.getexif().get(274, 1) == 1  # nobody turns it again


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (2, 2), color) for color in (RED, GREEN)]
    for kind in ("GIF", "WEBP", "TIFF", "PNG"):
        content = encode(frames[0], kind, save_all=True, append_images=frames[1:], **{"lossless": True})
        assert pixels_of(load_image(content)) == [[RED] * 2] * 2


def test_broken_files_raise(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    for kind in ("JPEG", "PNG"):
        content = encode(noise, kind)
        for part in (content[: len(content) // 2], content[:40], b"", b"no image at all"):
            with pytest.raises((OSError, ValueError, SyntaxError)):
                load_image(part)
    with pytest.raises(OSError):
        load_image(tmp_path / "missing.png")


def test_decompression_bombs_raise(monkeypatch):
    content = encode(Image.new("1", (200, 100)))
    assert load_image(content).size == (200, 100)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9_000)
    with pytest.raises(Image.DecompressionBombError):
        load_image(content)


# ---- files that are not what they should be


def jpeg_with_exif(*entries):
    """A green JPEG, 48 x 60, with EXIF entries (tag, type, count, value of four bytes)."""
    plain = encode(Image.new("RGB", (48, 60), GREEN), "JPEG")
    tags = b"II*\0" + struct.pack("<IH", 8, len(entries))
    tags += b"".join(struct.pack("<HHI", *entry[:3]) + entry[3].ljust(4, b"\0") for entry in entries) + bytes(4)
    data = b"Exif\0\0" + tags
    return plain[:2] + b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data + plain[2:]


@pytest.mark.parametrize(
    "entries, size",
    [
        ([(274, 2, 2, b"6\0")], (48, 60)),  # as text
        ([(274, 1, 1, b"\6")], (48, 60)),  # as a byte
        ([(274, 3, 1, b"\x63\0")], (48, 60)),  # 99
        ([(274, 3, 1, b"\6\0"), (0x128, 2, 2, b"2\0")], (60, 48)),  # beside a broken tag
    ],
)
def test_odd_exif(entries, size):
    content = jpeg_with_exif(*entries)
    image = load_image(content)
    assert image.size == size == check_file(content)[1] and image.getpixel((9, 9))[1] > 240
    assert EncodedImage(content).shape == size[::-1] == tuple(EncodedImage(content).pixels().shape[1:])


def test_whatever_a_decoder_raises_is_a_broken_image():
    content = encode(photo(48, 60), "AVIF")
    start = content.index(b"mdat") + 4
    broken = [content.replace(b"iloc", b"xloc", 1), content[:start] + bytes(len(content) - start)]
    for data in broken:
        for read in (load_image, lambda data: EncodedImage(data).pixels(), lambda data: read_mask(data, 5)):
            with pytest.raises(BAD_IMAGE):
                read(data)


@pytest.mark.parametrize("kind", ["MPO", "HEIF"])
def test_what_telephones_write(kind):
    pictures = [Image.new("RGB", (64, 48), colour) for colour in (BLUE, RED)]
    content = encode(pictures[0], kind, save_all=True, append_images=pictures[1:])
    image = load_image(content)
    assert image.size == (64, 48) and np.abs(np.asarray(image).astype(int) - BLUE).max() < 8
    assert EncodedImage(content).pixels().shape == (3, 48, 64)


def test_less_than_16_bits_in_16_bit_files(caplog):
    files._told.clear()
    image = array_image([[0, 2048, 4095]], np.uint16)
    dark = [[(0,) * 3, (8,) * 3, (16,) * 3]]
    assert loaded(image) == dark and "no value above 4095 and names no depth" in caplog.text
    assert loaded(image) == dark and len(caplog.records) == 1  # said once
    full = [[(0,) * 3, (128,) * 3, (255,) * 3]]
    plain = encode(image)
    depth = b"sBIT" + bytes([12])
    place = plain.index(b"IDAT") - 4
    told = plain[:place] + struct.pack(">I", 1) + depth + struct.pack(">I", zlib.crc32(depth)) + plain[place:]
    assert pixels_of(load_image(told)) == full
    assert loaded(image, "TIFF", tiffinfo={281: 4095}) == full and len(caplog.records) == 1


def test_ribbons_are_not_enlarged_whole():
    """The centre is what it would be if all of it were enlarged."""
    stripes = np.random.default_rng(0).integers(0, 255, (2, 90, 3), dtype=np.uint8)
    image = EncodedImage(encode(Image.fromarray(stripes)))
    transform = EvaluationTransform(32, resize_mode="center", crop_pct=0.9, interpolation="bilinear")
    whole = image.resized((0, 0, 2, 90), (35, 35 * 45), InterpolationMode.BILINEAR)
    middle = (35 * 45 - 32) // 2
    assert (transform(image).int() - whole[:, 1:33, middle : middle + 32].int()).abs().float().mean() < 6
    seen = []
    image.resized = lambda box, size, how, leaves: seen.append(size) or torch.zeros(3, *size, dtype=torch.uint8)
    transform(image)
    assert max(seen[0]) == 35 * LONGEST


def fuzzed_kinds():
    rgb, grey = photo(24, 20), photo(24, 20).convert("L")
    exif = Image.Exif()
    exif[ORIENTATION], exif[0x8769] = 6, {0x9003: "2024:01:01 00:00:00"}
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 200)
    return {
        **{kind: encode(rgb, kind) for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "HEIF", "PPM")},
        **{f"exif {kind}": encode(rgb, kind, exif=exif) for kind in ("JPEG", "PNG", "WEBP")},
        "jp2": encode(rgb, "JPEG2000"),
        "mpo": encode(rgb, "MPO", save_all=True, append_images=[rgb]),
        "palette": encode(rgb.quantize(16)),
        "tiff lzw": encode(rgb, "TIFF", compression="tiff_lzw"),
        "16 bits": encode(deep),
        "float": encode(Image.fromarray(np.asarray(grey).astype(np.float32)), "TIFF"),
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", fuzzed_kinds())
def test_mutated_files_decode_or_are_broken(kind):
    content, rng = fuzzed_kinds()[kind], np.random.default_rng(len(kind))
    for _ in range(250):
        data = bytearray(content)
        for place in rng.integers(len(data), size=rng.integers(1, 6)):
            data[place] = rng.integers(256)
        data = bytes(data[: rng.integers(1, len(data))] if rng.random() < 0.2 else data)
        for read in (
            load_image,
            check_file,
            lambda data: EncodedImage(data).pixels(),
            lambda data: read_mask(data, 5),
        ):
            with suppress(MemoryError, *BAD_IMAGE):
                read(data)


# ---- training


PLAIN = {
    "crop_scale": 0.25,
    "aspect_ratio": 1.33,
    "hflip": 0.0,
    "vflip": 0.0,
    "color_jitter": 0.0,
    "auto_augment": None,
    "random_erasing": 0.0,
    "interpolation": "bilinear",
}


def train_transform(size, interpolation="bilinear", **options):
    spec = {"image_size": size, "interpolation": interpolation, "mean": MEAN}
    return TrainTransform(SimpleNamespace(**options), spec)


ALL_ON = {
    "hflip": 0.5,
    "vflip": 0.5,
    "color_jitter": 0.4,
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "random_erasing": 1.0,
}


def augmented(transform, index, image=None):
    with counted_randomness(0, 0, index):
        return transform(png(image or photo()))


# ---- decoding to tensors: the same as Pillow, only sooner


def jpeg(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **{"quality": 90, **options})
    return buffer.getvalue()


ROTATED = Image.Exif()
ROTATED[0x0112] = 6
ROTATED_BY_XMP = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>"""


@pytest.mark.parametrize(
    "data",
    [
        jpeg(photo(61, 43)),
        jpeg(photo(61, 43), subsampling=2),
        jpeg(photo(64, 48), progressive=True),
        jpeg(photo(61, 43).convert("L")),
        jpeg(photo(61, 43).convert("CMYK")),
        jpeg(photo(61, 43), exif=ROTATED),
        jpeg(photo(61, 43), xmp=ROTATED_BY_XMP),
        # Padding before a marker is allowed; a length read from it leads past the Exif data.
        jpeg(photo(61, 43), exif=ROTATED).replace(b"\xff\xe1", b"\xff" * 2 + b"\xe1", 1),
    ],
    ids=["plain", "subsampled", "progressive", "grey", "cmyk", "rotated", "rotated by XMP", "padded and rotated"],
)
def test_jpegs_decode_to_the_pixels_of_pillow(data, tmp_path):
    expected = torch.from_numpy(np.array(load_image(data))).permute(2, 0, 1)
    (tmp_path / "file").write_bytes(data)
    for source in (data, str(tmp_path / "file")):
        image = EncodedImage(source)
        assert image.shape == tuple(expected.shape[1:])
        assert torch.equal(image.pixels(), expected)


@pytest.mark.parametrize("limit", [0, 2**24])
def test_results_stay_when_more_is_decoded(limit, monkeypatch):
    """Decoding uses its memory again; here nothing is left to resize, so that the result might be that memory."""
    monkeypatch.setattr(encoded, "SCRATCH_LIMIT", limit)
    opened = [EncodedImage(jpeg(photo(width, 40, seed=width))) for width in (60, 80, 40, 60)]
    results = [image.resized((0, 0, *image.shape), image.shape, InterpolationMode.BILINEAR) for image in opened]
    assert all(torch.equal(result, image.pixels()) for result, image in zip(results, opened, strict=True))


def test_a_truncated_jpeg_is_an_error():
    data = jpeg(photo(200, 160))
    with pytest.raises(OSError, match="truncated"):
        EncodedImage(data[: len(data) // 2]).pixels()


def test_only_large_jpegs_are_decoded_smaller():
    image = EncodedImage(jpeg(photo(1201, 803)))
    assert image.reduction_for((896, 896), (224, 224)) == 2 and image.reduction_for((895, 900), (224, 224)) == 1
    assert image.reduction_for((900, 900), (112, 112)) == 4 and image.reduction_for((900, 900), (56, 56)) == 8
    assert image.reduction_for((900, 900), (112, 112), leaves=6) == 1
    assert png(photo(1000, 800)).reduction_for((900, 900), (100, 100)) == 1


@pytest.mark.parametrize("size", [(601, 403), (600, 400)])
@pytest.mark.parametrize("exif", [Image.Exif(), ROTATED], ids=["upright", "rotated"])
def test_decoding_smaller_changes_little(exif, size):
    """Against the whole image, in the same crop: at most 1.5 grey levels on average, 0.3 in evaluation."""
    for side in [16, 22, 45]:
        scene = np.asarray(photo(600, 400).resize(size, box=(0, 0, 75, 50)))
        noise = np.random.default_rng(0).normal(0, 4, scene.shape)
        data = jpeg(Image.fromarray((scene + noise).clip(0, 255).astype(np.uint8)), quality=95, exif=exif)
        whole = png(load_image(data))
        train = train_transform(side, **{**PLAIN, "crop_scale": 0.3, "hflip": 0.5, "interpolation": "bicubic"})
        evaluate = EvaluationTransform(side, resize_mode="center", crop_pct=0.9, interpolation="bicubic")
        for index in range(3):
            for transform in (train, evaluate):
                with counted_randomness(0, 0, index):
                    got = transform(EncodedImage(data))
                with counted_randomness(0, 0, index):
                    expected = transform(whole)
                difference = (got.int() - expected.int()).abs().float().mean()
                assert difference < (1.5 if transform is train else 0.3)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        ALL_ON,
        {"hflip": 0.5},
        {"vflip": 0.5},
        {"color_jitter": 0.4},
        {"random_erasing": 0.5},
        {"auto_augment": "rand-m9-mstd0.5-inc1"},
        {"auto_augment": "original"},
        {"auto_augment": "augmix-m5-w3-d2"},
        {"interpolation": "bicubic", "crop_scale": 1.0},
        {"interpolation": "random"},
    ],
)
def test_training_images(changes):
    """uint8, of the right size, functions of the position, and not all the same."""
    transform = train_transform(24, **{**PLAIN, **changes})
    results = []
    for index in range(6):
        pixels = augmented(transform, index)
        assert pixels.dtype == torch.uint8 and pixels.shape == (3, 24, 24)
        torch.rand(3), np.random.rand()
        assert torch.equal(augmented(transform, index), pixels)
        results.append(pixels)
    if changes.get("crop_scale") != 1.0:
        assert len({tuple(pixels.flatten().tolist()) for pixels in results}) == 6


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (24, 24)])
def test_training_images_of_odd_sizes(size):
    transform = train_transform(24, **{**PLAIN, **ALL_ON})
    assert augmented(transform, 0, Image.new("RGB", size, RED)).shape == (3, 24, 24)


def test_flips_flip():
    image = Image.new("RGB", (24, 24), RED)
    image.paste(BLUE, (0, 0, 12, 12))  # top left
    for options, corner in (({"hflip": 1.0}, (0, -1)), ({"vflip": 1.0}, (-1, 0)), ({}, (0, 0))):
        transform = train_transform(24, **{**PLAIN, "crop_scale": 1.0, "aspect_ratio": 1.0, **options})
        pixels = augmented(transform, 0, image)
        corners = {
            place: tuple(pixels[:, place[0], place[1]].tolist()) for place in [(0, 0), (0, -1), (-1, 0), (-1, -1)]
        }
        assert [place for place, color in corners.items() if color == BLUE] == [corner]


def test_crops_keep_at_least_the_share_asked_for():
    """On a ramp, the range of the values tells the part of the side that was kept."""
    ramp = Image.fromarray(np.tile(np.linspace(0, 255, 256, dtype=np.uint8)[:, None, None], (1, 256, 3)))
    for least in (0.9, 0.3):
        transform = train_transform(64, **{**PLAIN, "crop_scale": least, "aspect_ratio": 1.0})
        kept = [augmented(transform, index, ramp)[0, :, 32].float() for index in range(40)]
        shares = [((column.max() - column.min() + 4) / 256).item() ** 2 for column in kept]
        assert least - 0.05 <= min(shares) <= least + 0.1


def test_erasing_fills_with_the_mean_colour():
    transform = train_transform(32, **{**PLAIN, "random_erasing": 1.0})
    mean = torch.tensor([round(255 * value) for value in MEAN], dtype=torch.uint8).view(3, 1, 1)
    for index in range(5):
        erased = (augmented(transform, index, Image.new("RGB", (40, 40), RED)) == mean).all(0)
        assert 0.01 < erased.float().mean() < 0.4
        rows, columns = erased.any(1), erased.any(0)
        assert erased.sum() == rows.sum() * columns.sum()


# ---- evaluation


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_evaluation_center(interpolation):
    for size in [(60, 40), (40, 60), (50, 50), (33, 91)]:
        for crop_pct in [1.0, 0.875]:
            image, resample = photo(*size), Image.Resampling[interpolation.upper()]
            transform = EvaluationTransform(28, resize_mode="center", crop_pct=crop_pct, interpolation=interpolation)
            scale = int(28 / crop_pct) / min(size)
            resized = image.resize([int(side * scale) for side in size], resample)
            left, top = (round((side - 28) / 2) for side in resized.size)
            expected = resized.crop((left, top, left + 28, top + 28))
            pixels = transform(png(image))
            difference = pixels.int() - torch.from_numpy(np.array(expected)).movedim(-1, 0).int()
            assert difference.abs().max() <= 3 and difference.float().abs().mean() < 0.3
            assert torch.equal(transform(png(image)), pixels)


@pytest.mark.parametrize("size", [(60, 40), (40, 60)])
@pytest.mark.parametrize("crop_pct", [1.0, 0.875])
def test_evaluation_squash(size, crop_pct):
    image = photo(*size)
    transform = EvaluationTransform(28, resize_mode="squash", crop_pct=crop_pct, interpolation="bicubic")
    side = int(28 / crop_pct)
    border = (side - 28) // 2
    expected = ImageOps.crop(image.resize((side, side), Image.Resampling.BICUBIC), border)
    pixels = transform(png(image))
    assert pixels.dtype == torch.uint8
    difference = pixels.int() - torch.from_numpy(np.array(expected)).movedim(-1, 0).int()
    assert difference.abs().max() <= 3 and difference.float().abs().mean() < 0.3


# ---- on the device


def test_normalize():
    pixels = torch.randint(256, (2, 3, 5, 4), dtype=torch.uint8)
    result = Normalize(MEAN, STD)(pixels)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, normalize(pixels.float() / 255, MEAN, STD), rtol=1e-5, atol=1e-5)
    assert not Normalize(MEAN, STD).state_dict()


def batch(size=6, side=16):
    """Image i is i everywhere; its labels are [i, -i]."""
    number = torch.arange(size)
    return number.float().view(-1, 1, 1, 1).expand(-1, 3, side, side + 4).clone(), torch.stack([number, -number], 1)


PARTNER = torch.tensor([1, 0, 3, 2, 5, 4])


def test_mixup():
    pixels, labels = batch()
    shares = []
    for step in range(50):
        mixed, others, share = MixImages(0.4, 0.0, 1.0, seed=0)(pixels, labels, step)
        assert torch.equal(others, labels[PARTNER])
        torch.testing.assert_close(mixed, share * pixels + (1 - share) * pixels[PARTNER])
        shares.append(share)
    assert len(set(shares)) == 50 and min(shares) < 0.1 and max(shares) > 0.9


def test_cutmix():
    pixels, labels = batch()
    shares = []
    for step in range(200):
        mixed, others, share = MixImages(0.0, 1.0, 1.0, seed=0)(pixels, labels, step)
        assert torch.equal(others, labels[PARTNER])
        own = (mixed == pixels).all(1)
        assert torch.equal(mixed, torch.where(own[:, None], pixels, pixels[PARTNER]))
        assert own.float().mean((1, 2)).tolist() == pytest.approx([share] * 6)
        assert (own == own[0]).all()
        box = ~own[0]
        assert box.sum() == box.any(0).sum() * box.any(1).sum()
        shares.append(share)
    assert min(shares) < 0.3 and max(shares) > 0.95
    assert torch.equal(pixels, batch()[0])  # the original is left alone


def test_both_toss_a_coin():
    pixels, labels = batch()
    mix = MixImages(1.0, 1.0, 1.0, seed=0)
    cut = [bool((mix(pixels, labels, step)[0] % 1 == 0).all()) for step in range(300)]
    assert 100 < sum(cut) < 200


@pytest.mark.parametrize("mix", [MixImages(0, 0, 1.0, 0), MixImages(0.5, 0.5, 0.0, 0)])
def test_mixing_switched_off(mix):
    pixels, labels = batch()
    mixed, others, share = mix(pixels, labels, 3)
    assert mixed is pixels and others is None and share == 1


def test_mixing_with_a_probability():
    pixels, labels = batch()
    mix = MixImages(0.5, 0.0, 0.3, 0)
    assert 0.2 < sum(mix(pixels, labels, step)[1] is not None for step in range(500)) / 500 < 0.4


@pytest.mark.parametrize("options", [(1.0, 0.0, 1.0), (0.0, 1.0, 1.0), (1.0, 1.0, 0.7)])
def test_mixing_depends_on_seed_and_step_alone(options):
    pixels, labels = batch()
    first = [MixImages(*options, seed=1)(pixels, labels, step)[2] for step in range(20)]
    torch.rand(3), np.random.rand()
    mix = MixImages(*options, seed=1)
    parts = [[mix(pixels[part], labels[part], step) for part in (slice(0, 2), slice(2, 6))] for step in range(20)]
    for step, (one, two) in enumerate(parts):
        assert one[2] == two[2] == first[step]
        whole = MixImages(*options, seed=1)(pixels, labels, step)[0]
        assert torch.equal(torch.cat([one[0], two[0]]), whole)
    assert [MixImages(*options, seed=2)(pixels, labels, step)[2] for step in range(20)] != first


# ---- without decoding


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_check_file_tells_the_size_that_is_seen(kind, orientation, tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    content = encode(Image.new("RGB", (60, 40), RED), kind, exif=exif)
    (tmp_path / "x").write_bytes(content)
    for source in (content, str(tmp_path / "x")):
        assert check_file(source)[:2] == (kind, load_image(source).size)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_check_file_notices_files_that_end_early(kind):
    noise = np.random.default_rng(0).integers(0, 255, (80, 60, 3)).astype(np.uint8)
    content = encode(Image.fromarray(noise), kind)
    check_file(content)
    with pytest.raises((OSError, ValueError, SyntaxError)):
        check_file(content[: len(content) * 2 // 3])


def test_check_file_refuses_bombs_by_their_header():
    content = encode(Image.new("1", (4000, 3000)))
    assert check_file(content, 12_000_000)[1] == (4000, 3000)
    with pytest.raises(ValueError, match="4000 x 3000 pixels are more than 11.9 megapixels"):
        check_file(content, 11_900_000)


def test_reduced_decoding_leaves_what_was_asked_for():
    content = encode(Image.new("RGB", (1600, 1200), RED), "JPEG")
    assert load_image(content, at_least=(300, 300)).size == (400, 300)
    assert load_image(content, at_least=(301, 301)).size == (800, 600)
    assert load_image(encode(Image.new("RGB", (1600, 1200))), at_least=(10, 10)).size == (1600, 1200)
