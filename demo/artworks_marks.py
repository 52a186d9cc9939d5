"""Damage that lies on an artwork: how each kind looks.

The painters, one function a class, all get the sheet to damage, the place and the size (a radius, mostly) in artwork
units, and a generator of their own.
"""

import numpy as np

from demo.artworks_scenes import closed
from demo.artworks_shapes import dots, mottle, ragged, scattered, turned
from demo.artworks_sheet import Patch, Sheet, overlap
from demo.fungarium_bodies import TURN

INKS = ((32, 38, 120), (164, 24, 34), (22, 20, 24), (92, 30, 110))


def _letter(text: str) -> np.ndarray:
    return np.array([[float(number) for number in point.split(",")] for point in text.split()])


# Strokes of a pen, y down, 0 the foot and -1 the top of a tall letter.
LETTERS = tuple(
    _letter(strokes)
    for strokes in (
        "0,0 0.5,0 0.5,-.5 0,-.5 0,0",  # o
        "0,-1 0,0 0,-.4 .25,-.5 .45,-.3 .45,0",  # h
        "0,-.5 0,0 0,-.35 .3,-.5 .5,-.35 .5,0",  # n
        "0,-.5 0,-.1 .2,0 .45,-.15 .45,-.5 .45,0",  # u
        "0,0 .15,-.9 .3,-1 .2,-.4 .2,0 .4,0",  # l
        "0,-.25 .45,-.25 .4,-.5 .1,-.5 0,-.2 .2,0 .5,0",  # e
        "0,-.6 .35,-.6 .18,-.6 .18,-1 .18,0 .4,0",  # t
        "0,-.5 .2,0 .4,-.5",  # v
        "0,-.5 0,0 .4,0 .45,-.5 .45,.4 .1,.4",  # y
        "0,0 0,-.5 .2,-.4 .2,0 .2,-.4 .45,-.5 .5,0",  # m
    )
)


def dust(sheet: Sheet, at: np.ndarray, size: float, rng: np.random.Generator) -> None:
    """A pale film full of light specks."""
    stencil = sheet.stencil().fill(at + ragged(size, rng, 0.12))
    for place in scattered(at, size, 2, rng):
        stencil.fill(place + ragged(size * 0.6, rng, 0.12))
    film = stencil.patch().soft(2)
    sheet.blend(film, (214, 210, 202), 0.36)
    points = scattered(at, size * 1.3, int(rng.integers(60, 110)), rng)
    specks = dots(sheet, points, rng.uniform(0.7, 1.5, len(points)))
    within = overlap(specks, Patch(film.box, (film.cover > 0.5).astype(np.float32)))
    sheet.blend(within, (250, 248, 242), 0.9)
    sheet.mark(film, "Dust")


def hair(sheet: Sheet, at: np.ndarray, size: float, rng: np.random.Generator) -> None:
    """One to three thin dark curls."""
    stencil, t = sheet.stencil(), np.linspace(0, 1, 26)[:, None]
    for place in (at, *scattered(at, size, rng.integers(0, 3), rng)):
        angle = rng.uniform(0, TURN)
        knots = np.array([(-1.3, 0), (-0.5, rng.normal(0, 1.5)), (0.5, rng.normal(0, 1.5)), (1.3, 0)]) * size
        knots = place + turned(knots, angle)
        curve = (1 - t) ** 3 * knots[0] + 3 * t * (1 - t) ** 2 * knots[1] + 3 * t**2 * (1 - t) * knots[2]
        stencil.line(curve + t**3 * knots[3], 0.011)
    patch = stencil.patch()
    sheet.blend(patch, (20, 15, 14), 0.95)
    sheet.mark(patch, "Hair")


def soil(sheet: Sheet, at: np.ndarray, size: float, rng: np.random.Generator) -> None:
    """A brownish, blotchy smudge."""
    stencil = sheet.stencil()
    smear = np.outer(np.linspace(-0.9, 0.9, 5), turned(np.array([1.0, 0]), rng.uniform(0, TURN))) * size
    for step in smear:
        stencil.fill(at + step + ragged(size * rng.uniform(0.4, 0.75), rng, 0.15, 24))
    patch = stencil.patch().soft(2.5)
    sheet.mark(patch, "Dirt")
    sheet.blend(patch, np.array((78, 60, 38)) + 22 * mottle(patch, rng, 9), 0.7)
    grit = Patch(patch.box, patch.cover * (mottle(patch, rng, 40)[..., 0] > 0.45))
    sheet.blend(grit, (40, 30, 22), 0.55)


def write(sheet: Sheet, at: np.ndarray, size: float, rng: np.random.Generator) -> None:
    """Lines of handwriting."""
    stencil, angle, height = sheet.stencil(), rng.normal(0, 0.16), 0.055
    slant = np.array([[1.0, 0.0], [-0.22, 1.0]])
    for line in range(rng.integers(2, 4)):
        x = -size
        while x < size * rng.uniform(0.7, 1.0):
            for _ in range(rng.integers(2, 6)):
                letter = LETTERS[rng.integers(len(LETTERS))] @ slant * height
                stencil.line(at + turned(letter + (x, (line - 0.5) * 1.6 * height), angle), 0.0125)
                x += np.ptp(letter[:, 0]) + 0.018
            x += 0.035
    patch = stencil.patch()
    sheet.blend(patch, INKS[rng.integers(3)], 0.92)
    sheet.mark(patch, "Writing")


def stain(sheet: Sheet, at: np.ndarray, size: float, rng: np.random.Generator) -> None:
    """A translucent brown blot with the dark tide-line where it dried."""
    shapes = [(at, ragged(size, rng, 0.11))]
    shapes += [(place, ragged(size * 0.5, rng, 0.1)) for place in scattered(at, size * 1.1, rng.integers(0, 3), rng)]
    whole, middle, inset = sheet.stencil(), sheet.stencil(), max(0.014, 2.2 / sheet.view.scale)
    for place, shape in shapes:
        whole.fill(place + shape)
        middle.fill(place + shape * (1 - inset / np.abs(shape).max()))
    patch = whole.patch()
    inner = overlap(middle.patch(), patch)
    sheet.blend(patch, (170, 118, 58), 0.22)
    sheet.multiply(patch, (0.9, 0.76, 0.5))
    rim = np.array(patch.cover)
    rows, columns = (slice(i.start - w.start, i.stop - w.start) for i, w in zip(inner.box, patch.box, strict=True))
    rim[rows, columns] -= inner.cover
    sheet.blend(Patch(patch.box, np.clip(rim, 0, 1)), (104, 62, 26), 0.75)
    sheet.mark(patch, "Staining")


def stamp(sheet: Sheet, at: np.ndarray, size: float, rng: np.random.Generator) -> None:
    """An ink stamp: a ring or a frame with a device in its middle, semi-transparent."""
    circle, angle = rng.random() < 0.6, rng.normal(0, 0.35)
    frame = closed(np.ones(40)) if circle else np.array([(-1.2, -0.75), (1.2, -0.75), (1.2, 0.75), (-1.2, 0.75)])
    frame = turned(frame * size, angle)
    closing, width = np.vstack([frame, frame[:2]]), size * 0.13
    lines = sheet.stencil().line(at + closing * 0.94, width).line(at + closing * 0.66, width * 0.6)
    if circle:
        for turn in TURN * np.arange(14) / 14:
            tick = turned(np.array([(0.74, 0.0), (0.86, 0.07 * rng.choice((-1, 1)))]) * size, turn)
            lines.line(at + tick, width * 0.8)
        lines.fill(at + turned(closed([0.5, 0.2] * 5) * size, angle))
    else:
        for row in (-0.22, 0.22):
            bars = np.linspace(-0.62, 0.62, 6)
            for x in bars:
                lines.line(
                    at + turned(np.array([(x, row - 0.12), (x + rng.normal(0, 0.06), row + 0.12)]) * size, angle)
                )
    ink, whole = INKS[rng.choice((0, 1, 3))], sheet.stencil().fill(at + frame).patch()
    sheet.blend(whole, (232, 226, 222), 0.3)
    sheet.blend(whole, ink, 0.2)
    sheet.blend(overlap(lines.patch(), whole), ink, 0.78)
    sheet.mark(whole, "Stamp")


def stick(sheet: Sheet, at: np.ndarray, size: float, rng: np.random.Generator) -> None:
    """A pale paper label, askew, with a coloured frame and printed lines."""
    angle, colour = rng.normal(0, 0.35), rng.choice(((176, 40, 44), (40, 70, 150), (36, 110, 80)))
    corners = np.array([(-1.25, -0.8), (1.25, -0.8), (1.25, 0.8), (-1.25, 0.8), (-1.25, -0.8)]) * size
    label = sheet.stencil().fill(at + turned(corners, angle)).patch()
    sheet.blend(label, (250, 246, 232))
    sheet.multiply(label.edge(-1, -1), (0.5, 0.48, 0.46))
    sheet.blend(overlap(sheet.stencil().line(at + turned(corners * 0.8, angle), 0.01).patch(), label), colour, 0.9)
    text = sheet.stencil()
    for row, reach in ((-0.28, 0.7), (0.05, 0.45), (0.36, 0.6)):
        text.line(at + turned(np.array([(-0.7, row), (reach, row)]) * size, angle), 0.01)
    sheet.blend(overlap(text.patch(), label), (66, 62, 70), 0.75)
    sheet.mark(label, "Sticker")
