"""Reading of pages and charts: a page's tables and links, its screenshot in a browser, a chart's lines."""

import html
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image

from resnet_ops.reporting import style
from resnet_ops.reporting.page import Picture

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium or Chrome to show a page with")


@dataclass
class Page(HTMLParser):
    """The parsed content of a page."""

    text: str
    rows: list[list[str]] = field(default_factory=list)
    elements: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    in_cell: bool = False

    def __post_init__(self) -> None:
        HTMLParser.__init__(self)
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.in_cell = False

    def handle_data(self, data: str) -> None:
        if self.in_cell:
            self.rows[-1][-1] += data.strip()

    def loads(self) -> list[str]:
        """Return the URLs that it would fetch."""
        named = ("src", "href", "xlink:href", "srcset", "action", "data", "poster")
        values = [value or "" for _, attributes in self.elements for name, value in attributes.items() if name in named]
        values += re.findall(r"url\(([^)]*)\)", self.text) + re.findall(r"@import\s+(\S+)", self.text)
        return [value for value in values if not value.startswith(("#", "data:"))]

    def repeated_ids(self) -> set[str]:
        """Return the ids that several elements have."""
        ids = [attributes["id"] or "" for _, attributes in self.elements if "id" in attributes]
        return {name for name in ids if ids.count(name) > 1}


@dataclass(frozen=True)
class Screenshot:
    """A page as a browser shows it: its pixels (H, W, 3) uint8, and the messages on its console."""

    pixels: np.ndarray
    console: list[str]


def show(file: Path, scheme: Literal["light", "dark"] = "light", width: int = 1000, height: int = 3000) -> Screenshot:
    """Open a page in a headless browser."""
    assert BROWSER is not None
    with tempfile.TemporaryDirectory() as profile:
        picture = Path(profile, "page.png")
        options = [
            "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-device-scale-factor=1",
            f"--user-data-dir={profile}", f"--blink-settings=preferredColorScheme={int(scheme == 'light')}",
            f"--window-size={width},{height}", f"--screenshot={picture}", "--enable-logging=stderr",
        ]  # fmt: skip
        stderr = subprocess.run(
            [BROWSER, *options, file.as_uri()], capture_output=True, text=True, timeout=60, check=False
        ).stderr
        console = [line for line in stderr.splitlines() if ":CONSOLE" in line]
        return Screenshot(np.asarray(Image.open(picture).convert("RGB")), console)


def draw_chart(picture: Picture) -> Any:
    """Draw a picture, and return matplotlib's figure."""
    with style.applied():
        chart = style.figure(picture.width, picture.height)
        picture.draw(chart)
        chart.draw_without_rendering()
    return chart


FRAMES = """<!doctype html><meta charset="utf-8"><body><script>
const found = {};
const told = (element) => `${element.tagName} ${element.className} ${element.textContent.trim().slice(0, 30)}`;
function measure(name, width, page) {
  const view = page.defaultView, within = (box) => box.left >= -1 && box.right <= width + 1;
  for (const details of page.querySelectorAll("details")) details.open = true;
  const scrolls = (element) => view.getComputedStyle(element).overflowX === "auto";
  const all = [...page.querySelectorAll("body, body *:not(svg *):not(script)")].filter((each) => each.offsetWidth);
  const beyond = all.filter((each) => !within(each.getBoundingClientRect())).filter((each) => {
    while (each && !scrolls(each)) each = each.parentElement;
    return !each || !within(each.getBoundingClientRect());
  });
  const scrolling = all.filter((each) => scrolls(each) && each.scrollWidth > each.clientWidth + 1);
  const unseen = [
    ...scrolling.filter((each) => !view.getComputedStyle(each).backgroundAttachment.includes("local")),
    ...all.filter((each) => scrolls(each) && each.scrollHeight > each.clientHeight + 1
      && view.getComputedStyle(each).maskImage === "none"),
  ];
  if (page.documentElement.scrollWidth > width) beyond.push(page.documentElement);
  found[`${name} ${width}`] = {width: view.innerWidth, cut: [...beyond, ...unseen].map(told),
    scrolled: scrolling.map(told)};
}
addEventListener("load", () => {
  for (const frame of document.querySelectorAll("iframe"))
    measure(frame.dataset.name, frame.width * 1, frame.contentDocument);
  document.body.textContent = JSON.stringify(found);
});
</script>"""


@dataclass(frozen=True)
class Layout:
    """What of a page does not fit into its width: elements that are cut off unseen, and those that scroll."""

    width: int
    cut: list[str]
    scrolled: list[str]


def lay_out(pages: Mapping[str, str], widths: Sequence[int]) -> dict[tuple[str, int], Layout]:
    """Lay out pages in a headless browser, each in frames of these widths: a window is no narrower than 500 pixels."""
    assert BROWSER is not None
    frames = "".join(
        f'<iframe data-name="{name}" width="{width}" height="900" style="border: 0" srcdoc="{html.escape(page)}">'
        "</iframe>"
        for name, page in pages.items()
        for width in widths
    )
    with tempfile.TemporaryDirectory() as profile:
        file = Path(profile, "frames.html")
        file.write_text(FRAMES + frames, encoding="utf-8")
        options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", "--dump-dom"]
        dom = subprocess.run(
            [BROWSER, *options, file.as_uri()], capture_output=True, text=True, timeout=60, check=True
        ).stdout
    found = json.loads(html.unescape(dom[dom.index("<body>") + 6 : dom.index("</body>")]))
    return {(name, width): Layout(**found[f"{name} {width}"]) for name in pages for width in widths}
