"""Shapes, colours and noise that all demo pictures are made of, and the pen that draws them."""

import colorsys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw

Colour = Sequence[float]  # red, green, blue in 0..1
Ink = tuple[int, int, int]  # the same in 0..255, as Pillow takes it
TURN = 2 * np.pi
GRAIN, SHIFT = 352, 160  # side of stored film grain, and how far it may be shifted on a photograph, in pixels

DRAWINGS: dict[str, list[str]] = yaml.safe_load(Path(__file__).with_name("drawings.yaml").read_text(encoding="utf-8"))
HSV = {name: np.array(hsv) / (1, 100, 100) for name, hsv in DRAWINGS.pop("colours").items()}


def points(x: ArrayLike, y: ArrayLike) -> np.ndarray:
    """Points (count, 2) from their coordinates, of which one may be the same for all."""
    return np.column_stack(np.broadcast_arrays(x, y))


def closed(radius: ArrayLike, turn: float = 0.0) -> np.ndarray:
    """A closed shape (count, 2) from its radii at equally spaced angles."""
    angle = turn + TURN * np.arange(len(radius)) / len(radius)
    return points(np.cos(angle), np.sin(angle)) * np.reshape(radius, (-1, 1))


def ellipse(y: float, width: float, height: float, count: int = 24) -> np.ndarray:
    """Points (count, 2) round an ellipse centred at (0, y) with the given half axes."""
    return closed(np.ones(count)) * (width, height) + (0, y)


def ragged(radius: float, rng: np.random.Generator, roughness: float, count: int = 36) -> np.ndarray:
    """An irregular closed shape about (0, 0)."""
    waves, phases, heights = np.array([[2], [3], [5], [8]]), rng.uniform(0, TURN, (4, 1)), rng.standard_normal((4, 1))
    swing = (heights / waves * np.sin(waves * TURN * np.arange(count) / count + phases)).sum(0)
    return closed(radius * np.clip(1 + roughness * (swing + 0.35 * rng.standard_normal(count)), 0.35, 1.8))


def outline(half: np.ndarray, y: np.ndarray, middle: float | np.ndarray = 0.0) -> np.ndarray:
    """A closed upright shape from its half widths at the heights y, about a middle line; (2 * len(y), 2)."""
    return np.concatenate([points(middle - half, y), points(middle + half, y)[::-1]])


def branches(
    rng: np.random.Generator, start: ArrayLike, angles: ArrayLike, forks: int, spread: float, length: float
) -> list[np.ndarray]:
    """Lines that fork again and again, each time shorter: per generation (lines, 2, 2); angles from upright."""
    layers, angle = [], np.asarray(angles) + rng.normal(0, 0.08, len(angles))
    start = np.tile(start, (len(angle), 1))
    for _ in range(forks):
        end = start + length * points(np.sin(angle), np.cos(angle))
        layers.append(np.stack([start, end], 1))
        turn = rng.uniform(0.6, 1.3, (len(end), 2)) * (-spread, spread)
        start, angle, length = np.repeat(end, 2, 0), (angle[:, None] + turn).ravel(), length * rng.uniform(0.66, 0.86)
    return layers


def clouds(rng: np.random.Generator, cells: int, width: int, height: int) -> np.ndarray:
    """Smooth noise (height, width) of about unit variance, `cells` bumps a side."""
    noise = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
    return np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC))


def tone(colour: Colour, factor: float) -> Ink:
    """The colour made darker (factor below 1) or lighter (1 to 2), as integers in 0..255."""
    share, lift = min(factor, 2 - factor), max(0, factor - 1)
    red, green, blue = colour
    return int(255 * (red * share + lift)), int(255 * (green * share + lift)), int(255 * (blue * share + lift))


def paint(names: str, rng: np.random.Generator) -> tuple[float, float, float]:
    """A named colour (or one of several, separated by "|") as one specimen shows it."""
    hue, saturation, value = rng.normal(HSV[str(rng.choice(names.split("|")))], (6.0, 0.07, 0.05))
    return colorsys.hsv_to_rgb(hue / 360 % 1, min(max(saturation, 0.02), 1), min(max(value, 0.1), 1))


class Pen:
    """Draws shapes given in units of its own (y up) on a picture, turned, scaled and mirrored by a matrix."""

    def __init__(
        self, draw: ImageDraw.ImageDraw | None, centre: np.ndarray, matrix: np.ndarray, thin: int = 1
    ) -> None:
        self.draw, self.centre, self.matrix, self.thin = draw, centre, matrix, thin  # `thin`: least width of a line
        area = np.linalg.det(matrix)
        self.unit = abs(area) ** 0.5
        # The light follows what is drawn when it is mirrored, as it does when the trainer flips a picture.
        self.lit = (0.3 * np.sign(area), -0.3)

    def moved(self, x: float, y: float, scale: float | tuple[float, float] = 1.0, lean: float = 0.0) -> "Pen":
        """A pen for a body of another size (or width and height) whose origin is at (x, y), and which leans."""
        matrix = np.array([[1, 0], [lean, 1]]) @ self.matrix * np.reshape(scale, (-1, 1))
        return Pen(self.draw, self.pixels((x, y)), matrix, self.thin)

    def pixels(self, shape: ArrayLike) -> np.ndarray:
        """Points (..., 2) in the pen's units, in pixels of the picture."""
        return np.asarray(shape) @ self.matrix + self.centre

    def fill(self, shape: ArrayLike, colour: Ink) -> None:
        """A shape in one colour."""
        self.draw.polygon(self.pixels(shape).ravel().tolist(), colour)

    def lines(self, lines: ArrayLike, colour: Ink, width: float) -> None:
        """Lines of equally many points each: (lines, points, 2)."""
        thickness = max(self.thin, round(width * self.unit))
        for line in self.pixels(lines):
            self.draw.line(line.ravel().tolist(), colour, thickness, joint="curve" if self.thin > 1 else None)

    def dots(self, centres: ArrayLike, size: float, colour: Ink, flat: float = 0.8) -> None:
        """Upright ellipses, `flat` times as tall as wide; they do not turn with the specimen."""
        half, tall = size * self.unit, size * flat * self.unit
        for x, y in self.pixels(centres).tolist():
            self.draw.ellipse((x - half, y - tall, x + half, y + tall), colour)

    def solid(self, shape: ArrayLike, colour: Colour, roundness: float = 0.5) -> None:
        """A shape with a dark outline, shaded from its margin (dark) to its lit upper side (light)."""
        pixels = self.pixels(shape)
        flat = pixels.ravel().tolist()
        self.draw.polygon(flat, tone(colour, 0.74))
        self.draw.line(flat + flat[:4], tone(colour, 0.45), max(1, round(0.05 * self.unit)))
        light = pixels.mean(0) + np.ptp(pixels, 0) * self.lit * roundness
        for size, factor in ((0.86, 0.88), (0.66, 1.0), (0.4, 1.14)):
            self.draw.polygon((pixels * size + (1 - size) * light).ravel().tolist(), tone(colour, factor))

    def drawing(self, kind: str, rng: np.random.Generator, **colours: Colour | int) -> None:
        """Something of this kind, of those in drawings.yaml."""
        self.sketch(DRAWINGS[kind][rng.integers(len(DRAWINGS[kind]))], rng, **colours)

    def sketch(self, text: str, rng: np.random.Generator, **colours: Colour | int) -> None:
        """Draw what a text says: strokes, separated by ";", of a verb, a colour, numbers and points "x,y".

        The verbs are the keys of STROKES. A capital one fills a shape flat, a doubled one draws its mirror image too.
        A number `.2~.3` is drawn between the two. A colour is a key of `colours` or HSV, and `name*1.2` its tone
        (or the roundness of what is shaded); `name=azure|white` mixes one for the strokes that follow.
        """
        for verb, name, factor, spans, corners in _strokes(text):
            if verb == "=":
                colours[name] = paint(factor, rng)
                continue
            colour = colours[name] if name in colours else paint(name, rng)
            ink = colour if isinstance(colour, int) else tone(colour, factor or 1)
            numbers, at = (rng.uniform(span[..., 0], span[..., 1]) for span in (spans, corners))
            for mirror in ((1, 1), (-1, 1))[: len(verb)]:
                for shape in STROKES[verb[0].lower()](at * mirror, rng, *numbers):
                    if verb[0] in "lq":
                        self.lines([shape], ink, numbers[0])
                    elif verb[0].isupper():
                        self.fill(shape, ink)
                    else:
                        self.solid(shape, colour, factor or 0.4)


BEZIER = np.array([((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3) for t in np.linspace(0, 1, 21)])
# What strokes draw, from the points that they name, a generator, and their numbers.
STROKES = {
    "l": lambda at, _, width: [at],  # a line
    "q": lambda at, _, width: [BEZIER @ at],  # a curve
    "p": lambda at, _: [at],  # a polygon
    "t": lambda at, _: [outline(*at.T)],  # an upright shape: half widths and heights
    "e": lambda at, _, width, height: [ellipse(0, width, height) + place for place in at],
    "r": lambda at, _, radius, depth, petals: [  # rosettes, whose petals stand out so far
        closed(radius * (1 + depth * np.cos(TURN * np.arange(6 * round(petals)) / 6))) + place for place in at
    ],
    "s": lambda at, _, outer, inner, rays: [closed([outer, inner] * round(rays), TURN / 4) + place for place in at],
    "o": lambda at, _, size, radius, count: [  # rings of discs
        ellipse(0, size, size, 12) + turn + place for place in at for turn in closed([radius] * round(count))
    ],
    "b": lambda at, rng, low, high, roughness: [  # ragged shapes
        ragged(rng.uniform(low, high), rng, roughness) + place for place in at
    ],
}


@cache
def _strokes(text: str) -> list[tuple]:
    strokes = []
    for verb, *words in filter(None, map(str.split, text.split(";"))):
        if "=" in verb:
            strokes.append(("=", *verb.split("="), None, None))
            continue
        name, _, factor = words[0].partition("*")
        spans = [np.array([(part.split("~") * 2)[:2] for part in word.split(",")], float) for word in words[1:]]
        numbers, corners = ([span for span in spans if len(span) == length] for length in (1, 2))
        spans = np.reshape(numbers, (-1, 2)), np.reshape(corners, (-1, 2, 2))
        strokes.append((verb, name, float(factor or 0), *spans))
    return strokes


def develop(
    image: ArrayLike, grain: np.ndarray, rng: np.random.Generator, slope: float, light: float, noise: float
) -> Image.Image:
    """An image (height, width, 3) in light from one side (deviation `slope`), in a strength (`light`), and grain."""
    pixels = np.array(image, np.float32)
    height, width = pixels.shape[:2]
    slope_x, slope_y = rng.normal(0, slope, 2)
    gain = rng.normal(1, light) * rng.normal(1, 0.04, 3)
    sides = np.outer(1 + slope_y * np.linspace(-1, 1, height), 1 + slope_x * np.linspace(-1, 1, width))
    pixels *= (sides[..., None] * gain).astype(np.float32)
    y, x = rng.integers(0, SHIFT, 2)
    pixels += grain[y : y + height, x : x + width] * np.float32(rng.uniform(noise / 12, noise))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
