"""A sheet of photographs beside their masks, for a person to look at."""

from pathlib import Path

import datasets
import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from demo.artworks_set import COLOURS
from demo.artworks_sheet import BACKGROUND, CLASSES

SIDE, GAP, CAPTION = 122, 6, 17


def draw_artworks_sheet(folder: str | Path, file: str | Path, *, columns: int = 4, rows: int = 6) -> Path:
    """Draw a captioned grid of training photographs that show all classes, beside their masks; return its path."""
    train = datasets.load_from_disk(str(folder))["train"]
    masks = [np.asarray(mask) for mask in train["mask"]]
    width, legend = columns * (2 * SIDE + GAP) + GAP, 48
    sheet = Image.new("RGB", (width, rows * (SIDE + CAPTION) + GAP + legend), "white")
    draw = ImageDraw.Draw(sheet)
    for cell, index in enumerate(_choose(masks, train, columns * rows)):
        x, y = GAP + cell % columns * (2 * SIDE + GAP), GAP + cell // columns * (SIDE + CAPTION)
        photograph = train[index]["image"].convert("RGB")
        sheet.paste(ImageOps.fit(photograph, (SIDE, SIDE)), (x, y))
        sheet.paste(ImageOps.fit(overlay(photograph, masks[index]), (SIDE, SIDE)), (x + SIDE, y))
        caption = f"{train[index]['content']}, {train[index]['material']}"
        draw.text((x, y + SIDE), caption, "#444444", ImageFont.load_default(11))
    names = [*CLASSES, "Background (ignored)"]
    for entry, name in enumerate(names):
        x, y = GAP + entry % 9 * (width - GAP) // 9, sheet.height - legend + entry // 9 * 22 + 4
        draw.rectangle((x, y, x + 12, y + 12), COLOURS.get(name, (16, 16, 16)), "#888888")
        draw.text((x + 17, y - 1), name, "black", ImageFont.load_default(11))
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    sheet.save(file, quality=80)
    return Path(file)


def overlay(photograph: Image.Image, mask: np.ndarray) -> Image.Image:
    """The photograph in pale grey, the damage in the colours of its classes, the background nearly black."""
    grey = np.asarray(photograph.convert("L"), np.float32)[..., None]
    colours = np.array([*COLOURS.values(), (16, 16, 16)], np.float32)[np.where(mask == BACKGROUND, len(CLASSES), mask)]
    weight = np.where(mask == 0, 0.45, 0.88)[..., None]
    return Image.fromarray((colours * weight + (110 + 0.5 * grey) * (1 - weight)).astype(np.uint8))


def _choose(masks: list[np.ndarray], rows: datasets.Dataset, count: int) -> list[int]:
    """Photographs that together show every class, the least shown one next, the contents in turn, and no artwork twice
    as long as there are others."""
    pixels = np.array([np.bincount(mask.ravel(), minlength=256) for mask in masks])
    # Photographs with a margin show the whole artwork, which looks better than a part of it.
    whole = 1 + 3 * (pixels[:, BACKGROUND] > 0.02 * pixels.sum(1))
    share = pixels[:, : len(CLASSES)] / pixels[:, : len(CLASSES)].sum(0).clip(1)
    contents, artworks = rows["content"], rows["artwork"]
    turns = sorted(set(contents))
    chosen: list[int] = []
    for cell in range(min(count, len(masks))):
        least = int(np.argmin(share[chosen].sum(0)[1:])) + 1
        seen = {artworks[index] for index in chosen}
        free = [index for index in range(len(masks)) if index not in chosen]
        free = [index for index in free if artworks[index] not in seen] or free
        fitting = [index for index in free if contents[index] == turns[cell % len(turns)]] or free
        chosen.append(max(fitting, key=lambda index: share[index, least] * whole[index]))
    return chosen
