"""Measures a training: parameters, the largest batch that fits in memory for --auto-batch, what a trial takes of it.

Apart from `preflight`, for it imports torch.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from resnet_ops import models
from resnet_ops.config import TrainConfig
from resnet_ops.errors import UserError
from resnet_ops.formatting import size
from resnet_ops.machine import free_memory_bytes
from resnet_ops.orchestration.allocation import Placement
from resnet_ops.run_records import DataRecord
from resnet_ops.training.gradient_checkpointing import checkpoint_blocks
from resnet_ops.training.mixed_precision import autocast

SHARE = 0.8  # of the free memory that a batch may take
SMALL, LARGER = 4, 12  # images in the two batches whose difference is measured
CONTEXT_BYTES = 600 * 2**20  # of GPU memory that a process takes before it has a tensor: CUDA's context, libraries
BATCHES_KEPT = 2  # what validation takes is beside what a captured step keeps


def largest_batch(config: TrainConfig, data: DataRecord, placement: Placement) -> tuple[int, str]:
    """Return the largest power of two of images per step that fits, and why.

    Raises:
        UserError: The job does not run on this machine, whose memory is measured, or not even one image fits.
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
    budget = (free_bytes(device) / sharing - stored_bytes(data)) * SHARE
    fitting = int(budget / image_bytes) * layout.workers * config.accumulate
    if fitting < 1:
        raise UserError(f"Not even one image fits into the memory of this machine ({size(image_bytes)} each).")
    chosen = min(1 << (limit.bit_length() - 1) for limit in (fitting, data.train_images))
    reason = "fit" if chosen > fitting // 2 else f"would fit, but there are only {data.train_images:,} training images"
    return chosen, (f"--auto-batch chose {chosen:,} images per step: {fitting:,} of {size(image_bytes)} each {reason}.")


def stored_bytes(data: DataRecord) -> int:
    """Return the bytes of all images, decoded."""
    pixels = math.prod(data.stored or (data.height, data.width))
    return (data.train_images + data.val_images) * pixels * data.channels


def training_bytes(config: TrainConfig, data: DataRecord, gpu_bytes: int) -> int:
    """Estimate the GPU memory that a process takes to train.

    It is counted on the CPU: measuring would leave a CUDA context in this process, and GPUs of a cluster are elsewhere.

    Args:
        config: The training, with one worker.
        data: Its images; those that take up to half of a GPU are kept there.
        gpu_bytes: The memory of the GPU.
    """
    weights = 4 * count_parameters(config, data)
    images = 0 if config.stream == "on" or stored_bytes(data) > gpu_bytes / 2 else stored_bytes(data)
    batch = -(-config.batch_size // config.accumulate) * memory_per_image(config, data, torch.device("cpu"))
    moments = 2 if config.optimizer == "adamw" else 1
    copies = 2 + moments + bool(config.ema)  # the weights, their gradients and momentum, and their moving average
    return int(CONTEXT_BYTES + copies * weights + images + BATCHES_KEPT * batch)


def memory_per_image(config: TrainConfig, data: DataRecord, device: torch.device) -> float:
    """Return the bytes that one more image takes in a forward and a backward pass."""
    network = models.build(
        config.model, num_classes=len(data.class_names), in_channels=data.channels, shortcut=config.shortcut
    ).to(device)
    if config.channels_last:
        network = network.to(memory_format=torch.channels_last)
    if config.gradient_checkpointing and device.type == "cuda":  # on CPUs only what is kept is counted: an upper bound
        checkpoint_blocks(network)
    small, larger = (_peak_bytes(network, data, images, device, config.precision) for images in (SMALL, LARGER))
    return (larger - small) / (LARGER - SMALL)


def _peak_bytes(network: nn.Module, data: DataRecord, images: int, device: torch.device, precision: str) -> int:
    """Return the peak bytes of a forward and a backward pass; on CPUs computed from what the first saves."""
    saved_bytes: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved_bytes[storage.data_ptr()] = storage.nbytes()  # once, though two layers keep it
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    x = torch.zeros(images, data.channels, data.height, data.width, device=device)
    with hooks, autocast(precision, device):
        logits = network(x.to(memory_format=torch.channels_last))
    if device.type == "cpu":
        # The backward pass works on the gradients of a layer's output and input, and on a copy in another layout.
        return sum(saved_bytes.values()) + 3 * max(saved_bytes.values())
    F.cross_entropy(logits.float(), torch.zeros(images, dtype=torch.int64, device=device)).backward()
    network.zero_grad()
    return torch.cuda.max_memory_allocated(device)


def free_bytes(device: torch.device) -> int:
    """Return the free memory of a device in bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_memory_bytes()


def count_parameters(config: TrainConfig, data: DataRecord) -> int:
    """Count the parameters of the network that will be trained."""
    # Built for real: torch's device "meta" costs nothing to build on, but 1 s to import.
    return models.count_parameters(
        models.build(
            config.model, num_classes=len(data.class_names), in_channels=data.channels, shortcut=config.shortcut
        )
    )
