"""The fungarium demo data: how many specimens each species has, and the data set of their pictures."""

from pathlib import Path

import datasets
import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from demo.files import DONE_MARK, SPLITS, check_replaceable, quiet_unless_terminal, write_atomically
from demo.fungarium import LEVELS, Species, all_species
from demo.fungarium_studio import Studio

MIN_PER_SPECIES = {"train": 4, "validation": 2}
# Validation is less long-tailed than training, so that scores of rare species rest on more than two pictures.
TAIL_EXPONENT = {"train": 1.0, "validation": 0.5}
GENUS_ONLY_SHARE = 0.08
# Fixed, so that two seeds give other specimens of the same species in the same proportions.
POPULARITY_SEED = 1977

README = """# Fungarium demo data

A procedural data set for hierarchical image classification, drawn by `data_prep/make_demo.py taxonomy` (seed {seed}):
{train} training and {validation} validation pictures of {species} species. Read it with `datasets.load_from_disk`.

**Every name is invented and every picture is drawn by a program. Nothing here is about real fungi, and nothing in it
may be used to tell whether a fungus can be eaten.**

Columns: `image` (JPEG), `specimen` (an id) and, as strings, the levels of the tree:
{levels}.
The `species` of about 8 % of the specimens is None, as in collections where some specimens could only be determined to
genus. Species are long-tailed: the most frequent one has {most} labelled training pictures, the rarest {least}.
"""


def make_taxonomy(output_dir: str | Path, *, num_train: int = 2000, num_validation: int = 480, seed: int = 0) -> Path:
    """Write the fungarium as a `datasets.DatasetDict` (train, validation) into a folder, and return the folder.

    Every picture has the six LEVELS as string columns (`species` is None where a specimen is determined to genus only)
    and the id `specimen`. The same arguments give the same bytes. A finished folder is returned as it is, whatever
    arguments it was made with. The data appear under `output_dir` in one step, so that a folder left by an
    interrupted run never looks finished, and of several processes that run at once the first to finish wins.

    Raises:
        ValueError: a split is too small to show every species, the seed is negative, or `output_dir` holds other
            files.
    """
    folder = Path(output_dir)
    if (folder / DONE_MARK).exists():
        return folder
    check_replaceable(folder)
    sizes = {"train": num_train, "validation": num_validation}
    plans = {split: plan_split(split, size, seed) for split, size in sizes.items()}

    def write(target: Path) -> None:
        studio = Studio(seed)
        with quiet_unless_terminal():
            splits = {split: _draw_split(split, plan, studio, seed) for split, plan in plans.items()}
            datasets.DatasetDict(splits).save_to_disk(target)
        (target / "README.md").write_text(_readme(plans, seed), encoding="ascii")

    write_atomically(folder, write)
    return folder


def specimen_counts(split: str, total: int) -> np.ndarray:
    """How many of `total` specimens labelled to species each species gets, in the order of `all_species()`.

    Every species gets its minimum; the rest follow a Zipf law.

    Raises:
        ValueError: `total` is less than the minimum of all species together.
    """
    species = len(all_species())
    spare = total - species * MIN_PER_SPECIES[split]
    if spare < 0:
        least = int(np.ceil(species * MIN_PER_SPECIES[split] / (1 - GENUS_ONLY_SHARE)))
        raise ValueError(f"num_{split} must be at least {least} to show all {species} species")
    counts = np.full(species, MIN_PER_SPECIES[split])
    ideal = spare * _popularity(split)
    counts += ideal.astype(int)
    # Largest remainders first, so that the counts add up.
    counts[np.argsort(-(ideal % 1), kind="stable")[: total - counts.sum()]] += 1
    return counts


def _popularity(split: str) -> np.ndarray:
    """The share of each species beyond the minimum, summing to 1."""
    order = np.random.default_rng(POPULARITY_SEED).permutation(len(all_species()))
    weight = (order + 1.0) ** -TAIL_EXPONENT[split]
    return weight / weight.sum()


def plan_split(split: str, size: int, seed: int) -> list[tuple[int, bool]]:
    """The species (an index) of every specimen of a split and whether its species label is given, in random order.

    Raises:
        ValueError: the seed is negative, or the split too small.
    """
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    genus_only = int(size * GENUS_ONLY_SHARE)
    counts = specimen_counts(split, size - genus_only)
    plan = [(index, True) for index, count in enumerate(counts) for _ in range(count)]
    plan += [(int(index), False) for index in rng.choice(len(counts), genus_only, p=_popularity(split))]
    return [plan[position] for position in rng.permutation(size)]


def _draw_split(split: str, plan: list[tuple[int, bool]], studio: Studio, seed: int) -> datasets.Dataset:
    species = all_species()
    columns: dict[str, list] = {name: [] for name in ("image", *LEVELS, "specimen")}
    for number, (index, labelled) in enumerate(plan):
        specimen = f"{split}-{number:05d}"
        # A generator of its own makes a specimen independent of how many others are drawn.
        rng = np.random.default_rng([seed, SPLITS.index(split), number])
        columns["image"].append({"bytes": studio.jpeg(species[index].look, rng), "path": f"{specimen}.jpg"})
        names = species[index].names if labelled else (*species[index].names[:-1], None)
        for level, name in zip(LEVELS, names, strict=True):
            columns[level].append(name)
        columns["specimen"].append(specimen)
    text = datasets.Value("string")
    features = datasets.Features({"image": datasets.Image(), **dict.fromkeys((*LEVELS, "specimen"), text)})
    return datasets.Dataset.from_dict(columns, features=features, split=datasets.NamedSplit(split))


def _readme(plans: dict[str, list[tuple[int, bool]]], seed: int) -> str:
    counts = np.bincount([index for index, labelled in plans["train"] if labelled])
    levels = ", ".join(f"`{level}`" for level in LEVELS)
    sizes = {split: len(plan) for split, plan in plans.items()}
    return README.format(seed=seed, species=len(counts), levels=levels, most=counts.max(), least=counts.min(), **sizes)


def draw_fungarium_sheet(folder: str | Path, file: str | Path, *, columns: int = 3, shown: int = 4) -> Path:
    """Draw a labelled grid of training specimens of every species, for a person to look at, and return its path."""
    train = datasets.load_from_disk(str(folder))["train"]
    rows: dict[str, list[int]] = {species.names[-1]: [] for species in all_species()}
    for index, name in enumerate(train["species"]):
        if name in rows:
            rows[name].append(index)
    side, label, height = 84, 168, -(-len(rows) // columns)
    block = label + shown * (side + 2) + 12
    sheet = Image.new("RGB", (columns * block, height * (side + 2) + 2), "white")
    for position, species in enumerate(all_species()):
        x, y = position // height * block, position % height * (side + 2) + 2
        _draw_label(ImageDraw.Draw(sheet), species, x, y, side)
        pictures = [train[index]["image"] for index in rows[species.names[-1]][: 3 * shown]]
        # The squarest ones, because the cells of the grid are squares and the margins are cut off.
        pictures.sort(key=lambda picture: max(picture.size) / min(picture.size))
        for cell, picture in enumerate(pictures[:shown]):
            sheet.paste(ImageOps.fit(picture.convert("RGB"), (side, side)), (x + label + cell * (side + 2), y))
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    sheet.save(file)
    return Path(file)


def _draw_label(draw: ImageDraw.ImageDraw, species: Species, x: int, y: int, side: int) -> None:
    phyla = list(dict.fromkeys(entry.names[0] for entry in all_species()))
    colour = ("#a8422f", "#3c6e71", "#7a5195")[phyla.index(species.names[0]) % 3]
    draw.rectangle((x + 4, y, x + 8, y + side - 1), colour)
    draw.text((x + 16, y + 10), species.names[-1], "black", ImageFont.load_default(15))
    for line, name in enumerate((species.names[3], species.names[2], species.names[1])):
        draw.text((x + 16, y + 31 + 14 * line), name, "#777777", ImageFont.load_default(11))
