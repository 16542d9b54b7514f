"""Each study has its figures and its table, from what was measured of its networks."""

import pytest

from resnet_ops.study.config import Study
from resnet_ops.study.figures import study_figures
from resnet_ops.study.results import Spread, StudyResult, StudyRow, group_networks, to_markdown
from tests.study.samples import DATA, DEGRADED, layers, network, seeds


@pytest.mark.parametrize(
    ("study", "names"),
    [
        ("degradation", ["degradation", "norms"]),
        ("responses", ["responses", "degradation", "norms"]),
        ("shortcuts", ["shortcuts"]),
    ],
)
def test_each_study_has_its_figures_the_first_its_own(study: Study, names: list[str]) -> None:
    groups = group_networks(
        [network(model, 0.1, 0.1, layers=layers(1, 2)) for model in ("plain20", "resnet20", "resnet56")]
    )
    figures = study_figures(study, groups, 359)
    assert [figure.name for figure in figures] == names
    for figure in figures:
        png, svg = figure.to_files()
        assert png.startswith(b"\x89PNG")
        assert b"</svg>" in svg


def test_without_layers_there_are_only_errors() -> None:
    assert [figure.name for figure in study_figures("degradation", DEGRADED, 359)] == ["degradation"]


def test_the_table_has_means_deviations_and_what_was_published() -> None:
    rows = [
        StudyRow(
            model=group.model, kind=group.kind, depth=group.depth, shortcut=group.shortcut, parameters=group.parameters,
            seeds=2, lost=0, train_error=group.train_error, val_error=group.val_error, published_error=published,
        )
        for group, published in zip(DEGRADED, (None, None, 0.0875, 0.0697), strict=True)
    ]  # fmt: skip
    result = StudyResult(
        name="s",
        study="degradation",
        status="finished",
        run_dir="runs/s",
        data=DATA,
        device="cpu",
        training={"lr": 0.1},
        rows=rows,
        verdict="It is so.",
        gradients="",
        published="table 6",
        not_comparable="resnet44 not comparable with table 6: mixup 0.2.",
        figures=[],
        networks=[],
        versions={},
        total_s=1,
    )
    lines = to_markdown(result).splitlines()
    assert "It is so." in lines
    assert "| plain56 | 1,000 | 2 | 65.00 ± 7.07 | 62.50 ± 3.54 |  |" in lines
    assert "| resnet20 | 1,000 | 2 | 1.10 ± 0.14 | 2.00 ± 0.00 | 8.75 |" in lines
    assert lines[-3:] == ["Published: table 6.", "", "resnet44 not comparable with table 6: mixup 0.2."]


def test_a_spread_of_one_has_no_deviation() -> None:
    assert Spread.of([0.5]).std is None
    assert group_networks(seeds("plain20", [0.1], [0.1]))[0].val_error == Spread.of([0.1])
