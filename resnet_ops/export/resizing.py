"""The part of an ONNX graph that resizes and crops images as Pillow does, by matrix products with triangular weights.

Not by ONNX's `Resize`: ONNX Runtime on CUDA, OpenVINO and OpenCV each compute that differently. The weights follow from
the size of the images, which the graph reads. As in Pillow, columns are resized before rows, weights are multiples of
2^-22, and both results are rounded to whole levels.
"""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from resnet_ops.export.metadata import Preprocessing

BLOCK = 32  # pixels of the crop that are computed at a time, along each axis: 64 take 1.3 times as long, all 3 times
BITS = 11  # of each of the two parts of a weight: TF32 has no more


class GraphBuilder:
    """Nodes and constants that are added to a graph, in order, with one prefix to their names."""

    def __init__(self, graph: onnx.GraphProto, prefix: str) -> None:
        self.graph, self.prefix = graph, prefix
        self.nodes: list[onnx.NodeProto] = []

    def constant(self, name: str, value: Any, dtype: type[np.generic] = np.int64) -> str:
        """Add a constant, and return its name."""
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(value, dtype), self.prefix + name))
        return self.prefix + name

    def add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Add a node, and return the name of its output."""
        return self.add_several(operator, inputs, [output], **attributes)[0]

    def add_several(self, operator: str, inputs: list[str], outputs: list[str], **attributes: Any) -> list[str]:
        """Add a node, and return the names of its outputs."""
        name = f"{self.prefix}{operator}_{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(operator, inputs, [self.prefix + o for o in outputs], name=name, **attributes)
        )
        return list(self.nodes[-1].output)

    def cast(self, value: str, output: str, dtype: int = TensorProto.FLOAT) -> str:
        """Add a cast, by default to float32."""
        return self.add("Cast", [value], output, to=dtype)


class Resizing:
    """Adds nodes that resize images (N, H, W, C) uint8 as little as makes them cover `steps.resize`, and crop them.

    Of S pixels that become R, pixel j is centered at (2j + 1) R of 2 R S, and pixel i of R at (2i + 1) S. So positions
    are integers, as not every runtime computes float64 as such; OpenVINO has 32 bits for them.

    Args:
        builder: Where nodes are added.
        images: The name of the images.
        steps: The sizes.
    """

    def __init__(self, builder: GraphBuilder, images: str, steps: Preprocessing) -> None:
        self.builder, self.images, self.steps = builder, images, steps
        add, constant = builder.add, builder.constant
        self.one = one = constant("one", 1)
        self.scale = constant("scale", 2**BITS, np.float32)
        self.unscale = constant("unscale", 2.0**-BITS, np.float32)
        self.half_level = constant("half_level", 0.5, np.float32)
        # Vectors of height and width.
        self.size = size = add("Gather", [add("Shape", [images], "shape"), constant("sides", [1, 2])], "size")
        other = add("Gather", [size, constant("exchanged", [1, 0])], "other_size")
        product = add("Mul", [size, constant("other_cover", steps.resize[::-1])], "scaled_by_other")
        cover = constant("cover", steps.resize)
        resized = add("Max", [cover, add("Div", [product, other], "scaled")], "wanted")
        spare = builder.cast(add("Sub", [resized, cover], "spare"), "spare_exact")
        before = add("Round", [add("Mul", [spare, constant("half", 0.5, np.float32)], "half_spare")], "before_exact")
        # Cropped to `resize` first, then to the network's size.
        inner = constant("inner", steps.crop_offset)
        start = add("Add", [builder.cast(before, "before", TensorProto.INT64), inner], "start")
        self.step, self.double_size = add("Add", [resized, resized], "step"), add("Add", [size, size], "double_size")
        self.reach = add("Max", [self.step, self.double_size], "reach")
        odd = add("Add", [add("Add", [start, start], "double_start"), one], "odd_start")
        self.first = add("Mul", [odd, size], "first")
        extent = add("Mul", [constant("to_last", [2 * steps.height - 2, 2 * steps.width - 2]), size], "extent")
        # The range of pixels that the crop depends on.
        self.low = add("Max", [self.lowest(self.first, self.reach, self.step, "from"), constant("zero", 0)], "low")
        above = self.highest(add("Add", [self.first, extent], "last"), self.reach, self.step, "to")
        self.high = add("Min", [above, size], "high")
        self.begin = add("Add", [add("Mul", [self.low, self.step], "low_begin"), resized], "begin")
        self.end = add("Mul", [self.high, self.step], "end")
        self.peak = builder.cast(self.reach, "reach_exact")

    def add(self, output: str) -> str:
        """Add all nodes, and return the name of the pixels (N, C, H, W), floats of 0 to 255."""
        add = self.builder.add
        axes = self.builder.constant("axes", [1, 2])
        x = add("Slice", [self.images, self.low, self.high, axes], "sliced")
        x = self.builder.cast(add("Transpose", [x], "upright", perm=[0, 3, 1, 2]), "floats")
        x = self.resize(x, "width", 1, self.steps.width, "columns")
        return self.resize(x, "height", 0, self.steps.height, output)

    def lowest(self, center: str, reach: str, step: str, name: str) -> str:
        """Add the lowest of the pixels, perhaps below 0, that pixels of the crop from `center` on depend on."""
        add = self.builder.add
        return add("Div", [add("Sub", [center, reach], f"{name}_edge"), step], f"{name}_pixel")

    def highest(self, center: str, reach: str, step: str, name: str) -> str:
        """Add the end of the pixels, perhaps beyond the last, that pixels of the crop up to `center` depend on."""
        add = self.builder.add
        return add(
            "Add", [add("Div", [add("Add", [center, reach], f"{name}_edge"), step], f"{name}_pixel"), self.one], name
        )

    def resize(self, x: str, axis: str, index: int, length: int, output: str) -> str:
        """Add the products with both parts of the weights, rounded half up to whole levels.

        A block of the crop depends on few pixels: most weights are 0, and their products are left out.
        """
        add, constant = self.builder.add, self.builder.constant
        parts = [self.weights(axis, index, length)]
        slices, lengths = [x], [min(BLOCK, length - done) for done in range(0, length, BLOCK)]
        if len(lengths) > 1:
            ranges = self.ranges(axis, index, lengths)
            of_image, of_weights = (
                constant(f"{axis}_of_image", [2 + index]),
                constant(f"{axis}_of_weights", [1 - index]),
            )
            counts = constant(f"{axis}_lengths", lengths)
            slices = [add("Slice", [x, *ends, of_image], f"{axis}_slice_{i}") for i, ends in enumerate(ranges)]
            upper, lower = (
                self.builder.add_several(
                    "Split", [part, counts], [f"{axis}_{name}_{i}" for i in range(len(lengths))], axis=index
                )
                for part, name in zip(parts[0], ("weights", "corrections"), strict=True)
            )
            parts = [
                (
                    add("Slice", [u, *ends, of_weights], f"{axis}_weights_of_{i}"),
                    add("Slice", [w, *ends, of_weights], f"{axis}_corrections_of_{i}"),
                )
                for i, (u, w, ends) in enumerate(zip(upper, lower, ranges, strict=True))
            ]
        sums: list[str] = []
        for number, name in enumerate(("whole", "carry")):
            products = [
                add("MatMul", [pixels, part[number]] if index else [part[number], pixels], f"{axis}_{name}_{i}")
                for i, (pixels, part) in enumerate(zip(slices, parts, strict=True))
            ]
            sums += products if len(products) == 1 else [add("Concat", products, f"{axis}_{name}", axis=2 + index)]
        carry = add("Mul", [add("Floor", [sums[1]], f"{axis}_carry_floor"), self.unscale], f"{axis}_carried")
        carry = add("Add", [carry, self.half_level], f"{axis}_carried_and_half")
        return add("Floor", [add("Add", [sums[0], carry], f"{axis}_sum")], output)

    def weights(self, axis: str, index: int, length: int) -> tuple[str, str]:
        """Add the weights of the pixels of an axis in each of the `length` pixels of the crop, in two parts.

        They are triangles around the centers of the latter, antialiased where the image becomes smaller, of sum 1. The
        first part has their upper 11 bits, and the second the lower 11, times 2^11: products with pixels, and their
        sums, are then exact even where a GPU computes in TF32. They are the right factor for columns, (W, length), and
        the left one for rows, (length, H).
        """
        add, constant, along = self.builder.add, self.builder.constant, 1 - index
        of = self.scalars(axis, index, begin=self.begin, end=self.end, peak=self.peak)
        pixels = add("Range", [of["begin"], of["end"], of["step"]], f"{axis}_pixels")
        pixels = add("Unsqueeze", [pixels, constant(f"{axis}_across", [index])], f"{axis}_pixel_centers")
        numbers = constant(f"{axis}_numbers", np.expand_dims(np.arange(length), along))
        double = add("Add", [of["size"], of["size"]], f"{axis}_double_size")
        centers = add("Add", [add("Mul", [numbers, double], f"{axis}_multiples"), of["first"]], f"{axis}_centers")
        distances = self.builder.cast(add("Sub", [pixels, centers], f"{axis}_offsets"), f"{axis}_offsets_exact")
        distances = add("Abs", [distances], f"{axis}_distances")
        triangles = add("Relu", [add("Sub", [of["peak"], distances], f"{axis}_heights")], f"{axis}_triangles")
        total = add("ReduceSum", [triangles, constant(f"{axis}_along", [along])], f"{axis}_total")
        scaled = add("Mul", [triangles, self.scale], f"{axis}_scaled")
        upper = add("Floor", [add("Div", [scaled, total], f"{axis}_shares")], f"{axis}_upper")
        rest = add("Sub", [scaled, add("Mul", [upper, total], f"{axis}_taken")], f"{axis}_rest")
        rest = add("Div", [add("Mul", [rest, self.scale], f"{axis}_rest_scaled"), total], f"{axis}_rest_shares")
        lower = add("Round", [rest], f"{axis}_lower")
        return (
            add("Mul", [upper, self.unscale], f"{axis}_weights"),
            add("Mul", [lower, self.unscale], f"{axis}_corrections"),
        )

    def ranges(self, axis: str, index: int, lengths: list[int]) -> list[tuple[str, str]]:
        """Add the first and the end of the pixels that each block of the crop depends on, of those of the crop."""
        add, constant = self.builder.add, self.builder.constant
        of = self.scalars(f"{axis}_block", index, reach=self.reach, low=self.low)
        starts = constant(f"{axis}_block_starts", 2 * np.cumsum([0, *lengths[:-1]]))
        extents = constant(f"{axis}_block_extents", 2 * np.array(lengths) - 2)
        firsts = add("Add", [add("Mul", [starts, of["size"]], f"{axis}_to_blocks"), of["first"]], f"{axis}_firsts")
        lasts = add("Add", [add("Mul", [extents, of["size"]], f"{axis}_in_blocks"), firsts], f"{axis}_lasts")
        lows = add("Max", [self.lowest(firsts, of["reach"], of["step"], f"{axis}_from"), of["low"]], f"{axis}_lows")
        ends = self.highest(lasts, of["reach"], of["step"], f"{axis}_to")  # a slice ends with the image at the latest
        lows, ends = (add("Sub", [v, of["low"]], f"{axis}_{n}") for v, n in ((lows, "begins"), (ends, "ends")))
        numbers = [constant(f"{axis}_block_{number}", [number]) for number in range(len(lengths))]
        return [
            (add("Gather", [lows, number], f"{axis}_begin_{i}"), add("Gather", [ends, number], f"{axis}_end_{i}"))
            for i, number in enumerate(numbers)
        ]

    def scalars(self, axis: str, index: int, **vectors: str) -> dict[str, str]:
        """Add what vectors, and those that are always needed, hold for one axis."""
        at = self.builder.constant(f"{axis}_index", index)
        vectors |= {"size": self.size, "first": self.first, "step": self.step}
        return {name: self.builder.add("Gather", [vector, at], f"{axis}_{name}") for name, vector in vectors.items()}
