"""The graph that an export of a network has, with the weights that it should have, built afresh from a checkpoint.

Files are compared with it: their operators and wiring in `structure`, their numbers in `rounding`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Protocol

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper

from resnet_ops.export import graph, precision
from resnet_ops.export.folding import FoldedLayer, fold
from resnet_ops.export.metadata import IMAGES, Preprocessing
from resnet_ops.training.checkpoint import CheckpointInfo

WEIGHTED = ("Conv", "Gemm", "MatMul")
OPSETS = range(13, 24)
Ranges = dict[str, tuple[float, float]]  # the lowest and the highest value of tensors, by their names
WEIGHT, BIAS = ".weight", ".bias"  # of the names of weights, after the name of their layer


@dataclass(frozen=True)
class FreshExport:
    """A network as `torch.onnx.export` makes it in fp32, of which only the operators are used.

    Args:
        info: The network.
        opset: The ONNX opset version.
        exported: The graph, if it is at hand; by default it is exported when it is needed, which takes seconds.
    """

    info: CheckpointInfo
    opset: int
    exported: onnx.ModelProto | None = None

    @cached_property
    def graph(self) -> onnx.ModelProto:
        """Return the graph, with any weights."""
        if self.exported is not None:
            return self.exported
        info = self.info
        size = info.channels, info.height, info.width
        return _export_structure(info.model, info.shortcut, len(info.class_names), *size, self.opset)

    def with_weights(self, layers: Sequence[FoldedLayer]) -> tuple[onnx.ModelProto, dict[str, str]]:
        """Return the graph with the weights of layers, and for each node that has weights the name of its layer."""
        model = onnx.ModelProto()
        model.CopyFrom(self.graph)
        return model, _set_weights(model, layers)


class Probes(Protocol):
    """Inputs (N, C, H, W) float32 to measure with, which are decoded when they are needed."""

    @property
    def real(self) -> np.ndarray:
        """Return images of the kind that the network was trained on, or random ones if none are at hand."""

    @property
    def random(self) -> np.ndarray:
        """Return random pixels."""


@dataclass(frozen=True)
class ExpectedGraph:
    """A graph as `resnet-ops export` makes it, but in fp32 where it asks for fp16.

    Args:
        model: The graph, with the weights `LAYER.weight` and `LAYER.bias`, both for every layer; quantized for int8.
        layers: The folded layers of the checkpoint, in the order in which they are computed.
        layer_of: The layer of each node that has weights or dequantizes them, by the node's name.
        fresh: The network in fp32.
        probes: Inputs to measure with.
        quantized: The network in int8 alone, without preprocessing and softmax.
    """

    model: onnx.ModelProto
    layers: Sequence[FoldedLayer]
    layer_of: dict[str, str]
    fresh: FreshExport
    probes: Probes
    quantized: onnx.ModelProto | None = None

    @cached_property
    def fp32(self) -> onnx.ModelProto:
        """Return the network in fp32, without preprocessing and softmax."""
        return self.fresh.with_weights(self.layers)[0]

    @cached_property
    def ranges(self) -> Ranges:
        """Return the ranges of the network's tensors in fp32 on images of the kind that it was trained on."""
        return self._ranges_on(self.probes.real)

    @cached_property
    def widest_ranges(self) -> Ranges:
        """Return the ranges on random pixels and images of the kind that it was trained on, together."""
        of_random = self._ranges_on(self.probes.random)
        # By NumPy, which keeps NaN.
        return {
            name: (float(np.minimum(low, of_random[name][0])), float(np.maximum(high, of_random[name][1])))
            for name, (low, high) in self.ranges.items()
        }

    def _ranges_on(self, x: np.ndarray) -> Ranges:
        return {IMAGES: (float(x.min()), float(x.max()))} | precision.value_ranges(self.fp32, x)

    @cached_property
    def rectified(self) -> set[str]:
        """Return the names of the tensors that Relu computes."""
        return {node.output[0] for node in self.fresh.graph.graph.node if node.op_type == "Relu"}

    @cached_property
    def before_relu(self) -> set[str]:
        """Return the names of the tensors that only Relu uses."""
        nodes = self.fresh.graph.graph.node
        others = {name for node in nodes if node.op_type != "Relu" for name in node.input}
        return {node.input[0] for node in nodes if node.op_type == "Relu"} - others


def build(
    fresh: FreshExport,
    layers: Sequence[FoldedLayer],
    form: str | None,
    raw: Preprocessing | None,
    softmax: bool,
    probes: Probes,
    calibrate: bool = False,
) -> ExpectedGraph:
    """Build the graph that an export of a network has.

    Args:
        fresh: The network in fp32.
        layers: Its folded layers.
        form: For int8, one of `precision.FORMS`.
        raw: The preprocessing, if the graph takes raw pixels.
        softmax: Whether its output are probabilities.
        probes: Inputs to measure with.
        calibrate: Whether int8 is calibrated on half of the real ones.
    """
    model, layer_of = fresh.with_weights(layers)
    quantized = None
    if form is not None:
        info = fresh.info
        anything = np.zeros((1, info.channels, info.height, info.width), np.float32)
        model = precision.quantize(model, probes.real[::2] if calibrate else anything, form)
        layer_of |= _layers_of_parameters(model, layer_of)
        quantized = onnx.ModelProto()
        quantized.CopyFrom(model)
    if raw is not None:
        graph.prepend_preprocessing(model, raw)
    if softmax:
        graph.append_softmax(model)
    return ExpectedGraph(model, layers, layer_of, fresh, probes, quantized)


def blank_layers(info: CheckpointInfo) -> list[FoldedLayer]:
    """Return the layers of a network of which no checkpoint is known: their weights are 0."""
    return [replace(layer, weight=np.zeros_like(layer.weight)) for layer in fold(info, _random_weights(info))]


def count_weights(info: CheckpointInfo) -> int:
    """Return the number of the weights of a network without biases and BatchNorm."""
    with torch.device("meta"):
        return sum(p.numel() for p in info.build_network().parameters() if p.dim() > 1)


@lru_cache(maxsize=4)
def _export_structure(
    name: str, shortcut: str | None, classes: int, channels: int, height: int, width: int, opset: int
) -> onnx.ModelProto:
    """Export a network with random weights, and remove these."""
    info = network_info(name, shortcut, tuple(map(str, range(classes))), channels, height, width)
    model = graph.to_onnx(info, _random_weights(info), opset)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.ClearField("raw_data")
    return model


def _random_weights(info: CheckpointInfo) -> dict[str, torch.Tensor]:
    """Return weights of any values, and positive variances."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        state = info.build_network().state_dict()
    return {
        name: torch.rand(value.shape, generator=generator) + 0.5
        if value.is_floating_point()
        else torch.zeros(value.shape, dtype=value.dtype)
        for name, value in state.items()
    }


def _set_weights(model: onnx.ModelProto, layers: Sequence[FoldedLayer]) -> dict[str, str]:
    """Replace the weights of a graph in fp32, layer by layer in order, and return the layer of each node."""
    nodes = [node for node in model.graph.node if node.op_type in WEIGHTED]
    assert len(nodes) == len(layers), f"{len(nodes)} nodes with weights, {len(layers)} layers"
    for node, layer in zip(nodes, layers, strict=True):
        node.input[1:] = [layer.name + WEIGHT, layer.name + BIAS]
    used = {name for node in model.graph.node for name in node.input}
    constants = [t for t in model.graph.initializer if t.name in used and t.data_type != TensorProto.FLOAT]
    del model.graph.initializer[:]
    model.graph.initializer.extend(constants)
    computed = {name for node in model.graph.node for name in node.output}
    described = [value for value in model.graph.value_info if value.name in computed]
    del model.graph.value_info[:]
    model.graph.value_info.extend(described)
    for layer in layers:
        for suffix, value in ((WEIGHT, layer.weight), (BIAS, layer.bias)):
            model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), layer.name + suffix))
    return {node.name: layer.name for node, layer in zip(nodes, layers, strict=True)}


def _layers_of_parameters(model: onnx.ModelProto, layer_of: dict[str, str]) -> dict[str, str]:
    """Return the layer of each node that dequantizes weights or biases."""
    producers = {name: node.name for node in model.graph.node for name in node.output}
    return {
        producers[name]: layer_of[node.name]
        for node in model.graph.node
        if node.name in layer_of
        for name in node.input[1:]
        if name in producers
    }


def network_info(
    name: str, shortcut: str | None, class_names: tuple[str, ...], channels: int, height: int, width: int
) -> CheckpointInfo:
    """Return the description of a network of which no checkpoint is known.

    Raises:
        ValidationError: Something is invalid.
    """
    return CheckpointInfo.model_validate(
        {
            "model": name,
            "shortcut": shortcut,
            "class_names": class_names,
            "channels": channels,
            "height": height,
            "width": width,
            "mean": (0.0,) * channels,
            "std": (1.0,) * channels,
            "data": "unknown",
            "data_fingerprint": "unknown",
            "metrics": None,
        }
    )


def quantized_form(model: onnx.ModelProto) -> str:
    """Return the form of a quantized graph, by the type of the first zero point of an activation."""
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and len(node.input) > 2:
            return "s8s8 symmetric" if types.get(node.input[2]) == TensorProto.INT8 else "u8s8"
    return "u8s8"
