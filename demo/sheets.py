"""Contact sheets of the demo data sets, for a person to look at."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import datasets
import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from demo.artworks import CLASSES, COLOURS
from demo.fungi import all_species

SIDE, GAP, LINE = 96, 8, 18  # of a picture, between cells, and of a line of text, in pixels


def draw_fungarium_sheet(folder: str | Path, file: str | Path) -> Path:
    """Draw four training specimens of every species, and return the sheet's path."""
    train = datasets.load_from_disk(str(folder))["train"]
    found, cells = np.array(train["species"], object), []
    for names, _ in all_species():
        pictures = train[np.flatnonzero(found == names[-1])[:12]]["image"]
        # The squarest ones, because what does not fit into a square is cut off.
        pictures.sort(key=lambda picture: max(picture.size) / min(picture.size))
        cells.append((f"{names[-1]}, {names[3]}", pictures[:4]))
    return _draw(cells, file, 3)


def draw_artworks_sheet(folder: str | Path, file: str | Path) -> Path:
    """Draw training photographs that together show all classes, beside their masks, and return the sheet's path."""
    train, cells = datasets.load_from_disk(str(folder))["train"], []
    pixels = np.array([np.bincount(np.asarray(mask).ravel(), minlength=256) for mask in train["mask"]])
    most = np.argsort(-pixels[:, : len(CLASSES)] / pixels.sum(1, keepdims=True), axis=0)  # of each class
    for row in train.select(list(dict.fromkeys(most.ravel().tolist()))[:24]):
        # The photograph in pale grey, the damage in the colours of its classes, the background nearly black.
        pale = row["image"].convert("L").point(lambda value: 110 + value // 2).convert("RGB")
        weight = row["mask"].point(lambda value: 224 if value else 115, "L")
        masked = Image.composite(row["mask"].convert("RGB"), pale, weight)
        cells.append((f"{row['content']}, {row['material']}", [row["image"], masked]))
    return _draw(cells, file, 4, {**COLOURS, "Background (ignored)": "#101010"})


def _draw(
    cells: Sequence[tuple[str, Sequence[Image.Image]]], file: str | Path, columns: int, legend: Mapping[str, str] = {}
) -> Path:
    """A grid of cells, pictures side by side under a caption; at its foot what colours mean."""
    block, entries = max(len(pictures) for _, pictures in cells) * SIDE + GAP, columns * 2
    rows, lines = -(-len(cells) // columns), -(-len(legend) // entries)
    sheet = Image.new("RGB", (columns * block, rows * (SIDE + LINE) + lines * LINE + GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for number, (caption, pictures) in enumerate(cells):
        x, y = number % columns * block, number // columns * (SIDE + LINE)
        draw.text((x, y + 1), caption, "black", font)
        for picture in pictures:
            sheet.paste(ImageOps.fit(picture, (SIDE, SIDE)), (x, y + LINE))
            x += SIDE
    for number, (name, colour) in enumerate(legend.items()):
        x, y = number % entries * sheet.width // entries, rows * (SIDE + LINE) + number // entries * LINE + 4
        draw.rectangle((x, y, x + 12, y + 12), colour, "#888888")
        draw.text((x + 17, y - 1), name, "black", font)
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    sheet.save(file, quality=80)
    return Path(file)
