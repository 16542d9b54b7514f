"""Which nodes of a graph pixels flow through: those must run on the execution provider that was asked for.

What depends on shapes and constants alone is a few numbers; ONNX Runtime itself keeps such nodes on the CPU, whatever
the device.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnx

from resnet_ops.export import runtime
from resnet_ops.export.runtime import GraphNode

SHAPE_OPERATORS = {"Shape", "Size"}  # their results depend on no value of their input


def assigned_graph(file: Path, provider: str) -> onnx.GraphProto:
    """Return the graph of a file as it is when ONNX Runtime assigns its nodes to providers.

    By then ONNX Runtime has replaced some of the file's nodes by its own, under names of its own. What it optimizes
    later stays within a provider.
    """
    with tempfile.TemporaryDirectory(prefix="resnet-ops-") as folder:
        assigned = Path(folder) / "assigned.onnx"
        # A graph of which TensorRT compiled parts cannot be written.
        runtime.create_session(
            file, runtime.CUDA if provider == runtime.TENSORRT else provider, assigned_graph=assigned
        )
        return onnx.load(str(assigned)).graph


def pixel_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the nodes whose results depend on the values of the graph's input, not on its shape alone."""
    weights = {tensor.name for tensor in graph.initializer}
    carriers = {value.name for value in graph.input} - weights
    nodes = []
    for node in graph.node:  # sorted topologically, as ONNX demands
        if node.op_type not in SHAPE_OPERATORS and not carriers.isdisjoint(node.input):
            carriers.update(filter(None, node.output))
            nodes.append(node)
    return nodes


def misplaced_nodes(graph: onnx.GraphProto, nodes: Sequence[GraphNode], provider: str) -> list[GraphNode]:
    """Return the nodes that run on another provider than the one asked for though pixels flow through them.

    Args:
        graph: The graph whose nodes were assigned.
        nodes: Its nodes with their providers.
        provider: ONNX Runtime's name of the provider that was asked for; TensorRT may leave nodes to CUDA.
    """
    with_pixels = {(node.name, node.op_type) for node in pixel_nodes(graph)}
    # A node that the graph does not have is not known to be harmless.
    harmless = {(node.name, node.op_type) for node in graph.node} - with_pixels
    return [node for node in runtime.nodes_elsewhere(nodes, provider) if (node.name, node.operator) not in harmless]
