"""What is looked at before a training begins: do network, images, device and machines fit each other?"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from resnet_ops import models
from resnet_ops.config import IMAGE_DEFAULTS, DataConfig, TrainConfig
from resnet_ops.data.sources import Source, fingerprint_of, open_source, should_stream
from resnet_ops.errors import UserError
from resnet_ops.formatting import size
from resnet_ops.machine import memory_bytes
from resnet_ops.orchestration.allocation import Placement
from resnet_ops.orchestration.nodes import Node
from resnet_ops.orchestration.shared_storage import probe_nodes
from resnet_ops.runs import DataRecord
from resnet_ops.training.observer import Observer
from resnet_ops.training.trainer import autocast

OF_THE_IMAGES = ("batch_size", *IMAGE_DEFAULTS)  # options that `check_training` settles alike for every network
FEWEST_STEPS = 4  # of an epoch, where the batch size is chosen here

# torch is imported in the functions: meanwhile machines are being asked.


def check_training(config: TrainConfig, device: str, source: Source | None = None) -> tuple[Source, TrainConfig]:
    """Check that network, images and device fit each other, and settle what depends on them.

    Args:
        config: What is to be trained.
        device: On what.
        source: Its images, where they are open already.

    Returns:
        The images, and the configuration with every default resolved.

    Raises:
        UserError: They do not fit.
    """
    from resnet_ops import models

    architecture = models.parse_name(config.model)
    source = source or open_source(config)
    data = source.record
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
    if config.fit_all and (data.stored or config.stream == "on"):
        raise UserError("--fit-all needs images of one size that fit into memory.", "Remove it.")
    if config.sync_batchnorm and device == "cpu":
        raise UserError("--sync-batchnorm needs GPUs: torch does not support it on CPUs.", "Remove it.")
    shortcut = config.shortcut or (architecture.default_shortcut if architecture.kind == "resnet" else None)
    update = {
        "model": architecture.name,
        "shortcut": shortcut,
        "batch_size": batch_size,
        "stream": "on" if should_stream(config, source.decoded_bytes) else "off",
        "crop_padding": padding,
        "flip": source.mirrors if config.flip is None else config.flip,
    }
    return source, config.model_copy(update=update)


def _batch_size(config: TrainConfig, data: DataRecord) -> int:
    """What was asked for; where nothing was, and there are fewer images than the default, a power of two that fits."""
    if config.batch_size <= data.train_images or config.auto_batch:
        return config.batch_size
    if "batch_size" in config.model_fields_set:
        raise UserError(
            f"--batch-size {config.batch_size} exceeds the {data.train_images:,} training images of {data.name}.",
            f"Use at most {data.train_images}.",
        )
    return 1 << (max(data.train_images // FEWEST_STEPS, 1).bit_length() - 1)


def warn_of_batch_size(ask_nodes: TrainConfig, settled: TrainConfig, data: DataRecord, observer: Observer) -> None:
    """Tell the observer where `check_training` took another batch size than the default."""
    if settled.batch_size != ask_nodes.batch_size:
        few = f"there are only {data.train_images:,} training images, fewer than the default of {ask_nodes.batch_size}."
        observer.warn(f"Using batch size {settled.batch_size}: {few}")


def decode_images(source: Source, config: TrainConfig, observer: Observer) -> Source:
    """The images decoded on this machine, so that the run's record can say what is wrong with them.

    Where they are to be streamed, only a sample is, for their mean and deviation.
    """
    if config.stream == "on":
        return _sampled(source, observer)
    if not source.embedded:
        observer.progress({"stage": f"Decoding the images of {source.record.name}"})
    source = source.ready()
    for note in source.notes:
        observer.warn(note)
    _batch_size(config, source.record)  # some may have been left out
    return source


def with_largest_batch(config: TrainConfig, data: DataRecord, placement: Placement, observer: Observer) -> TrainConfig:
    """The configuration with the batch size that memory allows, which the observer is told."""
    from resnet_ops.training.preflight import largest_batch

    batch_size, why = largest_batch(config, data, placement)
    observer.warn(why)
    return config.model_copy(update={"batch_size": batch_size})


def _sampled(source: Source, observer: Observer) -> Source:
    from resnet_ops.data.augment import pixel_statistics

    held_out = (
        ""
        if "val" in source.found
        else " All are read once now to hold out a validation split; --val-data avoids that."
    )
    observer.warn(
        f"Streaming: decoded, the training images take {size(source.decoded_bytes)}; this machine has "
        f"{size(memory_bytes())} of memory.{held_out}"
    )
    observer.progress({"stage": f"Sampling the images of {source.record.name}"})
    mean, std = pixel_statistics(source.sample_counts())
    return replace(source, record=source.record.model_copy(update={"mean": mean, "std": std}))


def count_parameters(config: TrainConfig, data: DataRecord) -> int:
    """Parameters of the network that would be trained."""
    from resnet_ops import models

    # Made for real: on torch's device "meta" it costs nothing to make, and 1 s to import what makes it.
    return models.count_parameters(
        models.build(
            config.model, num_classes=len(data.class_names), in_channels=data.channels, shortcut=config.shortcut
        )
    )


@contextlib.contextmanager
def check_every_node(nodes: Sequence[Node], folder: Path, config: DataConfig) -> Iterator[Callable[[str], None]]:
    """Let each machine look at the folder of the run and at the images, meanwhile; none where there is only this one.

    Yields:
        Waits for them, and compares what images they see with what is seen here.

    Raises:
        UserError: A machine does not see the folder, or sees other images.
    """
    if not nodes:
        yield lambda _: None
        return
    with probe_nodes(nodes, folder, fingerprint_of, config) as answers:

        def compare(fingerprint: str) -> None:
            for node, found in answers().items():
                if found != fingerprint:
                    raise UserError(
                        f"The images in {config.data} on {node.name} differ from those on this machine.",
                        "Provide the same images on every node.",
                    )

        yield compare


SHARE = 0.8  # of the free memory that a batch may take
SMALL, LARGER = 4, 12  # images in the two batches whose difference is measured
CGROUP = Path("/sys/fs/cgroup")


def largest_batch(config: TrainConfig, data: DataRecord, placement: Placement) -> tuple[int, str]:
    """The largest power of two of images a step that fits, and why.

    Raises:
        UserError: The job does not run on this machine, whose memory it is that is measured, or not one image fits.
    """
    if not placement.local:
        raise UserError(
            "--auto-batch measures the memory of this machine, but training runs on others.",
            "Use --batch-size instead.",
        )
    layout = placement.layout
    device = torch.device(layout.device)
    sharing = layout.workers if layout.device == "cpu" else 1
    image_bytes = memory_per_image(config, data, device)
    stored_bytes = (data.train_images + data.val_images) * data.height * data.width * data.channels
    budget = (free_bytes(device) / sharing - stored_bytes) * SHARE
    fitting = int(budget / image_bytes) * layout.workers * config.accumulate
    if fitting < 1:
        raise UserError(f"Not even one image fits into the memory of this machine ({size(image_bytes)} each).")
    chosen = min(1 << (limit.bit_length() - 1) for limit in (fitting, data.train_images))
    reason = "fit" if chosen > fitting // 2 else f"would fit, but there are only {data.train_images:,} training images"
    return chosen, (f"--auto-batch chose {chosen:,} images per step: {fitting:,} of {size(image_bytes)} each {reason}.")


def memory_per_image(config: TrainConfig, data: DataRecord, device: torch.device) -> float:
    """Bytes that one more image takes in a forward and a backward pass."""
    network = models.build(
        config.model, num_classes=len(data.class_names), in_channels=data.channels, shortcut=config.shortcut
    ).to(device)
    if config.channels_last:
        network = network.to(memory_format=torch.channels_last)
    small, larger = (_peak_bytes(network, data, images, device, config.precision) for images in (SMALL, LARGER))
    return (larger - small) / (LARGER - SMALL)


def _peak_bytes(network: nn.Module, data: DataRecord, images: int, device: torch.device, precision: str) -> int:
    """Of a forward and a backward pass: as allocated on CUDA; on a CPU what is kept in between, and worked on."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()  # once, though two layers keep it
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    x = torch.zeros(images, data.channels, data.height, data.width, device=device)
    with hooks, autocast(precision, device):
        logits = network(x.to(memory_format=torch.channels_last))
    F.cross_entropy(logits.float(), torch.zeros(images, dtype=torch.int64, device=device)).backward()
    network.zero_grad()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # The backward pass works on the gradients of a layer's output and input, and on a copy in another layout.
    return sum(kept.values()) + 3 * max(kept.values())


def free_bytes(device: torch.device) -> int:
    """What can be had of a device's memory now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    with contextlib.suppress(OSError, ValueError):  # no limit, or no control group
        limit, used = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        free = min(free, limit - used)
    return free
