"""An invented fungarium: a small tree of made-up fungi, what each of them looks like, and photographs of them.

Every name below is invented and every picture is procedural. Nothing here tells anything about a real fungus, least of
all whether it can be eaten. Traits are inherited down the tree: a line gives its own traits and passes them on to all
lines indented below it, so that upper levels differ in body plan and lower levels in colour, marks and proportions.
"""

import dataclasses
import re
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from demo.shapes import TURN, Colour, Pen, arc, clouds, develop, ellipse, outline, paint, points, steps, tone

LEVELS = ("phylum", "class", "order", "family", "genus", "species")

# One space of indent a level; "key=value" sets a trait for a node and all below it; bars start the species.
TREE = """
Tectomycota
 Umbellomycetes plan=mushroom
  Brolliales under=gills
   Brolliaceae cap=convex ring=1 bulb=.08
    Brollia width=.72 height=.62 | rubrifex main=scarlet spots=11 second=white
     | nocturna main=violet spots=11 second=lilac | tigrina main=orange spots=16 mark=dark second=cream
    Sombrella cap=flat width=.9 height=.5 stem=.09 | pallida main=cream second=white zone=.4 accent=tan
   Fezziaceae cap=cone width=.52 height=.8 stem=.1
    Fezzia | acuta main=slate second=white | lilacina main=lilac second=white
    Pixiola cap=umbo width=.5 height=.6 stem=.05 group=3 | caerulea main=azure second=slate
     | mellea main=ochre second=rust | vesperis main=rose second=white
  Tubicinales plan=funnel > Tubicinaceae > Tubicina width=.75 stem=.13 | aurea main=gold second=orange
     | fumosa main=slate second=black
  Bunniales under=pores > Bunniaceae cap=convex width=.8 height=.55 stem=.26 bulb=.12
    Bunnia | crustata main=brown second=cream | olivina main=olive second=gold | sanguinea main=brown second=scarlet
    Crumpetta cap=flat height=.6 stem=.2 bulb=0 ring=1 | tosta main=ochre second=tan zone=.5 accent=brown
     | butyracea main=gold second=cream
 Balconimycetes plan=bracket
  Balconiales > Balconiaceae
    Balconia tiers=1 thick=.32 zone=2 | ferruginea main=rust second=tan | nigrescens main=slate second=white
    Verandina tiers=2 thick=.1 zone=4 | zonata main=brown second=cream | virens main=teal second=cream
  Ruffliales > Ruffliaceae > Rufflia tiers=4 thick=.08 frill=.14 zone=1 | sulphurata main=gold second=orange
Poculomycota
 Poculimycetes plan=cup > Gobletiales
   Gobletiaceae stalk=.6 depth=.6 width=.6
    Gobletia | coccinea main=white second=scarlet | aurantia main=cream second=orange
    Thimblea width=.45 depth=.8 fringe=26 group=2 | ciliata main=brown second=gold
   Saucerellaceae stalk=0 depth=.4 width=.9
    Saucerella | azurea main=slate second=azure | guttata main=brown second=gold spots=9 mark=dark
    Ruchea frill=.12 group=3 width=.62 | vinosa main=rust second=violet
 Favimycetes plan=morel
  Waffeliales > Waffeliaceae stem=.2
    Waffelia cap=cone height=1.1 width=.45 | crispa main=ochre second=cream | fuliginea main=slate second=white
    Skepella cap=round height=.85 width=.58 | mellita main=gold second=white
  Saddleriales plan=saddle > Saddleriaceae > Saddlera stem=.14 | atrata main=black second=slate
     | cremea main=cream second=white
Fruticomycota
 Chandelimycetes plan=coral
  Chandeliales > Chandeliaceae
    Chandelia forks=4 spread=.42 stem=.085 | aurea main=gold second=orange | violacea main=violet second=lilac
     | roseipes main=cream second=rose
    Antlerina forks=3 spread=.62 stem=.11 | flammea main=orange second=scarlet
  Wandiales plan=club > Wandiaceae
    Wandia stem=.05 group=6 | lutea main=gold second=gold | nigripes main=black second=white
    Skittlia stem=.14 group=3 | ochracea main=ochre second=tan
 Globomycetes plan=ball
  Dumpliniales > Dumpliniaceae
    Dumplinia width=.8 | nivea main=white second=cream | verrucosa main=tan second=brown spots=26 mark=dark
    Muffinia width=.62 stalk=.5 spots=16 | pusilla main=ochre second=cream
  Twinkleales > Twinkleaceae > Twinklea width=.5 rays=6 | hexas main=tan second=brown
     | dodecas main=slate second=tan rays=11
"""
# The traits, and what they are where the tree does not say; lengths are in specimen units (a specimen spans -1 to 1
# both ways). `main` is the colour of a cap, shelf, outside of a cup or branches, `second` that of a stem, lining,
# tips or bands, `accent` that of the middle of a zoned cap; `under` gills or pores; `width` and `stem` are half of
# them; `bulb` is how much thicker a stem is at its foot; `zone` the size of a differing middle of a cap or the number
# of bands of a shelf; `frill` the waviness of a margin; `fringe` the number of hairs on the rim of a cup; `spread` the
# angle between branches in radians; `group` how many bodies stand together, about.
TRAITS = """
plan=mushroom main=tan second=cream accent=brown cap=convex under=gills mark=light width=.7 height=.6 stem=.13 bulb=0
ring=0 spots=0 zone=0 frill=0 fringe=0 depth=.5 stalk=0 tiers=1 thick=.1 forks=3 spread=.5 rays=0 group=1
"""


def _traits(text: str) -> dict[str, str | float]:
    pairs = (setting.split("=") for setting in text.split())
    return {key: value if value.isalpha() else float(value) for key, value in pairs}


Look = dataclasses.make_dataclass("Look", _traits(TRAITS), frozen=True)


class Species(NamedTuple):
    """A leaf of the tree: its six names from phylum to species, and its look."""

    names: tuple[str, ...]
    look: Look


@cache
def all_species() -> tuple[Species, ...]:
    """Read TREE; species come in the order of the tree, and species names are binomials ("Genus epithet")."""
    species: list[Species] = []
    path: list[tuple[str, dict]] = [("", _traits(TRAITS))]
    for line in re.sub(r"\n +\|", " |", TREE.strip()).splitlines():
        nodes, *epithets = line.split("|")
        for depth, node in enumerate(nodes.split(" > "), len(line) - len(line.lstrip()) + 1):
            name, _, settings = node.strip().partition(" ")
            path[depth:] = [(name, path[depth - 1][1] | _traits(settings))]
        for epithet in epithets:
            name, _, settings = epithet.strip().partition(" ")
            names = (*(above for above, _ in path[1:]), f"{path[-1][0]} {name}")
            species.append(Species(names, Look(**path[-1][1] | _traits(settings))))
    return tuple(species)


# ---- bodies: a function a plan, which gets a pen, the look of the body and its two colours


def _stem(pen: Pen, half: float, bulb: float, top: float, colour: Colour, bend: float) -> None:
    """A stem of the given half thickness from the ground (y = -0.95) to y = top, thicker by `bulb` at its foot."""
    t = steps(0, 1, 7)
    half = half * (1.1 - 0.2 * t) + bulb * np.exp(-((t / 0.22) ** 2))
    middle, y = bend * np.sin(np.pi * t), -0.95 + (top + 0.95) * t
    pen.fill(outline(half + 0.03, y, middle), tone(colour, 0.48))
    pen.fill(outline(half, y, middle), tone(colour, 0.78))
    pen.fill(outline(half * 0.62, y, middle - 0.2 * half), tone(colour, 0.98))


def _spots(pen: Pen, look: Look, main: Colour, x: np.ndarray, y: np.ndarray) -> None:
    """Spots at the given points, lighter or darker than the main colour."""
    pen.dots(points(x, y), 0.055, tone(main, 0.42) if look.mark == "dark" else (250, 244, 226))


def _cap(look: Look, x: np.ndarray) -> np.ndarray:
    """Points on the outline of a cap at x in -1..1 of its half width."""
    y = {
        "cone": lambda: 1 - np.abs(x) ** 1.25,
        "flat": lambda: 0.55 * (1 - np.abs(x) ** 5),
        "umbo": lambda: 0.5 * np.sqrt(1 - x**2) + 0.5 * np.exp(-((x / 0.2) ** 2)) * (1 - x**2),
    }.get(look.cap, lambda: np.sqrt(1 - x**2))()
    return points(look.width * x, 0.85 - look.height + look.height * y)


def _mushroom(pen: Pen, look: Look, main: Colour, second: Colour, rng: np.random.Generator) -> None:
    width, base, tilt = look.width, 0.85 - look.height, rng.uniform(0.1, 0.26)
    pen.solid(_cap(look, steps(-1, 1, 25)), main)
    if look.zone:
        pen.fill(_cap(look, look.zone * steps(-1, 1, 25)) - (0, 0.02), tone(paint(look.accent, rng), 0.95))
    x, y = _cap(look, rng.uniform(-0.85, 0.85, int(look.spots))).T
    _spots(pen, look, main, x, base + (y - base) * rng.uniform(0.25, 0.88, len(x)))
    pen.solid(ellipse(base, width, width * tilt), second, 0)
    rim = ellipse(base, width * 0.94, width * tilt * 0.9, 22)
    if look.under == "gills":
        pen.lines(np.stack(np.broadcast_arrays((0, base), rim), 1), tone(second, 0.58), 0.012)
    else:
        pen.dots(np.concatenate([rim[::2], (rim[::2] + (0, base)) / 2]), 0.035, tone(second, 0.6))
    bend = rng.normal(0, 0.05)
    _stem(pen, look.stem, look.bulb, base, second, bend)
    if look.ring:
        skirt = outline(look.stem * np.array([1.9, 1.4, 1.0]), base - np.array([0.3, 0.18, 0.1]), bend)
        pen.solid(skirt, second, 0.2)


def _funnel(pen: Pen, look: Look, main: Colour, second: Colour, rng: np.random.Generator) -> None:
    t, tilt = steps(0, 1, 9), rng.uniform(0.2, 0.34)
    half, y = look.stem + (look.width - look.stem) * t**2.2, -0.95 + 1.55 * t
    pen.solid(outline(half, y), second, 0.3)
    pen.lines([points(x * half[3:], y[3:]) for x in steps(-0.9, 0.9, 11)], tone(second, 0.58), 0.016)
    rim = ellipse(0, look.width, look.width * tilt, 26)
    rim[:, 0] *= 1 + 0.06 * np.sin(5 * steps(0, TURN, 26) + rng.uniform(0, 6))
    pen.solid(rim + (0, 0.6), main, 0.2)
    pen.fill(rim * 0.5 + (0, 0.58), tone(main, 0.6))


def _bracket(pen: Pen, look: Look, main: Colour, second: Colour, rng: np.random.Generator) -> None:
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
        fan = points(radius * np.cos(turn) * 1.1, radius * np.sin(turn) * rng.uniform(0.32, 0.42))
        pen.solid(fan + anchor - (0, look.thick), second, 0)
        pen.solid(fan + anchor, main, 0.2)
        for band in range(int(look.zone)):
            pen.fill(fan * (0.9 - 0.8 * band / look.zone) + anchor, tone(second, 0.9))
            pen.fill(fan * (0.9 - 0.8 * (band + 0.45) / look.zone) + anchor, tone(main, 0.95))


def _ball(pen: Pen, look: Look, main: Colour, second: Colour, rng: np.random.Generator) -> None:
    width, middle, rays = look.width, -0.2 + 0.4 * look.stalk, int(look.rays)
    for turn in (np.arange(rays) + rng.uniform(0, 1)) * TURN / max(rays, 1):
        along, across = np.array([np.cos(turn), np.sin(turn)]), 1.5 / rays * np.array([-np.sin(turn), np.cos(turn)])
        ray = np.array([0.3 * along - across, 0.75 * along - across, 1.15 * along, 0.75 * along + across])
        pen.solid(ray * (1, 0.6) - (0, 0.3), second, 0.2)
    if look.stalk:
        _stem(pen, 0.5 * width, 0.0, middle, second, 0.0)
    pen.solid(ellipse(middle, width, width * 0.92), main)
    turn, reach = rng.uniform(0, TURN, int(look.spots)), 0.85 * width * np.sqrt(rng.uniform(0, 1, int(look.spots)))
    _spots(pen, look, main, reach * np.cos(turn), middle + reach * np.sin(turn))
    pen.dots([(0, middle + 0.72 * width)], 0.09, tone(main, 0.4), 0.6)


def _cup(pen: Pen, look: Look, main: Colour, second: Colour, rng: np.random.Generator) -> None:
    width, tilt, top = look.width, rng.uniform(0.3, 0.5), -0.75 + look.stalk + look.depth
    if look.stalk:
        _stem(pen, 0.1, 0.0, top - 0.8 * look.depth, main, rng.normal(0, 0.05))
    pen.solid(arc(np.pi, 15) * (width, -look.depth) + (0, top), main, 0.4)
    rim = ellipse(0, width, width * tilt, 28)
    rim *= 1 + look.frill * np.sin(7 * steps(0, TURN, 28) + rng.uniform(0, 6))[:, None]
    if look.fringe:
        pen.lines(np.stack([rim, rim * (1.22, 1.5)], 1) + (0, top), tone(main, 0.45), 0.03)
    pen.solid(rim + (0, top), main, 0)
    for size, drop, factor in ((0.9, 0, 1.0), (0.7, 0.03, 0.84), (0.45, 0.05, 0.66)):
        pen.fill(rim * size + (0, top - drop), tone(second, factor))
    turn = rng.uniform(0, TURN, int(look.spots))
    _spots(pen, look, main, np.cos(turn) * 0.62 * width, tilt * np.sin(turn) * 0.62 * width + top)


def _morel(pen: Pen, look: Look, main: Colour, second: Colour, rng: np.random.Generator) -> None:
    t, base = steps(0, 1, 13), 0.95 - look.height
    _stem(pen, look.stem, look.bulb, base + 0.2, second, rng.normal(0, 0.04))
    bulge = np.sin(np.pi * (0.12 + 0.88 * t)) if look.cap == "round" else (1 - t**1.6) * (0.75 + 0.6 * t)
    half = look.width * np.maximum(bulge, 0)
    pen.solid(outline(half, base + look.height * t), main)
    for at in (steps(0, 5, 6) + 0.6) / 6:
        reach = np.interp(at, t, half)
        count = max(1, round(reach / 0.13))
        x = (np.arange(count) - (count - 1) / 2 + rng.normal(0, 0.1)) * 2 * reach / (count + 0.4)
        pen.dots(points(x, base + look.height * at), 0.075, tone(main, 0.42), 1.15)


def _saddle(pen: Pen, look: Look, main: Colour, second: Colour, rng: np.random.Generator) -> None:
    _stem(pen, look.stem, look.bulb, 0.3, second, rng.normal(0, 0.05))
    lobe = [(0, 0.05), (0.25, 0.4), (0.55, 0.55), (0.75, 0.3), (0.78, -0.1), (0.55, -0.4), (0.3, -0.3), (0.15, -0.2)]
    for side, size in zip((1, -1), rng.uniform(0.75, 1.05, 2), strict=True):
        pen.solid(np.array(lobe) * (side * size, size) + (0, 0.35), main)


def _coral(pen: Pen, look: Look, main: Colour, second: Colour, rng: np.random.Generator) -> None:
    start, angle, length = np.tile((0.0, -0.95), (3, 1)), rng.normal((-0.55, 0, 0.55), 0.08), 2 / (look.forks + 0.6)
    layers = []
    for _ in range(int(look.forks)):
        end = start + length * points(np.sin(angle), np.cos(angle))
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


def _club(pen: Pen, look: Look, main: Colour, second: Colour, rng: np.random.Generator) -> None:
    count, t = max(2, int(look.group) + int(rng.integers(-1, 2))), steps(0, 1, 9)
    half = look.stem * (0.7 + 0.8 * t) * np.sqrt(1 - t**6 * 0.98)
    for x in rng.permutation(steps(-0.5, 0.5, count)):
        middle = 0.5 * x + (x * 0.5 + rng.normal(0, 0.08)) * t**2
        finger = outline(half, -0.95 + rng.uniform(1.1, 1.8) * t, middle)
        pen.solid(finger, main, 0.3)
        pen.fill(finger[6:12], tone(second, 0.95))


PLANS = {
    plan.__name__[1:]: plan for plan in (_mushroom, _funnel, _bracket, _ball, _cup, _morel, _saddle, _coral, _club)
}


# ---- photographs: backgrounds, pose, light and grain around the bodies

MIN_SIDE, MAX_SIDE = 72, 160  # of a picture, in pixels
TILE = 420  # side of the stored backgrounds, of which pictures are crops


def make_tile(ground: str, rng: np.random.Generator) -> Image.Image:
    """A square of background with TILE pixels a side, to be cropped."""
    base, strength, count, length = {  # base colour, strength of the mottling, number and length of strokes or grains
        "soil": ((104, 80, 60), 9, 260, 9),
        "grass": ((88, 122, 58), 9, 1500, 46),
        "moss": ((84, 96, 44), 9, 2600, 8),
        "paper": ((232, 224, 204), 1.5, 90, 16),
    }[ground]
    field = sum(clouds(rng, cells, TILE, TILE) for cells in (6, 18, 60, 140))
    image = Image.fromarray(np.clip(np.array(base) + strength * field[..., None], 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    places, shades = rng.uniform(0, TILE, (count, 2)).tolist(), rng.uniform(0.65, 1.35, count).tolist()
    for (x, y), shade, turn in zip(places, shades, rng.normal(0, 0.4, count).tolist(), strict=True):
        colour = tone([channel / 255 for channel in base], min(shade, 1.15) if ground != "paper" else 0.97)
        if ground in ("soil", "moss"):
            draw.ellipse((x, y, x + length * shade, y + length * 0.8 * shade), colour)
        else:
            reach = (x, y, x + length * np.sin(turn), y - length * np.cos(turn))
            draw.line(reach, colour, 1 + 2 * (ground == "grass"))
    return image


class Studio:
    """Photographs specimens; keeps the backgrounds and the film grain that all pictures of one seed share."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng([seed, 7])
        self.tiles = [
            (ground, make_tile(ground, rng)) for ground in ("soil", "grass", "moss", "paper") for _ in range(2)
        ]
        self.grain = rng.standard_normal((320, 320 * 3), dtype=np.float32)

    def picture(self, look: Look, rng: np.random.Generator) -> Image.Image:
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


def _pose(canvas: Image.Image, look: Look, ground: str, rng: np.random.Generator) -> None:
    """Draw one to a few bodies, turned, scaled and placed at random, and what stands in front of them."""
    size = np.array(canvas.size)
    unit = size.min() * rng.uniform(0.34, 0.48)
    spare = np.maximum(size / 2 - unit * 0.95, 0) + 0.03 * size.min()
    angle, mirror = rng.normal(0, 0.5 if ground == "paper" else 0.2), rng.choice((-1, 1))
    cosine, sine = np.cos(angle), np.sin(angle)
    matrix = unit * np.array([[mirror * cosine, mirror * sine], [sine, -cosine]])
    pen = Pen(ImageDraw.Draw(canvas), size / 2 + rng.uniform(-1, 1, 2) * spare, matrix)
    if look.plan != "bracket":
        shadow = pen.pixels(ellipse(-0.92, 0.8, 0.14)).ravel().tolist()
        ImageDraw.Draw(canvas, "RGBA").polygon(shadow, (20, 16, 10, 90))
    main, second = paint(look.main, rng), paint(look.second, rng)
    varied = ("width", "height", "stem", "depth", "thick", "spots")
    count = 1
    if look.plan not in ("bracket", "coral", "club"):  # solitary species stand alone or in pairs, the others in groups
        alone = look.group == 1
        count = 1 + int(rng.random() < 0.2) if alone else max(1, int(look.group) + int(rng.integers(-1, 2)))
    bodies = [pen]
    if count > 1:
        places = 1.2 * steps(-0.5, 0.5, count) + rng.normal(0, 0.08, count)
        scales, heights = rng.uniform(0.62, 0.88, count), rng.normal(0, 0.04, count)
        bodies = [pen.moved(x, 0.95 * (s - 1) + y, s) for x, y, s in zip(places, heights, scales, strict=True)]
    for body in bodies:
        # Proportions and the number of spots differ from body to body.
        factors = zip(varied, rng.normal(1, 0.1, len(varied)).tolist(), strict=True)
        own = dataclasses.replace(look, **{name: getattr(look, name) * factor for name, factor in factors})
        PLANS[look.plan](body, own, main, second, rng)
    blades = {"grass": 0.5, "moss": 0.14}.get(ground, 0)
    if blades and look.plan != "bracket":
        root = points(rng.uniform(-0.9, 0.9, 14), -1.1)
        tip = root + points(rng.normal(0, 0.12, 14), 0.1 + blades * rng.uniform(0.4, 1, 14))
        pen.lines(np.stack([root, tip], 1), tone((0.42, 0.56, 0.26), rng.uniform(0.7, 1.0)), 0.04)
