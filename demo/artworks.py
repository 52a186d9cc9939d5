"""Invented artworks and photographs of them: material, frame, point of view, damage, light and grain.

Shapes on an artwork are given in its units: its centre is (0, 0), its long side 1, y points down. What is painted and
what the mask says come from the same coverage (the share of a pixel that a shape covers): a pixel is of the damage
if at least half of it is covered, and damage that comes later overwrites what was there before.
"""

from collections import namedtuple
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml
from PIL import Image, ImageDraw
from scipy import ndimage

from demo.scenes import SCENES, Easel
from demo.shapes import GRAIN, TURN, Pen, branches, clouds, develop, paint, points, tone

CANVAS, PADDING = 320, 54  # long side of a painted artwork, and of what is around it on each side, in pixels
MIN_SIDE, MAX_SIDE = 128, 192  # long side of a photograph, in pixels
TILE = CANVAS + 2 * PADDING + 20  # side of the stored textures; what is needed is cut out of them
FINE = 4  # sub-pixels a side from which the coverage of a pixel is counted
THIN = 2.2  # least width of a line, in pixels
BACKGROUND = 255  # in a mask: outside of the artwork

LOOKS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
MATERIALS = tuple(LOOKS["materials"])
Habit = namedtuple("Habit", "colour share smallest largest most turn materials shapes effects")
HABITS = {kind: Habit(**habit) for kind, habit in LOOKS["damages"].items()}
# The classes in the order of their values in a mask, and their colours in its palette.
COLOURS = {"Clean": "#deded8", **{kind: habit.colour for kind, habit in HABITS.items()}}
CLASSES = tuple(COLOURS)

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
        self.grain = rng.standard_normal((GRAIN, GRAIN, 3), dtype=np.float32)
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
        wall = np.full((*np.add(canvas.size[::-1], 2 * PADDING), 3), rng.choice(LOOKS["walls"]), np.float32)
        surroundings = self._textured(wall, "wall", rng)
        _frame(surroundings, rng.choice(LOOKS["materials"][artwork.material]["frames"]), rng)
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
        dark, border = np.array(rng.choice(LOOKS["prints"]), np.float32)
        y, x = (np.linspace(-1, 1, length, dtype=np.float32) for length in pixels.shape[:2])
        grey = pixels @ np.float32((0.3, 0.59, 0.11)) * (1 - 0.12 * (x**2 + y[:, None] ** 2)) / 255
        # Contrast, which the flat colours lack without their hues.
        pixels = dark + (border - dark) * np.clip(0.5 + 1.25 * (grey - 0.47), 0, 1)[..., None]
        margin = rng.choice((0, 0.03, 0.045))
    if (edge := round(CANVAS * margin)) > 3:
        pixels[:edge], pixels[-edge:], pixels[:, :edge], pixels[:, -edge:] = (border,) * 4
    return pixels


def _frame(around: Image.Image, kind: str, rng: np.random.Generator) -> None:
    """Draw what surrounds an artwork, which will be pasted PADDING away from all sides."""
    draw, size, (name, *rings) = ImageDraw.Draw(around), np.array(around.size), LOOKS["frames"][kind]
    base = paint(name, rng)
    for far, light, shift in rings:
        near = PADDING - far + shift
        draw.rectangle((near, near, *(size - 1 - near + 2 * shift).tolist()), tone(base, light))


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
    matrix = scale * turned(angle)
    return tuple(size.tolist()), Pen(None, size / 2 + rng.uniform(-1, 1, 2) * slack, matrix)


def _project(painting: Image.Image, size: tuple[int, int], view: Pen) -> np.ndarray:
    """The painting in its surroundings, without damage, as the view shows it."""
    # Halved first where it will be seen at about half its size, because the projection looks at few pixels only.
    halved = view.unit < 0.6 * CANVAS
    unit = CANVAS / 2 if halved else CANVAS
    # Image.transform wants the way from the photograph back to the painting.
    inverse = np.linalg.inv(view.matrix) * unit
    offset = np.array(painting.size) * unit / CANVAS / 2 - view.centre @ inverse
    way = np.column_stack([inverse.T, offset]).ravel().tolist()
    source, wall = painting.reduce(2) if halved else painting, painting.getpixel((2, 2))
    seen = source.transform(size, Image.Transform.AFFINE, way, Image.Resampling.BILINEAR, fillcolor=wall)
    return np.array(seen, np.float32)


# ---- damage


class Sheet:
    """A photograph of an artwork, float (height, width, 3), to be damaged, and its mask."""

    def __init__(self, pixels: np.ndarray, view: Pen, artwork: Artwork) -> None:
        self.pixels, self.view, self.artwork = pixels, view, artwork
        cover = self.cover("P w -1,-1 1,-1 1,1 -1,1", view.moved(0, 0, tuple(artwork.half)), np.random.default_rng(0))
        self.inside = np.where(cover >= 0.5, cover, 0)
        self.mask = np.where(self.inside > 0, 0, BACKGROUND).astype(np.uint8)

    def damage(self, damage: Damage, age: float) -> None:
        """Paint a damage as an artwork of this age (0..1) shows it, and mark it in the mask."""
        if age <= damage.onset:
            return
        habit, rng, place = HABITS[damage.kind], np.random.default_rng(damage.seed), np.array(damage.place)
        # It grows, to its full size at age 1.
        size = damage.size * (0.7 + 0.3 * (age - damage.onset) / (1 - damage.onset))
        turn = rng.uniform(0, TURN) if habit.turn == "any" else rng.normal(0, 0.2)
        turn += rng.integers(0, 2) * TURN / 4 if habit.turn == "square" else 0
        if habit.turn == "edge":
            axis = int(np.argmax(np.abs(place) / self.artwork.half))
            place[axis] = np.copysign(self.artwork.half[axis], place[axis])
            turn += axis * TURN / 4
        matrix = max(size, 3.4 / self.view.unit) * turned(turn) @ self.view.matrix
        covered = self.paint(habit, Pen(None, self.view.pixels(place), matrix), rng)
        self.mask[covered & (self.mask != BACKGROUND)] = CLASSES.index(damage.kind)

    def cover(self, shape: str, pen: Pen, rng: np.random.Generator, **inks: int) -> np.ndarray:
        """How much of each pixel (0..1) a shape covers, or only what is in the inks (w, m) that are 255."""
        image = Image.new("L", tuple(FINE * side for side in self.pixels.shape[1::-1]))
        # Pillow counts pixels from their middle, hence the half.
        fine = Pen(ImageDraw.Draw(image), FINE * pen.centre - 0.5, FINE * pen.matrix, round(THIN * FINE))
        if shape in PATHS:
            for path in PATHS[shape](rng):
                fine.lines([path], 255, 0.06)
        else:
            fine.sketch(shape, rng, **{"w": 255, "m": 255, **inks})
        return np.asarray(image.reduce(FINE), np.float32) / 255

    def paint(self, habit: Habit, pen: Pen, rng: np.random.Generator) -> np.ndarray:
        """Paint a damage where the pen is; returns which pixels (height, width) it covers at least half."""
        shapes = habit.shapes[rng.integers(len(habit.shapes))]
        inks = {"ink": rng.choice(LOOKS["inks"]), "ground": LOOKS["materials"][self.artwork.material]["ground"]}
        damaged = np.zeros(self.mask.shape, bool)
        for shape in shapes[: rng.integers((len(shapes) + 1) // 2, len(shapes) + 1)]:
            state = rng.bit_generator.state
            cover = marks = self.cover(shape, pen, rng)
            if " m " in shape:
                rng.bit_generator.state = state
                marks = self.cover(shape, pen, rng, w=0)
            for word, *numbers in map(str.split, habit.effects):
                if word == "soft":
                    cover = ndimage.uniform_filter(cover, int(numbers[0]))  # half coverage stays where the edge was
                    continue
                *numbers, colour, strength = numbers
                part = self.part(word, list(map(float, numbers)), cover, marks, pen, rng)
                glaze, name = colour.startswith("*"), colour.strip("*")
                target = np.array(inks[name] if name in inks else name.split(","), np.float32)
                target = self.pixels * (target / 255) if glaze else target
                self.pixels += (target - self.pixels) * (part * self.inside * float(strength))[..., None]
            damaged |= cover >= 0.5
        return damaged

    def part(
        self, word: str, numbers: list[float], cover: np.ndarray, marks: np.ndarray, pen: Pen, rng: np.random.Generator
    ) -> np.ndarray:
        """The part of a coverage that one effect paints."""
        height, width = cover.shape
        if word == "mark":
            return np.minimum(marks, cover)
        if word == "grit":  # blotches: how many on the damage, and how rare
            return cover * (clouds(rng, round(numbers[0] * width / pen.unit / 2.5), width, height) > numbers[1])
        if word == "weave":
            rows, columns = np.indices(cover.shape) // 2
            return cover * ((rows + columns) % 2 * (self.artwork.material == "oil"))
        if word == "edge":  # the rim on the side away from this step
            return np.clip(cover - shifted(cover, *numbers), 0, 1)
        if word == "under":  # what is left when the shape is moved so far, in sizes
            return np.minimum(cover, shifted(cover, *(numbers[0] * pen.matrix[0])))
        if word in ("core", "rim"):  # what lies so deep in the shape, in sizes, or not
            depth = max(2, round(numbers[0] * pen.unit))
            core = np.clip((ndimage.uniform_filter(cover, 2 * depth + 1) - 1) * (2 * depth + 1) + 1, 0, 1)
            return core if word == "core" else cover - core
        return cover


def shifted(cover: np.ndarray, x: float, y: float) -> np.ndarray:
    """The same, moved by so many pixels; what comes in over an edge is as that edge."""
    return ndimage.shift(cover, (round(y), round(x)), order=0, mode="nearest")


def turned(angle: float) -> np.ndarray:
    """The matrix that turns points by an angle."""
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def crack(rng: np.random.Generator) -> list[np.ndarray]:
    """The lines of a branching network."""
    angles = TURN * np.arange(4) / 4 + rng.normal(0, 0.4, 4)
    return [line for layer in branches(rng, np.zeros(2), angles, 4, 0.8, 0.8) for line in layer]


def write(rng: np.random.Generator) -> list[np.ndarray]:
    """Two or three lines of handwriting: loops of different heights, word by word."""
    words = []
    for line in 0.32 * np.arange(rng.integers(2, 4)) - 0.2:
        x, end = -1.0, rng.uniform(0.7, 1.0)
        while x < end:
            loops = int(rng.integers(3, 8))
            t = np.linspace(0, loops, 8 * loops)
            tall = np.repeat(rng.choice((0.05, 0.05, 0.12), loops), 8)
            words.append(points(x + 0.09 * t + 0.04 * np.cos(TURN * t), line - tall * (1 + np.sin(TURN * t))))
            x += 0.09 * loops + 0.15
    return words


PATHS = {"crack": crack, "write": write}
