"""More of what the invented artworks show: still lifes and ornaments, in flat colour."""

import numpy as np

from demo.artworks_scenes import CLOTHES, Easel, closed, pigment
from demo.fungarium_bodies import TURN, Colour, Pen, arc, ellipse, outline, paint, steps, tone

FRUITS = ("apple", "orange", "lemon", "pear", "grapes", "plum")
JEWELS = ("azure", "scarlet", "teal", "gold", "violet", "rust", "olive", "slate")


# ---- still life


def draw_still_life(easel: Easel, rng: np.random.Generator) -> None:
    """Fruit, bowls, bottles, flowers and candles on a table."""
    wall = paint(rng.choice(("olive", "teal", "slate", "ochre", "brown", "azure", "rose")), rng)
    easel.wash(tone(wall, 0.72), tone(wall, 1.12), easel.tall, -0.5)
    cloth, edge = paint(rng.choice(("cream", "rust", "brown", "white", "azure", "tan")), rng), rng.uniform(-0.4, -0.22)
    easel.ridge(np.full(2, edge), tone(cloth, 0.95))
    easel.ridge(np.full(2, edge), tone(cloth, 1.15), -0.02)
    if rng.random() < 0.5:
        easel.ridge(np.full(2, -0.86), tone(cloth, 0.7))
        for x in np.arange(-easel.wide, easel.wide, 0.24):
            easel.fill([(x, -0.86), (x + 0.12, -0.86), (x + 0.14, -3), (x, -3)], tone(cloth, 0.85))
    behind = [draw_vase, draw_bottle, draw_jug, draw_candle]
    count = 2 + round((easel.wide - 1) * 3)
    places = np.linspace(-easel.wide + 0.4, easel.wide - 0.4, count) if count > 1 else [0]
    for x, index in zip(places, rng.permutation([0, 1, 2, 3, 0, 2])[:count], strict=True):
        behind[index](_on_table(easel, x + rng.normal(0, 0.05), edge - 0.1, 1.0, rng), rng)
    if rng.random() < 0.7:
        draw_bowl(_on_table(easel, rng.uniform(-0.4, 0.4) * easel.wide, edge - 0.32, 1.0, rng), rng)
    for x in rng.permutation(np.linspace(-easel.wide + 0.25, easel.wide - 0.25, 5))[: rng.integers(2, 5)]:
        draw_fruit(_on_table(easel, x, edge - rng.uniform(0.36, 0.5), 1.1, rng), rng.choice(FRUITS), rng)


def _on_table(easel: Easel, x: float, y: float, scale: float, rng: np.random.Generator) -> Pen:
    """A pen for something that stands at (x, y), with its shadow drawn."""
    pen = easel.moved(x, y, scale * rng.uniform(0.88, 1.1))
    shadow = pen.pixels((0.1, 0.01))
    x, y = np.clip(shadow, 0, np.array(easel.canvas.size) - 1).astype(int).tolist()
    ground = easel.canvas.getpixel((x, y))
    pen.fill(ellipse(0, 0.26, 0.06) + (0.1, 0.01), tone([part / 255 for part in ground], 0.6))
    return pen


def draw_fruit(pen: Pen, kind: str, rng: np.random.Generator) -> None:
    """One fruit (or bunch) about 0.3 wide, resting on y = 0."""
    stem = tone((0.36, 0.26, 0.16), 1)
    if kind == "grapes":
        grape = paint(rng.choice(("violet", "olive")), rng)
        for y, count in ((0.3, 3), (0.21, 4), (0.12, 3), (0.05, 2)):
            for x in (np.arange(count) - (count - 1) / 2) * 0.09:
                pen.solid(ellipse(y, 0.056, 0.056, 12) + (x, 0), grape)
        pen.lines([[(0, 0.34), (0.04, 0.45)]], stem, 0.025)
        return
    if kind == "pear":
        pen.solid(
            outline(np.array([0.05, 0.15, 0.17, 0.1, 0.07, 0.02]), np.array([0, 0.06, 0.15, 0.28, 0.36, 0.41])),
            pigment((66, 0.6, 0.75), rng),
        )
        pen.lines([[(0, 0.4), (0.03, 0.48)]], stem, 0.025)
        return
    hue = {"apple": (rng.choice((4, 80)), 0.78, 0.76), "orange": (28, 0.85, 0.93), "lemon": (52, 0.75, 0.94)}
    colour = pigment(hue.get(kind, (300, 0.5, 0.42)), rng)
    wide = {"lemon": 1.25, "plum": 0.8}.get(kind, 1.0) * 0.16
    pen.solid(ellipse(0.15, wide, 0.15), colour)
    pen.dots([(-0.06, 0.22)], 0.028, tone(colour, 1.75))
    if kind in ("apple", "plum"):
        pen.lines([[(0, 0.27), (0.02, 0.36)]], stem, 0.022)
        pen.fill([(0.02, 0.33), (0.1, 0.38), (0.13, 0.33), (0.07, 0.3)], (90, 122, 60))


def draw_bowl(pen: Pen, rng: np.random.Generator) -> None:
    """A bowl heaped with fruit."""
    for x, y in ((-0.2, 0.3), (0.2, 0.3), (-0.02, 0.32), (-0.12, 0.46), (0.12, 0.45)):
        draw_fruit(pen.moved(x, y, 0.95), rng.choice(FRUITS[:4]), rng)
    china = paint(rng.choice(("white", "azure", "cream", "rust")), rng)
    pen.fill(outline(np.array([0.16, 0.12]), np.array([0.0, 0.06])), tone(china, 0.6))
    pen.solid(-arc(np.pi, 17) * (0.44, 0.34) + (0, 0.38), china, 0.4)
    band = np.linspace(-0.4, 0.4, 9)
    pen.dots(np.column_stack([band * 0.92, np.full(9, 0.31)]), 0.024, tone(paint(rng.choice(JEWELS), rng), 0.9), 1)


def draw_vase(pen: Pen, rng: np.random.Generator) -> None:
    """A vase of flowers."""
    heads = np.column_stack([np.linspace(-0.36, 0.36, 7), 0.88 + 0.14 * rng.standard_normal(7)])
    pen.lines([[(0, 0.4), head] for head in heads], (74, 100, 58), 0.022)
    colours = [paint(name, rng) for name in rng.choice(("scarlet", "gold", "rose", "white", "orange", "lilac"), 2)]
    for index, (x, y) in enumerate(heads):
        pen.fill(
            np.array([(0, 0), (0.13, 0.05), (0.02, 0.12)]) * rng.choice((-1, 1)) + (0.6 * x, 0.4 + 0.5 * (y - 0.4)),
            (98, 130, 72),
        )
        petals, colour = int(rng.integers(5, 9)), colours[index % 2]
        pen.solid(closed(0.09 + 0.035 * np.cos(petals * steps(0, TURN, 41)[:-1])) + (x, y), colour, 0)
        pen.dots([(x, y)], 0.035, tone(paint("gold", rng), 0.8), 1)
    half = np.array([0.1, 0.16, 0.18, 0.12, 0.08, 0.11]) * rng.uniform(0.9, 1.25)
    china = paint(rng.choice(("azure", "white", "teal", "rust", "gold")), rng)
    pen.solid(outline(half, np.array([0, 0.08, 0.2, 0.36, 0.44, 0.5])), china)
    pen.lines([[(-half[2] * 0.9, 0.2), (0, 0.17), (half[2] * 0.9, 0.2)]], tone(china, 0.55), 0.025)


def draw_bottle(pen: Pen, rng: np.random.Generator) -> None:
    """A bottle."""
    glass = pigment(((110, 0.5, 0.4), (30, 0.6, 0.45), (200, 0.4, 0.5))[rng.integers(3)], rng)
    heights = np.array([0, 0.02, 0.5, 0.62, 0.7, 0.95, 0.96, 1.0])
    pen.solid(outline(np.array([0.13, 0.15, 0.15, 0.1, 0.05, 0.05, 0.065, 0.065]), heights), glass, 0.3)
    pen.lines([[(-0.09, 0.08), (-0.09, 0.5)]], tone(glass, 1.6), 0.025)


def draw_jug(pen: Pen, rng: np.random.Generator) -> None:
    """A jug with a handle."""
    clay = paint(rng.choice(("rust", "cream", "slate", "ochre", "teal")), rng)
    pen.lines([arc(TURN, 19) * (0.13, 0.16) + (0.2, 0.4)], tone(clay, 0.6), 0.05)
    pen.solid(outline(np.array([0.13, 0.22, 0.23, 0.15, 0.1, 0.13]), np.array([0, 0.1, 0.28, 0.46, 0.58, 0.68])), clay)
    pen.solid(ellipse(0.68, 0.13, 0.035), clay, 0)
    pen.lines([[(-0.21, 0.26), (0, 0.22), (0.21, 0.26)]], tone(clay, 1.4), 0.03)


def draw_candle(pen: Pen, rng: np.random.Generator) -> None:
    """A burning candle on a holder."""
    brass = paint("gold", rng)
    pen.solid(ellipse(0.03, 0.2, 0.05), brass, 0)
    pen.solid(outline(np.array([0.05, 0.04, 0.08]), np.array([0.04, 0.2, 0.25])), brass)
    pen.solid(outline(np.array([0.055, 0.05]), np.array([0.25, 0.7])), paint("cream", rng), 0.2)
    for size, colour in ((1.0, (255, 186, 72)), (0.6, (255, 240, 190))):
        pen.fill(
            outline(size * np.array([0.0, 0.045, 0.035, 0.0]), 0.72 + np.array([0, 0.06, 0.12, 0.24]) * size), colour
        )


# ---- ornament


def draw_ornament(easel: Easel, rng: np.random.Generator) -> None:
    """Tiles, a rosette, a star mosaic or a vine border round a medallion."""
    names = rng.choice(JEWELS, 3, replace=False)
    colours = [paint(name, rng) for name in names]
    ground = paint(rng.choice(("cream", "white", "tan")), rng)
    easel.ridge(np.full(2, easel.tall + 0.1), tone(ground, 1.05))
    (_draw_tiles, _draw_rosette, _draw_stars, _draw_medallion)[rng.integers(4)](easel, ground, colours, rng)


def _draw_tiles(easel: Easel, ground: Colour, colours: list[Colour], rng: np.random.Generator) -> None:
    side, kind = 2 / rng.integers(3, 5), rng.integers(3)
    across, down = int(np.ceil(easel.wide / side)), int(np.ceil(easel.tall / side))
    for column in range(-across, across + 1):
        for row in range(-down, down + 1):
            pen = easel.moved(column * side, row * side, side / 2)
            first, second = colours[(column + row) % 2], colours[2]
            if kind == 0:
                for turn in range(4):
                    corner = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)][turn])
                    pen.solid(ellipse(0, 0.72, 0.72) * 0.9 + corner, first, 0)
                pen.solid(closed([0.6, 0.25] * 4), second, 0)
            elif kind == 1:
                pen.solid(closed(0.62 + 0.28 * np.cos(4 * steps(0, TURN, 49)[:-1]), np.pi / 4), first, 0)
                pen.solid(closed(0.28 + 0.1 * np.cos(8 * steps(0, TURN, 49)[:-1])), second, 0)
                pen.dots([(-1, -1), (1, 1), (1, -1), (-1, 1)], 0.22, tone(second, 0.9), 1)
            else:
                pen.fill([(-1, -1), (1, -1), (1, 1), (-1, 1)], tone(first, 1.15 if (column + row) % 2 else 0.85))
                pen.solid([(0, -0.8), (0.8, 0), (0, 0.8), (-0.8, 0)], ground, 0)
                pen.solid(closed(0.34 + 0.12 * np.cos(4 * steps(0, TURN, 41)[:-1])), second, 0)
            pen.lines([[(-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1)]], tone(ground, 0.8), 0.05)


def _draw_rosette(easel: Easel, ground: Colour, colours: list[Colour], rng: np.random.Generator) -> None:
    easel.ridge(np.full(2, easel.tall + 0.1), tone(colours[0], 0.7))
    for x in (-easel.wide, easel.wide):
        for y in (-easel.tall, easel.tall):
            easel.solid(closed(0.4 + 0.06 * np.cos(12 * steps(0, TURN, 73)[:-1])) + (x, y), colours[1], 0)
    for ring, radius in enumerate(np.linspace(0.92, 0.22, int(rng.integers(4, 7)))):
        petals, depth = int(rng.choice((6, 8, 12, 16))), rng.uniform(0.05, 0.16)
        waves = np.cos(petals * steps(0, TURN, 145)[:-1])
        shape = closed(radius * (1 - depth + depth * (np.abs(waves) if ring % 2 else waves)))
        easel.solid(shape, (ground, *colours)[ring % 4], 0)
        angle = TURN * np.arange(petals) / petals
        easel.dots(
            np.column_stack([np.cos(angle), np.sin(angle)]) * radius * 0.82, 0.035, tone(colours[ring % 3], 1.3), 1
        )


def _draw_stars(easel: Easel, ground: Colour, colours: list[Colour], rng: np.random.Generator) -> None:
    side, points = 2 / rng.integers(2, 5), int(rng.choice((8, 6, 12)))
    easel.ridge(np.full(2, easel.tall + 0.1), tone(colours[0], 0.9))
    across, down = int(np.ceil(easel.wide / side)), int(np.ceil(easel.tall / side))
    for column in range(-across, across + 1):
        for row in range(-down, down + 1):
            pen = easel.moved((column + 0.5) * side, (row + 0.5) * side, side / 2)
            pen.solid(closed([0.95, 0.66] * points), ground, 0)
            pen.solid(closed([0.66, 0.36] * points, np.pi / points), colours[1 + (column + row) % 2], 0)
            pen.dots([(0, 0)], 0.2, tone(ground, 1.05), 1)
            pen.solid([(-1, -0.72), (-0.72, -1), (-1, -1.28), (-1.28, -1)], colours[2 - (column + row) % 2], 0)


def _draw_medallion(easel: Easel, ground: Colour, colours: list[Colour], rng: np.random.Generator) -> None:
    wide, tall = easel.wide, easel.tall
    for inset, colour in ((0.03, tone(colours[0], 0.9)), (0.26, tone(ground, 0.7)), (0.29, tone(ground, 1.1))):
        x, y = wide - inset, tall - inset
        easel.fill([(-x, -y), (x, -y), (x, y), (-x, y)], colour)
    loop = np.linspace(0, 1, 2 + 2 * int(8 * (wide + tall)))
    x, y = wide - 0.15, tall - 0.15
    corners = np.array([(-x, -y), (x, -y), (x, y), (-x, y), (-x, -y)])
    far = np.cumsum([0, x, y, x, y]) / (2 * x + 2 * y)
    path = np.column_stack([np.interp(loop, far, corners[:, 0]), np.interp(loop, far, corners[:, 1])])
    easel.lines([path], tone(ground, 0.9), 0.03)
    for index, (px, py) in enumerate(path[::2]):
        easel.fill(
            closed(0.05 + 0.035 * np.cos((2, 5)[index % 2] * steps(0, TURN, 31)[:-1]), index) + (px, py),
            tone(paint(rng.choice(("gold", "cream")), rng), 1.1),
        )
    half = np.array([0.55, 0.6, 0.42]) * min(wide, tall)
    easel.solid(closed(half[0] + 0.05 * np.cos(16 * steps(0, TURN, 97)[:-1])), colours[1], 0)
    easel.fill(closed(np.full(40, half[0] * 0.84)), tone(ground, 1.1))
    petals = int(rng.integers(5, 9))
    for size, colour in ((0.78, colours[2]), (0.5, paint(rng.choice(CLOTHES), rng)), (0.24, ground)):
        easel.solid(closed(half[0] * size * (0.72 + 0.28 * np.cos(petals * steps(0, TURN, 97)[:-1]))), colour, 0)
    for sx in (-1, 1):
        for sy in (-1, 1):
            spot = np.array([sx * (wide - 0.4), sy * (tall - 0.4)])
            easel.solid(closed(0.1 + 0.05 * np.cos(4 * steps(0, TURN, 41)[:-1])) + spot, colours[0], 0)
