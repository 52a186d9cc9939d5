"""The bodies of the invented fungi as shapes: one function per body plan, drawn in specimen units."""

import colorsys
import dataclasses
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike
from PIL import ImageDraw

from demo.fungarium import Look

Colour = Sequence[float]  # red, green, blue in 0..1
Ink = tuple[int, int, int]  # the same in 0..255, as Pillow takes it
TURN = 2 * np.pi

# Hue in degrees, saturation and value in 0..1.
COLOURS = {
    "scarlet": (4, 0.85, 0.82),
    "orange": (25, 0.85, 0.92),
    "gold": (46, 0.78, 0.92),
    "ochre": (36, 0.62, 0.75),
    "cream": (44, 0.24, 0.93),
    "white": (50, 0.06, 0.95),
    "tan": (30, 0.40, 0.74),
    "brown": (23, 0.60, 0.46),
    "rust": (14, 0.72, 0.56),
    "olive": (66, 0.50, 0.50),
    "teal": (172, 0.50, 0.60),
    "azure": (208, 0.62, 0.80),
    "violet": (276, 0.48, 0.52),
    "lilac": (282, 0.26, 0.80),
    "rose": (342, 0.46, 0.88),
    "slate": (215, 0.14, 0.52),
    "black": (240, 0.16, 0.24),
}


@lru_cache(maxsize=256)
def steps(start: float, stop: float, count: int) -> np.ndarray:
    """np.linspace, remembered: every specimen asks for the same few dozen."""
    values = np.linspace(start, stop, count)
    values.setflags(write=False)
    return values


@lru_cache(maxsize=256)
def arc(stop: float, count: int) -> np.ndarray:
    """Points (count, 2) along the unit circle from angle 0 to `stop` (radians)."""
    turn = steps(0, stop, count)
    points = np.column_stack([np.cos(turn), np.sin(turn)])
    points.setflags(write=False)
    return points


def ellipse(y: float, width: float, height: float, count: int = 24) -> np.ndarray:
    """Points (count, 2) round an ellipse centred at (0, y) with the given half axes."""
    return arc(TURN * (1 - 1 / count), count) * (width, height) + (0, y)


def outline(half: np.ndarray, y: np.ndarray, middle: float | np.ndarray = 0.0) -> np.ndarray:
    """A closed upright shape from its half widths at the heights y, about a middle line; (2 * len(y), 2)."""
    left, right = np.column_stack([middle - half, y]), np.column_stack([middle + half, y])
    return np.concatenate([left, right[::-1]])


def tone(colour: Colour, factor: float) -> Ink:
    """The colour made darker (factor below 1) or lighter (1 to 2), as integers in 0..255."""
    red, green, blue = colour
    lift, factor = (0, 255 * factor) if factor <= 1 else (255 * (factor - 1), 255 * (2 - factor))
    return int(lift + red * factor), int(lift + green * factor), int(lift + blue * factor)


def paint(name: str, rng: np.random.Generator) -> tuple[float, float, float]:
    """A named colour as one specimen shows it."""
    hue, saturation, value = rng.normal(COLOURS[name], (6.0, 0.07, 0.05))
    return colorsys.hsv_to_rgb(hue / 360 % 1, min(max(saturation, 0.02), 1), min(max(value, 0.1), 1))


class Pen:
    """Draws shapes given in specimen units (y up) on a picture, turned, scaled and mirrored by a matrix."""

    def __init__(self, draw: ImageDraw.ImageDraw, centre: np.ndarray, matrix: np.ndarray) -> None:
        self.draw, self.centre, self.matrix = draw, centre, matrix
        area = matrix[0, 0] * matrix[1, 1] - matrix[0, 1] * matrix[1, 0]
        self.unit = abs(area) ** 0.5
        # The light follows the specimen when it is mirrored, as it does when the trainer flips a picture.
        self.lit = (0.3 * np.sign(area), -0.3)

    def moved(self, x: float, y: float, scale: float) -> "Pen":
        """A pen for a body of another size whose origin is at (x, y)."""
        return Pen(self.draw, self.pixels((x, y)), self.matrix * scale)

    def pixels(self, points: ArrayLike) -> np.ndarray:
        """Points (..., 2) in specimen units, in pixels of the picture."""
        return np.asarray(points) @ self.matrix + self.centre

    def fill(self, points: ArrayLike, colour: Ink) -> None:
        """A shape in one colour."""
        self.draw.polygon(self.pixels(points).ravel().tolist(), colour)

    def lines(self, lines: ArrayLike, colour: Ink, width: float) -> None:
        """Lines of equally many points each: (lines, points, 2)."""
        thickness = max(1, round(width * self.unit))
        for line in self.pixels(lines):
            self.draw.line(line.ravel().tolist(), colour, thickness)

    def dots(self, centres: ArrayLike, size: float, colour: Ink, flat: float = 0.8) -> None:
        """Upright ellipses, `flat` times as tall as wide; they do not turn with the specimen."""
        half, tall = size * self.unit, size * flat * self.unit
        for x, y in self.pixels(centres).tolist():
            self.draw.ellipse((x - half, y - tall, x + half, y + tall), colour)

    def solid(self, points: ArrayLike, colour: Colour, roundness: float = 0.5) -> None:
        """A shape with a dark outline, shaded from its margin (dark) to its lit upper side (light)."""
        pixels = self.pixels(points)
        flat = pixels.ravel().tolist()
        self.draw.polygon(flat, tone(colour, 0.74))
        self.draw.line(flat + flat[:4], tone(colour, 0.45), max(1, round(0.05 * self.unit)))
        light = pixels.mean(0) + np.ptp(pixels, 0) * self.lit * roundness
        for size, factor in ((0.86, 0.88), (0.66, 1.0), (0.4, 1.14)):
            self.draw.polygon((pixels * size + (1 - size) * light).ravel().tolist(), tone(colour, factor))


def profile(cap: str, x: np.ndarray) -> np.ndarray:
    """Height (0..1) of the outline of a cap at x in -1..1."""
    if cap == "cone":
        return 1 - np.abs(x) ** 1.25
    if cap == "flat":
        return 0.55 * (1 - np.abs(x) ** 5)
    if cap == "umbo":
        return 0.5 * np.sqrt(1 - x**2) + 0.5 * np.exp(-((x / 0.2) ** 2)) * (1 - x**2)
    return np.sqrt(1 - x**2)


def draw_stem(pen: Pen, half: float, bulb: float, top: float, colour: Colour, bend: float) -> None:
    """A stem of the given half thickness from the ground (y = -0.95) to y = top, thicker by `bulb` at its foot."""
    t = steps(0, 1, 7)
    half = half * (1.1 - 0.2 * t) + bulb * np.exp(-((t / 0.22) ** 2))
    middle, y = bend * np.sin(np.pi * t), -0.95 + (top + 0.95) * t
    pen.fill(outline(half + 0.03, y, middle), tone(colour, 0.48))
    pen.fill(outline(half, y, middle), tone(colour, 0.78))
    pen.fill(outline(half * 0.62, y, middle - 0.2 * half), tone(colour, 0.98))


def draw_spots(pen: Pen, look: Look, main: Colour, points: np.ndarray) -> None:
    """Spots at the given points (count, 2), lighter or darker than the main colour."""
    if len(points):
        pen.dots(points, 0.055, tone(main, 0.42) if look.mark == "dark" else (250, 244, 226))


def draw_mushroom(pen: Pen, look: Look, main: Colour, second: Colour, rng: np.random.Generator) -> None:
    """A cap seen slightly from below, with gills or pores, on a stem."""
    width, base, tilt = look.width, 0.85 - look.height, rng.uniform(0.1, 0.26)
    x = steps(-1, 1, 25)
    pen.solid(np.column_stack([width * x, base + look.height * profile(look.cap, x)]), main)
    if look.zone:
        middle = look.zone * x
        crown = np.column_stack([width * middle, base + look.height * profile(look.cap, middle) - 0.02])
        pen.fill(crown, tone(paint(look.accent, rng), 0.95))
    spot = rng.uniform(-0.85, 0.85, int(look.spots))
    high = base + look.height * profile(look.cap, spot) * rng.uniform(0.25, 0.88, len(spot))
    draw_spots(pen, look, main, np.column_stack([width * spot, high]))
    pen.solid(ellipse(base, width, width * tilt), second, 0)
    rim = ellipse(base, width * 0.94, width * tilt * 0.9, 22)
    if look.under == "gills":
        pen.lines(np.stack(np.broadcast_arrays((0, base), rim), 1), tone(second, 0.58), 0.012)
    else:
        pen.dots(np.concatenate([rim[::2], (rim[::2] + (0, base)) / 2]), 0.035, tone(second, 0.6))
    bend = rng.normal(0, 0.05)
    draw_stem(pen, look.stem, look.bulb, base, second, bend)
    if look.ring:
        skirt = outline(look.stem * np.array([1.9, 1.4, 1.0]), base - np.array([0.3, 0.18, 0.1]), bend)
        pen.solid(skirt, second, 0.2)


def draw_funnel(pen: Pen, look: Look, main: Colour, second: Colour, rng: np.random.Generator) -> None:
    """A trumpet with folds running down it, seen slightly from above."""
    t, tilt = steps(0, 1, 9), rng.uniform(0.2, 0.34)
    half, y = look.stem + (look.width - look.stem) * t**2.2, -0.95 + 1.55 * t
    pen.solid(outline(half, y), second, 0.3)
    folds = [np.column_stack([x * half[3:], y[3:]]) for x in steps(-0.9, 0.9, 11)]
    pen.lines(folds, tone(second, 0.58), 0.016)
    rim = ellipse(0, look.width, look.width * tilt, 26)
    rim[:, 0] *= 1 + 0.06 * np.sin(5 * steps(0, TURN, 26) + rng.uniform(0, 6))
    pen.solid(rim + (0, 0.6), main, 0.2)
    pen.fill(rim * 0.5 + (0, 0.58), tone(main, 0.6))


def draw_bracket(pen: Pen, look: Look, main: Colour, second: Colour, rng: np.random.Generator) -> None:
    """One or several shelves on a trunk."""
    bark = paint("brown", rng)
    pen.fill([(-3, -4), (-0.5, -4), (-0.42, 4), (-3, 4)], tone(bark, 0.7))
    for x in rng.uniform(-1.6, -0.5, 9):
        pen.lines([[(x, -3), (x + rng.normal(0, 0.05), 0), (x, 3)]], tone(bark, rng.uniform(0.4, 1.1)), 0.04)
    tiers = int(look.tiers) + (int(rng.integers(-1, 2)) if look.tiers > 2 else 0)
    turn = steps(-1.75, 1.75, 23)
    for tier in range(tiers):
        anchor = (-0.5, 0.75 - 1.4 * tier / (tiers - 1) if tiers > 1 else 0.0)
        radius = rng.uniform(0.75, 0.95) * (1.4 if tiers == 1 else 1.15 if tiers == 2 else 1.0)
        radius = radius * (1 + look.frill * np.sin(turn * 9 + rng.uniform(0, 6)))
        fan = np.column_stack([radius * np.cos(turn) * 1.1, radius * np.sin(turn) * rng.uniform(0.32, 0.42)])
        pen.solid(fan + anchor - (0, look.thick), second, 0)
        pen.solid(fan + anchor, main, 0.2)
        for band in range(int(look.zone)):
            pen.fill(fan * (0.9 - 0.8 * band / look.zone) + anchor, tone(second, 0.9))
            pen.fill(fan * (0.9 - 0.8 * (band + 0.45) / look.zone) + anchor, tone(main, 0.95))


def draw_ball(pen: Pen, look: Look, main: Colour, second: Colour, rng: np.random.Generator) -> None:
    """A puffball, on a stalk or in the middle of a star where the look says so."""
    width, middle, rays = look.width, -0.2 + 0.4 * look.stalk, int(look.rays)
    for turn in (np.arange(rays) + rng.uniform(0, 1)) * TURN / max(rays, 1):
        along, across = np.array([np.cos(turn), np.sin(turn)]), 1.5 / rays * np.array([-np.sin(turn), np.cos(turn)])
        ray = np.array([0.3 * along - across, 0.75 * along - across, 1.15 * along, 0.75 * along + across])
        pen.solid(ray * (1, 0.6) - (0, 0.3), second, 0.2)
    if look.stalk:
        draw_stem(pen, 0.5 * width, 0.0, middle, second, 0.0)
    pen.solid(ellipse(middle, width, width * 0.92), main)
    turn, reach = rng.uniform(0, TURN, int(look.spots)), 0.85 * width * np.sqrt(rng.uniform(0, 1, int(look.spots)))
    draw_spots(pen, look, main, np.column_stack([reach * np.cos(turn), middle + reach * np.sin(turn)]))
    pen.dots([(0, middle + 0.72 * width)], 0.09, tone(main, 0.4), 0.6)


def draw_cup(pen: Pen, look: Look, main: Colour, second: Colour, rng: np.random.Generator) -> None:
    """A bowl seen from above, sitting on the ground or stalked."""
    width, tilt, top = look.width, rng.uniform(0.3, 0.5), -0.75 + look.stalk + look.depth
    if look.stalk:
        draw_stem(pen, 0.1, 0.0, top - 0.8 * look.depth, main, rng.normal(0, 0.05))
    pen.solid(arc(np.pi, 15) * (width, -look.depth) + (0, top), main, 0.4)
    rim = ellipse(0, width, width * tilt, 28)
    rim *= 1 + look.frill * np.sin(7 * steps(0, TURN, 28) + rng.uniform(0, 6))[:, None]
    if look.fringe:
        pen.lines(np.stack([rim, rim * (1.22, 1.5)], 1) + (0, top), tone(main, 0.45), 0.03)
    pen.solid(rim + (0, top), main, 0)
    for size, drop, factor in ((0.9, 0, 1.0), (0.7, 0.03, 0.84), (0.45, 0.05, 0.66)):
        pen.fill(rim * size + (0, top - drop), tone(second, factor))
    turn = rng.uniform(0, TURN, int(look.spots))
    draw_spots(pen, look, main, np.column_stack([np.cos(turn), tilt * np.sin(turn)]) * 0.62 * width + (0, top))


def draw_morel(pen: Pen, look: Look, main: Colour, second: Colour, rng: np.random.Generator) -> None:
    """A pitted head on a stem."""
    t, base = steps(0, 1, 13), 0.95 - look.height
    draw_stem(pen, look.stem, look.bulb, base + 0.2, second, rng.normal(0, 0.04))
    bulge = np.sin(np.pi * (0.12 + 0.88 * t)) if look.cap == "round" else (1 - t**1.6) * (0.75 + 0.6 * t)
    half = look.width * np.maximum(bulge, 0)
    pen.solid(outline(half, base + look.height * t), main)
    for at in (steps(0, 5, 6) + 0.6) / 6:
        reach = np.interp(at, t, half)
        count = max(1, round(reach / 0.13))
        x = (np.arange(count) - (count - 1) / 2 + rng.normal(0, 0.1)) * 2 * reach / (count + 0.4)
        pen.dots(np.column_stack([x, np.full(count, base + look.height * at)]), 0.075, tone(main, 0.42), 1.15)


def draw_saddle(pen: Pen, look: Look, main: Colour, second: Colour, rng: np.random.Generator) -> None:
    """A head of two lobes on a stem."""
    draw_stem(pen, look.stem, look.bulb, 0.3, second, rng.normal(0, 0.05))
    lobe = [(0, 0.05), (0.25, 0.4), (0.55, 0.55), (0.75, 0.3), (0.78, -0.1), (0.55, -0.4), (0.3, -0.3), (0.15, -0.2)]
    for side, size in zip((1, -1), rng.uniform(0.75, 1.05, 2), strict=True):
        pen.solid(np.array(lobe) * (side * size, size) + (0, 0.35), main)


def draw_coral(pen: Pen, look: Look, main: Colour, second: Colour, rng: np.random.Generator) -> None:
    """A shrub that forks again and again, from the main colour to the second at its tips."""
    start, angle, length = np.tile((0.0, -0.95), (3, 1)), rng.normal((-0.55, 0, 0.55), 0.08), 2 / (look.forks + 0.6)
    layers = []
    for _ in range(int(look.forks)):
        end = start + length * np.column_stack([np.sin(angle), np.cos(angle)])
        layers.append(np.stack([start, end], 1))
        turn = rng.uniform(0.6, 1.3, (len(end), 2)) * (-look.spread, look.spread)
        start, angle, length = np.repeat(end, 2, 0), (angle[:, None] + turn).ravel(), length * rng.uniform(0.66, 0.86)
    for rim in (0.05, 0):
        for part, layer in zip(steps(0, 1, len(layers)), layers, strict=True):
            width = look.stem * (2.2 - 1.1 * part) + rim
            colour = np.array(main) * (1 - part**2) + np.array(second) * part**2
            shade = tone(colour, 0.45 if rim else 0.85 + 0.3 * part)
            pen.lines(layer, shade, width)
            pen.dots(layer[:, 1], width / 2, shade, 1)


def draw_club(pen: Pen, look: Look, main: Colour, second: Colour, rng: np.random.Generator) -> None:
    """A tuft of unbranched fingers."""
    count, t = max(2, int(look.group) + int(rng.integers(-1, 2))), steps(0, 1, 9)
    half = look.stem * (0.7 + 0.8 * t) * np.sqrt(1 - t**6 * 0.98)
    for x in rng.permutation(steps(-0.5, 0.5, count)):
        middle = 0.5 * x + (x * 0.5 + rng.normal(0, 0.08)) * t**2
        finger = outline(half, -0.95 + rng.uniform(1.1, 1.8) * t, middle)
        pen.solid(finger, main, 0.3)
        pen.fill(finger[6:12], tone(second, 0.95))


# How to draw one body of each plan.
PLANS = {
    "mushroom": draw_mushroom,
    "funnel": draw_funnel,
    "bracket": draw_bracket,
    "ball": draw_ball,
    "cup": draw_cup,
    "morel": draw_morel,
    "saddle": draw_saddle,
    "coral": draw_coral,
    "club": draw_club,
}


def vary(look: Look, rng: np.random.Generator) -> Look:
    """The look of one body: proportions and the number of spots differ from body to body."""
    names = ("width", "height", "stem", "depth", "thick", "spots")
    factors = rng.normal(1, 0.1, len(names)).tolist()
    return dataclasses.replace(look, **{name: getattr(look, name) * f for name, f in zip(names, factors, strict=True)})
