"""The report on one or more runs: a page with learning curves, metrics per class, errors and exports of each.

The predictions are made in predictions.py, the charts are drawn in training_figures.py.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field

from resnet_ops import files
from resnet_ops.class_metrics import SELECT_NAMES, MajorityBaseline, metric_text
from resnet_ops.config import Select
from resnet_ops.data.dataset import SPLIT_NAMES
from resnet_ops.errors import PausedError, UserError
from resnet_ops.formatting import duration, percent
from resnet_ops.reliability import calibration_error, confidence_levels
from resnet_ops.reporting import page, style
from resnet_ops.reporting.export_records import ExportRecord, read_export_records
from resnet_ops.reporting.page import Picture
from resnet_ops.reporting.predictions import THUMBNAIL_BYTES, Predictions, per_class, predict, thumbnails
from resnet_ops.reporting.reliability_figure import reliability
from resnet_ops.reporting.run_comparison import configuration_differences
from resnet_ops.reporting.training_figures import confusion, learning
from resnet_ops.results import Result
from resnet_ops.run_records import Epoch, RunRecord, Status
from resnet_ops.runs import Run, distinct_names
from resnet_ops.significance import MeasuredAccuracy, compare, with_interval
from resnet_ops.training.defaults import majority_baseline


@dataclass(frozen=True)
class RunData:
    """The data of a run that a report shows by its `name`; `missing` says why there are no predictions."""

    run: Run
    name: str
    record: RunRecord
    epochs: list[Epoch]
    predictions: Predictions | None
    missing: str
    exports: list[ExportRecord]

    @classmethod
    def read(cls, run: Run, name: str = "") -> "RunData":
        """Read a run, called by its own name or another, and predict its validation images with its best weights.

        Raises:
            UserError: There is no run, or run.json is damaged.
            PausedError: A disk or a bucket is out of reach.
        """
        record, missing, predictions = run.read(), "", None
        try:
            predictions = predict(run)
        except PausedError:
            raise
        except UserError as error:  # the rest can still be reported
            missing = str(error)
        return cls(
            run,
            name or run.name,
            record,
            record.curve(run.epochs()),
            predictions,
            missing,
            read_export_records(run),
        )

    @cached_property
    def best(self) -> Epoch | None:
        """The epoch with the best validation accuracy; with `fit_all` the last one."""
        return self.record.best_of(self.epochs)

    @cached_property
    def test_accuracy(self) -> float | None:
        """Top-1 accuracy of the selected weights on test images, once it is measured."""
        return self.record.best.test_accuracy if self.record.best else None

    @property
    def accuracy_text(self) -> str:
        """The best accuracy with its confidence interval; "" if there is none."""
        accuracy = self.best.val_accuracy if self.best else None
        return "" if accuracy is None else with_interval(accuracy, self.record.data.val_images)

    @cached_property
    def majority_baseline(self) -> MajorityBaseline | None:
        """The accuracy of always answering one class on the validation images, beside that of the run."""
        return majority_baseline(self.run, self.record)

    @property
    def chosen_by(self) -> str:
        """Return what the best epoch was chosen by, as the end of a clause; "" where that is the accuracy."""
        select = self.record.config.select
        metric = self.best.selected_metric(select) if self.best else None
        return "" if select == "top1" or metric is None else f" by its {metric_text(select, metric)}"

    @cached_property
    def images_per_second(self) -> float | None:
        """Training images per second, the median over epochs."""
        return statistics.median(epoch.images_per_second for epoch in self.epochs) if self.epochs else None

    @property
    def seconds(self) -> float:
        """Training time of all epochs."""
        return sum(epoch.seconds for epoch in self.epochs)

    def summary(self) -> "ReportedRun":
        """Return the numbers of the report."""
        best, predictions = self.best, self.predictions
        return ReportedRun(
            name=self.run.name,
            run_dir=self.run.path,
            status=self.record.status,
            model=self.record.config.model,
            epochs=len(self.epochs),
            fit_all=self.record.config.fit_all,
            val_accuracy=best.val_accuracy if best else None,
            last_val_accuracy=self.epochs[-1].val_accuracy if self.epochs else None,
            test_accuracy=self.test_accuracy,
            majority_baseline=self.majority_baseline,
            selected_by=None if self.record.config.fit_all else self.record.config.select,
            metric=best.selected_metric(self.record.config.select) if best else None,
            val_macro_recall=best.val_macro_recall if best else None,
            val_macro_f1=best.val_macro_f1 if best else None,
            val_top5_error=best.val_top5_error if best else None,
            val_accuracy_again=predictions.accuracy if predictions and predictions.split == "val" else None,
            expected_calibration_error=calibration_error(predictions.calibration) if predictions else None,
            mistakes=None if predictions is None else int((~predictions.correct).sum()),
            images_per_second=self.images_per_second,
            missing=self.missing,
        )


class ReportedRun(Result):
    """The numbers of a run in a report."""

    name: str = Field(description="Name of the run.")
    run_dir: files.Place = Field(description="Folder of the run.")
    status: Status
    model: str = Field(description="Network, such as resnet20.")
    epochs: int = Field(description="Epochs trained.")
    fit_all: bool = Field(description="Whether it is fitted on all images: then there is no validation accuracy.")
    val_accuracy: float | None = Field(
        description="Top-1 accuracy of the best epoch, 0 to 1, on the images that it was selected on."
    )
    last_val_accuracy: float | None = Field(description="That of the last epoch.")
    test_accuracy: float | None = Field(description="Top-1 accuracy on test images, which nothing was selected on.")
    majority_baseline: MajorityBaseline | None = Field(
        description="What always answering the largest class reaches on the validation images; null with --fit-all."
    )
    selected_by: Select | None = Field(
        description="The metric that the best epoch is the best in; null with --fit-all."
    )
    metric: float | None = Field(description="Its value in the best epoch, on the same validation images.")
    val_macro_recall: float | None = Field(description="Macro recall of the best epoch, 0 to 1, on these images.")
    val_macro_f1: float | None = Field(description="Macro F1 likewise.")
    val_top5_error: float | None = Field(description="Top-5 error likewise, where there are more than 5 classes.")
    val_accuracy_again: float | None = Field(description="That of the best weights on the same images, measured again.")
    expected_calibration_error: float | None = Field(
        description="Expected calibration error of the best weights on the same images, in 15 bins."
    )
    mistakes: int | None = Field(description="Validation images that they get wrong.")
    images_per_second: float | None = Field(description="Median over epochs of the training images per second.")
    missing: str = Field(description="Why the images could not be classified again, if they could not.")


class ReportResult(Result):
    """A written report."""

    report: files.Place = Field(description="The HTML file.")
    size_bytes: int = Field(description="Its size.")
    runs: tuple[ReportedRun, ...] = Field(description="The runs in it.")
    total_s: float = Field(description="Seconds from the request to this result.")


def write(
    runs: Sequence[Run],
    output: Path,
    warn: Callable[[str], None] = lambda _: None,
    started_at: float | None = None,
) -> ReportResult:
    """Write the report on `runs` to the file `output`.

    Args:
        runs: The runs, at least one.
        output: The file, replaced if it exists.
        warn: Called with a message about each run without predictions.
        started_at: Time of the request, in seconds since 1970; by default now.

    Raises:
        UserError: A run does not exist or is damaged, or the folder of the file does not exist.
        PausedError: A disk is full, or a bucket out of reach.
    """
    started_at = started_at or time.time()
    if not files.is_remote(output) and (output.is_dir() or not output.absolute().parent.is_dir()):
        raise UserError(
            f"{output} cannot be written: its folder does not exist, or it is a folder itself.", "Give a file name: -o."
        )
    names = distinct_names([run.path for run in runs])
    data = [RunData.read(run, names[run.path]) for run in runs]
    for entry in data:
        if entry.missing:
            warn(f"The report has no predictions of {entry.name}: {entry.missing}")
    content = render_report(data)
    files.write_atomically(output, content)
    return ReportResult(
        report=output.absolute(),
        size_bytes=len(content),
        runs=tuple(entry.summary() for entry in data),
        total_s=time.time() - started_at,
    )


def render_report(data: Sequence[RunData]) -> bytes:
    """Return the page on some runs, at least one."""
    trainings = [(entry.name, entry.epochs) for entry in data]
    image_counts = [entry.record.data.val_images for entry in data if entry.record.data.val_images]
    summaries = [_summary(entry) for entry in data]
    with style.applied():
        images = min(image_counts, default=min(entry.record.data.train_images for entry in data))
        curves = [learning(trainings, images, by_time=by_time) for by_time in (False, True)]
        values = {
            "runs": data,
            "verdict": verdict(data),
            "summaries": summaries,
            "columns": [name for name in summaries[0] if any(summary[name] for summary in summaries)],
            "chosen_by": " or ".join(dict.fromkeys(SELECT_NAMES[entry.record.config.select] for entry in data)),
            "curves": [(each, each.svg()) for each in curves] if any(entry.epochs for entry in data) else [],
            "differences": configuration_differences([each.record.config for each in data], ("name", "runs_dir")),
            "sections": [_section(n, entry, THUMBNAIL_BYTES // len(data)) for n, entry in enumerate(data, start=1)],
        }
    return page.render("report.html.j2", **values)


def verdict(runs: Sequence[RunData]) -> str:
    """Return in a sentence or two which run is best, by how much, and whether that is more than chance."""
    scored = [(run.best.val_accuracy, run) for run in runs if run.best and run.best.val_accuracy is not None]
    ranked = sorted(scored, key=lambda pair: -pair[0])
    unmeasured = " ".join(
        f"{run.name} ({run.record.config.model}) is fitted on all images, so it has no validation accuracy"
        f"{_test_clause(run)}."
        for run in runs
        if run.best and run.best.val_accuracy is None
    )
    if not ranked:
        return unmeasured or "No epoch has finished yet."
    accuracy, first = ranked[0]
    images, last = first.record.data.val_images, first.epochs[-1].val_accuracy or 0
    best = (
        f"{first.name} ({first.record.config.model}) has a validation accuracy of {first.accuracy_text}, 95% "
        f"confidence interval, on {images:,} validation images, which its best epoch was chosen on{first.chosen_by}; "
        f"its last epoch has {percent(last)}{_test_clause(first)}."
    )
    best = f"{best}{_warnings(runs)} {unmeasured}".strip()
    if len(ranked) == 1:
        return best
    if len({(run.record.data.fingerprint, run.record.data.val_images) for _, run in ranked}) > 1:
        return f"{best} The runs were trained on different images, so their accuracies are not comparable."
    second_accuracy, second = ranked[1]
    points = 100 * (accuracy - second_accuracy)
    tests = compare(
        {run.run.path: MeasuredAccuracy.of(accuracy, images, run.run.val_correct()) for accuracy, run in ranked}
    )
    pair = first.run.path, second.run.path
    more = "more" if tests.differ(*pair) else "no more"
    return (
        f"{best} {second.name} ({second.record.config.model}) is {points:.2f} percentage points lower, {more} than "
        f"chance explains (p = {tests.corrected[frozenset(pair)]:.2g}, {tests.name})."
    )


def _warnings(runs: Sequence[RunData]) -> str:
    """Return a sentence on each run that is no better than always answering one class, or validated on copies."""
    baselines = [(run.name, run.majority_baseline) for run in runs]
    chance = "".join(f" {name} is {each.warning}" for name, each in baselines if each and not each.beaten)
    copies = [(run.name, run.record.data.copies_warning) for run in runs]
    return chance + "".join(f" Of {name} {warning}." for name, warning in copies if warning)


def _summary(entry: RunData) -> dict[str, str]:
    """Return what the summary says of a run, by the names of its columns."""
    record, best, config = entry.record, entry.best, entry.record.config

    def share(value: float | None) -> str:
        return "" if value is None else percent(value)

    chosen, at = entry.accuracy_text, f"{best.epoch}" if best else ""
    if best and config.fit_all:
        chosen, at = "none: fitted on all images", f"last, {best.epoch}"
    top5_error = best.val_top5_error if best else None
    return {
        "run": entry.name,
        "network": config.model,
        "images": record.data.name,
        "status": record.status,
        "epochs": f"{len(entry.epochs)} of {config.epochs}",
        "val. accuracy, chosen": chosen,
        "best epoch": at,
        "macro recall": share(best.val_macro_recall if best else None),
        "macro F1": share(best.val_macro_f1 if best else None),
        "top-5": share(None if top5_error is None else 1 - top5_error),
        "val. accuracy, last epoch": share(entry.epochs[-1].val_accuracy if best else None),
        "test accuracy": share(entry.test_accuracy),
        "train error": share(best.train_error if best else None),
        "parameters": f"{record.parameters:,}",
        "images/s": "" if entry.images_per_second is None else f"{entry.images_per_second:,.0f}",
        "time": duration(entry.seconds),
        "device": f"{record.world_size} x {record.device}",
    }


def _test_clause(run: RunData) -> str:
    """Return the test accuracy as the end of a sentence, if there is one."""
    if run.test_accuracy is None:
        return ""
    images = f"{run.record.measured_images:,} test images, which nothing was chosen on"
    return f"; its test accuracy is {percent(run.test_accuracy)} on {images}"


def _section(number: int, entry: RunData, thumbnail_bytes: int) -> dict[str, Any]:
    """Return the values of the template for one run."""
    record, predictions = entry.record, entry.predictions
    evaluation: dict[str, Any] | None = None
    if predictions is not None:
        counts, names = predictions.confusion_matrix(), predictions.checkpoint.info.class_names
        picture: Picture = confusion(f"confusion{number}", counts, names)
        errors, correct = thumbnails(predictions, thumbnail_bytes)
        bins = predictions.calibration
        diagram = reliability(
            bins, confidence_levels(predictions.confidence, predictions.correct), f"reliability{number}"
        )
        evaluation = {
            "accuracy": predictions.accuracy,
            "chart": (picture, picture.svg()),
            "classes": per_class(counts, names),
            "reliability": (diagram, diagram.svg()),
            "calibration_error": calibration_error(bins),
            "mistakes": int((~predictions.correct).sum()),
            "images": len(predictions.labels),
            "kind": SPLIT_NAMES[predictions.split],
            "errors": errors,
            "correct": correct,
        }
    data = record.data.model_dump(mode="json", exclude={"class_names", "first_bad_images"})
    return {
        "number": number,
        "entry": entry,
        "evaluation": evaluation,
        "exports": entry.exports,
        "events": entry.run.events(),
        "details": {
            "Configuration": record.config.model_dump(mode="json"),
            "Images": data | {"classes": ", ".join(record.data.class_names)},
            **({"Pretrained weights": record.start.model_dump(mode="json")} if record.start else {}),
            "Environment": {
                "host": record.host,
                "device": record.device,
                "workers": record.world_size,
                "resumed": record.resumed,
                "created": record.created.isoformat(timespec="seconds"),
                **record.versions,
            },
        },
    }
