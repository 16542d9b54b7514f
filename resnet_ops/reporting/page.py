"""Pages of one file each: what is on them comes from templates beside this module, their looks from page.html.j2.

They load nothing, and forbid themselves to: they open from a disk, an attachment or a bucket alike.
"""

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
    """A chart, what it shows in words and numbers, and how it is drawn.

    Args:
        name: Of the element; another one for each picture of a page.
        title: A few words.
        caption: What there is to see, and what the marks mean.
        alt: The numbers, for who cannot see it.
        width: In inches.
        height: In inches.
        draw: Draws it, within `style.applied`.
    """

    name: str
    title: str
    caption: str
    alt: str
    width: float
    height: float
    draw: Callable[[FigureBase], None]

    def svg(self) -> Markup:
        """The chart as an element of a page."""
        chart = style.figure(self.width, self.height)
        self.draw(chart)
        return Markup(style.to_svg(chart, self.name))  # noqa: S704  # matplotlib has escaped it

    def alone(self) -> tuple[bytes, bytes]:
        """The chart as PNG, fine enough for print, and as SVG."""
        with style.applied():
            chart = style.figure(self.width, self.height)
            self.draw(chart)
            return style.to_png(chart, dpi=300), style.to_svg_file(chart, self.name)


def join_pictures(pictures: list[Picture]) -> bytes:
    """All of them below each other, as PNG."""
    with style.applied():
        chart = style.figure(max(p.width for p in pictures), sum(p.height + 0.4 for p in pictures))
        parts = chart.subfigures(len(pictures), 1, squeeze=False, height_ratios=[p.height + 0.4 for p in pictures])
        for picture, part in zip(pictures, parts[:, 0], strict=True):
            part.suptitle(picture.title, fontsize=11, fontweight="bold", x=0.01, ha="left")
            picture.draw(part)
        return style.to_png(chart)


def render(template: str, **values: Any) -> bytes:
    """Make a page of a template in this folder; all values are escaped."""
    environment = Environment(
        loader=FunctionLoader(_template),
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
    with style.applied():
        return environment.get_template(template).render(**values, css=Markup(style.css())).encode()  # noqa: S704


def _template(name: str) -> str:
    return resources.files("resnet_ops.reporting").joinpath(name).read_text(encoding="utf-8")
