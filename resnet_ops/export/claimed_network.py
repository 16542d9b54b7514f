"""A quick check that a file is of the network that its metadata name: by the layers, and the shortcuts that are added.

It takes a second, where the comparison of whole graphs in `structure` first exports the network anew.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import onnx
import torch
from onnx import NodeProto
from torch import nn

from resnet_ops.config_base import quoted
from resnet_ops.errors import UserError
from resnet_ops.export import structure
from resnet_ops.export.expected_graph import WEIGHTED
from resnet_ops.export.graph import PREPROCESSING_PREFIX
from resnet_ops.export.metadata import ModelMetadata
from resnet_ops.export.structure import DifferenceError, IndexedGraph
from resnet_ops.export.white_box import WhiteBox
from resnet_ops.models import BasicBlock, Bottleneck

BEFORE_WEIGHTS = ("DequantizeLinear", "Cast", "Transpose")


class LayerShape(NamedTuple):
    """Shape of the weights of a layer, and its strides."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def text(self) -> str:
        """Return it in words: '16 x 3 x 3 x 3 weights, strides 1 x 1'."""
        strides = f", strides {' x '.join(map(str, self.strides))}" if self.strides else ""
        return f"{' x '.join(map(str, self.shape))} weights{strides}"


def check_layers(file: Path, model: onnx.ModelProto, metadata: ModelMetadata) -> None:
    """Compare number, shapes and strides of the layers of a file, and its additions, with those of its network.

    Args:
        file: The file, for messages.
        model: Its content.
        metadata: Its metadata.

    Raises:
        UserError: They differ.
    """
    try:
        box = WhiteBox(model, metadata, checkpoint=None)
        box.refuse_fewer_weights()
        with torch.device("meta"):
            network = box.info.build_network()
        _compare(IndexedGraph(model), network)
    except DifferenceError as difference:
        name, reason = structure.quote(metadata.model), str(difference).rstrip(".")
        raise UserError(
            f"{file} is not the {name} that its metadata name: {reason}.",
            f"See what it is: resnet-ops validate {quoted(file)}",
        ) from None


def _compare(graph: IndexedGraph, network: nn.Module) -> None:
    nodes = [node for node in graph.nodes if not node.name.startswith(PREPROCESSING_PREFIX)]
    theirs = Counter(_layer_of(graph, node) for node in nodes if node.op_type in WEIGHTED)
    ours = Counter(
        _layer(module.weight.shape, module.stride if isinstance(module, nn.Conv2d) else ())
        for module in network.modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    )
    if theirs != ours:
        (one, count), *_ = [*(theirs - ours).items(), *(ours - theirs).items()]
        direction = "more" if theirs[one] > ours[one] else "fewer"
        raise DifferenceError(f"it has {count} {direction} of the layers with {one.text}")
    constants = graph.initializers.keys()
    added = sum(node.op_type == "Add" and not constants & set(node.input) for node in nodes)
    blocks = sum(isinstance(each, BasicBlock | Bottleneck) and not each.plain for each in network.modules())
    if added != blocks:
        raise DifferenceError(f"it adds {added} shortcuts, expected {blocks}")


def _layer(shape: Iterable[int], strides: Iterable[int]) -> LayerShape:
    """Return a layer, of a matrix whichever way it is stored."""
    sides = tuple(shape)
    return LayerShape(sides if len(sides) > 2 else tuple(sorted(sides)), tuple(strides))


def _layer_of(graph: IndexedGraph, node: NodeProto) -> LayerShape:
    """Return the layer of a node, whose weights may be quantized or cast.

    Raises:
        DifferenceError: It has no weights that are constant.
    """
    name = node.input[1] if len(node.input) > 1 else ""
    while name not in graph.initializers:
        producer = graph.producer(name)
        if producer is None or producer.op_type not in BEFORE_WEIGHTS or not producer.input:
            raise DifferenceError(f"{graph.describe(name)}, expected weights of a {node.op_type}")
        name = producer.input[0]
    strides = structure.attributes(node).get("strides", (1, 1)) if node.op_type == "Conv" else ()
    return _layer(graph.initializers[name].dims, strides)
