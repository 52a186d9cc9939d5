"""A photograph of an invented artwork, and the exact mask of the damage painted on it.

Shapes are given in units of the artwork: its centre is (0, 0), its long side 1, y points down. What is painted and
what the mask says come from the same coverage (the share of a pixel that a shape covers): a pixel is of the damage
if at least half of it is covered, and damage that comes later overwrites what was there before.
"""

import dataclasses

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFilter

CLASSES = (
    "Clean",
    "Material loss",
    "Peel",
    "Dust",
    "Scratch",
    "Hair",
    "Dirt",
    "Fold",
    "Writing",
    "Cracks",
    "Staining",
    "Stamp",
    "Sticker",
    "Puncture",
    "Burn marks",
    "Lightleak",
)
BACKGROUND = 255
FINE = 4  # sub-pixels a side from which the coverage of a pixel is counted
THIN = 2.2  # least width of a line, in pixels


@dataclasses.dataclass(frozen=True)
class View:
    """How a photograph sees an artwork: its size in pixels, and the way from artwork units to pixels."""

    size: tuple[int, int]
    matrix: np.ndarray
    centre: np.ndarray

    @property
    def scale(self) -> float:
        """Pixels per unit."""
        return float(np.hypot(*self.matrix[0]))

    def pixels(self, points: ArrayLike) -> np.ndarray:
        """Points (..., 2) in artwork units, in pixels of the photograph."""
        return np.asarray(points) @ self.matrix + self.centre


@dataclasses.dataclass
class Patch:
    """A rectangle of a photograph and the coverage (0..1) of its pixels."""

    box: tuple[slice, slice]
    cover: np.ndarray

    def soft(self, radius: float) -> "Patch":
        """The same with a blurred edge; half coverage stays where the edge was."""
        if not self.cover.size:
            return self
        image = Image.fromarray((self.cover * 255).astype(np.uint8)).filter(ImageFilter.BoxBlur(radius))
        return Patch(self.box, np.asarray(image, np.float32) / 255)

    def edge(self, x: int, y: int) -> "Patch":
        """The rim of the shape on the side away from (x, y), as wide as that step."""
        height, width = self.cover.shape
        room = max(abs(x), abs(y))
        moved = np.pad(self.cover, room, "edge" if self.cover.size else "constant")
        moved = moved[room - y : room - y + height, room - x : room - x + width]
        return Patch(self.box, np.clip(self.cover - moved, 0, 1))


class Sheet:
    """A photograph of an artwork, to be damaged, and its mask."""

    def __init__(self, pixels: np.ndarray, view: View, half: tuple[float, float], material: str) -> None:
        self.pixels, self.view, self.half, self.material = pixels, view, half, material
        width, height = half
        corners = Stencil(view).fill([(-width, -height), (width, -height), (width, height), (-width, height)])
        self.inside = np.zeros(pixels.shape[:2], np.float32)
        whole = corners.patch()
        self.inside[whole.box] = whole.cover
        self.mask = np.where(self.inside >= 0.5, 0, BACKGROUND).astype(np.uint8)

    def stencil(self) -> "Stencil":
        """A blank stencil in the artwork's units."""
        return Stencil(self.view)

    def mark(self, patch: Patch, name: str) -> None:
        """Give the pixels that are covered at least half a class."""
        mask = self.mask[patch.box]
        mask[(patch.cover >= 0.5) & (mask != BACKGROUND)] = CLASSES.index(name)

    def blend(self, patch: Patch, colour: ArrayLike, strength: float = 1.0) -> None:
        """Paint with a colour (one, or one a pixel), opaque at strength 1."""
        amount = (patch.cover * self.inside[patch.box] * np.float32(strength))[..., None]
        pixels = self.pixels[patch.box]
        pixels += (np.asarray(colour, np.float32) - pixels) * amount

    def multiply(self, patch: Patch, factors: ArrayLike) -> None:
        """Darken the colours by three factors, as a glaze does."""
        amount = (patch.cover * self.inside[patch.box])[..., None]
        self.pixels[patch.box] *= 1 - amount * (1 - np.asarray(factors, np.float32))


class Stencil:
    """Collects shapes given in artwork units and counts how much of each pixel they cover."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.shapes: list[tuple[np.ndarray, float]] = []  # points in pixels, and a width; 0 means a filled shape

    def fill(self, points: ArrayLike) -> "Stencil":
        """A filled shape."""
        self.shapes.append((self.view.pixels(points), 0.0))
        return self

    def line(self, points: ArrayLike, width: float = 0.0) -> "Stencil":
        """A line, no thinner than THIN pixels."""
        self.shapes.append((self.view.pixels(points), max(THIN, width * self.view.scale)))
        return self

    def patch(self) -> Patch:
        """The coverage, in the smallest rectangle that holds all shapes and some room for blur."""
        points = np.concatenate([points for points, _ in self.shapes])
        room = max(width for _, width in self.shapes) + 5
        size = np.array(self.view.size)
        first = np.clip(np.floor(points.min(0) - room), 0, size).astype(int)
        last = np.clip(np.ceil(points.max(0) + room), first, size).astype(int)
        box = (slice(first[1], last[1]), slice(first[0], last[0]))
        if not (last - first).all():
            return Patch(box, np.zeros(last[::-1] - first[::-1], np.float32))
        image = Image.new("L", tuple((FINE * (last - first)).tolist()))
        draw = ImageDraw.Draw(image)
        for shape, width in self.shapes:
            # Pillow counts pixels from their middle, hence the half.
            flat = ((shape - first) * FINE - 0.5).ravel().tolist()
            if width:
                draw.line(flat, 255, round(width * FINE), joint="curve")
            else:
                draw.polygon(flat, 255)
        return Patch(box, np.asarray(image.reduce(FINE), np.float32) / 255)


def overlap(patch: Patch, whole: Patch) -> Patch:
    """The part of a patch that also lies in another."""
    (rows, columns), (whole_rows, whole_columns) = patch.box, whole.box
    first = max(rows.start, whole_rows.start), max(columns.start, whole_columns.start)
    last = max(first[0], min(rows.stop, whole_rows.stop)), max(first[1], min(columns.stop, whole_columns.stop))
    box = (slice(first[0], last[0]), slice(first[1], last[1]))
    covers = [
        part.cover[first[0] - part.box[0].start : last[0] - part.box[0].start][
            :, first[1] - part.box[1].start : last[1] - part.box[1].start
        ]
        for part in (patch, whole)
    ]
    return Patch(box, np.minimum(*covers))
