"""Tell which network some tensors belong to, by their names and shapes: one of ours, or the nearest and what differs.

Networks are built in models.py; names are torchvision's.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from resnet_ops.architectures import IMAGENET_BLOCKS, Architecture, Shortcut
from resnet_ops.errors import UserError
from resnet_ops.models import build

UNSUPPORTED = {".se.": "squeeze-and-excitation", ".attn": "attention", ".aa.": "anti-aliasing", ".conv2.bias": "biases"}


def identify(path: Path, tensors: Mapping[str, Tensor]) -> tuple[Architecture, Shortcut | None]:
    """Return the network that the tensors belong to, and the type of its shortcuts; None if it has none to see.

    Raises:
        UserError: They belong to none of ours; the message names the nearest.
    """
    blocks = _blocks(tensors)
    bottleneck = "layer1.0.conv3.weight" in tensors
    width, kernel = tensors["conv1.weight"].shape[0], tensors["conv1.weight"].shape[-1]
    family = next((d for d, b in IMAGENET_BLOCKS.items() if b == blocks and (d >= 50) == bottleneck), None)
    if family is not None:
        architecture = Architecture("resnet", family, "imagenet")
    elif len(blocks) == 3 and len(set(blocks)) == 1 and not bottleneck:
        architecture = Architecture("resnet", 6 * blocks[0] + 2, "cifar")
    else:
        described = ", ".join(map(str, blocks))
        raise UserError(
            f"{path} belongs to a ResNet with {described} {'bottleneck' if bottleneck else 'basic'} blocks in its "
            "stages, which is none of the networks here.",
            f"Use weights of the nearest, {_nearest(blocks, bottleneck).name}.",
        )
    usual = (64, 7) if architecture.family == "imagenet" else (16, 3)
    variant = next((what for part, what in UNSUPPORTED.items() if any(part in name for name in tensors)), None)
    inner = tensors["layer1.0.conv1.weight"].shape[0]
    if (width, kernel) != usual:
        variant = (
            f"{width} channels and a kernel of {kernel}x{kernel} in its first layer, not {usual[0]} and {usual[1]}"
        )
    elif inner != usual[0]:
        variant = f"{inner} channels in its first block, not {usual[0]}"
    elif bottleneck and (per_group := tensors["layer1.0.conv2.weight"].shape[1]) != inner:
        variant = f"grouped convolutions ({inner // per_group} groups)"
    if variant is not None:
        raise UserError(
            f"{path} belongs to a variant of {architecture.name} with {variant}, which is not supported.",
            f"Use weights of the nearest network, {architecture.name} itself.",
        )
    return architecture, _shortcut(tensors)


def check_network(
    path: Path, tensors: dict[str, Tensor], architecture: Architecture, shortcut: Shortcut | None, channels: int
) -> None:
    """Check names, shapes and types of all but the head against the network's, and add counters that old files lack.

    Raises:
        UserError: They differ.
    """
    head = tuple(f"{architecture.head}.{part}" for part in ("weight", "bias"))
    classes = len(tensors[head[0]]) if head[0] in tensors else 0
    with torch.device("meta"):
        network = build(architecture, num_classes=max(1, classes), in_channels=channels, shortcut=shortcut)
    expected = network.state_dict()
    for name, value in expected.items():
        if name.endswith("num_batches_tracked"):
            tensors.setdefault(name, torch.zeros_like(value, device="cpu"))
    head = () if classes else head
    missing, unexpected = sorted(expected.keys() - tensors.keys() - {*head}), sorted(tensors.keys() - expected.keys())
    if missing or unexpected:
        absent = f"{len(missing)} missing such as {missing[0]}" if missing else "none missing"
        raise UserError(
            f"{path} does not contain the weights of {architecture.name}: {absent}, {len(unexpected)} unexpected"
            + (f" such as {unexpected[0][:100]}." if unexpected else "."),
            "Variants with other stems or blocks than the paper's are not supported.",
        )
    for name, value in tensors.items():
        if value.shape != expected[name].shape:
            raise UserError(
                f"{path} does not contain the weights of {architecture.name}: {name} has shape {tuple(value.shape)}, "
                f"not {tuple(expected[name].shape)}.",
                "Variants of other widths are not supported.",
            )
        if expected[name].is_floating_point() and value.dtype != expected[name].dtype:
            raise UserError(
                f"{path} has {value.dtype} values for {name}, not {expected[name].dtype}.",
                "Save its weights before they are quantized.",
            )


def _blocks(tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Return the blocks in each stage."""
    stages: dict[int, int] = {}
    for name in tensors:
        if match := re.match(r"layer(\d+)\.(\d+)\.", name):
            stages[int(match[1])] = max(stages.get(int(match[1]), 0), int(match[2]) + 1)
    return tuple(stages[stage] for stage in sorted(stages))


def _nearest(blocks: tuple[int, ...], bottleneck: bool) -> Architecture:
    """Return the network whose number of blocks is nearest."""
    if len(blocks) == 3:
        return Architecture("resnet", 6 * max(1, round(sum(blocks) / 3)) + 2, "cifar")
    depths = [depth for depth in IMAGENET_BLOCKS if (depth >= 50) == bottleneck]
    nearest = min(depths, key=lambda depth: abs(sum(IMAGENET_BLOCKS[depth]) - sum(blocks)))
    return Architecture("resnet", nearest, "imagenet")


def _shortcut(tensors: Mapping[str, Tensor]) -> Shortcut | None:
    """Return the type of the shortcuts; None where none has weights: of type A, or of a plain network."""
    if not any(".downsample." in name for name in tensors):
        return None
    return "C" if any(name.startswith("layer1.1.downsample.") for name in tensors) else "B"
