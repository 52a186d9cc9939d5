"""The page itself: whole, self-contained, harmless whatever names are in it, and readable on a phone."""

from __future__ import annotations

import numpy as np
import pytest
from pages import Page, look_in_browser
from PIL import Image

from common.metrics.report_data import Evidence
from common.model.hierarchy import Hierarchy
from common.report.figures import Picture, draw_level_confusion, draw_pictures, draw_reliability
from common.report.page import ReportContent, embed_file, embed_picture, write_report
from common.report.tables import Pairs, confused_pairs, hardest_classes, watched

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src="http://evil.example/x.png" onerror="alert(1)">',
    "{{ 7 * 7 }} {% raw %}",
    "$x_1$ & 'quoted'",
    "n" * 300,
    "</style></table></main>",
]
TREE = Hierarchy(["<b>group</b>", "class"], [["A & B", HOSTILE[0]], HOSTILE], [[None, None], [0, 0, 0, 1, 1, 1]])


def picture(row: int) -> Picture:
    noise = np.random.default_rng(row).integers(0, 255, (80, 300, 3)).astype(np.uint8)
    return Picture(Image.fromarray(noise), row, HOSTILE[row % 6], HOSTILE[(row + 1) % 6], 0.5)


@pytest.fixture
def content(tmp_path) -> ReportContent:
    """Every section, with names that would like to be more than text."""
    truth, predicted = np.indices((6, 6)).reshape(2, -1)
    pairs = Pairs(TREE, Evidence(truth + 2, predicted, np.arange(36) + 1))
    pictures = {HOSTILE[0]: [picture(row) for row in range(8)]}
    draw_level_confusion(tmp_path / "confusion.png", pairs, 1)
    draw_reliability(tmp_path / "reliability.png", TREE.levels, np.ones((2, 3, 15)) / [[4], [8], [10]])
    draw_pictures(tmp_path / "examples.jpg", pictures)
    return ReportContent(
        title=HOSTILE[0],
        subtitle=HOSTILE[1],
        unit="images",
        headline=[(HOSTILE[2], "50 %")],
        facts={HOSTILE[5]: HOSTILE[4]},
        levels=[["level", HOSTILE[1]], [HOSTILE[0], "1"]],
        paths={HOSTILE[0]: [(HOSTILE[1], "2")]},
        skipped_steps="No training step.",
        skipped=HOSTILE,
        settings="\n".join(HOSTILE),
        watched=[watched(pairs, 1, 0), watched(pairs, 0, 1)],
        hardest={name: hardest_classes(pairs, level) for level, name in enumerate(TREE.levels)},
        confused=confused_pairs(pairs),
        examples={title: [embed_picture(each) for each in found] for title, found in pictures.items()},
        confusion=[embed_file(tmp_path / "confusion.png", HOSTILE[1])],
        reliability=[embed_file(tmp_path / "reliability.png", HOSTILE[5])],
        example_figures=[embed_file(tmp_path / "examples.jpg", HOSTILE[5])],
    )


def test_hostile_names_stay_text(content, tmp_path):
    write_report(tmp_path / "report.html", content)
    page = Page(tmp_path / "report.html")
    assert page.wrong == []
    assert len(page.images) == 8 + 3
    for name in HOSTILE:
        assert name in page.text or name in page.text.replace(" ", "")
    assert "default-src 'none'" in page.source
    assert not list(tmp_path.glob("*.tmp"))


def test_sections_without_content_are_left_out(content, tmp_path):
    write_report(tmp_path / "all.html", content)
    content.watched, content.confused, content.examples, content.example_figures = [], [], {}, []
    write_report(tmp_path / "less.html", content)
    everything, less = Page(tmp_path / "all.html"), Page(tmp_path / "less.html")
    assert everything.ids - less.ids == {"watched", "confused", "examples"}
    assert less.wrong == [] and 'href="#watched"' not in less.source


def test_in_a_browser(content, tmp_path):
    write_report(tmp_path / "report.html", content)
    look_in_browser(tmp_path / "report.html", tmp_path)


def test_thumbnails_are_small(tmp_path):
    found = embed_picture(picture(1))
    assert found.source.startswith("data:image/jpeg;base64,") and len(found.source) < 30_000
