"""The checks of a file that need no run: its graph is an export of its network, its numbers are its checkpoint's.

What is expected is built in `expected_graph`; the comparisons are in `structure` and `rounding`. Outputs, and what may
be wrong with them though all of this is right, are checked in `proof`.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx
from pydantic import ValidationError

from resnet_ops.errors import UserError
from resnet_ops.export import expected_graph, graph, structure
from resnet_ops.export.classifier import normalize_pixels
from resnet_ops.export.expected_graph import OPSETS, WEIGHTED, ExpectedGraph, FreshExport
from resnet_ops.export.folding import fold
from resnet_ops.export.inputs import ValidationImages, random_pixels
from resnet_ops.export.metadata import ModelMetadata, Preprocessing
from resnet_ops.export.rounding import check_ranges, check_weights
from resnet_ops.export.structure import DifferenceError
from resnet_ops.models import parse_name
from resnet_ops.training.checkpoint import Checkpoint, CheckpointInfo

PROBE_IMAGES = 32
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
        return structure.match(self.expected, self.model, self.metadata.precision == "fp16")

    @cached_property
    def expected(self) -> ExpectedGraph:
        """Return the graph that the file should have.

        Raises:
            DifferenceError: No export can have so few weights, or the file's opset.
        """
        opsets = [entry.version for entry in self.model.opset_import if entry.domain in structure.STANDARD_DOMAINS]
        if len(opsets) != 1 or opsets[0] not in OPSETS:
            listed = ", ".join(map(str, opsets[:3])) or "unknown"
            raise DifferenceError(f"its opset is {listed}, expected one of {OPSETS.start} to {OPSETS.stop - 1}")
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
        layers = fold(self.info, self.checkpoint.model) if self.checkpoint else expected_graph.blank_layers(self.info)
        fresh = FreshExport(self.info, opsets[0], self.exported)
        raw = self.metadata.preprocessing if self.checkpoint is None else Preprocessing.of(self.info, "raw")
        return expected_graph.build(
            fresh,
            layers,
            self.form,
            raw if self.metadata.input == "raw" else None,
            self.metadata.output == "probabilities",
            self._probes,
        )

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

    def _probes(self) -> np.ndarray:
        """Return inputs (N, C, H, W) float32."""
        steps = Preprocessing.of(self.info, "normalized")
        crop = steps.crop
        pixels = random_pixels(PROBE_IMAGES, crop) if self.images is None else self.images.first(PROBE_IMAGES, crop)
        return normalize_pixels(pixels, steps)
