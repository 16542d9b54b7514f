"""Charts of training show the numbers that they are given."""

import numpy as np
import pytest

from resnet_ops.reporting import style
from resnet_ops.reporting.training_figures import NetworkCurves, confusion, degradation, learning
from tests.reporting import samples
from tests.reporting.reading import draw_chart

NETWORKS = [
    NetworkCurves("plain", 20, [samples.epochs([0.6, 0.2, 0.1]), samples.epochs([0.8, 0.4, 0.2])]),
    NetworkCurves("plain", 56, [samples.epochs([0.9, 0.8, 0.7]), samples.epochs([0.9, 0.9, 0.9])]),
    NetworkCurves("resnet", 56, [samples.epochs([0.6, 0.1, 0.01]), samples.epochs([0.8, 0.1])]),  # still training
]


def test_degradation_has_means_and_the_spread_of_seeds() -> None:
    picture = degradation(NETWORKS, samples.IMAGES)
    chart = draw_chart(picture)
    plain, residual = chart.axes
    assert [axes.get_title() for axes in chart.axes] == ["plain", "residual"]
    thick = [line for axes in chart.axes for line in axes.lines if line.get_linewidth() > 2]
    thin = [line for axes in chart.axes for line in axes.lines if line.get_linewidth() < 2]
    assert [line.get_ydata().tolist() for line in thick] == [
        pytest.approx([0.7, 0.3, 0.15]),
        pytest.approx([0.9, 0.85, 0.8]),
        pytest.approx([0.7, 0.1]),
    ]
    assert thin[0].get_ydata().tolist() == pytest.approx([0.35, 0.15, 0.075])  # training error, half of the other
    band = max(plain.collections, key=lambda c: c.get_alpha()).get_paths()[0].get_extents()
    assert (band.y0, band.y1) == pytest.approx((0.1, 0.8))
    assert thick[1].get_color() == thick[2].get_color() != thick[0].get_color()  # a color a depth
    assert thick[1].get_marker() == thick[2].get_marker() != thick[0].get_marker()
    assert plain.get_ylim() == residual.get_ylim()
    assert plain.get_xlim() == residual.get_xlim()
    assert "plain56 80.00% (70.00% to 90.00%) validation error" in picture.alt


def test_errors_need_not_be_in_logarithms() -> None:
    assert draw_chart(degradation(NETWORKS, samples.IMAGES)).axes[0].get_yscale() == "log"
    assert draw_chart(degradation(NETWORKS, samples.IMAGES, log=False)).axes[0].get_yscale() == "linear"


def test_learning_draws_each_training() -> None:
    first, second = samples.epochs([0.5, 0.25]), samples.epochs([0.4])
    chart = draw_chart(learning([("first", first), ("second", second), ("none", [])], samples.IMAGES))
    errors, losses, speed = chart.axes
    curves = [line.get_ydata().tolist() for line in errors.lines]
    assert curves == [[0.25, 0.125], [0.5, 0.25], [0.2], [0.4], [], []]
    assert [line.get_ydata().tolist() for line in losses.lines][1] == [0.5, 0.25]
    assert speed.lines[0].get_ydata().tolist() == [1000, 1000]
    assert [text.get_text() for text in chart.legends[0].texts][:3] == ["first", "second", "none"]


def test_one_epoch_is_a_point_at_1() -> None:
    for axes in draw_chart(learning([("one", samples.epochs([0.5]))], samples.IMAGES)).axes:
        assert axes.get_xticks().tolist() == [1]
        assert all(line.get_marker() != "None" for line in axes.lines)


def test_confusion_counts_and_names_the_commonest_mistakes() -> None:
    counts = np.array([[8, 2, 0], [0, 10, 0], [1, 4, 5]])
    picture = confusion("c", counts, ["cat", "dog", "fox"])
    axes = draw_chart(picture).axes[0]
    numbers = {text.get_position(): text.get_text() for text in axes.texts}
    assert numbers == {(0, 0): "8", (1, 0): "2", (1, 1): "10", (0, 2): "1", (1, 2): "4", (2, 2): "5"}
    assert picture.alt.endswith("fox as dog: 4; cat as dog: 2; fox as cat: 1.")
    shades = axes.images[0].get_array()
    assert shades[0, 2, 3] == 0  # never happened
    assert shades[2, 1, 3] > shades[0, 1, 3] > shades[2, 0, 3] > 0


def test_many_classes_are_drawn_without_numbers() -> None:
    axes = draw_chart(confusion("c", np.eye(150, dtype=int) * 3, [f"a class of number {i}" for i in range(150)])).axes[
        0
    ]
    assert not axes.texts
    assert len(axes.get_yticks()) <= 40


def test_ticks_over_many_powers_of_ten_are_powers() -> None:
    assert style.numbers([1e-8, 1e-4, 1, 1e4]) == ["10⁻⁸", "10⁻⁴", "1", "10⁴"]
    assert style.numbers([1e-3, 1, 1e3]) == ["10⁻³", "1", "10³"]
    assert style.numbers([1, 10, 100]) == ["1", "10", "100"]
    assert style.numbers([1e-7, 3e-4, 1]) == ["1e-7", "3e-4", "1"]


def test_learning_curves_by_time_end_when_their_epochs_did() -> None:
    slow, fast = samples.epochs([0.5, 0.4, 0.3]), samples.epochs([0.5, 0.2])
    slow = [epoch.model_copy(update={"seconds": 60.0 * epoch.epoch}) for epoch in slow]
    fast = [epoch.model_copy(update={"seconds": 30.0}) for epoch in fast]
    chart = draw_chart(learning([("slow", slow), ("fast", fast)], samples.IMAGES, by_time=True))
    error = chart.axes[0]
    assert error.get_xlabel() == "training time (minutes)"
    assert error.get_xlim()[0] == 0
    ends = {tuple(line.get_xdata()) for line in error.get_lines()}
    assert ends == {(1.0, 3.0, 6.0), (0.5, 1.0)}
