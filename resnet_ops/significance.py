"""The one rule for 'better than chance': when accuracies or errors differ by more than so few images explain.

A top-1 accuracy p measured on n images is a binomial proportion. Its standard error is sqrt(p (1 - p) / n), of an error
1 - p the same; that of the difference of two is the root of the sum of their squares, as if each network had images of
its own. Everything that ranks networks or says that one is better asks here.
"""

import math

ONE_TRAINING = 1.0  # standard errors of the difference beyond which two trainings differ
OVER_SEEDS = 2.0  # the same of means over seeds, where every seed must agree besides


def standard_error(accuracy: float, images: int) -> float:
    """Return the standard error of an accuracy measured on so many images, both from 0 to 1."""
    return math.sqrt(accuracy * (1 - accuracy) / images)


def standard_error_of_difference(one: float, other: float, images: int) -> float:
    """Return the standard error of the difference of two accuracies, each measured on so many images."""
    return math.hypot(standard_error(one, images), standard_error(other, images))


def differs(one: float, other: float, images: int, standard_errors: float = ONE_TRAINING) -> bool:
    """Return whether two accuracies, or errors, are further apart than so many standard errors of the difference."""
    return abs(one - other) > standard_errors * standard_error_of_difference(one, other, images)


def is_tied(accuracy: float, highest: float, images: int) -> bool:
    """Return whether an accuracy is within one standard error of the highest.

    Of those that are, the simplest model is taken: the one-standard-error rule (Breiman et al. 1984, Classification and
    Regression Trees, sec. 3.4.3; Hastie et al. 2009, The Elements of Statistical Learning, sec. 7.10).
    """
    return accuracy >= highest - standard_error(highest, images)
