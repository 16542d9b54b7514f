"""The metrics of classified images, by scikit-learn: per class, averaged, confusions, calibration.

Their names and what they mean are in results.py.
"""

from collections.abc import Sequence

import numpy as np
from scipy.stats import binomtest
from sklearn.metrics import precision_recall_fscore_support

from resnet_ops.class_metrics import TOP, macro_scores
from resnet_ops.evaluation.classification import ClassifiedImages
from resnet_ops.evaluation.results import (
    Confusion,
    EvaluatedClass,
    EvaluationMetrics,
    Expectation,
)
from resnet_ops.reliability import calibration_bins, calibration_error, confidence_levels
from resnet_ops.significance import LEVEL, wilson_interval


def measure(classified: ClassifiedImages, class_names: Sequence[str]) -> EvaluationMetrics:
    """Measure what can be measured of classified images."""
    labels, predicted, correct = classified.labels, classified.predicted, classified.correct
    macro_precision, macro_recall, macro_f1 = macro_scores(labels, predicted)
    bins = calibration_bins(classified.confidence, correct)
    top1 = float(correct.mean())
    low, high = wilson_interval(top1, len(classified))
    return EvaluationMetrics(
        images=len(classified),
        correct=int(correct.sum()),
        top1=top1,
        top1_low=low,
        top1_high=high,
        top5=float(classified.correct_in_top.mean()) if len(class_names) > TOP else None,
        macro_recall=macro_recall,
        macro_precision=macro_precision,
        macro_f1=macro_f1,
        negative_log_likelihood=float(classified.label_loss.mean()),
        mean_confidence=float(classified.confidence.mean()),
        expected_calibration_error=calibration_error(bins),
        classes=_per_class(labels, predicted, class_names),
        confusions=_confusions(labels, predicted, class_names),
        calibration=bins,
        confidence=confidence_levels(classified.confidence, correct),
    )


def _per_class(labels: np.ndarray, predicted: np.ndarray, class_names: Sequence[str]) -> tuple[EvaluatedClass, ...]:
    numbers = np.arange(len(class_names))
    precision, recall, f1, _ = precision_recall_fscore_support(labels, predicted, labels=numbers, zero_division=np.nan)
    images, of_class = (np.bincount(each, minlength=len(numbers)) for each in (labels, predicted))
    correct = np.bincount(labels[labels == predicted], minlength=len(numbers))

    def with_interval(name: str, value: float, count: int) -> dict[str, float | None]:
        low, high = wilson_interval(value, count) if count else (None, None)
        return {name: _known(value), f"{name}_low": low, f"{name}_high": high}

    return tuple(
        EvaluatedClass(
            name=class_names[n],
            images=int(images[n]),
            predicted=int(of_class[n]),
            correct=int(correct[n]),
            f1=_known(f1[n]),
            **with_interval("recall", float(recall[n]), int(images[n])),
            **with_interval("precision", float(precision[n]), int(of_class[n])),
        )
        for n in numbers.tolist()
    )


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _confusions(labels: np.ndarray, predicted: np.ndarray, class_names: Sequence[str]) -> tuple[Confusion, ...]:
    wrong = labels != predicted
    pairs, counts = np.unique(np.stack([labels[wrong], predicted[wrong]]), axis=1, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return tuple(
        Confusion(label=class_names[pairs[0, n]], prediction=class_names[pairs[1, n]], images=int(counts[n]))
        for n in order.tolist()
    )


def check_expectation(percent: float, correct: int, images: int) -> Expectation:
    """Test whether an accuracy is below an expected one, in percent, by more than chance."""
    p_value = float(binomtest(correct, images, percent / 100, alternative="less").pvalue)
    return Expectation(percent=percent, p_value=p_value, met=p_value > LEVEL)
