"""Self-contained HTML pages, rendered from the templates in this folder, and the pictures in them.

A page loads nothing, and its content security policy forbids it to, and any script but page.js: it opens from a disk,
an attachment or a bucket.
"""

import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import FigureBase

from resnet_ops.formatting import duration, percent
from resnet_ops.reporting import style


@dataclass(frozen=True)
class Picture:
    """A chart with title, caption, alternative text and the function that draws it.

    Args:
        name: Id of the element, unique on its page.
        title: A few words.
        caption: What the chart shows, and what its marks mean.
        alt: Alternative text with the numbers.
        width: In inches.
        height: In inches.
        draw: Draws it, called within `style.applied`.
        narrow_height: In inches, where it is drawn on phones too, `style.NARROW` wide; None for a chart that is only
            scaled or scrolled there.
    """

    name: str
    title: str
    caption: str
    alt: str
    width: float
    height: float
    draw: Callable[[FigureBase], None]
    narrow_height: float | None = None

    def svg(self) -> Markup:
        """Return the chart as an SVG element of a page, or as two, of which the page shows the one that fits."""
        wide = self._svg(self.width, self.height, self.name)
        if self.narrow_height is None:
            return wide
        narrow = self._svg(style.NARROW, self.narrow_height, f"{self.name}-narrow")
        return Markup('<div class="wide">{}</div><div class="narrow">{}</div>').format(wide, narrow)

    def _svg(self, width: float, height: float, salt: str) -> Markup:
        chart = style.figure(width, height)
        self.draw(chart)
        return Markup(style.to_svg(chart, salt))  # noqa: S704  # matplotlib has escaped it

    def to_files(self) -> tuple[bytes, bytes]:
        """Return the chart as a PNG file, with a resolution for print, and as an SVG file."""
        with style.applied():
            chart = style.figure(self.width, self.height)
            self.draw(chart)
            return style.to_png(chart, dpi=300), style.to_svg_file(chart, self.name)


def join_pictures(pictures: list[Picture]) -> bytes:
    """Return all pictures in one PNG, one below the other."""
    with style.applied():
        chart = style.figure(max(p.width for p in pictures), sum(p.height + 0.4 for p in pictures))
        parts = chart.subfigures(len(pictures), 1, squeeze=False, height_ratios=[p.height + 0.4 for p in pictures])
        for picture, part in zip(pictures, parts[:, 0], strict=True):
            part.suptitle(picture.title, fontsize=11, fontweight="bold", x=0.01, ha="left")
            picture.draw(part)
        return style.to_png(chart)


def render(template: str, **values: Any) -> bytes:
    """Render a template in this folder as a page; all values are escaped."""
    environment = Environment(
        loader=FunctionLoader(_read_template),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": lambda share: "" if share is None else percent(share),
        "duration": duration,
        "value": lambda value: style.number(value) if isinstance(value, float) else value,
    }
    script = _read_template("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    values |= {"script": Markup(script), "script_hash": f"sha256-{digest}"}  # noqa: S704
    with style.applied():
        return environment.get_template(template).render(**values, css=Markup(style.css())).encode()  # noqa: S704


def _read_template(name: str) -> str:
    return resources.files("resnet_ops.reporting").joinpath(name).read_text(encoding="utf-8")
