"""Damage to the substance of an artwork and to its light: how each kind looks.

The painters, one function a class, all get the sheet to damage, the place and the size (a radius, mostly) in artwork
units, and a generator of their own.
"""

import numpy as np

from demo.artworks_scenes import closed
from demo.artworks_shapes import mottle, ragged, scattered, turned
from demo.artworks_sheet import Patch, Sheet, overlap
from demo.fungarium_bodies import TURN

# What shows where the paint is gone.
GROUNDS = {"oil": (196, 172, 132), "fresco": (214, 208, 198), "paper": (150, 128, 104), "photograph": (240, 236, 226)}


# ---- structural


def lose_material(sheet: Sheet, at: np.ndarray, size: float, rng: np.random.Generator) -> None:
    """Ragged holes in the paint that show canvas, plaster or board, with a shadow at their upper left edge."""
    stencil = sheet.stencil().fill(at + ragged(size, rng, 0.22))
    for place in scattered(at, size * 1.7, rng.integers(1, 4), rng):
        stencil.fill(place + ragged(size * rng.uniform(0.2, 0.45), rng, 0.25, 20))
    patch = stencil.patch()
    texture = 12 * mottle(patch, rng, 24)
    if sheet.material == "oil":
        y, x = np.indices(patch.cover.shape)
        texture = texture + 20 * (np.where((x // 2 + y // 2) % 2, 1, -1))[..., None]
    sheet.blend(patch, np.array(GROUNDS[sheet.material]) + texture)
    sheet.multiply(patch.edge(2, 2), (0.4, 0.36, 0.32))
    sheet.blend(patch.edge(-1, -1), (255, 252, 240), 0.6)
    sheet.mark(patch, "Material loss")


def peel(sheet: Sheet, at: np.ndarray, size: float, rng: np.random.Generator) -> None:
    """Flakes that lift: a dark gap, and beside it the pale curled edge."""
    angle = rng.uniform(0, TURN)
    for place in at + turned(
        np.array([(0, 0), (0.9, 0.75), (-0.3, 1.2), (1.1, -0.5)])[: rng.integers(2, 5)] * size, angle
    ):
        flake = ragged(size * rng.uniform(0.6, 0.85), rng, 0.1, 24) * (1.0, 0.8)
        along = size * np.array([0.34, 0.0])
        whole = sheet.stencil().fill(place + turned(flake, angle)).patch()
        gap = sheet.stencil().fill(place + turned(flake * 0.86 + 0.25 * along, angle)).patch()
        curl = sheet.stencil().fill(place + turned(flake * (0.8, 0.9) + 0.75 * along, angle)).patch()
        rest = sheet.stencil().fill(place + turned(flake * (0.62, 0.84) + 1.25 * along, angle)).patch()
        patch = Patch(whole.box, whole.cover)
        sheet.blend(patch, (250, 244, 228))
        sheet.multiply(patch.edge(-1, -1), (0.55, 0.5, 0.45))
        for part, colour in ((gap, (62, 46, 36)), (curl, (128, 104, 82)), (rest, (186, 160, 128))):
            sheet.blend(overlap(part, whole), colour)
        sheet.mark(patch, "Peel")


def fold(sheet: Sheet, at: np.ndarray, size: float, rng: np.random.Generator) -> None:
    """A straight crease across the whole sheet: a light line beside a dark one."""
    angle = rng.integers(0, 2) * TURN / 4 + rng.normal(0, 0.14)
    along = np.array([np.cos(angle), np.sin(angle)])
    line, aside = at + np.outer((-1.5, 1.5), along), np.array([-along[1], along[0]])
    width = max(0.028, 4.4 / sheet.view.scale)
    crease = sheet.stencil().line(line, width).patch()
    sheet.mark(crease, "Fold")
    sheet.blend(sheet.stencil().line(line - aside * width / 4, width / 2).patch(), (255, 252, 240), 0.8)
    sheet.multiply(sheet.stencil().line(line + aside * width / 4, width / 2).patch(), (0.38, 0.34, 0.3))


def crack(sheet: Sheet, at: np.ndarray, size: float, rng: np.random.Generator) -> None:
    """A branching network of dark lines."""
    stencil = sheet.stencil()
    start = rng.uniform(0, TURN)
    tips = [(at, start + TURN * n / 4 + rng.normal(0, 0.3), size * 1.5) for n in range(4)]
    while tips:
        point, angle, length = tips.pop()
        count = int(rng.integers(3, 6))
        angles = angle + np.cumsum(rng.normal(0, 0.42, count))
        path = np.cumsum(np.column_stack([np.cos(angles), np.sin(angles)]) * length / count, 0) + point
        stencil.line(np.vstack([point, path]), 0.012)
        if length > size * 0.6:
            for index in rng.integers(0, count, 2):
                tips.append((path[index], angles[index] + rng.choice((-1, 1)) * rng.uniform(0.7, 1.3), length * 0.55))
    patch = stencil.patch()
    sheet.blend(patch, (34, 24, 18), 0.88)
    sheet.mark(patch, "Cracks")


def puncture(sheet: Sheet, at: np.ndarray, size: float, rng: np.random.Generator) -> None:
    """Round holes with a raised light rim."""
    places = [at, *scattered(at, 0.22, rng.integers(0, 4), rng)]
    for place in places:
        radius = max(size * rng.uniform(0.8, 1.2), 3.2 / sheet.view.scale)
        rim = sheet.stencil().fill(place + closed(np.full(20, radius + 2.2 / sheet.view.scale))).patch()
        sheet.blend(rim, (236, 226, 204))
        sheet.multiply(rim.edge(-1, -1), (0.6, 0.55, 0.5))
        sheet.blend(sheet.stencil().fill(place + ragged(radius, rng, 0.06, 20)).patch(), (10, 8, 8))
        sheet.mark(rim, "Puncture")


# ---- colour and optics


def burn(sheet: Sheet, at: np.ndarray, size: float, rng: np.random.Generator) -> None:
    """Charred black in the middle, glowing brown at the edge."""
    shape = ragged(size, rng, 0.15)
    scorch = sheet.stencil().fill(at + shape).patch().soft(1)
    sheet.mark(scorch, "Burn marks")
    sheet.blend(scorch, (158, 84, 28), 0.85)
    for part, colour, blur in ((0.84, (92, 40, 14), 1), (0.68, (18, 14, 14), 1)):
        sheet.blend(sheet.stencil().fill(at + shape * part).patch().soft(blur), colour, 0.95)


def leak_light(sheet: Sheet, at: np.ndarray, size: float, rng: np.random.Generator) -> None:
    """A bright orange and white streak that comes in over an edge."""
    half = np.array(sheet.half)
    axis = int(np.argmax(np.abs(at) / half))
    edge, inward = np.array(at), np.zeros(2)
    edge[axis] = np.copysign(half[axis] * 1.02, at[axis])
    inward[axis] = -np.sign(edge[axis])
    aside = inward[::-1]
    inward = inward + aside * rng.normal(0, 0.35)
    reach = size * rng.uniform(2.6, 3.6)
    for part, colour, strength in (
        (1.0, (255, 122, 32), 0.78),
        (0.72, (255, 196, 84), 0.8),
        (0.42, (255, 252, 232), 0.9),
    ):
        t = np.linspace(0, 1, 12)[:, None]
        bulge = np.sqrt(np.clip(1 - t**2, 0, 1)) * size * 0.62 * part
        middle = edge + inward * reach * t * (0.4 + 0.6 * part)
        glow = (
            sheet.stencil().fill(np.vstack([middle + bulge * aside, (middle - bulge * aside)[::-1]])).patch().soft(3)
        )
        sheet.blend(glow, colour, strength)
        if part == 1:
            sheet.mark(glow, "Lightleak")


def scratch(sheet: Sheet, at: np.ndarray, size: float, rng: np.random.Generator) -> None:
    """A few straight light lines, nearly parallel."""
    stencil, angle = sheet.stencil(), rng.uniform(0, TURN)
    for place in (at, *scattered(at, size * 0.7, rng.integers(1, 4), rng)):
        reach = size * rng.uniform(0.9, 1.8)
        stencil.line(place + turned(np.array([(-reach, 0), (reach, 0)]), angle + rng.normal(0, 0.12)), 0.012)
    patch = stencil.patch()
    sheet.blend(patch, (248, 244, 234), 0.9)
    sheet.mark(patch, "Scratch")
