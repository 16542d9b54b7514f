"""Nodes on the CPU are a fault only if pixels flow through them: in the graphs that ONNX Runtime really makes of ours.

Where the nodes are is given, as no machine of ours has a GPU that would put them there.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from resnet_ops.export import graph, precision, runtime
from resnet_ops.export.classifier import normalize_pixels
from resnet_ops.export.inputs import ValidationImages
from resnet_ops.export.metadata import Preprocessing
from resnet_ops.export.pixel_flow import assigned_graph, misplaced_nodes
from resnet_ops.export.runtime import CPU, CUDA, TENSORRT, GraphNode
from resnet_ops.training.checkpoint import Checkpoint
from tests.export.samples import copy


@pytest.fixture(scope="module")
def int8_model(model: onnx.ModelProto, checkpoint: Checkpoint, images: ValidationImages) -> onnx.ModelProto:
    steps = Preprocessing.of(checkpoint.info, "normalized")
    quantized, _ = precision.to_int8(copy(model), normalize_pixels(images.sample(64, steps.crop), steps), CPU)
    return quantized


def placed(model: onnx.ModelProto, folder: Path, on_cpu: Callable[[onnx.NodeProto], bool]) -> list[GraphNode]:
    """The misplaced ones of the nodes that ONNX Runtime assigns, if those `on_cpu` are there and all others on CUDA."""
    file = folder / "m.onnx"
    graph.write(model, file)
    assigned = assigned_graph(file, CPU)
    nodes = [GraphNode(n.name, n.op_type, CPU if on_cpu(n) else CUDA) for n in assigned.node]
    assert any(node.provider == CPU for node in nodes)
    named = {(node.name, node.operator) for node in runtime.create_session(file, CPU).nodes}
    assert named == {(node.name, node.operator) for node in nodes}  # the very nodes that a session tells of
    return misplaced_nodes(assigned, nodes, CUDA)


@pytest.fixture(scope="module")
def constant_nodes(raw_model: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bool]:
    """Of each node of the raw file whether its outputs are the same for two images of noise of one size."""
    file = tmp_path_factory.mktemp("raw") / "m.onnx"
    graph.write(raw_model, file)
    probe = copy(raw_model)
    probe.graph.CopyFrom(assigned_graph(file, CPU))
    known = {value.name for value in probe.graph.output}
    outputs = {name: node.name for node in probe.graph.node for name in node.output if name}
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs if name not in known)
    session = runtime.create_session(probe.SerializeToString(), CPU).session
    names = [output.name for output in session.get_outputs()]
    rng = np.random.default_rng(0)
    first, second = (session.run(names, {"images": rng.integers(0, 256, (1, 47, 90, 3), np.uint8)}) for _ in range(2))
    same: dict[str, bool] = {}
    for name, one, other in zip(names, first, second, strict=True):
        same[outputs[name]] = np.array_equal(one, other) and same.get(outputs[name], True)
    return same


def test_what_is_the_same_for_all_images_of_a_size_may_be_anywhere(
    raw_model: onnx.ModelProto, constant_nodes: dict[str, bool], tmp_path: Path
) -> None:
    assert placed(raw_model, tmp_path, lambda node: constant_nodes[node.name]) == []


def test_what_differs_from_image_to_image_may_not(
    raw_model: onnx.ModelProto, constant_nodes: dict[str, bool], tmp_path: Path
) -> None:
    misplaced = placed(raw_model, tmp_path, lambda node: not constant_nodes[node.name])
    assert {node.name for node in misplaced} == {name for name, same in constant_nodes.items() if not same}


def test_of_a_normalized_file_every_node_is_the_networks(model: onnx.ModelProto, tmp_path: Path) -> None:
    assert len(placed(model, tmp_path, lambda node: node.name.startswith("node_"))) == len(model.graph.node)


def test_weights_that_are_decoded_may_be_anywhere_and_activations_not(
    int8_model: onnx.ModelProto, tmp_path: Path
) -> None:
    weights = {tensor.name for tensor in int8_model.graph.initializer}
    constant = placed(int8_model, tmp_path, lambda n: n.op_type == "DequantizeLinear" and weights.issuperset(n.input))
    assert constant == []
    activations = placed(int8_model, tmp_path, lambda n: n.op_type == "QuantizeLinear")
    assert activations
    assert {node.operator for node in activations} == {"QuantizeLinear"}


def test_weights_made_of_an_images_size_are_harmless_and_the_product_with_pixels_is_not(tmp_path: Path) -> None:
    """A resize by a matrix product: from the size to the positions, the triangle, the weights; then the pixels."""
    add = helper.make_node
    nodes = [
        add("Shape", ["images"], ["height"], name="shape", start=1, end=2),
        add("Squeeze", ["height"], ["count"], name="squeeze"),
        add("Range", ["zero", "count", "one"], ["positions"], name="range"),
        add("Cast", ["positions"], ["positions_exact"], name="cast", to=TensorProto.FLOAT),
        add("Sub", ["positions_exact", "centers"], ["distances"], name="distance"),
        add("Abs", ["distances"], ["absolute"], name="abs"),
        add("Sub", ["unit", "absolute"], ["triangle"], name="triangle"),
        add("Relu", ["triangle"], ["weights"], name="relu"),
        add("Cast", ["images"], ["pixels"], name="pixels", to=TensorProto.FLOAT),
        add("MatMul", ["weights", "pixels"], ["logits"], name="product"),
    ]
    constants = {
        "zero": np.array(0, np.int64),
        "one": np.array(1, np.int64),
        "unit": np.array(1, np.float32),
        "centers": np.array([[0.5], [2.5], [4.5]], np.float32),
    }
    made = helper.make_graph(
        nodes,
        "resize",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", "height", 7])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3, 7])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    misplaced = placed(model, tmp_path, lambda _: True)
    assert {node.name for node in misplaced} == {"pixels", "product"}


def test_a_node_that_is_not_in_the_graph_is_not_known_to_be_harmless(
    raw_model: onnx.ModelProto, tmp_path: Path
) -> None:
    file = tmp_path / "m.onnx"
    graph.write(raw_model, file)
    nodes = [GraphNode("unheard of", "Shape", CPU), GraphNode("", "Conv", CUDA)]
    assert misplaced_nodes(assigned_graph(file, CPU), nodes, CUDA) == nodes[:1]
    assert misplaced_nodes(onnx.GraphProto(), nodes[1:], TENSORRT) == []  # which may leave nodes to CUDA
