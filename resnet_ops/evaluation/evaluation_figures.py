"""The charts of an evaluation: the recall of each class, reliability, confidence against accuracy."""

from collections.abc import Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from resnet_ops.evaluation.results import EvaluatedClass, EvaluationMetrics
from resnet_ops.formatting import percent
from resnet_ops.reporting import style
from resnet_ops.reporting.page import Picture
from resnet_ops.significance import wilson_interval

CLASSES_DRAWN = 30
WIDTH = 8.4


def recall_of_classes(classes: Sequence[EvaluatedClass], overall: float) -> Picture:
    """Return the picture of the recall of the classes with the lowest one.

    Args:
        classes: Those that have images, the lowest recall first.
        overall: Top-1 accuracy.
    """
    drawn = classes[:CLASSES_DRAWN]
    which = "each class" if len(drawn) == len(classes) else f"the {len(drawn)} classes of the lowest recall"
    return Picture(
        "recall",
        "Recall of each class",
        f"Recall of {which} with its 95% confidence interval (Wilson); the dashed line is the accuracy on all images.",
        "; ".join(f"{each.name}: {percent(each.recall or 0)}" for each in drawn),
        WIDTH,
        0.9 + 0.22 * len(drawn),
        partial(_recall, drawn, overall),
    )


def reliability(metrics: EvaluationMetrics) -> Picture:
    """Return the reliability diagram, and the accuracy of the images of at least some confidence."""
    gap = metrics.mean_confidence - metrics.top1
    return Picture(
        "reliability",
        "Confidence and accuracy",
        "Left: accuracy of the images in bins of confidence, the probability of the most likely class; on the diagonal "
        "the network is right as often as it says. Dots are larger where there are more images; bars are 95% "
        "confidence intervals. Right: accuracy of the images of at least some confidence, and their share.",
        f"Expected calibration error {percent(metrics.expected_calibration_error)}; mean confidence "
        f"{percent(metrics.mean_confidence)}, {percent(abs(gap))} {'above' if gap > 0 else 'below'} the accuracy. "
        + "; ".join(
            f"confidence of {percent(level.threshold, 0)} or more: {level.images} images, "
            f"{percent(level.accuracy)} correct"
            for level in metrics.confidence
            if level.accuracy is not None
        ),
        WIDTH,
        3.7,
        partial(_reliability, metrics),
    )


def _recall(classes: Sequence[EvaluatedClass], overall: float, part: FigureBase) -> None:
    axes = part.subplots()
    places = np.arange(len(classes))
    recall, low, high = (
        np.array([getattr(each, name) for each in classes]) for name in ("recall", "recall_low", "recall_high")
    )
    # An interval ends at 100%, and its other end is rounded.
    spans = np.stack([recall - low, high - recall]).clip(0)
    axes.axvline(overall, color=style.MUTED, ls="--", lw=1.2, zorder=2)
    axes.errorbar(recall, places, xerr=spans, fmt="o", ms=5, color=style.BLUE, ecolor=style.BLUE, elinewidth=1.4,
                  alpha=1, zorder=3)  # fmt: skip
    style.ordered_axis(axes.yaxis, [each.name for each in classes], "", most=len(classes))
    axes.set_ylim(len(classes) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    least = max(0.0, float(low.min()) - 0.03)
    axes.set_xlim(least - 0.01 * (1 - least), 1 + 0.02 * (1 - least))
    _percent_axis(axes, "x")
    axes.set_xlabel("recall")


def _reliability(metrics: EvaluationMetrics, part: FigureBase) -> None:
    left, right = part.subplots(1, 2)
    filled = [each for each in metrics.calibration if each.confidence is not None and each.accuracy is not None]
    x = np.array([each.confidence for each in filled])
    y = np.array([each.accuracy for each in filled])
    counts = np.array([each.images for each in filled])
    spans = np.array([_half_widths(accuracy, count) for accuracy, count in zip(y, counts, strict=True)]).T
    left.plot([0, 1], [0, 1], color=style.MUTED, ls="--", lw=1.2, zorder=2)
    left.vlines(x, np.minimum(x, y), np.maximum(x, y), color=style.VERMILION, lw=5, alpha=0.25, zorder=2)
    left.errorbar(x, y, yerr=spans, fmt="none", ecolor=style.BLUE, elinewidth=1.2, zorder=3)
    left.scatter(x, y, s=18 + 130 * np.sqrt(counts / counts.max()), color=style.BLUE, zorder=4)
    left.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.04), xlabel="confidence", ylabel="accuracy")
    left.set_title(f"calibration error {percent(metrics.expected_calibration_error)}")
    for which in ("x", "y"):
        _percent_axis(left, which)
    levels = [each for each in metrics.confidence if each.accuracy is not None]
    thresholds = [each.threshold for each in levels]
    shares = [each.images / metrics.images for each in levels]
    accuracies = [each.accuracy for each in levels]
    places = range(len(levels))
    right.plot(places, accuracies, color=style.BLUE, marker="o", lw=2, zorder=4, label="accuracy")
    right.plot(places, shares, color=style.VERMILION, marker="s", lw=1.4, ls="--", zorder=3, label="share of images")
    lowest = min(*shares, *(accuracy for accuracy in accuracies if accuracy is not None))
    right.set(xlim=(-0.3, len(levels) - 0.7), ylim=(max(0.0, lowest - 0.08), 1.02), xlabel="confidence of at least")
    right.xaxis.set_major_locator(FixedLocator(list(places)))
    right.set_xticklabels([percent(threshold, None) for threshold in thresholds])
    _percent_axis(right, "y")
    right.set_title("accuracy of confident images")
    right.legend(loc="lower left")


def _half_widths(accuracy: float, images: int) -> tuple[float, float]:
    low, high = wilson_interval(accuracy, images)
    return max(0.0, accuracy - low), max(0.0, high - accuracy)


def _percent_axis(axes: Axes, which: str) -> None:
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda share, _: percent(share, None)))
