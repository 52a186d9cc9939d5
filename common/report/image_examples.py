"""Example images of a classifier: right, wrong but near in the tree, wrong and far."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from ..data.rows import ImageRows
from ..images.files import BadSampleError
from ..metrics.report_data import ReportData
from ..model.hierarchy import Hierarchy
from .figures import new_figure, save_figure, shortened


@dataclass
class Picture:
    """An evaluation image with its name, what it shows and what it was predicted as."""

    image: Image.Image
    name: str
    truth: str
    predicted: str
    probability: float
    explained: Image.Image | None = None  # what counted for the prediction


def load_pictures(
    images: ImageRows, hierarchy: Hierarchy, explain: Callable[..., Image.Image] | None, data: ReportData
) -> dict[str, list[Picture]]:
    """The examples that an evaluation chose, by kind; see :data:`common.metrics.report_data.EXAMPLE_KINDS`.

    ``explain`` is an :class:`common.report.explain.Explainer`, if there is to be one.
    """
    names = hierarchy.leaf_names()
    pictures: dict[str, list[Picture]] = {kind: [] for kind in data.examples}
    for kind, examples in data.examples.items():
        for row, truth, predicted, probability in examples.tolist():
            with suppress(BadSampleError):  # it was readable before
                image = images.load(int(row), images.encoded([int(row)])[0])
                shown = (names[int(truth)], names[int(predicted)], probability)
                why = None if explain is None else explain(images, int(row), int(predicted))
                pictures[kind].append(Picture(image, images.name(int(row)), *shown, why))
    return pictures


def draw_pictures(path: str | Path, pictures: Mapping[str, Sequence[Picture]], columns: int = 6) -> None:
    """Write a JPEG with a row of images for each title, truth and prediction below them; nothing without images."""
    pictures = {title: row[:columns] for title, row in pictures.items() if row}
    if not pictures:
        return
    figure = new_figure(1.75 * columns, 2.35 * len(pictures), layout="constrained")
    panels = figure.subplots(len(pictures), columns, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for row, (title, shown) in zip(panels, pictures.items(), strict=True):
        row[0].set_title(title, fontsize=10, loc="left")
        for axes, picture in zip(row, shown, strict=False):
            axes.imshow(ImageOps.fit(picture.image, (160, 160)))
            wrong = picture.predicted != picture.truth
            lines = [f"predicted as {shortened(picture.predicted, 18)}"] if wrong else []
            text = "\n".join([shortened(picture.truth, 28), *lines, f"{picture.probability:.0%}"])
            axes.text(0, -0.03, text, fontsize=6.5, va="top", transform=axes.transAxes)
    save_figure(figure, path)
