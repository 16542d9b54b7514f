"""The charts of a search: depth against learning rate, learning curves, error against depth, other options.

Each has a function that describes it and one that draws it; their page is made in search_report.py.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import FigureBase
from matplotlib.lines import Line2D

from resnet_ops.formatting import duration, percent
from resnet_ops.reporting import style
from resnet_ops.reporting.page import Picture
from resnet_ops.reporting.search_data import KINDS, SearchData, error, error_bar, kind_of, val_error, verdict
from resnet_ops.significance import wilson_interval, with_interval
from resnet_ops.tuning.results import Trial, TrialStatus

WIDTH = 8.4
MARKS: dict[TrialStatus, str] = {"finished": "o", "stopped": "v", "failed": "X", "running": "D"}
KIND_STYLE = {"plain": (style.VERMILION, "s"), "resnet": (style.BLUE, "o")}
ERROR = "validation error"
NONE_YET = "No trial has been validated yet."


def pictures(data: SearchData) -> list[Picture]:
    """Return the pictures of a search in the order of the page."""
    if not data.validated:
        return [landscape(data)]
    return [landscape(data), curves(data), by_depth(data), *([options(data)] if data.others else [])]


def landscape(data: SearchData) -> Picture:
    """Return the picture of depth against learning rate, with the error as color."""
    x, name = _x_option(data)
    label = {"lr": "learning rate", "": "trial"}.get(name, name.replace("_", " "))
    rows = "; ".join(
        f"{kind}{depth}: best {percent(error(best))} at {label} {_text(x(best))}, "
        f"{sum(t.depth == depth and kind_of(t) == kind for t in data.trials)} trials"
        for kind in data.kinds
        for depth in data.depths
        if (best := data.best_of(kind, depth))
    )
    height = 1.75 + min(max(0.42 * len(data.depths), 1.2), 5)
    return Picture(
        "landscape",
        f"Depth and {label}" if name else "Trials by depth",
        f"Each marker is a trial; its color is the {ERROR} of its best epoch. In crowded rows, markers are spread out "
        "within them. The ring marks the selected trial.",
        f"{len(data.trials)} trials. {rows or NONE_YET}",
        WIDTH,
        height,
        partial(_landscape, data, x, label, name),
        narrow_height=height * max(len(data.kinds), 1) + 0.4,
    )


def curves(data: SearchData) -> Picture:
    """Return the picture of the error over epochs, a line for each trial."""
    rows = "; ".join(
        f"trial {t.id} ({t.model}, {t.status}): "
        + ", ".join(percent(val_error(e)) for e in _evenly_spaced(data.curves[t.id], 3))
        for kind in data.kinds
        for t in data.bests(kind)
        if data.curves[t.id]
    )
    return Picture(
        "curves",
        "Learning curves",
        f"The {ERROR} after each epoch, one color per depth; the marker at the end of a line is the trial's status. "
        "The thick line is the selected trial, the ring its best epoch.",
        f"First, middle and last epoch of the best trial of each depth: {rows or NONE_YET}",
        WIDTH,
        3.9,
        partial(_curves, data),
        narrow_height=1.2 + 2.6 * max(len(data.kinds), 1) + 0.1 * len(data.depths),
    )


def by_depth(data: SearchData) -> Picture:
    """Return the picture of error, parameters and time of the best trial of each depth."""
    rows = "; ".join(
        f"{t.model}: {with_interval(error(t), data.images)}, {t.parameters:,} parameters, "
        f"{duration(_seconds_per_epoch(t))} per epoch"
        for kind in data.kinds
        for t in data.bests(kind)
    )
    verdicts = " ".join(filter(None, (verdict(kind, data.bests(kind), data.tests) for kind in data.kinds)))
    compared = f" Compared by {data.tests.name}." if verdicts else ""
    return Picture(
        "depth",
        "Best error by depth",
        f"{verdicts} The best trial of each depth; error bars: 95% confidence intervals (Wilson) on "
        f"{data.images:,} images.{compared}".strip(),
        rows or NONE_YET,
        WIDTH,
        2.9,
        partial(_by_depth, data),
        narrow_height=6.6,
    )


def options(data: SearchData) -> Picture:
    """Return the picture of the error against each other searched option."""
    rows = "; ".join(
        f"{name}: best {percent(error(best[-1]))} at {_text(best[-1].options[name])}"
        for name in data.others
        if (best := [t for t in data.validated if name in t.options])
    )
    return Picture(
        "options",
        "Other searched options",
        f"The {ERROR} of each trial by option; colors are depths, as above. The ring marks the selected trial.",
        rows,
        WIDTH,
        0.5 + 2.3 * math.ceil(len(data.others) / 3),
        partial(_options, data),
        narrow_height=0.5 + 2.3 * len(data.others),
    )


def _landscape(data: SearchData, x: Callable[[Trial], Any], label: str, name: str, part: FigureBase) -> None:
    panels = _panels(part, data)
    if not data.trials:
        style.empty(panels["resnet"], NONE_YET)
        return
    errors = [error(trial) for trial in data.validated]
    norm, ticks = style.error_norm(errors, data.images)
    rows = {depth: row for row, depth in enumerate(data.depths)}
    crowded = max((sum(t.depth == d for t in data.trials) for d in data.depths), default=0) / len(panels) > 12
    size = 70 if len(data.trials) <= 60 else 34
    failed = [trial for trial in data.trials if trial.val_accuracy is None]
    for kind, axes in panels.items():
        for trial in (t for t in [*failed, *data.validated] if kind_of(t) == kind):
            y = rows[trial.depth] + (0.56 * ((trial.id * 0.618034) % 1 - 0.5) if crowded else 0)
            colors: dict[str, Any] = {"facecolor": "none", "edgecolor": style.MUTED}
            if trial.val_accuracy is not None:
                colors = {"facecolor": mpl.colormaps[style.VALUES](norm(error(trial))), "edgecolor": style.INK}
            axes.scatter([x(trial)], [y], s=size, marker=MARKS[trial.status], linewidth=0.6, zorder=3, **colors)
            if data.selection and trial.id == data.selection.trial.id:
                axes.scatter([x(trial)], [y], s=4.5 * size, facecolor="none", edgecolor=style.VERMILION, lw=2, zorder=4)
        if crowded:  # then rows are bands
            axes.grid(visible=False, axis="y")
            for row in range(1, len(rows)):
                axes.axhline(row - 0.5, color=style.GRID, lw=0.7, zorder=1)
        style.value_axis(
            axes.xaxis, [x(t) for t in data.trials], label, log={"lr": True, "": False}.get(name), most=9 // len(panels)
        )
        style.ordered_axis(axes.yaxis, data.depths, "depth" if axes is panels[next(iter(panels))] else "")
    if data.validated:
        bar = part.colorbar(
            ScalarMappable(norm, style.VALUES), ax=list(panels.values()), label=ERROR, pad=0.02, aspect=16
        )
        bar.set_ticks(ticks, labels=[percent(tick, None) for tick in ticks])
        bar.minorticks_off()
        bar.outline.set_visible(False)
    style.legend(part, [*_status_keys(data.trials), *_selection_key(data)], "outside lower center", columns=5)


def _curves(data: SearchData, part: FigureBase) -> None:
    panels = _panels(part, data)
    colors = dict(zip(data.depths, style.step_colors(len(data.depths)), strict=True))
    trials = [trial for trial in data.trials if data.curves[trial.id]]
    best = data.selection.trial.id if data.selection else None
    alpha = 1 if len(trials) <= 12 else max(0.35, 12 / len(trials))
    for trial in sorted(trials, key=lambda t: (t.id == best, t.id)):
        axes, epochs, is_best = panels[kind_of(trial)], data.curves[trial.id], trial.id == best
        numbers, errors = [e.epoch for e in epochs], [val_error(e) for e in epochs]
        line: dict[str, Any] = {
            "color": colors[trial.depth],
            "alpha": 1 if is_best else alpha,
            "zorder": 5 if is_best else 3,
        }
        axes.plot(numbers, errors, lw=2.6 if is_best else 1.1, **line)
        axes.plot(
            numbers[-1:], errors[-1:], marker=MARKS[trial.status], ms=5.5, mec=style.INK, mew=0.5, clip_on=False, **line
        )
        if is_best:
            lowest = max(epochs, key=lambda e: e.score(data.record.select))
            ring: dict[str, Any] = {"ms": 12, "mfc": "none", "mec": style.VERMILION, "mew": 2}
            axes.plot(lowest.epoch, val_error(lowest), "o", clip_on=False, zorder=6, **ring)
    last = max([data.record.epochs, *(e.epoch for epochs in data.curves.values() for e in epochs)])
    every = [val_error(e) for trial in trials for e in data.curves[trial.id]]
    for axes in panels.values():
        style.whole_axis(axes.xaxis, last, "epoch")
    style.error_axis(next(iter(panels.values())).yaxis, every, data.images, ERROR)
    if not trials:
        for axes in panels.values():
            style.empty(axes, NONE_YET)
        return
    depths = [Line2D([], [], color=colors[d], lw=2.2, label=f"depth {d}") for d in _evenly_spaced(data.depths, 10)]
    keys = [*depths, *_status_keys(trials), *_selection_key(data)]
    style.legend(part, keys, "outside right upper", columns=1)


def _by_depth(data: SearchData, part: FigureBase) -> None:
    panels = style.panels(part, 3)
    bests = {kind: data.bests(kind) for kind in data.kinds}
    every = [trial for trials in bests.values() for trial in trials]
    position = {depth: index for index, depth in enumerate(data.depths)}
    for shift, (kind, trials) in enumerate(bests.items()):
        color, marker = KIND_STYLE[kind]
        # Side by side, or the error bars of two kinds would overlap.
        x = [position[trial.depth] + (shift - (len(bests) - 1) / 2) * 0.12 for trial in trials]
        line: dict[str, Any] = {"color": color, "marker": marker, "ms": 5.5, "lw": 1.4}
        bars = np.array([error_bar(trial, data.images) for trial in trials]).T
        panels[0].errorbar(x, [error(t) for t in trials], yerr=bars, capsize=3, elinewidth=1.4, **line)
        panels[1].plot(x, [trial.parameters for trial in trials], **line)
        panels[2].plot(x, [_seconds_per_epoch(trial) for trial in trials], **line)
        if data.selection and kind_of(data.selection.trial) == kind and data.selection.trial in trials:
            index = trials.index(data.selection.trial)
            panels[0].plot(x[index], error(trials[index]), "o", ms=13, mfc="none", mec=style.INK, mew=1.6, zorder=5)
    spread = [end for t in every for end in (error(t), *wilson_interval(error(t), data.images))]
    floor = min(error(t) for t in every)
    style.error_axis(panels[0].yaxis, [max(e, min(floor, 1 / data.images)) for e in spread], data.images, "")
    style.value_axis(panels[1].yaxis, [trial.parameters for trial in every], "")
    style.value_axis(panels[2].yaxis, [_seconds_per_epoch(trial) for trial in every], "")
    for axes, title in zip(panels, (f"best {ERROR}", "parameters", "seconds per epoch"), strict=True):
        axes.set_title(title)
        style.ordered_axis(axes.xaxis, data.depths, "depth", most=7)
    keys = [
        Line2D([], [], color=KIND_STYLE[kind][0], marker=KIND_STYLE[kind][1], ms=5.5, lw=1.4, label=KINDS[kind])
        for kind in bests
    ]
    style.legend(part, [*keys, *_selection_key(data, style.INK)], "outside lower center", columns=4)


def _options(data: SearchData, part: FigureBase) -> None:
    columns = 1 if style.is_narrow(part) else min(3, max(len(data.others), 2))
    grid = part.subplots(math.ceil(len(data.others) / columns), columns, squeeze=False, sharey=True)
    colors = dict(zip(data.depths, style.step_colors(len(data.depths)), strict=True))
    errors = [error(trial) for trial in data.validated]
    for axes, (name, tried) in zip(grid.flat, data.others.items(), strict=False):
        trials = [trial for trial in data.validated if name in trial.options]
        positions, ticks = _positions([trial.options[name] for trial in trials], tried)
        for trial, x in zip(trials, positions, strict=True):
            marker_style = {"color": colors[trial.depth], "edgecolor": style.INK, "linewidth": 0.4}
            axes.scatter([x], [error(trial)], s=30, marker=MARKS[trial.status], zorder=3, **marker_style)
            if data.selection and trial.id == data.selection.trial.id:
                axes.scatter([x], [error(trial)], s=140, facecolor="none", edgecolor=style.VERMILION, lw=1.8, zorder=4)
        label = name.replace("_", " ")
        if ticks:
            style.ordered_axis(axes.xaxis, ticks, label, most=6)
        else:
            style.value_axis(axes.xaxis, [float(value) for value in tried], label, most=5)
    for axes in list(grid.flat)[len(data.others) :]:
        axes.set_visible(False)
    style.error_axis(grid[0, 0].yaxis, errors, data.images, "")
    for row in grid:
        row[0].set_ylabel(ERROR)


def _positions(values: Sequence[Any], tried: Sequence[Any]) -> tuple[list[float], list[str]]:
    """Return positions of values on an axis, and the names of its categories; [] if the values are numbers."""
    if _are_numbers(tried):
        return [float(value) for value in values], []
    names = sorted({_text(value) for value in tried})
    return [
        names.index(_text(value)) + 0.3 * ((index * 0.618034) % 1 - 0.5) for index, value in enumerate(values)
    ], names


def _x_option(data: SearchData) -> tuple[Callable[[Trial], Any], str]:
    """Return the x values of the first picture, and their option: lr, or if that is constant another number."""
    if len({trial.lr for trial in data.trials}) != 1 or len(data.trials) == 1:
        return (lambda trial: trial.lr), "lr"
    for name, tried in data.others.items():
        if len(tried) == len(data.trials) and _are_numbers(tried):
            return partial(_option, name), name
    return (lambda trial: trial.id), ""


def _option(name: str, trial: Trial) -> Any:
    return trial.options[name]


def _are_numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _panels(part: FigureBase, data: SearchData) -> dict[str, Axes]:
    kinds = data.kinds or ["resnet"]
    panels = dict(zip(kinds, style.panels(part, len(kinds), sharey=True), strict=True))
    if len(kinds) > 1:
        for kind, axes in panels.items():
            axes.set_title(KINDS[kind])
    return panels


def _status_keys(trials: Sequence[Trial]) -> list[Line2D]:
    statuses = [status for status in MARKS if any(trial.status == status for trial in trials)]
    return [Line2D([], [], marker=MARKS[each], label=each, ls="", color=style.MUTED, ms=6.5) for each in statuses]


def _selection_key(data: SearchData, color: str = style.VERMILION) -> list[Line2D]:
    if data.selection is None:
        return []
    label = f"selected: trial {data.selection.trial.id}"
    return [Line2D([], [], ls="", marker="o", ms=10, mfc="none", mec=color, mew=1.8, label=label)]


def _seconds_per_epoch(trial: Trial) -> float:
    return trial.seconds / max(trial.epochs, 1)


def _evenly_spaced(values: Sequence[Any], most: int) -> list[Any]:
    """Return at most `most` values, evenly spaced, with the first and the last."""
    return [values[i] for i in np.unique(np.linspace(0, len(values) - 1, most).round().astype(int))]


def _text(value: Any) -> str:
    return style.number(value) if isinstance(value, float) else str(value)
