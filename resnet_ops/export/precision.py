"""Conversion of an fp32 graph: to fp16, with fp32 where values would overflow, or to int8 by calibrated quantization.

Whether the result is good enough is decided in `proof`.
"""

import contextlib
import io
import logging
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16

from resnet_ops.errors import WORK_FAILED, UserError
from resnet_ops.export import runtime
from resnet_ops.export.budget import TIMING, images_within
from resnet_ops.export.graph import with_inferred_shapes
from resnet_ops.export.metadata import IMAGES, QuantizationError

CALIBRATION_IMAGES, CHOICE_IMAGES = 512, 512
BATCH = 32
FP16_LARGEST = 65_504.0
# Other images may have larger values than those that were measured: what is held to be kept in fp32, and, as that is
# measured on other images again, what an export keeps.
REQUIRED_HEADROOM, HEADROOM = 4, 8
HISTOGRAM_BYTES = 2**30  # of intermediate values that entropy and percentile calibration may keep
SIMILAR_ERROR = 1.1  # times the smallest error: no method beats MinMax by more than chance (measured)
CLEARLY_FASTER = 1.2
MAX_ERROR_RATIO = 2.0
TIMING_ROUNDS = 10


@dataclass(frozen=True)
class QuantizationCandidate:
    """One int8 quantization, measured on training images that it was not calibrated on.

    `error` is mean |difference| / max |logit| to fp32, `largest_error` the largest, `agreement` the share of
    `images` with the same top class.
    """

    method: str
    form: str
    agreement: float
    error: float
    largest_error: float
    images: int
    images_per_second: float
    chosen: bool = False

    @property
    def measured(self) -> QuantizationError:
        """Return its error as the metadata of the file records it."""
        return QuantizationError(
            mean=self.error, largest=self.largest_error, agreement=self.agreement, images=self.images
        )


METHODS = (
    (CalibrationMethod.MinMax, "minmax"),
    (CalibrationMethod.Entropy, "entropy"),
    (CalibrationMethod.Percentile, "percentile"),
)
# CPUs are fast in u8s8; in s8s8 the one measured was half as fast as in fp32. TensorRT takes symmetric s8s8 only.
FORMS: dict[str, tuple[QuantType, dict[str, Any]]] = {
    "u8s8": (QuantType.QUInt8, {}),
    "s8s8 symmetric": (QuantType.QInt8, {"ActivationSymmetric": True, "WeightSymmetric": True}),
}


def to_fp16(model: onnx.ModelProto, x: np.ndarray) -> tuple[onnx.ModelProto, str]:
    """Convert to fp16, but for input and output, and nodes whose values come near the largest of fp16.

    Args:
        model: An fp32 graph.
        x: Inputs (N, C, H, W) float32 to measure its values with.

    Returns:
        The graph, and in words what was kept in fp32.
    """
    overflowing = _overflowing_nodes(model, x)
    with _suppress_tool_output():
        converted = convert_float_to_float16(
            model, keep_io_types=True, min_positive_val=2**-24, node_block_list=sorted(overflowing)
        )
    _remove_cast_pairs(converted)
    _sort_nodes(converted)
    # Some have their old types. After sorting: of unsorted nodes next to nothing is inferred.
    converted = with_inferred_shapes(converted)
    return converted, describe_fp16(converted)


def describe_fp16(model: onnx.ModelProto) -> str:
    """Return in words what a graph in fp16, without preprocessing, keeps in fp32."""
    nodes = [node for node in model.graph.node if node.op_type not in ("Cast", "Softmax")]
    values = [*model.graph.value_info, *model.graph.output]
    floats = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    kept = sum(node.output[0] in floats for node in nodes)
    return f"{kept} of {len(nodes)} nodes kept in fp32 to avoid overflow" if kept else "all nodes"


def describe_int8(form: str, method: str, images: int) -> str:
    """Return in words how a graph was quantized."""
    return f"{form}, {method}, per channel, {images} training images"


def _remove_cast_pairs(model: onnx.ModelProto) -> None:
    """Remove the casts to fp16 and back that the converter puts between two neighbors in fp32."""
    graph = model.graph
    target = {n.output[0]: n.attribute[0].i for n in graph.node if n.op_type == "Cast"}
    source = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Cast"}
    outputs = {output.name for output in graph.output}
    original = {
        name: source[source[name]]
        for name, dtype in target.items()
        if dtype == TensorProto.FLOAT and target.get(source[name]) == TensorProto.FLOAT16
    }
    # What an output is cast from gets its name, which others know it by.
    final = {original[name]: name for name in outputs & original.keys()}
    for node in [n for n in graph.node if n.output[0] in final.values()]:
        graph.node.remove(node)
    for node in graph.node:
        names = [original.get(name, name) for name in node.input]
        node.input[:] = [final.get(name, name) for name in names]
        node.output[:] = [final.get(name, name) for name in node.output]
    used = outputs | {name for node in graph.node for name in node.input}
    while unused := [n for n in graph.node if n.op_type == "Cast" and n.output[0] not in used]:
        for node in unused:
            graph.node.remove(node)
        used = outputs | {name for node in graph.node for name in node.input}


def _sort_nodes(model: onnx.ModelProto) -> None:
    """Sort nodes topologically, as ONNX demands: the converter appends its own at the end."""
    graph = model.graph
    known = {"", *(tensor.name for tensor in graph.initializer), *(value.name for value in graph.input)}
    remaining, ordered = list(graph.node), list[onnx.NodeProto]()
    while remaining:
        ready = [node for node in remaining if known.issuperset(node.input)]
        assert ready, "the graph has a cycle"
        ordered += ready
        known |= {name for node in ready for name in node.output}
        remaining = [node for node in remaining if not known.issuperset(node.output)]
    del graph.node[:]
    graph.node.extend(ordered)


def _overflowing_nodes(model: onnx.ModelProto, x: np.ndarray) -> set[str]:
    """Return the names of nodes whose weights or results, times `HEADROOM`, overflow fp16."""
    floats = [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT]
    weights = {t.name: float(np.abs(numpy_helper.to_array(t)).max(initial=0)) for t in floats}
    large = {name for name, value in weights.items() if not value <= FP16_LARGEST / HEADROOM}  # NaN is large too
    large |= large_values(value_ranges(model, x), HEADROOM)
    return {node.name for node in model.graph.node if not large.isdisjoint([*node.input, *node.output])}


def large_values(ranges: dict[str, tuple[float, float]], headroom: float) -> set[str]:
    """Return the names of the tensors whose values, times `headroom`, overflow fp16."""
    # Not (value > limit): NaN and infinity are beyond it too.
    return {name for name, extremes in ranges.items() if not np.abs(extremes).max() <= FP16_LARGEST / headroom}


def value_ranges(model: onnx.ModelProto, x: np.ndarray) -> dict[str, tuple[float, float]]:
    """Return the lowest and the highest value of each intermediate float tensor; both NaN where one is.

    Args:
        model: An fp32 graph.
        x: Inputs (N, C, H, W) float32 to measure its values with.
    """
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    outputs = {output.name for output in probe.graph.output}
    floats = [v for v in probe.graph.value_info if v.type.tensor_type.elem_type == TensorProto.FLOAT]
    probe.graph.output.extend(v for v in floats if v.name not in outputs)
    session = runtime.create_session(probe.SerializeToString(), runtime.CPU).session
    names = [output.name for output in session.get_outputs()]
    ranges: dict[str, tuple[float, float]] = {}
    for start in range(0, len(x), BATCH):
        for name, value in zip(names, session.run(None, {IMAGES: x[start : start + BATCH]}), strict=True):
            values = [*ranges.get(name, ()), value.min(), value.max()]
            ranges[name] = float(np.min(values)), float(np.max(values))
    return ranges


def to_int8(
    model: onnx.ModelProto, x: np.ndarray, provider: str
) -> tuple[onnx.ModelProto, list[QuantizationCandidate]]:
    """Quantize statically (QDQ, weights per channel) in several forms and with several methods, and select the best.

    A form that is clearly faster is selected unless its error is much larger; of its methods, where the error is
    near the smallest, the one with the best agreement, and the first of equal ones: so that the choice, and with it the
    file, is reproducible. On GPUs the form is TensorRT's.

    Args:
        model: An fp32 graph.
        x: Inputs (N, C, H, W) float32 of training images: half to calibrate on, half to select on.
        provider: The execution provider that it is for.

    Returns:
        The graph, and all candidates.
    """
    calibration, held_out = x[::2], x[1::2]
    expected = run_batches(runtime.create_session(model.SerializeToString(), runtime.CPU), held_out)
    forms = list(FORMS) if provider == runtime.CPU else ["s8s8 symmetric"]
    variants = [(form, *method) for form in forms for method in (METHODS if form == forms[0] else METHODS[:1])]
    models: list[onnx.ModelProto] = []
    with tempfile.TemporaryDirectory(prefix="resnet-ops-") as folder, _suppress_tool_output():
        prepared = _prepare(model, Path(folder))
        for form, method, _ in variants:
            images = calibration
            if method != CalibrationMethod.MinMax:
                fitting = max(1, min(len(calibration), HISTOGRAM_BYTES // activation_bytes_per_image(model)))
                # One batch, or whole ones: histograms of batches of unequal size cannot be added up.
                count = fitting - fitting % BATCH if fitting > BATCH else fitting
                images = calibration[np.arange(count) * len(calibration) // count]  # of all classes: they are sorted
            models.append(_quantize(prepared, Path(folder) / "int8.onnx", images, method, form))
    sessions = [runtime.create_session(quantized.SerializeToString(), runtime.CPU) for quantized in models]
    speeds = _measure_speeds(sessions, held_out[: images_within(TIMING, model, BATCH)])
    candidates = [
        _evaluate(run_batches(session, held_out), expected, name, form, speed)
        for session, speed, (form, _, name) in zip(sessions, speeds, variants, strict=True)
    ]
    best = _select(candidates)
    chosen = models[candidates.index(best)]
    return chosen, [replace(candidate, chosen=candidate is best) for candidate in candidates]


def quantize(model: onnx.ModelProto, x: np.ndarray, form: str) -> onnx.ModelProto:
    """Quantize statically in one form, with the ranges from the lowest to the highest value.

    Args:
        model: An fp32 graph.
        x: Inputs (N, C, H, W) float32 to calibrate on.
        form: One of `FORMS`.
    """
    with tempfile.TemporaryDirectory(prefix="resnet-ops-") as folder, _suppress_tool_output():
        prepared = _prepare(model, Path(folder))
        return _quantize(prepared, Path(folder) / "int8.onnx", x, CalibrationMethod.MinMax, form)


def _prepare(model: onnx.ModelProto, folder: Path) -> Path:
    """Optimize a graph as the quantizer demands, and return the file with it."""
    prepared = folder / "prepared.onnx"
    onnx.save(model, str(folder / "fp32.onnx"))
    quant_pre_process(str(folder / "fp32.onnx"), str(prepared), skip_symbolic_shape=True)
    return prepared


def _select(candidates: list[QuantizationCandidate]) -> QuantizationCandidate:
    smallest = min(candidate.error for candidate in candidates)
    if not np.isfinite(smallest):
        raise UserError(
            "Quantized to int8, the network gives non-finite outputs.", "Use --precision fp32.", WORK_FAILED
        )
    usable = [candidate for candidate in candidates if candidate.error <= MAX_ERROR_RATIO * smallest]
    fastest = max(candidate.images_per_second for candidate in usable)
    speeds = {c.form: max(o.images_per_second for o in usable if o.form == c.form) for c in usable}
    form = next(form for form in speeds if speeds[form] * CLEARLY_FASTER >= fastest)
    of_form = [candidate for candidate in usable if candidate.form == form]
    least = min(candidate.error for candidate in of_form)
    similar = [candidate for candidate in of_form if candidate.error <= SIMILAR_ERROR * least]
    return max(similar, key=lambda candidate: candidate.agreement)  # the first of those that are equal


class _Batches(CalibrationDataReader):  # type: ignore[misc]
    """Calibration images in batches, through the interface of ONNX Runtime."""

    def __init__(self, x: np.ndarray) -> None:
        self.batches = iter([{IMAGES: x[start : start + BATCH]} for start in range(0, len(x), BATCH)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next batch, or None."""
        return next(self.batches, None)


def _quantize(prepared: Path, file: Path, x: np.ndarray, method: CalibrationMethod, form: str) -> onnx.ModelProto:
    activations, extra = FORMS[form]
    quantize_static(
        str(prepared),
        str(file),
        _Batches(x),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=activations,
        weight_type=QuantType.QInt8,
        # 7 bits: of 8 the products saturate at int16 on x86 CPUs without VNNI, in both forms, wherever the file was
        # made. There 8 cost 1 to 9 points of accuracy (ResNet-8 and -20, digits and CIFAR-10), 7 at most 0.3 anywhere.
        reduce_range=True,
        calibrate_method=method,
        extra_options=extra,
    )
    quantized = onnx.load(str(file))
    used = {node.domain for node in quantized.graph.node}
    imports = [entry for entry in quantized.opset_import if entry.domain in used]
    del quantized.opset_import[:], quantized.metadata_props[:]  # the tools import eight domains
    quantized.opset_import.extend(imports)
    return quantized


def _measure_speeds(sessions: list[runtime.OnnxSession], x: np.ndarray) -> list[float]:
    """Measure the images per second of each, in turns, so that other load slows all of them alike."""
    best = [float("inf")] * len(sessions)
    for _ in range(TIMING_ROUNDS):
        for index, session in enumerate(sessions):
            began = time.perf_counter()
            session.run(x)
            best[index] = min(best[index], time.perf_counter() - began)
    return [len(x) / seconds for seconds in best]


def _evaluate(outputs: np.ndarray, expected: np.ndarray, method: str, form: str, speed: float) -> QuantizationCandidate:
    differences = np.abs(outputs - expected) / max(np.abs(expected).max(), 1e-12)
    agreement = float((outputs.argmax(1) == expected.argmax(1)).mean())
    mean, largest = float(differences.mean()), float(differences.max())
    return QuantizationCandidate(method, form, agreement, mean, largest, len(outputs), speed)


def run_batches(session: runtime.OnnxSession, x: np.ndarray) -> np.ndarray:
    """Compute the outputs for inputs (N, C, H, W) float32, in batches."""
    return np.concatenate([session.run(x[start : start + BATCH]) for start in range(0, len(x), BATCH)])


def activation_bytes_per_image(model: onnx.ModelProto) -> int:
    """Return the memory that all intermediate values of one image take in fp32."""
    sizes = [
        int(np.prod([dim.dim_value for dim in value.type.tensor_type.shape.dim[1:]], dtype=np.int64))
        for value in model.graph.value_info
        if len(value.type.tensor_type.shape.dim) > 1
    ]
    return max(1, 4 * sum(sizes))


@contextlib.contextmanager
def _suppress_tool_output() -> Iterator[None]:
    """Suppress the advice that ONNX Runtime's tools log, warn and print."""
    logging.disable(logging.WARNING)
    try:
        # Python buffers what they print: without a redirection it would appear at the end.
        with warnings.catch_warnings(), runtime.suppress_output(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
