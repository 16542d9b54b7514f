"""ONNX graphs: made of checkpoints, extended by preprocessing and softmax, given metadata, and written to files.

Lower precisions are in `precision`, checks of the result in `proof`.
"""

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
from resnet_ops.export.runtime import PREPROCESSING_PREFIX
from resnet_ops.training.checkpoint import CheckpointInfo

NORMALIZED, LOGITS, PROBABILITIES = "normalized", "logits", "probabilities"
PIXELS = PREPROCESSING_PREFIX + "pixels"  # resized and cropped, (batch, C, H, W), whole levels of 0 to 255
BLOCK = 32  # pixels of the crop that are computed at a time, along each axis: 64 take 1.3 times as long, all 3 times
ONE_FILE_BYTES = 2**31 - 2**27  # protobuf's limit is 2 GiB; the rest is for all but weights


def to_onnx(info: CheckpointInfo, weights: dict[str, torch.Tensor], opset: int) -> onnx.ModelProto:
    """Export a network, with BatchNorm folded and a dynamic batch size.

    Its input `images` is (batch, C, H, W) float32, normalized; its output `logits` is (batch, classes) float32.
    The same weights give the same bytes, in any folder.

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
            opset_version=opset,
            input_names=[IMAGES],
            output_names=[LOGITS],
            dynamic_shapes=({0: "batch"},),
            external_data=False,
        )
    assert program is not None
    model = program.model_proto
    produced = {entry.domain: entry.version for entry in model.opset_import}.get("", 0)
    if produced != opset:
        raise UserError(
            f"The exporter produced opset {produced} instead of {opset}.", "Try another --opset.", WORK_FAILED
        )
    _strip_sources(model)
    return model


def prepend_preprocessing(model: onnx.ModelProto, steps: Preprocessing) -> None:
    """Let a graph preprocess raw pixels: its input `images` becomes (batch, height, width, C) uint8 of any size.

    They are resized as little as makes them cover `steps.resize`, antialiased bilinear, cropped to the center and
    normalized. Runtimes differ in how they implement ONNX's `Resize`, so the graph multiplies by matrices of weights
    instead, which it computes from the size of the images. As in Pillow, columns come before rows, weights are
    multiples of 2^-22, and both results are rounded to whole levels, so that the pixels are Pillow's.
    """
    graph = model.graph
    for node in graph.node:
        node.input[:] = [NORMALIZED if name == IMAGES else name for name in node.input]
    nodes: list[onnx.NodeProto] = []

    def constant(name: str, value: Any, dtype: type[np.generic] = np.int64) -> str:
        graph.initializer.append(numpy_helper.from_array(np.asarray(value, dtype), PREPROCESSING_PREFIX + name))
        return PREPROCESSING_PREFIX + name

    def add(operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        output = output if output == NORMALIZED else PREPROCESSING_PREFIX + output
        name = f"{PREPROCESSING_PREFIX}{operator}_{len(nodes)}"
        nodes.append(helper.make_node(operator, inputs, [output], name=name, **attributes))
        return output

    def to_float(value: str, output: str) -> str:
        return add("Cast", [value], output, to=TensorProto.FLOAT)

    # Vectors of height and width, all of integers: not every runtime computes float64 as such.
    one = constant("one", 1)
    size = add("Shape", [IMAGES], "size", start=1, end=3)
    other = add("Gather", [size, constant("exchanged", [1, 0])], "other_size")
    product = add("Mul", [size, constant("other_cover", steps.resize[::-1])], "scaled_by_other")
    cover = constant("cover", steps.resize)
    resized = add("Max", [cover, add("Div", [product, other], "scaled")], "wanted")
    spare = to_float(add("Sub", [resized, cover], "spare"), "spare_exact")
    before = add("Round", [add("Mul", [spare, constant("half", 0.5, np.float32)], "half_spare")], "before_exact")
    # Cropped to `resize` first, then to the network's size.
    inner = constant("inner", steps.crop_offset)
    start = add("Add", [add("Cast", [before], "before", to=TensorProto.INT64), inner], "start")
    # Of S pixels that become R, pixel j is centered at (2j + 1) R, and pixel i of R at (2i + 1) S.
    step, double_size = add("Add", [resized, resized], "step"), add("Add", [size, size], "double_size")
    reach = add("Max", [step, double_size], "reach")
    first = add("Mul", [add("Add", [add("Add", [start, start], "double_start"), one], "odd_start"), size], "first")
    extent = add("Mul", [constant("to_last", [2 * steps.height - 2, 2 * steps.width - 2]), size], "extent")
    last = add("Add", [first, extent], "last")
    # The range of pixels that the crop depends on.
    low = add("Div", [add("Sub", [first, reach], "low_edge"), step], "low_pixel")
    low = add("Max", [low, constant("zero", 0)], "low")
    high = add("Add", [add("Div", [add("Add", [last, reach], "high_edge"), step], "high_pixel"), one], "above")
    high = add("Min", [high, size], "high")
    begin = add("Add", [add("Mul", [low, step], "low_begin"), resized], "begin")
    end = add("Mul", [high, step], "end")
    peak = to_float(reach, "reach_exact")
    scale, unscale, half_level = (
        constant(name, value, np.float32)
        for name, value in (("scale", 2048), ("unscale", 1 / 2048), ("half_level", 0.5))
    )

    def weights(axis: str, index: int, length: int, along: int) -> tuple[str, str]:
        """Add the weights of the pixels of an axis in each of the `length` pixels of the crop, in two parts.

        They are triangles around the centers of the latter, antialiased where the image becomes smaller, of sum 1 along
        an axis of the matrix. The first part has their upper 11 bits and the second the lower 11, times 2048: products
        with pixels, and their sums, are then exact even where a GPU computes in TF32.
        """
        at = constant(f"{axis}_index", index)
        vectors = {"begin": begin, "end": end, "step": step, "size": double_size, "first": first, "peak": peak}
        of = {name: add("Gather", [vector, at], f"{axis}_{name}") for name, vector in vectors.items()}
        pixels = add("Range", [of["begin"], of["end"], of["step"]], f"{axis}_pixels")
        pixels = add("Unsqueeze", [pixels, constant(f"{axis}_across", [1 - along])], f"{axis}_pixel_centers")
        numbers = constant(f"{axis}_numbers", np.expand_dims(np.arange(length), along))
        centers = add("Add", [add("Mul", [numbers, of["size"]], f"{axis}_multiples"), of["first"]], f"{axis}_centers")
        offsets = to_float(add("Sub", [pixels, centers], f"{axis}_offsets"), f"{axis}_offsets_exact")
        distances = add("Abs", [offsets], f"{axis}_distances")
        triangles = add("Relu", [add("Sub", [of["peak"], distances], f"{axis}_heights")], f"{axis}_triangles")
        total = add("ReduceSum", [triangles, constant(f"{axis}_along", [along])], f"{axis}_total")
        scaled = add("Mul", [triangles, scale], f"{axis}_scaled")
        upper = add("Floor", [add("Div", [scaled, total], f"{axis}_shares")], f"{axis}_upper")
        rest = add("Sub", [scaled, add("Mul", [upper, total], f"{axis}_whole")], f"{axis}_rest")
        shares = add("Div", [add("Mul", [rest, scale], f"{axis}_rest_scaled"), total], f"{axis}_rest_shares")
        lower = add("Round", [shares], f"{axis}_lower")
        return add("Mul", [upper, unscale], f"{axis}_weights"), add("Mul", [lower, unscale], f"{axis}_corrections")

    def blocks(axis: str, index: int, lengths: list[int]) -> list[tuple[str, str]]:
        """Add the first and the last of the pixels, of those of the crop, that each block of its pixels depends on."""
        at = constant(f"{axis}_block_index", index)
        vectors = {"size": size, "first": first, "reach": reach, "step": step, "low": low}
        of = {name: add("Gather", [vector, at], f"{axis}_block_{name}") for name, vector in vectors.items()}
        offsets = constant(f"{axis}_block_offsets", 2 * np.cumsum([0, *lengths[:-1]]))
        firsts = add("Add", [add("Mul", [offsets, of["size"]], f"{axis}_block_starts"), of["first"]], f"{axis}_firsts")
        extents = constant(f"{axis}_block_extents", 2 * np.array(lengths) - 2)
        lasts = add("Add", [firsts, add("Mul", [extents, of["size"]], f"{axis}_block_sizes")], f"{axis}_lasts")
        lows = add("Div", [add("Sub", [firsts, of["reach"]], f"{axis}_low_edges"), of["step"]], f"{axis}_low_pixels")
        lows = add("Sub", [add("Max", [lows, of["low"]], f"{axis}_lows"), of["low"]], f"{axis}_begins")
        highs = add("Div", [add("Add", [lasts, of["reach"]], f"{axis}_high_edges"), of["step"]], f"{axis}_high_pixels")
        highs = add("Sub", [add("Add", [highs, one], f"{axis}_highs"), of["low"]], f"{axis}_ends")
        numbers = [constant(f"{axis}_block_{number}", [number]) for number in range(len(lengths))]
        return [
            (add("Gather", [lows, n], f"{axis}_begin_{i}"), add("Gather", [highs, n], f"{axis}_end_{i}"))
            for i, n in enumerate(numbers)
        ]

    def resize(x: str, axis: str, index: int, length: int, output: str) -> str:
        """Add the products with both parts of the weights, rounded half up to whole levels.

        A block of the crop depends on few pixels: most weights are 0, and their products are left out.
        """
        along = 1 - index  # of the matrices: they are the right factor for columns, the left one for rows
        parts = weights(axis, index, length, along)
        lengths = [min(BLOCK, length - done) for done in range(0, length, BLOCK)]
        if len(lengths) == 1:
            whole, carry = (
                add("MatMul", [x, w] if index else [w, x], f"{w.removeprefix(PREPROCESSING_PREFIX)}_sums")
                for w in parts
            )
        else:
            ranges = blocks(axis, index, lengths)
            pixel_axis, weight_axis = (
                constant(f"{axis}_pixel_axis", [2 + index]),
                constant(f"{axis}_weight_axis", [along]),
            )
            slices = [add("Slice", [x, *ends, pixel_axis], f"{axis}_slice_{i}") for i, ends in enumerate(ranges)]
            sums = []
            for part in parts:
                name = part.removeprefix(PREPROCESSING_PREFIX)
                split = [f"{part}_split_{i}" for i in range(len(lengths))]
                nodes.append(
                    helper.make_node(
                        "Split",
                        [part, constant(f"{name}_lengths", lengths)],
                        split,
                        name=f"{PREPROCESSING_PREFIX}Split_{len(nodes)}",
                        axis=index,
                    )
                )
                products = []
                for i, (piece, w, ends) in enumerate(zip(slices, split, ranges, strict=True)):
                    w = add("Slice", [w, *ends, weight_axis], f"{name}_{i}")
                    products.append(add("MatMul", [piece, w] if index else [w, piece], f"{name}_sums_{i}"))
                sums.append(add("Concat", products, f"{name}_sums", axis=2 + index))
            whole, carry = sums
        carry = add("Mul", [add("Floor", [carry], f"{axis}_carry"), unscale], f"{axis}_carried")
        carry = add("Add", [carry, half_level], f"{axis}_carried_and_half")
        return add("Floor", [add("Add", [whole, carry], f"{axis}_sum")], output)

    x = add("Slice", [IMAGES, low, high, constant("axes", [1, 2])], "sliced")
    x = to_float(add("Transpose", [x], "upright", perm=[0, 3, 1, 2]), "floats")
    x = resize(x, "width", 1, steps.width, "columns")
    pixels = resize(x, "height", 0, steps.height, "pixels")
    assert pixels == PIXELS
    mean, deviation = (
        constant(name, np.asarray(values).reshape(1, -1, 1, 1) * 255, np.float32)
        for name, values in (("mean", steps.mean), ("std", steps.std))
    )
    add("Div", [add("Sub", [pixels, mean], "centred"), deviation], NORMALIZED)
    network = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *network])
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
