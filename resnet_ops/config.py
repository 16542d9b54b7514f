"""The configuration of a training run: every option with its type, default, limits and one-line description.

The command line takes all of it from here, and nothing repeats it. How to train is in recipe_config.py, where in
cluster_config.py. Neither torch nor Ray is imported, so that `--help` stays fast.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import field_validator, model_validator

from resnet_ops.cluster_config import ClusterConfig
from resnet_ops.config_base import Config, ImageSize, Percent, Positive, check_run_name, option, quoted
from resnet_ops.errors import UserError
from resnet_ops.files import Place
from resnet_ops.recipe_config import Recipe

DATA_SETS = ("digits", "cifar10", "cifar100")  # what --data takes for a name, rather than a path
MAX_BAD_IMAGES = 0.05  # of the images; with more of them broken, something else is wrong
EXTENDING = frozenset(
    {"epochs", "patience", "max_time", "target_accuracy"}
)  # what a run that is resumed may have more of
SECONDS = {"s": 1, "m": 60, "h": 3600}
Select = Literal["top1", "macro-f1", "macro-recall", "loss"]  # what the best epoch is the best in
AUTO = "auto"  # the network that fits images and device
IMAGENET_WEIGHTS, HUB = "imagenet", "hf:"  # what --weights takes for torchvision's, and begins with for the Hub's
TEST_NAME = "test"  # of folders and files with test images; what --val-data takes for these images of --data


def did_you_mean_data(arguments: Iterable[str]) -> str:
    """Return 'Did you mean --data X?' for the first that is a dataset or a path, or '' when none is."""
    data = (each for each in arguments if each in DATA_SETS or "://" in each or Path(each).expanduser().exists())
    return next((f"Did you mean --data {quoted(each)}?" for each in data), "")


class NetworkConfig(Config):
    """The network."""

    model: Annotated[
        str,
        option(
            "Network: resnetN or plainN, such as resnet20, plain56 or resnet50; or alexnet, vgg19, googlenet. auto: "
            "resnet20 for images up to 64 pixels, else resnet18, or on a GPU with --weights or from 20,000 images on "
            "resnet50.",
            panel="Model and data",
        ),
    ] = AUTO
    shortcut: Annotated[
        Literal["A", "B", "C"] | None,
        option(
            "Type of shortcut connections (He et al. 2015): A zero-padded identity, B projection where the shape "
            "changes, C always projection. By default A for CIFAR networks, B for ImageNet networks.",
            advanced="model",
        ),
    ] = None
    weights: Annotated[
        str | None,
        option(
            "Pretrained weights to begin with (fine-tuning): imagenet (torchvision's best of the network), a file, "
            "hf:owner/name (Hugging Face Hub) or the name of a run; a head of other classes is new.",
            panel="Model and data",
            shared=True,
        ),
    ] = None
    weights_key: Annotated[
        str | None,
        option(
            "Key of the weights in a file that holds several, such as state_dict_ema.", advanced="model", shared=True
        ),
    ] = None


class ImagesConfig(Config):
    """The images."""

    data: Annotated[
        str,
        option(
            "Dataset: digits (built in), cifar10 or cifar100 (downloaded once), a folder with one subfolder per class "
            "or with train/ and val/, Parquet files (file, folder or glob), or a URL of either (s3://bucket/folder).",
            panel="Model and data",
            shared=True,
            changeable=True,
        ),
    ] = "digits"
    val_data: Annotated[
        str | None,
        option(
            "Validation dataset, or 'test' for the test split of --data, which best epochs are then selected on; by "
            "default the validation split of --data, or a fifth of each class, a tenth beside a test split.",
            advanced="data",
            shared=True,
            changeable=True,
        ),
    ] = None
    data_root: Annotated[
        Path | None,
        option(
            "Folder that holds cifar10 and cifar100, or to download them to; by default the cache.",
            advanced="data",
            shared=True,
            changeable=True,
        ),
    ] = None
    image_column: Annotated[
        str | None, option("Parquet column of the images; by default image, img...", advanced="data")
    ] = None
    label_column: Annotated[
        str | None,
        option("Column of the labels in Parquet or a table; by default label, labels, class...", advanced="data"),
    ] = None
    image_size: Annotated[
        ImageSize | None,
        option(
            "Input image size in pixels: 224, or height and width, 224x320; by default that of the images if they all "
            "have the same size of at most 64 pixels, otherwise 224.",
            advanced="data",
            shared=True,
            metavar="SIZE",
        ),
    ] = None
    resize: Annotated[
        ImageSize | None,
        option(
            "Size that larger images are resized to before the crop of --image-size; by default that of the pretrained "
            "weights' metadata, otherwise 8/7 of it.",
            advanced="data",
            shared=True,
            metavar="SIZE",
        ),
    ] = None
    cache_dir: Annotated[
        Path | None,
        option(
            "Folder to cache decoded images in; by default RESNET_OPS_CACHE, or XDG_CACHE_HOME/resnet-ops.",
            advanced="data",
            shared=True,
            changeable=True,
        ),
    ] = None
    max_bad_images: Annotated[
        float,
        option(
            "Share of the images of a split that may be broken and are skipped, such as 0.2; with more it is an error.",
            advanced="data",
            ge=0,
            le=1,
        ),
    ] = MAX_BAD_IMAGES

    @property
    def leaves_size(self) -> bool:
        """Return whether no size is asked for, so that images which have the same small one keep it."""
        return self.image_size is None and self.resize is None


class DataConfig(ImagesConfig):
    """The images, and how training reads them."""

    on_bad_image: Annotated[
        Literal["skip", "fail"],
        option("If an image cannot be decoded: skip it with a warning, or fail.", advanced="data"),
    ] = "skip"
    stream: Annotated[
        Literal["auto", "on", "off"],
        option(
            "Decode images during training, anew in each epoch, instead of once into memory; auto: if the decoded "
            "images would take more than half of the memory.",
            advanced="data",
        ),
    ] = "auto"
    fit_all: Annotated[
        bool,
        option(
            "Train on the validation images too, for a final model. Nothing is left to select or measure with: the "
            "last epoch is the result, without a validation accuracy. A test split is not trained on.",
            advanced="data",
        ),
    ] = False

    test_fraction: Annotated[
        float | None,
        option(
            "Hold out this fraction of the images of each class as test images, chosen by a hash of their bytes, where "
            "the data has no test split; `resnet-ops evaluate` alone measures on them.",
            advanced="data",
            shared=True,
            gt=0,
            le=0.5,
        ),
    ] = None
    allow_duplicates: Annotated[
        bool,
        option(
            "Train even if test images are also training or validation images, byte for byte.",
            advanced="data",
            shared=True,
        ),
    ] = False


class RunsConfig(Config):
    """The folder or bucket that holds the runs."""

    runs_dir: Annotated[
        Place,
        option(
            "Folder or bucket (s3://bucket/folder, gs://bucket/folder) that holds the runs.",
            panel="Run",
            metavar="PATH",
            envvar="RESNET_OPS_RUNS_DIR",
            shared=True,
        ),
    ] = Path("runs")


# Where a run is and what it is called makes it no other training.
NOT_OF_THE_TRAINING = frozenset(
    {
        *ClusterConfig.model_fields,
        *RunsConfig.model_fields,
        "name",
        "track",
        "checkpoint_every",
        "num_to_keep",
    }
)
NAMED_APART = frozenset({"model", "shortcut", "data", "data_root", "cache_dir", "stream"})  # network and images


class RunListConfig(RunsConfig):
    """Choose the runs to list, and their order."""

    sort: Annotated[
        Literal["updated", "created", "name", "accuracy"],
        option("Order: the last updated or created first, by name, or the highest validation accuracy first."),
    ] = "updated"
    status: Annotated[
        Literal["running", "finished", "interrupted", "preempted", "failed"] | None,
        option("List runs of this status only."),
    ] = None
    match: Annotated[
        str | None, option("List runs whose name, network or dataset contains this text only.", metavar="TEXT")
    ] = None


class TrainConfig(RunsConfig, ClusterConfig, Recipe, DataConfig, NetworkConfig):  # in the reverse order of its options
    """A whole training run: what `run.json` stores and each worker receives."""

    select: Annotated[
        Select,
        option(
            "Metric on the validation images that decides which epoch is best, whose weights are kept and exported, "
            "and which trial of a search: top-1 accuracy, macro F1, macro recall, or the lowest loss.",
            advanced="checkpoints and tracking",
            shared=True,
        ),
    ] = "top1"
    recipe: Annotated[
        str | None,
        option(
            "Options from a recipe (paper, fast, ...: see `resnet-ops recipes`) or a TOML file; command-line options "
            "override it.",
            panel="Training",
            aliases=("--config",),
            shared=True,
        ),
    ] = None
    seed: Annotated[
        int,
        option(
            "Random seed; with the same workers and threads, the same seed gives the same weights.",
            panel="Training",
            shared=True,
            ge=0,
            lt=2**63,
        ),
    ] = 0

    expect: Annotated[
        Percent | None,
        option(
            "Validation accuracy in percent that pretrained weights must reach, within chance, with their own head "
            "before training.",
            advanced="model",
            gt=0,
            le=100,
        ),
    ] = None
    patience: Annotated[
        int | None,
        option(
            "Early stopping: end after so many epochs without a better one. On resuming, it may be changed.",
            advanced="early stopping",
            shared=True,
            ge=1,
        ),
    ] = None
    max_time: Annotated[
        str | None,
        option(
            "Longest training, such as 90s, 30m or 8h, over all resumes, start-up not counted: an epoch that would not "
            "be done in time is not begun, whatever the learning rate schedule. On resuming, it may be changed.",
            advanced="early stopping",
            metavar="TIME",
        ),
    ] = None
    target_accuracy: Annotated[
        Percent | None,
        option(
            "End after the first epoch with this validation accuracy (top-1), in percent. On resuming, it may be "
            "changed.",
            advanced="early stopping",
            metavar="PERCENT",
            gt=0,
            le=100,
        ),
    ] = None

    name: Annotated[
        str | None, option("Name of the run; by default made of model and dataset.", panel="Run", shared=True)
    ] = None
    checkpoint_every: Annotated[
        str | None,
        option(
            "Also save a checkpoint within epochs: every so many steps (500), or every interval (90s, 10m, 1h).",
            advanced="checkpoints and tracking",
            metavar="INTERVAL",
        ),
    ] = None
    num_to_keep: Annotated[
        Positive,
        option(
            "Best checkpoints to keep, in addition to the last one, which is always kept.",
            advanced="checkpoints and tracking",
        ),
    ] = 2
    track: Annotated[
        Literal["none", "mlflow", "wandb"],
        option(
            "Also track experiments in MLflow or Weights & Biases, configured by their own environment variables "
            "(MLFLOW_TRACKING_URI, WANDB_PROJECT, ...); TensorBoard files are always written.",
            advanced="checkpoints and tracking",
            shared=True,
            changeable=True,
        ),
    ] = "none"

    @field_validator("checkpoint_every")
    @classmethod
    def _interval_is_steps_or_time(cls, every: str | None) -> str | None:
        if every is not None and re.fullmatch(r"[1-9]\d{0,8}[smh]?", every) is None:
            raise ValueError("must be a number of steps, such as 500, or a time, such as 90s, 10m or 1h")
        return every

    @model_validator(mode="after")
    def _weights_are_there_to_measure(self) -> Self:
        for name in ("expect", "weights_key"):
            if getattr(self, name) is not None and self.weights is None:
                raise UserError(f"--{name.replace('_', '-')} is about pretrained weights.", "Add --weights.")
        if self.expect is not None and self.fit_all:
            raise UserError("--expect measures on validation images, and --fit-all leaves none.", "Remove one of them.")
        return self

    @field_validator("max_time")
    @classmethod
    def _longest_is_a_time(cls, longest: str | None) -> str | None:
        if longest is not None and re.fullmatch(r"[1-9]\d{0,8}[smh]", longest) is None:
            raise ValueError("must be a time, such as 90s, 30m or 8h")
        return longest

    @model_validator(mode="after")
    def _early_ends_can_be_measured(self) -> Self:
        for name in ("patience", "target_accuracy"):
            if self.fit_all and getattr(self, name) is not None:
                raise UserError(
                    f"--{name.replace('_', '-')} needs validation images, and --fit-all trains on all of them.",
                    "Remove one of the two.",
                )
        return self

    @property
    def max_time_s(self) -> int | None:
        """The longest training in seconds, if it is limited."""
        return None if self.max_time is None else int(self.max_time[:-1]) * SECONDS[self.max_time[-1]]

    def unusual(self, **usual: Any) -> dict[str, Any]:
        """Return the options, of training and images, that differ from what is `usual` or else from their defaults."""
        names = [name for name in TrainConfig.model_fields if name not in {*NOT_OF_THE_TRAINING, *NAMED_APART}]
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value != usual.get(name, self.default(name))}

    @property
    def checkpoint_interval(self) -> tuple[int | None, float | None]:
        """Steps, or seconds, between two checkpoints within an epoch; at most one of the two is set."""
        every = self.checkpoint_every
        if every is None or every.isdigit():
            return (int(every) if every else None), None
        return None, int(every[:-1]) * SECONDS[every[-1]]

    @field_validator("name")
    @classmethod
    def _name_is_one_folder(cls, name: str | None) -> str | None:
        return name if name is None else check_run_name(name)
