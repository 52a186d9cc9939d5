"""What the invented artworks show: portraits, landscapes, still lifes and ornaments, in flat colour.

Each scene is drawn in units of half the short side of the canvas: x runs from -wide to wide, y (upwards) from -tall
to tall.
"""

import colorsys
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw

from demo.fungarium_bodies import TURN, Colour, Ink, Pen, arc, ellipse, outline, paint, tone

SKINS = ((24, 0.38, 0.93), (22, 0.46, 0.80), (20, 0.55, 0.62), (18, 0.58, 0.46))
HAIRS = ((20, 0.65, 0.28), (28, 0.6, 0.42), (38, 0.6, 0.72), (14, 0.75, 0.5), (30, 0.05, 0.72), (240, 0.2, 0.2))
CLOTHES = ("scarlet", "rust", "olive", "teal", "azure", "violet", "slate", "gold", "rose", "brown")


def pigment(hsv: Sequence[float], rng: np.random.Generator) -> Colour:
    """A colour near hue (degrees), saturation and value."""
    hue, saturation, value = rng.normal(hsv, (4.0, 0.05, 0.04))
    return colorsys.hsv_to_rgb(hue / 360 % 1, min(max(saturation, 0.0), 1), min(max(value, 0.08), 1))


class Easel(Pen):
    """A pen for a whole canvas, which knows how far the canvas reaches."""

    def __init__(self, canvas: Image.Image) -> None:
        unit = min(canvas.size) / 2
        centre = np.array(canvas.size) / 2
        super().__init__(ImageDraw.Draw(canvas, "RGB"), centre, unit * np.array([[1.0, 0], [0, -1]]))
        self.canvas, (self.wide, self.tall) = canvas, centre / unit

    def wash(self, top: Ink, bottom: Ink, upper: float, lower: float) -> None:
        """A soft change of colour from y = upper down to y = lower, over the whole width."""
        first, last = (round(float(self.pixels((0, y))[1])) for y in (upper, lower))
        column = Image.new("RGB", (1, 2))
        column.putdata([top, bottom])
        self.canvas.paste(
            column.resize((self.canvas.width, max(1, last - first)), Image.Resampling.BILINEAR), (0, first)
        )

    def ridge(self, heights: np.ndarray, colour: Ink, top: float = 0.0) -> None:
        """All below a line of heights (equally spaced from left to right)."""
        x = np.linspace(-self.wide, self.wide, len(heights))
        corners = [(self.wide, -self.tall - 0.1), (-self.wide, -self.tall - 0.1)]
        self.fill(np.concatenate([np.column_stack([x, heights + top]), corners]), colour)


def closed(radius: ArrayLike, turn: float = 0.0) -> np.ndarray:
    """A closed shape from its radii at equally spaced angles."""
    radius = np.asarray(radius)
    angle = turn + TURN * np.arange(len(radius)) / len(radius)
    return np.column_stack([np.cos(angle), np.sin(angle)]) * radius[:, None]


def hills(rng: np.random.Generator, roughness: float, count: int = 48) -> np.ndarray:
    """A smooth or jagged line of heights of about -1 to 1."""
    x, line = np.linspace(0, 1, count), np.zeros(count)
    for octave, phase in enumerate(rng.uniform(0, TURN, 5)):
        line += roughness**octave * np.sin(TURN * x * (0.7 * 1.9**octave) + phase)
    return line / (1 + roughness)


# ---- portrait


def draw_portrait(easel: Easel, rng: np.random.Generator) -> None:
    """A head and shoulders before a plain wall, a niche, a window or a curtain."""
    _draw_backdrop(easel, rng)
    sitter = easel.moved(rng.normal(0, 0.06), rng.uniform(-0.1, 0.0), rng.uniform(0.92, 1.1))
    skin, hair = pigment(SKINS[rng.integers(len(SKINS))], rng), pigment(HAIRS[rng.integers(len(HAIRS))], rng)
    cloth, trim = (paint(name, rng) for name in rng.choice(CLOTHES, 2, replace=False))
    style, lean, half = rng.choice(("long", "bun", "short", "bald")), rng.normal(0, 0.05), rng.uniform(0.27, 0.32)
    if style == "long":
        sitter.solid(
            outline(half * np.array([1.5, 1.6, 1.45, 1.3, 0.9]), np.array([-0.5, -0.1, 0.3, 0.6, 0.78])), hair
        )
    if style == "bun":
        sitter.solid(ellipse(0.86, 0.17, 0.15) + (lean, 0), hair)
    if style in ("bun", "short"):
        sitter.solid(ellipse(0.36, half * 1.18, 0.44) + (lean, 0), hair)
    _draw_bust(sitter, skin, cloth, trim, rng)
    sitter.solid(ellipse(0.28, half, 0.4) + (lean, 0), skin, 0.3)
    if style != "bald":
        fringe = arc(np.pi, 15) * (half * 1.06, 0.44) + (lean, 0.3)
        parting = np.array([(-half, 0.34), (-0.6 * half, 0.48), (rng.uniform(-0.3, 0.3) * half, 0.56), (half, 0.36)])
        sitter.solid(np.concatenate([fringe, parting + (lean, 0)]), hair, 0.2)
    _draw_face(sitter.moved(lean * 1.6, 0.0, 1), skin, hair, half, rng)
    if style in ("short", "bald") and rng.random() < 0.5:
        cheeks = [(half, 0.06), (0.4 * half, -0.02), (0.3 * half, 0.05), (-0.3 * half, 0.05), (-0.4 * half, -0.02)]
        beard = np.concatenate([-arc(np.pi, 13) * (half, 0.24 + rng.uniform(0, 0.2)), [(half, 0.12)], cheeks])
        sitter.solid(beard + (lean, 0.06), hair, 0.1)
        sitter.lines([[(lean * 1.6 - 0.07, 0.035), (lean * 1.6 + 0.07, 0.035)]], (172, 92, 80), 0.035)
    if rng.random() < 0.45:
        _draw_hat(sitter, half, lean, rng)


def _draw_backdrop(easel: Easel, rng: np.random.Generator) -> None:
    wall, kind = paint(rng.choice(("olive", "teal", "slate", "ochre", "rust", "azure", "tan")), rng), rng.integers(4)
    easel.wash(tone(wall, 1.1), tone(wall, 0.65), easel.tall, -easel.tall)
    if kind == 0:
        niche = np.concatenate([arc(np.pi, 15) * (0.78, 0.55) + (0, 0.35), [(-0.78, -2), (0.78, -2)]])
        easel.fill(niche * 1.08, tone(wall, 1.45))
        easel.fill(niche, tone(wall, 0.55))
    elif kind == 1:
        x = rng.choice((-1, 1)) * (easel.wide - 0.35)
        sky = paint("azure", rng)
        easel.fill(np.array([(-0.3, 0.1), (0.3, 0.1), (0.3, 0.8), (-0.3, 0.8)]) + (x, 0), tone(sky, 1.6))
        easel.fill(np.array([(-0.3, 0.1), (0.3, 0.1), (0.3, 0.3), (0.05, 0.45), (-0.3, 0.25)]) + (x, 0), (96, 128, 92))
        easel.lines(
            np.array([[(-0.3, 0.1), (0.3, 0.1), (0.3, 0.8), (-0.3, 0.8), (-0.3, 0.1)]]) + (x, 0), tone(wall, 0.4), 0.05
        )
    elif kind == 2:
        cloth = paint(rng.choice(("scarlet", "violet", "gold")), rng)
        for fold, x in enumerate(np.linspace(easel.wide, easel.wide - 0.75, 6)):
            shape = [(x - 0.18, 2), (x + 0.2, 2), (x + 0.2, -2), (x - 0.18 + 0.2 * fold / 5, -2)]
            easel.fill(shape, tone(cloth, 0.65 + 0.3 * (fold % 2)))
    else:
        easel.fill(ellipse(0.3, 0.6, 0.6), tone(paint("gold", rng), 1.2))
        easel.fill(ellipse(0.3, 0.54, 0.54), tone(paint("gold", rng), 0.95))


def _draw_bust(pen: Pen, skin: Colour, cloth: Colour, trim: Colour, rng: np.random.Generator) -> None:
    width = rng.uniform(0.75, 0.95)
    pen.fill(outline(np.array([0.17, 0.12, 0.12]), np.array([-0.5, -0.25, 0.1])), tone(skin, 0.75))
    heights = np.array([-2.6, -1.0, -0.62, -0.45, -0.36, -0.3])
    pen.solid(outline(width * np.array([1.05, 1.0, 0.86, 0.62, 0.36, 0.2]), heights), cloth, 0.5)
    kind = rng.integers(4)
    if kind == 0:
        pen.solid([(-0.2, -0.28), (0.2, -0.28), (0, -0.72)], skin, 0.2)
    elif kind == 1:
        for x in np.linspace(-0.3, 0.3, 9):
            pen.solid(ellipse(-0.3 - 0.06 * np.cos(x * 5), 0.055, 0.09) + (x, 0), (0.96, 0.94, 0.88), 0.2)
    elif kind == 2:
        pen.fill([(-0.22, -0.3), (0.22, -0.3), (0.1, -0.5), (0.1, -3), (-0.1, -3), (-0.1, -0.5)], tone(trim, 0.9))
        pen.dots([(0, -0.6 - 0.17 * i) for i in range(5)], 0.035, tone(trim, 1.5))
    else:
        pen.solid([(-0.26, -0.3), (0.26, -0.3), (0.2, -0.46), (-0.2, -0.46)], trim, 0.2)
    if kind in (0, 3) and rng.random() < 0.6:
        x = np.linspace(-0.24, 0.24, 9)
        pen.dots(np.column_stack([x, -0.5 + 1.8 * x**2]), 0.032, tone(paint("cream", rng), 1.1), 1)


def _draw_face(pen: Pen, skin: Colour, hair: Colour, half: float, rng: np.random.Generator) -> None:
    eye, dark, gap = rng.uniform(0.3, 0.34), tone(hair, 0.6), half * rng.uniform(0.4, 0.46)
    blush = tuple(0.65 * part + 0.35 * rose for part, rose in zip(skin, (0.95, 0.35, 0.3), strict=True))
    pen.dots([(-half * 0.55, 0.16), (half * 0.55, 0.16)], 0.075, tone(blush, 1.05))
    pen.dots([(-gap, eye), (gap, eye)], 0.056, (246, 242, 232), 0.6)
    pen.dots([(-gap, eye), (gap, eye)], 0.031, (44, 32, 28), 1)
    brow = np.array([(-0.09, 0.0), (0, 0.035), (0.09, 0.0)]) + (0, eye + rng.uniform(0.075, 0.1))
    pen.lines([brow - (gap, 0), brow + (gap, 0)], dark, 0.026)
    side = rng.choice((-1, 1))
    pen.lines([[(0.02 * side, eye - 0.02), (0.06 * side, 0.15), (-0.01 * side, 0.13)]], tone(skin, 0.62), 0.022)
    lips, smile = tone(pigment((2, 0.62, 0.68), rng), 0.95), rng.uniform(-0.01, 0.035)
    pen.fill([(-0.09, 0.02 + smile), (-0.02, 0.04), (0.02, 0.04), (0.09, 0.02 + smile), (0, -0.025)], lips)
    pen.lines([[(-0.1, 0.02 + smile), (0, 0.008), (0.1, 0.02 + smile)]], tone(skin, 0.45), 0.014)


def _draw_hat(pen: Pen, half: float, lean: float, rng: np.random.Generator) -> None:
    colour, kind = paint(rng.choice(CLOTHES), rng), rng.integers(4)
    if kind == 0:
        pen.solid(ellipse(0.66, half * 1.5, 0.16) + (lean + 0.08, 0), colour)
    elif kind == 1:
        pen.solid(outline(half * np.array([0.95, 0.85, 0.9]), np.array([0.58, 0.85, 1.05]), lean), colour, 0.3)
        pen.solid(ellipse(0.58, half * 1.7, 0.07) + (lean, 0), colour, 0.2)
    elif kind == 2:
        points = [(-1, 0.56), (-1.1, 0.86), (-0.55, 0.7), (0, 0.92), (0.55, 0.7), (1.1, 0.86), (1, 0.56)]
        pen.solid(np.array(points) * (half, 1) + (lean, 0), paint("gold", rng), 0.2)
    else:
        pen.solid(
            np.concatenate([arc(np.pi, 13) * (half * 1.15, 0.34), [(-half * 1.15, -0.05), (half * 1.15, -0.05)]])
            + (lean, 0.52),
            colour,
        )
        pen.dots([(lean, 0.9)], 0.06, tone(colour, 1.4), 1)


# ---- landscape


def draw_landscape(easel: Easel, rng: np.random.Generator) -> None:
    """A sky with a sun or clouds, ranges of hills, water or fields, and trees, a house or a boat."""
    skies = (
        ((210, 0.55, 0.85), (40, 0.25, 0.98)),
        ((268, 0.35, 0.55), (24, 0.7, 0.98)),
        ((190, 0.3, 0.82), (60, 0.2, 0.95)),
        ((222, 0.55, 0.42), (205, 0.35, 0.75)),
    )
    high, low = (pigment(hsv, rng) for hsv in skies[rng.integers(len(skies))])
    horizon = rng.uniform(-0.25, 0.15)
    easel.wash(tone(high, 1), tone(low, 1), easel.tall, horizon - 0.1)
    sun = (rng.uniform(-0.7, 0.7) * easel.wide, rng.uniform(horizon + 0.3, 0.8 * easel.tall))
    for size, lift in ((0.26, 1.25), (0.18, 1.5)):
        easel.dots([sun], size, tone(low, lift), 1)
    easel.dots([sun], 0.12, tone(pigment((44, 0.45, 0.99), rng), 1.1), 1)
    for x, y in rng.uniform((-easel.wide, horizon + 0.3), (easel.wide, easel.tall), (rng.integers(1, 5), 2)):
        puffs = np.column_stack([np.linspace(-0.2, 0.2, 5), 0.03 * rng.standard_normal(5)]) + (x, y)
        easel.dots(puffs, 0.1, tone(low, 1.65), 0.55)
        easel.dots(puffs + (-0.02, 0.03), 0.07, tone(low, 1.85), 0.55)
    land = pigment(((95, 0.4, 0.5), (60, 0.5, 0.6), (140, 0.3, 0.45), (32, 0.5, 0.62))[rng.integers(4)], rng)
    layers = int(rng.integers(2, 5))
    for layer in range(layers):
        near = (layer + 1) / layers
        haze = np.array(land) * near + (1 - near) * (np.array(low) * 0.55 + np.array(high) * 0.35)
        line = hills(rng, rng.uniform(0.3, 0.75)) * (0.24 - 0.14 * near) + horizon + 0.26 - 0.36 * near
        easel.ridge(line + 0.018, tone(haze, 0.78))
        easel.ridge(line, tone(haze, 0.8 + 0.25 * near))
    _draw_foreground(easel, rng, horizon - 0.28, land, low)


def _draw_foreground(easel: Easel, rng: np.random.Generator, shore: float, land: Colour, low: Colour) -> None:
    kind = rng.integers(3)
    wet, scale = rng.random() < 0.45, rng.uniform(0.7, 1.2)
    place = rng.uniform(-0.6, 0.6) * easel.wide
    if wet:
        water = np.array(low) * 0.5 + np.array((0.25, 0.45, 0.6)) * 0.5
        easel.wash(tone(water, 1.1), tone(water, 0.7), shore, -easel.tall - 0.05)
        for x, y in rng.uniform((-easel.wide, -easel.tall), (easel.wide, shore), (26, 2)):
            easel.lines([[(x - 0.09, y), (x + 0.09, y)]], tone(water, 1.35), 0.012)
        _draw_boat(easel.moved(place, shore - 0.22, scale), rng)
    else:
        for row in range(4):
            line = hills(rng, 0.3) * 0.05 + shore - 0.02 - row * (easel.tall + shore) / 4
            easel.ridge(line, tone(land, (0.92, 1.12, 0.85, 1.02)[row]))
        _draw_house(easel.moved(place, shore - 0.04, scale), rng)
    for depth in np.sort(rng.uniform(0.05, 0.5, rng.integers(2, 6))):
        x = rng.uniform(-easel.wide, easel.wide)
        # Trees stand beside what the picture is about, and on dry land.
        x = x if abs(x - place) > 0.4 else place + np.copysign(rng.uniform(0.4, 0.8), x - place)
        tree = easel.moved(x, shore - (0.02 if wet else depth), (0.5 + depth) * rng.uniform(0.9, 1.3))
        _draw_tree(tree, kind, pigment((100 + rng.uniform(-45, 25), 0.45, 0.4), rng), rng)


def _draw_boat(pen: Pen, rng: np.random.Generator) -> None:
    pen.solid([(-0.26, 0.06), (0.26, 0.06), (0.16, -0.06), (-0.18, -0.06)], paint("rust", rng), 0.3)
    sail = paint(rng.choice(("cream", "scarlet", "white")), rng)
    pen.solid([(-0.02, 0.1), (-0.02, 0.62), (0.24, 0.12)], sail, 0.2)
    pen.solid([(-0.06, 0.1), (-0.06, 0.5), (-0.2, 0.12)], paint("cream", rng), 0.2)


def _draw_house(pen: Pen, rng: np.random.Generator) -> None:
    wall = paint("cream", rng)
    pen.solid([(-0.16, -0.1), (0.16, -0.1), (0.16, 0.12), (-0.16, 0.12)], wall, 0.1)
    pen.solid([(-0.2, 0.12), (0.2, 0.12), (0, 0.3)], paint(rng.choice(("rust", "slate", "scarlet")), rng), 0.1)
    pen.fill([(-0.03, -0.1), (0.05, -0.1), (0.05, 0.03), (-0.03, 0.03)], tone(wall, 0.35))


def _draw_tree(pen: Pen, kind: int, leaf: Colour, rng: np.random.Generator) -> None:
    pen.fill([(-0.03, -0.1), (0.03, -0.1), (0.02, 0.25), (-0.02, 0.25)], (84, 60, 44))
    if kind == 0:
        pen.solid(outline(np.array([0.04, 0.11, 0.1, 0.06, 0.0]), np.array([0.0, 0.15, 0.4, 0.65, 0.85])), leaf)
    elif kind == 1:
        pen.solid(closed(0.23 + 0.03 * rng.standard_normal(14)) + (0, 0.36), leaf)
    else:
        for y, half in ((0.05, 0.24), (0.22, 0.19), (0.4, 0.13)):
            pen.solid([(-half, y), (half, y), (0, y + 0.34)], leaf, 0.1)
