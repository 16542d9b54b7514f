"""The checks of a file that need no run: its graph is an export of its network, its numbers are its checkpoint's.

What is expected is built in `expected_graph`; the comparisons are in `structure` and `rounding`. Outputs, and what may
be wrong with them though all of this is right, are checked in `proof`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx
from pydantic import ValidationError

from resnet_ops.architectures import parse_name
from resnet_ops.errors import UserError
from resnet_ops.export import black_box, budget, expected_graph, graph, precision, runtime, structure
from resnet_ops.export.classifier import normalize_pixels, softmax
from resnet_ops.export.expected_graph import OPSETS, WEIGHTED, ExpectedGraph, FreshExport
from resnet_ops.export.folding import fold
from resnet_ops.export.inputs import ValidationImages, random_pixels
from resnet_ops.export.metadata import IMAGES, ModelMetadata, Output, Preprocessing, QuantizationError
from resnet_ops.export.rounding import check_ranges, check_weights
from resnet_ops.export.structure import DifferenceError
from resnet_ops.export.tolerances import Comparison, allowed_flips, comparable
from resnet_ops.training.checkpoint import Checkpoint, CheckpointInfo

FEWEST_PROBES, MOST_PROBES, RANDOM_PROBES = 64, 512, 32
RECORDED_FACTOR = 3.0  # between the error that a file records and that of a fresh quantization, on other images
RECORDED_LARGEST = 8.0  # between the largest of both, which single images decide
RESULT_LENGTH = 300  # characters


@dataclass(frozen=True)
class WhiteBox:
    """A file beside what it should be.

    Args:
        model: The file's model, with its weights.
        metadata: Its metadata; what they say of its network is used only if there is no checkpoint.
        checkpoint: The checkpoint that it was exported from.
        images: Images to measure the ranges of values with; without them these are random pixels.
        exported: The network as exported to fp32, where it is at hand; by default it is exported again.
    """

    model: onnx.ModelProto
    metadata: ModelMetadata
    checkpoint: Checkpoint | None
    images: ValidationImages | None = None
    exported: onnx.ModelProto | None = None

    def check_structure(self) -> tuple[str, bool]:
        """Check that the whole graph is that of an export of its network."""
        try:
            _ = self.pairs
        except DifferenceError as difference:
            made_by, tools = self.metadata.made_by, graph.tool_versions()
            other = "" if made_by == tools else f"; the file says {structure.quote(made_by)}"
            return f"{str(difference)[:RESULT_LENGTH]} (compared with an export by {tools}{other})", False
        return f"all {len(self.model.graph.node):,} nodes as a fresh export of {self.info.model} has them", True

    def check_weights(self) -> tuple[str, bool]:
        """Check that all weights are those of the checkpoint, but for rounding."""
        try:
            return check_weights(self.expected, self.pairs, self.model)
        except DifferenceError:
            return "not compared, as the structure differs", False

    def check_ranges(self) -> tuple[str, bool]:
        """Check that the ranges of quantized activations are those that the network has."""
        assert self.form is not None
        try:
            return check_ranges(self.expected, self.pairs, self.model, self.form)
        except DifferenceError:
            return "not compared, as the structure differs", False

    @cached_property
    def pairs(self) -> dict[str, str]:
        """Return the file's tensor for each of the expected graph.

        Raises:
            DifferenceError: The graphs differ.
        """
        half, large = self.metadata.precision == "fp16", set[str]()
        if half and self.checkpoint is not None:
            large = precision.large_values(self.expected.widest_ranges, precision.REQUIRED_HEADROOM) - {IMAGES}
        return structure.match(self.expected, self.model, half, large)

    @cached_property
    def expected(self) -> ExpectedGraph:
        """Return the graph that the file should have.

        Raises:
            DifferenceError: No export can have so few weights, or the file's opset.
        """
        opsets = structure.opset_versions(self.model)
        if len(opsets) != 1 or opsets[0] not in OPSETS:
            listed = ", ".join(map(str, opsets[:3])) or "unknown"
            raise DifferenceError(f"its opset is {listed}, expected one of {OPSETS.start} to {OPSETS.stop - 1}")
        self.refuse_fewer_weights()
        layers = fold(self.info, self.checkpoint.model) if self.checkpoint else expected_graph.blank_layers(self.info)
        fresh = FreshExport(self.info, opsets[0], self.exported)
        raw = self.metadata.preprocessing if self.checkpoint is None else Preprocessing.of(self.info, "raw")
        return expected_graph.build(
            fresh,
            layers,
            self.form,
            raw if self.metadata.input == "raw" else None,
            self.metadata.output == "probabilities",
            self.probes,
            calibrate=self.checkpoint is not None,
        )

    def refuse_fewer_weights(self) -> None:
        """Compare the file's number of layers and weights with those of its network, without building it.

        Raises:
            DifferenceError: No export can have so few.
        """
        # Both, as a file could claim to be of a network that takes hours to export, or even to build.
        depth = parse_name(self.info.model).depth
        layers_found = sum(node.op_type in WEIGHTED for node in self.model.graph.node)
        if layers_found < depth:
            raise DifferenceError(f"it has {layers_found:,} layers with weights, {self.info.model} has {depth:,}")
        try:
            needed = expected_graph.count_weights(self.info)
        except UserError as error:  # a shortcut that the network does not have
            raise DifferenceError(error.cause) from None
        actual = sum(math.prod(tensor.dims) for tensor in self.model.graph.initializer)
        if actual < needed:
            raise DifferenceError(f"it has {actual:,} weights, {self.info.model} has {needed:,}")

    @cached_property
    def info(self) -> CheckpointInfo:
        """Return the network that it should be of."""
        if self.checkpoint is not None:
            return self.checkpoint.info
        metadata, steps = self.metadata, self.metadata.preprocessing
        try:
            parse_name(metadata.model)
            return expected_graph.network_info(
                metadata.model, metadata.shortcut, metadata.class_names, steps.channels, steps.height, steps.width
            )
        except (UserError, ValidationError):
            raise DifferenceError(f"its metadata name no network ({structure.quote(metadata.model)})") from None

    @property
    def form(self) -> str | None:
        """Return the form of quantization, None if it is not int8."""
        return expected_graph.quantized_form(self.model) if self.metadata.precision == "int8" else None

    @cached_property
    def probes(self) -> "ProbeImages":
        """Return inputs to measure with."""
        return ProbeImages(Preprocessing.of(self.info, "normalized"), self.images, self.model)

    def quantized_afresh(self) -> "FreshQuantization | None":
        """Return a quantization of the same network, if the file is int8 and its checkpoint is at hand."""
        if self.form is None or self.checkpoint is None:
            return None
        return FreshQuantization(self.expected, self.metadata.output, self.probes)


@dataclass(frozen=True)
class ProbeImages:
    """Images of all classes, and random pixels.

    Args:
        steps: How they are normalized.
        images: The images; without them there are random pixels only.
        model: The model, whose arithmetic says how many there may be.
    """

    steps: Preprocessing
    images: ValidationImages | None
    model: onnx.ModelProto

    @cached_property
    def real(self) -> np.ndarray:
        """Return images, or random pixels without any: (N, C, H, W) float32."""
        if self.images is None:
            return self.random
        within = budget.images_within(budget.CALIBRATION / 4, self.model, MOST_PROBES)
        count = min(len(self.images), max(FEWEST_PROBES, within))
        return normalize_pixels(self.images.sample(count, self.steps.crop), self.steps)

    @cached_property
    def random(self) -> np.ndarray:
        """Return random pixels (N, C, H, W) float32."""
        return normalize_pixels(random_pixels(RANDOM_PROBES, self.steps.crop), self.steps)


@dataclass(frozen=True)
class FreshQuantization:
    """A quantization of the same network, made here on other images, which a file should be about as good as.

    Args:
        expected: The graph, in int8.
        output: What is compared.
        probes: Images, half of which it was calibrated on.
    """

    expected: ExpectedGraph
    output: Output
    probes: ProbeImages

    @cached_property
    def sessions(self) -> list[runtime.OnnxSession]:
        """Return the network in fp32 and in int8, loaded."""
        assert self.expected.quantized is not None
        models = (self.expected.fp32, self.expected.quantized)
        return [runtime.create_session(model.SerializeToString(), runtime.CPU) for model in models]

    def compare(self, x: np.ndarray, output: Output) -> Comparison:
        """Compare int8 with fp32 for inputs (N, C, H, W) float32."""
        exact, quantized = (precision.run_batches(session, x) for session in self.sessions)
        if output == "probabilities":
            exact, quantized = softmax(exact), softmax(quantized)
        return Comparison(comparable(exact, output), comparable(quantized, output))

    @cached_property
    def error(self) -> QuantizationError:
        """Return the error of what is compared, on the images that it was not calibrated on."""
        return self._error(self.output)

    def _error(self, output: Output) -> QuantizationError:
        x = self.probes.real[1::2] if len(self.probes.real) > 1 else self.probes.real
        comparison = self.compare(x, output)
        agreement = float(comparison.same_top1.mean())
        return QuantizationError(
            mean=comparison.mean_rel, largest=comparison.max_rel, agreement=agreement, images=len(x)
        )

    def largest_on(self, pixels: Sequence[np.ndarray]) -> float:
        """Return the largest difference for images (H, W, C) uint8, unlike those of the training."""
        resized = np.stack([black_box.resize_in_pillow(image, self.probes.steps.crop) for image in pixels])
        return self.compare(normalize_pixels(resized, self.probes.steps), self.output).max_rel

    def check_recorded(self, recorded: QuantizationError | None) -> tuple[str, bool]:
        """Check that the error that a file records is about that of this quantization, on the same dataset."""
        if recorded is None:  # files of version 0.1
            return "not recorded", True
        measured = self._error("logits")
        ratio = recorded.mean / measured.mean if measured.mean else 1.0
        images = min(recorded.images, measured.images)
        most = RECORDED_FACTOR * (1 + 1 / math.sqrt(measured.images))
        passed = 1 / most <= ratio <= most
        for one, other in ((recorded, measured), (measured, recorded)):
            passed &= one.largest <= RECORDED_LARGEST * other.largest
            passed &= 1 - one.agreement <= allowed_flips(other.agreement, images)
        return f"recorded mean {recorded.mean:.1e}, a fresh quantization has {measured.mean:.1e}", passed
