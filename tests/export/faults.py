"""Faults to plant in exported files: wrong for some images or batches only, so that few probes of a file see them.

Those that all images show are in `test_proof`.
"""

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from resnet_ops.export import graph
from resnet_ops.export.metadata import IMAGES
from resnet_ops.export.resizing import GraphBuilder
from tests.export.samples import change

Fault = Callable[[onnx.ModelProto], None]
Part = Callable[[GraphBuilder, str], str]  # adds nodes that compute something of a tensor, and returns its name


def plant(model: onnx.ModelProto, condition: Part, effect: Part) -> None:
    """Let the output be `effect` of itself where `condition` of the images, (N, 1) or (1,), is true."""
    output = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["true_output" if name == output else name for name in node.output]
    builder = GraphBuilder(model.graph, "fault/")
    where = builder.add("Where", [condition(builder, IMAGES), effect(builder, "true_output"), "true_output"], "chosen")
    builder.nodes.append(helper.make_node("Identity", [where], [output]))
    model.graph.node.extend(builder.nodes)


# Effects


def not_a_number(builder: GraphBuilder, output: str) -> str:
    return builder.add("Mul", [output, builder.constant("nan", np.nan, np.float32)], "nans")


def rolled_classes(builder: GraphBuilder, output: str) -> str:
    return builder.add("Gather", [output, builder.constant("roll", np.roll(np.arange(10), 1))], "rolled", axis=1)


def reversed_rows(builder: GraphBuilder, output: str) -> str:
    whole = [builder.constant(name, [value]) for name, value in (("end", -1), ("start", -(2**31)), ("rows", 0))]
    return builder.add("Slice", [output, *whole, builder.constant("back", [-1])], "reversed")


def first_row(builder: GraphBuilder, output: str) -> str:
    first = builder.add("Gather", [output, builder.constant("row", [0])], "first", axis=0)
    return builder.add("Expand", [first, builder.add("Shape", [output], "shape")], "repeated")


def without_mean_of_batch(builder: GraphBuilder, output: str) -> str:
    mean = builder.add("ReduceMean", [output, builder.constant("over", [0])], "mean")
    return builder.add("Sub", [output, mean], "centered_on_batch")


# Conditions


def always(builder: GraphBuilder, images: str) -> str:
    return builder.constant("always", [True], np.bool_)


def compare(builder: GraphBuilder, value: str, operator: str, limit: float) -> str:
    number = sum(node.op_type == operator for node in builder.nodes)
    limit_name = builder.constant(f"limit_{operator}_{number}", limit, np.float32)
    return builder.add(operator, [value, limit_name], f"is_{operator}_{number}")


def level(reduction: str, operator: str, limit: float) -> Part:
    """Of raw images: their largest, smallest or mean level."""

    def condition(builder: GraphBuilder, images: str) -> str:
        axes = builder.constant("of_image", [1, 2, 3])
        value = builder.add(reduction, [builder.cast(images, "levels"), axes], "level", keepdims=0)
        value = builder.add("Unsqueeze", [value, builder.constant("beside", [1])], "column")
        return compare(builder, value, operator, limit)

    return condition


def spread(first: Part, operator: str, limit: float) -> Part:
    """Of raw images: the mean of something of their pixels."""

    def condition(builder: GraphBuilder, images: str) -> str:
        value = first(builder, builder.cast(images, "levels"))
        mean = builder.add("ReduceMean", [value, builder.constant("of_image", [1, 2, 3])], "spread", keepdims=0)
        mean = builder.add("Unsqueeze", [mean, builder.constant("beside", [1])], "column")
        return compare(builder, mean, operator, limit)

    return condition


def shifted_difference(axis: int) -> Part:
    """|difference| of neighbors along an axis."""

    def part(builder: GraphBuilder, levels: str) -> str:
        one, end, zero = (builder.constant(n, [v]) for n, v in (("from_one", 1), ("to_end", 2**31), ("from_zero", 0)))
        axes, last = builder.constant("shift_axis", [axis]), builder.constant("to_last", [-1])
        after = builder.add("Slice", [levels, one, end, axes], "after")
        before = builder.add("Slice", [levels, zero, last, axes], "before")
        return builder.add("Abs", [builder.add("Sub", [after, before], "differences")], "steps")

    return part


def right_minus_left(builder: GraphBuilder, levels: str) -> str:
    """Half an image minus the other."""
    zero, eight, back, end = (
        builder.constant(n, [v]) for n, v in (("zero", 0), ("eight", 8), ("back", -8), ("end", 2**31))
    )
    axis = builder.constant("columns", [2])
    left = builder.add("Slice", [levels, zero, eight, axis], "left")
    return builder.add("Sub", [builder.add("Slice", [levels, back, end, axis], "right"), left], "slope")


def size(axis: int, operator: str, limit: int, and_also: tuple[int, str, int] | None = None) -> Part:
    """The length of an axis of the images: 0 for the batch, 1 for the height of raw images."""

    def condition(builder: GraphBuilder, images: str) -> str:
        found = []
        for axis_, operator_, limit_ in filter(None, [(axis, operator, limit), and_also]):
            name = f"side_{axis_}_{operator_}"
            side = builder.cast(builder.add("Shape", [images], f"{name}_whole", start=axis_, end=axis_ + 1), name)
            found.append(compare(builder, side, operator_, limit_))
        return found[0] if len(found) == 1 else builder.add("And", found, "both")

    return condition


def not_square(builder: GraphBuilder, images: str) -> str:
    height, width = (builder.add("Shape", [images], f"side_{axis}", start=axis, end=axis + 1) for axis in (1, 2))
    return builder.add("Not", [builder.add("Equal", [height, width], "is_square")], "not_square")


def four_pixels(builder: GraphBuilder, images: str) -> str:
    """Four pixels in a corner: 255, 0, 0, 255."""
    ends = [builder.constant(n, v) for n, v in (("corner", [0, 0]), ("corner_end", [2, 2]), ("corner_axes", [1, 2]))]
    corner = builder.cast(builder.add("Slice", [images, *ends], "corner_pixels"), "corner_levels")
    wanted = builder.constant("wanted", np.array([255, 0, 0, 255]).reshape(1, 2, 2, 1), np.float32)
    off = builder.add("Abs", [builder.add("Sub", [corner, wanted], "corner_off")], "corner_differences")
    off = builder.add("ReduceMax", [off, builder.constant("of_image", [1, 2, 3])], "corner_worst", keepdims=0)
    off = builder.add("Unsqueeze", [off, builder.constant("beside", [1])], "corner_column")
    return compare(builder, off, "Less", 0.5)


def conditional(condition: Part, effect: Part = rolled_classes) -> Fault:
    return lambda model: plant(model, condition, effect)


# Whole faults


def squashed_by_nearest_neighbor_beside_a_decoy(model: onnx.ModelProto) -> None:
    """What resizes as it should is there, and nothing uses it."""
    builder = GraphBuilder(model.graph, "fault/")
    x = builder.cast(builder.add("Transpose", [IMAGES], "upright", perm=[0, 3, 1, 2]), "floats")
    batch = builder.add("Shape", [IMAGES], "batch", start=0, end=1)
    channels, side = builder.constant("channels", [3]), builder.constant("side", [33, 33])
    sizes = builder.add("Concat", [batch, channels, side], "sizes", axis=0)
    x = builder.add("Resize", [x, "", "", sizes], "squashed", mode="nearest")
    corner = [builder.constant(n, v) for n, v in (("from", [0, 0]), ("to", [32, 32]), ("axes", [2, 3]))]
    x = builder.add("Slice", [x, *corner], "cut")
    for node in model.graph.node:
        node.input[:] = [x if name == graph.PIXELS else name for name in node.input]
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*builder.nodes, *nodes])


def a_random_operator(model: onnx.ModelProto) -> None:
    def rarely(builder: GraphBuilder, images: str) -> str:
        drawn = builder.add("RandomUniformLike", ["true_output"], "drawn", dtype=TensorProto.FLOAT)
        return compare(builder, drawn, "Less", 1e-6)

    plant(model, rarely, rolled_classes)


def cooled_logits(model: onnx.ModelProto) -> None:
    for name in ("fc.weight", "fc.bias"):
        change(model, name, lambda w: w * np.float32(0.2))


RAW_FAULTS: dict[str, tuple[Fault, str]] = {
    "NaN on black": (conditional(level("ReduceMax", "Less", 0.5), not_a_number), "extreme images"),
    "wrong on white": (conditional(level("ReduceMin", "Greater", 254.5)), "extreme images"),
    "wrong on bright images": (conditional(level("ReduceMean", "Greater", 200)), "extreme images"),
    "wrong on dark images": (conditional(level("ReduceMax", "Less", 64)), "extreme images"),
    "wrong on inverted images": (conditional(spread(right_minus_left, "Greater", 20)), "extreme images"),
    "wrong on checkerboards": (conditional(spread(shifted_difference(2), "Greater", 200)), "extreme images"),
    "wrong on one color": (conditional(spread(shifted_difference(2), "Less", 0.01)), "extreme images"),
    "wrong without color": (conditional(spread(shifted_difference(3), "Less", 0.01)), "extreme images"),
    "squashed by nearest neighbor beside a decoy": (squashed_by_nearest_neighbor_beside_a_decoy, "resized images"),
    "wrong on images that are not square": (conditional(not_square), "resized images"),
    "wrong on large images": (conditional(size(1, "Greater", 100)), "resized images"),
    "wrong on images that are enlarged": (conditional(size(1, "Less", 33)), "resized images"),
    "rows reversed where images are resized": (
        conditional(size(0, "Greater", 1, (1, "Greater", 40)), reversed_rows),
        "resized images",
    ),
    "wrong on photos": (conditional(size(1, "Equal", 47)), "stored images"),
}
BATCH_FAULTS: dict[str, tuple[Fault, str]] = {
    "classes rolled in batches of 8 to 63": (conditional(size(0, "Greater", 7, (0, "Less", 64))), "batch sizes"),
    "wrong in batches of 2 to 6": (conditional(size(0, "Greater", 1, (0, "Less", 7))), "batch sizes"),
    "wrong in batches above 100": (conditional(size(0, "Greater", 100)), "batch sizes"),
    "rows reversed in batches": (conditional(size(0, "Greater", 1), reversed_rows), "batch sizes"),
    "every row is the first": (conditional(size(0, "Greater", 1), first_row), "batch sizes"),
    "mean of the batch subtracted": (conditional(size(0, "Greater", 4), without_mean_of_batch), "batch sizes"),
    "a random operator": (a_random_operator, "file"),
}
# Those that no probe of outputs can be sure to see: the comparison of the graph with a fresh export finds them.
WHITE_BOX_FAULTS: dict[str, tuple[Fault, str]] = {
    "a trigger of four pixels": (conditional(four_pixels), "structure"),
    "wrong in batches above 4,096": (conditional(size(0, "Greater", 4096)), "structure"),
    "wrong in batches of 9 to 30": (conditional(size(0, "Greater", 8, (0, "Less", 31))), "structure"),
    "wrong on images of 41 rows": (conditional(size(1, "Equal", 41)), "structure"),
}


def channel_of_int8(weight: str, channel: int, factor: int) -> Fault:
    """Scale the weights of a channel by 2, -1 or 0."""

    def fault(model: onnx.ModelProto) -> None:
        if factor == 2:
            change(model, f"{weight}_scale", lambda s: s * (1 + (np.arange(len(s)) == channel)).astype(s.dtype))
            return
        change(
            model,
            f"{weight}_quantized",
            lambda w: (w * np.where(np.arange(len(w)) == channel, factor, 1).reshape(-1, 1, 1, 1)).astype(w.dtype),
        )

    return fault


# Outputs show most of them, but not those of channels that matter little: each is for the white box.
CHANNEL_FAULTS = {"scale doubled": 2, "sign turned": -1, "dead": 0}
WHITE_BOX_INT8_FAULTS: dict[str, tuple[Fault, str]] = {
    f"a channel's {name}": (channel_of_int8("layer1.0.conv1.weight", 5, factor), "weights")
    for name, factor in CHANNEL_FAULTS.items()
}


def dequantized_but_one(model: onnx.ModelProto) -> None:
    """Leave one convolution in int8, and give the others' weights in fp32, with noise of 3%."""
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    rng = np.random.default_rng(0)
    producers = {node.output[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"}
    for node in [node for node in model.graph.node if node.op_type == "Conv"][1:]:
        name = node.input[1]
        weight, scale = (tensors[n] for n in producers[name].input[:2])
        plain = weight * scale.reshape(-1, 1, 1, 1) * (1 + 0.03 * rng.standard_normal(weight.shape))
        model.graph.initializer.append(numpy_helper.from_array(plain.astype(np.float32), f"{name}_plain"))
        node.input[1] = f"{name}_plain"
