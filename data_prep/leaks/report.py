"""What is found, as a table for programs and a page for people."""

from __future__ import annotations

import base64
import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment

from common.data.rows import ImageRows
from common.files import atomic_write
from common.images.files import BAD_IMAGE, load_image

from .compare import Place
from .describe import TRANSFORMS

COLUMNS = [
    *("split", "row", "image", "other_split", "other_row", "other_image"),
    *("kind", "transform", "correlation", "detail", "confidence"),
]
THUMBNAIL = 160

Name = tuple[str, int, str]
"""Of a place: split, row in the data set, and image file"""


@dataclass
class Leak:
    """Two rows that are not independent.

    Args:
        first, second: where they are; the second is in the split to learn from, or comes earlier in the same one.
        kind: ``same file``, ``same pixels``, ``copy`` (resized, re-encoded, recoloured) or ``same group``.
        transform: number in TRANSFORMS: what turns the first image into the second.
        correlation, detail: see :func:`data_prep.leaks.compare.agreement`.
        confidence: see :func:`data_prep.leaks.search.find_copies`.
    """

    first: Place
    second: Place
    kind: str
    transform: int = 0
    correlation: float = 1.0
    detail: float = 1.0
    confidence: float = float("inf")


def write_table(path: Path, leaks: Sequence[Leak], names: Mapping[Place, Name]) -> None:
    """Write leaks.csv."""
    with atomic_write(path) as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for leak in leaks:
            confidence = "" if leak.kind == "same file" else f"{leak.confidence:.2f}"
            facts = [TRANSFORMS[leak.transform][0], f"{leak.correlation:.4f}", f"{leak.detail:.4f}", confidence]
            facts = [""] * 4 if leak.kind == "same group" else facts
            writer.writerow([*names[leak.first], *names[leak.second], leak.kind, *facts])


def write_page(
    path: Path, leaks: Sequence[Leak], names: Mapping[Place, Name], images: Mapping[str, ImageRows], most: int = 500
) -> None:
    """Write leaks.html, one file with the pictures inside."""
    shown = [
        {
            "leak": leak,
            "pictures": [_thumbnail(images, leak.first, leak.transform), _thumbnail(images, leak.second, 0)],
            "labels": [" ".join(map(str, names[place])) for place in (leak.first, leak.second)],
            "transform": TRANSFORMS[leak.transform][0],
        }
        for leak in leaks[:most]
    ]
    counts = Counter((leak.first[0], leak.second[0], leak.kind) for leak in leaks)
    page = Environment(autoescape=True).from_string(PAGE).render(shown=shown, counts=counts, num_leaks=len(leaks))
    with atomic_write(path) as file:
        file.write(page)


def _thumbnail(images: Mapping[str, ImageRows], place: Place, transform: int) -> str:
    """A data URL; empty if the image does not decode."""
    rows = images[place[0]]
    try:
        image = load_image(rows.checked(rows.encoded([place[1]])[0]), at_least=(THUMBNAIL, THUMBNAIL))
    except BAD_IMAGE:
        return ""
    how = TRANSFORMS[transform][1]
    image = image if how is None else image.transpose(how)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Leaks between splits</title>
<style>
  body { font: 15px/1.4 system-ui, sans-serif; margin: 2em; color: #222 }
  table { border-collapse: collapse; margin-bottom: 2em } td, th { padding: .2em 1em .2em 0; text-align: left }
  main { display: flex; flex-wrap: wrap; gap: 1em }
  figure { margin: 0; padding: .6em; border: 1px solid #ddd; border-radius: 4px; width: 340px }
  figure div { display: flex; gap: 8px; align-items: center; min-height: 60px }
  img { max-width: 160px; image-rendering: auto; background: #eee }
  figcaption { font-size: 13px; overflow-wrap: anywhere } b { font-weight: 600 }
</style>
<h1>{{ num_leaks }} leaks</h1>
{% if counts %}
<table>
<tr><th>split<th>other split<th>kind<th>pairs
{% for (split, other, kind), count in counts.items() %}
<tr><td>{{ split }}<td>{{ other }}<td>{{ kind }}<td>{{ count }}
{% endfor %}
</table>
{% endif %}
{% if num_leaks > shown | length %}<p>The first {{ shown | length }} are shown; leaks.csv lists all.</p>{% endif %}
<p>The left picture is shown turned in the way that makes it fit the right one.</p>
<main>
{% for entry in shown %}
<figure>
<div><img src="{{ entry.pictures[0] }}" alt="first"><img src="{{ entry.pictures[1] }}" alt="second"></div>
<figcaption><b>{{ entry.leak.kind }}</b>
{%- if entry.leak.kind != "same group" %}, {{ "not turned" if entry.transform == "none" else entry.transform }},
correlation {{ "%.3f" | format(entry.leak.correlation) }}{% endif %}
<br>{{ entry.labels[0] }}<br>{{ entry.labels[1] }}</figcaption>
</figure>
{% endfor %}
</main>
</html>
"""
