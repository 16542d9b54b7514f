"""The errors that the paper reports, and whether a training is the paper's, so that they may stand beside its own.

The whole settled training decides, option by option: an option that is not known here must have its default, so that a
new one cannot be forgotten.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from resnet_ops.architectures import parse_name
from resnet_ops.config import TrainConfig
from resnet_ops.recipe_config import Recipe
from resnet_ops.run_records import DataRecord
from resnet_ops.training.schedule import learning_rate

# He et al. 2015, table 6: test error on CIFAR-10, of ResNet-110 the mean of five. Plain ones are only drawn (fig. 6).
TABLE_6 = {
    "resnet20": 0.0875, "resnet32": 0.0751, "resnet44": 0.0717, "resnet56": 0.0697, "resnet110": 0.0661,
    "resnet1202": 0.0793,
}  # fmt: skip
CIFAR_SOURCE = "He et al. 2015, table 6, test error; plain networks appear only in fig. 6, plain110 above 60%"
CIFAR_10 = {"airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"}
CIFAR_IMAGES = (45_000, 50_000), 10_000  # for training, with or without the paper's own held out; for testing
CIFAR_STEPS = 64_000
SAME_STEPS = 0.02  # relative: whole epochs are 64k steps only nearly
# Section 4.2. What is not named here has train's default.
CIFAR_OPTIONS: dict[str, Any] = {
    "batch_size": 128, "momentum": 0.9, "weight_decay": 1e-4, "crop_padding": 4, "flip": True,
}  # fmt: skip
# What `_rate_departs` compares as a curve, and what changes the speed and not the training.
RATE_OPTIONS = {
    "epochs", "lr", "schedule", "milestones", "lr_decay", "warmup", "warmup_steps", "warmup_ratio", "warmup_epochs",
}  # fmt: skip
SPEED_OPTIONS = {
    "auto_batch", "accumulate", "sync_batchnorm", "precision", "channels_last", "fused", "compile", "cuda_graph",
    "deterministic",
}  # fmt: skip
CIFAR_LR, CIFAR_MILESTONES = 0.1, (32 / 64, 48 / 64)  # shares of all steps at which the rate is divided by 10
SAME_MILESTONE, RATE_TICKS = 0.005, 1000  # shares that milestones may be off, and the number of rates compared
# From 110 layers on a tenth of it "until the training error is below 80% (about 400 iterations)", else none.
WARM_UP_FROM, IN_WARM_UP = 110, 200

IMAGENET = (1000, 50_000)  # classes and validation images
IMAGENET_SOURCE = "He et al. 2015, tables 2 and 3"
IMAGENET_NETWORKS = {"plain18", "plain34", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"}
# Section 4.1; neither is offered here, so that no training is the paper's.
IMAGENET_DEPARTURES = ("a single crop is tested, not ten", "no scale and color augmentation")


@dataclass(frozen=True)
class PublishedError:
    """A network's error in the paper.

    Args:
        source: Where it is from.
        error: From 0 to 1; None where no training of ours is the paper's.
        departures: In what a training of ours differs from the paper's; only where there is nothing, compare them.
    """

    source: str
    error: float | None
    departures: tuple[str, ...]


def published_error(
    model: str, shortcut: str | None, config: TrainConfig, data: DataRecord, steps: int
) -> PublishedError | None:
    """Return the published error of a network that was trained; None if the paper has none, or has not these images.

    Args:
        model: The network.
        shortcut: Its shortcuts; None for a plain one.
        config: Its training, settled.
        data: Its images.
        steps: That it was trained for.
    """
    if set(data.class_names) == CIFAR_10 and model in TABLE_6 and shortcut == "A":
        return PublishedError(CIFAR_SOURCE, TABLE_6[model], tuple(_cifar_departures(model, config, data, steps)))
    if (len(data.class_names), data.val_images) == IMAGENET and model in IMAGENET_NETWORKS:
        return PublishedError(IMAGENET_SOURCE, None, IMAGENET_DEPARTURES)
    return None


def not_comparable(networks: Sequence[tuple[str, PublishedError | None]]) -> str | None:
    """Return in a sentence which networks, by name, cannot be compared with published numbers, and why."""
    by_reason: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for name, published in networks:
        if published and published.departures:
            by_reason.setdefault((published.source.split(", test error")[0], published.departures), []).append(name)
    sentences = [
        f"{', '.join(names)} not comparable with {source}: {', '.join(departures)}."
        for (source, departures), names in by_reason.items()
    ]
    return " ".join(sentences) or None


def _cifar_departures(model: str, config: TrainConfig, data: DataRecord, steps: int) -> list[str]:
    train_images, test_images = CIFAR_IMAGES
    departures = []
    if data.stored or (data.height, data.width) != (32, 32):
        departures.append(f"images of {data.height}x{data.width}")
    if data.val_images != test_images:
        departures.append(f"validated on {data.val_images:,} images, not on the {test_images:,} test images")
    if data.train_images not in train_images:
        departures.append(f"trained on {data.train_images:,} images")
    if abs(steps - CIFAR_STEPS) > SAME_STEPS * CIFAR_STEPS:
        departures.append(f"{steps:,} steps, not {CIFAR_STEPS:,}")
    if _rate_departs(parse_name(model).depth, config, steps):
        departures.append("another learning rate schedule")
    for name in Recipe.model_fields:
        value = getattr(config, name)
        if name == "norm_weight_decay" and value == config.weight_decay:
            continue  # the same as None
        if name not in RATE_OPTIONS | SPEED_OPTIONS and value != CIFAR_OPTIONS.get(name, config.default(name)):
            option = name.replace("_", " ")
            departures.append(f"{'' if value else 'no '}{option}" if isinstance(value, bool) else f"{option} {value}")
    return departures


def _rate_departs(depth: int, config: TrainConfig, steps: int) -> bool:
    """Return whether the learning rate is another than the paper's, whichever options make it."""
    warm_up = CIFAR_LR / 10 if depth >= WARM_UP_FROM else CIFAR_LR
    expected = dict.fromkeys((0, IN_WARM_UP), warm_up)
    for tick in range(3 * RATE_TICKS // 100, RATE_TICKS):  # from 3% on, when any warm-up of the paper's is over
        share = tick / RATE_TICKS
        if min(abs(share - milestone) for milestone in CIFAR_MILESTONES) > SAME_MILESTONE:
            passed = sum(share > milestone for milestone in CIFAR_MILESTONES)
            expected[round(share * steps)] = CIFAR_LR / 10**passed
    return any(not math.isclose(learning_rate(config, step, steps), rate) for step, rate in expected.items())
