"""The records that a run directory holds, one model a file or a line, and lists of runs made from them.

Where they lie, and how they are read and written, is in runs.py.
"""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_serializer,
    model_validator,
)

from resnet_ops import files
from resnet_ops.config import Select, TrainConfig
from resnet_ops.formatting import printable
from resnet_ops.results import Moment, Result

Status = Literal["running", "finished", "failed", "interrupted", "preempted"]
EventKind = Literal["note", "loss", "detail"]
Origin = Annotated[str, AfterValidator(printable)]  # of weights, in messages


def _is_none(value: object) -> bool:
    return value is None


def _is_zero(value: object) -> bool:
    return value == 0


class Epoch(BaseModel):
    """A line of metrics.jsonl. Losses are means over images; errors are top-1, from 0 to 1, as all but losses are.

    Those of the validation images are None where there are none, with `fit_all`; `val_top5_error` also where there are
    at most 5 classes. Macro recall and macro F1 are scikit-learn's, the means over the classes that have validation
    images. `skipped_steps`, in fp16, are those that changed nothing as their gradients overflowed.
    """

    model_config = ConfigDict(frozen=True)

    epoch: int
    step: int
    train_loss: float
    train_error: float
    val_loss: float | None
    val_error: float | None
    lr: float
    images_per_second: float = Field(0.0, exclude_if=_is_zero)  # checkpoints, which are the same each time, lack both
    seconds: float = Field(0.0, exclude_if=_is_zero)
    world_size: int = 1
    val_top5_error: float | None = Field(None, exclude_if=_is_none)  # not there in lines of earlier versions
    val_macro_recall: float | None = Field(None, exclude_if=_is_none)
    val_macro_f1: float | None = Field(None, exclude_if=_is_none)
    skipped_steps: int = Field(0, exclude_if=_is_zero)

    @property
    def val_accuracy(self) -> float | None:
        """Top-1 accuracy on the validation images, from 0 to 1; None where there are none."""
        return None if self.val_error is None else 1 - self.val_error

    def without_validation(self) -> "Epoch":
        """Return the epoch without what was measured on validation images."""
        return self.model_copy(update={name: None for name in type(self).model_fields if name.startswith("val_")})

    def timed_as(self, other: "Epoch | None") -> "Epoch":
        """Return the epoch as fast as another one; with None without what differs each time it is trained."""
        seconds, rate = (other.seconds, other.images_per_second) if other else (0.0, 0.0)
        return self.model_copy(update={"seconds": seconds, "images_per_second": rate})

    def selected_metric(self, select: Select) -> float | None:
        """Return the metric that `select` names; None where it was not measured."""
        named = {
            "top1": self.val_accuracy,
            "macro-f1": self.val_macro_f1,
            "macro-recall": self.val_macro_recall,
            "loss": self.val_loss,
        }
        return named[select]

    def score(self, select: Select) -> tuple[float, float]:
        """Return the key that the selected epoch is the largest of.

        It is the metric that `select` names, then the smaller validation loss; where there are none, the last epoch is
        taken.
        """
        metric = self.selected_metric(select)
        if metric is None or self.val_loss is None:
            return float(self.epoch), 0.0
        return -metric if select == "loss" else metric, -self.val_loss


class Event(BaseModel):
    """A line of events.jsonl. Losses, of workers or the driver, count towards `max_failures`; details are not shown."""

    model_config = ConfigDict(frozen=True)

    at: datetime
    what: str
    kind: EventKind = "note"  # also of lines written before there were kinds, which are not counted again


def _square(stored: object) -> object:
    return (stored, stored) if isinstance(stored, int) else stored  # as earlier versions wrote it


StoredSize = Annotated[tuple[int, int], BeforeValidator(_square)]  # height and width


class BadImage(BaseModel):
    """An image that could not be decoded, and why."""

    model_config = ConfigDict(frozen=True)

    name: str
    reason: str


class DataRecord(BaseModel):
    """The dataset that a run is trained on.

    `fingerprint` is a SHA-256 of what `fingerprint_of` says: the files' content, or, of much data, names, sizes and
    a sample of the content.
    The network's input is `height` x `width`; where the images are larger or of differing sizes, training crops that
    from images of size `stored` (height, width), which hold the center of each image, or, for random resized crops, all
    of it, squeezed. `bad_images` are left out, and not counted elsewhere; the first are named.
    With `fit_all` the validation images are among the `train_images`, and `val_images` is 0. Test images are neither
    trained nor selected on: `evaluate` alone measures them.
    Where images are streamed, bad ones are found during training: they are counted in the number of training images,
    where others take their places. `mean` and `std` normalize the pixels: those that pretrained weights were trained
    with, or, of streamed images, those of a sample; None where they are those of all training images.
    `val_copies` are the validation images that are training images, too, byte for byte, as far as these were compared.
    Where the data has no names of classes, they are `numbered`: `class_names` are their numbers.
    `bit_depth` is how many bits the values of 16-bit images use, None where there are no such images.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str
    fingerprint: str
    fingerprint_of: Literal["content", "names and sizes"] = "content"
    class_names: tuple[str, ...]
    numbered: bool = False
    train_images: int
    val_images: int
    test_images: int = 0
    channels: int
    height: int
    width: int
    stored: StoredSize | None = None
    bit_depth: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    bad_images: int = 0
    first_bad_images: tuple[BadImage, ...] = ()
    val_copies: int = Field(default=0, exclude_if=_is_zero)

    @property
    def copies_warning(self) -> str:
        """Return what the validation accuracy is worth where validation images are training images, too, or ""."""
        copies = f"{self.val_copies:,} of the {self.val_images:,} validation images"
        too = f"{copies} {'is a training image' if self.val_copies == 1 else 'are training images'}, too"
        return f"{too}: an accuracy on these tells nothing of others" if self.val_copies else ""


class HeldOutRecord(BaseModel):
    """The images that are held out for validation of a dataset that has none of its own for it.

    `val_sha256` is the SHA-256 of their digests in ascending order, `test_fraction` the option that holds out others.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    val_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    test_fraction: float | None = None


class Best(BaseModel):
    """The epoch whose weights are in best/, and their top-1 accuracies from 0 to 1.

    With `fit_all` it is the last epoch, and what is said of validation is None. Otherwise the epoch is the best in what
    `selected_by` names, so that this metric is too good by chance; `last_val_accuracy`, of the last epoch, is of
    weights that nothing selected. `test_accuracy` is what `evaluate` measured on the test images, which nothing was
    selected on, those `test_images` that can be decoded; None until then.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    epoch: int
    val_accuracy: float | None
    last_val_accuracy: float | None = None
    val_loss: float | None = None
    val_top5_accuracy: float | None = None
    val_macro_recall: float | None = None
    val_macro_f1: float | None = None
    selected_by: Select | None = "top1"
    selected_on: Literal["validation images"] | None = "validation images"
    test_accuracy: float | None = None
    test_images: int | None = Field(default=None, exclude_if=_is_none)  # earlier versions wrote none
    checkpoint: files.Place

    @classmethod
    def of(cls, best: Epoch, last: Epoch, checkpoint: Path, select: Select) -> "Best":
        """Describe the epoch that was selected of all up to the last."""
        return cls(
            epoch=best.epoch,
            val_accuracy=best.val_accuracy,
            last_val_accuracy=last.val_accuracy,
            val_loss=best.val_loss,
            val_top5_accuracy=None if best.val_top5_error is None else 1 - best.val_top5_error,
            val_macro_recall=best.val_macro_recall,
            val_macro_f1=best.val_macro_f1,
            selected_by=None if best.val_accuracy is None else select,
            selected_on=None if best.val_accuracy is None else "validation images",
            checkpoint=checkpoint,
        )

    def tested_as(self, other: "Best | None") -> "Best":
        """Return it with what was measured on test images of another one, of the same weights."""
        if other is None:
            return self
        return self.model_copy(update={name: getattr(other, name) for name in ("test_accuracy", "test_images")})


class PretrainedRecord(BaseModel):
    """Pretrained weights: where they are from and, of a checkpoint of ours, which images it was trained on.

    The latter is as in `CheckpointInfo`; None or False where it is not known. So is what their training began from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    origin: Origin
    data_fingerprint: str | None = None
    held_out: HeldOutRecord | None = None
    fitted_on_all: bool = False
    began_from: "BeganFrom" = None

    @property
    def lineage(self) -> tuple["PretrainedRecord", ...]:
        """These weights and those that they began from, and so on, the last ones first."""
        return (self.pretrained, *lineage_of(self.began_from))

    @property
    def pretrained(self) -> "PretrainedRecord":
        """This alone, of a record that says more."""
        return PretrainedRecord(**{name: getattr(self, name) for name in PretrainedRecord.model_fields})

    def may_have_seen(self, data_fingerprint: str, held_out: HeldOutRecord | None) -> bool:
        """Return whether these weights may be trained on images that are held out of a dataset.

        Args:
            data_fingerprint: That of the dataset.
            held_out: What is held out of it, None where that is not recorded.
        """
        return self.data_fingerprint == data_fingerprint and (held_out is None or self.held_out != held_out)


# What a training began from: "" for nothing, an origin alone as earlier versions wrote it, None where it is not known.
BeganFrom = PretrainedRecord | Origin | None
PretrainedRecord.model_rebuild()  # before others extend it where that name is not known


def lineage_of(began_from: BeganFrom) -> tuple[PretrainedRecord, ...]:
    """Return the weights that a training began with, those that they began from, and so on."""
    if isinstance(began_from, str):
        return (PretrainedRecord(origin=began_from),) if began_from else ()
    return began_from.lineage if began_from else ()


class StartRecord(PretrainedRecord):
    """The pretrained weights that a training begins with, which lie in the run's folder, or in that of its search.

    With a new `head` the last layer is not theirs.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    sha256: str
    head: Literal["kept", "new"]


class Writer(BaseModel):
    """A writer of a run since it was begun or resumed: the machine of its driver, and what is installed there."""

    model_config = ConfigDict(frozen=True)

    since: datetime
    host: str
    versions: dict[str, str]

    def differences(self, before: "Writer") -> str:
        """Say in what this one differs from the one before; "" where it does not."""
        known = {"host": self.host, **self.versions}
        old = {"host": before.host, **before.versions}
        names = [name for name in {**known, **old} if known.get(name) != old.get(name)]
        return ", ".join(f"{name} {known.get(name, 'none')} (before: {old.get(name, 'none')})" for name in names)


class RecordOfConfig(BaseModel):
    """A record with the options of what it records as `config`; fields and options of newer versions are kept."""

    model_config = ConfigDict(extra="allow")

    newer_options: dict[str, Any] = Field(default_factory=dict, exclude=True)  # stored among those of `config`

    @model_validator(mode="wrap")
    @classmethod
    def _set_newer_options_aside(cls, stored: Any, validate: Callable[[Any], Self]) -> Self:
        if not (isinstance(stored, dict) and isinstance(config := stored.get("config"), dict)):
            return validate(stored)
        options = cls.model_fields["config"].annotation
        assert options is not None
        newer = {name: value for name, value in config.items() if name not in options.model_fields}
        known = {name: value for name, value in config.items() if name not in newer}
        return validate(stored | {"config": known, "newer_options": newer})

    @model_serializer(mode="wrap")
    def _with_newer_options(self, serialize: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        stored = serialize(self)
        return stored | {"config": stored["config"] | self.newer_options}

    @property
    def unknown(self) -> tuple[str, ...]:
        """Names of what a newer version wrote and this one does not know."""
        return (*(self.model_extra or {}), *self.newer_options)


class RunRecord(RecordOfConfig):
    """The content of run.json.

    `reason` is why the run failed, was stopped, or ended before its last epoch. `extended_after` is how many epochs
    were done when the run was given more: schedules other than `steps` began anew there, and patience counts from
    there. `host` and `versions` are those that it was begun with, `writers` these and those of each resumption.
    """

    format: Literal[1] = 1
    name: str
    status: Status
    reason: str = ""
    created: datetime
    updated: datetime
    config: TrainConfig
    data: DataRecord
    parameters: int
    world_size: int
    device: str
    host: str
    versions: dict[str, str]
    start: StartRecord | None = None
    resumed: int = 0
    extended_after: int = 0
    best: Best | None = None
    writers: tuple[Writer, ...] = ()  # earlier versions wrote none

    @property
    def writer(self) -> Writer:
        """Return what wrote the run last."""
        return self.writers[-1] if self.writers else Writer(since=self.created, host=self.host, versions=self.versions)

    def written_by(self, writer: Writer) -> Self:
        """Return the record with one more writer."""
        return self.model_copy(update={"writers": (*(self.writers or (self.writer,)), writer)})

    @model_validator(mode="after")
    def _without_accuracy_of_seen_images(self) -> Self:
        if self.config.fit_all and self.best:
            of_validation = [name for name in Best.model_fields if "val_" in name or name.startswith("selected_")]
            self.best = self.best.model_copy(update=dict.fromkeys(of_validation))
        return self

    @property
    def measured_images(self) -> int:
        """The number of test images that the test accuracy is of."""
        return (self.best and self.best.test_images) or self.data.test_images

    def curve(self, epochs: list[Epoch]) -> list[Epoch]:
        """Return epochs of the run without what earlier versions measured with `fit_all`: images trained on."""
        return [epoch.without_validation() for epoch in epochs] if self.config.fit_all else epochs

    def best_of(self, epochs: list[Epoch]) -> Epoch | None:
        """Return the epoch whose weights are in best/, or, while none is recorded, that of the highest score."""
        chosen = self.best.epoch if self.best else None
        select = self.config.select
        return max(epochs, key=lambda epoch: (epoch.epoch == chosen, epoch.score(select)), default=None)

    @property
    def augmentation(self) -> str:
        """The augmentation of the training images, in words."""
        return self.config.augmentation(self.data.stored)


class RunSummary(Result):
    """A run in a list of runs."""

    name: str = Field(description="Name of the run.")
    run_dir: files.Place = Field(description="Folder of the run.")
    status: Status
    reason: str = Field(description="Why it failed, was stopped or ended before its last epoch, if it did.")
    model: str = Field(description="Network, such as resnet20.")
    data: str = Field(description="Name of the dataset.")
    epochs_done: int = Field(description="Epochs trained so far.")
    epochs: int = Field(description="Epochs to train.")
    best_val_accuracy: float | None = Field(
        description="Top-1 accuracy of the best epoch, 0 to 1, on the images that it was selected on."
    )
    best_epoch: int | None = Field(description="The epoch that validated best; with --fit-all the last one.")
    selected_by: Select | None = Field(description="The metric that it is the best in; null with --fit-all.")
    best_metric: float | None = Field(description="Its value in the best epoch, on the same images.")
    last_val_accuracy: float | None = Field(description="Top-1 accuracy of the last epoch on the same images.")
    test_accuracy: float | None = Field(description="Top-1 accuracy on test images, which nothing was selected on.")
    measured_images: int | None = Field(description="How many images it was measured on.")
    fit_all: bool = Field(description="Whether it is fitted on all images, so that there are none to validate on.")
    created: Moment
    updated: Moment


class RunList(Result):
    """The runs in a folder."""

    runs_dir: files.Place = Field(description="The folder.")
    runs: tuple[RunSummary, ...] = Field(description="Its runs, the newest first.")


class DeletedRuns(Result):
    """Runs that were deleted."""

    deleted: tuple[files.Place, ...] = Field(description="Their folders.")
