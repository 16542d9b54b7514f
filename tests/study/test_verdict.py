"""The verdict says what the numbers show, and no more."""

from collections.abc import Callable
from typing import Any

import pytest

from resnet_ops.study import verdict
from resnet_ops.study.results import group_networks
from tests.study.samples import DATA, DEGRADED, layers, network, seeds


def text_of(conclude: Callable[..., list[str]], *arguments: Any) -> str:
    """Return the sentences as one text."""
    return " ".join(conclude(*arguments))


def test_plain_networks_degrade_and_residual_ones_do_not() -> None:
    text = text_of(verdict.degradation, DEGRADED, DATA)
    assert text.startswith(
        "Plain networks degrade from depth 56, by up to 62.5 percentage points of training error; residual networks "
        "do not."
    )
    assert "plain20 2.5% (2.0% to 3.0%), plain56 65.0% (60.0% to 70.0%); validation error degrades too" in text
    assert "resnet56 1.1% (0.9% to 1.3%); none is significantly above that of a shallower network" in text
    assert text.endswith("Means of 2 seeds, with the range (minimum to maximum) where seeds differ.")


@pytest.mark.parametrize(
    ("networks", "opening"),
    [
        # Seeds overlap: the means differ, and that is all.
        (seeds("plain20", [0.1, 0.4], [0.1, 0.4]) + seeds("plain56", [0.3, 0.5], [0.3, 0.5]), "No degradation"),
        # Every seed is above, but by less than so few images can tell.
        (seeds("plain20", [0.050], [0.05]) + seeds("plain56", [0.055], [0.06]), "No degradation"),
        (seeds("plain20", [0.050], [0.05]) + seeds("plain56", [0.150], [0.06]), "Plain networks degrade from depth 56"),
        (
            seeds("plain20", [0.1], [0.1]) + seeds("plain56", [0.5], [0.5])
            + seeds("resnet20", [0.1], [0.1]) + seeds("resnet56", [0.1], [0.1]) + seeds("resnet110", [0.45], [0.5]),
            "Plain networks degrade from depth 56, by up to 40.0 percentage points of training error; residual "
            "networks "
            "degrade from depth 110, by up to 35.0 percentage points",
        ),
        (
            seeds("plain20", [0.1], [0.1]) + seeds("plain56", [0.5], [0.5])
            + seeds("resnet20", [0.1], [0.1]) + seeds("resnet56", [0.5], [0.5]),
            "Plain networks degrade from depth 56, by up to 40.0 percentage points of training error; residual "
            "networks "
            "degrade from depth 56",
        ),
        (seeds("resnet20", [0.1], [0.1]), "Nothing to compare: no kind of network has two depths."),
    ],
)  # fmt: skip
def test_it_says_no_more_than_the_numbers(networks: list, opening: str) -> None:  # type: ignore[type-arg]
    assert text_of(verdict.degradation, group_networks(networks), DATA).startswith(opening)


def test_training_error_alone_is_said_to_be_so() -> None:
    groups = group_networks(seeds("plain20", [0.05], [0.10]) + seeds("plain56", [0.15], [0.10]))
    assert "plain56 15.0%; validation error does not degrade." in text_of(verdict.degradation, groups, DATA)
    more = group_networks([*(n for g in groups for n in g.networks), network("plain110", 0.5, 0.5)])
    assert "validation error degrades too at depth 110." in text_of(verdict.degradation, more, DATA)


def test_one_seed_and_failures_are_reported() -> None:
    no_results = {"status": "failed", "reason": "The loss is inf.", "val_error": None, "train_error": None}
    failed = [network("plain20", 0.5, 0.5, 1, **no_results), network("plain110", 0.5, 0.5, **no_results)]
    networks = [network("plain20", 0.1, 0.1), *failed, network("plain56", 0.5, 0.5)]
    groups = group_networks(networks)
    assert [(g.model, len(g.networks), g.lost) for g in groups] == [("plain20", 1, 1), ("plain56", 1, 0)]
    assert "One seed per network" in text_of(verdict.degradation, groups, DATA)
    assert text_of(verdict.failures, networks) == (
        "1 of 2 training runs of plain20 failed: The loss is inf. "
        "1 of 1 training runs of plain110 failed: The loss is inf."
    )
    assert text_of(verdict.failures, groups[1].networks) == ""


def test_errors_are_above_each_other_beyond_seeds_and_images() -> None:
    def is_higher(errors: list[float], images: int) -> bool:
        low, high = group_networks(seeds("resnet20", [0.1, 0.1], [0.10, 0.12]) + seeds("resnet56", errors, errors))
        return verdict.higher_errors([low, high], lambda group: group.val_error, images)(high, low)

    assert is_higher([0.13, 0.15], 10_000)
    assert not is_higher([0.13, 0.15], 100)
    assert not is_higher([0.11, 0.50], 10_000)


def test_the_more_networks_are_compared_the_more_a_difference_must_be() -> None:
    pair = seeds("plain20", [0.05], [0.05]) + seeds("plain56", [0.07], [0.07])
    assert text_of(verdict.degradation, group_networks(pair), DATA).startswith("Plain networks degrade")
    others = [n for depth in (26, 32, 38, 44, 50) for n in seeds(f"plain{depth}", [0.055], [0.05])]
    assert text_of(verdict.degradation, group_networks(pair + others), DATA).startswith("No degradation")


def test_gradients_vanish_grow_or_neither() -> None:
    groups = group_networks(
        [
            network("plain20", 0.1, 0.1, layers=layers(1.0, 1.0)),
            network("plain56", 0.1, 0.1, layers=layers(1e-6, 1.0)),  # the deepest is reported
            network("resnet56", 0.1, 0.1, layers=layers(3.0, 1.0)),
        ]
    )
    text = verdict.gradients(groups)
    assert "At initialization in plain56 1e-06, vanishing; in resnet56 3, neither vanishing" in text
    grown = group_networks(seeds("plain56", [0.1, 0.1], [0.1, 0.1], layers=layers(1e6, 1.0)))
    assert "1e+06 (1e+06 to 1e+06), exploding" in verdict.gradients(grown)
    assert verdict.gradients(group_networks([network("plain20", 0.1, 0.1)])) == ""


def test_responses_fall_or_do_not() -> None:
    def groups(*responses: float, plain: float = 2.0) -> list:  # type: ignore[type-arg]
        depths = (20, 56, 110)[: len(responses)]
        networks = [
            network(f"resnet{d}", 0.1, 0.1, layers=layers(1, 1, r)) for d, r in zip(depths, responses, strict=True)
        ]
        networks.append(network("plain20", 0.1, 0.1, layers=layers(1, 1, plain)))
        return group_networks([*networks, network("plain56", 0.9, 0.9, layers=layers(1, 1, 99.0))])

    text = text_of(verdict.responses, groups(1.0, 0.5, 0.25))
    assert (
        "relative to its shortcut, after training, falls as depth grows: 0.5 in resnet20, 0.25 in resnet56, 0.12 in "
        "resnet110; before" in text
    )
    assert "all residual layers' responses falls: 1 in resnet20, 0.5 in resnet56, 0.25 in resnet110" in text
    assert "At depth 20 it is smaller than that of the plain network, 2." in text
    assert "At depth 56" not in text
    assert "plain56 did not learn" in text
    assert "responses does not fall monotonically" in text_of(verdict.responses, groups(0.5, 1.0))
    assert "responses hardly changes: 1 in" in text_of(verdict.responses, groups(1.0, 0.99, 0.98))
    assert "about the same as that of the plain network" in text_of(verdict.responses, groups(1.0, plain=1.05))


def test_shortcuts_are_distinguished_where_the_numbers_allow() -> None:
    groups = group_networks(
        [
            *seeds("resnet20", [0.1, 0.1], [0.10, 0.12], shortcut="A"),
            *seeds("resnet20", [0.1, 0.1], [0.09, 0.11], shortcut="B"),
            *seeds("resnet20", [0.1, 0.1], [0.50, 0.52], shortcut="C"),
        ]
    )
    text = text_of(verdict.shortcuts, groups, DATA)
    assert "resnet20: B has the lowest validation error, 10.0% (9.0% to 11.0%); higher: C 51.0%" in text
    assert "not distinguishable: A 11.0% (10.0% to 12.0%)" in text
