"""The charts of studies: gradients and responses by layer, and shortcut options compared.

The data is collected and the figures chosen in resnet_ops/study/.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase
from matplotlib.lines import Line2D

from resnet_ops.formatting import percent
from resnet_ops.reporting import style
from resnet_ops.reporting.page import Picture
from resnet_ops.reporting.training_figures import KINDS, THICK, THIN, WIDTH, NetworkCurves, line_width_keys

LINES = {"plain": (0, (3, 1.5)), "resnet": "solid"}
When = Literal["initial", "trained"]
WHEN: dict[When, str] = {"initial": "at initialization", "trained": "after training"}


@dataclass(frozen=True)
class Profile:
    """A positive number of each layer of a network, (seeds, layers), at initialization or after training."""

    kind: str
    depth: int
    when: When
    values: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """Geometric mean over seeds of each layer: the numbers span orders of magnitude."""
        return np.asarray(np.exp(np.log(np.maximum(self.values, np.finfo(float).tiny)).mean(0)))


def norms(rows: Sequence[tuple[str, Sequence[Profile]]]) -> Picture:
    """Return the picture of numbers by layer, at initialization and after training, plain and residual.

    Args:
        rows: The name of each number, and its values in each network.
    """
    seeds = max((len(profile.values) for _, profiles in rows for profile in profiles), default=1)
    spread = f" Means of {seeds} seeds; bands span minimum to maximum." if seeds > 1 else ""
    return Picture(
        "norms",
        "Gradients and responses by layer",
        f"From the first layer to the last, on one training batch in training mode.{spread}",
        "; ".join(_first_and_last(name, profile) for name, profiles in rows for profile in profiles),
        WIDTH,
        2.3 * len(rows) + 0.6,
        partial(_norms, rows),
    )


def responses(profiles: Sequence[Profile], branches: Sequence[Profile]) -> Picture:
    """Return the picture of the standard deviations of layer responses, as figure 7 of He et al. 2015.

    Args:
        profiles: Standard deviation of each layer's response.
        branches: That of each residual branch F(x), divided by its shortcut's.
    """
    return Picture(
        "responses",
        "Standard deviation of layer responses",
        "The output of each 3x3 layer after BatchNorm, before the ReLU and the addition; means over seeds. "
        "Networks with a training error of 50% or more are omitted.",
        "; ".join(f"{p.kind}{p.depth}: mean {style.number(float(p.values.mean()))}" for p in profiles),
        WIDTH,
        3.7,
        partial(_responses, profiles, branches),
        narrow_height=1 + 2.2 * (3 if branches else 2),
    )


def shortcuts(networks: Sequence[tuple[str, NetworkCurves]], images: int) -> Picture:
    """Return the picture of the errors of residual networks by shortcut option, a panel for each depth.

    Args:
        networks: Each with the letter of its shortcut option.
        images: Number of validation images.
    """
    seeds = max((len(network.seeds) for _, network in networks), default=1)
    spread = f" Means of {seeds} seeds; bands span minimum to maximum." if seeds > 1 else ""
    return Picture(
        "shortcuts",
        "Shortcut options",
        f"A: zero-padded; B: projection where shapes change; C: all projections.{spread}",
        "; ".join(
            f"resnet{n.depth} {option}: {percent(n.errors('val_error')[:, -1].mean())}" for option, n in networks
        ),
        WIDTH,
        3.6,
        partial(_shortcuts, networks, images),
        narrow_height=1 + 2.2 * len({network.depth for _, network in networks}),
    )


def _norms(rows: Sequence[tuple[str, Sequence[Profile]]], part: FigureBase) -> None:
    every = [profile for _, profiles in rows for profile in profiles]
    columns = [(kind, when) for when in WHEN for kind in KINDS if any(p.kind == kind for p in every)]
    panels = part.subplots(len(rows), len(columns), squeeze=False, sharex=True, sharey="row")
    lines = _lines_by_depth(sorted({profile.depth for profile in every}))
    for (name, profiles), row in zip(rows, panels, strict=True):
        for (kind, when), axes in zip(columns, row, strict=True):
            for profile in (p for p in profiles if (p.kind, p.when) == (kind, when)):
                x = np.linspace(0, 1, profile.values.shape[1])
                _plot(axes, x, profile, **lines[profile.depth])
        numbers = np.concatenate([profile.values.ravel() for profile in profiles])
        style.value_axis(row[0].yaxis, numbers[numbers > 0].tolist(), name, most=8)
    for (kind, when), axes in zip(columns, panels[0], strict=True):
        axes.set_title(f"{KINDS[kind]}\n{WHEN[when]}", fontsize=9)
    for axes in panels[-1]:
        axes.set_xticks([0, 1], ["first", "last"])
        axes.set_xlabel("layer", labelpad=-6)
        first, last = axes.get_xticklabels()
        first.set_horizontalalignment("left")
        last.set_horizontalalignment("right")
    style.legend(part, _keys(lines), "outside lower center", columns=6)


def _responses(profiles: Sequence[Profile], branches: Sequence[Profile], part: FigureBase) -> None:
    by_order, by_size, *right = style.panels(part, 3 if branches else 2)
    lines = _lines_by_depth(sorted({profile.depth for profile in profiles}))
    for profile in profiles:
        numbers = np.arange(1, profile.values.shape[1] + 1)
        for axes, values in ((by_order, profile.mean), (by_size, np.sort(profile.mean)[::-1])):
            axes.plot(
                numbers, values, ls=LINES[profile.kind], lw=1.5, markevery=_mark_stride(values), **lines[profile.depth]
            )
    most = max(profile.values.shape[1] for profile in profiles)
    every = np.concatenate([profile.mean for profile in profiles]).tolist()
    for axes, title in ((by_order, "responses by layer"), (by_size, "responses by magnitude")):
        axes.set_title(title)
        style.whole_axis(axes.xaxis, most, "layer", most=5)
        style.value_axis(axes.yaxis, [0.0, *every], "standard deviation" if axes is by_order else "", log=False)
    for axes in right:
        for branch in branches:
            _plot(axes, np.arange(1, branch.values.shape[1] + 1), branch, **lines[branch.depth])
        axes.set_title("std of F(x) / std of shortcut")
        style.whole_axis(axes.xaxis, max(branch.values.shape[1] for branch in branches), "residual block", most=5)
        style.value_axis(axes.yaxis, np.concatenate([branch.values.ravel() for branch in branches]).tolist(), "")
    kinds = [
        Line2D([], [], color=style.MUTED, lw=1.5, ls=LINES[kind], label=label)
        for kind, label in KINDS.items()
        if any(profile.kind == kind for profile in profiles)
    ]
    style.legend(part, [*_keys(lines), *kinds], "outside lower center", columns=6)


def _shortcuts(networks: Sequence[tuple[str, NetworkCurves]], images: int, part: FigureBase) -> None:
    depths = sorted({network.depth for _, network in networks})
    options = sorted({option for option, _ in networks})
    panels = style.panels(part, len(depths), sharey=True)
    lines: dict[str, dict[str, Any]] = {
        option: {"color": style.KINDS[i % len(style.KINDS)], "marker": style.MARKERS[i % len(style.MARKERS)]}
        for i, option in enumerate(options)
    }
    every: list[float] = []
    for option, network in networks:
        axes = panels[depths.index(network.depth)]
        for name, width in (("train_error", THIN), ("val_error", THICK)):
            errors = network.errors(name)
            numbers = np.arange(1, errors.shape[1] + 1)
            line: dict[str, Any] = lines[option] if width == THICK else {"color": lines[option]["color"]}
            axes.plot(numbers, errors.mean(0), lw=width, ms=5, markevery=_mark_stride(numbers), **line)
            if len(errors) > 1 and width == THICK:
                axes.fill_between(numbers, errors.min(0), errors.max(0), color=lines[option]["color"], alpha=0.18, lw=0)
            every += errors.ravel().tolist()
    for depth, axes in zip(depths, panels, strict=True):
        axes.set_title(f"resnet{depth}")
        style.whole_axis(axes.xaxis, max(len(seed) for _, n in networks for seed in n.seeds), "epoch")
    style.error_axis(panels[0].yaxis, every, images, "top-1 error")
    keys = [Line2D([], [], lw=THICK, ms=5, label=f"option {option}", **lines[option]) for option in options]
    style.legend(part, [*keys, *line_width_keys()], "outside right upper", columns=1)


def _lines_by_depth(depths: Sequence[int]) -> dict[int, dict[str, Any]]:
    colors = style.step_colors(len(depths))
    return {
        depth: {
            "color": color,
            "marker": style.MARKERS[i % len(style.MARKERS)],
            "ms": 4.5,
            "mec": style.INK,
            "mew": 0.4,
        }
        for i, (depth, color) in enumerate(zip(depths, colors, strict=True))
    }


def _keys(lines: dict[int, dict[str, Any]]) -> list[Line2D]:
    return [Line2D([], [], lw=1.6, label=f"depth {depth}", **line) for depth, line in lines.items()]


def _plot(axes: Axes, x: np.ndarray, profile: Profile, **line: Any) -> None:
    axes.plot(x, profile.mean, lw=1.4, markevery=_mark_stride(x), **line)
    if len(profile.values) > 1:
        axes.fill_between(x, profile.values.min(0), profile.values.max(0), color=line["color"], alpha=0.18, lw=0)


def _mark_stride(values: np.ndarray) -> int:
    """Return the number of points per marker."""
    return max(len(values) // 5, 1)


def _first_and_last(name: str, profile: Profile) -> str:
    first, last = (style.number(float(profile.mean[at])) for at in (0, -1))
    return f"{profile.kind}{profile.depth} {WHEN[profile.when]}, {name}: {first} in the first layer, {last} in the last"
