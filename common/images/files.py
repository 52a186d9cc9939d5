"""Image files of every kind: decoding to RGB, and what can be checked without decoding.

This file imports neither torch nor timm, so that the many processes that prepare data stay small.
"""

from __future__ import annotations

import io
import logging
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pillow_heif
import simplejpeg
from PIL import Image, UnidentifiedImageError

from ..system.files import StorageError, retried

logger = logging.getLogger(__name__)

pillow_heif.register_heif_opener()  # HEIC of telephones

# What a complete file ends with; a file with another end may be complete too, so it is then decoded to find out.
FILE_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}

HEAD = 2**14  # bytes that hold the header of most files

NO_FILE = ("the row names no file", "No such file")
"""How messages end about files that are missing"""

_told: set[str] = set()  # warnings that were given

BAD_IMAGE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)

ORIENTATION = 0x0112  # the EXIF tag; 5 to 8 swap width and height

TURNS = dict(zip(range(2, 9), [Image.Transpose(turn) for turn in (0, 3, 1, 5, 4, 6, 2)], strict=True))
"""What makes an image of an orientation upright"""


class BadSampleError(ValueError):
    """An image that does not decode, found by the process that needed it."""


@contextmanager
def decoding() -> Iterator[None]:
    """Whatever a decoder raises inside, of any kind, is a ValueError or another one of BAD_IMAGE."""
    try:
        yield
    except (StorageError, MemoryError, *BAD_IMAGE):
        raise
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _warn_once(message: str, *values: object) -> None:
    if message not in _told:
        _told.add(message)
        logger.warning(message, *values)


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of an open image, 1 to 8; 1 if there is none, or none that can be read."""
    try:
        found = Image.Image.getexif(image).get(ORIENTATION, 1)
    except OSError:
        raise
    except Exception:  # whatever the parser of a damaged block says
        found = None
    if type(found) is not int or not 1 <= found <= 8:
        _warn_once("An image has EXIF data that cannot be read: such images are shown as they lie in their files.")
        return 1
    return found


def upright(image: Image.Image) -> Image.Image:
    """A decoded image, turned as its EXIF orientation says."""
    turn = TURNS.get(orientation(image))
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.info = {name: turned.info[name] for name in ("transparency",) if name in turned.info}  # not turned again
    return turned


@retried
@decoding()
def load_image(source: bytes | str | Path, at_least: tuple[int, int] | None = None) -> Image.Image:
    """Decode an image file to RGB as a person would see it.

    EXIF rotation is applied, transparent pixels are blended with white, palettes and CMYK are converted, 16-bit and
    floating-point grey values are scaled (not clipped) to 8 bits, by the depth that a file names if it does, and of
    several frames the first is used.

    Args:
        source: the file's content, or its path.
        at_least: a large JPEG is decoded at 1/2, 1/4 or 1/8 of its size, if that leaves this width and height.

    Raises:
        OSError, ValueError, SyntaxError, Image.DecompressionBombError: from Pillow, if it is broken or absurdly large.
    """
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        if at_least is not None:
            image.draft(None, at_least)
        highest = _highest_value(source, image) if image.mode.startswith("I;16") else None
        image.load()
        image = upright(image)
        if image.mode.startswith("I") or image.mode == "F":
            return Image.fromarray(_to_8_bits(np.asarray(image), highest)).convert("RGB")
        if image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info:
            rgba = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
        return image if image.mode == "RGB" else image.convert("RGB")


def _highest_value(source: bytes | str | Path, image: Image.Image) -> int | None:
    """The highest value that a 16-bit PNG or TIFF can have, where it says that its pixels have fewer bits."""
    if image.format == "TIFF":
        return image.tag_v2.get(281, (None,))[0]  # MaxSampleValue
    bits = re.search(rb"\0\0\0\x01sBIT(.)", _ends(source)[0], re.DOTALL)
    return (1 << bits[1][0]) - 1 if bits and bits[1][0] <= 16 else None


def _to_8_bits(values: np.ndarray, highest: int | None = None) -> np.ndarray:
    """Grey values of more than 8 bits: a file's nominal range (1, 255, 65,535 or 0..``highest``) becomes 0..255."""
    fractions = values.dtype.kind == "f"
    values = np.nan_to_num(values.astype(np.float64))
    top = values.max(initial=0)
    scale = 255.0 if fractions and top <= 1 else 1.0
    if highest and top <= highest:
        scale = 255.0 / highest
    elif top > 255:
        scale = 255.0 / max(65535.0, top)
        if top < 4096 and not fractions:
            told = "A 16-bit image has no value above %d and names no depth: it is shown dark, as of 0 to 65535."
            _warn_once(told, top)
    return np.clip(values * scale + 0.5, 0, 255).astype(np.uint8)


def plain_jpeg_size(content: bytes) -> tuple[int, int] | None:
    """Width and height of a plain JPEG (RGB or grey, not rotated), faster than Pillow; ``None`` for other files.

    The header is enough.
    """
    if not content.startswith(b"\xff\xd8\xff") or _may_be_turned(content):
        return None
    with suppress(ValueError):
        height, width, colors, _ = simplejpeg.decode_jpeg_header(content)
        if colors in ("YCbCr", "Gray") and width * height <= (Image.MAX_IMAGE_PIXELS or math.inf):
            return width, height
    return None


def _may_be_turned(jpeg: bytes) -> bool:
    """Whether a JPEG has Exif data, XMP data with an orientation, or an unusual header; Pillow then finds out."""
    start = 2
    while jpeg[start : start + 1] == b"\xff":
        marker, length = jpeg[start + 1 : start + 2], int.from_bytes(jpeg[start + 2 : start + 4])
        if marker == b"\xda":  # pixels follow
            return False
        if not b"\xc0" <= marker <= b"\xfe" or b"\xd0" <= marker <= b"\xd9" or length < 2:  # a marker without a length
            return True
        segment = jpeg[start : start + 2 + length] if marker == b"\xe1" else b""
        if b"Exif\0\0" in segment or b"tiff:Orientation" in segment:
            return True
        start += 2 + length
    return True


@retried
@decoding()
def check_file(source: bytes | str, max_pixels: int | None = None) -> tuple[str, tuple[int, int], int]:
    """Check an image file's header and end, and decode the image only if the file seems to be cut short.

    Args:
        source: the file's content, or its path.
        max_pixels: ValueError for images of more, before anything is decoded; no limit but Pillow's by default.

    Returns:
        The format as Pillow names it; width and height as a person would see the image; its EXIF orientation.

    Raises:
        OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError: it is broken or too large.
    """
    head, tail = _ends(source)
    size = plain_jpeg_size(head)
    if size and tail.endswith(FILE_ENDS["JPEG"]) and (max_pixels is None or math.prod(size) <= max_pixels):
        return "JPEG", size, 1
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        kind, (width, height) = image.format, image.size
        if max_pixels is not None and width * height > max_pixels:
            raise ValueError(f"{width} x {height} pixels are more than {max_pixels / 1e6:g} megapixels")
        turned = orientation(image)  # Pillow has swapped a TIFF's size already
        size = (height, width) if turned >= 5 and kind != "TIFF" else (width, height)
        length = len(source) if isinstance(source, bytes) else os.path.getsize(source)
        early = kind == "TIFF" and _reaches(image) > length
    if early or not tail.endswith(FILE_ENDS.get(kind, b"")):
        load_image(source)
    return kind, size, turned


def find_form(root: str | None, name: str) -> str:
    """The path of a file in a folder, its name in the Unicode form (NFC or NFD) in which the disk has it."""
    if "://" in name:
        raise ValueError(f"{name} is a URL: download the images first, and give their paths.")
    forms = [name] if name.isascii() else [name, *(normalize(form, name) for form in ("NFC", "NFD"))]
    paths = [os.path.join(root, form) if root else form for form in forms]
    return paths[0] if len(paths) == 1 else next(filter(os.path.exists, paths), paths[0])


def lies_in(root: str, path: str) -> bool:
    """Whether a path, symbolic links followed, lies in the folder ``root``, itself free of links."""
    return os.path.realpath(path).startswith(os.path.join(root, ""))


def _reaches(image: Image.Image) -> int:
    """The end of a TIFF's last strip or tile, in bytes from the start of the file."""
    for starts, lengths in ((273, 279), (324, 325)):
        if starts in image.tag_v2 and lengths in image.tag_v2:
            places = zip(image.tag_v2[starts], image.tag_v2[lengths], strict=False)
            return max((start + length for start, length in places), default=0)
    return 0


def _ends(source: bytes | str | Path) -> tuple[bytes, bytes]:
    """The first and the last bytes of a file, without padding at its end."""
    if not isinstance(source, bytes):
        with open(source, "rb") as file:
            head = file.read(HEAD)
            file.seek(max(os.fstat(file.fileno()).st_size - 64, 0))
            return head, file.read().rstrip(b"\0\r\n ")
    return source[:HEAD], source[-64:].rstrip(b"\0\r\n ")


def explain(error: BaseException) -> str:
    """Why an image does not decode, for messages."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or of an unknown format"
    if isinstance(error, FileNotFoundError):
        return NO_FILE[1]
    return str(error) or type(error).__name__
