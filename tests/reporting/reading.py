"""How a page is read: its tables, its words, what it refers to, and how a real browser shows it."""

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium or Chrome to show a page with")


@dataclass
class Page(HTMLParser):
    """What a page says."""

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
        """What it would fetch from elsewhere."""
        named = ("src", "href", "xlink:href", "srcset", "action", "data", "poster")
        values = [value or "" for _, attributes in self.elements for name, value in attributes.items() if name in named]
        values += re.findall(r"url\(([^)]*)\)", self.text) + re.findall(r"@import\s+(\S+)", self.text)
        return [value for value in values if not value.startswith(("#", "data:"))]

    def repeated_ids(self) -> set[str]:
        """Names that two elements have."""
        ids = [attributes["id"] or "" for _, attributes in self.elements if "id" in attributes]
        return {name for name in ids if ids.count(name) > 1}


@dataclass(frozen=True)
class Shown:
    """A page as a browser shows it: its pixels (H, W, 3) uint8, and what was said on the console."""

    pixels: np.ndarray
    console: list[str]


def show(file: Path, scheme: Literal["light", "dark"] = "light", width: int = 1000, height: int = 3000) -> Shown:
    """Open a page of the disk in a headless browser."""
    assert BROWSER is not None
    with tempfile.TemporaryDirectory() as profile:
        picture = Path(profile, "page.png")
        options = [
            "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-device-scale-factor=1",
            f"--user-data-dir={profile}", f"--blink-settings=preferredColorScheme={int(scheme == 'light')}",
            f"--window-size={width},{height}", f"--screenshot={picture}", "--enable-logging=stderr",
        ]  # fmt: skip
        told = subprocess.run(
            [BROWSER, *options, file.as_uri()], capture_output=True, text=True, timeout=60, check=False
        ).stderr
        console = [line for line in told.splitlines() if ":CONSOLE" in line]
        return Shown(np.asarray(Image.open(picture).convert("RGB")), console)
