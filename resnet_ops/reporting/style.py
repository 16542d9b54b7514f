"""The style of every chart: colors, axes, number formats, and output as PNG and SVG. What a chart shows is not here.

Each color is a pair, for light and for dark pages; a chart is drawn in the light ones, and as SVG refers to them by
name, so that it turns dark with its page. Categories have Okabe & Ito's colors (2008), depths steps of plasma, values
viridis: all three can be distinguished by the color-blind, and the last two in greyscale.
"""

import io
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LogNorm, Normalize, to_hex
from matplotlib.figure import Figure, FigureBase
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from resnet_ops.formatting import percent

STEPS = 16  # of the scale of depths
NARROW = 4.0  # inches: the width of a chart on a phone
COLORS = {  # name: (on a light page, on a dark one)
    "ink": ("#1d2025", "#e8eaed"),
    "muted": ("#636a75", "#a2a9b4"),
    "grid": ("#dde0e5", "#3a3f47"),
    "blue": ("#0072b2", "#4da3e6"),
    "vermilion": ("#d55e00", "#f28e4b"),
    "green": ("#009e73", "#3cc79d"),
    "purple": ("#cc79a7", "#e29bc4"),
    "orange": ("#e69f00", "#f5bf4f"),
    "sky": ("#56b4e9", "#a5dcff"),
    **{
        f"step{step}": (to_hex(mpl.colormaps["plasma"](0.78 * x)), to_hex(mpl.colormaps["plasma"](0.38 + 0.6 * x)))
        for step, x in ((step, step / (STEPS - 1)) for step in range(STEPS))
    },
}
INK, MUTED, GRID, BLUE, VERMILION = (COLORS[name][0] for name in ("ink", "muted", "grid", "blue", "vermilion"))
KINDS = [COLORS[name][0] for name in ("blue", "vermilion", "green", "purple", "orange", "sky")]
VALUES = "viridis"
MARKERS = "osD^vP"
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
LOG_FROM = 8.0  # largest / smallest, from which a scale is logarithmic
RC: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "sans-serif"],  # of similar width, or labels in SVG would overlap
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "text.color": INK,
    "text.parse_math": False,  # names may contain $
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "none",
    "svg.fonttype": "none",  # text stays text, for screen readers and search
}


@contextmanager
def applied() -> Iterator[None]:
    """Apply this style within a `with` block, whatever the user's own matplotlib settings are."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(cast("Any", RC))
        yield


def figure(width: float, height: float) -> Figure:
    """Return an empty chart of this size in inches, with constrained layout."""
    between = 0.1 if width <= NARROW else 0.04  # inches, so that a title is not taken for the label of the panel above
    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(h_pad=between, w_pad=0.04))


def is_narrow(part: FigureBase) -> bool:
    """Return whether a chart is drawn for a phone."""
    return part.get_figure(root=True).get_figwidth() <= NARROW


def panels(part: FigureBase, count: int, *, sharey: bool = False) -> list[Axes]:
    """Return panels side by side, or one below the other in a narrow chart."""
    rows, columns = (count, 1) if is_narrow(part) else (1, count)
    return list(part.subplots(rows, columns, squeeze=False, sharey=sharey).flat)


def step_colors(count: int) -> list[str]:
    """Return colors for ordered values, such as depths, from dark to light."""
    return [COLORS[f"step{round(i * (STEPS - 1) / max(count - 1, 1))}"][0] for i in range(count)]


def number(value: float) -> str:
    """Return a number as on a tick, in three digits: 0.03, 2e-4, 125k, 1.7M."""
    for at_least, size, unit in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= at_least:
            return f"{value / size:.3g}{unit}"
    if value and abs(value) < 1e-3:
        return re.sub(r"\.?0*e-0?", "e-", f"{value:.2e}")
    return f"{value:.4g}" if abs(value) >= 1e3 else f"{value:.3g}"


def numbers(ticks: Sequence[float]) -> list[str]:
    """Return numbers as on ticks; as powers of ten, if they all are and span at least six of them."""
    powers = [f"{tick:e}" for tick in ticks]
    if all(power.startswith("1.000000e") for power in powers) and max(ticks) >= 1e6 * min(ticks):
        exponents = [str(int(power.partition("e")[2])).translate(RAISED) for power in powers]
        return ["1" if exponent == "⁰" else f"10{exponent}" for exponent in exponents]
    return [number(tick) for tick in ticks]


def shortened(text: str, most: int) -> str:
    """Return a text of at most `most` characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def log_ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Return round numbers between two positive ones, evenly spaced in logarithms: 1, 2, 5, 10... or fewer."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for steps, stride in (((1, 2, 5), 1), ((1, 3), 1), ((1,), 1), ((1,), 2), ((1,), 4), ((1,), 8)):
        exponents = range(first - first % stride, last + 1, stride)
        ticks = [float(f"{step}e{exponent}") for exponent in exponents for step in steps]
        within = [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
        if len(within) <= most:
            return within
    return within


def error_axis(axis: Axis, errors: Sequence[float], images: int, label: str, *, log: bool = True) -> None:
    """Set an axis to errors (from 0 to 1, on so many images) in percent, with a log scale if their range is wide.

    An error of 0, which has no logarithm, is placed below that of one image. `log=False` forbids a log scale.
    """
    axis.set_label_text(label)
    low, high = _span(errors, 1 / images)
    above = [error for error in errors if error > 0]
    if not log or not above or high < LOG_FROM * min(above):
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        axis.set_major_formatter(FuncFormatter(lambda share, _: percent(share, None)))
        pad = 0.06 * (high - low)
        _limit(axis, max(low - pad, -pad), min(high + pad, 1 + pad))
        return
    ticks = log_ticks(min(above) / 1.3, high * 1.3)
    if min(errors) <= 0:
        threshold = min(min(above), 1 / images)
        _scale(axis, "symlog", linthresh=threshold, linscale=0.4)
        ticks = [0, *(tick for tick in ticks if tick >= threshold)]
        _limit(axis, -0.2 * threshold, min(high * 1.3, 1.15))
    else:
        _scale(axis, "log")
        _limit(axis, min(above) / 1.3, min(high * 1.3, 1.15))
    ticks = [tick for tick in ticks if tick <= 1]
    _ticks(axis, ticks, [percent(tick, None) for tick in ticks])


def value_axis(axis: Axis, values: Sequence[float], label: str, *, log: bool | None = None, most: int = 6) -> None:
    """Set an axis to numbers, with a log scale if they are positive and their range is wide, or as `log` says."""
    axis.set_label_text(label)
    low, high = _span(values, 0)
    distinct = sorted(set(values))
    if log is None:
        log = low > 0 and high >= LOG_FROM * low
    if log and low > 0:
        _scale(axis, "log")
        pad = (high / low) ** 0.05 if high > low else 2
        _limit(axis, low / pad, high * pad)
        ticks = log_ticks(low / pad, high * pad, most)
        few = len(distinct) <= most and all(b / a > 1.25 for a, b in itertools.pairwise(distinct))
        if few and all(float(f"{value:.3g}") == value for value in distinct):
            ticks = distinct
        _ticks(axis, ticks or distinct, numbers(ticks or distinct))
        return
    pad = 0.05 * (high - low) or abs(high) * 0.1 or 1
    _limit(axis, low - pad, high + pad)
    if len(distinct) == 1:
        _ticks(axis, distinct, [number(distinct[0])])
        return
    axis.set_major_locator(MaxNLocator(most - 1, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))


def whole_axis(axis: Axis, last: int, label: str, most: int = 7) -> None:
    """Set an axis to whole numbers from 1 to `last`, such as epochs."""
    axis.set_label_text(label)
    axis.set_major_locator(MaxNLocator(most, integer=True) if last > 1 else FixedLocator([1]))
    pad = 0.03 * max(last - 1, 1)
    _limit(axis, 1 - pad, last + pad)


def percent_axis(axis: Axis) -> None:
    """Label an axis of shares in percent."""
    axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda share, _: percent(share, None)))


def ordered_axis(axis: Axis, names: Sequence[object], label: str, most: int = 15) -> None:
    """Set an axis to categories at 0, 1, 2...; of many, only some are labeled."""
    axis.set_label_text(label)
    stride = max(math.ceil(len(names) / most), 1)
    _ticks(axis, list(range(len(names)))[::stride], [shortened(str(name), 24) for name in names][::stride])
    _limit(axis, -0.6, max(len(names) - 0.4, 0.6))


def error_norm(errors: Sequence[float], images: int) -> tuple[Normalize, list[float]]:
    """Return the mapping of errors to colors, and the ticks of its color bar; 0 has the first color."""
    floor = max(min(errors, default=0), 1 / images)
    high = max([*errors, floor * 1.5])
    if high < LOG_FROM * floor:
        norm = Normalize(min(errors, default=0), high)
        ticks = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(norm.vmin or 0, high)
        return norm, [tick for tick in ticks if (norm.vmin or 0) <= tick <= high]
    return LogNorm(floor, high, clip=True), log_ticks(floor, high)


def empty(axes: Axes, reason: str) -> None:
    """Write into empty axes why there is no chart."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, reason, transform=axes.transAxes, ha="center", va="center", color=MUTED)


def legend(part: FigureBase, keys: Sequence[Line2D], location: Any, columns: int) -> None:
    """Add a legend beside or below the charts; below them in a narrow one."""
    if is_narrow(part):
        long = max((len(str(key.get_label())) for key in keys), default=0) > 20
        location, columns = "outside lower center", 1 if long else 2
    if keys:
        part.legend(handles=list(keys), loc=location, ncols=columns, handlelength=1.6, columnspacing=1.4)


def to_png(chart: Figure, dpi: int = 160) -> bytes:
    """Return the chart as PNG, on white."""
    content = io.BytesIO()
    chart.savefig(content, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return content.getvalue()


def to_svg(chart: Figure, salt: str) -> str:
    """Return the chart as an SVG element of a page, in the page's colors. `salt` differs for each chart of a page."""
    content = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": salt}):
        chart.savefig(content, format="svg", transparent=True)
    svg = content.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    for name, (light, _) in COLORS.items():
        svg = svg.replace(light, f"var(--{name})")
    # A precision of a hundredth of a point is enough, and halves the size.
    svg = re.sub(r' (d|x|y)="[^"]*"', lambda part: re.sub(r"(\.\d\d)\d+", r"\1", part[0]), svg)
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg))
    return re.sub(r' id="([^"]*)"', lambda part: part[0] if part[1] in used else "", svg)


def to_svg_file(chart: Figure, salt: str) -> bytes:
    """Return the chart as an SVG file, on white, in fixed colors; the same chart gives the same bytes."""
    content = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": salt}):
        chart.savefig(content, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
    return content.getvalue()


def css() -> str:
    """Return the style sheet that defines the colors by name, light and dark."""
    light, dark = (" ".join(f"--{name}: {pair[i]};" for name, pair in COLORS.items()) for i in (0, 1))
    return f":root {{ {light} }}\n@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"


def _span(values: Sequence[float], least: float) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    if high - low < least:
        low, high = low - least, high + least
    return low, high


def _scale(axis: Any, scale: str, **options: float) -> None:
    (axis.axes.set_xscale if axis.axis_name == "x" else axis.axes.set_yscale)(scale, **options)


def _limit(axis: Any, low: float, high: float) -> None:
    (axis.axes.set_xlim if axis.axis_name == "x" else axis.axes.set_ylim)(low, high)


def _ticks(axis: Axis, positions: Sequence[float], labels: Sequence[str]) -> None:
    axis.set_major_locator(FixedLocator(list(positions)))
    axis.set_major_formatter(FixedFormatter(list(labels)))
    axis.set_minor_locator(NullLocator())
