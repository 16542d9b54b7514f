"""The charts of training that reports and studies share: learning curves, depth, confusion matrix."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import FigureBase
from matplotlib.lines import Line2D

from resnet_ops.formatting import percent
from resnet_ops.reporting import style
from resnet_ops.reporting.page import Picture
from resnet_ops.run_records import Epoch

WIDTH = 8.4
THIN, THICK = 1.0, 2.2
TIME_UNITS = (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))
KINDS = {"plain": "plain", "resnet": "residual", "baseline": "AlexNet, VGG, GoogLeNet"}
NUMBERED = 20  # classes up to which a confusion matrix has its numbers written into it


@dataclass(frozen=True)
class NetworkCurves:
    """The learning curves of a network over one or several seeds. `kind` is 'plain', 'resnet' or 'baseline'."""

    kind: str
    depth: int
    seeds: Sequence[Sequence[Epoch]]

    def errors(self, name: str) -> np.ndarray:
        """Return `val_error` or `train_error` of each epoch that all seeds have reached, (seeds, epochs)."""
        return np.array([[getattr(epoch, name) for epoch, *_ in zip(seed, *self.seeds)] for seed in self.seeds])  # noqa: B905


def degradation(networks: Sequence[NetworkCurves], images: int, *, log: bool = True) -> Picture:
    """Return the picture of plain and residual networks of growing depth, as figure 6 of He et al. 2015.

    Args:
        networks: Of one kind or of several.
        images: Number of validation images.
        log: Whether errors may have a logarithmic scale.
    """
    seeds = max((len(network.seeds) for network in networks), default=1)
    spread = f" Lines are means of {seeds} seeds; bands span minimum to maximum." if seeds > 1 else ""
    return Picture(
        "degradation",
        "Plain and residual networks of increasing depth",
        f"Thick lines: validation error; thin lines: training error.{spread}",
        "After the last epoch: " + "; ".join(_last_errors(network) for network in networks),
        WIDTH,
        3.9,
        partial(_degradation, networks, images, log),
        narrow_height=1 + 2.2 * len({network.kind for network in networks}) + 0.1 * len(networks),
    )


def learning(trainings: Sequence[tuple[str, Sequence[Epoch]]], images: int, *, by_time: bool = False) -> Picture:
    """Return the picture of errors, losses and throughput of training runs by name.

    Args:
        trainings: Of which one at least has an epoch.
        images: Number of validation images.
        by_time: Draw them by the time of the epochs so far, and not by their number.
    """
    ends = "; ".join(
        f"{name}: {_validation_error(epochs[-1])}{percent(epochs[-1].train_error)} training error "
        f"after epoch {epochs[-1].epoch}"
        for name, epochs in trainings
        if epochs
    )
    time = " Time is that of the epochs, with validation and without pauses." if by_time else ""
    return Picture(
        "learning-time" if by_time else "learning",
        "Learning curves",
        f"Thick lines: validation images; thin lines: training images, augmented, during the epoch.{time}",
        ends,
        WIDTH,
        3.0 + 0.2 * ((len(trainings) + 1) // 2),
        partial(_learning, trainings, images, by_time),
        narrow_height=6.6 + 0.2 * len(trainings),
    )


def confusion(name: str, counts: np.ndarray, class_names: Sequence[str]) -> Picture:
    """Return the confusion matrix as a picture.

    Args:
        name: Of the picture.
        counts: (K, K) int: rows are the true class, columns the predicted.
        class_names: Of the K classes.
    """
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(wrong, axis=None, kind="stable")[::-1][:10]
    pairs = [divmod(int(at), len(class_names)) for at in order if wrong.flat[at]]
    errors = "; ".join(f"{class_names[a]} as {class_names[b]}: {wrong[a, b]}" for a, b in pairs)
    side = min(2.6 + 0.3 * len(class_names), 7.2)
    return Picture(
        name,
        "Confusion matrix",
        "Rows are true classes, columns predicted classes. Cells are shaded by their share of the row, on a scale "
        "that makes small shares visible.",
        f"Most frequent errors (true, predicted): {errors or 'none'}.",
        min(side + 0.6, 7.6),
        side,
        partial(_confusion, counts, class_names),
        narrow_height=style.NARROW if len(class_names) <= NUMBERED / 2 else None,
    )


def _degradation(networks: Sequence[NetworkCurves], images: int, log: bool, part: FigureBase) -> None:
    kinds = [kind for kind in KINDS if any(network.kind == kind for network in networks)]
    panels = style.panels(part, len(kinds), sharey=True)
    depths = sorted({network.depth for network in networks})
    colors = dict(zip(depths, style.step_colors(len(depths)), strict=True))
    marks = {depth: style.MARKERS[i % len(style.MARKERS)] for i, depth in enumerate(depths)}
    every: list[float] = []
    for network in networks:
        axes = panels[kinds.index(network.kind)]
        for name, width in (("train_error", THIN), ("val_error", THICK)):
            errors = network.errors(name)
            numbers = np.arange(1, errors.shape[1] + 1)
            thick = width == THICK
            line: dict[str, Any] = {"color": colors[network.depth], "lw": width, "zorder": 4 if thick else 3}
            if thick:  # markers distinguish depths where colors cannot
                stride = max(len(numbers) // 6, 1)
                line |= {"marker": marks[network.depth], "ms": 6, "mec": style.INK, "mew": 0.5}
                line |= {"markevery": (depths.index(network.depth) * stride // len(depths), stride)}
            axes.plot(numbers, errors.mean(0), **line)
            if len(errors) > 1:
                least, most = errors.min(0), errors.max(0)
                axes.fill_between(
                    numbers, least, most, color=colors[network.depth], alpha=0.22 if thick else 0.12, lw=0, zorder=2
                )
            every += errors.ravel().tolist()
    for kind, axes in zip(kinds, panels, strict=True):
        axes.set_title(KINDS[kind])
        style.whole_axis(axes.xaxis, max(max(len(seed) for seed in network.seeds) for network in networks), "epoch")
    style.error_axis(panels[0].yaxis, every, images, "top-1 error", log=log)
    keys = [
        Line2D([], [], color=colors[d], marker=marks[d], ms=6, mec=style.INK, mew=0.5, lw=THICK, label=f"depth {d}")
        for d in depths
    ]
    style.legend(part, [*keys, *line_width_keys()], "outside right upper", columns=1)


def _learning(trainings: Sequence[tuple[str, Sequence[Epoch]]], images: int, by_time: bool, part: FigureBase) -> None:
    longest_s = max(sum(epoch.seconds for epoch in epochs) for _, epochs in trainings)
    unit, unit_s = next((each for each in TIME_UNITS if longest_s >= 3 * each[1]), TIME_UNITS[-1])
    panels = style.panels(part, 3)
    keys = []
    for index, (name, epochs) in enumerate(trainings):
        line: dict[str, Any] = {
            "color": style.KINDS[index % len(style.KINDS)],
            "ls": ("-", "--", ":")[index // len(style.KINDS) % 3],
        }
        done = [epoch.epoch for epoch in epochs]
        ends = itertools.accumulate(epoch.seconds / unit_s for epoch in epochs)
        place = dict(zip(done, ends if by_time else done, strict=True))
        numbers = list(place.values())
        marker: dict[str, Any] = {
            "marker": style.MARKERS[index % len(style.MARKERS)],
            "ms": 4.5,
            "markevery": max(len(epochs) // 5, 1),
        }
        for axes, metric in ((panels[0], "error"), (panels[1], "loss")):
            dot = "." if len(epochs) == 1 else None  # one epoch makes no line
            axes.plot(numbers, [getattr(epoch, f"train_{metric}") for epoch in epochs], lw=THIN, marker=dot, **line)
            validated = [epoch for epoch in epochs if epoch.val_error is not None]
            values = [getattr(epoch, f"val_{metric}") for epoch in validated]
            axes.plot([place[epoch.epoch] for epoch in validated], values, lw=THICK, **line, **marker)
        panels[2].plot(numbers, [epoch.images_per_second for epoch in epochs], lw=1.6, **line, **marker)
        keys.append(Line2D([], [], lw=THICK, label=style.shortened(name, 40), **line, **marker))
    every = [epoch for _, epochs in trainings for epoch in epochs]
    errors = [e for epoch in every for e in (epoch.train_error, epoch.val_error) if e is not None]
    style.error_axis(panels[0].yaxis, errors, images, "")
    losses = [loss for epoch in every for loss in (epoch.train_loss, epoch.val_loss) if loss is not None]
    style.value_axis(panels[1].yaxis, losses, "")
    style.value_axis(panels[2].yaxis, [0, *(epoch.images_per_second for epoch in every)], "", log=False)
    for axes, title in zip(panels, ("top-1 error", "loss", "throughput (images/s)"), strict=True):
        axes.set_title(title)
        if by_time:
            axes.set_xlabel(f"training time ({unit})")
            axes.set_xlim(left=0)
        else:
            style.whole_axis(axes.xaxis, max(epoch.epoch for epoch in every), "epoch", most=5)
    style.legend(part, [*keys, *line_width_keys()], "outside lower center", columns=2 if len(keys) > 2 else 4)


def _confusion(counts: np.ndarray, class_names: Sequence[str], part: FigureBase) -> None:
    axes = part.subplots()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    shades = np.empty((*counts.shape, 4))
    shades[..., :3] = to_rgb(style.VERMILION)
    shades[np.diag_indices(len(counts))] = (*to_rgb(style.BLUE), 1)
    # The square root makes errors of a few per cent visible. Cells without images are transparent.
    shades[..., 3] = np.where(shares > 0, 0.2 + 0.8 * np.sqrt(shares), 0)
    axes.imshow(shades, interpolation="none", aspect="equal", zorder=2)
    axes.grid(visible=False)
    if len(class_names) <= NUMBERED:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                color = "white" if shades[row, column, 3] > 0.6 else style.INK
                axes.text(column, row, f"{count}", ha="center", va="center", fontsize=8, color=color, zorder=3)
    style.ordered_axis(axes.xaxis, class_names, "predicted", most=40)
    style.ordered_axis(axes.yaxis, class_names, "true", most=40)
    axes.set(xlim=(-0.5, len(counts) - 0.5), ylim=(len(counts) - 0.5, -0.5))
    axes.tick_params(axis="both", length=2, labelsize=6 if len(class_names) > 40 else 8)
    if max(map(len, class_names)) > 2:
        for label in axes.get_xticklabels():
            label.set(rotation=90 if len(class_names) > 12 else 40, ha="right", rotation_mode="anchor")
            label.set_verticalalignment("center" if len(class_names) > 12 else "top")


def line_width_keys() -> list[Line2D]:
    """Return the keys of the legend for thick and thin lines."""
    return [
        Line2D([], [], color=style.MUTED, lw=width, label=label)
        for width, label in ((THICK, "validation"), (THIN, "training"))
    ]


def _validation_error(epoch: Epoch) -> str:
    return "" if epoch.val_error is None else f"{percent(epoch.val_error)} validation error, "


def _last_errors(network: NetworkCurves) -> str:
    val, train = (network.errors(name)[:, -1] for name in ("val_error", "train_error"))
    spread = f" ({percent(val.min())} to {percent(val.max())})" if len(val) > 1 else ""
    ends = f"{percent(val.mean())}{spread} validation error, {percent(train.mean())} training error"
    return f"{network.kind}{network.depth} {ends}"
