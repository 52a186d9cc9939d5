"""What the invented artworks show: portraits, landscapes, still lifes and ornaments, in flat colour.

What they consist of is written as texts that `Pen.sketch` draws. A scene is drawn in units of half the short side of
its canvas: x runs from -wide to wide, y (upwards) from -tall to tall.
"""

import itertools
import re
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from demo.shapes import TURN, Colour, Ink, Pen, paint, points, tone


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


# Texts by kind; of several of a kind, one is drawn. Fruits and vessels stand on y = 0; tiles are 2 by 2.
TEXTS = """
backdrop: E wall*1.45 .84 .6 0,.38; P wall*1.45 -.84,.38 .84,.38 .84,-2 -.84,-2; E wall*.55 .77 .54 0,.36;
  P wall*.55 -.77,.38 .77,.38 .77,-2 -.77,-2
backdrop: P wall*.4 .38,.06 1,.06 1,.84 .38,.84; P azure*1.6 .42,.1 .96,.1 .96,.8 .42,.8; P leaf*1.1 .42,.1 .96,.1
  .96,.3 .75,.45 .42,.25; l wall*.4 .04 .69,.1 .69,.8; l wall*.4 .04 .42,.45 .96,.45
backdrop: c=scarlet|violet|gold; P c*.65 .3,2 .5,2 .6,-2 .45,-2; P c*.95 .44,2 .66,2 .7,-2 .56,-2; P c*.65 .6,2 .8,2
  .84,-2 .7,-2; P c*.95 .76,2 .96,2 .96,-2 .82,-2; P c*.7 .92,2 1.6,2 1.6,-2 .94,-2
backdrop: E gold*1.2 .6 .6 0,.3; E gold*.95 .54 .54 0,.3
behind long: t hair*.5 .45,-.5 .48,-.1 .44,.3 .39,.6 .27,.78
behind bun: e hair .17 .15 0,.86; e hair .35 .44 0,.36
behind short: e hair .35 .44 0,.36
behind bald: e skin .05 .09 -.3,.24 .3,.24
bust: T skin*.75 .17,-.5 .12,-.25 .12,.1; t cloth*.5 .8~.96,-2.6 .85,-1 .73,-.62 .53,-.45 .31,-.36 .17,-.3
collar: p skin*.2 -.2,-.28 .2,-.28 0,-.72
collar: p skin*.2 -.24,-.29 .24,-.29 0,-.6; E cream*1.1 .03 .03 -.24,-.38 -.17,-.46 -.09,-.5 0,-.52 .09,-.5 .17,-.46
  .24,-.38
collar: e white*.2 .055 .09 -.3,-.3 -.22,-.33 -.15,-.35 -.07,-.36 0,-.36 .07,-.36 .15,-.35 .22,-.33 .3,-.3
collar: P trim*.9 -.22,-.3 .22,-.3 .1,-.5 .1,-3 -.1,-3 -.1,-.5; E trim*1.5 .034 .034 0,-.6 0,-.77 0,-.94 0,-1.11
collar: p trim*.2 -.26,-.3 .26,-.3 .2,-.46 -.2,-.46
face: EE blush*1.05 .075 .06 .17,.15; EE white*1.1 .056 .034 .13,.32; EE black*.7 .03 .03 .13,.32; ll hair*.6 .026
  .04,.41 .13,.44 .22,.41; l skin*.62 .022 .02,.3 .06,.15 -.01,.13; P rust*1.1 -.09,.03~.05 -.02,.045 .02,.045
  .09,.03~.05 0,-.025; q skin*.45 .014 -.1,.04 -.03,-.01~.03 .03,-.01~.03 .1,.04
beard: p hair*.1 -.3,.2 -.28,.02 -.2,-.14 0,-.28~-.15 .2,-.14 .28,.02 .3,.2 .2,.08 .1,.11 -.1,.11 -.2,.08;
  l scarlet*.8 .035 -.07,.035 .07,.035
before long: p hair*.2 -.31,.3 -.3,.48 -.2,.66 0,.74 .2,.66 .3,.48 .31,.3 .29,.36 .05,.56 -.18,.48 -.29,.34
before bun: p hair*.2 -.31,.3 -.28,.56 0,.74 .28,.56 .31,.3 .28,.4 0,.6 -.28,.4
before short: p hair*.2 -.31,.3 -.3,.5 -.2,.68 0,.75 .2,.68 .3,.5 .31,.3 .28,.45 -.1,.56 -.29,.34
before bald:
hat: e hat .46 .17 .08,.66
hat: t hat*.3 .28,.58 .26,.85 .27,1.05; e hat*.2 .5 .07 0,.58
hat: p gold*.2 -.3,.56 -.33,.86 -.16,.7 0,.92 .16,.7 .33,.86 .3,.56
hat: p hat -.34,.47 -.34,.56 -.26,.77 -.13,.85 0,.87 .13,.85 .26,.77 .34,.56 .34,.47; E hat*1.4 .06 .06 0,.9
boat: p rust*.3 .26,.06 -.26,.06 -.18,-.06 .16,-.06; c=cream|scarlet|white; p c*.2 -.02,.1 -.02,.62 .24,.12;
  p cream*.2 -.06,.1 -.06,.5 -.2,.12
house: w=cream|white|rose; p w*.1 -.16,-.1 .16,-.1 .16,.12 -.16,.12; c=rust|slate|scarlet; p c*.1 -.2,.12 .2,.12
  0,.3; P w*.35 -.03,-.1 .05,-.1 .05,.03 -.03,.03
poplar: P brown -.03,-.1 .03,-.1 .02,.25 -.02,.25; t leaf .04,0 .11,.15 .1,.4 .06,.65 0,.85
oak: P brown -.03,-.1 .03,-.1 .02,.25 -.02,.25; r leaf*.5 .22~.26 .08 7 0,.36
fir: P brown -.03,-.1 .03,-.1 .02,.25 -.02,.25; p leaf*.1 -.24,.05 .24,.05 0,.39; p leaf*.1 -.19,.22 .19,.22 0,.56;
  p leaf*.1 -.13,.4 .13,.4 0,.74
fruit: f=scarlet|olive; e f*.5 .16 .15 0,.15; E f*1.75 .028 .022 -.06,.22; l brown*.9 .022 0,.27 .02,.36;
  P leaf .02,.33 .1,.38 .13,.33 .07,.3
fruit: e orange*.5 .16 .15 0,.15; E orange*1.75 .028 .022 -.06,.22
fruit: e gold*.5 .2 .14 0,.14; E gold*1.75 .028 .022 -.06,.21
fruit: t olive*.5 .05,0 .15,.06 .17,.15 .1,.28 .07,.36 .02,.41; l brown*.9 .025 0,.4 .03,.48
fruit: e plum*.5 .13 .15 0,.15; E plum*1.75 .028 .022 -.05,.22; l brown*.9 .022 0,.27 .02,.36
fruit: g=violet|olive; e g*.5 .056 .056 -.09,.3 0,.3 .09,.3 -.13,.21 -.04,.21 .05,.21 .14,.21 -.09,.12 0,.12 .09,.12
  -.04,.05 .05,.05; l brown*.9 .025 0,.34 .04,.45
bowl: c=white|azure|cream|rust; T c*.6 .16,0 .12,.06; p c -.44,.38 -.42,.27 -.34,.15 -.22,.07 0,.04 .22,.07 .34,.15
  .42,.27 .44,.38; d=azure|scarlet|teal|gold|rust; E d*.9 .024 .024 -.37,.31 -.28,.31 -.18,.31 -.09,.31 0,.31 .09,.31
  .18,.31 .28,.31 .37,.31
flower: P leaf 0,-.35 -.13~.13,-.3 .02,-.22; r f*.01 .07~.11 .28 5~8 0,0; E gold*.8 .035 .035 0,0
vase: c=azure|white|teal|rust|gold; t c*.5 .1,0 .16,.08 .18~.22,.2 .12,.36 .08,.44 .11,.5; q c*.55 .025 -.17,.2
  -.05,.16 .05,.16 .17,.2
bottle: c=teal|olive|brown|slate; t c*.3 .13,0 .15,.02 .15,.5 .1,.62 .05,.7 .05,.95 .065,.96 .065,1;
  l c*1.6 .025 -.09,.08 -.09,.5
jug: c=rust|cream|slate|ochre|teal; q c*.6 .05 .1,.54 .4,.66 .4,.3 .2,.24; t c*.5 .13,0 .22,.1 .23,.28 .15,.46
  .1,.58 .13,.68; e c*.01 .13 .035 0,.68; q c*1.4 .03 -.21,.26 -.05,.2 .05,.2 .21,.26
candle: b=gold|slate; e b*.01 .2 .05 0,.03; t b*.5 .05,.04 .04,.2 .08,.25; t cream*.2 .055,.25 .05,.7;
  T orange*1.3 0,.72 .045,.78 .035,.84 0,.96; T cream*1.4 0,.72 .027,.76 .02,.79 0,.86
tile: e a*.01 .65 .65 -1,-1 1,-1 1,1 -1,1; s c*.01 .6 .25 4 0,0; l g*.8 .05 -1,-1 1,-1 1,1
tile: r a*.01 .62 .42 4 0,0; r c*.01 .28 .35 8 0,0; E c*.9 .22 .22 -1,-1 1,1 1,-1 -1,1; l g*.8 .05 -1,-1 1,-1 1,1
tile: P a -1,-1 1,-1 1,1 -1,1; p g*.01 0,-.8 .8,0 0,.8 -.8,0; r c*.01 .34 .35 4 0,0; l g*.8 .05 -1,-1 1,-1 1,1
star: P b*.9 -1,-1 1,-1 1,1 -1,1; s g*.01 .95 .66 8 0,0; s a*.01 .66 .36 8 0,0; E g .2 .2 0,0; p c*.01 -1,-.72
  -.72,-1 -1,-1.28 -1.28,-1
star: P b*.9 -1,-1 1,-1 1,1 -1,1; s g*.01 .95 .6 6 0,0; s a*.01 .62 .3 6 0,0; E g .2 .2 0,0; p c*.01 -1,-.72 -.72,-1
  -1,-1.28 -1.28,-1
rosette: P a*.7 -2,-2 2,-2 2,2 -2,2; r g*.01 .9 .05~.1 12~16 0,0; r b*.01 .78 .06~.16 8~12 0,0; O a*1.1 .035 .68 16
  0,0; r a*.01 .6 .06~.16 8~12 0,0; r c*.01 .46 .1~.2 6~8 0,0; O g*1.1 .03 .36 12 0,0; r g*.01 .3 .1~.3 6~8 0,0;
  r b*.01 .15 .2 6 0,0
border: P a*.9 -.97,-.97 .97,-.97 .97,.97 -.97,.97; P g*.7 -.8,-.8 .8,-.8 .8,.8 -.8,.8; P g*1.1 -.77,-.77 .77,-.77
  .77,.77 -.77,.77
medallion: r b*.01 .56 .09 16 0,0; E g*1.1 .47 .47 0,0; r c*.01 .42 .3 5~8 0,0; r d*.01 .27 .3 5~8 0,0;
  r g*.01 .13 .3 6 0,0
"""
DRAWINGS: dict[str, list[str]] = {}
for entry in re.sub(r"\n +", " ", TEXTS.strip()).splitlines():
    DRAWINGS.setdefault(entry.split(":")[0], []).append(entry.split(":")[1])


def draw(pen: Pen, kind: str, rng: np.random.Generator, **colours: Colour) -> None:
    """Draw something of this kind."""
    pen.sketch(DRAWINGS[kind][rng.integers(len(DRAWINGS[kind]))], rng, **colours)


def draw_portrait(easel: Easel, rng: np.random.Generator) -> None:
    """A head and shoulders before a niche, a window, a curtain or a halo."""
    dress = "scarlet|rust|olive|teal|azure|violet|slate|gold|rose|brown"
    names = {"skin": "ivory|almond|umber|sienna", "hair": "black|brown|chestnut|ochre|slate", "cloth": dress}
    names |= {"trim": dress, "hat": dress, "wall": "olive|teal|slate|ochre|rust|azure|tan"}
    colours = {name: paint(choices, rng) for name, choices in names.items()}
    colours["blush"] = np.array(colours["skin"]) * 0.65 + (0.33, 0.12, 0.1)
    easel.wash(tone(colours["wall"], 1.1), tone(colours["wall"], 0.65), easel.tall, -easel.tall)
    draw(easel.moved(0, 0, (rng.choice((-1, 1)), 1)), "backdrop", rng, **colours)
    size = rng.uniform(0.9, 1.1) * np.array([rng.uniform(0.9, 1.07), 1])
    body = easel.moved(rng.normal(0, 0.06), rng.uniform(-0.1, 0.0), size)
    head = body.moved(rng.normal(0, 0.04), 0)
    face = head.moved(rng.normal(0, 0.02), rng.normal(0, 0.012))
    style = ("long", "bun", "short", "bald")[rng.integers(4)]
    bearded, hat = style in ("short", "bald") and rng.random() < 0.5, rng.random() < 0.45
    for pen, kind in ((head, f"behind {style}"), (body, "bust"), (body, "collar")):
        draw(pen, kind, rng, **colours)
    head.sketch("e skin*.3 .3 .4 0,.28", rng, **colours)
    parts = (face, "face"), (face, "beard" * bearded), (head, f"before {style}"), (head, "hat" * hat)
    for pen, kind in parts:
        if kind:
            draw(pen, kind, rng, **colours)


SKIES = (("azure", "haze"), ("dusk", "dawn"), ("morning", "haze"), ("night", "azure"))  # above and at the horizon


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
    sun = easel.moved(rng.uniform(-0.7, 0.7) * wide, rng.uniform(horizon + 0.3, 0.8 * tall))
    sun.sketch("E low*1.25 .26 .26 0,0; E low*1.5 .18 .18 0,0; E cream*1.2 .12 .12 0,0", rng, low=low)
    for x, y in rng.uniform((-wide, horizon + 0.3), (wide, tall), (rng.integers(1, 5), 2)):
        puffs = points(np.linspace(-0.2, 0.2, 5), 0.03 * rng.standard_normal(5)) + (x, y)
        easel.dots(puffs, 0.1, tone(low, 1.65), 0.55)
        easel.dots(puffs + (-0.02, 0.03), 0.07, tone(low, 1.85), 0.55)
    land, layers = np.array(paint("leaf|olive|teal|ochre", rng)), int(rng.integers(2, 5))
    for near in np.arange(1, layers + 1) / layers:
        haze = land * near + (1 - near) * (low * 0.55 + high * 0.35)
        line = hills(rng, rng.uniform(0.3, 0.75)) * (0.24 - 0.14 * near) + horizon + 0.26 - 0.36 * near
        easel.ridge(line + 0.018, tone(haze, 0.78))
        easel.ridge(line, tone(haze, 0.8 + 0.25 * near))
    wet, shore, place = rng.random() < 0.45, horizon - 0.28, rng.uniform(-0.6, 0.6) * wide
    forest = ("poplar", "oak", "fir")[rng.integers(3)]
    if wet:
        water = low * 0.5 + np.array((0.25, 0.45, 0.6)) * 0.5
        easel.wash(tone(water, 1.1), tone(water, 0.7), shore, -tall - 0.05)
        waves = rng.uniform((-wide, -tall), (wide, shore), (26, 1, 2)) + [(-0.09, 0), (0.09, 0)]
        easel.lines(waves, tone(water, 1.35), 0.012)
    else:
        for row, factor in enumerate((0.92, 1.12, 0.85, 1.02)):
            easel.ridge(hills(rng, 0.3) * 0.05 + shore - 0.02 - row * (tall + shore) / 4, tone(land, factor))
    middle = easel.moved(place, shore - (0.22 if wet else 0.04), rng.uniform(0.7, 1.2))
    draw(middle, "boat" if wet else "house", rng)
    for depth in np.sort(rng.uniform(0.05, 0.5, rng.integers(2, 6))):
        x = rng.uniform(-wide, wide)
        # Trees stand beside what the picture is about, and on dry land.
        x = x if abs(x - place) > 0.4 else place + np.copysign(rng.uniform(0.4, 0.8), x - place)
        tree = easel.moved(x, shore - (0.02 if wet else depth), (0.5 + depth) * rng.uniform(0.9, 1.3))
        draw(tree, forest, rng, leaf=np.array(paint("leaf|olive|teal", rng)) * 0.85)


def draw_still_life(easel: Easel, rng: np.random.Generator) -> None:
    """Fruit, bowls, bottles, flowers and candles on a table."""
    wall, cloth = paint("olive|teal|slate|ochre|brown|azure|rose", rng), paint("cream|rust|brown|white|azure|tan", rng)
    wide, edge = easel.wide, rng.uniform(-0.4, -0.22)
    easel.wash(tone(wall, 0.72), tone(wall, 1.12), easel.tall, -0.5)
    easel.ridge([edge, edge], tone(cloth, 0.95))
    easel.ridge([edge - 0.02] * 2, tone(cloth, 1.15))
    if rng.random() < 0.5:
        easel.ridge([-0.86, -0.86], tone(cloth, 0.7))
        for x in np.arange(-wide, wide, 0.24):
            easel.fill([(x, -0.86), (x + 0.12, -0.86), (x + 0.14, -3), (x, -3)], tone(cloth, 0.85))
    count, vessels = 2 + round((wide - 1) * 3), rng.permutation(["vase", "bottle", "jug", "candle", "vase", "jug"])
    places = np.linspace(0.4 - wide, wide - 0.4, count) + rng.normal(0, 0.05, count)
    things = [(vessel, x, edge - 0.1) for vessel, x in zip(vessels, places, strict=False)]
    if rng.random() < 0.7:
        things.append(("bowl", rng.uniform(-0.4, 0.4) * wide, edge - 0.32))
    places = rng.permutation(np.linspace(0.25 - wide, wide - 0.25, 5))[: rng.integers(2, 5)]
    things += [("fruit", x, edge - rng.uniform(0.36, 0.5)) for x in places]
    for kind, x, y in things:
        pen = easel.moved(x, y, rng.uniform(0.88, 1.1))
        pen.sketch("E cloth*.6 .26 .06 .1,.01", rng, cloth=cloth)
        if kind == "vase":
            heads = points(np.linspace(-0.36, 0.36, 7), 0.88 + 0.14 * rng.standard_normal(7))
            pen.lines([[(0, 0.4), head] for head in heads], (74, 100, 58), 0.022)
            colours = [paint("scarlet|gold|rose|white|orange|lilac", rng) for _ in range(2)]
            for index, head in enumerate(heads):
                draw(pen.moved(*head), "flower", rng, f=colours[index % 2])
        if kind == "bowl":
            for place in ((-0.2, 0.3), (0.2, 0.3), (-0.02, 0.32), (-0.12, 0.46), (0.12, 0.45)):
                draw(pen.moved(*place, 0.95), "fruit", rng)
        draw(pen, kind, rng)


def draw_ornament(easel: Easel, rng: np.random.Generator) -> None:
    """Tiles, a star mosaic, a rosette, or a border round a medallion."""
    jewels = rng.permutation(["azure", "scarlet", "teal", "gold", "violet", "rust", "olive", "slate"]).tolist()
    colours = {name: paint(jewel, rng) for name, jewel in zip("abcdg", (*jewels[:4], "cream|white|tan"), strict=True)}
    swapped = {**colours, "a": colours["b"], "b": colours["a"]}
    corners, kind = np.array([easel.wide, easel.tall]), ("tile", "star", "rosette", "medallion")[rng.integers(4)]
    easel.ridge([easel.tall + 0.1] * 2, tone(colours["g"], 1.05))
    if kind in ("tile", "star"):
        side, text = 2 / rng.integers(3, 5), DRAWINGS[kind][rng.integers(len(DRAWINGS[kind]))]
        across, down = np.ceil(corners / side).astype(int)
        for column, row in itertools.product(range(-across, across + 1), range(-down, down + 1)):
            cell = easel.moved(column * side, row * side, side / 2)
            cell.sketch(text, rng, **(swapped if (column + row) % 2 else colours))
        return
    if kind == "medallion":
        draw(easel.moved(0, 0, tuple(corners)), "border", rng, **colours)
        counts = np.round(4 * corners).astype(int)
        across, down = (np.linspace(-0.88, 0.88, 2 * count + 1) for count in counts)
        for x, y in [*itertools.product(across, (-0.88, 0.88)), *itertools.product((-0.88, 0.88), down[1:-1])]:
            easel.moved(*(corners * (x, y))).sketch("r gold*.01 .05 .35 5 0,0", rng)
    draw(easel, kind, rng, **colours)
    for signs in itertools.product((-1, 1), (-1, 1)):
        size, inset = (3, 0) if kind == "rosette" else (1, 0.45)
        easel.moved(*((corners - inset) * signs), size).sketch("r a*.01 .12 .45 4 0,0", rng, **colours)


SCENES = {
    "portrait": draw_portrait,
    "landscape": draw_landscape,
    "still life": draw_still_life,
    "ornament": draw_ornament,
}
