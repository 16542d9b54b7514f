"""The report on one or more runs: a page that compares them, and shows what each takes for what."""

import base64
import io
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import Field

from resnet_ops import files
from resnet_ops.errors import PausedError, UserError
from resnet_ops.formatting import percent
from resnet_ops.records import Epoch, RunRecord, Status
from resnet_ops.reporting import page, style
from resnet_ops.reporting.page import Picture
from resnet_ops.reporting.predictions import Predictions, predict
from resnet_ops.reporting.training_figures import confusion, learning
from resnet_ops.results import Result
from resnet_ops.runs import Run
from resnet_ops.significance import differs, standard_error, standard_error_of_difference

MISTAKES, CONFIDENT = 24, 12  # thumbnails of each
SMALL, THUMBNAIL = 64, 128  # sides in pixels: of images shown as they are, of those that others are reduced to


@dataclass(frozen=True)
class ReportFile:
    """A run as the report shows it; `missing` says why there are no predictions."""

    run: Run
    record: RunRecord
    epochs: list[Epoch]
    predictions: Predictions | None
    missing: str
    proofs: list[dict[str, Any]]

    @classmethod
    def read(cls, run: Run) -> "ReportFile":
        """Read a run, and let its best weights judge its validation images.

        Raises:
            UserError: There is no run, or run.json is damaged.
            PausedError: A disk or a bucket is out of reach.
        """
        record, missing, predictions = run.read(), "", None
        try:
            predictions = predict(run)
        except PausedError:
            raise
        except UserError as error:  # of the rest there is enough to say
            missing = str(error)
        exported = [path for path in files.listed(run.export) if path.suffix == ".json"]
        proofs = [json.loads(files.read(path)) for path in sorted(exported, key=lambda path: path.name)]
        return cls(run, record, run.epochs(), predictions, missing, [proof for proof in proofs if "checks" in proof])

    @cached_property
    def best(self) -> Epoch | None:
        """The epoch that validated best."""
        return max(self.epochs, key=lambda epoch: (epoch.val_accuracy, -epoch.val_loss), default=None)

    @cached_property
    def error(self) -> float:
        """One standard error of the best accuracy; 0 where there is none."""
        return standard_error(self.best.val_accuracy, self.record.data.val_images) if self.best else 0.0

    @cached_property
    def images_per_second(self) -> float | None:
        """The median over epochs."""
        return statistics.median(epoch.images_per_second for epoch in self.epochs) if self.epochs else None

    @property
    def seconds(self) -> float:
        """Of all epochs."""
        return sum(epoch.seconds for epoch in self.epochs)

    def summary(self) -> "ReportedRun":
        """Return the numbers."""
        best, predictions = self.best, self.predictions
        return ReportedRun(
            name=self.run.name,
            run_dir=self.run.path,
            status=self.record.status,
            model=self.record.config.model,
            epochs=len(self.epochs),
            val_accuracy=best.val_accuracy if best else None,
            val_accuracy_again=predictions.accuracy if predictions else None,
            mistakes=None if predictions is None else int((~predictions.right).sum()),
            images_per_second=self.images_per_second,
            missing=self.missing,
        )


class ReportedRun(Result):
    """A run in a report."""

    name: str = Field(description="Name of the run.")
    run_dir: files.Place = Field(description="Folder of the run.")
    status: Status
    model: str = Field(description="Network, such as resnet20.")
    epochs: int = Field(description="Epochs trained.")
    val_accuracy: float | None = Field(description="Top-1 accuracy of the best epoch, 0 to 1.")
    val_accuracy_again: float | None = Field(description="That of the best weights on the same images, measured anew.")
    mistakes: int | None = Field(description="Validation images that they get wrong.")
    images_per_second: float | None = Field(description="Median over epochs of the training images per second.")
    missing: str = Field(description="Why the images could not be classified anew, if they could not.")


class ReportResult(Result):
    """A report that was written."""

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
    """Write the report on `runs` into the file `output`.

    Args:
        runs: At least one; what they are compared by.
        output: Replaced if it is there.
        warn: Told what the report had to leave out.
        started_at: When the user asked, in seconds since 1970; by default now.

    Raises:
        UserError: There is no such run, one is damaged, or there is no folder for the file.
        PausedError: A disk is full, or a bucket out of reach.
    """
    started_at = started_at or time.time()
    if not files.is_remote(output) and (output.is_dir() or not output.absolute().parent.is_dir()):
        raise UserError(
            f"{output} cannot be written: its folder does not exist, or it is a folder itself.", "Give a file name: -o."
        )
    found = [ReportFile.read(run) for run in runs]
    for one in found:
        if one.missing:
            warn(f"The report has no predictions of {one.run.name}: {one.missing}")
    trainings = [(one.run.name, one.epochs) for one in found]
    with style.applied():
        curves = learning(trainings, min(one.record.data.val_images for one in found))
        values = {
            "found": found,
            "verdict": verdict(found),
            "curves": (curves, curves.svg()) if any(one.epochs for one in found) else None,
            "differing": configuration_differences(found),
            "sections": [_section(number, one) for number, one in enumerate(found, start=1)],
        }
    content = page.render("report.html.j2", **values)
    files.write_atomically(output, content)
    return ReportResult(
        report=output.absolute(),
        size_bytes=len(content),
        runs=tuple(one.summary() for one in found),
        total_s=time.time() - started_at,
    )


def verdict(found: Sequence[ReportFile]) -> str:
    """Which run is best and by how much, in a sentence or two that say no more than the numbers do."""
    scored = [(one.best.val_accuracy, one) for one in found if one.best]
    if not scored:
        return "No epoch has finished yet."
    ranked = sorted(scored, key=lambda pair: -pair[0])
    accuracy, first = ranked[0]
    images = first.record.data.val_images
    reach = f"{percent(accuracy)} ± {percent(first.error)} on {images:,} validation images"
    says = f"{first.run.name} ({first.record.config.model}) has a validation accuracy of {reach}."
    if len(ranked) == 1:
        return says
    if len({one.record.data.fingerprint for _, one in ranked}) > 1:
        return f"{says} The runs were trained on different images, so their accuracies are not comparable."
    behind, second = ranked[1]
    between = standard_error_of_difference(accuracy, behind, images)
    apart = 100 * (accuracy - behind)
    word = "more" if differs(accuracy, behind, images) else "no more"
    return (
        f"{says} {second.run.name} ({second.record.config.model}) is {apart:.2f} percentage points lower, {word} than "
        f"one standard error of the difference ({100 * between:.2f})."
    )


def configuration_differences(found: Sequence[ReportFile]) -> dict[str, list[Any]]:
    """The options that the runs do not share, and each run's value."""
    configs = [one.record.config.model_dump(mode="json", exclude={"name", "runs_dir"}) for one in found]
    values = {name: [config[name] for config in configs] for name in configs[0]}
    return {name: each for name, each in values.items() if any(value != each[0] for value in each)}


@dataclass(frozen=True)
class ClassMetrics:
    """How one class fares."""

    name: str
    images: int
    recall: float | None
    precision: float | None
    taken_for: str


def per_class(counts: np.ndarray, class_names: Sequence[str]) -> list[ClassMetrics]:
    """What of each class is found, the worst first.

    Args:
        counts: (K, K) int: rows are the true class, columns the predicted.
        class_names: Of the K classes.
    """
    rows = []
    for label, name in enumerate(class_names):
        images, claimed, right = int(counts[label].sum()), int(counts[:, label].sum()), int(counts[label, label])
        wrong = np.where(np.arange(len(counts)) == label, 0, counts[label])
        other = int(wrong.argmax())
        taken = f"{class_names[other]} ({wrong[other]})" if wrong[other] else ""
        rows.append(
            ClassMetrics(name, images, right / images if images else None, right / claimed if claimed else None, taken)
        )
    return sorted(rows, key=lambda row: (row.recall is None, row.recall))


@dataclass(frozen=True)
class Thumbnail:
    """An image, and what is said of it."""

    source: str
    small: bool
    true: str
    predicted: str
    confidence: float


def thumbnails(predictions: Predictions) -> tuple[list[Thumbnail], list[Thumbnail]]:
    """The mistakes that the network was surest of, and what it was surest of and right in, of each class in turn."""
    order = np.argsort(-predictions.confidence, kind="stable")
    right = predictions.right[order]
    worst, good = order[~right][:MISTAKES], order[right]
    labels = predictions.labels[good]
    turn = np.zeros(len(good), np.int64)  # how many of its class are before it
    for label in np.unique(labels):
        turn[labels == label] = np.arange((labels == label).sum())
    surest = good[np.argsort(turn, kind="stable")][:CONFIDENT]
    return [_thumbnail(predictions, int(n)) for n in worst], [_thumbnail(predictions, int(n)) for n in surest]


def _thumbnail(predictions: Predictions, n: int) -> Thumbnail:
    pixels, names = predictions.pixels(n), predictions.checkpoint.info.class_names
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    small, content = max(image.size) <= SMALL, io.BytesIO()
    if not small:
        image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    kind = "PNG" if small else "JPEG"
    image.save(content, kind, **({} if small else {"quality": 88}))
    source = f"data:image/{kind.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"
    true, predicted = names[predictions.labels[n]], names[predictions.predicted[n]]
    return Thumbnail(source, small, true, predicted, float(predictions.confidence[n]))


def _section(number: int, one: ReportFile) -> dict[str, Any]:
    """What is said of one run alone."""
    record, predictions = one.record, one.predictions
    judged: dict[str, Any] | None = None
    if predictions is not None:
        counts, names = predictions.counts(), predictions.checkpoint.info.class_names
        picture: Picture = confusion(f"confusion{number}", counts, names)
        worst, surest = thumbnails(predictions)
        judged = {
            "accuracy": predictions.accuracy,
            "chart": (picture, picture.svg()),
            "classes": per_class(counts, names),
            "mistakes": int((~predictions.right).sum()),
            "images": len(predictions.labels),
            "worst": worst,
            "surest": surest,
        }
    data = record.data.model_dump(mode="json", exclude={"class_names", "first_bad_images"})
    return {
        "number": number,
        "one": one,
        "judged": judged,
        "proofs": [(proof, _is_of(proof, predictions)) for proof in one.proofs],
        "events": one.run.events(),
        "details": {
            "Configuration": record.config.model_dump(mode="json"),
            "Images": data | {"classes": ", ".join(record.data.class_names)},
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


def _is_of(proof: dict[str, Any], predictions: Predictions | None) -> bool | None:
    """Whether an export is of the weights that are best now; None where that cannot be told."""
    return None if predictions is None else proof.get("checkpoint_sha256") == predictions.checkpoint.sha256
