"""What a training is going to do, in rows for the user: its images, network, recipe, steps and device."""

import contextlib
from collections.abc import Sequence

from resnet_ops.config import TrainConfig
from resnet_ops.config_base import as_options
from resnet_ops.data.sources import Source
from resnet_ops.errors import UserError
from resnet_ops.formatting import first_names, image_size
from resnet_ops.recipe_config import steps_per_epoch
from resnet_ops.recipes.reading import configure
from resnet_ops.run_records import DataRecord, RunRecord
from resnet_ops.training.defaults import (
    Choice,
    mirroring_harm_of,
    optimizer_defaults,
    scaled_lr,
    sees_few,
    usual_padding,
)
from resnet_ops.training.observer import Overview
from resnet_ops.training.preflight import settle_batch_size

TOLD_IN_ROWS = {
    *("recipe", "epochs", "batch_size", "optimizer", "lr", "schedule"),
    *("weights", "image_size", "flip", "crop_padding"),
}
DECISIVE = ("recipe", "weights", "optimizer", "schedule", "auto_batch", "accumulate")  # for the defaults of others
UNBALANCED = 4  # times as many images of the largest class as of the smallest


def describe(source: Source, record: RunRecord, choices: Sequence[Choice] = (), hint: str | None = None) -> Overview:
    """Describe a training that is about to begin.

    Args:
        source: Its images.
        record: The run, with every default settled.
        choices: What was chosen by default.
        hint: What would be plainly better, if that is known.
    """
    config, data = record.config, record.data
    why = {choice.option: f" ({choice.reason})" for choice in choices}
    epochs, steps = config.epochs, steps_per_epoch(data.train_images, config.batch_size)
    epoch_count = f"{epochs} epoch{'s' if epochs > 1 else ''} of {steps:,}"
    batch = f"batch size {config.batch_size}{why.get('batch-size', '')}"
    workers = "worker" if record.world_size == 1 else "workers"
    rows = [
        ("data", source.split_summary),
        ("passed over", source.skipped_summary),
        ("classes", _balance(source, data)),
        ("images", _sizes(data)),
        ("network", f"{config.model}, {record.parameters:,} parameters{why.get('model', '')}"),
        ("weights", _weights(record)),
        ("recipe", f"{config.recipe or 'default'}{why.get('recipe', '')}: {_optimizer(config, why.get('lr', ''))}"),
        ("options", " ".join(as_options(_other_options(record)))),
        ("steps", f"{epochs * steps:,}: {epoch_count}, {batch}"),
        ("augmentation", f"{record.augmentation}{why.get('flip', '')}"),
        ("device", f"{record.device}, {record.world_size} {workers}"),
        ("run", record.name),
    ]
    return Overview(tuple((label, text) for label, text in rows if text), hint)


def _balance(source: Source, data: DataRecord) -> str:
    """Say which classes there are, of how many training images, and where that is far from equal."""
    counts = source.count_classes("train")
    fewest, most = int(counts.min()), int(counts.max())
    each = f"{most:,}" if fewest == most else f"{fewest:,} to {most:,}"
    text = f"{len(counts):,}: {first_names(data.class_names)}; {each} training images each"
    if most < UNBALANCED * fewest:
        return text
    smallest, largest = (data.class_names[int(row)] for row in (counts.argmin(), counts.argmax()))
    return f"{text} (fewest {smallest}, most {largest}: consider --sampler balanced or --class-weights balanced)"


def _sizes(data: DataRecord) -> str:
    size = f"{image_size(data.height, data.width)}, {'grey' if data.channels == 1 else 'color'}"
    return size if data.stored is None else f"{size}; kept at {image_size(*data.stored)} to crop from"


def _weights(record: RunRecord) -> str:
    if record.start is None:
        return "none: from scratch"
    return record.start.origin + (" (with a new last layer)" if record.start.head == "new" else "")


def _optimizer(config: TrainConfig, reason: str) -> str:
    name = {"sgd": "SGD", "adamw": "AdamW"}[config.optimizer]
    return f"{name}, learning rate {config.lr:g}{reason}, {config.schedule}"


def _other_options(record: RunRecord) -> dict[str, object]:
    """Return what is unusual and in no row of its own."""
    return {name: value for name, value in unusual_options(record).items() if name not in TOLD_IN_ROWS}


def unusual_options(record: RunRecord) -> dict[str, object]:
    """Return the options in which a run differs from its recipe, and from the defaults for its images."""
    usual: dict[str, object] = {}
    with contextlib.suppress(UserError):  # the file of the recipe may be gone
        usual = _usual_options(record)
    return record.config.unusual(**usual)


def _usual_options(record: RunRecord) -> dict[str, object]:
    """Return what `check_training` makes of the recipe and of what decides on other options, where no other is given.

    Raises:
        UserError: The recipe is no longer there, or what there is does not fit the images.
    """
    config, data = record.config, record.data
    asked = configure(**{name: getattr(config, name) for name in DECISIVE})
    few = sees_few(config, config.batch_size, record.world_size)
    of_recipe = configure(recipe=config.recipe)
    return {
        **dict(asked),
        **{name: getattr(of_recipe, name) for name in DECISIVE},
        "recipe": None,
        "batch_size": settle_batch_size(asked, data),
        "lr": scaled_lr(asked, config.batch_size) or asked.lr,
        "crop_padding": usual_padding(data),
        "flip": mirroring_harm_of(data) is None,
        "freeze_batchnorm": True if config.weights is not None and few else None,
        **optimizer_defaults(asked),
    }
