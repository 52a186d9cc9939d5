"""Shapes and textures that several kinds of damage are made of."""

import numpy as np
from PIL import Image

from demo.artworks_scenes import closed
from demo.artworks_sheet import Patch, Sheet
from demo.fungarium_bodies import TURN


def ragged(radius: float, rng: np.random.Generator, roughness: float = 0.16, count: int = 36) -> np.ndarray:
    """An irregular closed shape about (0, 0)."""
    turn = TURN * np.arange(count) / count
    waves = sum(rng.normal(0, 1) / n * np.sin(n * turn + rng.uniform(0, TURN)) for n in (2, 3, 5, 8))
    return closed(radius * np.clip(1 + roughness * (waves + 0.35 * rng.standard_normal(count)), 0.35, 1.8))


def turned(points: np.ndarray, angle: float) -> np.ndarray:
    """Points turned about (0, 0)."""
    cosine, sine = np.cos(angle), np.sin(angle)
    return points @ np.array([[cosine, sine], [-sine, cosine]])


def mottle(patch: Patch, rng: np.random.Generator, cells: int) -> np.ndarray:
    """Smooth noise (height, width, 1), mostly in -1..1, `cells` bumps a side; the finest has one a pixel."""
    height, width = patch.cover.shape
    if not (height and width):
        return np.zeros((height, width, 1), np.float32)
    noise = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
    return np.asarray(noise.resize((width, height), Image.Resampling.BILINEAR))[..., None]


def scattered(at: np.ndarray, size: float, count: int, rng: np.random.Generator) -> np.ndarray:
    """Points (count, 2) spread over a disc."""
    angle, reach = rng.uniform(0, TURN, count), size * np.sqrt(rng.uniform(0, 1, count))
    return at + np.column_stack([np.cos(angle), np.sin(angle)]) * reach[:, None]


def dots(sheet: Sheet, points: np.ndarray, radii: np.ndarray) -> Patch:
    """Small discs with radii in pixels."""
    stencil, disc = sheet.stencil(), closed(np.ones(10))
    for point, radius in zip(points, radii, strict=True):
        stencil.fill(point + disc * radius / sheet.view.scale)
    return stencil.patch()
