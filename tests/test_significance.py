"""The rule for 'better than chance', against the binomial distribution itself."""

import itertools
import math

import pytest

from resnet_ops.significance import OVER_SEEDS, differs, is_tied, standard_error, standard_error_of_difference


def binomial(p: float, images: int) -> list[float]:
    """The probability of each number of correct images, from none to all."""
    return [math.comb(images, k) * p**k * (1 - p) ** (images - k) for k in range(images + 1)]


@pytest.mark.parametrize(("p", "images"), [(0.9, 100), (0.5, 7), (0.987, 360), (1.0, 50)])
def test_the_standard_error_is_the_binomials_deviation(p: float, images: int) -> None:
    chances = binomial(p, images)
    variance = sum(chance * (k / images - p) ** 2 for k, chance in enumerate(chances))
    assert standard_error(p, images) == pytest.approx(math.sqrt(variance))
    assert standard_error(1 - p, images) == pytest.approx(standard_error(p, images))  # of the error the same
    assert standard_error_of_difference(p, p, images) == pytest.approx(math.sqrt(2 * variance))


@pytest.mark.parametrize("standard_errors", [1.0, OVER_SEEDS])
def test_equal_networks_differ_as_often_as_a_normal_deviate_is_so_far_out(standard_errors: float) -> None:
    images, chances = 400, binomial(0.8, 400)
    likely = [(k / images, chance) for k, chance in enumerate(chances) if chance > 1e-9]
    mistaken = sum(
        a * b for (one, a), (other, b) in itertools.product(likely, likely)
        if differs(one, other, images, standard_errors)
    )  # fmt: skip
    assert mistaken == pytest.approx(math.erfc(standard_errors / math.sqrt(2)), abs=0.01)


def test_more_images_tell_smaller_differences() -> None:
    assert not differs(0.990, 0.986, 360)
    assert differs(0.990, 0.986, 10_000)
    assert differs(0.986, 0.990, 10_000)  # whichever is named first
    assert is_tied(0.986, 0.990, 360)
    assert not is_tied(0.986, 0.990, 10_000)
    assert is_tied(1.0, 1.0, 360)  # where no error was made there is none to doubt
    assert not is_tied(0.999, 1.0, 360)
