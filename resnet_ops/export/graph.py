"""ONNX graphs: made of checkpoints, extended by preprocessing and softmax, given metadata, and written to files.

Lower precisions are in `precision`, checks of the result in `proof`.
"""

import math
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

import resnet_ops
from resnet_ops import files
from resnet_ops.errors import WORK_FAILED, UserError
from resnet_ops.export.metadata import IMAGES, Input, ModelMetadata, Precision, Preprocessing
from resnet_ops.export.resizing import GraphBuilder, Resizing
from resnet_ops.training.checkpoint import CheckpointInfo

NORMALIZED, LOGITS, PROBABILITIES = "normalized", "logits", "probabilities"
PREPROCESSING_PREFIX = "preprocess/"  # of the names of nodes that preprocess raw pixels
PIXELS = PREPROCESSING_PREFIX + "pixels"  # resized and cropped, (batch, C, H, W), whole levels of 0 to 255
OLDEST_EXPORTED = 18  # opset, by torch 2.15, which writes 18 in silence where it is asked for less
ONE_FILE_BYTES = 2**31 - 2**27  # protobuf's limit is 2 GiB; the rest is for all but weights


def to_onnx(info: CheckpointInfo, weights: dict[str, torch.Tensor], opset: int) -> onnx.ModelProto:
    """Export a network, with BatchNorm folded and a dynamic batch size.

    Its input `images` is (batch, C, H, W) float32, normalized; its output `logits` is (batch, classes) float32.
    The same weights give the same bytes, in any folder. The IR version is the lowest that the opset allows, as runtimes
    refuse newer ones than theirs.

    Raises:
        UserError: The exporter produced another opset than the one asked for, which it does silently where it cannot
            convert.
    """
    network = info.build_network()
    network.load_state_dict(weights)
    network = network.float().to(memory_format=torch.contiguous_format).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about its own older parts
        program = torch.onnx.export(
            network,
            (torch.zeros(2, info.channels, info.height, info.width),),
            dynamo=True,
            verbose=False,  # otherwise it prints to stdout, and fails where that is ASCII
            opset_version=max(opset, OLDEST_EXPORTED),
            input_names=[IMAGES],
            output_names=[LOGITS],
            dynamic_shapes=({0: "batch"},),
            external_data=False,
        )
    assert program is not None
    model = program.model_proto
    produced = {entry.domain: entry.version for entry in model.opset_import}.get("", 0)
    if produced != max(opset, OLDEST_EXPORTED):
        raise UserError(
            f"The exporter produced opset {produced} instead of {opset}.", "Try another --opset.", WORK_FAILED
        )
    _strip_sources(model)
    if opset < produced:
        lower_opset(model, opset)
    model.ir_version = min(model.ir_version, helper.find_min_ir_version_for(model.opset_import))
    return model


def lower_opset(model: onnx.ModelProto, opset: int) -> None:
    """Rewrite a network's graph, as torch exports it, for an older opset, and check it against that.

    Not by `onnx.version_converter`, which lacks the way down of `Relu` (14) and `Pad` (18), though nothing that we use
    of them has changed. What has changed are inputs that were attributes, and attributes that are new.

    Raises:
        onnx.checker.ValidationError: It has something that the opset does not have.
    """
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.dims}
    for node in graph.node:
        if node.op_type == "ReduceMean":  # whose axes were an attribute until 18
            node.attribute.append(helper.make_attribute("axes", constants[node.input.pop()].tolist()))
        # Newer attributes have their defaults, or, as `allowzero` of shapes without a zero, no effect.
        known = onnx.defs.get_schema(node.op_type, opset).attributes
        kept = [attribute for attribute in node.attribute if attribute.name in known]
        del node.attribute[:]
        node.attribute.extend(kept)
    used = {name for node in graph.node for name in node.input}
    tensors = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:], model.opset_import[:]
    graph.initializer.extend(tensors)
    model.opset_import.append(helper.make_opsetid("", opset))
    onnx.checker.check_model(model, full_check=True)


def prepend_preprocessing(model: onnx.ModelProto, steps: Preprocessing) -> None:
    """Let a graph preprocess raw pixels: its input `images` becomes (batch, height, width, C) uint8 of any size.

    They are resized as little as makes them cover `steps.resize`, antialiased bilinear, cropped to the center and
    normalized.
    """
    graph = model.graph
    builder = GraphBuilder(graph, PREPROCESSING_PREFIX)
    pixels = Resizing(builder, IMAGES, steps).add(PIXELS.removeprefix(PREPROCESSING_PREFIX))
    mean, deviation = (
        builder.constant(name, np.asarray(values).reshape(1, -1, 1, 1) * 255, np.float32)
        for name, values in (("mean", steps.mean), ("std", steps.std))
    )
    normalized = builder.add("Div", [builder.add("Sub", [pixels, mean], "centred"), deviation], "normalized")
    network = list(graph.node)
    for node in network:
        node.input[:] = [normalized if name == IMAGES else name for name in node.input]
    del graph.node[:]
    graph.node.extend([*builder.nodes, *network])
    del graph.input[:]
    shape: list[str | int | None] = ["batch", "height", "width", steps.channels]
    graph.input.append(helper.make_tensor_value_info(IMAGES, TensorProto.UINT8, shape))
    value_info = [value for value in graph.value_info if value.name != IMAGES]
    del graph.value_info[:]
    graph.value_info.extend(value_info)


def append_softmax(model: onnx.ModelProto) -> None:
    """Append a softmax to a graph, whose output becomes `probabilities`."""
    graph = model.graph
    graph.node.append(helper.make_node("Softmax", [LOGITS], [PROBABILITIES], name="softmax", axis=1))
    (output,) = graph.output
    graph.value_info.append(helper.make_value_info(LOGITS, output.type))
    output.name = PROBABILITIES


def set_metadata(model: onnx.ModelProto, metadata: ModelMetadata) -> None:
    """Store metadata in a model."""
    helper.set_model_props(model, metadata.properties())


def tool_versions() -> str:
    """Return the versions of the packages that an exported file depends on."""
    return f"resnet-ops {resnet_ops.__version__}, torch {torch.__version__}, onnx {onnx.__version__}"


def write(model: onnx.ModelProto, path: Path) -> None:
    """Write a model deterministically: one file, or beyond 2 GB its weights in `NAME.onnx.data` beside it.

    Raises:
        PausedError: The disk is full.
    """
    if model.ByteSize() > ONE_FILE_BYTES:
        weights = path.with_name(external_data_name(path))
        files.remove(weights)
        onnx.external_data_helper.convert_model_to_external_data(
            model, all_tensors_to_one_file=True, location=weights.name, size_threshold=1024
        )
        onnx.save(model, str(path))
        files.sync(weights)
        files.sync(path)
        return
    files.write_atomically(path, bytes(model.SerializeToString(deterministic=True)))


def weight_bytes(model: onnx.ModelProto) -> int:
    """Return the size of a model's constants, wherever they are kept."""
    return sum(
        math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        for tensor in model.graph.initializer
    )


def with_inferred_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose types and shapes of values follow from its operators: those in a file are its own word."""
    inferred = onnx.ModelProto()
    inferred.CopyFrom(model)
    del inferred.graph.value_info[:]
    inferred.graph.value_info.extend(onnx.shape_inference.infer_shapes(inferred).graph.value_info)
    return inferred


def file_name(precision: Precision, input_format: Input) -> str:
    """Return the default name of an exported file: model.onnx, model-int8-raw.onnx."""
    return (
        "-".join(["model", *(part for part in (precision, input_format) if part not in ("fp32", NORMALIZED))]) + ".onnx"
    )


def external_data_name(path: Path) -> str:
    """Return the name of the file with the weights of a model of more than 2 GB."""
    return path.name + ".data"


def serialize_metadata(properties: dict[str, str]) -> bytes:
    """Return bytes that, appended to a file, add metadata properties to it: concatenated protobuf messages merge."""
    model = onnx.ModelProto()
    for key, value in properties.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    return bytes(model.SerializeToString(deterministic=True))


def _strip_sources(model: onnx.ModelProto) -> None:
    """Remove the exporter's notes, which contain stack traces with paths of this machine."""
    graph = model.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
    for node in graph.node:
        node.doc_string = ""
