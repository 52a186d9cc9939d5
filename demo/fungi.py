"""An invented fungarium: a small tree of made-up fungi, what each of them looks like, and photographs of them.

Every name is invented and every picture is procedural. Nothing here tells anything about a real fungus, least of all
whether it can be eaten. The tree, and the traits that are inherited down it, are in fungi.txt.
"""

import dataclasses
import re
from collections import namedtuple
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from demo.shapes import GRAIN, Colour, Pen, branches, clouds, develop, ellipse, outline, paint, points, tone

LEVELS = ("phylum", "class", "order", "family", "genus", "species")
T, X = np.linspace(0, 1, 25), np.linspace(1, 0, 200)
# Half widths of heads at the heights T, from foot to top.
SHAPES = {
    "convex": np.sqrt(1 - T**2),
    "cone": (1 - T) ** 0.8,
    "flat": (1 - T) ** 0.35,
    "umbo": np.interp(T, 0.5 * np.sqrt(1 - X**2) + 0.5 * np.exp(-((X / 0.2) ** 2)) * (1 - X**2), X),
    "round": np.sin(np.pi * (0.12 + 0.88 * T)),
    "spire": (1 - T**1.6) * (0.75 + 0.6 * T),
    "ball": np.sqrt(1 - (2 * T - 1) ** 2),
    "cup": np.sqrt(1 - (1 - T) ** 2),
    "funnel": 0.17 + 0.83 * T**2.2,
    "finger": (0.5 + 0.5 * T) * np.sqrt(1 - T**6),
    "none": 0 * T,
}
VARIED = ("width", "height", "stem", "thick", "spots")  # differ from body to body
Species = namedtuple("Species", "names look")  # the six names, phylum to species; the look is a dataclass of traits


@cache
def all_species() -> tuple[Species, ...]:
    """Read the tree; species come in its order, and species names are binomials ("Genus epithet")."""
    text = Path(__file__).with_suffix(".txt").read_text(encoding="utf-8")
    found, path, make = [], [("", {})], None
    for line in re.sub(r"\n +([|]|[+] )", r" \1", re.sub("#.*\n", "", text)).replace(" + ", " ").splitlines():
        nodes, *epithets = line.split("|")
        for depth, node in enumerate(nodes.split(" > "), len(line) - len(line.lstrip()) + 1):
            name, _, settings = node.strip().partition(" ")
            path[depth:] = [(name, path[depth - 1][1] | _traits(settings))]
        make = make or dataclasses.make_dataclass("Look", path[1][1], frozen=True)
        for epithet in epithets:
            name, _, settings = epithet.strip().partition(" ")
            names = (*(above for above, _ in path[2:]), f"{path[-1][0]} {name}")
            found.append(Species(names, make(**path[-1][1] | _traits(settings))))
    return tuple(found)


def _traits(text: str) -> dict[str, str | float]:
    pairs = (setting.split("=") for setting in text.split())
    return {key: value if value.isalpha() else float(value) for key, value in pairs}


# ---- bodies


def _stem(pen: Pen, look, top: float, colour: Colour, rng: np.random.Generator) -> None:
    """A stem from the ground (y = -0.95), thicker at its foot, with its ring."""
    t, bend = T[::4], rng.normal(0, 0.05)
    half = look.stem * (1.1 - 0.2 * t) + look.bulb * np.exp(-((t / 0.22) ** 2))
    middle, y = bend * np.sin(np.pi * t), -0.95 + (top + 0.95) * t
    pen.fill(outline(half + 0.03, y, middle), tone(colour, 0.48))
    pen.fill(outline(half, y, middle), tone(colour, 0.78))
    pen.fill(outline(half * 0.62, y, middle - 0.2 * half), tone(colour, 0.98))
    if look.ring:
        pen.solid(outline(look.stem * np.array([1.9, 1.4, 1]), top - np.array([0.3, 0.18, 0.1]), bend), colour, 0.2)


def _body(pen: Pen, look, colours: dict[str, Colour], rng: np.random.Generator) -> None:
    """A head of some shape, closed, open at its top or with gills below, on a stem or not, and the marks on it."""
    main, second, tilt = colours["main"], colours["second"], rng.uniform(0.12, 0.26)
    base, half = look.top - look.height, look.width * SHAPES[look.shape]
    y, top, count = base + look.height * T, pen.moved(0, look.top), int(look.spots)
    dark = tone(main, 0.42)
    if look.behind != "none":
        top.drawing(look.behind, rng, **colours)
    if look.stem and not look.under:
        _stem(pen, look, base + 0.2 * look.height, colours[look.foot], rng)
    pen.solid(outline(half, y), main)
    if look.ribs:
        pen.lines([points(x * half[6:], y[6:]) for x in np.linspace(-0.9, 0.9, int(look.ribs))], dark, 0.016)
    if look.tip:
        high = look.tip >= 1 - T
        pen.fill(outline(half[high], y[high]), tone(colours["accent"], 0.95))
    for at in (np.arange(look.pits) + 0.6) / (look.pits + 0.3):
        reach = np.interp(at, T, half)
        number = max(1, round(reach / 0.13))
        x = (np.arange(number) - (number - 1) / 2 + rng.normal(0, 0.1)) * 2 * reach / (number + 0.4)
        pen.dots(points(x, base + look.height * at), 0.075, dark, 1.15)
    which = rng.integers(2, 21, count)
    places = points(rng.uniform(-0.8, 0.8, count) * half[which], y[which])
    if look.under:
        pen.solid(ellipse(base, look.width, look.width * tilt), second, 0)
        rim = ellipse(base, look.width * 0.94, look.width * tilt * 0.9, 22)
        if look.under == 1:
            pen.lines(np.stack(np.broadcast_arrays((0, base), rim), 1), tone(second, 0.58), 0.012)
        else:
            pen.dots(np.concatenate([rim[::2], (rim[::2] + (0, base)) / 2]), 0.035, tone(second, 0.6))
        _stem(pen, look, base, second, rng)
    if look.lining:
        rim = ellipse(0, look.width, look.width * 2 * tilt, 28)
        rim *= 1 + look.frill * np.sin(rng.uniform(0, 6) + np.pi / 2 * np.arange(28))[:, None]
        if look.fringe:
            top.lines(np.stack([rim, rim * (1.22, 1.5)], 1), tone(main, 0.45), 0.03)
        top.solid(rim, main, 0)
        for size, drop, factor in ((0.9, 0, 1.0), (0.7, 0.03, 0.84), (0.45, 0.05, 0.66)):
            top.fill(rim * size - (0, drop), tone(second, factor))
        places = rim[rng.integers(0, 28, count)] * rng.uniform(0.3, 0.7, (count, 1)) + (0, look.top)
    pen.dots(places, 0.055, dark if look.mark == "dark" else (250, 244, 226))
    if look.before != "none":
        top.drawing(look.before, rng, **colours)


def _bracket(pen: Pen, look, colours: dict[str, Colour], rng: np.random.Generator) -> None:
    """Shelves at a trunk."""
    main, second, bark = colours["main"], colours["second"], paint("brown", rng)
    pen.fill([(-3, -4), (-0.5, -4), (-0.42, 4), (-3, 4)], tone(bark, 0.7))
    for x in rng.uniform(-1.6, -0.5, 9):
        pen.lines([[(x, -3), (x + rng.normal(0, 0.05), 0), (x, 3)]], tone(bark, rng.uniform(0.4, 1.1)), 0.04)
    tiers = int(look.tiers + (look.tiers > 2) * rng.integers(-1, 2))
    turn = np.linspace(-1.75, 1.75, 23)
    for height in np.linspace(0.75, -0.65, tiers) if tiers > 1 else [0.0]:
        radius = rng.uniform(0.75, 0.95) * (1 + 0.4 / tiers**1.4)
        radius = radius * (1 + look.frill * np.sin(turn * 9 + rng.uniform(0, 6)))
        fan, shelf = points(1.1 * np.cos(turn), rng.uniform(0.32, 0.42) * np.sin(turn)), pen.moved(-0.5, height)
        fan *= radius[:, None]
        shelf.solid(fan - (0, look.thick), second, 0)
        shelf.solid(fan, main, 0.2)
        for band in np.arange(look.bands):
            shelf.fill(fan * (0.9 - 0.8 * band / look.bands), tone(second, 0.9))
            shelf.fill(fan * (0.9 - 0.8 * (band + 0.45) / look.bands), tone(main, 0.95))


def _coral(pen: Pen, look, colours: dict[str, Colour], rng: np.random.Generator) -> None:
    """Branches that fork again and again."""
    layers = branches(rng, (0, -0.95), (-0.55, 0, 0.55), int(look.forks), look.spread, 2 / (look.forks + 0.6))
    for rim in (0.05, 0):
        for part, layer in zip(np.linspace(0, 1, len(layers)), layers, strict=True):
            width = look.stem * (2.2 - 1.1 * part) + rim
            colour = np.array(colours["main"]) * (1 - part**2) + np.array(colours["second"]) * part**2
            shade = tone(colour, 0.45 if rim else 0.85 + 0.3 * part)
            pen.lines(layer, shade, width)
            pen.dots(layer[:, 1], width / 2, shade, 1)


# ---- photographs: backgrounds, pose, light and grain around the bodies

MIN_SIDE, MAX_SIDE = 72, 160  # of a picture, in pixels
TILE = 420  # side of the stored backgrounds, of which pictures are crops
# Base colour, strength of the mottling, number, length and thickness of strokes or grains (0), height of the blades
# that stand before a body, and how far bodies turn.
GROUNDS = {
    "soil": ((104, 80, 60), 9, 260, 9, 0, 0.0, 0.2),
    "grass": ((88, 122, 58), 9, 1500, 46, 3, 0.5, 0.2),
    "moss": ((84, 96, 44), 9, 2600, 8, 0, 0.14, 0.2),
    "paper": ((232, 224, 204), 1.5, 90, 16, 1, 0.0, 0.5),
}


def make_tile(ground: str, rng: np.random.Generator) -> Image.Image:
    """A square of background with TILE pixels a side, to be cropped."""
    base, strength, count, length, thickness, *_ = GROUNDS[ground]
    field = sum(clouds(rng, cells, TILE, TILE) for cells in (6, 18, 60, 140))
    image = Image.fromarray(np.clip(np.array(base) + strength * field[..., None], 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    places, turns = rng.uniform(0, TILE, (count, 2)).tolist(), rng.normal(0, 0.4, count).tolist()
    for (x, y), shade, turn in zip(places, rng.uniform(0.65, 1.35, count).tolist(), turns, strict=True):
        colour = tone(np.array(base) / 255, min(shade, 1.15) if ground != "paper" else 0.97)
        if thickness:
            draw.line((x, y, x + length * np.sin(turn), y - length * np.cos(turn)), colour, thickness)
        else:
            draw.ellipse((x, y, x + length * shade, y + length * 0.8 * shade), colour)
    return image


class Studio:
    """Photographs specimens; keeps the backgrounds and the film grain that all pictures of one seed share."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng([seed, 7])
        self.tiles = [(ground, make_tile(ground, rng)) for ground in GROUNDS for _ in range(2)]
        self.grain = rng.standard_normal((GRAIN, GRAIN, 3), dtype=np.float32)

    def picture(self, look, rng: np.random.Generator) -> Image.Image:
        """One specimen with this look, in RGB, MIN_SIDE to MAX_SIDE pixels a side."""
        size = rng.integers(MIN_SIDE, MAX_SIDE + 1, 2)
        ground, tile = self.tiles[rng.integers(len(self.tiles))]
        # Drawn at twice the size and then halved, which smooths the edges.
        left, top = rng.integers(0, TILE - 2 * size + 1).tolist()
        canvas = tile.crop((left, top, left + 2 * int(size[0]), top + 2 * int(size[1])))
        _pose(canvas, look, ground, rng)
        image = canvas.reduce(2)
        if rng.random() < 0.4:
            image = image.filter(ImageFilter.BoxBlur(rng.uniform(0.2, 1.0)))
        return develop(image, self.grain, rng, 0.16, 0.13, 12)


def _pose(canvas: Image.Image, look, ground: str, rng: np.random.Generator) -> None:
    """Draw one to a few bodies, turned, scaled and placed at random, and what stands in front of them."""
    *_, blades, turn = GROUNDS[ground]
    size, angle, mirror = np.array(canvas.size), rng.normal(0, turn), rng.choice((-1, 1))
    unit = size.min() * rng.uniform(0.34, 0.48)
    spare = np.maximum(size / 2 - unit * 0.95, 0) + 0.03 * size.min()
    matrix = unit * np.array([[mirror * np.cos(angle), mirror * np.sin(angle)], [np.sin(angle), -np.cos(angle)]])
    pen = Pen(ImageDraw.Draw(canvas), size / 2 + rng.uniform(-1, 1, 2) * spare, matrix)
    plan = {"bracket": _bracket, "coral": _coral}.get(look.shape, _body)
    if plan is not _bracket:
        shadow = pen.pixels(ellipse(-0.92, 0.8, 0.14)).ravel().tolist()
        ImageDraw.Draw(canvas, "RGBA").polygon(shadow, (20, 16, 10, 90))
    colours = {name: paint(getattr(look, name), rng) for name in ("main", "second", "accent")}
    # Solitary species stand alone or in pairs, the others in groups; shelves and corals are groups of their own.
    alone = 1 + int(plan is _body and rng.random() < 0.2)
    count = alone if look.group == 1 else max(2, int(look.group) + int(rng.integers(-1, 2)))
    bodies = [pen]
    if count > 1:
        places = 1.2 * np.linspace(-0.5, 0.5, count) + rng.normal(0, 0.08, count)
        scales, heights = rng.uniform(0.62, 0.88, count), rng.normal(0, 0.04, count)
        leans = 0.3 * places + rng.normal(0, 0.08, count)
        groups = zip(places, 0.95 * (scales - 1) + heights, scales, leans, strict=True)
        bodies = [pen.moved(*group) for group in groups]
    for body in bodies:
        factors = zip(VARIED, rng.normal(1, 0.1, len(VARIED)).tolist(), strict=True)
        own = dataclasses.replace(look, **{name: getattr(look, name) * factor for name, factor in factors})
        plan(body, own, colours, rng)
    if blades and plan is not _bracket:
        root = points(rng.uniform(-0.9, 0.9, 14), -1.1)
        tip = root + points(rng.normal(0, 0.12, 14), 0.1 + blades * rng.uniform(0.4, 1, 14))
        pen.lines(np.stack([root, tip], 1), tone((0.42, 0.56, 0.26), rng.uniform(0.7, 1.0)), 0.04)
