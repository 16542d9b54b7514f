"""Comparison of the whole graph of a file with the one that an export of its network has.

Operators, attributes, wiring, constants, inputs and outputs must be equal, and nothing may be left over; names do not
matter. Weights and quantization parameters are only matched here, and compared in `rounding`.
"""

from collections import Counter, deque
from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto, TensorProto, numpy_helper

from resnet_ops.export.expected_graph import WEIGHTED, ExpectedGraph
from resnet_ops.export.graph import PREPROCESSING_PREFIX
from resnet_ops.export.untrusted import STANDARD_DOMAINS

QUANTIZING = ("QuantizeLinear", "DequantizeLinear")
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
MAX_CASTS = 2  # in a row
IR_OF_0_1 = 10  # the IR version that version 0.1 wrote, whatever the opset
SHOWN = 60  # characters of a text from a file, values of a constant


class DifferenceError(Exception):
    """A graph differs from the expected one; the message says where."""


class IndexedGraph:
    """A graph, and what each of its tensors is.

    Args:
        model: The model.

    Raises:
        DifferenceError: A name means two tensors, or none.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model, graph = model, model.graph
        self.nodes = list(graph.node)
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        self.inputs = {value.name for value in graph.input}
        self.producers = {n: (i, j) for i, node in enumerate(graph.node) for j, n in enumerate(node.output) if n}
        tensors = [t.name for t in graph.initializer] + [v.name for v in graph.input]
        tensors += [name for node in graph.node for name in node.output if name]
        for name, count in Counter(tensors).most_common(1):
            if count > 1:
                raise DifferenceError(f"there are {count} tensors {quote(name)}")

    def producer(self, name: str) -> NodeProto | None:
        """Return the node that computes a tensor, or None."""
        return self.nodes[self.producers[name][0]] if name in self.producers else None

    def describe(self, name: str) -> str:
        """Return what a tensor is, in words."""
        if name in self.producers:
            index, _ = self.producers[name]
            return f"node {index} is {quote(self.nodes[index].op_type)}"
        if name in self.initializers or name in self.inputs:
            return f"{quote(name)} is {'a constant' if name in self.initializers else 'an input'}"
        return f"{quote(name)} is computed by no node"


def quote(text: str) -> str:
    """Return a text from a file in a form that can be shown."""
    return text if text.isidentifier() and len(text) <= SHOWN else repr(text[:SHOWN])


def opset_versions(model: onnx.ModelProto) -> list[int]:
    """Return the versions of ONNX's own operators that a model imports: one, if it is sound."""
    return [entry.version for entry in model.opset_import if entry.domain in STANDARD_DOMAINS]


def match(expected: ExpectedGraph, file: onnx.ModelProto, half: bool, large: Collection[str] = ()) -> dict[str, str]:
    """Compare a file's graph with the expected one, from its outputs back to its inputs.

    Args:
        expected: The expected graph.
        file: The file's model.
        half: Whether it is in fp16: its network may then have casts between fp32 and fp16, which are skipped.
        large: The tensors whose values may overflow fp16: they must be in fp32, and used as such.

    Returns:
        For each tensor of the expected graph the file's; biases that are left out, which then are zeros, are missing.

    Raises:
        DifferenceError: They differ.
    """
    theirs, ours = IndexedGraph(file), IndexedGraph(expected.model)
    _compare_frames(ours.model, file)
    free = free_constants(ours)
    types = float_types(file.graph) if large else {}
    pairs: dict[str, str] = {}
    used: set[str] = set()  # of the file
    nodes = set[int]()
    # Each with the node that needs it; the last first, so that what is near the output is compared first.
    stack = [(o.name, f.name, None) for o, f in zip(expected.model.graph.output, file.graph.output, strict=True)]
    todo: deque[tuple[str, str, NodeProto | None]] = deque(stack)
    while todo:
        name, other, user = todo.popleft()
        if name in large:
            cast = theirs.producer(other)
            if types.get(other) != TensorProto.FLOAT or (cast is not None and cast.op_type == "Cast"):
                raise DifferenceError(f"values{place(expected, ours, name, user)} can overflow fp16, expected fp32")
        elif half and not (user is not None and user.name.startswith(PREPROCESSING_PREFIX)):
            other = _before_casts(theirs, other, nodes)
        if name in pairs:
            if pairs[name] != other:
                where = place(expected, ours, name, user)
                raise DifferenceError(f"{theirs.describe(other)}, expected what is also used elsewhere{where}")
            continue
        pairs[name] = other
        used.add(other)
        node, actual = ours.producer(name), theirs.producer(other)
        if node is None:
            _compare_constants(expected, ours, theirs, name, other, user, name in free, half)
            continue
        if actual is None or (actual.op_type, ours.producers[name][1]) != (node.op_type, theirs.producers[other][1]):
            where = place(expected, ours, name, user)
            raise DifferenceError(f"{theirs.describe(other)}, expected {node.op_type}{where}")
        nodes.add(theirs.producers[other][0])
        _compare_nodes(expected, ours, node, actual, theirs.producers[other][0])
        todo.extend((a, b, node) for a, b in zip(node.input, actual.input, strict=False) if a)
    _refuse_leftovers(theirs, nodes, used)
    return pairs


def free_constants(graph: IndexedGraph) -> set[str]:
    """Return the names of constants whose values are not compared here: weights and quantization parameters."""
    network = [node for node in graph.nodes if not node.name.startswith(PREPROCESSING_PREFIX)]
    weights = {name for node in network if node.op_type in WEIGHTED for name in node.input[1:]}
    parameters = {name for node in network if node.op_type in QUANTIZING for name in node.input}
    return (weights | parameters) & graph.initializers.keys()


def float_types(graph: onnx.GraphProto) -> dict[str, int]:
    """Return the types of a graph's tensors, as far as operators keep that of their first input; casts do not."""
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    types |= {value.name: value.type.tensor_type.elem_type for value in graph.input}
    for node in graph.node:
        target = attributes(node).get("to") if node.op_type == "Cast" else types.get(next(iter(node.input), ""))
        types |= dict.fromkeys(node.output, target or TensorProto.UNDEFINED)
    return types


def place(expected: ExpectedGraph, graph: IndexedGraph, name: str, user: NodeProto | None = None) -> str:
    """Return in words where a tensor of the expected graph is: by the nearest layer that it depends on, or is used by.

    Args:
        expected: The expected graph.
        graph: The same, indexed.
        name: The tensor.
        user: A node that uses it.
    """
    if name in graph.initializers and user is not None:
        return f" as input {list(user.input).index(name) + 1} of {user.op_type}{place(expected, graph, user.output[0])}"
    seen, todo = {name}, deque([name])
    while todo:
        node = graph.producer(todo.popleft())
        if node is None:
            continue
        if node.name.startswith(PREPROCESSING_PREFIX):
            return f" in the preprocessing, {node.output[0].removeprefix(PREPROCESSING_PREFIX)}"
        if node.name in expected.layer_of:
            return f" {'of' if node.output[0] == name else 'after'} {expected.layer_of[node.name]}"
        new = [each for each in node.input if each not in seen]
        seen.update(new)
        todo.extend(new)
    return place(expected, graph, user.output[0]) if user is not None else ""


def _compare_frames(expected: onnx.ModelProto, file: onnx.ModelProto) -> None:
    """Compare all of two models but their nodes and constants."""
    versions, opsets = opset_versions(file), opset_versions(expected)
    if versions != opsets:
        raise DifferenceError(f"its opset is {', '.join(map(str, versions[:9])) or 'unknown'}, expected {opsets[0]}")
    if file.ir_version not in (expected.ir_version, IR_OF_0_1):  # a runtime refuses one that it does not know
        raise DifferenceError(f"its IR version is {file.ir_version}, expected {expected.ir_version}")
    graph = file.graph
    for part, size in (
        ("functions", len(file.functions)),
        ("training info", len(file.training_info)),
        ("sparse constants", len(graph.sparse_initializer)),
        ("quantization annotations", len(graph.quantization_annotation)),
    ):
        if size:
            raise DifferenceError(f"it has {part}, expected none")
    for what, actual, target in (
        ("input", graph.input, expected.graph.input),
        ("output", graph.output, expected.graph.output),
    ):
        if len(actual) != len(target):
            raise DifferenceError(f"it has {len(actual)} {what}s, expected {len(target)}")
        for value, other in zip(actual, target, strict=True):
            if (value.name, signature(value)) != (other.name, signature(other)):
                raise DifferenceError(
                    f"{what} {quote(value.name)} is {signature(value)}, expected {other.name} {signature(other)}"
                )


def signature(value: onnx.ValueInfoProto) -> str:
    """Return type and shape of an input or output: 'FLOAT batch x 10'."""
    tensor = value.type.tensor_type
    if value.type.WhichOneof("value") != "tensor_type" or not tensor.HasField("shape"):
        return "of unknown shape"
    kinds = TensorProto.DataType
    kind = kinds.Name(tensor.elem_type) if tensor.elem_type in kinds.values() else "unknown"
    sides = [quote(dim.dim_param) if dim.dim_param else str(dim.dim_value) for dim in tensor.shape.dim[:SHOWN]]
    return f"{kind} {' x '.join(sides)}"


def _before_casts(graph: IndexedGraph, name: str, nodes: set[int]) -> str:
    """Return the tensor that casts between fp32 and fp16 start from, and add them to the nodes that are expected."""
    for _ in range(MAX_CASTS):
        node = graph.producer(name)
        if node is None or node.op_type != "Cast" or attributes(node).get("to") not in FLOATS:
            break
        nodes.add(graph.producers[name][0])
        name = node.input[0]
    return name


def _compare_nodes(
    expected: ExpectedGraph, graph: IndexedGraph, node: NodeProto, actual: NodeProto, index: int
) -> None:
    """Compare two nodes of the same operator, but for what their inputs are."""
    where = place(expected, graph, node.output[0])
    opset = opset_versions(expected.model)[0]
    if actual.domain not in STANDARD_DOMAINS or actual.overload:
        raise DifferenceError(
            f"node {index} is {quote(actual.op_type)} of {quote(actual.domain)}, expected ONNX's{where}"
        )
    # What is said of precision is of the nodes whose names do not say that they preprocess.
    if actual.name.startswith(PREPROCESSING_PREFIX) != node.name.startswith(PREPROCESSING_PREFIX):
        raise DifferenceError(f"node {index}, {node.op_type}{where}, is called {quote(actual.name)}")
    mine, other = attributes(node, opset), attributes(actual, opset)
    for name in sorted(mine.keys() | other.keys()):
        if mine.get(name) != other.get(name):
            value, target = (str(each.get(name, "missing"))[:SHOWN] for each in (other, mine))
            raise DifferenceError(
                f"{quote(name)} of {node.op_type}{where} is {value}, expected {target} (node {index})"
            )
    sizes = [(len(_trim(each.input)), len(_trim(each.output))) for each in (actual, node)]
    if sizes[0] == (2, 1) and sizes[1] == (3, 1) and node.op_type in WEIGHTED:
        return  # without its bias, which the exporter leaves out if it is 0
    if sizes[0] != sizes[1] or any(bool(a) != bool(b) for a, b in zip(node.input, actual.input, strict=False)):
        (inputs, outputs), (wanted_inputs, wanted_outputs) = sizes
        raise DifferenceError(
            f"node {index}, {node.op_type}{where}, has {inputs} inputs and {outputs} outputs, "
            f"expected {wanted_inputs} and {wanted_outputs}"
        )


def attributes(node: NodeProto, opset: int | None = None) -> dict[str, Any]:
    """Return the attributes of a node, with the defaults of its operator if an opset is given.

    Raises:
        DifferenceError: One is given twice.
    """
    values = {each.name: _value(each) for each in node.attribute}
    if len(values) != len(node.attribute):
        raise DifferenceError(f"a node {quote(node.op_type)} has an attribute twice")
    if opset is not None:
        known = onnx.defs.get_schema(node.op_type, opset).attributes
        defaults = {name: each.default_value for name, each in known.items()}
        values = {n: _value(d) for n, d in defaults.items() if d.type != AttributeProto.UNDEFINED} | values
    return values


def _value(attribute: AttributeProto) -> Any:
    if attribute.ref_attr_name:
        return "a reference"
    kinds = AttributeProto
    if attribute.type in (kinds.INTS, kinds.FLOATS, kinds.STRINGS, kinds.INT, kinds.FLOAT, kinds.STRING):
        value = onnx.helper.get_attribute_value(attribute)
        return list(value) if attribute.type in (kinds.INTS, kinds.FLOATS, kinds.STRINGS) else value
    return attribute.SerializeToString(deterministic=True)


def _trim(names: Any) -> list[str]:
    """Return names without the empty ones at their end, which mean that an input or output is not there."""
    trimmed = list(names)
    while trimmed and not trimmed[-1]:
        trimmed.pop()
    return trimmed


def _compare_constants(
    expected: ExpectedGraph,
    graph: IndexedGraph,
    file: IndexedGraph,
    name: str,
    other: str,
    user: NodeProto | None,
    free: bool,
    half: bool,
) -> None:
    """Compare an input or a constant with the file's: if it is free, only its type and shape."""
    where = place(expected, graph, name, user)
    if name in graph.inputs:
        if name != other:
            raise DifferenceError(f"{file.describe(other)}, expected the input {name}")
        return
    mine, actual = graph.initializers[name], file.initializers.get(other)
    if actual is None:
        raise DifferenceError(f"{file.describe(other)}, expected a constant{where}")
    types = FLOATS if half and free and mine.data_type in FLOATS else (mine.data_type,)
    if actual.data_type not in types or list(actual.dims) != list(mine.dims):
        raise DifferenceError(f"the constant{where} is {_kind(actual)}, expected {_kind(mine)}")
    if free:
        return
    value, target = numpy_helper.to_array(actual), numpy_helper.to_array(mine)
    if value.tobytes() != target.tobytes():
        texts = [np.array2string(np.ravel(each)[:8], separator=", ")[:SHOWN] for each in (value, target)]
        raise DifferenceError(f"the constant{where} is {texts[0]}, expected {texts[1]}")


def _kind(tensor: TensorProto) -> str:
    kinds = TensorProto.DataType
    name = kinds.Name(tensor.data_type) if tensor.data_type in kinds.values() else "unknown"
    return f"{name} {' x '.join(map(str, tensor.dims[:SHOWN])) or 'scalar'}"


def _refuse_leftovers(graph: IndexedGraph, nodes: set[int], used: set[str]) -> None:
    for index, node in enumerate(graph.nodes):
        if index not in nodes:
            raise DifferenceError(f"node {index}, {quote(node.op_type)}, is left over: no export has it")
    for name in graph.initializers:
        if name not in used:
            raise DifferenceError(f"the constant {quote(name)} is left over: no export has it")
