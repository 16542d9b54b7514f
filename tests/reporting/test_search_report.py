"""The pictures and the page of a search show the numbers in its files, whatever trials it has."""

import math
import warnings
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from scipy import stats

from resnet_ops.errors import UserError
from resnet_ops.reporting import style
from resnet_ops.reporting.search_data import SearchData, verdict
from resnet_ops.reporting.search_figures import pictures
from resnet_ops.reporting.search_report import draw
from resnet_ops.runs import Run
from resnet_ops.significance import MeasuredAccuracy, compare
from resnet_ops.tuning.results import Search
from tests.reporting import samples
from tests.reporting.reading import Page, draw_chart, needs_browser, show

TRIALS = (
    samples.trial(1, "resnet8", [0.6, 0.12, 0.1], options={"model": "resnet8", "lr": 0.02}, lr=0.02),
    samples.trial(2, "resnet20", [0.9, 0.3], options={"lr": 0.8}, lr=0.8, status="stopped", reason="after 2 epochs"),
    samples.trial(3, "resnet20", [0.7, 0.2, 0.018, 0.02], options={"lr": 0.11}, lr=0.11),
    samples.trial(4, "resnet32", [], options={"lr": 0.9}, lr=0.9, status="failed", reason="the loss is nan"),
)


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Search:
    search = samples.search(tmp_path_factory.mktemp("runs") / "searched", *TRIALS)
    draw(search)
    return search


@pytest.fixture(scope="module")
def page(search: Search) -> Page:
    return Page(search.page.read_text())


def chart_of(search: Search, name: str) -> Any:
    """Draw the picture called `name` of a search."""
    (picture,) = (picture for picture in pictures(SearchData.read(search)) if picture.name == name)
    return draw_chart(picture)


def test_the_table_holds_every_trial_as_its_file_does(page: Page) -> None:
    rows = [row for row in page.rows if len(row) == 11 and row[0].isdigit()]
    last = {str(trial.id): f"{100 * epochs[-1].val_error:.2f}%" if epochs else "" for trial, epochs in TRIALS}
    assert rows == [
        ["1", "resnet8", "0.02", "3", "10.00%", "3", last["1"], "80,000", "6.0 s", "finished", ""],
        ["2", "resnet20", "0.8", "2", "30.00%", "2", last["2"], "200,000", "4.0 s", "stopped", "after 2 epochs"],
        ["3", "resnet20", "0.11", "4", "1.80%", "3", last["3"], "200,000", "8.0 s", "finished", "Selected."],
        ["4", "resnet32", "0.9", "0", "", "", "", "320,000", "0.0 s", "failed", "the loss is nan"],
    ]


def test_the_page_has_the_selected_trial_and_the_reason(page: Page) -> None:
    assert "resnet20 at learning rate 0.11: 98.20% validation accuracy" in page.text
    assert "the highest accuracy of 3 trials" in page.text


def test_marks_lie_where_trials_were_and_have_the_colors_of_their_errors(search: Search) -> None:
    axes, bar = chart_of(search, "landscape").axes
    rows = {label.get_text(): at for at, label in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)}
    marks = {tuple(np.round(c.get_offsets()[0], 6)): c for c in axes.collections if len(c.get_facecolor())}
    assert set(marks) == {(0.02, rows["8"]), (0.8, rows["20"]), (0.11, rows["20"])}  # that without an error is hollow
    colors = mpl.colormaps["viridis"](
        [(math.log(e) - math.log(0.018)) / (math.log(0.3) - math.log(0.018)) for e in (0.1, 0.3, 0.018)]
    )
    for place, color in zip([(0.02, rows["8"]), (0.8, rows["20"]), (0.11, rows["20"])], colors, strict=True):
        assert marks[place].get_facecolor()[0] == pytest.approx(color, abs=0.01)
    assert "2%" in [label.get_text() for label in bar.get_yticklabels()]


def test_curves_are_the_epochs_of_each_trial(search: Search) -> None:
    lines = [line.get_xydata().tolist() for line in chart_of(search, "curves").axes[0].lines]
    for trial, epochs in TRIALS:
        points = [[e.epoch, e.val_error] for e in epochs]
        assert (points in lines) == bool(epochs), trial
        assert not epochs or points[-1:] in lines  # the mark of what became of it
    assert [[3, 0.018]] in lines  # the ring of the selected trial


def test_bars_are_confidence_intervals(search: Search) -> None:
    axes = chart_of(search, "depth").axes[0]
    (points, _, (bars,)) = axes.containers[0]
    assert points.get_xydata()[:, 1].tolist() == pytest.approx([0.1, 0.018])
    for errors, (_, (_, low), *_, (_, high)) in zip((50, 9), [[(), *s] for s in bars.get_segments()], strict=True):
        expected = stats.binomtest(errors, samples.IMAGES).proportion_ci(0.95, method="wilson")
        assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-5)


def test_alternative_texts_have_the_numbers(page: Page) -> None:
    labels = {attributes.get("aria-label") or "" for _, attributes in page.elements}
    (alt,) = (label for label in labels if label.startswith("Best error by depth"))
    assert "resnet8: 10.00% (7.67% to 12.94%), 80,000 parameters, 2.0 s per epoch" in alt
    assert "resnet20: 1.80% (0.95% to 3.39%)" in alt


def test_nothing_is_fetched(page: Page) -> None:
    assert page.loads() == []
    assert not [tag for tag, _ in page.elements if tag in ("script", "link", "iframe", "object", "embed")]
    assert page.repeated_ids() == set()


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    hostile = '<script>alert("1")</script>$x_1^{$&]]>'
    trials = [
        samples.trial(i, "resnet8", [0.5, 0.1], options={"recipe": recipe}, reason=hostile)
        for i, recipe in enumerate((hostile, "$a_b$"), start=1)
    ]
    search = samples.search(
        tmp_path / "s", *trials, data=samples.DATA.model_copy(update={"class_names": (hostile, "b")})
    )
    draw(search)
    page = Page(search.page.read_text())
    assert "script" not in {tag for tag, _ in page.elements}
    assert [row[-1].removeprefix("Selected. ") for row in page.rows if len(row) == 12][1:] == [hostile, hostile]
    charts = page.text[page.text.index("<svg") : page.text.rindex("</svg>")]
    assert "&lt;script&gt;alert" in charts
    assert ">$a_b$<" in charts  # no formula


ODD: dict[str, tuple[Any, ...]] = {
    "none": (),
    "none validated": (
        samples.trial(1, "resnet8", [], status="failed"),
        samples.trial(2, "plain8", [], status="running"),
    ),
    "one epoch of one": (samples.trial(1, "resnet8", [0.3], status="running"),),
    "all failed": tuple(samples.trial(i, "resnet8", [0.9], status="failed") for i in (1, 2)),
    "no errors left": tuple(samples.trial(i, f"resnet{6 * i + 2}", [0.5, 0.0, 0.0]) for i in (1, 2, 3)),
    "all wrong": tuple(samples.trial(i, "resnet8", [1.0, 1.0]) for i in (1, 2)),
    "both kinds, other options, no learning rate": tuple(
        samples.trial(
            i,
            ("plain", "resnet")[i % 2] + str((8, 20, 56)[i % 3]),
            [0.9, 0.9 / i],
            options={"schedule": ("steps", "cosine")[i % 2], "batch_size": 2**i, "nesterov": i > 3, "ema": None},
        )
        for i in range(1, 7)
    ),
    "many": tuple(
        samples.trial(i, f"resnet{6 * (i % 30) + 2 + 6}", [1 / (i % 7 + 1)] * 3, lr=10 ** -(i % 5))
        for i in range(1, 41)
    ),
}


@pytest.mark.parametrize("trials", ODD.values(), ids=ODD)
def test_odd_searches_are_drawn(tmp_path: Path, trials: tuple[Any, ...]) -> None:
    search = samples.search(tmp_path / "odd", *trials)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of what does not fit
        draw(search)
    page = Page(search.page.read_text())
    scored = any(trial.val_accuracy is not None for trial, _ in trials)
    assert sum(tag == "figure" for tag, _ in page.elements) == (4 if len(trials) == 6 else 3 if scored else 1)
    assert search.picture.read_bytes().startswith(b"\x89PNG")


def test_the_users_own_settings_play_no_part(search: Search) -> None:
    before = search.picture.read_bytes()
    with mpl.rc_context({"font.size": 30, "xtick.major.size": 20, "svg.fonttype": "path"}):
        draw(search)
        assert mpl.rcParams["font.size"] == 30
    assert search.picture.read_bytes() == before


def test_a_run_is_no_search(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a run, not a search"):
        draw(Search(Run(tmp_path)))


@pytest.mark.parametrize(
    ("errors", "sentence"),
    [
        ((0.1, 0.05, 0.01), "the deepest is the best: 10.00% error at depth 8, 1.00% error at depth 32."),
        ((0.02, 0.04, 0.6), "the deepest is not the best: 60.00% error at depth 32, 2.00% error at depth 8."),
        (
            (0.1, 0.02, 0.018),
            "deeper is better up to depth 20: 10.00% error at depth 8, 2.00% error at depth 20; beyond that",
        ),
        ((0.02, 0.022, 0.018), "no difference beyond chance from depth 8 to 32."),
        ((0.02,), ""),
    ],
)
def test_the_verdict_says_no_more_than_the_numbers(errors: tuple[float, ...], sentence: str) -> None:
    bests = [samples.trial(d, f"resnet{d}", [error])[0] for d, error in zip((8, 20, 32), errors, strict=False)]
    measured = {t.id: MeasuredAccuracy.of(t.val_accuracy or 0, samples.IMAGES) for t in bests}
    assert sentence in verdict("resnet", bests, compare(measured))


def test_ticks_are_round_and_few() -> None:
    assert style.log_ticks(0.01, 1) == [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1]
    for low, high in ((1e-7, 10), (0.003, 0.9), (2, 3e9)):
        assert 2 <= len(style.log_ticks(low, high, 6)) <= 6
    assert [style.number(v) for v in (0.03, 2e-4, 1.25e-5, 128, 1024, 12_500, 466_042, 1.7e6, 0)] == [
        "0.03", "2e-4", "1.25e-5", "128", "1024", "12.5k", "466k", "1.7M", "0",
    ]  # fmt: skip


@needs_browser
def test_a_browser_shows_it_in_light_and_dark(search: Search) -> None:
    light, dark = show(search.page), show(search.page, "dark")
    assert light.console == dark.console == []
    assert light.pixels.mean() > 200
    assert dark.pixels.mean() < 80
    for screenshot in (light, dark):  # the scale of colors ends in viridis' yellow, in both
        assert (np.abs(screenshot.pixels.astype(int) - (253, 231, 37)).max(axis=2) < 6).sum() > 20
