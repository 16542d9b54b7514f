"""What a run is: every option with its default, its limits and its one-line description.

The command line takes names, defaults and help texts from here; nothing repeats them. This
module imports neither torch nor Ray, so that `--help` stays fast.
"""

import functools
import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_core import core_schema

from resnet_ops.errors import UserError
from resnet_ops.files import Place
from resnet_ops.options import Config, Positive, check_run_name

DATA_SETS = ("digits", "cifar10", "cifar100")  # what --data takes for a name, rather than a path


class NetworkConfig(Config):
    """Which network."""

    model: Annotated[
        str,
        Field(
            description="Network: resnetN or plainN, e.g. resnet20, plain56, resnet50; or alexnet, vgg19, googlenet."
        ),
    ] = "resnet20"
    shortcut: Annotated[
        Literal["A", "B", "C"] | None,
        Field(description="Shortcuts: A zero-padded, B projected where shapes change, C all projected. "
              "By default A for CIFAR networks, B for ImageNet ones."),
    ] = None  # fmt: skip


class DataConfig(Config):
    """Which images, and how they are read."""

    data: Annotated[
        str,
        Field(description="Images: 'digits' (embedded), 'cifar10' or 'cifar100' (downloaded once), a folder of class "
              "folders or with train/ and val/ of them, Parquet files (a file, a folder, a glob), or a URL of either, "
              "s3://bucket/folder."),
    ] = "digits"  # fmt: skip
    val_data: Annotated[
        str | None,
        Field(description="Validation images; by default those that --data tells apart, else a fifth of each class."),
    ] = None
    data_root: Annotated[
        Path | None, Field(description="Folder that cifar10 and cifar100 are in or are downloaded to; by default in "
                           "the cache.")
    ] = None  # fmt: skip
    image_column: Annotated[str | None, Field(description="Parquet column of the images; by default image or img.")] = (
        None
    )
    label_column: Annotated[
        str | None, Field(description="Parquet column of the labels; by default label, labels or fine_label.")
    ] = None
    image_size: Annotated[
        int | None,
        Field(ge=1, le=4096, description="Side of the square images that the network sees; by default the images' own "
              "size if they are all of one, of at most 64 pixels, else 224."),
    ] = None  # fmt: skip
    on_bad_image: Annotated[
        Literal["skip", "fail"],
        Field(description="What to do about an image that cannot be decoded: leave it out, and say so, or stop."),
    ] = "skip"
    stream: Annotated[
        Literal["auto", "on", "off"],
        Field(description="Whether to decode images anew in each epoch, while training; auto does so where, decoded, "
              "they would take more than half of the memory."),
    ] = "auto"  # fmt: skip
    fit_all: Annotated[
        bool,
        Field(description="Train on the validation images too, when nothing is left to choose: what is validated has "
              "then been seen, and says nothing of other images."),
    ] = False  # fmt: skip
    cache_dir: Annotated[
        Path | None,
        Field(
            description="Folder that decoded images are kept in; by default RESNET_OPS_CACHE or ~/.cache/resnet-ops."
        ),
    ] = None


class Recipe(Config):
    """How to train, whatever and wherever: what a recipe holds."""

    epochs: Annotated[Positive, Field(description="Passes over the training images.")] = 30
    batch_size: Annotated[
        Positive, Field(description="Images a step: the global batch, over all workers and micro-batches together.")
    ] = 128
    auto_batch: Annotated[
        bool,
        Field(description="Take as --batch-size the largest power of two that fits into 80 % of the free memory; --lr "
              "stays as it is."),
    ] = False  # fmt: skip
    accumulate: Annotated[
        Positive,
        Field(description="Micro-batches that each worker's share of a step is cut into, to need less memory."),
    ] = 1

    lr: Annotated[float, Field(gt=0, allow_inf_nan=False, description="Peak learning rate.")] = 0.1
    schedule: Annotated[
        Literal["one-cycle", "steps", "cosine"],
        Field(description="Learning rate over time: one cosine cycle, steps down at the milestones, or half a cosine."),
    ] = "one-cycle"
    milestones: Annotated[
        str, Field(description="Shares of all steps after which 'steps' goes down, such as 0.5,0.75 or 1/3,2/3.")
    ] = "0.5,0.75"
    lr_decay: Annotated[
        float, Field(gt=0, le=1, description="What 'steps' multiplies the learning rate by at each milestone.")
    ] = 0.1
    warmup_steps: Annotated[
        int, Field(ge=0, description="Steps to warm up in before 'steps' or 'cosine'; 'one-cycle' does so anyway.")
    ] = 0
    warmup: Annotated[
        Literal["linear", "constant"],
        Field(description="Warm-up: rising to the peak, or a tenth of it throughout, as the paper's ResNet-110."),
    ] = "linear"
    momentum: Annotated[float, Field(ge=0, lt=1, description="Momentum of SGD.")] = 0.9
    nesterov: Annotated[bool, Field(description="Nesterov's momentum.")] = False
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False, description="L2 penalty on all weights.")] = 1e-4
    norm_weight_decay: Annotated[
        float | None,
        Field(ge=0, allow_inf_nan=False, description="L2 penalty on BatchNorm's weights and on biases instead; by "
              "default --weight-decay's."),
    ] = None  # fmt: skip
    label_smoothing: Annotated[
        float, Field(ge=0, lt=1, description="Share of each label that is spread over all classes.")
    ] = 0.0
    clip_grad_norm: Annotated[
        float, Field(ge=0, allow_inf_nan=False, description="Longest gradient; longer ones are shortened. 0: any.")
    ] = 0.0
    ema: Annotated[
        float,
        Field(ge=0, lt=1, description="Decay of a moving average of the weights, such as 0.999, which is then what is "
              "validated, kept as best and exported. 0: none."),
    ] = 0.0  # fmt: skip

    crop_padding: Annotated[
        int | None,
        Field(ge=0, description="Pad by so many pixels and crop at random; by default an eighth of the image's side."),
    ] = None
    flip: Annotated[
        bool | None,
        Field(description="Mirror half of the training images; by default yes, but not for digits."),
    ] = None
    random_resized_crop: Annotated[
        bool,
        Field(description="Cut out 8 to 100 % of each image, 3:4 to 4:3, and resize it, instead of padding and "
              "cropping."),
    ] = False  # fmt: skip
    cutout: Annotated[int, Field(ge=0, description="Side in pixels of a square that is blanked in each image.")] = 0
    mixup: Annotated[
        float, Field(ge=0, allow_inf_nan=False, description="Blend pairs of images, by shares from Beta(ALPHA, ALPHA).")
    ] = 0.0
    cutmix: Annotated[
        float,
        Field(ge=0, allow_inf_nan=False, description="Paste a part of one image into another, of a size from "
              "Beta(ALPHA, ALPHA); with --mixup too, each batch gets one of them."),
    ] = 0.0  # fmt: skip

    zero_init_residual: Annotated[
        bool, Field(description="Begin with residual branches that add nothing: their last BatchNorm's weights are 0.")
    ] = False
    sync_batchnorm: Annotated[
        bool, Field(description="BatchNorm over the whole batch instead of each worker's share; GPUs only.")
    ] = False
    precision: Annotated[
        Literal["auto", "fp32", "bf16"],
        Field(description="Arithmetic of the network; auto is bf16 autocast on GPUs that have it, else fp32."),
    ] = "auto"
    channels_last: Annotated[bool, Field(description="Keep a pixel's channels together in memory, as by default.")] = (
        True
    )
    fused: Annotated[bool, Field(description="The optimizer's step as one kernel, as by default.")] = True
    compile: Annotated[
        Literal["off", "default", "reduce-overhead", "max-autotune"],
        Field(
            description="torch.compile's mode; it takes a while before the first step. reduce-overhead is CUDA graphs."
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
            raise ValueError("must be rising shares of the steps between 0 and 1, such as 0.5,0.75 or 1/3,2/3")
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
    """The shares in `0.5,0.75` or `1/3,2/3`, exactly.

    Raises:
        ValueError, ZeroDivisionError: There is something else in it.
    """
    return tuple(Fraction(share) for share in milestones.split(","))


@dataclass(frozen=True)
class NodeRange:
    """The fewest and the most machines to run on, written as `4` or `2:4`; a configuration takes either form."""

    fewest: int
    most: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what a user typed.

        Raises:
            ValueError: It is neither a number of machines nor a range with its smaller number first.
        """
        match = re.fullmatch(r"([1-9]\d{0,5})(?::([1-9]\d{0,5}))?", text)
        if match is None:
            raise ValueError("must be a number of nodes, such as 4, or a range, such as 2:4")
        fewest, most = int(match[1]), int(match[2] or match[1])
        if most < fewest:
            raise ValueError("must have the smaller number first, such as 2:4")
        return cls(fewest, most)

    def __str__(self) -> str:
        return str(self.fewest) if self.fewest == self.most else f"{self.fewest}:{self.most}"

    @classmethod
    def __get_pydantic_core_schema__(cls, *_: object) -> core_schema.CoreSchema:
        """Validate from a string, and write it back as one."""
        return core_schema.no_info_plain_validator_function(
            lambda given: given if isinstance(given, cls) else cls.parse(str(given)),
            serialization=core_schema.to_string_ser_schema(),
        )


class ClusterConfig(Config):
    """Where the work runs: machines, what of them is used, and what happens while some are missing."""

    device: Annotated[
        Literal["auto", "cpu", "cuda"], Field(description="Where to train; auto takes the GPUs where there are any.")
    ] = "auto"
    cluster: Annotated[
        str | None,
        Field(description="Ray cluster: 'local' (started here for this run), 'auto' (RAY_ADDRESS, or the one running "
              "here), an address, or http://HEAD:8265 to submit a job to. By default local, but auto where RAY_ADDRESS "
              "is set or --nodes asks for more than this machine."),
    ] = None  # fmt: skip
    nodes: Annotated[
        NodeRange,
        Field(description="Machines to train on; MIN:MAX begins with MIN and takes up to MAX as they come and go."),
    ] = NodeRange(1, 1)
    gpus_per_node: Annotated[
        Positive | None, Field(description="GPUs to use on each machine, a worker for each; by default all it has.")
    ] = None
    workers_per_node: Annotated[
        Positive | None, Field(description="Workers on each machine when training on CPUs; they share its cores.")
    ] = None
    cpus_per_worker: Annotated[
        Positive | None, Field(description="CPU cores of each worker; by default its share of the machine's.")
    ] = None
    wait: Annotated[
        float | None,
        Field(ge=0, allow_inf_nan=False, description="Seconds to wait for missing or busy machines, at the start "
              "(by default 600 where an autoscaler can bring them, else 0) and after a loss (by default 600)."),
    ] = None  # fmt: skip
    max_failures: Annotated[
        int, Field(ge=0, description="Lost workers and machines to recover from before giving up.")
    ] = 3
    hang_timeout: Annotated[
        float,
        Field(gt=0, allow_inf_nan=False, description="Seconds without a step after which workers count as hanging and "
              "are started anew."),
    ] = 600  # fmt: skip


class TrainConfig(ClusterConfig, Recipe, DataConfig, NetworkConfig):  # in the reverse order of its options
    """One training run, whole: what `run.json` stores and a worker receives."""

    recipe: Annotated[
        str | None,
        Field(description="Options from a recipe (paper, fast...: `resnet-ops recipes`) or a TOML file; those given "
              "beside it go first."),
    ] = None  # fmt: skip
    seed: Annotated[int, Field(ge=0, lt=2**63, description="Same seed, workers and threads: same weights.")] = 0

    name: Annotated[str | None, Field(description="Name of the run; by default made of model and data.")] = None
    runs_dir: Annotated[
        Place, Field(description="Folder that holds the runs, or a bucket: s3://bucket/folder, gs://bucket/folder.")
    ] = Path("runs")
    checkpoint_every: Annotated[
        str | None,
        Field(description="Save within epochs too: every so many steps (500), or every so often (90s, 10m, 1h)."),
    ] = None
    num_to_keep: Annotated[
        Positive, Field(description="Best checkpoints to keep, besides the last one, which is always kept.")
    ] = 2
    track: Annotated[
        Literal["none", "mlflow", "wandb"],
        Field(description="Tell MLflow or Weights & Biases of it too, as their own variables say (MLFLOW_TRACKING_URI, "
              "WANDB_PROJECT...); TensorBoard's files are written in any case."),
    ] = "none"  # fmt: skip

    @field_validator("checkpoint_every")
    @classmethod
    def _interval_is_steps_or_time(cls, every: str | None) -> str | None:
        if every is not None and re.fullmatch(r"[1-9]\d{0,8}[smh]?", every) is None:
            raise ValueError("must be a number of steps, such as 500, or a time, such as 90s, 10m or 1h")
        return every

    def unusual(self) -> dict[str, Any]:
        """How it is trained, where that is not the default; but for what the images settle."""
        names = {"recipe", *Recipe.model_fields} - {"crop_padding", "flip"}
        values = {name: getattr(self, name) for name in TrainConfig.model_fields if name in names}
        return {name: value for name, value in values.items() if value != self.default(name)}

    @property
    def checkpoint_interval(self) -> tuple[int | None, float | None]:
        """Steps, or seconds, between two checkpoints within an epoch; at most one of them is set."""
        every = self.checkpoint_every
        if every is None or every.isdigit():
            return (int(every) if every else None), None
        return None, int(every[:-1]) * {"s": 1, "m": 60, "h": 3600}[every[-1]]

    @field_validator("name")
    @classmethod
    def _name_is_one_folder(cls, name: str | None) -> str | None:
        return name if name is None else check_run_name(name)


# What a resumed run may have otherwise, for it is not what it computes.
WHERE_IT_RUNS = frozenset({*ClusterConfig.model_fields, "data_root", "cache_dir", "track"})
