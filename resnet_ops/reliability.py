"""How far a network's confidence is from its accuracy: the bins of a reliability diagram, and what follows from them.

Evaluations, reports and the verification of exported files all take their numbers from here.
"""

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from resnet_ops.results import Result

BINS = 15  # as usual since Guo et al. 2017
THRESHOLDS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


class CalibrationBin(Result):
    """The images whose most likely class has a probability in a range."""

    low: float = Field(description="Lower end of the range, not in it.")
    high: float = Field(description="Upper end of the range, in it.")
    images: int = Field(description="How many images.")
    confidence: float | None = Field(description="Their mean probability; null without images.")
    accuracy: float | None = Field(description="The share of them that is correct.")


class ConfidenceLevel(Result):
    """The images whose most likely class has at least some probability."""

    threshold: float = Field(description="That probability.")
    images: int = Field(description="How many images reach it.")
    accuracy: float | None = Field(description="The share of them that is correct; null without images.")


def calibration_bins(confidence: np.ndarray, correct: np.ndarray) -> tuple[CalibrationBin, ...]:
    """Return the bins of a reliability diagram, all of the same width.

    Args:
        confidence: (N,) float, the probability of the most likely class.
        correct: (N,) bool, whether that is the true class.
    """
    edges = np.linspace(0, 1, BINS + 1)
    bins = np.searchsorted(edges[1:-1], confidence)
    images, right, total = (np.bincount(bins, weights, BINS) for weights in (None, correct, confidence))
    return tuple(
        CalibrationBin(
            low=float(edges[n]),
            high=float(edges[n + 1]),
            images=int(images[n]),
            confidence=float(total[n] / images[n]) if images[n] else None,
            accuracy=float(right[n] / images[n]) if images[n] else None,
        )
        for n in range(BINS)
    )


def calibration_error(bins: Sequence[CalibrationBin]) -> float:
    """Return the expected calibration error: the mean over images of |confidence - accuracy| of their bins."""
    gaps = [
        each.images * abs(each.confidence - each.accuracy)
        for each in bins
        if each.confidence is not None and each.accuracy is not None
    ]
    return sum(gaps) / sum(each.images for each in bins)


def confidence_levels(confidence: np.ndarray, correct: np.ndarray) -> tuple[ConfidenceLevel, ...]:
    """Return the accuracy of the images of at least some confidence, for each of `THRESHOLDS`; of the same arrays."""
    levels = []
    for threshold in THRESHOLDS:
        reached = correct[confidence >= threshold]
        accuracy = float(reached.mean()) if len(reached) else None
        levels.append(ConfidenceLevel(threshold=threshold, images=len(reached), accuracy=accuracy))
    return tuple(levels)
