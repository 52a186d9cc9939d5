"""Photographs of invented fungi: backgrounds, pose, light and grain around the bodies."""

from io import BytesIO

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from demo.fungarium import Look
from demo.fungarium_bodies import PLANS, Pen, ellipse, paint, steps, tone, vary

MIN_SIDE, MAX_SIDE = 72, 160  # of a picture, in pixels
TILE, GRAIN = 420, 320  # sides of the stored backgrounds and film grain; pictures are crops of them

# Base colour, strength of the mottling, and number and length of the strokes or grains.
GROUNDS = {
    "soil": ((104, 80, 60), 9, 260, 9),
    "grass": ((88, 122, 58), 9, 1500, 46),
    "moss": ((84, 96, 44), 9, 2600, 8),
    "paper": ((232, 224, 204), 1.5, 90, 16),
}


def make_tile(ground: str, rng: np.random.Generator) -> Image.Image:
    """A square of background with TILE pixels a side, to be cropped."""
    base, strength, count, length = GROUNDS[ground]
    field = np.zeros((TILE, TILE), np.float32)
    for cells in (6, 18, 60, 140):
        grid = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
        field += np.asarray(grid.resize((TILE, TILE), Image.Resampling.BICUBIC))
    image = Image.fromarray(np.clip(np.array(base) + strength * field[..., None], 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    places, shades = rng.uniform(0, TILE, (count, 2)).tolist(), rng.uniform(0.65, 1.35, count).tolist()
    for (x, y), shade, turn in zip(places, shades, rng.normal(0, 0.4, count).tolist(), strict=True):
        colour = tone([channel / 255 for channel in base], min(shade, 1.15) if ground != "paper" else 0.97)
        if ground in ("soil", "moss"):
            draw.ellipse((x, y, x + length * shade, y + length * 0.8 * shade), colour)
        else:
            draw.line(
                (x, y, x + length * np.sin(turn), y - length * np.cos(turn)), colour, 1 + 2 * (ground == "grass")
            )
    return image


class Studio:
    """Photographs specimens; keeps the backgrounds and the film grain that all pictures of one seed share."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng([seed, 7])
        self.tiles = [(ground, make_tile(ground, rng)) for ground in GROUNDS for _ in range(2)]
        self.grain = rng.standard_normal((GRAIN, GRAIN * 3), dtype=np.float32)

    def picture(self, look: Look, rng: np.random.Generator) -> Image.Image:
        """One specimen with this look, in RGB, MIN_SIDE to MAX_SIDE pixels a side."""
        size = rng.integers(MIN_SIDE, MAX_SIDE + 1, 2)
        ground, tile = self.tiles[rng.integers(len(self.tiles))]
        # Drawn at twice the size and then halved, which smooths the edges.
        left, top = rng.integers(0, TILE - 2 * size + 1).tolist()
        canvas = tile.crop((left, top, left + 2 * int(size[0]), top + 2 * int(size[1])))
        self._pose(canvas, look, ground, rng)
        image = canvas.reduce(2)
        if rng.random() < 0.4:
            image = image.filter(ImageFilter.BoxBlur(rng.uniform(0.2, 1.0)))
        return self._develop(image, rng)

    def jpeg(self, look: Look, rng: np.random.Generator) -> bytes:
        """The same as the bytes of a JPEG file of varying quality."""
        buffer = BytesIO()
        self.picture(look, rng).save(buffer, "JPEG", quality=int(rng.integers(55, 96)))
        return buffer.getvalue()

    def _pose(self, canvas: Image.Image, look: Look, ground: str, rng: np.random.Generator) -> None:
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
        for body in self._bodies(pen, look, rng):
            PLANS[look.plan](body, vary(look, rng), main, second, rng)
        blades = {"grass": 0.5, "moss": 0.14}.get(ground, 0)
        if blades and look.plan != "bracket":
            root = np.column_stack([rng.uniform(-0.9, 0.9, 14), np.full(14, -1.1)])
            tip = root + np.column_stack([rng.normal(0, 0.12, 14), 0.1 + blades * rng.uniform(0.4, 1, 14)])
            pen.lines(np.stack([root, tip], 1), tone((0.42, 0.56, 0.26), rng.uniform(0.7, 1.0)), 0.04)

    def _bodies(self, pen: Pen, look: Look, rng: np.random.Generator) -> list[Pen]:
        """A pen for every body: solitary species stand alone or in pairs, the others in groups."""
        if look.plan in ("bracket", "coral", "club"):
            return [pen]
        alone = look.group == 1
        count = 1 + int(rng.random() < 0.2) if alone else max(1, int(look.group) + int(rng.integers(-1, 2)))
        if count == 1:
            return [pen]
        places = 1.2 * steps(-0.5, 0.5, count) + rng.normal(0, 0.08, count)
        scales, heights = rng.uniform(0.62, 0.88, count), rng.normal(0, 0.04, count)
        return [pen.moved(x, 0.95 * (s - 1) + y, s) for x, y, s in zip(places, heights, scales, strict=True)]

    def _develop(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Light from one side, a colour cast and grain."""
        width, height = image.size
        slope_x, slope_y = rng.normal(0, 0.16, 2)
        gain = rng.normal(1, 0.13) * rng.normal(1, 0.04, 3)
        # Rows of width * 3 values, because numpy is slow on a last axis of 3.
        pixels = np.array(image, np.float32).reshape(height, width * 3)
        pixels *= np.outer(1 + slope_x * steps(-1, 1, width), gain).ravel().astype(np.float32)
        pixels *= (1 + slope_y * steps(-1, 1, height)).astype(np.float32)[:, None]
        y, x = rng.integers(0, GRAIN - MAX_SIDE, 2)
        pixels += self.grain[y : y + height, 3 * x : 3 * (x + width)] * np.float32(rng.uniform(1, 12))
        np.clip(pixels, 0, 255, out=pixels)
        return Image.fromarray(pixels.astype(np.uint8).reshape(height, width, 3))
