"""The one rule for 'better than chance': when accuracies differ by more than the number of images explains.

A top-1 accuracy p measured on n images is a binomial proportion. Its standard error is sqrt(p (1 - p) / n), of an error
1 - p the same; that of the difference of two is the root of the sum of their squares, as if each network had images of
its own. Whatever ranks networks, or says that one is better, uses these functions.
"""

import math

ONE_TRAINING = 1.0  # standard errors of the difference beyond which two trainings differ
CONFIDENCE = 1.96  # standard errors on each side of a 95% confidence interval
OVER_SEEDS = 2.0  # the same for means over seeds, where every seed must agree as well


def standard_error(accuracy: float, images: int) -> float:
    """Return the standard error of an accuracy from 0 to 1, measured on a number of images."""
    return math.sqrt(accuracy * (1 - accuracy) / images)


def standard_error_of_difference(accuracy: float, other: float, images: int) -> float:
    """Return the standard error of the difference of two accuracies, each measured on a number of images."""
    return math.hypot(standard_error(accuracy, images), standard_error(other, images))


def differs(accuracy: float, other: float, images: int, standard_errors: float = ONE_TRAINING) -> bool:
    """Return whether two accuracies, or errors, differ by more than a number of standard errors of the difference."""
    return abs(accuracy - other) > standard_errors * standard_error_of_difference(accuracy, other, images)


def is_tied(accuracy: float, highest: float, images: int) -> bool:
    """Return whether an accuracy is within one standard error of the highest.

    Of those that are, the simplest model is selected: the one-standard-error rule (Breiman et al. 1984, Classification
    and Regression Trees, sec. 3.4.3; Hastie et al. 2009, The Elements of Statistical Learning, sec. 7.10).
    """
    return accuracy >= highest - standard_error(highest, images)


def sampling_margin(accuracy: float, images: int, total: int) -> float:
    """Return half of the 95% confidence interval of the accuracy on `total` images, measured on a sample of them.

    It is that of Agresti and Coull (1998), which holds near 0 and 1, too, for a sample without replacement.
    """
    if images >= total:
        return 0.0
    added = CONFIDENCE**2
    centered = (accuracy * images + added / 2) / (images + added)
    not_sampled = (total - images) / (total - 1)
    return CONFIDENCE * math.sqrt(centered * (1 - centered) / (images + added) * not_sampled)
