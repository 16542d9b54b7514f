"""BatchNorm folded into the layer before it, in float64 and from a checkpoint's tensors alone.

It shares nothing with the exporter, whose weights are compared with these in `rounding`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from resnet_ops.training.checkpoint import CheckpointInfo


@dataclass(frozen=True)
class FoldedLayer:
    """A convolution or a linear layer, with the BatchNorm that follows it.

    Args:
        name: Its name in the checkpoint, such as `layer2.0.conv1`.
        weight: (out, in, height, width) or (out, in) float64.
        bias: (out,) float64.
        bias_terms: (out,) float64, the sum of the absolute values that the bias is the sum of: what it is rounded by.
    """

    name: str
    weight: np.ndarray
    bias: np.ndarray
    bias_terms: np.ndarray


def fold(info: CheckpointInfo, tensors: Mapping[str, Tensor]) -> list[FoldedLayer]:
    """Return the layers of a network in the order in which it computes them.

    Args:
        info: The network.
        tensors: Its state dict.
    """
    with torch.device("meta"):
        network = info.build_network().eval()
    layers: list[str] = []
    batch_norms: dict[str, tuple[str, float]] = {}  # of a layer: its name and epsilon
    outputs: list[tuple[Tensor, str]] = []  # kept, so that no two have the same identity

    def record(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.BatchNorm2d):
            tensor, layer = outputs[-1]
            assert tensor is inputs[0], f"{name} does not follow a convolution"
            batch_norms[layer] = name, module.eps
        elif any(True for _ in module.parameters(recurse=False)):
            assert isinstance(module, nn.Conv2d | nn.Linear), f"{name} is neither a convolution nor linear"
            assert name not in layers, f"{name} is computed twice"
            layers.append(name)
            outputs.append((output, name))

    for name, module in network.named_modules():
        module.register_forward_hook(lambda m, i, o, name=name: record(name, m, i, o))
    with torch.inference_mode():
        network(torch.zeros(1, info.channels, info.height, info.width, device="meta"))
    return [_fold(name, batch_norms.get(name), tensors) for name in layers]


def _fold(name: str, batch_norm: tuple[str, float] | None, tensors: Mapping[str, Tensor]) -> FoldedLayer:
    def read(key: str) -> np.ndarray:
        return np.asarray(tensors[key].detach().double().cpu().numpy())

    weight = read(f"{name}.weight")
    bias = read(f"{name}.bias") if f"{name}.bias" in tensors else np.zeros(len(weight))
    if batch_norm is None:
        return FoldedLayer(name, weight, bias, np.abs(bias))
    norm, epsilon = batch_norm
    scale = read(f"{norm}.weight") / np.sqrt(read(f"{norm}.running_var") + epsilon)
    mean, shift = read(f"{norm}.running_mean"), read(f"{norm}.bias")
    return FoldedLayer(
        name,
        weight * scale.reshape(-1, *[1] * (weight.ndim - 1)),
        (bias - mean) * scale + shift,
        (np.abs(bias) + np.abs(mean)) * np.abs(scale) + np.abs(shift),
    )
