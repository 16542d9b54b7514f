"""The charts of a search: depth against learning rate, learning curves, error against depth, other options."""

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
from resnet_ops.reporting.search_data import KINDS, SearchData, deviation, error, kind_of, verdict
from resnet_ops.tuning.results import Trial, TrialStatus

WIDTH = 8.4
MARKS: dict[TrialStatus, str] = {"finished": "o", "stopped": "v", "failed": "X", "running": "D"}
KIND_STYLE = {"plain": (style.VERMILION, "s"), "resnet": (style.BLUE, "o")}
ERROR = "validation error"
NONE_YET = "No trial has been validated yet."


def pictures(found: SearchData) -> list[Picture]:
    """The pictures of a search, in the order of a page."""
    if not found.scored:
        return [landscape(found)]
    made = [landscape(found), curves(found), by_depth(found)]
    return [*made, options(found)] if found.others else made


def landscape(found: SearchData) -> Picture:
    """Depth against learning rate, the error as colour."""
    x, name = _across(found)
    of = {"lr": "learning rate", "": "trial"}.get(name, name.replace("_", " "))
    rows = "; ".join(
        f"{kind}{depth}: best {percent(error(best))} at {of} {_written(x(best))}, "
        f"{sum(t.depth == depth and kind_of(t) == kind for t in found.trials)} trials"
        for kind in found.kinds
        for depth in found.depths
        if (best := found.best_of(kind, depth))
    )
    height = 1.75 + min(max(0.42 * len(found.depths), 1.2), 5)
    return Picture(
        "landscape",
        f"Depth and {of}" if name else "Trials by depth",
        f"Each marker is a trial; its colour is the {ERROR} of its best epoch. In crowded rows, markers are spread out "
        "within them. The ring marks the selected trial.",
        f"{len(found.trials)} trials. {rows or NONE_YET}",
        WIDTH,
        height,
        partial(_landscape, found, x, of, name),
    )


def curves(found: SearchData) -> Picture:
    """Error over epochs, a line for each trial."""
    rows = "; ".join(
        f"trial {t.id} ({t.model}, {t.status}): "
        + ", ".join(percent(e.val_error) for e in _some(found.curves[t.id], 3))
        for kind in found.kinds
        for t in found.bests(kind)
        if found.curves[t.id]
    )
    return Picture(
        "curves",
        "Learning curves",
        f"The {ERROR} after each epoch, one colour per depth; the marker at the end of a line is the trial's status. "
        "The thick line is the selected trial, the ring its best epoch.",
        f"First, middle and last epoch of the best trial of each depth: {rows or NONE_YET}",
        WIDTH,
        3.9,
        partial(_curves, found),
    )


def by_depth(found: SearchData) -> Picture:
    """Error, parameters and time of the best trial of each depth."""
    rows = "; ".join(
        f"{t.model}: {percent(error(t))} ± {percent(deviation(t, found.images))}, {t.parameters:,} parameters, "
        f"{duration(_epoch_time(t))} per epoch"
        for kind in found.kinds
        for t in found.bests(kind)
    )
    said = " ".join(filter(None, (verdict(kind, found.bests(kind), found.images) for kind in found.kinds)))
    return Picture(
        "depth",
        "Best error by depth",
        f"{said} The best trial of each depth; error bars: one standard error on {found.images:,} images, "
        "√(p(1 - p)/n).".strip(),
        rows or NONE_YET,
        WIDTH,
        2.9,
        partial(_by_depth, found),
    )


def options(found: SearchData) -> Picture:
    """Error against each other option that was searched."""
    rows = "; ".join(
        f"{name}: best {percent(error(best[-1]))} at {_written(best[-1].options[name])}"
        for name in found.others
        if (best := [t for t in found.scored if name in t.options])
    )
    return Picture(
        "options",
        "Other searched options",
        f"The {ERROR} of each trial by option; colours are depths, as above. The ring marks the selected trial.",
        rows,
        WIDTH,
        0.5 + 2.3 * math.ceil(len(found.others) / 3),
        partial(_options, found),
    )


def _landscape(found: SearchData, x: Callable[[Trial], Any], of: str, name: str, part: FigureBase) -> None:
    panels = _panels(part, found)
    if not found.trials:
        style.nothing(panels["resnet"], NONE_YET)
        return
    errors = [error(trial) for trial in found.scored]
    norm, ticks = style.error_norm(errors, found.images)
    rows = {depth: row for row, depth in enumerate(found.depths)}
    crowded = max((sum(t.depth == d for t in found.trials) for d in found.depths), default=0) / len(panels) > 12
    size = 70 if len(found.trials) <= 60 else 34
    failed = [trial for trial in found.trials if trial.val_accuracy is None]
    for kind, axes in panels.items():
        for trial in (t for t in [*failed, *found.scored] if kind_of(t) == kind):
            y = rows[trial.depth] + (0.56 * ((trial.id * 0.618034) % 1 - 0.5) if crowded else 0)
            look: dict[str, Any] = {"facecolor": "none", "edgecolor": style.MUTED}
            if trial.val_accuracy is not None:
                look = {"facecolor": mpl.colormaps[style.VALUES](norm(error(trial))), "edgecolor": style.INK}
            axes.scatter([x(trial)], [y], s=size, marker=MARKS[trial.status], linewidth=0.6, zorder=3, **look)
            if found.answer and trial.id == found.answer.trial.id:
                axes.scatter([x(trial)], [y], s=4.5 * size, facecolor="none", edgecolor=style.VERMILION, lw=2, zorder=4)
        if crowded:  # then rows are bands
            axes.grid(visible=False, axis="y")
            for row in range(1, len(rows)):
                axes.axhline(row - 0.5, color=style.GRID, lw=0.7, zorder=1)
        style.value_axis(
            axes.xaxis, [x(t) for t in found.trials], of, log={"lr": True, "": False}.get(name), most=9 // len(panels)
        )
        style.ordered_axis(axes.yaxis, found.depths, "depth" if axes is panels[next(iter(panels))] else "")
    if found.scored:
        bar = part.colorbar(
            ScalarMappable(norm, style.VALUES), ax=list(panels.values()), label=ERROR, pad=0.02, aspect=16
        )
        bar.set_ticks(ticks, labels=[percent(tick, None) for tick in ticks])
        bar.minorticks_off()
        bar.outline.set_visible(False)
    style.legend(part, [*_status_keys(found.trials), *_answer_key(found)], "outside lower center", columns=5)


def _curves(found: SearchData, part: FigureBase) -> None:
    panels = _panels(part, found)
    colors = dict(zip(found.depths, style.step_colors(len(found.depths)), strict=True))
    shown = [trial for trial in [*found.trials] if found.curves[trial.id]]
    best = found.answer.trial.id if found.answer else None
    alpha = 1 if len(shown) <= 12 else max(0.35, 12 / len(shown))
    for trial in sorted(shown, key=lambda t: (t.id == best, t.id)):
        axes, epochs, is_best = panels[kind_of(trial)], found.curves[trial.id], trial.id == best
        numbers, errors = [e.epoch for e in epochs], [e.val_error for e in epochs]
        look: dict[str, Any] = {
            "color": colors[trial.depth],
            "alpha": 1 if is_best else alpha,
            "zorder": 5 if is_best else 3,
        }
        axes.plot(numbers, errors, lw=2.6 if is_best else 1.1, **look)
        axes.plot(
            numbers[-1:], errors[-1:], marker=MARKS[trial.status], ms=5.5, mec=style.INK, mew=0.5, clip_on=False, **look
        )
        if is_best:
            at = min(epochs, key=lambda e: (e.val_error, e.val_loss))
            axes.plot(
                at.epoch, at.val_error, "o", ms=12, mfc="none", mec=style.VERMILION, mew=2, clip_on=False, zorder=6
            )
    last = max([found.record.epochs, *(e.epoch for epochs in found.curves.values() for e in epochs)])
    every = [e.val_error for trial in shown for e in found.curves[trial.id]]
    for axes in panels.values():
        style.whole_axis(axes.xaxis, last, "epoch")
    style.error_axis(next(iter(panels.values())).yaxis, every, found.images, ERROR)
    if not shown:
        for axes in panels.values():
            style.nothing(axes, NONE_YET)
        return
    depths = [Line2D([], [], color=colors[d], lw=2.2, label=f"depth {d}") for d in _some(found.depths, 10)]
    keys = [*depths, *_status_keys(shown), *_answer_key(found)]
    style.legend(part, keys, "outside right upper", columns=1)


def _by_depth(found: SearchData, part: FigureBase) -> None:
    panels = part.subplots(1, 3, squeeze=False)[0]
    bests = {kind: found.bests(kind) for kind in found.kinds}
    every = [trial for trials in bests.values() for trial in trials]
    place = {depth: index for index, depth in enumerate(found.depths)}
    for shift, (kind, trials) in enumerate(bests.items()):
        color, marker = KIND_STYLE[kind]
        # Side by side, or the bars of two kinds would cover each other.
        at = [place[trial.depth] + (shift - (len(bests) - 1) / 2) * 0.12 for trial in trials]
        look: dict[str, Any] = {"color": color, "marker": marker, "ms": 5.5, "lw": 1.4}
        bars = [deviation(trial, found.images) for trial in trials]
        panels[0].errorbar(at, [error(t) for t in trials], yerr=bars, capsize=3, elinewidth=1.4, **look)
        panels[1].plot(at, [trial.parameters for trial in trials], **look)
        panels[2].plot(at, [_epoch_time(trial) for trial in trials], **look)
        if found.answer and kind_of(found.answer.trial) == kind and found.answer.trial in trials:
            index = trials.index(found.answer.trial)
            panels[0].plot(at[index], error(trials[index]), "o", ms=13, mfc="none", mec=style.INK, mew=1.6, zorder=5)
    spread = [error(t) + sign * deviation(t, found.images) for t in every for sign in (-1, 0, 1)]
    floor = min(error(t) for t in every)
    style.error_axis(panels[0].yaxis, [max(e, min(floor, 1 / found.images)) for e in spread], found.images, "")
    style.value_axis(panels[1].yaxis, [trial.parameters for trial in every], "")
    style.value_axis(panels[2].yaxis, [_epoch_time(trial) for trial in every], "")
    for axes, title in zip(panels, (f"best {ERROR}", "parameters", "seconds per epoch"), strict=True):
        axes.set_title(title)
        style.ordered_axis(axes.xaxis, found.depths, "depth", most=7)
    keys = [
        Line2D([], [], color=KIND_STYLE[kind][0], marker=KIND_STYLE[kind][1], ms=5.5, lw=1.4, label=KINDS[kind])
        for kind in bests
    ]
    style.legend(part, [*keys, *_answer_key(found, style.INK)], "outside lower center", columns=4)


def _options(found: SearchData, part: FigureBase) -> None:
    columns = min(3, max(len(found.others), 2))
    grid = part.subplots(math.ceil(len(found.others) / columns), columns, squeeze=False, sharey=True)
    colors = dict(zip(found.depths, style.step_colors(len(found.depths)), strict=True))
    errors = [error(trial) for trial in found.scored]
    for axes, (name, tried) in zip(grid.flat, found.others.items(), strict=False):
        trials = [trial for trial in found.scored if name in trial.options]
        places, ticks = _places([trial.options[name] for trial in trials], tried)
        for trial, at in zip(trials, places, strict=True):
            look = {"color": colors[trial.depth], "edgecolor": style.INK, "linewidth": 0.4}
            axes.scatter([at], [error(trial)], s=30, marker=MARKS[trial.status], zorder=3, **look)
            if found.answer and trial.id == found.answer.trial.id:
                axes.scatter([at], [error(trial)], s=140, facecolor="none", edgecolor=style.VERMILION, lw=1.8, zorder=4)
        label = name.replace("_", " ")
        if ticks:
            style.ordered_axis(axes.xaxis, ticks, label, most=6)
        else:
            style.value_axis(axes.xaxis, [float(value) for value in tried], label, most=5)
    for axes in list(grid.flat)[len(found.others) :]:
        axes.set_visible(False)
    style.error_axis(grid[0, 0].yaxis, errors, found.images, "")
    for row in grid:
        row[0].set_ylabel(ERROR)


def _places(values: Sequence[Any], tried: Sequence[Any]) -> tuple[list[float], list[str]]:
    """Where values go on an axis, and the names of its places, [] where the values are numbers."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in tried):
        return [float(value) for value in values], []
    names = sorted({_written(value) for value in tried})
    return [
        names.index(_written(value)) + 0.3 * ((index * 0.618034) % 1 - 0.5) for index, value in enumerate(values)
    ], names


def _across(found: SearchData) -> tuple[Callable[[Trial], Any], str]:
    """What goes across the first picture: the learning rate; where that is one, another number, or the trial's."""
    if len({trial.lr for trial in found.trials}) != 1 or len(found.trials) == 1:
        return (lambda trial: trial.lr), "lr"
    for name, tried in found.others.items():
        everywhere = len(tried) == len(found.trials)
        if everywhere and all(isinstance(value, int | float) and not isinstance(value, bool) for value in tried):
            return partial(_option, name), name
    return (lambda trial: trial.id), ""


def _option(name: str, trial: Trial) -> Any:
    return trial.options[name]


def _panels(part: FigureBase, found: SearchData) -> dict[str, Axes]:
    kinds = found.kinds or ["resnet"]
    made = part.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
    if len(kinds) > 1:
        for kind, axes in zip(kinds, made, strict=True):
            axes.set_title(KINDS[kind])
    return dict(zip(kinds, made, strict=True))


def _status_keys(trials: Sequence[Trial]) -> list[Line2D]:
    there = [status for status in MARKS if any(trial.status == status for trial in trials)]
    look: dict[str, Any] = {"ls": "", "color": style.MUTED, "ms": 6.5}
    return [Line2D([], [], marker=MARKS[status], label=status, **look) for status in there]


def _answer_key(found: SearchData, color: str = style.VERMILION) -> list[Line2D]:
    if found.answer is None:
        return []
    label = f"selected: trial {found.answer.trial.id}"
    return [Line2D([], [], ls="", marker="o", ms=10, mfc="none", mec=color, mew=1.8, label=label)]


def _epoch_time(trial: Trial) -> float:
    """Seconds."""
    return trial.seconds / max(trial.epochs, 1)


def _some(values: Sequence[Any], most: int) -> list[Any]:
    """The first, the last, and some evenly between."""
    return [values[i] for i in np.unique(np.linspace(0, len(values) - 1, most).round().astype(int))]


def _written(value: Any) -> str:
    return style.number(value) if isinstance(value, float) else str(value)
