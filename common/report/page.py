"""report.html: one file that opens from disk, on a phone and on paper, without a network and without scripts."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from .figures import Picture
from .plots import in_words
from .tables import ClassScore, Confusion, Watched

REPORT_FILE = "report.html"

TEMPLATES = Path(__file__).parent / "templates"

THUMBNAIL = 200
"""Longest side of an example image, in pixels"""


@dataclass
class EmbeddedImage:
    """An image inside the page."""

    source: str  # data:
    caption: str
    width: int
    height: int


@dataclass
class EmbeddedPicture:
    """A thumbnail with what it is and what it was taken for."""

    source: str
    row: int
    truth: str
    predicted: str
    probability: float


@dataclass
class ReportContent:
    """What the page shows, section by section; an empty section is left out."""

    title: str
    subtitle: str
    unit: str  # what is counted: images or pixels
    headline: list[tuple[str, str]]
    facts: dict[str, str]
    levels: list[list[str]]  # a header, then a row a level
    paths: dict[str, list[tuple[str, str]]]
    skipped_steps: str
    skipped: Sequence[str]
    settings: str
    curves: list[EmbeddedImage] = field(default_factory=list)
    watched: list[Watched] = field(default_factory=list)
    hardest: dict[str, list[ClassScore]] = field(default_factory=dict)
    class_figures: list[EmbeddedImage] = field(default_factory=list)
    confused: list[Confusion] = field(default_factory=list)
    examples: dict[str, list[EmbeddedPicture]] = field(default_factory=dict)
    example_figures: list[EmbeddedImage] = field(default_factory=list)
    reliability: list[EmbeddedImage] = field(default_factory=list)
    confusion: list[EmbeddedImage] = field(default_factory=list)


def embed_file(path: Path, caption: str) -> EmbeddedImage:
    """A PNG or JPEG file as part of the page."""
    content = path.read_bytes()
    with Image.open(io.BytesIO(content)) as image:
        size, kind = image.size, image.format.lower()
    return EmbeddedImage(_data(content, kind), caption, *size)


def embed_picture(picture: Picture) -> EmbeddedPicture:
    """A thumbnail as part of the page."""
    image = picture.image.copy()
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80, optimize=True)
    source = _data(buffer.getvalue(), "jpeg")
    return EmbeddedPicture(source, picture.row, picture.truth, picture.predicted, picture.probability)


def _data(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def write_report(path: str | Path, report: ReportContent) -> None:
    """Write the page in one step. Names of classes and files may hold anything: all text is escaped."""
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    environment.filters["in_words"] = in_words
    sections = [
        ("run", True),
        ("levels", True),
        ("training", report.curves),
        ("watched", report.watched),
        ("classes", report.hardest),
        ("confused", report.confused),
        ("examples", report.examples or report.example_figures),
        ("reliability", report.reliability),
        ("confusion", report.confusion),
        ("skipped", True),
        ("settings", True),
    ]
    text = environment.get_template(REPORT_FILE).render(report=report, sections=sections)
    temporary = Path(f"{path}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
