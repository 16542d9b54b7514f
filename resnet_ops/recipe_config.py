"""The options that a recipe may contain: how to train, on whatever data and wherever."""

import functools
import math
import re
from fractions import Fraction
from typing import Annotated, Literal, Self

from pydantic import field_validator, model_validator

from resnet_ops.config_base import Config, Positive, option
from resnet_ops.errors import UserError

AUGMENTATION = (
    "crop_padding",
    "flip",
    "random_resized_crop",
    "trivial_augment",
    "rand_augment",
    "color_jitter",
    "random_erasing",
    "cutout",
    "mixup",
    "cutmix",
)
IMAGE_DEFAULTS = ("crop_padding", "flip")  # options whose defaults depend on the images
ADAMW_DEFAULTS = {"lr": 1e-3, "weight_decay": 1e-2}  # torch's own; those of the fields are SGD's
OF_THE_OPTIMIZER = ("lr", "weight_decay", "momentum", "nesterov")  # options that mean nothing to another optimizer
NO_LAYER = "none"  # what --freeze takes to freeze nothing, for searches


class Recipe(Config):
    """The hyperparameters of training, which a recipe holds: the same for any network, images and cluster."""

    epochs: Annotated[Positive, option("Training epochs.", panel="Training", shared=True)] = 30
    batch_size: Annotated[
        Positive,
        option(
            "Images per step (global batch size, over all workers); by default 128, or the recipe's, or fewer where an "
            "epoch would have fewer than 11 steps.",
            panel="Training",
            shared=True,
        ),
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

    lr: Annotated[
        float,
        option(
            "Peak learning rate; by default 0.1, or the recipe's, in proportion less for batches below the default, "
            "or 0.001 with --optimizer adamw.",
            panel="Training",
            gt=0,
            allow_inf_nan=False,
        ),
    ] = 0.1
    head_lr: Annotated[
        float,
        option(
            "Factor on the learning rate of the head, the last layer, such as 10 where the other weights are given.",
            advanced="fine-tuning",
            gt=0,
            allow_inf_nan=False,
        ),
    ] = 1.0
    freeze: Annotated[
        str | None,
        option(
            "Freeze this layer and all before it (stem, layer1, layer2, ...; none): they stay as the given weights "
            "are, BatchNorm statistics included.",
            advanced="fine-tuning",
            metavar="LAYER",
        ),
    ] = None
    freeze_epochs: Annotated[
        int | None,
        option(
            "Freeze layers in the first epochs only: those of --freeze, or all but the head. By default --freeze "
            "lasts for the whole training.",
            advanced="fine-tuning",
            ge=0,
        ),
    ] = None
    freeze_batchnorm: Annotated[
        bool | None,
        option(
            "Freeze the BatchNorm statistics of the given weights in all layers; by default where a worker's "
            "micro-batch has fewer than 16 images.",
            advanced="fine-tuning",
        ),
    ] = None
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
    warmup_ratio: Annotated[
        float,
        option(
            "Fraction of training in which the schedules 'steps' and 'cosine' warm the learning rate up; 'one-cycle' "
            "has its own warm-up.",
            advanced="learning rate schedule",
            ge=0,
            lt=1,
        ),
    ] = 0.0
    warmup_steps: Annotated[
        int,
        option("Learning rate warm-up in steps; overrides --warmup-ratio.", advanced="learning rate schedule", ge=0),
    ] = 0
    warmup: Annotated[
        Literal["linear", "constant"],
        option(
            "Warm-up: linear increase to the peak, or constant at a tenth of it (ResNet-110 in the paper).",
            advanced="learning rate schedule",
        ),
    ] = "linear"
    optimizer: Annotated[
        Literal["sgd", "adamw"], option("Optimizer: SGD with momentum, or AdamW.", advanced="optimizer")
    ] = "sgd"
    momentum: Annotated[float, option("SGD momentum.", advanced="optimizer", ge=0, lt=1)] = 0.9
    nesterov: Annotated[bool, option("Use Nesterov momentum.", advanced="optimizer")] = False
    weight_decay: Annotated[
        float,
        option(
            "Weight decay: an L2 penalty with SGD, decoupled with AdamW; by default 0.0001, or 0.01 with --optimizer "
            "adamw.",
            advanced="optimizer",
            ge=0,
            allow_inf_nan=False,
        ),
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
    class_weights: Annotated[
        str | None,
        option(
            "Weights of the classes in the loss: balanced (in inverse proportion to their training images, as "
            "scikit-learn's), or CLASS=WEIGHT,..., such as cat=2,dog=0.5, others 1; scaled to a mean of 1 over the "
            "training images. none: off.",
            advanced="class imbalance",
        ),
    ] = None
    sampler: Annotated[
        Literal["shuffle", "balanced"],
        option(
            "Images of an epoch: shuffle (each once), or balanced (as many, but of each class equally many: those of "
            "rare classes several times, of frequent ones a part).",
            advanced="class imbalance",
        ),
    ] = "shuffle"
    focal_gamma: Annotated[
        float,
        option(
            "Focal loss (Lin et al. 2017): exponent by which images that are classified well count less, such as 2 "
            "(0: cross entropy).",
            advanced="class imbalance",
            ge=0,
            le=20,
        ),
    ] = 0.0
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
        option(
            "Random horizontal flip; by default on, unless classes are named after digits, letters or both of left and "
            "right.",
            advanced="data augmentation",
        ),
    ] = None
    random_resized_crop: Annotated[
        bool,
        option(
            "Crop a random 8% to 100% of the image, with an aspect ratio of 3:4 to 4:3, and resize it; instead of "
            "--crop-padding.",
            advanced="data augmentation",
        ),
    ] = False
    trivial_augment: Annotated[
        bool,
        option(
            "TrivialAugment: one random operation of random magnitude on each image, of 14 that shear, shift, rotate "
            "or change colors.",
            advanced="data augmentation",
        ),
    ] = False
    rand_augment: Annotated[
        str | None,
        option(
            "RandAugment: number of random operations on each image, 1 to 10, and their magnitude, 0 to 30, such as "
            "2,9; instead of --trivial-augment.",
            advanced="data augmentation",
            metavar="N,M",
        ),
    ] = None
    color_jitter: Annotated[
        float,
        option(
            "Color jitter: change brightness, contrast and saturation by random factors that differ from 1 by up to "
            "this, such as 0.4 (0: off).",
            advanced="data augmentation",
            ge=0,
            le=1,
        ),
    ] = 0.0
    random_erasing: Annotated[
        float,
        option(
            "Random erasing: probability that a random box of 2% to 33% of an image is blanked, such as 0.25 (0: off).",
            advanced="data augmentation",
            ge=0,
            le=1,
        ),
    ] = 0.0
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
        Literal["auto", "fp32", "bf16", "fp16"],
        option(
            "Training precision; bf16 and fp16 are mixed precision (autocast), fp16 with loss scaling. auto: bf16 on "
            "GPUs that support it, fp16 on older ones with tensor cores, else fp32.",
            advanced="performance",
        ),
    ] = "auto"
    gradient_checkpointing: Annotated[
        bool,
        option(
            "Gradient checkpointing: compute each block again in the backward pass instead of keeping it in memory; "
            "the same gradients with less memory, slower.",
            advanced="performance",
        ),
    ] = False
    channels_last: Annotated[bool, option("Use the channels-last (NHWC) memory format.", advanced="performance")] = True
    fused: Annotated[bool, option("Use the fused optimizer kernel.", advanced="performance")] = True
    compile: Annotated[
        Literal["off", "auto", "default", "max-autotune"],
        option(
            "torch.compile mode; compiling delays the first step. auto: in a long training on a GPU, compile after an "
            "epoch, and keep what is faster.",
            advanced="performance",
        ),
    ] = "off"
    cuda_graph: Annotated[
        Literal["auto", "on", "off"],
        option(
            "Capture each step in a CUDA graph, so that the CPU only replays it; auto: where it can be.",
            advanced="performance",
        ),
    ] = "auto"
    deterministic: Annotated[
        bool,
        option(
            "On GPUs, use deterministic algorithms: the same seed gives the same weights to the bit, slower.",
            advanced="performance",
        ),
    ] = False

    def augmentation(self, stored: tuple[int, int] | None) -> str:
        """Return the augmentation of training images in words.

        Args:
            stored: Height and width of what images are cropped from, if they are.
        """
        padding = f" (padding {self.crop_padding})" if self.crop_padding else ""
        crop = f"random crop from {stored[0]}x{stored[1]}{padding}" if stored else f"random crop{padding}"
        steps = {
            "random resized crop" if self.random_resized_crop else crop: stored or padding or self.random_resized_crop,
            "horizontal flip": self.flip,
            "TrivialAugment": self.trivial_augment,
            f"RandAugment {self.rand_augment}": self.rand_augment,
            f"color jitter {self.color_jitter:g}": self.color_jitter,
            f"random erasing {self.random_erasing:g}": self.random_erasing,
            f"cutout {self.cutout}": self.cutout,
            f"MixUp {self.mixup:g}": self.mixup,
            f"CutMix {self.cutmix:g}": self.cutmix,
        }
        return ", ".join(name for name, is_on in steps.items() if is_on) or "none"

    @field_validator("compile", mode="before")
    @classmethod
    def _graphs_are_captured_here(cls, mode: object) -> object:
        return "default" if mode == "reduce-overhead" else mode  # of earlier versions

    @field_validator("rand_augment")
    @classmethod
    def _operations_and_magnitude(cls, text: str | None) -> str | None:
        if text is None:
            return None
        layers, magnitude = parse_rand_augment(text)
        if not (1 <= layers <= 10 and 0 <= magnitude <= 30):
            raise ValueError("must be a number of operations, 1 to 10, and a magnitude, 0 to 30, such as 2,9")
        return f"{layers},{magnitude}"

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

    @field_validator("class_weights")
    @classmethod
    def _weights_have_names(cls, text: str | None) -> str | None:
        if text in (None, "balanced", "none"):
            return text
        try:
            weights = parse_class_weights(str(text))
        except ValueError:
            weights = {}
        if not weights or not all(0 < weight < math.inf for weight in weights.values()):
            raise ValueError("must be balanced, none, or CLASS=WEIGHT,... with positive weights, such as cat=2,dog=0.5")
        return text

    @model_validator(mode="after")
    def _options_fit_together(self) -> Self:
        if self.accumulate > self.batch_size and not self.auto_batch:
            raise UserError(
                f"--accumulate {self.accumulate} splits a batch of {self.batch_size} images into more micro-batches "
                "than images.",
                f"Use at most {self.batch_size}.",
            )
        warmup = f"--warmup-steps {self.warmup_steps}" if self.warmup_steps else f"--warmup-ratio {self.warmup_ratio}"
        if (self.warmup_steps or self.warmup_ratio) and self.schedule == "one-cycle":
            raise UserError(
                f"{warmup}: the one-cycle schedule includes its own warm-up.",
                "Remove it, or use --schedule steps or cosine.",
            )
        if not self.warmup_steps and self.warmup_ratio >= self.last_warmup:
            raise UserError(
                f"{warmup} does not end before the first milestone, {self.last_warmup} of training.",
                "Use a smaller one, or a later first milestone (--milestones).",
            )
        if self.optimizer == "adamw":
            for name in ("momentum", "nesterov"):
                if getattr(self, name) != self.default(name):
                    raise UserError(
                        f"--{name} is an option of SGD, not of AdamW.", f"Remove it, or --optimizer {self.optimizer}."
                    )
        if self.freeze_batchnorm and self.sync_batchnorm:
            raise UserError(
                "--freeze-batchnorm keeps the statistics that --sync-batchnorm would synchronize.",
                "Remove one of them.",
            )
        if self.gradient_checkpointing and self.compile != "off":
            raise UserError(
                "--gradient-checkpointing: the compiler decides by itself what to compute again.", "Remove --compile."
            )
        if self.trivial_augment and self.rand_augment:
            raise UserError(
                f"--trivial-augment and --rand-augment {self.rand_augment} are two policies of the same operations.",
                "Use one of the two.",
            )
        if self.nesterov and not self.momentum:
            raise UserError("--nesterov needs a momentum.", "Use --momentum 0.9, or remove --nesterov.")
        return self

    @property
    def last_warmup(self) -> Fraction:
        """The fraction of training by which a warm-up must have ended for the peak learning rate to be reached."""
        return parse_milestones(self.milestones)[0] if self.schedule == "steps" else Fraction(1)


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Return how many batches have every image in them."""
    return -(-images // batch_size)


def parse_class_weights(text: str) -> dict[str, float]:
    """Return the weights written as `cat=2,dog=0.5`, by the names of the classes.

    Raises:
        ValueError: It is no such list, or names a class twice.
    """
    pairs = [pair.rpartition("=") for pair in text.split(",")]
    weights = {name.strip(): float(weight) for name, _, weight in pairs if name.strip()}
    if len(weights) < len(pairs):
        raise ValueError(text)
    return weights


@functools.cache
def parse_milestones(milestones: str) -> tuple[Fraction, ...]:
    """Return the fractions written as `0.5,0.75` or `1/3,2/3`, exactly.

    Raises:
        ValueError, ZeroDivisionError: It is not a list of fractions.
    """
    return tuple(Fraction(share) for share in milestones.split(","))


def parse_rand_augment(text: str) -> tuple[int, int]:
    """Return the number of operations and the magnitude of RandAugment, written as `2,9`.

    Raises:
        ValueError: It is something else.
    """
    match = re.fullmatch(r"\s*(\d{1,3})\s*,\s*(\d{1,3})\s*", text)
    if match is None:
        raise ValueError("must be a number of operations and a magnitude, such as 2,9")
    return int(match[1]), int(match[2])
