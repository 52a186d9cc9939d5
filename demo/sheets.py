"""Contact sheets of the demo data sets, for a person to look at."""

import itertools
from pathlib import Path

import datasets
import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from demo.artworks import BACKGROUND, CLASSES, COLOURS
from demo.fungi import all_species
from demo.scenes import SCENES

PHYLA = {"Tectomycota": "#a8422f", "Poculomycota": "#3c6e71", "Fruticomycota": "#7a5195"}


def draw_fungarium_sheet(folder: str | Path, file: str | Path, *, columns: int = 3, shown: int = 4) -> Path:
    """Draw a labelled grid of training specimens of every species, and return its path."""
    train = datasets.load_from_disk(str(folder))["train"]
    found = np.array(train["species"], object)
    side, label, height = 84, 168, -(-len(all_species()) // columns)
    block = label + shown * (side + 2) + 12
    sheet = Image.new("RGB", (columns * block, height * (side + 2) + 2), "white")
    draw = ImageDraw.Draw(sheet)
    for position, (names, _) in enumerate(all_species()):
        x, y = position // height * block, position % height * (side + 2) + 2
        draw.rectangle((x + 4, y, x + 8, y + side - 1), PHYLA[names[0]])
        draw.text((x + 16, y + 10), names[-1], "black", ImageFont.load_default(15))
        draw.text((x + 16, y + 31), "\n".join(names[3:0:-1]), "#777777", ImageFont.load_default(11), spacing=3)
        pictures = train[np.flatnonzero(found == names[-1])[: 3 * shown]]["image"]
        # The squarest ones, because the cells of the grid are squares and the margins are cut off.
        pictures.sort(key=lambda picture: max(picture.size) / min(picture.size))
        for cell, picture in enumerate(pictures[:shown]):
            sheet.paste(ImageOps.fit(picture, (side, side)), (x + label + cell * (side + 2), y))
    return _saved(sheet, file)


def draw_artworks_sheet(folder: str | Path, file: str | Path, *, columns: int = 4, rows: int = 6) -> Path:
    """Draw a captioned grid of training photographs that show all classes, beside their masks; return its path."""
    train = datasets.load_from_disk(str(folder))["train"]
    side, gap, caption, legend = 122, 6, 17, 48
    width = columns * (2 * side + gap) + gap
    sheet = Image.new("RGB", (width, rows * (side + caption) + gap + legend), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for cell, row in enumerate(train.select(_choose(train, columns * rows))):
        x, y = gap + cell % columns * (2 * side + gap), gap + cell // columns * (side + caption)
        # The photograph in pale grey, the damage in the colours of its classes, the background nearly black.
        pale = row["image"].convert("L").point(lambda value: 110 + value // 2).convert("RGB")
        weight = Image.fromarray(np.where(np.asarray(row["mask"]) == 0, 115, 224).astype(np.uint8))
        masked = Image.composite(row["mask"].convert("RGB"), pale, weight)
        sheet.paste(ImageOps.fit(row["image"], (side, side)), (x, y))
        sheet.paste(ImageOps.fit(masked, (side, side)), (x + side, y))
        draw.text((x, y + side), f"{row['content']}, {row['material']}", "#444444", font)
    for entry, (name, colour) in enumerate({**COLOURS, "Background (ignored)": "#101010"}.items()):
        x, y = gap + entry % 9 * (width - gap) // 9, sheet.height - legend + entry // 9 * 22 + 4
        draw.rectangle((x, y, x + 12, y + 12), colour, "#888888")
        draw.text((x + 17, y - 1), name, "black", font)
    return _saved(sheet, file)


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


def _saved(sheet: Image.Image, file: str | Path) -> Path:
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    sheet.save(file, quality=80)
    return Path(file)
