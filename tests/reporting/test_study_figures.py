"""Charts of studies show the numbers that they are given."""

import numpy as np
import pytest

from resnet_ops.reporting.study_figures import Profile, norms, responses, shortcuts
from resnet_ops.reporting.training_figures import NetworkCurves
from tests.reporting import samples
from tests.reporting.reading import draw_chart

PROFILES = [
    Profile("plain", 8, "initial", np.array([[100.0, 10.0, 1.0], [1.0, 10.0, 1.0]])),
    Profile("resnet", 8, "initial", np.array([[1.0, 2.0, 4.0]])),
    Profile("plain", 8, "trained", np.array([[3.0, 2.0, 5.0]])),
    Profile("resnet", 8, "trained", np.array([[0.3, 0.1, 0.2]])),
]


def test_norms_have_a_panel_for_each_kind_and_moment_and_the_same_scale_in_a_row() -> None:
    picture = norms([("gradient", PROFILES), ("response", PROFILES)])
    chart = draw_chart(picture)
    titles = [axes.get_title() for axes in chart.axes[:4]]
    assert titles == [f"{k}\n{w}" for w in ("at initialization", "after training") for k in ("plain", "residual")]
    assert [axes.lines[0].get_ydata().tolist() for axes in chart.axes[:4]] == [
        pytest.approx([10.0, 10.0, 1.0]),  # geometric over seeds
        pytest.approx([1.0, 2.0, 4.0]),
        pytest.approx([3.0, 2.0, 5.0]),
        pytest.approx([0.3, 0.1, 0.2]),
    ]
    assert len({axes.get_ylim() for axes in chart.axes[:4]}) == 1
    band = chart.axes[0].collections[0].get_paths()[0].get_extents()
    assert (band.y0, band.y1) == pytest.approx((1.0, 100.0))
    assert "plain8 at initialization, gradient: 10 in the first layer, 1 in the last" in picture.alt


def test_responses_are_shown_in_order_and_by_size() -> None:
    by_order, by_size, branches = draw_chart(responses(PROFILES[2:], PROFILES[3:])).axes
    assert [line.get_ydata().tolist() for line in by_order.lines] == [
        pytest.approx([3.0, 2.0, 5.0]), pytest.approx([0.3, 0.1, 0.2]),
    ]  # fmt: skip
    assert [line.get_ydata().tolist() for line in by_size.lines] == [
        pytest.approx([5.0, 3.0, 2.0]), pytest.approx([0.3, 0.2, 0.1]),
    ]  # fmt: skip
    assert by_order.lines[0].get_linestyle() != by_order.lines[1].get_linestyle()  # plain and residual
    assert [line.get_ydata().tolist() for line in branches.lines] == [pytest.approx([0.3, 0.1, 0.2])]
    assert len(draw_chart(responses(PROFILES[2:3], [])).axes) == 2  # plain networks have no branches


def test_shortcuts_have_a_panel_a_depth_and_a_color_an_option() -> None:
    networks = [
        (option, NetworkCurves("resnet", depth, [samples.epochs([0.5, final])]))
        for depth, option, final in ((8, "A", 0.3), (8, "B", 0.2), (20, "A", 0.1))
    ]
    first, second = draw_chart(shortcuts(networks, samples.IMAGES)).axes
    thick = [[line for line in axes.lines if line.get_linewidth() > 2] for axes in (first, second)]
    assert [[line.get_ydata().tolist() for line in lines] for lines in thick] == [
        [[0.5, 0.3], [0.5, 0.2]],
        [[0.5, 0.1]],
    ]
    assert thick[0][0].get_color() == thick[1][0].get_color() != thick[0][1].get_color()


def test_files_are_the_same_each_time_and_in_colors_that_any_viewer_has() -> None:
    picture = responses(PROFILES[2:], PROFILES[3:])
    (png, svg), again = picture.to_files(), picture.to_files()
    assert (png, svg) == again
    assert png.startswith(b"\x89PNG")
    assert svg.startswith(b"<?xml")
    assert b"var(--" not in svg
