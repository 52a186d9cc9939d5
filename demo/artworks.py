"""Invented artworks and their photographs: material, frame, point of view, damage, light and grain."""

import dataclasses

import numpy as np
from PIL import Image, ImageDraw

from demo.artworks_damage import Damage, damage_sheet
from demo.artworks_objects import draw_ornament, draw_still_life
from demo.artworks_scenes import Easel, draw_landscape, draw_portrait
from demo.artworks_sheet import Sheet, View
from demo.fungarium_bodies import TURN, Ink, paint, tone

CANVAS, PADDING = 320, 54  # long side of a painted artwork, and of what is around it on each side, in pixels
MIN_SIDE, MAX_SIDE = 128, 192  # long side of a photograph, in pixels
TILE = CANVAS + 2 * PADDING + 20  # side of the stored textures; what is needed is cut out of them

SCENES = {
    "portrait": draw_portrait,
    "landscape": draw_landscape,
    "still life": draw_still_life,
    "ornament": draw_ornament,
}
MATERIALS = ("oil", "fresco", "paper", "photograph")
FRAMES = {
    "oil": ("gilt", "gilt", "wood", "none"),
    "fresco": ("stone", "none"),
    "paper": ("mat", "scanner", "none"),
    "photograph": ("album", "scanner", "wood"),
}
WALLS = ((196, 186, 170), (112, 124, 118), (150, 96, 78), (88, 92, 104), (208, 204, 196), (122, 96, 68))
TONES = {
    "sepia": ((58, 36, 22), (246, 228, 196)),
    "silver": ((24, 24, 28), (240, 240, 236)),
    "blue": ((14, 34, 74), (232, 240, 242)),
}


@dataclasses.dataclass(frozen=True)
class Artwork:
    """All that decides how an artwork looks: `shape` is its width by its height."""

    content: str
    material: str
    shape: float
    seed: tuple[int, ...]
    damages: tuple[Damage, ...] = ()

    @property
    def half(self) -> tuple[float, float]:
        """Half its width and height where the long side is 1."""
        return min(1.0, self.shape) / 2, min(1.0, 1 / self.shape) / 2


@dataclasses.dataclass(frozen=True)
class Shot:
    """One photograph of an artwork: its age (0..1), and whether all of it is seen."""

    age: float
    whole: bool
    seed: tuple[int, ...]


class Gallery:
    """Paints and photographs artworks; keeps the textures that all of one seed share."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng([seed, 11])
        self.grain = rng.standard_normal((TILE, TILE, 3), dtype=np.float32)
        y, x = np.indices((TILE, TILE))
        weave = 0.9 * np.sin(x * TURN / 4) * np.cos(y * TURN / 8) + 0.9 * np.sin(y * TURN / 4) * np.cos(x * TURN / 8)
        fine = self.grain[..., 0]
        textures = {
            "oil": 1 + 0.05 * weave + 0.015 * fine,
            "fresco": 1 + 0.05 * _clouds(rng, 12) + 0.03 * _clouds(rng, 90) + 0.025 * fine,
            "paper": 1 + 0.035 * _clouds(rng, 8) + 0.03 * _clouds(rng, 200),
            "photograph": 1 + 0.05 * fine,
        }
        self.textures = {name: texture.astype(np.float32)[..., None] for name, texture in textures.items()}
        self.wall = (1 + 0.05 * _clouds(rng, 10) + 0.05 * _clouds(rng, 120)).astype(np.float32)[..., None]

    def paint(self, artwork: Artwork) -> Image.Image:
        """The undamaged artwork in its frame and on its wall; the artwork itself is PADDING away from all sides."""
        rng = np.random.default_rng(artwork.seed)
        size = tuple(round(2 * CANVAS * half) for half in artwork.half)
        canvas = Image.new("RGB", size, (200, 190, 170))
        SCENES[artwork.content](Easel(canvas), rng)
        if artwork.material == "oil":
            _brush(canvas, rng)
        pixels = np.asarray(canvas, np.float32)
        pixels = self._textured(_finish(pixels, artwork.material, rng), self.textures[artwork.material], rng)
        wall = np.empty((size[1] + 2 * PADDING, size[0] + 2 * PADDING, 3), np.float32)
        wall[:] = WALLS[rng.integers(len(WALLS))]
        surroundings = Image.fromarray(self._textured(wall, self.wall, rng))
        _frame(surroundings, rng.choice(FRAMES[artwork.material]), rng)
        surroundings.paste(Image.fromarray(pixels), (PADDING, PADDING))
        return surroundings

    def photograph(self, painting: Image.Image, artwork: Artwork, shot: Shot) -> tuple[Image.Image, np.ndarray]:
        """A photograph of what `paint` gave, with its damage, in RGB, and its mask."""
        rng = np.random.default_rng(shot.seed)
        view = _view(artwork, shot, rng)
        sheet = Sheet(_project(painting, view), view, artwork.half, artwork.material)
        damage_sheet(sheet, artwork.damages, shot.age)
        return self._develop(sheet.pixels, rng), sheet.mask

    def _textured(self, pixels: np.ndarray, texture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        height, width = pixels.shape[:2]
        y, x = rng.integers(0, TILE - height + 1), rng.integers(0, TILE - width + 1)
        return np.clip(pixels * texture[y : y + height, x : x + width], 0, 255).astype(np.uint8)

    def _develop(self, pixels: np.ndarray, rng: np.random.Generator) -> Image.Image:
        """Light from one side, a colour cast and grain."""
        height, width = pixels.shape[:2]
        gain = rng.uniform(0.84, 1.12) * rng.normal(1, 0.035, 3)
        slope = (
            1
            + np.linspace(-1, 1, width) * rng.normal(0, 0.07)
            + np.linspace(-1, 1, height)[:, None] * rng.normal(0, 0.07)
        )
        y, x = rng.integers(0, TILE - height), rng.integers(0, TILE - width)
        pixels = pixels * (slope[..., None] * gain).astype(np.float32)
        pixels += self.grain[y : y + height, x : x + width] * np.float32(rng.uniform(0.5, 4))
        return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _clouds(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Smooth noise over a tile, `cells` bumps a side."""
    noise = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
    return np.asarray(noise.resize((TILE, TILE), Image.Resampling.BICUBIC))


# ---- materials


def _brush(canvas: Image.Image, rng: np.random.Generator, count: int = 900) -> None:
    """Go over the picture with short strokes in its own colours."""
    size = np.array(canvas.size)
    places = rng.uniform(0, size - 1, (count, 2))
    colours = np.asarray(canvas)[places[:, 1].astype(int), places[:, 0].astype(int)].astype(int)
    colours = np.clip(colours + rng.normal(0, 9, (count, 1)).astype(int), 0, 255)
    angles = rng.uniform(0, TURN) + 1.2 * np.sin(places @ rng.normal(0, 0.02, 2)) + rng.normal(0, 0.3, count)
    reach = np.column_stack([np.cos(angles), np.sin(angles)]) * rng.uniform(2, 5, (count, 1))
    draw = ImageDraw.Draw(canvas)
    strokes = np.concatenate([places - reach, places + reach], 1).tolist()
    for stroke, colour, width in zip(strokes, colours.tolist(), rng.integers(2, 5, count).tolist(), strict=True):
        draw.line(stroke, tuple(colour), width)


def _finish(pixels: np.ndarray, material: str, rng: np.random.Generator) -> np.ndarray:
    """The flat colours as the material shows them."""
    if material == "fresco":
        return pixels * np.array((0.62, 0.6, 0.56), np.float32) + np.array((84, 76, 62), np.float32)
    if material == "paper":
        sheet = np.array((246, 238, 218), np.float32) * rng.normal(1, (0.01, 0.01, 0.02)).astype(np.float32)
        washed = sheet * (1 - 0.8 * (1 - pixels / 255))
        margin = round(CANVAS * rng.uniform(0, 0.05))
        if margin > 3:
            bare = np.ones(pixels.shape[:2], bool)
            bare[margin:-margin, margin:-margin] = False
            washed[bare] = sheet
        return washed
    if material == "photograph":
        dark, light = (np.array(end, np.float32) for end in TONES[rng.choice(list(TONES), p=(0.5, 0.3, 0.2))])
        y, x = (np.linspace(-1, 1, length) for length in pixels.shape[:2])
        vignette = 1 - 0.24 * (x**2 + y[:, None] ** 2) / 2
        grey = pixels @ np.array((0.3, 0.59, 0.11), np.float32) / 255 * vignette
        # Contrast, which the flat colours lack without their hues.
        grey = np.clip(0.5 + 1.25 * (grey - 0.47), 0, 1)[..., None]
        printed = dark + (light - dark) * grey
        border = round(CANVAS * rng.choice((0, 0.03, 0.045)))
        if border:
            printed[:border], printed[-border:], printed[:, :border], printed[:, -border:] = light, light, light, light
        return printed
    return pixels


def _frame(around: Image.Image, kind: str, rng: np.random.Generator) -> None:
    """Draw what surrounds an artwork, which will be pasted PADDING away from all sides."""
    draw = ImageDraw.Draw(around)

    def ring(distance: float, colour: Ink, shift: int = 0) -> None:
        far = PADDING - distance
        draw.rectangle(
            (far + shift, far + shift, around.width - 1 - far + shift, around.height - 1 - far + shift), colour
        )

    if kind == "scanner":
        bed = [(28, 28, 30), (236, 236, 232)][rng.integers(2)]
        draw.rectangle((0, 0, *around.size), bed)
    elif kind == "album":
        draw.rectangle((0, 0, *around.size), tone(paint("brown", rng), 0.6))
        for x, y in ((1, 1), (-1, 1), (1, -1), (-1, -1)):
            middle = np.array(around.size) / 2
            corner = middle - (middle - PADDING + 7) * (x, y)
            draw.polygon([tuple(corner), tuple(corner + (44 * x, 0)), tuple(corner + (0, 44 * y))], (214, 196, 158))
    elif kind in ("gilt", "wood"):
        base = paint("gold" if kind == "gilt" else "brown", rng)
        ring(26, tone((0.3, 0.27, 0.24), 0.8), 7)
        for distance, factor in ((28, 0.5), (26, 0.95), (20, 1.3), (16, 0.8), (9, 1.05), (4, 0.45)):
            ring(distance, tone(base, factor * (1 if kind == "gilt" else 0.8)))
    elif kind == "mat":
        ring(60, (228, 222, 208))
        ring(5, (176, 168, 152))
    elif kind == "stone":
        for distance, factor in ((30, 0.62), (27, 0.95), (10, 0.8), (7, 1.05), (3, 0.5)):
            ring(distance, tone((0.74, 0.7, 0.64), factor))
    else:
        ring(2, (60, 54, 48), 4)


# ---- point of view


def _view(artwork: Artwork, shot: Shot, rng: np.random.Generator) -> View:
    """All of the artwork, mostly with a margin around it, or a part of it; slightly askew."""
    half = np.array(artwork.half)
    shape = artwork.shape * rng.uniform(0.92, 1.08) if shot.whole else rng.uniform(0.75, 1.33)
    long = int(rng.integers(MIN_SIDE, MAX_SIDE + 1))
    size = np.array((long, round(long / shape)) if shape > 1 else (round(long * shape), long))
    fit = size / (2 * half)
    scale = fit.min() * rng.uniform(0.84, 1.0) if shot.whole else fit.max() * rng.uniform(1.05, 1.45)
    angle = np.clip(rng.normal(0, 0.04), -0.09, 0.09) * (rng.random() < 0.75)
    cosine, sine = np.cos(angle), np.sin(angle)
    slack = np.abs(half * scale - size / 2) * (0.5 if shot.whole else 0.95)
    matrix = scale * np.array([[cosine, sine], [-sine, cosine]])
    return View(tuple(size.tolist()), matrix, size / 2 + rng.uniform(-1, 1, 2) * slack)


def _project(painting: Image.Image, view: View) -> np.ndarray:
    """The painting in its surroundings, without damage, as the view shows it."""
    # Halved first where it will be seen at about half its size, because the projection looks at few pixels only.
    halved = view.scale < 0.6 * CANVAS
    unit = CANVAS / 2 if halved else CANVAS
    # Image.transform wants the way from the photograph back to the painting.
    inverse = np.linalg.inv(view.matrix) * unit
    offset = np.array(painting.size) * unit / CANVAS / 2 - view.centre @ inverse
    (a, d), (b, e) = inverse.tolist()
    way = (a, b, offset[0], d, e, offset[1])
    source, wall = painting.reduce(2) if halved else painting, painting.getpixel((2, 2))
    seen = source.transform(view.size, Image.Transform.AFFINE, way, Image.Resampling.BILINEAR, fillcolor=wall)
    return np.array(seen, np.float32)
