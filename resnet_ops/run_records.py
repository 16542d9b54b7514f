"""The records that a run directory holds, one model a file or a line, and lists of runs made from them.

Where they lie, and how they are read and written, is in runs.py.
"""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from resnet_ops import files
from resnet_ops.config import TrainConfig
from resnet_ops.results import Moment, Result

Status = Literal["running", "finished", "failed", "interrupted"]
EventKind = Literal["note", "loss"]


class Epoch(BaseModel):
    """A line of metrics.jsonl. Losses are means over images; errors are top-1, from 0 to 1."""

    model_config = ConfigDict(frozen=True)

    epoch: int
    step: int
    train_loss: float
    train_error: float
    val_loss: float
    val_error: float
    lr: float
    images_per_second: float
    seconds: float
    world_size: int = 1

    @property
    def val_accuracy(self) -> float:
        """Top-1 accuracy on the validation images, from 0 to 1."""
        return 1 - self.val_error

    @property
    def score(self) -> tuple[float, float]:
        """The key that the best epoch, whose weights are kept, is the largest of, and of equal ones the first.

        It is the validation accuracy, then the smaller validation loss. Whatever names a best epoch ranks by it.
        """
        return self.val_accuracy, -self.val_loss


class Event(BaseModel):
    """A line of events.jsonl. A loss, of workers or of their driver, counts towards `max_failures`."""

    model_config = ConfigDict(frozen=True)

    at: datetime
    what: str
    kind: EventKind = "note"  # also of lines written before there were kinds, which are not counted again


class BadImage(BaseModel):
    """An image that could not be decoded, and why."""

    model_config = ConfigDict(frozen=True)

    name: str
    reason: str


class DataRecord(BaseModel):
    """The dataset that a run is trained on.

    `fingerprint` is a SHA-256 of what `fingerprint_of` says: the files' content, or, of much data, names and sizes.
    The network's input is `height` x `width`; where the images are larger or of differing sizes, training crops that
    from squares with a side of `stored`, which hold the center of each image, or, for random resized crops, all of it,
    squeezed. `bad_images` are left out, and not counted elsewhere; the first are named.
    Where images are streamed, bad ones are found during training: they are counted in the numbers of images, and others
    take their places; `mean` and `std` of the pixels are those of a sample.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    fingerprint: str
    fingerprint_of: Literal["content", "names and sizes"] = "content"
    class_names: tuple[str, ...]
    train_images: int
    val_images: int
    channels: int
    height: int
    width: int
    stored: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    bad_images: int = 0
    first_bad_images: tuple[BadImage, ...] = ()


class Best(BaseModel):
    """The epoch whose weights are in best/."""

    model_config = ConfigDict(frozen=True)

    epoch: int
    val_accuracy: float
    checkpoint: files.Place


class RunRecord(BaseModel):
    """The content of run.json."""

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
    resumed: int = 0
    best: Best | None = None


class RunSummary(Result):
    """A run in a list of runs."""

    name: str = Field(description="Name of the run.")
    run_dir: files.Place = Field(description="Folder of the run.")
    status: Status
    reason: str = Field(description="Why it failed or was interrupted, if it was.")
    model: str = Field(description="Network, such as resnet20.")
    data: str = Field(description="Name of the dataset.")
    epochs_done: int = Field(description="Epochs trained so far.")
    epochs: int = Field(description="Epochs to train.")
    best_val_accuracy: float | None = Field(description="Top-1 accuracy of the best epoch, 0 to 1.")
    best_epoch: int | None = Field(description="The epoch that validated best.")
    created: Moment
    updated: Moment


class RunList(Result):
    """The runs in a folder."""

    runs_dir: files.Place = Field(description="The folder.")
    runs: tuple[RunSummary, ...] = Field(description="Its runs, the newest first.")
