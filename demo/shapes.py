"""Shapes, colours and noise that all demo pictures are made of, and the pen that draws them."""

import colorsys
from collections.abc import Sequence
from functools import cache, lru_cache

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw

Colour = Sequence[float]  # red, green, blue in 0..1
Ink = tuple[int, int, int]  # the same in 0..255, as Pillow takes it
TURN = 2 * np.pi
GRAIN, SHIFT = 352, 160  # side of stored film grain, and how far it may be shifted on a photograph, in pixels

# Hue in degrees, saturation and value in percent.
COLOURS = """
scarlet 4 85 82, orange 25 85 92, gold 46 78 92, ochre 36 62 75, cream 44 24 93, white 50 6 95, tan 30 40 74,
brown 23 60 46, rust 14 72 56, olive 66 50 50, teal 172 50 60, azure 208 62 80, violet 276 48 52, lilac 282 26 80,
rose 342 46 88, slate 215 14 52, black 240 16 24, ivory 24 38 93, almond 22 46 80, umber 20 55 62, sienna 18 58 46,
chestnut 14 75 50, leaf 95 42 50, dusk 268 35 55, night 222 55 42, dawn 24 70 98, haze 50 22 96, morning 195 30 84,
plum 300 50 42
"""
HSV = {name: np.array(hsv, float) / (1, 100, 100) for name, *hsv in map(str.split, COLOURS.split(","))}


@lru_cache(maxsize=256)
def steps(start: float, stop: float, count: int) -> np.ndarray:
    """np.linspace, remembered: every specimen asks for the same few dozen."""
    values = np.linspace(start, stop, count)
    values.setflags(write=False)
    return values


def points(x: ArrayLike, y: ArrayLike) -> np.ndarray:
    """Points (count, 2) from their coordinates, of which one may be the same for all."""
    return np.column_stack(np.broadcast_arrays(x, y))


@lru_cache(maxsize=256)
def arc(stop: float, count: int) -> np.ndarray:
    """Points (count, 2) along the unit circle from angle 0 to `stop` (radians)."""
    circle = points(np.cos(steps(0, stop, count)), np.sin(steps(0, stop, count)))
    circle.setflags(write=False)
    return circle


def ellipse(y: float, width: float, height: float, count: int = 24) -> np.ndarray:
    """Points (count, 2) round an ellipse centred at (0, y) with the given half axes."""
    return arc(TURN * (1 - 1 / count), count) * (width, height) + (0, y)


def closed(radius: ArrayLike, turn: float = 0.0) -> np.ndarray:
    """A closed shape from its radii at equally spaced angles."""
    radius = np.asarray(radius)
    angle = turn + TURN * np.arange(len(radius)) / len(radius)
    return points(np.cos(angle), np.sin(angle)) * radius[:, None]


def rosette(radius: float, depth: float, petals: float) -> np.ndarray:
    """A closed shape of this many rounded petals; `depth` is how far they stand out."""
    petals = round(petals)
    return closed(radius * (1 + depth * np.cos(petals * steps(0, TURN, 6 * petals + 1)[:-1])))


def ragged(radius: float, rng: np.random.Generator, roughness: float, count: int = 36) -> np.ndarray:
    """An irregular closed shape about (0, 0)."""
    waves, phases, heights = np.array([[2], [3], [5], [8]]), rng.uniform(0, TURN, (4, 1)), rng.standard_normal((4, 1))
    swing = (heights / waves * np.sin(waves * TURN * np.arange(count) / count + phases)).sum(0)
    return closed(radius * np.clip(1 + roughness * (swing + 0.35 * rng.standard_normal(count)), 0.35, 1.8))


def outline(half: np.ndarray, y: np.ndarray, middle: float | np.ndarray = 0.0) -> np.ndarray:
    """A closed upright shape from its half widths at the heights y, about a middle line; (2 * len(y), 2)."""
    return np.concatenate([points(middle - half, y), points(middle + half, y)[::-1]])


def clouds(rng: np.random.Generator, cells: int, width: int, height: int) -> np.ndarray:
    """Smooth noise (height, width) of about unit variance, `cells` bumps a side."""
    noise = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
    return np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC))


def tone(colour: Colour, factor: float) -> Ink:
    """The colour made darker (factor below 1) or lighter (1 to 2), as integers in 0..255."""
    red, green, blue = colour
    lift, factor = (0, 255 * factor) if factor <= 1 else (255 * (factor - 1), 255 * (2 - factor))
    return int(lift + red * factor), int(lift + green * factor), int(lift + blue * factor)


def paint(names: str, rng: np.random.Generator) -> tuple[float, float, float]:
    """A named colour (or one of several, separated by "|") as one specimen shows it."""
    name = str(rng.choice(names.split("|"))) if "|" in names else names
    hue, saturation, value = rng.normal(HSV[name], (6.0, 0.07, 0.05))
    return colorsys.hsv_to_rgb(hue / 360 % 1, min(max(saturation, 0.02), 1), min(max(value, 0.1), 1))


class Pen:
    """Draws shapes given in units of its own (y up) on a picture, turned, scaled and mirrored by a matrix."""

    def __init__(
        self, draw: ImageDraw.ImageDraw | None, centre: np.ndarray, matrix: np.ndarray, thin: int = 1
    ) -> None:
        self.draw, self.centre, self.matrix, self.thin = draw, centre, matrix, thin  # `thin`: least width of a line
        area = matrix[0, 0] * matrix[1, 1] - matrix[0, 1] * matrix[1, 0]
        self.unit = abs(area) ** 0.5
        # The light follows what is drawn when it is mirrored, as it does when the trainer flips a picture.
        self.lit = (0.3 * np.sign(area), -0.3)

    def moved(self, x: float, y: float, scale: float | tuple[float, float] = 1.0) -> "Pen":
        """A pen for a body of another size (or width and height) whose origin is at (x, y)."""
        return Pen(self.draw, self.pixels((x, y)), self.matrix * np.reshape(scale, (-1, 1)), self.thin)

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

    def sketch(self, text: str, rng: np.random.Generator, **colours: Colour | int) -> None:
        """Draw what a text says: strokes, separated by ";", of a verb, a colour, numbers and points "x,y".

        The verbs are the keys of STROKES. A capital one fills a shape flat, a doubled one draws its mirror image too.
        A number `.2~.3` is drawn between the two. A colour is a key of `colours` or COLOURS, and `name*1.2` its tone
        (or the roundness of what is shaded); `name=azure|white` mixes one for the strokes that follow.
        """
        for verb, name, factor, spans, corners in _strokes(text):
            if verb == "=":
                colours[name] = paint(factor, rng)
                continue
            colour = colours[name] if name in colours else paint(name, rng)
            ink = colour if isinstance(colour, int) else tone(colour, factor or 1)
            numbers, at = _drawn(spans, rng), _drawn(corners, rng)
            for mirror in ((1, 1), (-1, 1))[: len(verb)]:
                if verb[0] in "lq":
                    line = at if verb[0] == "l" else BEZIER @ at
                    self.lines([line * mirror], ink, numbers[0])
                    continue
                for shape in STROKES[verb[0].lower()](at * mirror, rng, *numbers):
                    if verb[0].isupper():
                        self.fill(shape, ink)
                    else:
                        self.solid(shape, colour, factor or 0.4)


BEZIER = np.array([((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3) for t in np.linspace(0, 1, 21)])
# What strokes draw, from the points that they name and their numbers; "l WIDTH" is a line and "q WIDTH" a curve.
STROKES = {
    "p": lambda at, _: [at],  # a polygon
    "t": lambda at, _: [outline(*at.T)],  # an upright shape: half widths and heights
    "e": lambda at, _, width, height: [ellipse(0, width, height) + place for place in at],
    "r": lambda at, _, radius, depth, petals: [rosette(radius, depth, petals) + place for place in at],
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


def _drawn(spans: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    low, high = spans[..., 0], spans[..., 1]
    return low if np.array_equal(low, high) else rng.uniform(low, high)


def develop(
    image: ArrayLike, grain: np.ndarray, rng: np.random.Generator, slope: float, light: float, noise: float
) -> Image.Image:
    """An image (height, width, 3) in light from one side (deviation `slope`), in a strength (`light`), and grain."""
    pixels = np.array(image, np.float32)
    height, width = pixels.shape[:2]
    slope_x, slope_y = rng.normal(0, slope, 2)
    gain = rng.normal(1, light) * rng.normal(1, 0.04, 3)
    # Rows of width * 3 values, because numpy is slow on a last axis of 3.
    pixels = pixels.reshape(height, width * 3)
    pixels *= np.outer(1 + slope_x * steps(-1, 1, width), gain).ravel().astype(np.float32)
    pixels *= (1 + slope_y * steps(-1, 1, height)).astype(np.float32)[:, None]
    y, x = rng.integers(0, SHIFT, 2)
    pixels += grain[y : y + height, 3 * x : 3 * (x + width)] * np.float32(rng.uniform(noise / 12, noise))
    np.clip(pixels, 0, 255, out=pixels)
    return Image.fromarray(pixels.astype(np.uint8).reshape(height, width, 3))
