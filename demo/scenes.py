"""What the invented artworks show: portraits, landscapes, still lifes and ornaments, in flat colour.

What they consist of is in drawings.yaml. A scene is drawn in units of half the short side of its canvas: x runs from
-wide to wide, y (upwards) from -tall to tall.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from demo.shapes import DRAWINGS, TURN, Ink, Pen, paint, points, tone


class Easel(Pen):
    """A pen for a whole canvas, which knows how far the canvas reaches."""

    def __init__(self, canvas: Image.Image) -> None:
        unit, centre = min(canvas.size) / 2, np.array(canvas.size) / 2
        super().__init__(ImageDraw.Draw(canvas), centre, unit * np.array([[1.0, 0], [0, -1]]))
        self.canvas, (self.wide, self.tall) = canvas, (centre / unit).tolist()

    def wash(self, top: Ink, bottom: Ink, upper: float, lower: float) -> None:
        """A soft change of colour from y = upper down to y = lower, over the whole width."""
        first, last = (round(float(self.pixels((0, y))[1])) for y in (upper, lower))
        column = Image.fromarray(np.array([[top], [bottom]], np.uint8))
        size = (self.canvas.width, max(1, last - first))
        self.canvas.paste(column.resize(size, Image.Resampling.BILINEAR), (0, first))

    def ridge(self, heights: Sequence[float], colour: Ink) -> None:
        """All below a line of heights (equally spaced from left to right)."""
        line = points(np.linspace(-self.wide, self.wide, len(heights)), heights)
        self.fill([*line, (self.wide, -self.tall - 0.1), (-self.wide, -self.tall - 0.1)], colour)


CLOTH = "scarlet|rust|olive|teal|azure|violet|slate|gold|rose|brown"
PERSON = {"skin": "ivory|almond|umber|sienna", "hair": "black|brown|chestnut|ochre|slate", "cloth": CLOTH}
PERSON |= {"trim": CLOTH, "hat": CLOTH, "wall": "olive|teal|slate|ochre|rust|azure|tan"}
SKIES = (("azure", "haze"), ("dusk", "dawn"), ("morning", "haze"), ("night", "azure"))  # above and at the horizon


def draw_portrait(easel: Easel, rng: np.random.Generator) -> None:
    """A head and shoulders before a niche, a window, a curtain or a halo."""
    colours = {name: paint(choices, rng) for name, choices in PERSON.items()}
    colours["blush"] = np.array(colours["skin"]) * 0.65 + (0.33, 0.12, 0.1)
    easel.wash(tone(colours["wall"], 1.1), tone(colours["wall"], 0.65), easel.tall, -easel.tall)
    easel.moved(0, 0, (rng.choice((-1, 1)), 1)).drawing("backdrop", rng, **colours)
    size = rng.uniform(0.9, 1.1) * np.array([rng.uniform(0.9, 1.07), 1])
    body = easel.moved(rng.normal(0, 0.06), rng.uniform(-0.1, 0.0), size)
    head = body.moved(rng.normal(0, 0.04), 0)
    face = head.moved(*rng.normal(0, (0.02, 0.012)))
    style = rng.choice(("long", "bun", "short", "bald"))
    parts = [(head, f"behind {style}"), (body, "bust"), (body, "collar"), (head, "head"), (face, "face")]
    parts += [(face, "beard")] if style in ("short", "bald") and rng.random() < 0.5 else []
    parts += [(head, f"before {style}")] + ([(head, "hat")] if rng.random() < 0.45 else [])
    for pen, kind in parts:
        pen.drawing(kind, rng, **colours)


def hills(rng: np.random.Generator, roughness: float, count: int = 48) -> np.ndarray:
    """A smooth or jagged line of heights of about -1 to 1."""
    octaves, x = np.arange(5)[:, None], np.linspace(0, 1, count)
    waves = roughness**octaves * np.sin(TURN * x * 0.7 * 1.9**octaves + rng.uniform(0, TURN, (5, 1)))
    return waves.sum(0) / (1 + roughness)


def draw_landscape(easel: Easel, rng: np.random.Generator) -> None:
    """A sky with a sun and clouds, ranges of hills, water or fields, and trees, a house or a boat."""
    wide, tall, horizon = easel.wide, easel.tall, rng.uniform(-0.25, 0.15)
    high, low = (np.array(paint(name, rng)) for name in SKIES[rng.integers(len(SKIES))])
    easel.wash(tone(high, 1), tone(low, 1), tall, horizon - 0.1)
    easel.moved(rng.uniform(-0.7, 0.7) * wide, rng.uniform(horizon + 0.3, 0.8 * tall)).drawing("sun", rng, low=low)
    for place in rng.uniform((-wide, horizon + 0.3), (wide, tall), (rng.integers(1, 5), 2)):
        easel.moved(*place).drawing("cloud", rng, low=low)
    land, layers = np.array(paint("leaf|olive|teal|ochre", rng)), int(rng.integers(2, 5))
    for near in np.arange(1, layers + 1) / layers:
        haze = land * near + (1 - near) * (low * 0.55 + high * 0.35)
        line = hills(rng, rng.uniform(0.3, 0.75)) * (0.24 - 0.14 * near) + horizon + 0.26 - 0.36 * near
        easel.ridge(line + 0.018, tone(haze, 0.78))
        easel.ridge(line, tone(haze, 0.8 + 0.25 * near))
    wet, shore, place = rng.random() < 0.45, horizon - 0.28, rng.uniform(-0.6, 0.6) * wide
    if wet:
        water = low * 0.5 + np.array((0.25, 0.45, 0.6)) * 0.5
        easel.wash(tone(water, 1.1), tone(water, 0.7), shore, -tall - 0.05)
        waves = rng.uniform((-wide, -tall), (wide, shore), (26, 1, 2)) + [(-0.09, 0), (0.09, 0)]
        easel.lines(waves, tone(water, 1.35), 0.012)
    else:
        for row, factor in enumerate((0.92, 1.12, 0.85, 1.02)):
            easel.ridge(hills(rng, 0.3) * 0.05 + shore - 0.02 - row * (tall + shore) / 4, tone(land, factor))
    middle, kind = (0.22, "boat") if wet else (0.04, "house")
    easel.moved(place, shore - middle, rng.uniform(0.7, 1.2)).drawing(kind, rng)
    forest = rng.choice(("poplar", "oak", "fir"))
    for depth in np.sort(rng.uniform(0.05, 0.5, rng.integers(2, 6))):
        x = rng.uniform(-wide, wide)
        # Trees stand beside what the picture is about, and on dry land.
        x = x if abs(x - place) > 0.4 else place + np.copysign(rng.uniform(0.4, 0.8), x - place)
        tree = easel.moved(x, shore - (0.02 if wet else depth), (0.5 + depth) * rng.uniform(0.9, 1.3))
        tree.drawing(forest, rng, leaf=np.array(paint("leaf|olive|teal", rng)) * 0.85)


def draw_still_life(easel: Easel, rng: np.random.Generator) -> None:
    """Fruit, bowls, bottles, flowers and candles on a table."""
    wall, cloth = paint("olive|teal|slate|ochre|brown|azure|rose", rng), paint("cream|rust|brown|white|azure|tan", rng)
    wide, edge = easel.wide, rng.uniform(-0.4, -0.22)
    easel.wash(tone(wall, 0.72), tone(wall, 1.12), easel.tall, -0.5)
    easel.ridge([edge, edge], tone(cloth, 0.95))
    easel.ridge([edge - 0.02] * 2, tone(cloth, 1.15))
    if rng.random() < 0.5:  # folds
        easel.ridge([-0.86, -0.86], tone(cloth, 0.7))
        easel.lines([[(x, -0.86), (x, -3)] for x in np.arange(-wide, wide, 0.24)], tone(cloth, 0.85), 0.12)
    count, vessels = 2 + round((wide - 1) * 3), rng.permutation(["vase", "bottle", "jug", "candle", "vase", "jug"])
    places = np.linspace(0.4 - wide, wide - 0.4, count) + rng.normal(0, 0.05, count)
    things = [(vessel, x, edge - 0.1) for vessel, x in zip(vessels, places, strict=False)]
    things += [("bowl", rng.uniform(-0.4, 0.4) * wide, edge - 0.32)] if rng.random() < 0.7 else []
    places = rng.permutation(np.linspace(0.25 - wide, wide - 0.25, 5))[: rng.integers(2, 5)]
    things += [("fruit", x, edge - rng.uniform(0.36, 0.5)) for x in places]
    for kind, x, y in things:
        pen = easel.moved(x, y, rng.uniform(0.88, 1.1))
        pen.sketch("E cloth*.6 .26 .06 .1,.01", rng, cloth=cloth)
        pen.drawing(kind, rng)


def draw_ornament(easel: Easel, rng: np.random.Generator) -> None:
    """Tiles, a star mosaic, a rosette, or a border round a medallion."""
    jewels = rng.permutation(["azure", "scarlet", "teal", "gold", "violet", "rust", "olive", "slate"]).tolist()
    colours = {name: paint(jewel, rng) for name, jewel in zip("abcdg", (*jewels[:4], "cream|white|tan"), strict=True)}
    swapped = {**colours, "a": colours["b"], "b": colours["a"]}
    corners, kind = (easel.wide, easel.tall), rng.choice(("tile", "star", "rosette", "medallion"))
    easel.ridge([easel.tall + 0.1] * 2, tone(colours["g"], 1.05))
    if kind in ("tile", "star"):
        side, text = 2 / rng.integers(3, 5), str(rng.choice(DRAWINGS[kind]))
        across, down = (int(np.ceil(half / side)) for half in corners)
        for column, row in itertools.product(range(-across, across + 1), range(-down, down + 1)):
            cell = easel.moved(column * side, row * side, side / 2)
            cell.sketch(text, rng, **(swapped if (column + row) % 2 else colours))
        return
    easel.moved(0, 0, corners).drawing(f"{kind} border", rng, **colours)
    easel.drawing(kind, rng, **colours)


SCENES = {
    "portrait": draw_portrait,
    "landscape": draw_landscape,
    "still life": draw_still_life,
    "ornament": draw_ornament,
}
