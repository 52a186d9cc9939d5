"""The demo data sets: how many specimens and artworks there are, their tables, and how they get into a folder."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from demo.artworks import BACKGROUND, CLASSES, COLOURS, HABITS, MATERIALS, Artwork, Damage, Gallery, Shot
from demo.fungi import LEVELS, Studio, all_species
from demo.scenes import SCENES

DONE_MARK = "dataset_dict.json"
SPLITS = ("train", "validation")
HIERARCHY = Path(__file__).resolve().parents[1] / "hierarchies" / "artefact.yaml"
MIN_PER_SPECIES = {"train": 4, "validation": 2}
# Validation is less long-tailed than training, so that scores of rare species rest on more than two pictures.
TAIL_EXPONENT = {"train": 1.0, "validation": 0.5}
GENUS_ONLY_SHARE = 0.08
# Fixed, so that two seeds give other specimens of the same species in the same proportions.
POPULARITY_SEED = 1977
LEAST_PHOTOGRAPHS = 16  # of a split; fewer would not show every class
CLEAN_SHARE = 0.08  # of the artworks
SHOT_SHARES = (0.15, 0.3, 0.3, 0.25)  # of artworks with 1, 2, 3 and 4 photographs


def write_atomically(folder: Path, write: Callable[[Path], None]) -> None:
    """Call `write` with the path of a new folder and give what it wrote the name `folder` in one step.

    What is already at `folder` is kept where it is finished, and replaced where it is not.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        # A folder inside, because the temporary folder itself is closed to other users.
        target = Path(scratch) / "data"
        write(target)
        if not (folder / DONE_MARK).exists():
            with suppress(FileNotFoundError):
                os.replace(folder, Path(scratch) / "unfinished")
        try:
            os.replace(target, folder)
        except OSError:
            if not (folder / DONE_MARK).exists():
                raise


def _make(output_dir: str | Path, sizes: tuple[int, int], seed: int, plan: Callable, draw: Callable) -> Path:
    """Plan the splits, draw them (a list of rows each) and a README, and write it all; see `make_taxonomy`."""
    folder = Path(output_dir)
    if (folder / DONE_MARK).exists():
        return folder
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    own = {*SPLITS, "README.md", "hierarchy.yaml"}
    if others := {entry.name for entry in folder.iterdir()} - own if folder.exists() else set():
        raise ValueError(f"{folder} already holds other files ({', '.join(sorted(others)[:3])}); name a new folder")
    plans = {split: plan(split, size, seed) for split, size in zip(SPLITS, sizes, strict=True)}

    def write(target: Path) -> None:
        if not sys.stderr.isatty():  # they would fill a log file
            datasets.disable_progress_bars()
        target.mkdir()
        drawn, readme, numbers = draw(plans, target)
        picture, text = datasets.Image(), datasets.Value("string")
        splits = datasets.DatasetDict()
        for split, rows in drawn.items():
            features = {name: picture if isinstance(value, dict) else text for name, value in rows[0].items()}
            splits[split] = datasets.Dataset.from_list(rows, datasets.Features(features), split=split)
        splits.save_to_disk(target)
        template = Path(__file__).with_name(readme).read_text(encoding="ascii")
        numbers |= {split: len(rows) for split, rows in drawn.items()} | {"seed": seed}
        (target / "README.md").write_text(template.format(**numbers), encoding="ascii")

    write_atomically(folder, write)
    return folder


def _encoded(image: Image.Image, name: str, **options: int) -> dict[str, bytes | str]:
    buffer = BytesIO()
    image.save(buffer, Image.registered_extensions()[Path(name).suffix], **options)
    return {"bytes": buffer.getvalue(), "path": name}


# ---- fungarium


def make_taxonomy(output_dir: str | Path, *, num_train: int = 2000, num_validation: int = 480, seed: int = 0) -> Path:
    """Write the fungarium as a `datasets.DatasetDict` (train, validation) into a folder, and return the folder.

    Every picture has the six LEVELS as string columns (`species` is None where a specimen is determined to genus only)
    and the id `specimen`. The same arguments give the same bytes. A finished folder is returned as it is, whatever
    arguments it was made with. The data appear under `output_dir` in one step, so that a folder left by an
    interrupted run never looks finished, and of several processes that run at once the first to finish wins.

    Raises:
        ValueError: a split is too small for all species, the seed is negative, or `output_dir` holds other files.
    """

    def draw(plans: dict[str, list[tuple[int, bool]]], target: Path) -> tuple[dict[str, list[dict]], str, dict]:
        studio, drawn = Studio(seed), {split: [] for split in SPLITS}
        for order, (split, plan) in enumerate(plans.items()):
            for number, (index, labelled) in enumerate(plan):
                # A generator of its own makes a specimen independent of how many others are drawn.
                rng = np.random.default_rng([seed, order, number])
                species, name = all_species()[index], f"{split}-{number:05d}"
                image = _encoded(studio.picture(species.look, rng), f"{name}.jpg", quality=int(rng.integers(55, 96)))
                names = dict(zip(LEVELS, species.names, strict=True)) | ({} if labelled else {"species": None})
                drawn[split].append({"image": image, **names, "specimen": name})
        counts = np.bincount([index for index, labelled in plans["train"] if labelled])
        numbers = {"species": len(counts), "most": counts.max(), "least": counts.min()}
        return drawn, "readme_fungarium.md", {**numbers, "levels": ", ".join(f"`{level}`" for level in LEVELS)}

    return _make(output_dir, (num_train, num_validation), seed, plan_specimens, draw)


def specimen_counts(split: str, total: int) -> np.ndarray:
    """How many of `total` specimens labelled to species each species gets, in the order of `all_species()`.

    Every species gets its minimum; the rest follow a Zipf law.

    Raises:
        ValueError: `total` is less than the minimum of all species together.
    """
    number = len(all_species())
    spare = total - number * MIN_PER_SPECIES[split]
    if spare < 0:
        least = int(np.ceil((total - spare) / (1 - GENUS_ONLY_SHARE)))
        raise ValueError(f"num_{split} must be at least {least} to show all {number} species")
    ends = np.round(spare * np.cumsum(_popularity(split))).astype(int)  # rounded so that the counts add up
    return MIN_PER_SPECIES[split] + np.diff(ends, prepend=0)


def _popularity(split: str) -> np.ndarray:
    """The share of each species beyond the minimum, summing to 1."""
    order = np.random.default_rng(POPULARITY_SEED).permutation(len(all_species()))
    weight = (order + 1.0) ** -TAIL_EXPONENT[split]
    return weight / weight.sum()


def plan_specimens(split: str, size: int, seed: int) -> list[tuple[int, bool]]:
    """The species (an index) of every specimen of a split and whether its species label is given, in random order."""
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    genus_only = int(size * GENUS_ONLY_SHARE)
    counts = specimen_counts(split, size - genus_only)
    plan = [(index, True) for index, count in enumerate(counts) for _ in range(count)]
    plan += [(int(index), False) for index in rng.choice(len(counts), genus_only, p=_popularity(split))]
    return [plan[position] for position in rng.permutation(size)]


# ---- artworks


def make_artworks(output_dir: str | Path, *, num_train: int = 400, num_validation: int = 100, seed: int = 0) -> Path:
    """Write photographs of damaged artworks as a `datasets.DatasetDict` into a folder, and return the folder.

    The columns are `image`, `mask` (positions in CLASSES, or BACKGROUND), `artwork`, `content` and `material`; beside
    the data lies the tree of the classes, `hierarchy.yaml`. The same arguments give the same bytes; a finished
    folder is returned as it is, and the data appear in one step, as `make_taxonomy` says.

    Raises:
        ValueError: a split is too small to show every class, the seed is negative, or `output_dir` holds other files.
    """

    def draw(plans: dict[str, list[Artwork]], target: Path) -> tuple[dict[str, list[dict]], str, dict]:
        gallery = Gallery(seed)
        drawn = {split: _draw_photographs(split, plan, gallery, seed) for split, plan in plans.items()}
        shutil.copyfile(HIERARCHY, target / "hierarchy.yaml")
        counts = [counts for _, counts in drawn.values()]
        columns = [[f"{share:.2f}" for share in 100 * count.sum(0) / count.sum()] for count in counts]
        columns += [map(str, np.count_nonzero(count, 0)) for count in counts]
        lines = [f"| {' | '.join(cells)} |" for cells in zip(map(str, range(16)), CLASSES, *columns, strict=True)]
        numbers = {"artworks": sum(map(len, plans.values())), "background": BACKGROUND, "table": "\n".join(lines)}
        return {split: rows for split, (rows, _) in drawn.items()}, "readme_artworks.md", numbers

    return _make(output_dir, (num_train, num_validation), seed, plan_artworks, draw)


def plan_artworks(split: str, size: int, seed: int) -> list[Artwork]:
    """The artworks of a split, with `size` photographs together; every class is planned to be seen in some of them."""
    if size < LEAST_PHOTOGRAPHS:
        raise ValueError(f"num_{split} must be at least {LEAST_PHOTOGRAPHS} to show all {len(CLASSES)} classes")
    number = SPLITS.index(split)
    rng = np.random.default_rng([seed, number, 1])
    ends = np.cumsum(rng.choice(len(SHOT_SHARES), size, p=SHOT_SHARES) + 1)
    counts = np.diff([0, *ends[ends < size], size])
    contents = rng.permutation(np.resize(list(SCENES), len(counts))).tolist()
    materials = rng.permutation(np.resize(MATERIALS, len(counts))).tolist()
    shapes = np.exp(rng.uniform(np.log(0.7), np.log(1.43), len(counts))).tolist()
    artworks = []
    for index, kinds in enumerate(_assign_kinds(materials, rng)):
        key = (seed, number, index)
        artwork = Artwork(contents[index], materials[index], shapes[index], (*key, 1), name=f"{split}-{index:04d}")
        # The first photograph shows all of an artwork at its oldest, and so all of its damage.
        later = np.random.default_rng([*key, 4]).uniform((0.2, 0), 1, (counts[index] - 1, 2)).tolist()
        shots = [Shot(age, part < 0.5, (*key, 5, shot)) for shot, (age, part) in enumerate([(1.0, 0.0), *later])]
        damages = _place_damages(kinds, artwork.half, key)
        artworks.append(artwork._replace(damages=damages, shots=tuple(shots)))
    return artworks


def _assign_kinds(materials: list[str], rng: np.random.Generator) -> list[list[str]]:
    """The kinds of damage of every artwork; each kind is given to its share of them, rare ones to a few at least."""
    count = len(materials)
    damaged = rng.permutation(count)[: count - round(CLEAN_SHARE * count)]
    kinds: list[list[str]] = [[] for _ in range(count)]
    for kind in rng.permutation(list(HABITS)).tolist():
        chosen = round(max(HABITS[kind].share * count, min(4, count / 10), 1))
        # Damage gathers where little is, and where the material invites it.
        likes = np.array([1 + 5 * (materials[index] in HABITS[kind].materials) for index in damaged])
        weight = likes / [1 + len(kinds[index]) for index in damaged]
        for index in rng.choice(damaged, chosen, replace=False, p=weight / weight.sum()):
            kinds[index].append(kind)
    return kinds


def _place_damages(kinds: list[str], half: np.ndarray, key: tuple[int, ...]) -> tuple[Damage, ...]:
    """Damages of these kinds at places apart from each other, in the order in which they begin."""
    rng = np.random.default_rng([*key, 2])
    damages: list[Damage] = []
    for habit, kind in ((HABITS[kind], kind) for kind in kinds):
        for _ in range(1 + (habit.most > 1 and rng.random() < 0.35)):
            tries = rng.uniform(-0.8, 0.8, (8, 2)) * half
            far = [min((np.hypot(*(place - other.place)) for other in damages), default=0.0) for place in tries]
            size, onset = float(rng.uniform(habit.smallest, habit.largest)), float(rng.uniform(0, 0.6))
            place = tuple(tries[int(np.argmax(far))].tolist())
            damages.append(Damage(kind, place, size, (*key, 3, len(damages)), onset))
    return tuple(sorted(damages, key=lambda damage: damage.onset))


def _draw_photographs(split: str, plan: list[Artwork], gallery: Gallery, seed: int) -> tuple[list[dict], np.ndarray]:
    """The rows of a split in random order, and how many pixels (photographs, classes) of each class there are."""
    palette = bytes.fromhex("".join(COLOURS.values()).replace("#", "").ljust(6 * BACKGROUND, "0") + "101010")
    rows, counts = [], []
    for artwork in plan:
        painting = gallery.paint(artwork)
        for number, shot in enumerate(artwork.shots):
            image, mask = gallery.photograph(painting, artwork, shot)
            name, coloured = f"{artwork.name}-{number}", Image.fromarray(mask)
            coloured.putpalette(palette)
            row = {"image": _encoded(image, f"{name}.jpg", quality=90), "mask": _encoded(coloured, f"{name}.png")}
            rows.append({**row, "artwork": artwork.name, "content": artwork.content, "material": artwork.material})
            counts.append(np.bincount(mask.ravel(), minlength=256)[: len(CLASSES)])
    order = np.random.default_rng([seed, SPLITS.index(split), 6]).permutation(len(rows))
    return [rows[index] for index in order], np.array(counts)
