"""Checks before training that network, images, device and nodes fit each other.

Imports torch only within functions: a job that does not fit is refused before.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from resnet_ops.config import AUTO, DATA_SETS, DataConfig, TrainConfig
from resnet_ops.data.class_labels import mirroring_harm
from resnet_ops.data.dataset import SPLIT_NAMES
from resnet_ops.data.discovery import EMBEDDED
from resnet_ops.data.sources import Source, fingerprint_of, open_source, should_stream
from resnet_ops.errors import UserError, did_you_mean
from resnet_ops.formatting import size
from resnet_ops.machine import memory_bytes
from resnet_ops.orchestration.allocation import Placement
from resnet_ops.orchestration.nodes import Node
from resnet_ops.orchestration.placement import Device
from resnet_ops.orchestration.shared_storage import probe_nodes
from resnet_ops.recipe_config import ADAMW_DEFAULTS, IMAGE_DEFAULTS, NO_LAYER, parse_class_weights, steps_per_epoch
from resnet_ops.run_records import DataRecord
from resnet_ops.training.defaults import choose_network, explain_choices, with_recipe
from resnet_ops.training.observer import Observer

if TYPE_CHECKING:
    from resnet_ops.models import Architecture

OF_THE_IMAGES = ("batch_size", *IMAGE_DEFAULTS)  # options that `check_training` settles alike for every network
# Where the batch size is chosen here. ResNet-8's error on 64 to 1,438 digits, 30 epochs each, falls as there are more
# images; with 1 or 2 steps an epoch it was 2 to 4 times as high, with more than 11 it is the same within chance.
FEWEST_STEPS, SMALLEST_BATCH = 11, 8
FEWEST_NORMALIZED = (
    16  # images whose BatchNorm statistics do not harm (Wu and He 2018, fig. 1: 32 to 16 cost 0.5 points)
)
MAX_NAMED = 10  # classes that a message lists

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
    from resnet_ops import models

    if config.model != AUTO:
        models.parse_name(config.model)  # before images are looked for
    if config.fit_all and config.select != config.default("select"):
        raise UserError(
            f"--select {config.select} chooses an epoch on validation images, and --fit-all leaves none.",
            "Remove one of the two.",
        )
    source = source or open_source(config)
    data = source.record
    config = config if resumes else with_recipe(config, data)
    architecture = models.parse_name(choose_network(config, data, device)[0] if config.model == AUTO else config.model)
    models.check_image_size(architecture, (data.height, data.width))
    batch_size = _batch_size(config, data)
    side = min(data.height, data.width)
    usual = 0 if data.stored else side // 8  # larger ones are cropped as they are
    padding = usual if config.crop_padding is None else config.crop_padding
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
    freezes_batchnorm = config.freeze_batchnorm
    if not config.auto_batch:
        freezes_batchnorm = _freezes_batchnorm(config, architecture, batch_size, workers)
    update = {
        "model": architecture.name,
        "shortcut": shortcut,
        "batch_size": batch_size,
        "stream": "on" if stream else "off",
        "crop_padding": padding,
        "flip": _mirroring_harm(data) is None if config.flip is None else config.flip,
        "freeze_batchnorm": freezes_batchnorm,
        **_optimizer_defaults(config),
    }
    settled = config.model_copy(update=update)
    if not config.auto_batch and not resumes:
        check_steps(settled, data)
    return source, settled


def check_freezing(config: TrainConfig, architecture: "Architecture") -> None:
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


def _freezes_batchnorm(config: TrainConfig, architecture: "Architecture", batch_size: int, workers: int) -> bool | None:
    """Return whether BatchNorm keeps the statistics of given weights: as asked for, or where it sees few images."""
    few = batch_size // workers // config.accumulate < FEWEST_NORMALIZED and not config.sync_batchnorm
    if config.freeze_batchnorm is None and config.weights is not None and few:
        return architecture.has_batchnorm or None
    return config.freeze_batchnorm


def _optimizer_defaults(config: TrainConfig) -> dict[str, float]:
    """Return the defaults of the optimizer for options that were not given."""
    if config.optimizer == "sgd":
        return {}
    return {name: value for name, value in ADAMW_DEFAULTS.items() if name not in config.model_fields_set}


def report_defaults(requested: TrainConfig, settled: TrainConfig, device: str, observer: Observer) -> None:
    """Say what `check_training` chose for an optimizer or for fine-tuning, and warn of a precision that is slow."""
    if _optimizer_defaults(requested):
        chosen = ", ".join(f"--{name.replace('_', '-')} {v:g}" for name, v in _optimizer_defaults(requested).items())
        observer.warn(f"AdamW with {chosen}: its usual values, not those of SGD.")
    if settled.freeze_batchnorm and requested.freeze_batchnorm is None:
        observer.warn(
            "BatchNorm keeps the statistics of the given weights: those of fewer than "
            f"{FEWEST_NORMALIZED} images vary too much. --no-freeze-batchnorm updates them."
        )
    if device == "cpu" and settled.precision in ("bf16", "fp16"):
        observer.warn(f"--precision {settled.precision} is slower than fp32 on most CPUs.")


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
            known = ", ".join(data.class_names[:MAX_NAMED]) + (", ..." if len(data.class_names) > MAX_NAMED else "")
            raise UserError(
                f"--class-weights: {data.name} has no class {name!r}.", f"{remedy} Its classes: {known}.".strip()
            )


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


def _batch_size(config: TrainConfig, data: DataRecord) -> int:
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


def report_choices(
    requested: TrainConfig, settled: TrainConfig, data: DataRecord, device: Device, observer: Observer
) -> None:
    """Say which network and recipe `check_training` chose, and why, and where pretrained weights would do good."""
    for line in explain_choices(requested, settled, data, device):
        observer.warn(line)


def warn_of_batch_size(requested: TrainConfig, settled: TrainConfig, data: DataRecord, observer: Observer) -> None:
    """Warn where `check_training` chose another batch size than the default."""
    if settled.batch_size != requested.batch_size:
        few = f"{data.train_images:,} training images are too few for the default of {requested.batch_size}."
        observer.warn(f"Using batch size {settled.batch_size}: {few}")


def warn_of_mirroring(requested: TrainConfig, data: DataRecord, observer: Observer) -> None:
    """Say where the names of classes decided that images are not mirrored, and warn where they speak against it."""
    harm = _mirroring_harm(data)
    if harm is None:
        return
    if requested.flip is None:
        if requested.data not in EMBEDDED:  # of which it is known
            observer.warn(f"No horizontal flip, as {harm}; --flip turns it on.")
    elif requested.flip:
        observer.warn(f"Horizontal flip is on, but {harm}: --no-flip is probably more accurate.")


def _mirroring_harm(data: DataRecord) -> str | None:
    return None if data.numbered else mirroring_harm(data.class_names)


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


def decode_images(source: Source, config: TrainConfig, observer: Observer) -> Source:
    """Decode the images on this machine, so that the run's record can list bad ones.

    Of images that will be streamed, decode only a sample, for their mean and standard deviation.
    """
    source = replace(source, whole=config.random_resized_crop)
    if config.stream == "on":
        return _sampled(source, observer)
    if not source.embedded:
        observer.progress({"stage": f"Decoding the images of {source.record.name}"})
    source = source.prepare()
    for note in (*_summary(source), *source.notes):
        observer.warn(note)
    _batch_size(config, source.record)  # some may have been left out
    return source


def with_largest_batch(config: TrainConfig, data: DataRecord, placement: Placement, observer: Observer) -> TrainConfig:
    """Return the configuration with the batch size that memory allows, and report it."""
    from resnet_ops.models import parse_name
    from resnet_ops.training.memory import largest_batch

    batch_size, why = largest_batch(config, data, placement)
    observer.warn(why)
    _check_micro_batches(config, batch_size, data)
    freezes = _freezes_batchnorm(config, parse_name(config.model), batch_size, placement.layout.workers)
    config = config.model_copy(update={"batch_size": batch_size, "freeze_batchnorm": freezes})
    check_steps(config, data)
    return config


def with_sampled_statistics(source: Source) -> Source:
    """Measure mean and standard deviation of the pixels of images that are streamed on a sample of them.

    Not where pretrained weights have theirs.
    """
    if source.record.mean is not None:
        return source
    from resnet_ops.data.augment import pixel_statistics

    mean, std = pixel_statistics(source.sample_counts())
    return replace(source, record=source.record.model_copy(update={"mean": mean, "std": std}))


def _summary(source: Source) -> tuple[str, ...]:
    """Return what was found; nothing of a dataset by name, of which it is known."""
    return () if source.config.data in DATA_SETS else source.summary


def _sampled(source: Source, observer: Observer) -> Source:
    read = ""
    if source.left_out:
        splits = " and a ".join(f"{SPLIT_NAMES[split]} split" for split in source.left_out)
        avoided = "; --val-data avoids that" if source.left_out == ("val",) else ""
        read = f" All are read once now to hold out a {splits}{avoided}."
    for note in (*_summary(source), *source.notes, *source.check_test_images()):
        observer.warn(note)
    observer.warn(
        f"Streaming: decoded, the training images take {size(source.decoded_bytes)}; this machine has "
        f"{size(memory_bytes())} of memory.{read}"
    )
    observer.progress({"stage": f"Sampling the images of {source.record.name}"})
    return with_sampled_statistics(source.with_exact_counts())


def count_parameters(config: TrainConfig, data: DataRecord) -> int:
    """Count the parameters of the network that will be trained."""
    from resnet_ops import models

    # Built for real: torch's device "meta" costs nothing to build on, but 1 s to import.
    return models.count_parameters(
        models.build(
            config.model, num_classes=len(data.class_names), in_channels=data.channels, shortcut=config.shortcut
        )
    )


@contextlib.contextmanager
def check_every_node(nodes: Sequence[Node], folder: Path, config: DataConfig) -> Iterator[Callable[[str], None]]:
    """Have each of `nodes` check the run's folder and the images while the `with` block goes on.

    Yields:
        A function that waits for the nodes and compares their images' fingerprints with the given one.

    Raises:
        UserError: A node does not see the folder, or sees other images.
    """
    if not nodes:
        yield lambda _: None
        return
    with probe_nodes(nodes, folder, fingerprint_of, config) as answers:

        def compare(fingerprint: str) -> None:
            for node, seen_there in answers().items():
                if seen_there != fingerprint:
                    raise UserError(
                        f"The images in {config.data} on {node.name} differ from those on this machine.",
                        "Provide the same images on every node.",
                    )

        yield compare
