"""The rule for 'better than chance', against scipy and against many draws of networks that are equally good."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from resnet_ops.reporting.search_data import verdict
from resnet_ops.significance import (
    MeasuredAccuracy,
    PairwiseTests,
    compare,
    holm,
    p_value,
    standard_error,
    wilson_interval,
    with_interval,
)
from resnet_ops.tuning.results import Trial, select_trial
from tests.reporting import samples

DRAWS = 400
TRIALS = 12
DEPTHS = (8, 14, 20, 32)


def paired(correct: np.ndarray) -> MeasuredAccuracy:
    """The result of a network of which it is known which images (n,) bool it gets right."""
    bits = int.from_bytes(np.packbits(correct, bitorder="little").tobytes(), "little")
    return MeasuredAccuracy(int(correct.sum()), len(correct), bits)


def draw(rng: np.random.Generator, accuracies: list[float], images: int, shared: float) -> list[np.ndarray]:
    """Draw which images networks get right; of a share of the images, all networks get the same ones wrong."""
    hard, common = rng.random(images), rng.random(images) < shared
    return [np.where(common, hard, rng.random(images)) < accuracy for accuracy in accuracies]


def compare_drawn(drawn: list[np.ndarray], is_paired: bool) -> PairwiseTests[int]:
    results = [paired(correct) for correct in drawn]
    if not is_paired:
        results = [MeasuredAccuracy(each.correct, each.images) for each in results]
    return compare(dict(enumerate(results, start=1)))


@pytest.mark.parametrize("p", [0.9, 0.5, 0.987, 1.0])
@pytest.mark.parametrize("images", [7, 50, 360])
def test_the_standard_error_is_the_binomials_deviation(p: float, images: int) -> None:
    assert standard_error(p, images) == pytest.approx(stats.binom(images, p).std() / images)


@pytest.mark.parametrize("images", [1, 20, 359, 10_000])
def test_intervals_are_scipys_wilson_intervals(images: int) -> None:
    for correct in {0, 1, images // 2, images - 1, images}:
        expected = stats.binomtest(correct, images).proportion_ci(0.95, method="wilson")
        assert wilson_interval(correct / images, images) == pytest.approx(tuple(expected), abs=1e-5)


def test_intervals_are_those_that_were_published() -> None:
    # Newcombe 1998, Statistics in Medicine 17, 857-872, table I, method 3
    for correct, images, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson_interval(correct / images, images) == pytest.approx((low, high), abs=1e-4)


def test_without_an_error_some_uncertainty_remains() -> None:
    assert with_interval(1.0, 40) == "100.00% (91.24% to 100.00%)"


def test_unpaired_results_have_the_p_value_of_fishers_exact_test() -> None:
    rng = np.random.default_rng(0)
    for images in (1, 7, 40, 359, 10_000):
        for _ in range(20):
            a, b = rng.binomial(images, rng.choice([0.02, 0.5, 0.986, 1.0])), rng.binomial(images, 0.97)
            expected = stats.fisher_exact([[a, images - a], [b, images - b]]).pvalue
            assert p_value(MeasuredAccuracy(a, images), MeasuredAccuracy(b, images)) == pytest.approx(
                expected, rel=1e-6, abs=1e-300
            )


def test_paired_results_have_the_p_value_of_mcnemars_exact_test() -> None:
    rng = np.random.default_rng(1)
    for images in (1, 7, 40, 359, 10_000):
        for _ in range(20):
            one, other = draw(rng, [rng.choice([0.5, 0.97, 1.0]), 0.96], images, rng.random())
            b, c = int((one & ~other).sum()), int((other & ~one).sum())
            expected = stats.binomtest(b, b + c).pvalue if b + c else 1.0
            assert p_value(paired(one), paired(other)) == pytest.approx(expected, rel=1e-9)


def test_p_values_are_corrected_as_by_r() -> None:
    # R: p.adjust(c(0.01, 0.02, 0.03, 0.005, 0.8), "holm"); statsmodels: multipletests(..., method="holm")
    assert holm([0.01, 0.02, 0.03, 0.005, 0.8]) == pytest.approx([0.04, 0.06, 0.06, 0.025, 0.8])
    assert holm([]) == []


def test_one_image_of_forty_is_chance() -> None:
    small, large = np.arange(40) != 7, np.ones(40, bool)
    assert not compare({"resnet8": paired(small), "resnet110": paired(large)}).differ("resnet8", "resnet110")
    assert not compare({1: MeasuredAccuracy(39, 40), 2: MeasuredAccuracy(40, 40)}).differ(1, 2)
    assert compare({1: MeasuredAccuracy(39, 40), 2: MeasuredAccuracy(40, 40)}).is_tied(1, 2)
    alone = compare({1: MeasuredAccuracy(40, 40)})
    assert alone.is_tied(1, 1)
    assert not alone.differ(1, 1)


def test_which_images_are_right_is_used_only_if_it_is_of_the_same_weights() -> None:
    assert MeasuredAccuracy.of(0.75, 4, 0b1011).which == 0b1011
    assert MeasuredAccuracy.of(0.5, 4, 0b1011).which is None
    assert compare({1: MeasuredAccuracy(3, 4, 0b1011), 2: MeasuredAccuracy(2, 4)}).name == "Fisher's exact test"


@pytest.mark.parametrize("is_paired", [True, False])
@pytest.mark.parametrize(("accuracy", "images"), [(0.986, 359), (0.9, 359), (0.6, 100), (0.92, 5000)])
@pytest.mark.parametrize("shared", [0.0, 0.7])
def test_twelve_equal_networks_are_seldom_told_apart(
    accuracy: float, images: int, shared: float, is_paired: bool
) -> None:
    rng = np.random.default_rng(2)
    wrong = 0
    for _ in range(DRAWS):
        drawn = draw(rng, [accuracy] * TRIALS, images, shared)
        tests = compare_drawn(drawn, is_paired)
        wrong += min(tests.corrected.values()) <= 0.05
    assert wrong / DRAWS <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / DRAWS)


def search_of(drawn: list[np.ndarray]) -> tuple[list[Trial], PairwiseTests[int]]:
    """Twelve trials as drawn, of four depths in turn."""
    trials = [
        samples.trial(i, f"resnet{DEPTHS[(i - 1) % 4]}", [1 - correct.mean()])[0]
        for i, correct in enumerate(drawn, start=1)
    ]
    return trials, compare_drawn(drawn, is_paired=True)


def test_a_search_of_equal_trials_has_no_verdict() -> None:
    rng = np.random.default_rng(3)
    verdicts = []
    for _ in range(DRAWS):
        trials, tests = search_of(draw(rng, [0.95] * TRIALS, 359, 0.5))
        best = [max((t for t in trials if t.depth == d), key=lambda t: t.val_accuracy or 0) for d in DEPTHS]
        verdicts.append(verdict("resnet", best, tests))
    assert sum("no difference beyond chance" not in text for text in verdicts) <= 0.05 * DRAWS


def test_the_selected_network_is_small_and_costs_little() -> None:
    rng = np.random.default_rng(5)
    by_depth = [0.96, 0.975, 0.985, 0.986]
    selected, highest = [], []
    for _ in range(200):
        drawn = draw(rng, by_depth * 3, 359, 0.5)
        trials, tests = search_of(drawn)
        best = select_trial(trials, tests)
        assert best is not None
        selected.append(best.trial.id - 1)
        highest.append(int(np.argmax([correct.mean() for correct in drawn])))
    cost = np.mean([by_depth[one % 4] - by_depth[other % 4] for one, other in zip(highest, selected, strict=True)])
    assert cost < 0.006
    assert np.mean([DEPTHS[i % 4] for i in selected]) < np.mean([DEPTHS[i % 4] for i in highest]) - 2


@pytest.mark.parametrize(
    ("is_paired", "images", "worse", "power"),
    [
        (True, 359, 0.90, 0.8),  # of 0.986: every fourteenth image
        (True, 10_000, 0.9125, 0.8),  # ResNet-20 and ResNet-32 of the paper
        (False, 10_000, 0.905, 0.8),
        (False, 359, 0.85, 0.8),
    ],
)
def test_real_differences_are_found_among_twelve(is_paired: bool, images: int, worse: float, power: float) -> None:
    rng = np.random.default_rng(4)
    better = 0.986 if images == 359 else 0.9249
    found = 0
    for _ in range(100):
        drawn = draw(rng, [better, *[worse] * (TRIALS - 1)], images, 0.5)
        tests = compare_drawn(drawn, is_paired)
        found += sum(tests.differ(1, other) for other in range(2, TRIALS + 1)) / (TRIALS - 1)
    assert found / 100 >= power


@pytest.mark.parametrize(
    "of", [lambda i: MeasuredAccuracy(9000 + i, 10_000), lambda i: paired(np.arange(10_000) % 11 != i)]
)
def test_hundreds_of_trials_are_compared_at_once(of: Callable[[int], MeasuredAccuracy]) -> None:
    assert len(compare({i: of(i) for i in range(100)}).corrected) == 100 * 99 // 2
