"""The demo data sets: how many specimens and artworks there are, their tables, and how they get into a folder."""

import itertools
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import datasets
import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

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

FUNGARIUM_README = """# Fungarium demo data

A procedural data set for hierarchical image classification, drawn by `data_prep/make_demo.py taxonomy` (seed {seed}):
{train} training and {validation} validation pictures of {species} species. Read it with `datasets.load_from_disk`.

**Every name is invented and every picture is drawn by a program. Nothing here is about real fungi, and nothing in it
may be used to tell whether a fungus can be eaten.**

Columns: `image` (JPEG), `specimen` (an id) and, as strings, the levels of the tree: {levels}.
The `species` of about 8 % of the specimens is None, as in collections where some specimens could only be determined to
genus. Species are long-tailed: the most frequent one has {most} labelled training pictures, the rarest {least}.
"""
ARTWORKS_README = """# Artworks demo data

A procedural data set for hierarchical semantic segmentation, drawn by `data_prep/make_demo.py artworks` (seed
{seed}): {train} training and {validation} validation photographs of {artworks} artworks. Read it with
`datasets.load_from_disk`.

**Every artwork is invented and every picture is drawn by a program.** A scene (portrait, landscape, still life or
ornament) gets the look of a material (oil, fresco, paper, photograph) and a frame, and is photographed one to four
times: whole or in part, slightly askew, in another light, and at another age, because damage begins at some age and
grows. Damage is painted from the same coverage as the mask, so masks are exact: a pixel belongs to a damage that
covers at least half of it, and later damage overwrites earlier.

Columns: `image` (JPEG), `mask` (PNG with a palette, as large as the image), `artwork` (an id: photographs of one
artwork share it, and are never in both splits), `content` and `material`.

The value of a mask pixel is the position of its class below; {background} is Background (outside of the artwork), to
be ignored. `hierarchy.yaml` has the tree above the classes. Share of the pixels that are not Background, in percent,
and number of photographs that show the class:

| value | class | train | validation | photographs, train | photographs, validation |
|--:|---|--:|--:|--:|--:|
{table}
"""


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
        drawn, readme = draw(plans, target)
        picture, text = datasets.Image(), datasets.Value("string")
        splits = datasets.DatasetDict()
        for split, rows in drawn.items():
            features = {name: picture if isinstance(value, dict) else text for name, value in rows[0].items()}
            splits[split] = datasets.Dataset.from_list(rows, datasets.Features(features), split=split)
        splits.save_to_disk(target)
        (target / "README.md").write_text(readme, encoding="ascii")

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

    def draw(plans: dict[str, list[tuple[int, bool]]], target: Path) -> tuple[dict[str, list[dict]], str]:
        studio = Studio(seed)
        drawn = {split: _draw_specimens(split, plan, studio, seed) for split, plan in plans.items()}
        counts = np.bincount([index for index, labelled in plans["train"] if labelled])
        numbers = {"seed": seed, "species": len(counts), "most": counts.max(), "least": counts.min()}
        numbers |= {split: len(plan) for split, plan in plans.items()}
        return drawn, FUNGARIUM_README.format(levels=", ".join(f"`{level}`" for level in LEVELS), **numbers)

    return _make(output_dir, (num_train, num_validation), seed, plan_specimens, draw)


def specimen_counts(split: str, total: int) -> np.ndarray:
    """How many of `total` specimens labelled to species each species gets, in the order of `all_species()`.

    Every species gets its minimum; the rest follow a Zipf law.

    Raises:
        ValueError: `total` is less than the minimum of all species together.
    """
    counts = np.full(len(all_species()), MIN_PER_SPECIES[split])
    spare = total - counts.sum()
    if spare < 0:
        least = int(np.ceil(counts.sum() / (1 - GENUS_ONLY_SHARE)))
        raise ValueError(f"num_{split} must be at least {least} to show all {len(counts)} species")
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


def plan_specimens(split: str, size: int, seed: int) -> list[tuple[int, bool]]:
    """The species (an index) of every specimen of a split and whether its species label is given, in random order."""
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    genus_only = int(size * GENUS_ONLY_SHARE)
    counts = specimen_counts(split, size - genus_only)
    plan = [(index, True) for index, count in enumerate(counts) for _ in range(count)]
    plan += [(int(index), False) for index in rng.choice(len(counts), genus_only, p=_popularity(split))]
    return [plan[position] for position in rng.permutation(size)]


def _draw_specimens(split: str, plan: list[tuple[int, bool]], studio: Studio, seed: int) -> list[dict]:
    rows = []
    for number, (index, labelled) in enumerate(plan):
        # A generator of its own makes a specimen independent of how many others are drawn.
        rng = np.random.default_rng([seed, SPLITS.index(split), number])
        species, name = all_species()[index], f"{split}-{number:05d}"
        image = _encoded(studio.picture(species.look, rng), f"{name}.jpg", quality=int(rng.integers(55, 96)))
        names = dict(zip(LEVELS, species.names, strict=True)) | ({} if labelled else {"species": None})
        rows.append({"image": image, **names, "specimen": name})
    return rows


# ---- artworks


def make_artworks(output_dir: str | Path, *, num_train: int = 400, num_validation: int = 100, seed: int = 0) -> Path:
    """Write photographs of damaged artworks as a `datasets.DatasetDict` into a folder, and return the folder.

    The columns are `image`, `mask` (positions in CLASSES, or BACKGROUND), `artwork`, `content` and `material`; beside
    the data lies the tree of the classes, `hierarchy.yaml`. The same arguments give the same bytes; a finished
    folder is returned as it is, and the data appear in one step, as `make_taxonomy` says.

    Raises:
        ValueError: a split is too small to show every class, the seed is negative, or `output_dir` holds other files.
    """

    def draw(plans: dict[str, list[Artwork]], target: Path) -> tuple[dict[str, list[dict]], str]:
        gallery = Gallery(seed)
        drawn = {split: _draw_photographs(split, plan, gallery, seed) for split, plan in plans.items()}
        target.mkdir()
        shutil.copyfile(HIERARCHY, target / "hierarchy.yaml")
        pixels = [counts.sum(0) for _, counts in drawn.values()]
        seen = [np.count_nonzero(counts, 0) for _, counts in drawn.values()]
        lines = [
            f"| {value} | {name} | {' | '.join(f'{100 * count[value] / count.sum():.2f}' for count in pixels)} | "
            + f"{' | '.join(str(count[value]) for count in seen)} |"
            for value, name in enumerate(CLASSES)
        ]
        numbers = {"seed": seed, "artworks": sum(map(len, plans.values())), "background": BACKGROUND}
        numbers |= {split: len(rows) for split, (rows, _) in drawn.items()}
        readme = ARTWORKS_README.format(table="\n".join(lines), **numbers)
        return {split: rows for split, (rows, _) in drawn.items()}, readme

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


def draw_artworks(artworks: list[Artwork], gallery: Gallery) -> Iterator[tuple[Artwork, int, Image.Image, np.ndarray]]:
    """All photographs and masks, artwork by artwork."""
    for artwork in artworks:
        painting = gallery.paint(artwork)
        for number, shot in enumerate(artwork.shots):
            yield artwork, number, *gallery.photograph(painting, artwork, shot)


def _draw_photographs(
    split: str, artworks: list[Artwork], gallery: Gallery, seed: int
) -> tuple[list[dict], np.ndarray]:
    """The rows of a split in random order, and how many pixels (photographs, classes) of each class there are."""
    palette = bytes.fromhex("".join(COLOURS.values()).replace("#", "").ljust(6 * BACKGROUND, "0") + "101010")
    rows, counts = [], []
    for artwork, number, image, mask in draw_artworks(artworks, gallery):
        name, coloured = f"{artwork.name}-{number}", Image.fromarray(mask)
        coloured.putpalette(palette)
        row = {"image": _encoded(image, f"{name}.jpg", quality=90), "mask": _encoded(coloured, f"{name}.png")}
        rows.append({**row, "artwork": artwork.name, "content": artwork.content, "material": artwork.material})
        counts.append(np.bincount(mask.ravel(), minlength=256)[: len(CLASSES)])
    order = np.random.default_rng([seed, SPLITS.index(split), 6]).permutation(len(rows))
    return [rows[index] for index in order], np.array(counts)


# ---- contact sheets


def draw_fungarium_sheet(folder: str | Path, file: str | Path, *, columns: int = 3, shown: int = 4) -> Path:
    """Draw a labelled grid of training specimens of every species, for a person to look at, and return its path."""
    train = datasets.load_from_disk(str(folder))["train"]
    found = np.array(train["species"], object)
    side, label, height = 84, 168, -(-len(all_species()) // columns)
    block = label + shown * (side + 2) + 12
    sheet = Image.new("RGB", (columns * block, height * (side + 2) + 2), "white")
    draw, phyla = ImageDraw.Draw(sheet), {species.names[0]: None for species in all_species()}
    colours = dict(zip(phyla, ("#a8422f", "#3c6e71", "#7a5195"), strict=True))
    for position, (names, _) in enumerate(all_species()):
        x, y = position // height * block, position % height * (side + 2) + 2
        draw.rectangle((x + 4, y, x + 8, y + side - 1), colours[names[0]])
        draw.text((x + 16, y + 10), names[-1], "black", ImageFont.load_default(15))
        draw.text((x + 16, y + 31), "\n".join(names[3:0:-1]), "#777777", ImageFont.load_default(11), spacing=3)
        pictures = [train[int(index)]["image"] for index in np.flatnonzero(found == names[-1])[: 3 * shown]]
        # The squarest ones, because the cells of the grid are squares and the margins are cut off.
        pictures.sort(key=lambda picture: max(picture.size) / min(picture.size))
        for cell, picture in enumerate(pictures[:shown]):
            sheet.paste(ImageOps.fit(picture.convert("RGB"), (side, side)), (x + label + cell * (side + 2), y))
    return _saved(sheet, file)


def draw_artworks_sheet(folder: str | Path, file: str | Path, *, columns: int = 4, rows: int = 6) -> Path:
    """Draw a captioned grid of training photographs that show all classes, beside their masks; return its path."""
    train = datasets.load_from_disk(str(folder))["train"]
    side, gap, caption, legend = 122, 6, 17, 48
    width = columns * (2 * side + gap) + gap
    sheet = Image.new("RGB", (width, rows * (side + caption) + gap + legend), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for cell, index in enumerate(_choose(train, columns * rows)):
        x, y, row = gap + cell % columns * (2 * side + gap), gap + cell // columns * (side + caption), train[index]
        # The photograph in pale grey, the damage in the colours of its classes, the background nearly black.
        pale = row["image"].convert("L").point(lambda value: 110 + value // 2).convert("RGB")
        weight = Image.fromarray(np.where(np.asarray(row["mask"]) == 0, 115, 224).astype(np.uint8))
        masked = Image.composite(row["mask"].convert("RGB"), pale, weight)
        for place, picture in ((x, row["image"].convert("RGB")), (x + side, masked)):
            sheet.paste(ImageOps.fit(picture, (side, side)), (place, y))
        draw.text((x, y + side), f"{row['content']}, {row['material']}", "#444444", font)
    for entry, (name, colour) in enumerate({**COLOURS, "Background (ignored)": "#101010"}.items()):
        x, y = gap + entry % 9 * (width - gap) // 9, sheet.height - legend + entry // 9 * 22 + 4
        draw.rectangle((x, y, x + 12, y + 12), colour, "#888888")
        draw.text((x + 17, y - 1), name, "black", font)
    return _saved(sheet, file)


def _saved(sheet: Image.Image, file: str | Path) -> Path:
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    sheet.save(file, quality=80)
    return Path(file)


def _choose(train: datasets.Dataset, count: int) -> list[int]:
    """Photographs that together show every class (the least shown one next), of the contents in turn, and no artwork
    twice as long as there are others."""
    pixels = np.array([np.bincount(np.asarray(mask).ravel(), minlength=256) for mask in train["mask"]])
    # Photographs with a margin show the whole artwork, which looks better than a part of it.
    whole = 1 + 3 * (pixels[:, BACKGROUND] > 0.02 * pixels.sum(1))
    share = pixels[:, : len(CLASSES)] / pixels[:, : len(CLASSES)].sum(0).clip(1)
    contents, artworks, chosen = np.array(train["content"]), np.array(train["artwork"]), []
    for turn, _ in zip(itertools.cycle(sorted(SCENES)), range(min(count, len(train))), strict=False):
        score = share[:, int(np.argmin(share[chosen].sum(0)[1:])) + 1] * whole + (contents == turn) * 9.0
        score += ~np.isin(artworks, artworks[chosen]) * 99.0
        score[chosen] = -1
        chosen.append(int(np.argmax(score)))
    return chosen
