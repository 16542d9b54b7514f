"""Checks before training that network, images, device and options fit each other.

Imports torch only within functions: a job that does not fit is refused before.
"""

from resnet_ops.architectures import Architecture, check_image_size, parse_name
from resnet_ops.config import AUTO, TrainConfig
from resnet_ops.data.opening import open_source
from resnet_ops.data.sources import Source, should_stream
from resnet_ops.errors import UserError, did_you_mean
from resnet_ops.formatting import first_names
from resnet_ops.orchestration.allocation import Placement
from resnet_ops.orchestration.placement import Device
from resnet_ops.recipe_config import IMAGE_DEFAULTS, NO_LAYER, parse_class_weights, steps_per_epoch
from resnet_ops.run_records import DataRecord
from resnet_ops.training.defaults import (
    choose_network,
    freezes_batchnorm,
    mirroring_harm_of,
    optimizer_defaults,
    scaled_lr,
    usual_padding,
    with_recipe,
)
from resnet_ops.training.observer import Observer

OF_THE_IMAGES = ("batch_size", *IMAGE_DEFAULTS)  # options that `check_training` settles alike for every network
# Where the batch size is chosen here. ResNet-8's error on 64 to 1,438 digits, 30 epochs each, falls as there are more
# images; with 1 or 2 steps an epoch it was 2 to 4 times as high, with more than 11 it is the same within chance.
FEWEST_STEPS, SMALLEST_BATCH = 11, 8

# torch is imported in the functions, while nodes are being asked.


def check_training(
    config: TrainConfig, device: Device, source: Source | None = None, *, resumes: bool = False, workers: int = 1
) -> tuple[Source, TrainConfig]:
    """Check that network, images and device fit each other, and settle what depends on them.

    Args:
        config: What is to be trained.
        device: On what.
        source: Its images, where they are open already.
        resumes: Whether a training goes on that has been checked, maybe by a version that allowed more.
        workers: How many share a batch.

    Returns:
        The images, and the configuration with every default resolved.

    Raises:
        UserError: They do not fit.
    """
    if config.model != AUTO:
        parse_name(config.model)  # before images are looked for
    if config.fit_all and config.select != config.default("select"):
        raise UserError(
            f"--select {config.select} chooses an epoch on validation images, and --fit-all leaves none.",
            "Remove one of the two.",
        )
    source = source or open_source(config)
    data = source.record
    config = config if resumes else with_recipe(config, data)
    architecture = parse_name(choose_network(config, data, device)[0] if config.model == AUTO else config.model)
    check_image_size(architecture, (data.height, data.width))
    batch_size = settle_batch_size(config, data)
    side = min(data.height, data.width)
    padding = usual_padding(data) if config.crop_padding is None else config.crop_padding
    if padding > side:
        raise UserError(f"--crop-padding {padding} exceeds the image size of {side} pixels.", f"Try {side // 8}.")
    if config.cutout > side:
        raise UserError(f"--cutout {config.cutout} exceeds the image size of {side} pixels.", f"Try {side // 2}.")
    if config.zero_init_residual and architecture.kind != "resnet":
        raise UserError(f"{architecture.name} has no residual branches.", "Remove --zero-init-residual.")
    if config.sync_batchnorm and device == "cpu":
        raise UserError("--sync-batchnorm needs GPUs: torch does not support it on CPUs.", "Remove it.")
    if config.cuda_graph == "on" and device == "cpu":
        raise UserError("--cuda-graph on needs a GPU.", "Use --cuda-graph auto.")
    check_freezing(config, architecture)
    if config.gradient_checkpointing and architecture.kind not in ("resnet", "plain"):
        raise UserError(
            f"{architecture.name} has no blocks to compute again.", "Remove --gradient-checkpointing, or use a ResNet."
        )
    stream = should_stream(config, source.decoded_bytes)
    _check_class_weights(config, data)
    if stream:
        _check_sampler(config, source)
    shortcut = config.shortcut or (architecture.default_shortcut if architecture.kind == "resnet" else None)
    freezing = config.freeze_batchnorm
    if not config.auto_batch:
        freezing = freezes_batchnorm(config, architecture, batch_size, workers)
    update = {
        "model": architecture.name,
        "shortcut": shortcut,
        "batch_size": batch_size,
        "stream": "on" if stream else "off",
        "crop_padding": padding,
        "flip": mirroring_harm_of(data) is None if config.flip is None else config.flip,
        "freeze_batchnorm": freezing,
        "lr": scaled_lr(config, batch_size) or config.lr,
        **optimizer_defaults(config),
    }
    settled = config.model_copy(update=update)
    if not config.auto_batch and not resumes:
        check_steps(settled, data)
    return source, settled


def check_freezing(config: TrainConfig, architecture: Architecture) -> None:
    """Check that there is what is to be frozen.

    Raises:
        UserError: The network has no such layer, or what it has is not worth keeping.
    """
    layers = architecture.layers
    if config.freeze in ("fc", "head"):
        raise UserError(
            f"--freeze {config.freeze}: the head is always trained.",
            f"Use --freeze {layers[-1]} to train nothing else.",
        )
    if config.freeze is not None and config.freeze not in (*layers, NO_LAYER):
        raise UserError(
            f"--freeze {config.freeze}: {architecture.name} has no such layer.",
            f"{did_you_mean(config.freeze, layers)} Its layers are {', '.join(layers)}.".strip(),
        )
    if config.freeze_batchnorm and not architecture.has_batchnorm:
        raise UserError(f"{architecture.name} has no BatchNorm.", "Remove --freeze-batchnorm.")
    freezes = {
        f"--freeze {config.freeze}": config.freeze not in (None, NO_LAYER),
        f"--freeze-epochs {config.freeze_epochs}": config.freeze_epochs,
        "--freeze-batchnorm": config.freeze_batchnorm,
    }
    if config.weights is None and any(freezes.values()):
        option = next(option for option, is_given in freezes.items() if is_given)
        raise UserError(f"{option} keeps weights as they are, but none are given.", "Add --weights, or remove it.")


def _check_class_weights(config: TrainConfig, data: DataRecord) -> None:
    """Check that every class that has a weight of its own is there.

    Raises:
        UserError: One is not.
    """
    if config.class_weights in (None, "none", "balanced"):
        return
    for name in parse_class_weights(str(config.class_weights)):
        if name not in data.class_names:
            remedy = did_you_mean(name, data.class_names)
            known = f"Its classes: {first_names(data.class_names)}."
            raise UserError(f"--class-weights: {data.name} has no class {name!r}.", f"{remedy} {known}".strip())


def _check_sampler(config: TrainConfig, source: Source) -> None:
    """Check that images of all classes can be drawn from streamed images.

    Raises:
        UserError: They are read in the order of row groups.
    """
    from resnet_ops.data.stream import FULL_SHUFFLE_BYTES

    in_row_groups = source.splits["train"].row_groups is not None
    if config.sampler == "balanced" and in_row_groups and source.decoded_bytes > FULL_SHUFFLE_BYTES:
        raise UserError(
            f"--sampler balanced draws from all images, but the Parquet files of {source.record.name} are streamed, a "
            "part at a time.",
            "Use --class-weights balanced, or images in class folders.",
        )


def warn_of_double_balance(config: TrainConfig, observer: Observer) -> None:
    """Warn where two options do the same for rare classes, which then count more than frequent ones."""
    if config.sampler == "balanced" and config.class_weights == "balanced":
        observer.warn(
            "--sampler balanced already trains on each class equally often; with --class-weights balanced, too, rare "
            "classes count more than frequent ones. One of the two is enough."
        )


def check_steps(config: TrainConfig, data: DataRecord) -> None:
    """Check that what is counted in steps fits into the whole training.

    Raises:
        UserError: It does not: the learning rate would never reach its peak, or nothing would be saved within epochs.
    """
    if config.freeze_epochs and config.freeze_epochs >= config.epochs:
        raise UserError(
            f"--freeze-epochs {config.freeze_epochs}: the whole training is {config.epochs} epochs.",
            "Use fewer; --freeze alone lasts to the end.",
        )
    per_epoch = steps_per_epoch(data.train_images, config.batch_size)
    steps = config.epochs * per_epoch
    whole = f"the whole training is {steps:,} steps ({config.epochs:,} epochs of {per_epoch:,})"
    if config.warmup_steps and config.warmup_steps >= config.last_warmup * steps:
        before = "" if config.last_warmup == 1 else f", and its first milestone is {config.last_warmup} of it"
        raise UserError(
            f"--warmup-steps {config.warmup_steps}: {whole}{before}.",
            "Use --warmup-ratio 0.05 instead, which fits any training.",
        )
    if (every := config.checkpoint_interval[0]) and every >= steps:
        raise UserError(
            f"--checkpoint-every {every}: {whole}.", "Use fewer steps, or remove it: each epoch is saved anyway."
        )


def settle_batch_size(config: TrainConfig, data: DataRecord) -> int:
    """Return the batch size that was asked for, or else the default, or a smaller power of two for fewer images.

    Raises:
        UserError: It exceeds the number of images, or has fewer images than micro-batches.
    """
    if "batch_size" not in config.model_fields_set and not config.auto_batch:
        power = 1 << (data.train_images // FEWEST_STEPS | 1).bit_length() - 1
        chosen = min(max(power, SMALLEST_BATCH, config.accumulate), data.train_images, config.batch_size)
        _check_micro_batches(config, chosen, data)
        return chosen
    if config.batch_size > data.train_images and not config.auto_batch:
        raise UserError(
            f"--batch-size {config.batch_size} exceeds the {data.train_images:,} training images of {data.name}.",
            f"Use at most {data.train_images}.",
        )
    return config.batch_size


def _check_micro_batches(config: TrainConfig, batch_size: int, data: DataRecord) -> None:
    """Check that each micro-batch has an image.

    Raises:
        UserError: There are more of them than images.
    """
    if config.accumulate > batch_size:
        raise UserError(
            f"--accumulate {config.accumulate} splits a batch of {batch_size} of the {data.train_images:,} training "
            f"images of {data.name} into more micro-batches than images.",
            f"Use at most {batch_size}.",
        )


def check_shares(config: TrainConfig, workers: int) -> None:
    """Check that each worker has images of every batch: the statistics of one without are of none.

    Raises:
        UserError: There are fewer images than workers.
    """
    if config.batch_size < workers:
        raise UserError(
            f"{workers} workers cannot share a batch of {config.batch_size} images.",
            f"Use --batch-size {workers} or more, or fewer workers.",
        )


def with_largest_batch(config: TrainConfig, data: DataRecord, placement: Placement, observer: Observer) -> TrainConfig:
    """Return the configuration with the batch size that memory allows, and report it."""
    from resnet_ops.training.memory import largest_batch

    batch_size, why = largest_batch(config, data, placement)
    observer.warn(why)
    _check_micro_batches(config, batch_size, data)
    freezes = freezes_batchnorm(config, parse_name(config.model), batch_size, placement.layout.workers)
    config = config.model_copy(update={"batch_size": batch_size, "freeze_batchnorm": freezes})
    check_steps(config, data)
    return config
