"""Invented artworks and photographs of them: material, frame, point of view, damage, light and grain.

Shapes on an artwork are given in its units: its centre is (0, 0), its long side 1, y points down. What is painted and
what the mask says come from the same coverage (the share of a pixel that a shape covers): a pixel is of the damage
if at least half of it is covered, and damage that comes later overwrites what was there before.
"""

import re
from collections import namedtuple
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFilter

from demo.scenes import SCENES, Easel
from demo.shapes import GRAIN, TURN, Ink, Pen, clouds, develop, paint, points, tone

CANVAS, PADDING = 320, 54  # long side of a painted artwork, and of what is around it on each side, in pixels
MIN_SIDE, MAX_SIDE = 128, 192  # long side of a photograph, in pixels
TILE = CANVAS + 2 * PADDING + 20  # side of the stored textures; what is needed is cut out of them
FINE = 4  # sub-pixels a side from which the coverage of a pixel is counted
THIN = 2.2  # least width of a line, in pixels
BACKGROUND = 255  # in a mask: outside of the artwork

# The classes in the order of their values in a mask, and their colours in its palette.
COLOURS = {
    "Clean": "#deded8", "Material loss": "#d62728", "Peel": "#ff7f0e", "Dust": "#9edae5", "Scratch": "#ff69b4",
    "Hair": "#0000cd", "Dirt": "#8c564b", "Fold": "#ffdd33", "Writing": "#1f77b4", "Cracks": "#8c001e",
    "Staining": "#bcbd22", "Stamp": "#9467bd", "Sticker": "#2ca02c", "Puncture": "#00bea0", "Burn marks": "#402060",
    "Lightleak": "#ff00ff",
}  # fmt: skip
CLASSES = tuple(COLOURS)
FRAMES = {
    "oil": ("gilt", "gilt", "wood", "none"),
    "fresco": ("stone", "none"),
    "paper": ("mat", "scanner", "none"),
    "photograph": ("album", "scanner", "wood"),
}
MATERIALS = tuple(FRAMES)
# What shows where the paint is gone.
GROUNDS = {"oil": (196, 172, 132), "fresco": (214, 208, 198), "paper": (150, 128, 104), "photograph": (240, 236, 226)}
WALLS = ((196, 186, 170), (112, 124, 118), (150, 96, 78), (88, 92, 104), (208, 204, 196), (122, 96, 68))
PRINTS = (  # darkest and lightest tone of a photograph: sepia, silver, blue
    ((58, 36, 22), (246, 228, 196)),
    ((24, 24, 28), (240, 240, 236)),
    ((14, 34, 74), (232, 240, 242)),
)
INKS = ((32, 38, 120), (164, 24, 34), (22, 20, 24), (92, 30, 110))

# How damage occurs and what it looks like, a kind a line (the common ones first): share of the artworks; smallest and
# largest size in units of the long side, most at once, how far it is seen from its place in sizes, and how it is
# turned; the materials that it likes; its shape, in sizes, as `Pen.sketch` draws it ("/" parts what is painted one
# after another, "%" stands between shapes to choose from); and how it is painted: words of `Spot.part`, a colour (a
# glaze after "*") and its strength.
KINDS = """
Dirt | .44 .10 .17 2 1.9 any | oil fresco paper photograph | B w .4 .75 .15 -.9,0 -.45,0 0,0 .45,0 .9,0
  | soft 2.5; all 78,60,38 .7; grit 9 .5 104,84,60 .6; grit 40 .8 40,30,22 .6
Staining | .40 .10 .19 2 2 any | paper fresco photograph | B w 1 1 .11 0,0; B w .2 .55 .1 -1~1,-1~1 -1~1,-1~1
  | all 170,118,58 .22; all *230,194,128 1; rim .1 104,62,26 .75
Cracks | .38 .15 .24 2 3.5 any | oil fresco | crack | all 34,24,18 .88
Material loss | .36 .08 .15 2 2.5 any | oil fresco paper
  | B w 1 1 .22 0,0; B w .2 .45 .25 -1.5~1.5,-1.5~1.5 -1.5~1.5,-1.5~1.5 -1.5~1.5,-1.5~1.5
  | all ground 1; grit 24 .5 120,100,80 .25; weave 40,30,20 .2; edge 2 2 *102,92,82 1; edge -1 -1 255,252,240 .6
Peel | .32 .08 .13 2 2.2 any | oil fresco
  | B w .6 .85 .1 0,0 / B w .6 .85 .1 .9,.75 / B w .6 .85 .1 -.3,1.2 / B w .6 .85 .1 1.1,-.5
  | all 250,244,228 1; edge -1 -1 *140,128,115 1; under .2 62,46,36 1; under .42 128,104,82 1; under .7 186,160,128 1
Dust | .22 .11 .17 2 1.8 any | oil photograph | B w 1 1 .12 0,0; B w .6 .6 .12 -.8~.8,-.8~.8 -.8~.8,-.8~.8
  | soft 2; all 214,210,202 .36; grit 40 1 250,248,242 .9
Scratch | .20 .13 .24 2 2.2 any | photograph oil
  | l w .07 -1.6~-.8,-.1 .8~1.6,.1; l w .07 -1.6~-.6,.1~.4 .6~1.6,.2~.4; l w .07 -1.3~-.6,-.6~-.2 .6~1.3,-.4~-.2
  | all 248,244,234 .9
Fold | .15 .10 .10 2 99 square | paper photograph | l w .4 -20,0 20,0 | all 255,252,240 .8; edge 2 2 *97,87,77 1
Hair | .14 .13 .20 2 3 any | photograph paper | q w .07 -1.3,0 -.5,-2~2 .5,-2~2 1.3,0 /
  q w .07 -1~-.5,.8 -.5,-2~2 .5,-2~2 1.3,-.6~.6 | all 20,15,14 .95
Writing | .14 .22 .32 1 2.6 askew | paper photograph | write | all ink .92
Stamp | .09 .10 .14 1 1.6 askew | paper photograph | E m 1 1 0,0; E w .87 .87 0,0; E m .7 .7 0,0; E w .61 .61 0,0;
  O m .05 .78 14 0,0; S m .5 .2 5 0,0 % P m -1.2,-.75 1.2,-.75 1.2,.75 -1.2,.75; P w -1.1,-.64 1.1,-.64 1.1,.64
  -1.1,.64; l m .1 -.9,-.3 .5~.9,-.3; l m .1 -.9,0 0~.9,0; l m .1 -.9,.3 .5~.9,.3; P w -.66,-.6 -.6,-.6 -.6,.6 -.66,.6;
  P w -.26,-.6 -.2,-.6 -.2,.6 -.26,.6; P w .2,-.6 .26,-.6 .26,.6 .2,.6 | all 232,226,222 .3; all ink .2; mark ink .78
Sticker | .09 .09 .13 1 1.8 askew | paper photograph | P w -1.25,-.8 1.25,-.8 1.25,.8 -1.25,.8; P m -1.1,-.65 1.1,-.65
  1.1,.65 -1.1,.65; P w -1,-.55 1,-.55 1,.55 -1,.55; l m .1 -.7,-.28 .7,-.28; l m .1 -.7,.03 .2~.6,.03; l m .1 -.7,.34
  .3~.7,.34 | all 250,246,232 1; edge -1 -1 *128,122,117 1; mark ink .85
Puncture | .09 .020 .032 1 7 any | paper oil
  | E w 1.5 1.5 0,0 / E w 1.5 1.5 -5~5,-5~5 / E w 1.4 1.4 -5~5,-5~5 / E w 1.6 1.6 -5~5,-5~5
  | all 236,226,204 1; edge -1 -1 *150,140,128 1; core 0 10,8,8 1
Burn marks | .08 .09 .15 1 1.6 any | paper photograph | B w 1 1 .15 0,0
  | soft 1; all 158,84,28 .85; core .16 92,40,14 .9; core .32 18,14,14 .95
Lightleak | .07 .13 .18 1 3.3 edge | photograph | E w 2.2~3.2 .6 0,0
  | soft 3; all 255,122,32 .78; core .18 255,196,84 .8; core .36 255,252,232 .9
"""
Habit = namedtuple("Habit", "share smallest largest most reach turn materials shape effects")  # a line of KINDS
HABITS = {}
for line in re.sub(r"\n +", " ", KINDS.strip()).splitlines():
    kind, numbers, *texts = line.split(" | ")
    *numbers, turn = numbers.split()
    HABITS[kind] = Habit(*map(float, numbers), turn, *texts)


# One damage: what, where, how large, which shape (seed), and from which age on it shows. One photograph of an artwork:
# its age (0..1), and whether all of it is seen.
Damage = namedtuple("Damage", "kind place size seed onset")
Shot = namedtuple("Shot", "age whole seed")


class Artwork(NamedTuple):
    """All that decides how an artwork looks: `shape` is its width by its height."""

    content: str
    material: str
    shape: float
    seed: tuple[int, ...]
    damages: tuple[Damage, ...] = ()
    shots: tuple[Shot, ...] = ()
    name: str = ""

    @property
    def half(self) -> np.ndarray:
        """Half its width and height where the long side is 1."""
        return np.array([min(1.0, self.shape), min(1.0, 1 / self.shape)]) / 2


class Gallery:
    """Paints and photographs artworks; keeps the textures that all of one seed share."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng([seed, 11])
        self.grain = rng.standard_normal((GRAIN, GRAIN * 3), dtype=np.float32)

        y, x = np.indices((TILE, TILE)) * TURN / 4
        weave, fine = np.sin(x) * np.cos(y / 2) + np.sin(y) * np.cos(x / 2), rng.standard_normal((TILE, TILE))
        textures = {
            "oil": 0.045 * weave + 0.015 * fine,
            "fresco": 0.05 * clouds(rng, 12, TILE, TILE) + 0.03 * clouds(rng, 90, TILE, TILE) + 0.025 * fine,
            "paper": 0.035 * clouds(rng, 8, TILE, TILE) + 0.03 * clouds(rng, 200, TILE, TILE),
            "photograph": 0.05 * fine,
            "wall": 0.05 * clouds(rng, 10, TILE, TILE) + 0.05 * clouds(rng, 120, TILE, TILE),
        }
        self.textures = {name: (1 + texture).astype(np.float32)[..., None] for name, texture in textures.items()}

    def paint(self, artwork: Artwork) -> Image.Image:
        """The undamaged artwork in its frame and on its wall; the artwork itself is PADDING away from all sides."""
        rng = np.random.default_rng(artwork.seed)
        canvas = Image.new("RGB", tuple(np.round(2 * CANVAS * artwork.half).astype(int).tolist()), (200, 190, 170))
        SCENES[artwork.content](Easel(canvas), rng)
        if artwork.material == "oil":
            _brush(canvas, rng)
        pixels = self._textured(_finish(np.asarray(canvas, np.float32), artwork.material, rng), artwork.material, rng)
        wall = np.full((*np.add(canvas.size[::-1], 2 * PADDING), 3), WALLS[rng.integers(6)], np.float32)
        surroundings = self._textured(wall, "wall", rng)
        _frame(surroundings, rng.choice(FRAMES[artwork.material]), rng)
        surroundings.paste(pixels, (PADDING, PADDING))
        return surroundings

    def photograph(self, painting: Image.Image, artwork: Artwork, shot: Shot) -> tuple[Image.Image, np.ndarray]:
        """A photograph of what `paint` gave, with its damage, in RGB, and its mask."""
        rng = np.random.default_rng(shot.seed)
        size, view = _view(artwork, shot, rng)
        sheet = Sheet(_project(painting, size, view), view, artwork)
        for damage in artwork.damages:
            sheet.damage(damage, shot.age)
        return develop(sheet.pixels, self.grain, rng, 0.07, 0.08, 4), sheet.mask

    def _textured(self, pixels: np.ndarray, name: str, rng: np.random.Generator) -> Image.Image:
        height, width = pixels.shape[:2]
        y, x = rng.integers(0, TILE - height + 1), rng.integers(0, TILE - width + 1)
        texture = self.textures[name][y : y + height, x : x + width]
        return Image.fromarray(np.clip(pixels * texture, 0, 255).astype(np.uint8))


def _brush(canvas: Image.Image, rng: np.random.Generator, count: int = 900) -> None:
    """Go over the picture with short strokes in its own colours."""
    places = rng.uniform(0, np.array(canvas.size) - 1, (count, 2))
    colours = np.asarray(canvas)[places[:, 1].astype(int), places[:, 0].astype(int)].astype(int)
    colours = np.clip(colours + rng.normal(0, 9, (count, 1)).astype(int), 0, 255)
    angles = rng.uniform(0, TURN) + 1.2 * np.sin(places @ rng.normal(0, 0.02, 2)) + rng.normal(0, 0.3, count)
    reach = points(np.cos(angles), np.sin(angles)) * rng.uniform(2, 5, (count, 1))
    draw = ImageDraw.Draw(canvas)
    strokes = np.concatenate([places - reach, places + reach], 1).tolist()
    for stroke, colour, width in zip(strokes, colours.tolist(), rng.integers(2, 5, count).tolist(), strict=True):
        draw.line(stroke, tuple(colour), width)


def _finish(pixels: np.ndarray, material: str, rng: np.random.Generator) -> np.ndarray:
    """The flat colours as the material shows them."""
    if material == "oil":
        return pixels
    if material == "fresco":
        return pixels * np.float32(0.6) + np.array((86, 76, 58), np.float32)
    if material == "paper":
        border, margin = np.array((246, 238, 218), np.float32) * rng.normal(1, 0.012), rng.uniform(0, 0.05)
        pixels = border * (1 - 0.8 * (1 - pixels / 255))
    else:
        ends = PRINTS[rng.choice(len(PRINTS), p=(0.5, 0.3, 0.2))]
        (dark, border), margin = (np.array(end, np.float32) for end in ends), rng.choice((0, 0.03, 0.045))
        y, x = (np.linspace(-1, 1, length, dtype=np.float32) for length in pixels.shape[:2])
        grey = 0.3 * pixels[..., 0] + 0.59 * pixels[..., 1] + 0.11 * pixels[..., 2]
        grey *= (1 - 0.12 * (x**2 + y[:, None] ** 2)) / 255
        # Contrast, which the flat colours lack without their hues.
        pixels = dark + (border - dark) * np.clip(0.5 + 1.25 * (grey - 0.47), 0, 1)[..., None]
    if (edge := round(CANVAS * margin)) > 3:
        pixels[:edge], pixels[-edge:], pixels[:, :edge], pixels[:, -edge:] = (border,) * 4
    return pixels


def _frame(around: Image.Image, kind: str, rng: np.random.Generator) -> None:
    """Draw what surrounds an artwork, which will be pasted PADDING away from all sides."""
    draw = ImageDraw.Draw(around)

    def ring(distance: float, colour: Ink, shift: int = 0) -> None:
        near, (right, bottom) = PADDING - distance + shift, around.size
        draw.rectangle((near, near, right - 1 - near + 2 * shift, bottom - 1 - near + 2 * shift), colour)

    if kind == "scanner":
        ring(PADDING, ((28, 28, 30), (236, 236, 232))[rng.integers(2)])
    elif kind == "album":
        ring(PADDING, tone(paint("brown", rng), 0.6))
        pen = Pen(draw, np.array(around.size) / 2, np.eye(2))
        corner = np.array(around.size) / 2 - PADDING + 7
        for sign in ((1, 1), (-1, 1), (1, -1), (-1, -1)):
            pen.fill((corner - [(0, 0), (44, 0), (0, 44)]) * sign, (214, 196, 158))
    elif kind == "mat":
        ring(60, (228, 222, 208))
        ring(5, (176, 168, 152))
    elif kind == "none":
        ring(2, (60, 54, 48), 4)
    else:
        base = (0.74, 0.7, 0.64) if kind == "stone" else paint("gold" if kind == "gilt" else "brown", rng)
        if kind != "stone":
            ring(26, (61, 55, 48), 7)
        for distance, factor in ((28, 0.5), (26, 0.95), (20, 1.3), (16, 0.8), (9, 1.05), (4, 0.45)):
            ring(distance, tone(base, factor * (0.8 if kind == "wood" else 1)))


def _view(artwork: Artwork, shot: Shot, rng: np.random.Generator) -> tuple[tuple[int, int], Pen]:
    """The size of a photograph, and the way from artwork units to its pixels.

    It shows all of the artwork, mostly with a margin around it, or a part of it; slightly askew.
    """
    half = artwork.half
    shape = artwork.shape * rng.uniform(0.92, 1.08) if shot.whole else rng.uniform(0.75, 1.33)
    long = int(rng.integers(MIN_SIDE, MAX_SIDE + 1))
    size = np.round((long, long / shape) if shape > 1 else (long * shape, long)).astype(int)
    fit = size / (2 * half)
    scale = fit.min() * rng.uniform(0.84, 1.0) if shot.whole else fit.max() * rng.uniform(1.05, 1.45)
    angle = np.clip(rng.normal(0, 0.04), -0.09, 0.09) * (rng.random() < 0.75)
    slack = np.abs(half * scale - size / 2) * (0.5 if shot.whole else 0.95)
    matrix = scale * turned(np.eye(2), angle)
    return tuple(size.tolist()), Pen(None, size / 2 + rng.uniform(-1, 1, 2) * slack, matrix)


def _project(painting: Image.Image, size: tuple[int, int], view: Pen) -> np.ndarray:
    """The painting in its surroundings, without damage, as the view shows it."""
    # Halved first where it will be seen at about half its size, because the projection looks at few pixels only.
    halved = view.unit < 0.6 * CANVAS
    unit = CANVAS / 2 if halved else CANVAS
    # Image.transform wants the way from the photograph back to the painting.
    inverse = np.linalg.inv(view.matrix) * unit
    offset = np.array(painting.size) * unit / CANVAS / 2 - view.centre @ inverse
    (a, d), (b, e) = inverse.tolist()
    way = (a, b, offset[0], d, e, offset[1])
    source, wall = painting.reduce(2) if halved else painting, painting.getpixel((2, 2))
    seen = source.transform(size, Image.Transform.AFFINE, way, Image.Resampling.BILINEAR, fillcolor=wall)
    return np.array(seen, np.float32)


# ---- damage


class Sheet:
    """A photograph of an artwork, float (height, width, 3), to be damaged, and its mask."""

    def __init__(self, pixels: np.ndarray, view: Pen, artwork: Artwork) -> None:
        self.pixels, self.view, self.artwork = pixels, view, artwork
        self.inside = np.ones(pixels.shape[:2], np.float32)
        whole = Spot(self, (0, 0), 1.0, 9, 0.0)
        cover = whole.draw("P w -1,-1 1,-1 1,1 -1,1", np.random.default_rng(0), artwork.half)
        self.inside = np.where(cover >= 0.5, cover, 0)
        self.mask = np.where(self.inside > 0, 0, BACKGROUND).astype(np.uint8)

    def damage(self, damage: Damage, age: float) -> None:
        """Paint a damage as an artwork of this age (0..1) shows it, and mark it in the mask."""
        if age <= damage.onset:
            return
        habit, rng, place = HABITS[damage.kind], np.random.default_rng(damage.seed), np.array(damage.place)
        # It grows, to its full size at age 1.
        size = damage.size * (0.7 + 0.3 * (age - damage.onset) / (1 - damage.onset))
        turns = {"any": rng.uniform(0, TURN), "askew": rng.normal(0, 0.3)}
        turn = turns.get(habit.turn, rng.normal(0, 0.14))
        turn += rng.integers(0, 2) * TURN / 4 if habit.turn == "square" else 0
        if habit.turn == "edge":
            axis = int(np.argmax(np.abs(place) / self.artwork.half))
            place[axis] = np.copysign(self.artwork.half[axis], place[axis])
            turn += axis * TURN / 4
        spot = Spot(self, place, max(size, 3.4 / self.view.unit), habit.reach, turn)
        if spot.inside.size:
            mask = self.mask[spot.box]
            mask[spot.paint(habit, rng) & (mask != BACKGROUND)] = CLASSES.index(damage.kind)


class Spot:
    """The part of a photograph around the place of a damage, in whose units (0, 0) is that place and 1 its size."""

    def __init__(self, sheet: Sheet, place: ArrayLike, size: float, reach: float, turn: float) -> None:
        middle, self.material = sheet.view.pixels(place), sheet.artwork.material
        self.unit, self.direction = sheet.view.unit * size, np.array([np.cos(turn), np.sin(turn)])
        whole, room = np.array(sheet.inside.shape[::-1]), reach * self.unit + 5
        first = np.clip(np.floor(middle - room), 0, whole).astype(int)
        last = np.clip(np.ceil(middle + room), first, whole).astype(int)
        self.box = (slice(first[1], last[1]), slice(first[0], last[0]))
        self.inside, self.pixels = sheet.inside[self.box], sheet.pixels[self.box]
        # Pillow counts pixels from their middle, hence the half.
        self.fine = (middle - first) * FINE - 0.5, size * FINE * turned(np.eye(2), turn) @ sheet.view.matrix

    def draw(self, shape: str, rng: np.random.Generator, scale: ArrayLike = 1.0, **inks: int) -> np.ndarray:
        """How much of each pixel (0..1) a shape covers, or only what is in the inks (w, m) that are 255."""
        height, width = self.inside.shape
        image = Image.new("L", (FINE * width, FINE * height))
        centre, matrix = self.fine
        pen = Pen(ImageDraw.Draw(image), centre, matrix * np.reshape(scale, (-1, 1)), round(THIN * FINE))
        if shape in ("crack", "write"):
            for path in (crack if shape == "crack" else write)(rng):
                pen.lines([path], 255, 0.06)
        else:
            pen.sketch(shape, rng, **{"w": 255, "m": 255, **inks})
        return np.asarray(image.reduce(FINE), np.float32) / 255

    def paint(self, habit: Habit, rng: np.random.Generator) -> np.ndarray:
        """Paint a damage; returns which pixels (height, width) it covers at least half."""
        choices = habit.shape.split(" % ")
        shapes = choices[rng.integers(len(choices))].split(" / ")
        inks = {"ink": INKS[rng.integers(len(INKS))], "ground": GROUNDS[self.material]}
        damaged = np.zeros(self.inside.shape, bool)
        for shape in shapes[: rng.integers((len(shapes) + 1) // 2, len(shapes) + 1)]:
            state = rng.bit_generator.state
            cover = marks = self.draw(shape, rng)
            if " m " in shape:
                rng.bit_generator.state = state
                marks = self.draw(shape, rng, w=0)
            rows, columns = (np.flatnonzero(cover.any(axis)) for axis in (1, 0))
            if not len(rows):
                continue
            box = tuple(slice(max(0, used[0] - 5), used[-1] + 6) for used in (rows, columns))
            cover, marks, pixels, inside = cover[box], marks[box], self.pixels[box], self.inside[box]
            for word, *numbers in map(str.split, habit.effects.split("; ")):
                if word == "soft":
                    cover = soft(cover, float(numbers[0]))
                    continue
                *numbers, colour, strength = numbers
                part = self.part(word, list(map(float, numbers)), cover, marks, rng) * inside * float(strength)
                glaze, name = colour.startswith("*"), colour.strip("*")
                target = np.array(inks[name] if name in inks else name.split(","), np.float32)
                pixels += ((pixels * (target / 255) if glaze else target) - pixels) * part[..., None]
            damaged[box] |= cover >= 0.5
        return damaged

    def part(
        self, word: str, numbers: list[float], cover: np.ndarray, marks: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """The part of a coverage that one effect paints."""
        if word == "mark":
            return np.minimum(marks, cover)
        if word == "grit":  # blotches: how many a side, and how rare
            return cover * (clouds(rng, int(numbers[0]), *cover.shape[::-1]) > numbers[1])
        if word == "weave":
            rows, columns = np.indices(cover.shape) // 2
            return cover * ((rows + columns) % 2 * (self.material == "oil"))
        if word == "edge":  # the rim on the side away from this step
            return np.clip(cover - shifted(cover, *numbers), 0, 1)
        if word == "under":  # what is left when the shape is moved so far, in sizes
            return np.minimum(cover, shifted(cover, *(self.direction * numbers[0] * self.unit)))
        if word in ("core", "rim"):  # what lies so deep in the shape, in sizes, or not
            depth = max(2, round(numbers[0] * self.unit))
            core = np.clip((soft(cover, depth) - 1) * (2 * depth + 1) + 1, 0, 1)
            return core if word == "core" else cover - core
        return cover


def soft(cover: np.ndarray, radius: float) -> np.ndarray:
    """The same with a blurred edge; half coverage stays where the edge was."""
    image = Image.fromarray((cover * 255).astype(np.uint8)).filter(ImageFilter.BoxBlur(radius))
    return np.asarray(image, np.float32) / 255


def shifted(cover: np.ndarray, x: float, y: float) -> np.ndarray:
    """The same, moved by so many pixels; what comes in over an edge is as that edge."""
    (height, width), x, y = cover.shape, round(x), round(y)
    room = max(abs(x), abs(y))
    return np.pad(cover, room, "edge")[room - y : room - y + height, room - x : room - x + width]


def turned(shape: ArrayLike, angle: float) -> np.ndarray:
    """Points turned about (0, 0)."""
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.asarray(shape) @ np.array([[cosine, sine], [-sine, cosine]])


def crack(rng: np.random.Generator) -> list[np.ndarray]:
    """The lines of a branching network."""
    paths, tips = [], [(np.zeros(2), TURN * n / 4 + rng.normal(0, 0.3), 1.5) for n in range(4)]
    while tips:
        point, angle, length = tips.pop()
        count = int(rng.integers(3, 6))
        angles = angle + np.cumsum(rng.normal(0, 0.42, count))
        path = np.cumsum(points(np.cos(angles), np.sin(angles)) * length / count, 0) + point
        paths.append(np.vstack([point, path]))
        if length > 0.6:
            for index in rng.integers(0, count, 2):
                tips.append((path[index], angles[index] + rng.choice((-1, 1)) * rng.uniform(0.7, 1.3), length * 0.55))
    return paths


# Strokes of a pen, y down, 0 the foot and -1 the top of a tall letter: o h n u l e t v y m.
LETTERS = """
0,0 .5,0 .5,-.5 0,-.5 0,0; 0,-1 0,0 0,-.4 .25,-.5 .45,-.3 .45,0; 0,-.5 0,0 0,-.35 .3,-.5 .5,-.35 .5,0;
0,-.5 0,-.1 .2,0 .45,-.15 .45,-.5 .45,0; 0,0 .15,-.9 .3,-1 .2,-.4 .2,0 .4,0; 0,-.5 .2,0 .4,-.5;
0,-.25 .45,-.25 .4,-.5 .1,-.5 0,-.2 .2,0 .5,0; 0,-.6 .35,-.6 .18,-.6 .18,-1 .18,0 .4,0;
0,-.5 0,0 .4,0 .45,-.5 .45,.4 .1,.4; 0,0 0,-.5 .2,-.4 .2,0 .2,-.4 .45,-.5 .5,0
"""


def write(rng: np.random.Generator) -> list[np.ndarray]:
    """The strokes of two or three lines of handwriting."""
    letters, strokes = [[point.split(",") for point in letter.split()] for letter in LETTERS.split(";")], []
    for line in range(rng.integers(2, 4)):
        x, end = -1.0, rng.uniform(0.7, 1.0)
        while x < end:
            for _ in range(rng.integers(2, 6)):
                letter = np.array(letters[rng.integers(len(letters))], float) @ [[0.2, 0.0], [-0.05, 0.2]]
                strokes.append(letter + (x, (line - 0.5) * 0.32))
                x += np.ptp(letter[:, 0]) + 0.07
            x += 0.12
    return strokes
