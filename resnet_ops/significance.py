"""The one rule for 'better than chance': when accuracies differ by more than the number of images explains.

Networks that are compared are tested on the same images. Each pair is tested exactly, without the normal approximation,
which fails where few errors are left: by McNemar's test (1947) where it is known which images each gets right, else by
Fisher's (1935) on their numbers, which errs on the side of 'no difference' where networks fail on the same images. The
p-values are corrected for all pairs that could have been told apart (Holm 1979), so that one or more differences are
found among equal networks in at most 5% of cases, however many there are and whichever pair is then looked at. Whatever
ranks networks, or says that one is better, uses `compare`; whatever shows an accuracy's uncertainty, Wilson's interval
(1927), which is not zero at 100%.
"""

import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from resnet_ops.formatting import percent

CONFIDENCE = 1.96  # standard errors on each side of a 95% confidence interval
LEVEL = 0.05  # probability of one or more differences among equal networks
ONE_STANDARD_ERROR = math.erfc(1 / math.sqrt(2))  # the p-value, 0.32, of a difference of one standard error
NEGLIGIBLE_TERM = 1e-18  # relative to the sum of those before, where a sum may end

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class MeasuredAccuracy:
    """A network's result on some images.

    Args:
        correct: Images that it classifies correctly.
        images: All of them.
        which: Bit n tells whether image n is classified correctly; None where that is not known.
    """

    correct: int
    images: int
    which: int | None = None

    @classmethod
    def of(cls, accuracy: float, images: int, which: int | None = None) -> "MeasuredAccuracy":
        """Return the result behind an accuracy from 0 to 1; `which` is left out where it is of other weights."""
        correct = round(accuracy * images)
        return cls(correct, images, which if which is not None and which.bit_count() == correct else None)

    @classmethod
    def of_images(cls, correct: Iterable[bool]) -> "MeasuredAccuracy":
        """Return the result of which it is known of each image whether it is classified correctly."""
        bits = [bool(each) for each in correct]
        return cls(sum(bits), len(bits), int("".join("01"[bit] for bit in reversed(bits)) or "0", 2))


@dataclass(frozen=True)
class PairwiseTests(Generic[Key]):
    """The tests of all pairs of some networks.

    Args:
        single: The p-value of each pair.
        corrected: That of each pair, corrected for their number.
        tests: Which tests these are, in words.
    """

    single: Mapping[frozenset[Key], float]
    corrected: Mapping[frozenset[Key], float]
    tests: str

    def differ(self, one: Key, other: Key) -> bool:
        """Return whether the accuracies of two networks differ by more than chance."""
        return one != other and self.corrected[frozenset((one, other))] <= LEVEL

    def is_tied(self, one: Key, best: Key) -> bool:
        """Return whether a network is within one standard error of the best, by the exact test of the two.

        Of those that are, the simplest is selected: the one-standard-error rule (Breiman et al. 1984, Classification
        and Regression Trees, sec. 3.4.3; Hastie et al. 2009, The Elements of Statistical Learning, sec. 7.10). To be
        selected is no claim to be better. If it had to be one, as by `differ`, the smallest of twelve networks of
        96.0% to 98.6%, tested on 359 images, would nearly always be it, at a cost of 2.3 points rather than 0.4.
        """
        return one == best or self.single[frozenset((one, best))] > ONE_STANDARD_ERROR

    @property
    def name(self) -> str:
        """The tests in words, for a report."""
        pairs = len(self.corrected)
        return self.tests if pairs == 1 else f"{self.tests}, corrected for {pairs} comparisons"


def compare(measured: Mapping[Key, MeasuredAccuracy]) -> PairwiseTests[Key]:
    """Test all pairs of networks, which were all tested on the same images."""
    pairs = [frozenset(pair) for pair in itertools.combinations(measured, 2)]
    p_values = [p_value(*(measured[key] for key in pair)) for pair in pairs]
    return PairwiseTests(
        single=dict(zip(pairs, p_values, strict=True)),
        corrected=dict(zip(pairs, holm(p_values), strict=True)),
        tests=_tests(sum(each.which is not None for each in measured.values()), len(measured)),
    )


def _tests(paired: int, networks: int) -> str:
    """Return which tests `p_value` makes, where it is known of `paired` networks which images are right."""
    if paired < 2:
        return "Fisher's exact test"
    return "exact McNemar test" if paired == networks else "exact McNemar and Fisher tests"


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number (Holm 1979), so that 5% is the chance of one or more wrong ones of them all."""
    corrected, largest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        corrected[index] = largest
    return corrected


def p_value(one: MeasuredAccuracy, other: MeasuredAccuracy) -> float:
    """Return the probability of results that differ at least as much, of networks that are equally good."""
    if one.which is not None and other.which is not None:
        better, worse = (one.which & ~other.which).bit_count(), (other.which & ~one.which).bit_count()
        return min(1.0, 2 * _binomial_tail(min(better, worse), better + worse))
    fewer, more = sorted((one.correct, other.correct))
    return min(1.0, 2 * _hypergeometric_tail(fewer, fewer + more, one.images))


def _binomial_tail(k: int, n: int) -> float:
    """Return the probability of at most k heads, k <= n/2, in n throws of a fair coin."""
    first = math.exp(_log_choose(n, k) - n * math.log(2))
    return _sum_down(first, k, lambda k: k / (n - k + 1))


def _hypergeometric_tail(k: int, correct: int, images: int) -> float:
    """Return the probability that at most k of `correct` are one network's, k <= correct/2, both with `images`."""
    first = math.exp(_log_choose(images, k) + _log_choose(images, correct - k) - _log_choose(2 * images, correct))
    return _sum_down(first, k, lambda k: k * (images - correct + k) / ((images - k + 1) * (correct - k + 1)))


def _sum_down(first: float, k: int, ratio: Callable[[int], float]) -> float:
    """Return the sum of the terms of k, k - 1, ... that begins with `first`; `ratio` is that of a term to the next."""
    total = term = first
    while k > 0 and term > NEGLIGIBLE_TERM * total:
        term *= ratio(k)
        total += term
        k -= 1
    return total


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def wilson_interval(accuracy: float, images: int) -> tuple[float, float]:
    """Return the ends of the 95% confidence interval of an accuracy, or an error, measured on a number of images."""
    added = CONFIDENCE**2
    center = (accuracy * images + added / 2) / (images + added)
    half = CONFIDENCE / (images + added) * math.sqrt(images * accuracy * (1 - accuracy) + added / 4)
    return max(0.0, center - half), min(1.0, center + half)


def with_interval(accuracy: float, images: int) -> str:
    """Return an accuracy, or an error, in percent with its 95% confidence interval: 98.61% (96.79% to 99.40%)."""
    low, high = wilson_interval(accuracy, images)
    return f"{percent(accuracy)} ({percent(low)} to {percent(high)})"


def standard_error(accuracy: float, images: int) -> float:
    """Return the standard error of an accuracy from 0 to 1, measured on a number of images."""
    return math.sqrt(accuracy * (1 - accuracy) / images)


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
