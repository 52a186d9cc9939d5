"""What is found, as a table for programs and a page for people."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader

from common.data.rows import ImageRows
from common.images.files import BAD_IMAGE, load_image
from common.system.files import atomic_write
from data_prep.folder.images import encode

from .describe import TRANSFORMS, turned

THUMBNAIL = 160
SHOWN = 500


def write_table(path: Path, leaks: pd.DataFrame, rows: pd.DataFrame) -> None:
    """Write leaks.csv; see :func:`write_page`."""
    one, other = (
        rows.loc[leaks[side], ["split", "row", "image"]].reset_index(drop=True) for side in leaks.columns[:2]
    )
    facts = leaks[["kind", "transform", "correlation", "detail", "confidence"]].replace(np.inf, np.nan)
    facts["transform"] = [TRANSFORMS[number][0] for number in facts["transform"]]
    facts.loc[facts["kind"] == "same group", facts.columns[1:]] = None
    with atomic_write(path) as file:
        pd.concat([one, other.add_prefix("other_"), facts], axis=1).to_csv(file, index=False, float_format="%.4f")


def write_page(path: Path, leaks: pd.DataFrame, rows: pd.DataFrame, images: Mapping[str, ImageRows]) -> None:
    """Write leaks.html, one file with the pictures of the first leaks inside.

    Args:
        path: of the file.
        leaks: the pairs, as :func:`data_prep.find_leaks.find_leaks` gives them.
        rows: ``split``, ``row`` and ``image`` of each row, by its number in the pairs; ``at``, its place in images.
        images: of each split.
    """
    shown = []
    for leak in leaks.head(SHOWN).itertuples():
        places = [(rows.loc[leak.first], leak.transform), (rows.loc[leak.second], 0)]
        pictures = [_thumbnail(images[place["split"]], place["at"], transform) for place, transform in places]
        labels = [f"{place['split']} {place['row']} {place['image']}" for place, _ in places]
        shown.append(
            {"leak": leak, "pictures": pictures, "labels": labels, "transform": TRANSFORMS[leak.transform][0]}
        )
    splits = [leaks[side].map(rows["split"]) for side in ("first", "second")]
    counts = leaks.groupby([*splits, "kind"], sort=False).size().items()
    template = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True).get_template("leaks.html")
    with atomic_write(path) as file:
        file.write(template.render(shown=shown, counts=[(*key, n) for key, n in counts], num_leaks=len(leaks)))


def _thumbnail(images: ImageRows, row: int, transform: int) -> str:
    """A data URL; empty if the image does not decode."""
    try:
        image = load_image(images.checked(images.encoded([row])[0]), at_least=(THUMBNAIL, THUMBNAIL))
    except BAD_IMAGE:
        return ""
    image = turned(image, transform)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return "data:image/jpeg;base64," + base64.b64encode(encode(image, "JPEG", quality=80)).decode()
