"""The damage of invented artworks: which kinds there are, how they occur, and who paints them."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from demo import artworks_marks as marks
from demo import artworks_wounds as wounds
from demo.artworks_sheet import Sheet

Painter = Callable[[Sheet, np.ndarray, float, np.random.Generator], None]


@dataclasses.dataclass(frozen=True)
class Damage:
    """One damage of an artwork: what, where, how large, which shape (seed), and from which age on it shows."""

    kind: str
    place: tuple[float, float]
    size: float
    seed: tuple[int, ...]
    onset: float

    def size_at(self, age: float) -> float:
        """Damage grows, to its full size at age 1; 0 where it has not begun."""
        return self.size * (0.7 + 0.3 * (age - self.onset) / (1 - self.onset)) if age > self.onset else 0.0


class Habit(NamedTuple):
    """How a kind of damage is painted and occurs: share of artworks, range of sizes, most at once, liked materials."""

    paint: Painter
    share: float
    smallest: float
    largest: float
    most: int
    materials: str


# By class, the common ones first; sizes in units of the artwork's long side.
HABITS = {
    "Dirt": Habit(marks.soil, 0.44, 0.10, 0.17, 2, "oil fresco paper photograph"),
    "Staining": Habit(marks.stain, 0.40, 0.10, 0.19, 2, "paper fresco photograph"),
    "Cracks": Habit(wounds.crack, 0.38, 0.15, 0.24, 2, "oil fresco"),
    "Material loss": Habit(wounds.lose_material, 0.36, 0.08, 0.15, 2, "oil fresco paper"),
    "Peel": Habit(wounds.peel, 0.32, 0.08, 0.13, 2, "oil fresco"),
    "Dust": Habit(marks.dust, 0.22, 0.11, 0.17, 2, "oil photograph"),
    "Scratch": Habit(wounds.scratch, 0.20, 0.13, 0.24, 2, "photograph oil"),
    "Fold": Habit(wounds.fold, 0.15, 0.10, 0.10, 2, "paper photograph"),
    "Hair": Habit(marks.hair, 0.14, 0.13, 0.20, 2, "photograph paper"),
    "Writing": Habit(marks.write, 0.14, 0.22, 0.32, 1, "paper photograph"),
    "Stamp": Habit(marks.stamp, 0.09, 0.10, 0.14, 1, "paper photograph"),
    "Sticker": Habit(marks.stick, 0.09, 0.09, 0.13, 1, "paper photograph"),
    "Puncture": Habit(wounds.puncture, 0.09, 0.020, 0.032, 1, "paper oil"),
    "Burn marks": Habit(wounds.burn, 0.08, 0.09, 0.15, 1, "paper photograph"),
    "Lightleak": Habit(wounds.leak_light, 0.07, 0.13, 0.18, 1, "photograph"),
}


def damage_sheet(sheet: Sheet, damages: Iterable[Damage], age: float) -> None:
    """Paint all damages that an artwork of this age (0..1) shows, in their order."""
    for damage in damages:
        size = damage.size_at(age)
        if size:
            HABITS[damage.kind].paint(sheet, np.array(damage.place), size, np.random.default_rng(damage.seed))
