"""The reliability diagram of reports and evaluations. Its numbers are from `resnet_ops.reliability`."""

from collections.abc import Sequence
from functools import partial

import numpy as np
from matplotlib.figure import FigureBase
from matplotlib.ticker import FixedLocator

from resnet_ops.formatting import percent
from resnet_ops.reliability import CalibrationBin, ConfidenceLevel, calibration_error
from resnet_ops.reporting import style
from resnet_ops.reporting.page import Picture
from resnet_ops.significance import wilson_interval

WIDTH = 8.4


def reliability(
    bins: Sequence[CalibrationBin], levels: Sequence[ConfidenceLevel], name: str = "reliability"
) -> Picture:
    """Return the reliability diagram, and the accuracy of the images of at least some confidence.

    Args:
        bins: Those of `calibration_bins`, of one image at least.
        levels: Those of `confidence_levels`.
        name: Of the picture.
    """
    images = sum(each.images for each in bins)
    confidence, accuracy = (
        sum(each.images * (getattr(each, part) or 0) for each in bins) / images for part in ("confidence", "accuracy")
    )
    return Picture(
        name,
        "Confidence and accuracy",
        "Calibration: accuracy of the images in bins of confidence, the probability of the most likely class; on the "
        "diagonal the network is right as often as it says. Dots are larger where there are more images; bars are 95% "
        "confidence intervals. Confident images: accuracy of the images of at least some confidence, and their share.",
        f"Expected calibration error {percent(calibration_error(bins))}; mean confidence {percent(confidence)}, "
        f"{percent(abs(confidence - accuracy))} {'above' if confidence > accuracy else 'below'} the accuracy. "
        + "; ".join(
            f"confidence of {percent(level.threshold, 0)} or more: {level.images} images, "
            f"{percent(level.accuracy)} correct"
            for level in levels
            if level.accuracy is not None
        ),
        WIDTH,
        3.7,
        partial(_reliability, bins, levels),
        narrow_height=6.2,
    )


def _reliability(bins: Sequence[CalibrationBin], levels: Sequence[ConfidenceLevel], part: FigureBase) -> None:
    left, right = style.panels(part, 2)
    filled = [each for each in bins if each.confidence is not None and each.accuracy is not None]
    x = np.array([each.confidence for each in filled])
    y = np.array([each.accuracy for each in filled])
    counts = np.array([each.images for each in filled])
    spans = np.array([_half_widths(accuracy, count) for accuracy, count in zip(y, counts, strict=True)]).T
    left.plot([0, 1], [0, 1], color=style.MUTED, ls="--", lw=1.2, zorder=2)
    left.vlines(x, np.minimum(x, y), np.maximum(x, y), color=style.VERMILION, lw=5, alpha=0.25, zorder=2)
    left.errorbar(x, y, yerr=spans, fmt="none", ecolor=style.BLUE, elinewidth=1.2, zorder=3)
    left.scatter(x, y, s=18 + 130 * np.sqrt(counts / counts.max()), color=style.BLUE, zorder=4)
    left.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.04), xlabel="confidence", ylabel="accuracy")
    left.set_title(f"calibration error {percent(calibration_error(bins))}")
    for axis in (left.xaxis, left.yaxis):
        style.percent_axis(axis)
    levels = [each for each in levels if each.accuracy is not None]
    thresholds = [each.threshold for each in levels]
    shares = [each.images / counts.sum() for each in levels]
    accuracies = [each.accuracy for each in levels if each.accuracy is not None]
    places = range(len(levels))
    right.plot(places, accuracies, color=style.BLUE, marker="o", lw=2, zorder=4, label="accuracy")
    right.plot(places, shares, color=style.VERMILION, marker="s", lw=1.4, ls="--", zorder=3, label="share of images")
    lowest = min(*shares, *accuracies)
    right.set(xlim=(-0.3, len(levels) - 0.7), ylim=(max(0.0, lowest - 0.08), 1.02), xlabel="confidence of at least")
    right.xaxis.set_major_locator(FixedLocator(list(places)))
    right.set_xticklabels([percent(threshold, None) for threshold in thresholds])
    style.percent_axis(right.yaxis)
    right.set_title("accuracy of confident images")
    right.legend(loc="lower left")


def _half_widths(accuracy: float, images: int) -> tuple[float, float]:
    low, high = wilson_interval(accuracy, images)
    return max(0.0, accuracy - low), max(0.0, high - accuracy)
