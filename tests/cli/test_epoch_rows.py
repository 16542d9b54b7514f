"""The rows of epochs: which columns fit, and which epochs are the best so far."""

import importlib

import pytest

from resnet_ops.config import Select
from resnet_ops.run_records import Epoch
from resnet_ops.training import job
from tests.reporting.samples import epochs

EpochRows = importlib.import_module("resnet_ops.cli.epoch_rows").EpochRows
ERRORS = (0.5, 0.3, 0.4, 0.2, 0.2)


@pytest.mark.parametrize("width", [30, 60, 72, 80, 120, None])
def test_every_row_is_as_wide_as_the_header_and_fits(trained: job.TrainResult, width: int | None) -> None:
    rows = EpochRows(trained.record, width)
    lines = [rows.row(epoch.model_copy(update={"train_loss": 10.0**epoch.epoch})) for epoch in epochs(ERRORS)]
    assert {len(line.removesuffix("     *")) for line in lines} == {len(rows.header.removesuffix("  best"))}
    assert width is None or max(map(len, (*lines, rows.header))) <= width
    assert lines[0].endswith(" *")
    assert len(lines[0]) == len(rows.header)  # the star is under the title that explains it
    titles = [column.title for column in rows.columns]
    assert titles[0] == "epoch"
    assert "val top-1" in titles  # at 30 too: what the epochs are about is left out last
    if width is None or width >= 80:
        assert {"train loss", "val loss", "macro F1", "lr", "images/s"} <= set(titles)


@pytest.mark.parametrize(("select", "best"), [("top1", [1, 2, 4, 5]), ("loss", [1, 2, 4, 5]), ("macro-f1", [1, 3])])
def test_a_star_marks_each_epoch_that_is_the_best_so_far(
    trained: job.TrainResult, select: Select, best: list[int]
) -> None:
    record = trained.record.model_copy(update={"config": trained.record.config.model_copy(update={"select": select})})
    rows, scores = EpochRows(record), (0.1, 0.05, 0.6, 0.6, 0.2)
    done = [  # equal errors, then a smaller loss
        epoch.model_copy(update={"val_macro_f1": score, "val_loss": 1 + epoch.val_error - epoch.epoch / 1000})
        for epoch, score in zip(epochs(ERRORS), scores, strict=True)
    ]
    if select == "macro-f1":  # of two equal ones that of the smaller loss is the better one
        done[3] = done[3].model_copy(update={"val_loss": 9.0})
    starred = [epoch.epoch for epoch in done if rows.row(epoch).endswith(" *")]
    assert starred == best


def test_nothing_is_the_best_of_what_has_no_validation_images(trained: job.TrainResult) -> None:
    config = trained.record.config.model_copy(update={"fit_all": True})
    rows = EpochRows(trained.record.model_copy(update={"config": config}), 80)
    seen: list[Epoch] = [epoch.without_validation() for epoch in epochs(ERRORS)]
    assert not any(rows.row(epoch).endswith("*") for epoch in seen)
    assert "val top-1" not in rows.header
    assert "best" not in rows.header
