"""A checkpoint as an ONNX graph: BatchNorm folded, any batch size, all it needs to be used inside."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

import resnet_ops
from resnet_ops import files
from resnet_ops.errors import WORK_FAILED, UserError
from resnet_ops.export.metadata import IMAGES, Input, ModelMetadata, Precision, Preprocessing
from resnet_ops.export.runtime import PREPROCESSING
from resnet_ops.training.checkpoint import CheckpointInfo

NORMALIZED, LOGITS, PROBABILITIES = "normalized", "logits", "probabilities"
PIXELS = PREPROCESSING + "pixels"  # resized and cut, (batch, C, H, W) uint8
ONE_FILE_BYTES = 2**31 - 2**27  # protobuf's limit is 2 GiB; the rest is for all but weights


def to_onnx(info: CheckpointInfo, weights: dict[str, torch.Tensor], opset: int) -> onnx.ModelProto:
    """Export a network.

    Its input `images` is (batch, C, H, W) float32, normalised; its output `logits` is (batch, classes) float32.
    The same weights give the same bytes, from whatever folder.

    Raises:
        UserError: The exporter made another opset than the one asked for, which it does in
            silence where it cannot convert.
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
            opset_version=opset,
            input_names=[IMAGES],
            output_names=[LOGITS],
            dynamic_shapes=({0: "batch"},),
            external_data=False,
        )
    assert program is not None
    model = program.model_proto
    made = {entry.domain: entry.version for entry in model.opset_import}.get("", 0)
    if made != opset:
        raise UserError(f"The exporter produced opset {made} instead of {opset}.", "Try another --opset.", WORK_FAILED)
    _forget_sources(model)
    return model


def take_raw_pixels(model: onnx.ModelProto, steps: Preprocessing) -> None:
    """Put before a graph what makes its input of raw pixels: `images` becomes (batch, height, width, C) uint8.

    Of any size: resized as little as makes them cover `steps.resize`, antialiased bilinear, cut from the centre,
    normalised. Sizes and offsets are computed as `resnet_ops.data.decode` does, in float64.
    """
    graph = model.graph
    for node in graph.node:
        node.input[:] = [NORMALIZED if name == IMAGES else name for name in node.input]
    nodes: list[onnx.NodeProto] = []

    def constant(name: str, value: np.ndarray) -> str:
        graph.initializer.append(numpy_helper.from_array(value, PREPROCESSING + name))
        return PREPROCESSING + name

    def add(operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        output = output if output == NORMALIZED else PREPROCESSING + output
        nodes.append(
            helper.make_node(operator, inputs, [output], name=f"{PREPROCESSING}{operator}_{len(nodes)}", **attributes)
        )
        return output

    floats = TensorProto.DOUBLE
    cover = constant("cover", np.array(steps.resize, np.int64))
    cut = constant("cut", np.array([steps.height, steps.width], np.int64))
    inner = constant("inner", np.array(steps.cut, np.int64))  # cut to `resize` first, then to the network's size
    half = constant("half", np.array(0.5, np.float64))
    upright = add("Transpose", [IMAGES], "upright", perm=[0, 3, 1, 2])
    size = add("Shape", [upright], "size", start=2, end=4)
    outer = add("Shape", [upright], "outer", start=0, end=2)
    exact = add("Cast", [size], "size_exact", to=floats)
    ratios = add("Div", [add("Cast", [cover], "cover_exact", to=floats), exact], "ratios")
    scale = add("ReduceMax", [ratios], "scale", keepdims=0)
    scaled = add("Cast", [add("Mul", [exact, scale], "scaled_exact")], "scaled", to=TensorProto.INT64)
    wanted = add("Max", [cover, scaled], "wanted")
    sizes = add("Concat", [outer, wanted], "sizes", axis=0)
    # exclude_outside: at the borders as Pillow and torch do; otherwise up to 15 of 255 off there.
    resized = add("Resize", [upright, "", "", sizes], "resized", mode="linear", antialias=1, exclude_outside=1)
    spare = add("Cast", [add("Sub", [wanted, cover], "spare")], "spare_exact", to=floats)
    before = add("Round", [add("Mul", [spare, half], "half_spare")], "before_exact")
    start = add("Add", [add("Cast", [before], "before", to=TensorProto.INT64), inner], "start")
    end = add("Add", [start, cut], "end")
    axes = constant("axes", np.array([2, 3], np.int64))
    pixels = add("Slice", [resized, start, end, axes], "pixels")
    assert pixels == PIXELS
    x = add("Cast", [pixels], "floats", to=TensorProto.FLOAT)
    shift, deviation = (
        constant(name, np.asarray(values, np.float32).reshape(1, -1, 1, 1) * np.float32(255))
        for name, values in (("mean", steps.mean), ("std", steps.std))
    )
    add("Div", [add("Sub", [x, shift], "centred"), deviation], NORMALIZED)
    others = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *others])
    del graph.input[:]
    shape: list[str | int | None] = ["batch", "height", "width", steps.channels]
    graph.input.append(helper.make_tensor_value_info(IMAGES, TensorProto.UINT8, shape))
    kept = [value for value in graph.value_info if value.name != IMAGES]
    del graph.value_info[:]
    graph.value_info.extend(kept)


def give_probabilities(model: onnx.ModelProto) -> None:
    """Put a softmax after a graph, whose output becomes `probabilities`."""
    graph = model.graph
    graph.node.append(helper.make_node("Softmax", [LOGITS], [PROBABILITIES], name="softmax", axis=1))
    (output,) = graph.output
    graph.value_info.append(helper.make_value_info(LOGITS, output.type))
    output.name = PROBABILITIES


def describe(model: onnx.ModelProto, metadata: ModelMetadata) -> None:
    """Write into a graph what it says of itself."""
    helper.set_model_props(model, metadata.written())


def made_by() -> str:
    """The versions that shape a file."""
    return f"resnet-ops {resnet_ops.__version__}, torch {torch.__version__}, onnx {onnx.__version__}"


def write(model: onnx.ModelProto, path: Path) -> None:
    """Write a graph, the same way every time: one file, or beyond 2 GB its weights in `NAME.onnx.data` beside it.

    Raises:
        PausedError: The disk is full.
    """
    if model.ByteSize() > ONE_FILE_BYTES:
        weights = path.with_name(data_name(path))
        files.remove(weights)
        onnx.external_data_helper.convert_model_to_external_data(
            model, all_tensors_to_one_file=True, location=weights.name, size_threshold=1024
        )
        onnx.save(model, str(path))
        files.sync(weights)
        files.sync(path)
        return
    files.write_atomically(path, bytes(model.SerializeToString(deterministic=True)))


def file_name(precision: Precision, given: Input) -> str:
    """What an export is called: model.onnx, model-int8-raw.onnx."""
    parts = ["model", *([precision] if precision != "fp32" else []), *([given] if given != "normalized" else [])]
    return "-".join(parts) + ".onnx"


def data_name(path: Path) -> str:
    """What the file of weights is called that lies beside one of more than 2 GB."""
    return path.name + ".data"


def added(metadata: dict[str, str]) -> bytes:
    """What, put behind a file's bytes, gives it more metadata and changes nothing before: protobuf messages add up."""
    model = onnx.ModelProto()
    for key, value in metadata.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    return bytes(model.SerializeToString(deterministic=True))


def _forget_sources(model: onnx.ModelProto) -> None:
    """Take out the exporter's notes: they hold stack traces with paths of this machine."""
    graph = model.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
    for node in graph.node:
        node.doc_string = ""
