"""The configuration of a training run: every option with its type, default, limits and one-line description.

The command line takes all of it from here, and nothing repeats it. Where a run is computed is in cluster_config.py.
Neither torch nor Ray is imported, so that `--help` stays fast.
"""

import functools
import re
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import field_validator, model_validator

from resnet_ops.cluster_config import ClusterConfig
from resnet_ops.config_base import Config, Positive, check_run_name, option
from resnet_ops.errors import UserError
from resnet_ops.files import Place

DATA_SETS = ("digits", "cifar10", "cifar100")  # what --data takes for a name, rather than a path
IMAGE_DEFAULTS = ("crop_padding", "flip")  # options whose defaults depend on the images


class NetworkConfig(Config):
    """The network."""

    model: Annotated[
        str,
        option(
            "Network: resnetN or plainN, such as resnet20, plain56 or resnet50; or alexnet, vgg19, googlenet.",
            panel="Model and data",
        ),
    ] = "resnet20"
    shortcut: Annotated[
        Literal["A", "B", "C"] | None,
        option(
            "Type of shortcut connections (He et al. 2015): A zero-padded identity, B projection where the shape "
            "changes, C always projection. By default A for CIFAR networks, B for ImageNet networks.",
            advanced="model",
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
        ),
    ] = "digits"
    val_data: Annotated[
        str | None,
        option(
            "Validation dataset; by default the validation split of --data, or a fifth of each class.",
            advanced="data",
            shared=True,
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
        str | None, option("Parquet column of the images; by default image or img.", advanced="data")
    ] = None
    label_column: Annotated[
        str | None, option("Parquet column of the labels; by default label, labels or fine_label.", advanced="data")
    ] = None
    image_size: Annotated[
        int | None,
        option(
            "Input image size (square, in pixels); by default that of the images if they all have the same size of at "
            "most 64 pixels, otherwise 224.",
            advanced="data",
            shared=True,
            ge=1,
            le=4096,
        ),
    ] = None
    cache_dir: Annotated[
        Path | None,
        option(
            "Folder to cache decoded images in; by default RESNET_OPS_CACHE or ~/.cache/resnet-ops.",
            advanced="data",
            shared=True,
            changeable=True,
        ),
    ] = None


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
            "Train on the validation images too, for a final model; validation accuracy then measures nothing.",
            advanced="data",
        ),
    ] = False


class Recipe(Config):
    """The hyperparameters of training, which a recipe holds: the same for any network, images and cluster."""

    epochs: Annotated[Positive, option("Training epochs.", panel="Training", shared=True)] = 30
    batch_size: Annotated[
        Positive, option("Images per step (global batch size, over all workers).", panel="Training", shared=True)
    ] = 128
    auto_batch: Annotated[
        bool,
        option(
            "Use the largest power of two that fits into 80% of the free memory as --batch-size; --lr is not scaled.",
            advanced="performance",
        ),
    ] = False
    accumulate: Annotated[
        Positive,
        option(
            "Gradient accumulation steps: micro-batches that each worker splits its share of a batch into, to save "
            "memory.",
            advanced="performance",
        ),
    ] = 1

    lr: Annotated[float, option("Peak learning rate.", panel="Training", gt=0, allow_inf_nan=False)] = 0.1
    schedule: Annotated[
        Literal["one-cycle", "steps", "cosine"],
        option(
            "Learning rate schedule: one-cycle (cosine up and down), steps (decay at --milestones) or cosine decay.",
            advanced="learning rate schedule",
        ),
    ] = "one-cycle"
    milestones: Annotated[
        str,
        option(
            "Fractions of training after which the schedule 'steps' decays the learning rate, such as 0.5,0.75 or "
            "1/3,2/3.",
            advanced="learning rate schedule",
        ),
    ] = "0.5,0.75"
    lr_decay: Annotated[
        float,
        option(
            "Factor by which the schedule 'steps' multiplies the learning rate at each milestone.",
            advanced="learning rate schedule",
            gt=0,
            le=1,
        ),
    ] = 0.1
    warmup_steps: Annotated[
        int,
        option(
            "Learning rate warm-up steps of the schedules 'steps' and 'cosine'; 'one-cycle' has its own warm-up.",
            advanced="learning rate schedule",
            ge=0,
        ),
    ] = 0
    warmup: Annotated[
        Literal["linear", "constant"],
        option(
            "Warm-up: linear increase to the peak, or constant at a tenth of it (ResNet-110 in the paper).",
            advanced="learning rate schedule",
        ),
    ] = "linear"
    momentum: Annotated[float, option("SGD momentum.", advanced="optimizer", ge=0, lt=1)] = 0.9
    nesterov: Annotated[bool, option("Use Nesterov momentum.", advanced="optimizer")] = False
    weight_decay: Annotated[
        float, option("Weight decay (L2 penalty).", advanced="optimizer", ge=0, allow_inf_nan=False)
    ] = 1e-4
    norm_weight_decay: Annotated[
        float | None,
        option(
            "Weight decay of BatchNorm parameters and biases; by default that of --weight-decay.",
            advanced="optimizer",
            ge=0,
            allow_inf_nan=False,
        ),
    ] = None
    label_smoothing: Annotated[float, option("Label smoothing (0: off).", advanced="optimizer", ge=0, lt=1)] = 0.0
    clip_grad_norm: Annotated[
        float, option("Clip gradients to this norm (0: off).", advanced="optimizer", ge=0, allow_inf_nan=False)
    ] = 0.0
    ema: Annotated[
        float,
        option(
            "Decay of an exponential moving average (EMA) of the weights, such as 0.999, which is then validated, "
            "saved and exported (0: off).",
            advanced="optimizer",
            ge=0,
            lt=1,
        ),
    ] = 0.0

    crop_padding: Annotated[
        int | None,
        option(
            "Data augmentation: pad by this many pixels, then crop at random (0: off); by default an eighth of the "
            "image size.",
            advanced="data augmentation",
            ge=0,
        ),
    ] = None
    flip: Annotated[
        bool | None,
        option("Random horizontal flip; by default on, except for digits.", advanced="data augmentation"),
    ] = None
    random_resized_crop: Annotated[
        bool,
        option(
            "Crop a random 8% to 100% of the image, with an aspect ratio of 3:4 to 4:3, and resize it; instead of "
            "--crop-padding.",
            advanced="data augmentation",
        ),
    ] = False
    cutout: Annotated[
        int,
        option("Cutout: size in pixels of a random square to blank (0: off).", advanced="data augmentation", ge=0),
    ] = 0
    mixup: Annotated[
        float,
        option(
            "MixUp: alpha of the Beta distribution (0: off).",
            advanced="data augmentation",
            ge=0,
            allow_inf_nan=False,
        ),
    ] = 0.0
    cutmix: Annotated[
        float,
        option(
            "CutMix: alpha of the Beta distribution (0: off); with --mixup, each batch gets one of the two.",
            advanced="data augmentation",
            ge=0,
            allow_inf_nan=False,
        ),
    ] = 0.0

    zero_init_residual: Annotated[bool, option("Zero-initialize each block's last BatchNorm.", advanced="model")] = (
        False
    )
    sync_batchnorm: Annotated[
        bool, option("Synchronize BatchNorm statistics across workers (GPUs only).", advanced="model")
    ] = False
    precision: Annotated[
        Literal["auto", "fp32", "bf16"],
        option(
            "Training precision; bf16 is mixed precision (autocast). auto: bf16 on GPUs that support it, else fp32.",
            advanced="performance",
        ),
    ] = "auto"
    channels_last: Annotated[bool, option("Use the channels-last (NHWC) memory format.", advanced="performance")] = True
    fused: Annotated[bool, option("Use the fused optimizer kernel.", advanced="performance")] = True
    compile: Annotated[
        Literal["off", "default", "reduce-overhead", "max-autotune"],
        option(
            "torch.compile mode; compiling delays the first step. reduce-overhead uses CUDA graphs.",
            advanced="performance",
        ),
    ] = "off"

    @field_validator("milestones")
    @classmethod
    def _milestones_are_shares(cls, milestones: str) -> str:
        try:
            shares = parse_milestones(milestones)
        except (ValueError, ZeroDivisionError):
            shares = ()
        if not shares or list(shares) != sorted(set(shares)) or not 0 < shares[0] <= shares[-1] < 1:
            raise ValueError("must be increasing fractions of training between 0 and 1, such as 0.5,0.75 or 1/3,2/3")
        return milestones

    @model_validator(mode="after")
    def _options_fit_together(self) -> Self:
        if self.accumulate > self.batch_size and not self.auto_batch:
            raise UserError(
                f"--accumulate {self.accumulate} splits a batch of {self.batch_size} images into more micro-batches "
                "than images.",
                f"Use at most {self.batch_size}.",
            )
        if self.warmup_steps and self.schedule == "one-cycle":
            raise UserError(
                f"--warmup-steps {self.warmup_steps}: the one-cycle schedule includes its own warm-up.",
                "Remove it, or use --schedule steps or cosine.",
            )
        if self.nesterov and not self.momentum:
            raise UserError("--nesterov needs a momentum.", "Use --momentum 0.9, or remove --nesterov.")
        return self


@functools.cache
def parse_milestones(milestones: str) -> tuple[Fraction, ...]:
    """Return the fractions written as `0.5,0.75` or `1/3,2/3`, exactly.

    Raises:
        ValueError, ZeroDivisionError: It is not a list of fractions.
    """
    return tuple(Fraction(share) for share in milestones.split(","))


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


class TrainConfig(RunsConfig, ClusterConfig, Recipe, DataConfig, NetworkConfig):  # in the reverse order of its options
    """A whole training run: what `run.json` stores and each worker receives."""

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

    def unusual(self) -> dict[str, Any]:
        """Return the training options that differ from their defaults, except those that depend on the images."""
        names = {"recipe", *Recipe.model_fields}.difference(IMAGE_DEFAULTS)
        values = {name: getattr(self, name) for name in TrainConfig.model_fields if name in names}
        return {name: value for name, value in values.items() if value != self.default(name)}

    @property
    def checkpoint_interval(self) -> tuple[int | None, float | None]:
        """Steps, or seconds, between two checkpoints within an epoch; at most one of the two is set."""
        every = self.checkpoint_every
        if every is None or every.isdigit():
            return (int(every) if every else None), None
        return None, int(every[:-1]) * {"s": 1, "m": 60, "h": 3600}[every[-1]]

    @field_validator("name")
    @classmethod
    def _name_is_one_folder(cls, name: str | None) -> str | None:
        return name if name is None else check_run_name(name)
