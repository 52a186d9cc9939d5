"""The artworks demo data: which artworks there are, what damage each has, and the data set of their photographs."""

import shutil
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
from PIL import Image

from demo.artworks import MATERIALS, SCENES, Artwork, Gallery, Shot
from demo.artworks_damage import HABITS, Damage
from demo.artworks_sheet import BACKGROUND, CLASSES
from demo.files import (
    DONE_MARK,
    OWN_ENTRIES,
    SPLITS,
    check_replaceable,
    quiet_unless_terminal,
    write_atomically,
)

HIERARCHY = Path(__file__).resolve().parents[1] / "hierarchies" / "artefact.yaml"
HIERARCHY_COPY = "hierarchy.yaml"
LEAST_PHOTOGRAPHS = 16  # of a split; fewer would not show every class
CLEAN_SHARE = 0.08  # of the artworks
SHOT_SHARES = (0.15, 0.3, 0.3, 0.25)  # of artworks with 1, 2, 3 and 4 photographs

COLOURS = {
    "Clean": (222, 222, 216),
    "Material loss": (214, 39, 40),
    "Peel": (255, 127, 14),
    "Dust": (158, 218, 229),
    "Scratch": (255, 105, 180),
    "Hair": (0, 0, 205),
    "Dirt": (140, 86, 75),
    "Fold": (255, 221, 51),
    "Writing": (31, 119, 180),
    "Cracks": (140, 0, 30),
    "Staining": (188, 189, 34),
    "Stamp": (148, 103, 189),
    "Sticker": (44, 160, 44),
    "Puncture": (0, 190, 160),
    "Burn marks": (64, 32, 96),
    "Lightleak": (255, 0, 255),
}


README = """# Artworks demo data

A procedural data set for hierarchical semantic segmentation, drawn by `data_prep/make_demo.py artworks` (seed
{seed}): {train} training and {validation} validation photographs of {artworks} artworks. Read it with
`datasets.load_from_disk`.

**Every artwork is invented and every picture is drawn by a program.** A scene in flat colour (portrait, landscape,
still life or ornament) gets the look of a material (oil, fresco, paper, photograph) and a frame or what else is around
it. Then it is photographed one to four times: all of it or a part, slightly askew, in another light, and at another
age, because damage begins at some age and grows. Damage is painted from the same coverage as the mask, so masks are
exact: a pixel belongs to a damage that covers at least half of it, and later damage overwrites earlier.

Columns: `image` (JPEG), `mask` (PNG with a palette, as large as the image), `artwork` (an id: photographs of one
artwork share it, and are never in both splits), `content` and `material`.

The value of a mask pixel is the position of its class below; {background} is Background (outside of the artwork), to
be ignored. `hierarchy.yaml` has the tree above the classes. Share of the pixels that are not Background, in percent,
and number of photographs that show the class:

| value | class | train | validation | photographs, train | photographs, validation |
|--:|---|--:|--:|--:|--:|
{table}
"""


class Group(NamedTuple):
    """An artwork and its photographs."""

    name: str
    artwork: Artwork
    shots: tuple[Shot, ...]


def make_artworks(output_dir: str | Path, *, num_train: int = 400, num_validation: int = 100, seed: int = 0) -> Path:
    """Write photographs of damaged artworks as a `datasets.DatasetDict` into a folder, and return the folder.

    The columns are `image`, `mask` (positions in CLASSES, or BACKGROUND), `artwork`, `content` and `material`; beside
    the data lies the tree of the classes, `hierarchy.yaml`. The same arguments give the same bytes; a finished
    folder is returned as it is, and the data appear in one step, as `make_taxonomy` says.

    Raises:
        ValueError: a split is too small to show every class, the seed is negative, or `output_dir` holds other files.
    """
    folder = Path(output_dir)
    if (folder / DONE_MARK).exists():
        return folder
    check_replaceable(folder, OWN_ENTRIES | {HIERARCHY_COPY})
    sizes = {"train": num_train, "validation": num_validation}
    plans = {split: plan_artworks(split, size, seed) for split, size in sizes.items()}

    def write(target: Path) -> None:
        gallery = Gallery(seed)
        with quiet_unless_terminal():
            drawn = {split: _draw_split(split, groups, gallery, seed) for split, groups in plans.items()}
            datasets.DatasetDict({split: data for split, (data, _) in drawn.items()}).save_to_disk(target)
        shutil.copyfile(HIERARCHY, target / HIERARCHY_COPY)
        readme = _readme({split: counts for split, (_, counts) in drawn.items()}, plans, seed)
        (target / "README.md").write_text(readme, encoding="ascii")

    write_atomically(folder, write)
    return folder


# ---- plan


def plan_artworks(split: str, size: int, seed: int) -> list[Group]:
    """The artworks of a split, with `size` photographs together; every class is planned to be seen in some of them.

    Raises:
        ValueError: the seed is negative, or the split too small.
    """
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if size < LEAST_PHOTOGRAPHS:
        raise ValueError(f"num_{split} must be at least {LEAST_PHOTOGRAPHS} to show all {len(CLASSES)} classes")
    number = SPLITS.index(split)
    rng = np.random.default_rng([seed, number, 1])
    ends = np.cumsum(rng.choice(len(SHOT_SHARES), size, p=SHOT_SHARES) + 1)
    shots = np.diff([0, *ends[ends < size], size])
    contents = rng.permutation(np.resize(list(SCENES), len(shots)))
    materials = rng.permutation(np.resize(MATERIALS, len(shots)))
    shapes = np.exp(rng.uniform(np.log(0.7), np.log(1.43), len(shots)))
    groups = []
    for index, kinds in enumerate(_assign_kinds(materials, rng)):
        key = (seed, number, index)
        half = Artwork("", "", shapes[index], ()).half
        damages = _place_damages(kinds, half, key)
        artwork = Artwork(str(contents[index]), str(materials[index]), float(shapes[index]), (*key, 1), damages)
        groups.append(Group(f"{split}-{index:04d}", artwork, _plan_shots(int(shots[index]), key)))
    return groups


def _assign_kinds(materials: np.ndarray, rng: np.random.Generator) -> list[list[str]]:
    """The kinds of damage of every artwork; each kind is given to its share of them, rare ones to a few at least."""
    count = len(materials)
    damaged = rng.permutation(count)[: count - round(CLEAN_SHARE * count)]
    kinds: list[list[str]] = [[] for _ in range(count)]
    for kind in rng.permutation(list(HABITS)).tolist():
        habit = HABITS[kind]
        chosen = round(max(habit.share * count, min(4, count / 10), 1))
        # Damage gathers where little is, and where the material invites it.
        weight = np.array([1 + 5 * (materials[index] in habit.materials) for index in damaged], float)
        weight /= np.array([1 + len(kinds[index]) for index in damaged])
        for index in rng.choice(damaged, chosen, replace=False, p=weight / weight.sum()):
            kinds[index].append(kind)
    return kinds


def _place_damages(kinds: list[str], half: tuple[float, float], key: tuple[int, ...]) -> tuple[Damage, ...]:
    """Damages of these kinds at places apart from each other, in the order in which they begin."""
    rng = np.random.default_rng([*key, 2])
    places: list[np.ndarray] = []
    damages = []
    for kind in kinds:
        habit = HABITS[kind]
        for _ in range(1 + (habit.most > 1 and rng.random() < 0.35)):
            tries = rng.uniform(-0.8, 0.8, (8, 2)) * half
            far = [min((np.hypot(*(place - other)) for other in places), default=0.0) for place in tries]
            places.append(tries[int(np.argmax(far))])
            size, onset = float(rng.uniform(habit.smallest, habit.largest)), float(rng.uniform(0, 0.6))
            place = (float(places[-1][0]), float(places[-1][1]))
            damages.append(Damage(kind, place, size, (*key, 3, len(damages)), onset))
    return tuple(sorted(damages, key=lambda damage: damage.onset))


def _plan_shots(count: int, key: tuple[int, ...]) -> tuple[Shot, ...]:
    """The photographs of an artwork; the first shows all of it at its oldest, and so all of its damage."""
    rng = np.random.default_rng([*key, 4])
    shots = [Shot(1.0, True, (*key, 5, 0))]
    for number in range(1, count):
        shots.append(Shot(float(rng.uniform(0.2, 1)), bool(rng.random() < 0.5), (*key, 5, number)))
    return tuple(shots)


# ---- data


def draw_groups(groups: list[Group], gallery: Gallery) -> Iterator[tuple[Group, int, Image.Image, np.ndarray]]:
    """All photographs and masks, artwork by artwork."""
    for group in groups:
        painting = gallery.paint(group.artwork)
        for number, shot in enumerate(group.shots):
            yield group, number, *gallery.photograph(painting, group.artwork, shot)


def _draw_split(
    split: str, groups: list[Group], gallery: Gallery, seed: int
) -> tuple[datasets.Dataset, list[np.ndarray]]:
    """The photographs of a split in random order, and the number of pixels (classes,) that each has of each class."""
    rows, counts = [], []
    for group, number, image, mask in draw_groups(groups, gallery):
        name = f"{group.name}-{number}"
        rows.append(
            {
                "image": {"bytes": _encoded(image, "JPEG", quality=90), "path": f"{name}.jpg"},
                "mask": {"bytes": _encoded(_palette_image(mask), "PNG"), "path": f"{name}.png"},
                "artwork": group.name,
                "content": group.artwork.content,
                "material": group.artwork.material,
            }
        )
        counts.append(np.bincount(mask.ravel(), minlength=256)[: len(CLASSES)])
    order = np.random.default_rng([seed, SPLITS.index(split), 6]).permutation(len(rows))
    text, picture = datasets.Value("string"), datasets.Image()
    features = datasets.Features(
        {"image": picture, "mask": picture, **dict.fromkeys(("artwork", "content", "material"), text)}
    )
    columns = {name: [rows[index][name] for index in order] for name in features}
    return datasets.Dataset.from_dict(columns, features=features, split=datasets.NamedSplit(split)), counts


def _palette_image(mask: np.ndarray) -> Image.Image:
    image = Image.fromarray(mask)
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(CLASSES)] = [COLOURS[name] for name in CLASSES]
    palette[BACKGROUND] = (16, 16, 16)
    image.putpalette(palette.ravel().tolist())
    return image


def _encoded(image: Image.Image, form: str, **options: int) -> bytes:
    buffer = BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _readme(counts: dict[str, list[np.ndarray]], plans: dict[str, list[Group]], seed: int) -> str:
    pixels = {split: np.sum(rows, 0) for split, rows in counts.items()}
    seen = {split: np.count_nonzero(rows, 0) for split, rows in counts.items()}
    lines = [
        f"| {value} | {name} | "
        + " | ".join(f"{100 * pixels[split][value] / pixels[split].sum():.2f}" for split in SPLITS)
        + f" | {seen['train'][value]} | {seen['validation'][value]} |"
        for value, name in enumerate(CLASSES)
    ]
    artworks = sum(map(len, plans.values()))
    sizes = {split: len(rows) for split, rows in counts.items()}
    return README.format(seed=seed, artworks=artworks, background=BACKGROUND, table="\n".join(lines), **sizes)
