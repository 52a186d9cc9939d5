"""What tests look for in a page: that it is whole, needs nothing from outside, and fits onto a phone."""

from __future__ import annotations

import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """A parsed page: its text, its images, and everything that is not as it should be."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.words: list[str] = []
        self.images: list[str] = []
        self.ids: set[str] = set()
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        if self.open:
            self.wrong.append(f"never closed: {self.open}")
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        if tag not in VOID:
            self.open.append(tag)
        if tag in {"script", "iframe", "object", "embed", "link", "base"} or any(n.startswith("on") for n in values):
            self.wrong.append(f"active content: {tag} {values}")
        if tag == "img":
            self.images.append(values["src"])
            if not values["src"].startswith("data:image/"):
                self.wrong.append(f"from outside: {values['src']}")
        elif "src" in values or not values.get("href", "#").startswith("#"):
            self.wrong.append(f"from outside: {tag} {values}")
        self.ids |= {values["id"]} if "id" in values else set()

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"unexpected </{tag}>")

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)
        elif "url(" in data or "@import" in data:
            self.wrong.append("styles from outside")


def look_in_browser(path: Path, tmp_path: Path) -> None:
    """Open a page in headless Chromium: no console message, no request, no horizontal scroll; skip without one."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    executable = next((found for found in map(shutil.which, names) if found), None)
    if executable is None:
        pytest.skip("there is no Chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        for width in (400, 1280):
            noise: list[str] = []
            page = browser.new_page(viewport={"width": width, "height": 800})
            page.on("console", lambda message, noise=noise: noise.append(message.text))
            page.on("pageerror", lambda error, noise=noise: noise.append(str(error)))
            page.on("request", lambda request, noise=noise: noise.append(request.url))
            page.goto(path.as_uri())
            noise = [line for line in noise if not line.startswith("data:")]
            assert noise == [path.as_uri()], f"only the page itself is asked for, not {noise}"
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, f"{wide} pixels on a screen of {width}"
            broken = page.evaluate("[...document.images].filter(i => !i.complete || !i.naturalWidth).length")
            assert broken == 0
        page.pdf(path=tmp_path / "print.pdf")
        assert (tmp_path / "print.pdf").stat().st_size > 10_000
        browser.close()
