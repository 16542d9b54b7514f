"""The chart of an evaluation that a report lacks: the recall of each class."""

from collections.abc import Sequence
from functools import partial

import numpy as np
from matplotlib.figure import FigureBase

from resnet_ops.evaluation.results import EvaluatedClass
from resnet_ops.formatting import percent
from resnet_ops.reporting import style
from resnet_ops.reporting.page import Picture

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
        narrow_height=0.9 + 0.22 * len(drawn),
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
    style.percent_axis(axes.xaxis)
    axes.set_xlabel("recall")
