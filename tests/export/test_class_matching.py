"""Classes of images are matched by name, by order where one side has none, and never by chance."""

from collections.abc import Sequence

import numpy as np
import pytest

from resnet_ops.errors import UserError
from resnet_ops.export.class_matching import match_labels

ANIMALS = ("cat", "dog", "owl")
FROM_1 = ("1", "2", "3")


def numbers(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))


@pytest.mark.parametrize(
    ("names", "used", "network", "are_named", "is_named_network", "expected"),
    [
        (("owl", "cat"), [0, 1], ANIMALS, True, True, [2, 0]),
        (("owl", "cow", "cat"), [0, 1, 2], ANIMALS, True, True, [2, -1, 0]),
        (("owl", "cow", "cat"), [0, 1, 2], numbers(3), True, True, [0, 1, 2]),  # by order, as one side has no names
        (numbers(3), [0, 1, 2], ANIMALS, False, True, [0, 1, 2]),
        (numbers(3), [0, 1, 2], FROM_1, False, True, [0, 1, 2]),
        (numbers(3), [0, 2], FROM_1, False, True, [0, 1, 2]),
        (numbers(3), [0, 1, 2], numbers(3), False, True, [0, 1, 2]),
        (numbers(2), [0, 1], numbers(3), False, True, [0, 1]),
        (numbers(4), [1, 2, 3], FROM_1, False, True, [-1, 0, 1, 2]),  # too many to be places
        (numbers(2), [0, 1], ANIMALS, False, True, [-1, -1]),  # fewer
        (("7", "8"), [0, 1], numbers(10), True, False, [7, 8]),
        (("0", "1", "10", "2"), [0, 1, 2, 3], ("0", "1", "2", "10"), True, True, [0, 1, 3, 2]),
        (FROM_1, [0, 1, 2], numbers(3), True, True, [1, 2, -1]),
    ],
)
def test_by_name_or_order(
    names: Sequence[str],
    used: Sequence[int],
    network: Sequence[str],
    are_named: bool,
    is_named_network: bool,
    expected: Sequence[int],
) -> None:
    labels, note = match_labels(
        "images", names, np.array(used), network, are_named=are_named, is_named_network=is_named_network
    )
    assert labels.tolist() == expected
    names_agree = all(label < 0 or names[n] == network[label] for n, label in enumerate(expected))
    assert bool(note) != names_agree


@pytest.mark.parametrize(
    ("names", "used", "network", "are_named", "message"),
    [
        (numbers(3), [1, 2], FROM_1, False, "'1' may be the class of that name, or in its place '2'"),
        (numbers(2), [0, 1], FROM_1, False, "'0' may be the class of that name, or in its place '1'"),
        (numbers(11), [0, 1, 2, 10], (*numbers(2), "10", *numbers(10)[2:]), False, "'2' may be .* place '10'"),
        (FROM_1, [0, 1, 2], numbers(3), True, "'1' may be .* place '0'. Name the network's classes: --classes"),
    ],
)
def test_numbers_that_may_be_names_or_places_are_refused(
    names: Sequence[str], used: Sequence[int], network: Sequence[str], are_named: bool, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        match_labels("images", names, np.array(used), network, are_named=are_named, is_named_network=not are_named)
