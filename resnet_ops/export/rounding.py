"""Comparison of a file's numbers with those that follow from its checkpoint: do they differ by rounding alone?

Limits on weights follow from the arithmetic, not from the file: what fp32 or fp16 rounds by, or half a step of a scale
that itself is what quantization makes of the weights. The graph has been matched in `structure` before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import NodeProto, numpy_helper

from resnet_ops.export.expected_graph import WEIGHTED, ExpectedGraph
from resnet_ops.export.folding import FoldedLayer
from resnet_ops.export.structure import IndexedGraph, free_constants, place

# Folding into fp32, in whichever order, rounds half for the root of the variance and once for each quotient, product
# and sum: a weight by at most 4.5 x 2^-24 of it, a bias by 6.5 x 2^-24 of the sum of its terms, which may cancel.
# Measured 3.3 and 3.3, on six networks with variances from e^-9 to e^9.
FOLDED_WEIGHT, FOLDED_BIAS = 5 * 2.0**-24, 7 * 2.0**-24
WEIGHT_LEVELS = 64  # of int8 weights, on either side of 0: 7 bits
INT32_LEVELS = 2.0**32 - 2
STEP_SLACK = 1e-3  # steps: scales and quotients are rounded to fp32
SCALE_SLACK = 1e-5
BIAS_HEADROOM = 1.0001  # by which the quantizer makes steps larger than int32 biases need
FINEST = 100  # times a step of activations may be finer than that of their range on probes, which may be random pixels
ACTIVATION_LEVELS = {"u8s8": (0, 255), "s8s8 symmetric": (-127, 127)}
# Of the range on probe images, what a range that was calibrated on others must reach, and may reach. Measured with all
# methods and forms on three trained networks: calibrated on 512 images 0.83 to 1.17, on 32 images 0.65 to 1.02; with 8
# validation images to probe 2.2.
LEAST_RANGE, LARGEST_RANGE = 0.6, 3.0


@dataclass
class WeightComparison:
    """The weights of a file beside those of the checkpoint.

    Args:
        expected: The expected graph.
        pairs: For each of its tensors the file's.
        tensors: The file's constants, by name.
    """

    expected: ExpectedGraph
    pairs: Mapping[str, str]
    tensors: Mapping[str, onnx.TensorProto]
    faults: list[str] = field(default_factory=list)
    worst: float = 0.0
    compared: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.graph = IndexedGraph(self.expected.model)

    def value(self, name: str) -> np.ndarray | None:
        """Return the file's value of a constant of the expected graph; None if it has none."""
        self.compared.add(name)
        return numpy_helper.to_array(self.tensors[self.pairs[name]]) if name in self.pairs else None

    def known(self, name: str) -> np.ndarray:
        """Return the file's value of a constant that no file may leave out."""
        value = self.value(name)
        assert value is not None, f"there is no {name}"
        return value

    def run(self) -> None:
        """Compare all layers, and note what differs by more than rounding."""
        layers = {layer.name: layer for layer in self.expected.layers}
        for node in self.graph.nodes:
            if node.op_type in WEIGHTED and node.name in self.expected.layer_of:
                layer = layers.pop(self.expected.layer_of[node.name])
                dequantized = [self.graph.producer(name) for name in node.input]
                if dequantized[1] is None:
                    self.compare_floats(node, layer)
                else:
                    self.compare_quantized(dequantized, layer)
        missed = free_constants(self.graph) - self.compared - activation_parameters(self.graph)
        assert not layers, f"the weights of {next(iter(layers))} were not compared"
        assert not missed or self.faults, f"{next(iter(missed))} was not compared"

    def compare_floats(self, node: NodeProto, layer: FoldedLayer) -> None:
        """Compare weights and bias in fp32 or fp16."""
        for name, what, target, rounding in (
            (node.input[1], "weight", layer.weight, FOLDED_WEIGHT * np.abs(layer.weight)),
            (node.input[2], "bias", layer.bias, FOLDED_BIAS * layer.bias_terms),
        ):
            value = self.value(name)
            actual = np.zeros_like(target) if value is None else value
            limit = rounding + np.finfo(np.float32).tiny
            if actual.dtype == np.float16:
                limit = limit + half_rounding(target)
            self.compare(layer.name, what, actual.astype(np.float64), target, limit)

    def compare_quantized(self, dequantizing: Sequence[NodeProto | None], layer: FoldedLayer) -> None:
        """Compare quantized weights, their scales, and a bias.

        Args:
            dequantizing: The nodes of the expected graph that dequantize the layer's input, weight and bias.
            layer: The layer.
        """
        before, of_weight, of_bias = (list(node.input) if node is not None else [] for node in dequantizing)
        step_before = self.known(before[1]).astype(np.float64)
        quantized, scale, zero = (self.known(name) for name in of_weight)
        if zero.any():
            self.faults.append(f"{layer.name}: zero points of weights are not 0")
        across = tuple(range(1, layer.weight.ndim))
        # As ONNX Runtime's quantizer: 1 for a channel of zeros, more where the bias would not fit into 32 bits.
        steps = np.abs(layer.weight).max(axis=across) / WEIGHT_LEVELS
        steps[steps < np.finfo(np.float32).tiny] = 1
        # By the file's own step of activations alone, steps of weights could be of any size, and hide any weights.
        widest = max(map(abs, self.expected.ranges[before[1].removesuffix("_scale")]))
        finest = max(float(step_before), widest / ACTIVATION_LEVELS["u8s8"][1] / FINEST)
        steps = np.maximum(steps, BIAS_HEADROOM * 2 * np.abs(layer.bias) / INT32_LEVELS / finest)
        if not self.compare(layer.name, "scale", scale.astype(np.float64), steps, SCALE_SLACK * steps):
            return
        of_channel = steps.shape + (1,) * len(across)
        restored = quantized * scale.astype(np.float64).reshape(of_channel)
        limit = (0.5 + STEP_SLACK) * steps.reshape(of_channel) + FOLDED_WEIGHT * np.abs(layer.weight)
        self.compare(layer.name, "weight", restored, layer.weight, limit)
        bias, scale_of_bias, zero_of_bias = (self.value(name) for name in of_bias)
        restored = np.zeros_like(layer.bias)
        if bias is not None and scale_of_bias is not None and zero_of_bias is not None:
            if zero_of_bias.any():
                self.faults.append(f"{layer.name}: zero points of the bias are not 0")
            expected = steps * step_before
            actual = scale_of_bias.astype(np.float64)
            if not self.compare(layer.name, "scale of the bias", actual, expected, SCALE_SLACK * expected):
                return
            restored = bias * actual
        limit = (0.5 + STEP_SLACK) * steps * step_before + FOLDED_BIAS * layer.bias_terms
        self.compare(layer.name, "bias", restored, layer.bias, limit)

    def compare(self, layer: str, what: str, actual: np.ndarray, target: np.ndarray, limit: np.ndarray) -> bool:
        """Compare values, and note the worst that differ by more than the limit."""
        with np.errstate(invalid="ignore"):
            ratio = np.abs(actual - target) / limit
        ratio = np.where(np.isfinite(ratio), ratio, np.inf)
        worst = float(ratio.max(initial=0))
        if worst <= 1:
            self.worst = max(self.worst, worst)
            return True
        at = np.unravel_index(int(ratio.argmax()), ratio.shape)
        count = int((ratio > 1).sum())
        self.faults.append(
            f"{layer}: {what} of channel {at[0]} is {actual[at]:.6g}, expected {target[at]:.6g} "
            f"({count:,} of {ratio.size:,} differ)"
        )
        return False


def check_weights(expected: ExpectedGraph, pairs: Mapping[str, str], file: onnx.ModelProto) -> tuple[str, bool]:
    """Compare every weight and bias of a file with the checkpoint's.

    Args:
        expected: The expected graph.
        pairs: For each of its tensors the file's.
        file: The file's model, with its weights.

    Returns:
        What differs first, or how much of what rounding allows is used, and whether it passed.
    """
    comparison = WeightComparison(expected, pairs, {tensor.name: tensor for tensor in file.graph.initializer})
    comparison.run()
    if comparison.faults:
        more = len(comparison.faults) - 1
        return comparison.faults[0] + (f", and {more} more" if more else ""), False
    return f"{len(expected.layers)} layers, differences at most {comparison.worst:.2f} of the limit", True


def half_rounding(values: np.ndarray) -> np.ndarray:
    """Return half the distance between neighbors in fp16 at each value, whose smallest above 0 is kept above 0."""
    _, exponents = np.frexp(values)
    rounding: np.ndarray = np.maximum(np.exp2(exponents - 12.0), 2.0**-25)
    return np.where(np.abs(values) < 2.0**-24, 2.0**-24, rounding)


def activation_parameters(graph: IndexedGraph) -> set[str]:
    """Return the names of scales and zero points of activations."""
    return {name for node in graph.nodes if node.op_type == "QuantizeLinear" for name in node.input[1:]}


def check_ranges(
    expected: ExpectedGraph, pairs: Mapping[str, str], file: onnx.ModelProto, form: str
) -> tuple[str, bool]:
    """Compare the ranges of an int8 file's activations with those of the fp32 graph on the probe images.

    Returns:
        What differs first, or the smallest and largest ratio, and whether it passed.
    """
    tensors = {tensor.name: tensor for tensor in file.graph.initializer}
    graph = IndexedGraph(expected.model)
    ratios = list[float]()
    parameters = {tuple(n.input[1:]): n for n in graph.nodes if n.op_type == "QuantizeLinear"}
    for (scale_name, zero_name), node in parameters.items():
        scale, zero = (
            float(numpy_helper.to_array(tensors[pairs[name]]).astype(np.float64)) for name in (scale_name, zero_name)
        )
        tensor, where = scale_name.removesuffix("_scale"), place(expected, graph, node.input[0], node)
        if not (np.isfinite(scale) and scale > 0):
            return f"the scale of activations{where} is {scale:g}", False
        if zero and (form == "s8s8 symmetric" or tensor in expected.rectified):
            return f"the zero point of activations{where} is {zero:g}, expected 0", False
        low, high = ((level - zero) * scale for level in ACTIVATION_LEVELS[form])
        least, most = min(expected.ranges[tensor][0], 0.0), max(expected.ranges[tensor][1], 0.0)
        lost = 0.0 if tensor in expected.before_relu else least  # the quantizer leaves out what Relu would
        clipped = low - scale > LEAST_RANGE * lost or high + scale < LEAST_RANGE * most
        lowest, highest = min(expected.widest_ranges[tensor][0], 0.0), max(expected.widest_ranges[tensor][1], 0.0)
        extent = 2 * max(highest, -lowest) if form == "s8s8 symmetric" else highest - lowest
        if extent == 0:  # nothing passes there, whatever the range
            continue
        if clipped or not high - low <= LARGEST_RANGE * extent + 2 * scale:
            return (
                f"the range of activations{where} is {low:.3g} to {high:.3g}, on probe images it is "
                f"{least:.3g} to {most:.3g}",
                False,
            )
        ratios.append((high - low) / extent)
    return (
        f"{len(ratios)} ranges, {min(ratios, default=1):.2f} to {max(ratios, default=1):.2f} of those on probe images",
        True,
    )
