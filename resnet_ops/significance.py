"""The only rule for 'better than chance': when accuracies or errors differ by more than the number of images explains.

A top-1 accuracy p measured on n images is a binomial proportion. Its standard error is sqrt(p (1 - p) / n), of an error
1 - p the same; that of the difference of two is the root of the sum of their squares, as if each network had images of
its own. Everything that ranks networks or calls one better uses this rule.
"""

import math

ONE_TRAINING = 1.0  # standard errors of the difference beyond which two trainings differ
OVER_SEEDS = 2.0  # the same for means over seeds, where each seed must agree, too


def standard_error(accuracy: float, images: int) -> float:
    """Return the standard error of an accuracy (0 to 1) measured on so many images."""
    return math.sqrt(accuracy * (1 - accuracy) / images)


def standard_error_of_difference(first: float, second: float, images: int) -> float:
    """Return the standard error of the difference of two accuracies, each measured on so many images."""
    return math.hypot(standard_error(first, images), standard_error(second, images))


def differs(first: float, second: float, images: int, standard_errors: float = ONE_TRAINING) -> bool:
    """Return whether two accuracies, or errors, are further apart than so many standard errors of the difference."""
    return abs(first - second) > standard_errors * standard_error_of_difference(first, second, images)


def is_tied(accuracy: float, highest: float, images: int) -> bool:
    """Return whether an accuracy is within one standard error of the highest.

    Of the models that are, the simplest is selected: the one-standard-error rule (Breiman et al. 1984, Classification
    and Regression Trees, sec. 3.4.3; Hastie et al. 2009, The Elements of Statistical Learning, sec. 7.10).
    """
    return accuracy >= highest - standard_error(highest, images)
