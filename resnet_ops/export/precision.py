"""An fp32 graph in fewer bits: half precision with fp32 where it would overflow, or calibrated 8-bit integers."""

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
from resnet_ops.export.metadata import IMAGES

CALIBRATION_IMAGES, CHOICE_IMAGES = 512, 512
BATCH = 32
FP16_LARGEST = 65_504.0
HEADROOM = 4  # other images may have larger values than those that were looked at
HISTOGRAM_BYTES = 2**30  # what entropy and percentiles may keep of intermediate values
AS_GOOD = 1.1  # times the smallest error: no method beats MinMax by more than chance (measured)
CLEARLY_FASTER = 1.2
NO_DISASTER = 2.0
ROUNDS = 10


@dataclass(frozen=True)
class QuantizationCandidate:
    """One way to 8 bits, and how it did on training images that it was not calibrated on.

    `error` is mean |difference| / max |logit| to fp32, `agreement` the share of same top classes.
    """

    method: str
    form: str
    agreement: float
    error: float
    images_per_second: float
    chosen: bool = False


# CPUs are fast in u8s8; in s8s8 this one was half as fast as in fp32. TensorRT takes symmetric s8s8 only.
METHODS = (
    (CalibrationMethod.MinMax, "minmax"),
    (CalibrationMethod.Entropy, "entropy"),
    (CalibrationMethod.Percentile, "percentile"),
)
FORMS: dict[str, tuple[QuantType, dict[str, Any]]] = {
    "u8s8": (QuantType.QUInt8, {}),
    "s8s8 symmetric": (QuantType.QInt8, {"ActivationSymmetric": True, "WeightSymmetric": True}),
}


def to_fp16(model: onnx.ModelProto, x: np.ndarray) -> tuple[onnx.ModelProto, str]:
    """Half precision inside, fp32 at input and output, and around nodes whose values come near fp16's largest.

    Args:
        model: An fp32 graph.
        x: Inputs (N, C, H, W) float32 to look at its values with.

    Returns:
        The graph, and in words what was kept in fp32.
    """
    hot = _large(model, x)
    # Without a node that it names the converter would keep none, but for operators that have no fp16 kernel.
    with _quietly():
        made = convert_float_to_float16(model, keep_io_types=True, min_positive_val=2**-24, node_block_list=sorted(hot))
    _join_islands(made)
    _sort(made)
    kept = f"{len(hot)} of {len(model.graph.node)} nodes kept in fp32 to avoid overflow" if hot else "all nodes"
    return made, kept


def _join_islands(model: onnx.ModelProto) -> None:
    """Let neighbours in fp32 pass values on in fp32: the converter goes through fp16 between each two of them."""
    graph = model.graph
    to = {n.output[0]: n.attribute[0].i for n in graph.node if n.op_type == "Cast"}
    source = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Cast"}
    outputs = {output.name for output in graph.output}
    back = {
        name: source[source[name]]
        for name, kind in to.items()
        if kind == TensorProto.FLOAT and to.get(source[name]) == TensorProto.FLOAT16 and name not in outputs
    }
    for node in graph.node:
        node.input[:] = [back.get(name, name) for name in node.input]
    used = outputs | {name for node in graph.node for name in node.input}
    while idle := [n for n in graph.node if n.op_type == "Cast" and n.output[0] not in used]:
        for node in idle:
            graph.node.remove(node)
        used = outputs | {name for node in graph.node for name in node.input}
    del graph.value_info[:]  # some have their old types
    graph.value_info.extend(onnx.shape_inference.infer_shapes(model).graph.value_info)


def _sort(model: onnx.ModelProto) -> None:
    """Put nodes behind those whose results they take, as ONNX demands: the converter puts its own at the end."""
    graph = model.graph
    known = {"", *(tensor.name for tensor in graph.initializer), *(given.name for given in graph.input)}
    left, ordered = list(graph.node), list[onnx.NodeProto]()
    while left:
        ready = [node for node in left if known.issuperset(node.input)]
        assert ready, "the graph has a cycle"
        ordered += ready
        known |= {name for node in ready for name in node.output}
        left = [node for node in left if not known.issuperset(node.output)]
    del graph.node[:]
    graph.node.extend(ordered)


def _large(model: onnx.ModelProto, x: np.ndarray) -> set[str]:
    """Names of nodes whose weights or results, times `HEADROOM`, are beyond fp16."""
    floats = [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT]
    weights = {t.name: float(np.abs(numpy_helper.to_array(t)).max(initial=0)) for t in floats}
    largest = weights | _largest_values(model, x)
    limit = FP16_LARGEST / HEADROOM
    # Not (value <= limit): NaN and infinity are beyond it too.
    return {
        node.name
        for node in model.graph.node
        if any(not largest.get(n, 0) <= limit for n in [*node.input, *node.output])
    }


def _largest_values(model: onnx.ModelProto, x: np.ndarray) -> dict[str, float]:
    """The largest |value| of each intermediate float tensor."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    there = {output.name for output in watched.graph.output}
    floats = [v for v in watched.graph.value_info if v.type.tensor_type.elem_type == TensorProto.FLOAT]
    watched.graph.output.extend(v for v in floats if v.name not in there)
    session = runtime.load(watched.SerializeToString(), runtime.CPU).session
    names = [output.name for output in session.get_outputs()]
    largest: dict[str, float] = {}
    for start in range(0, len(x), BATCH):
        for name, value in zip(names, session.run(None, {IMAGES: x[start : start + BATCH]}), strict=True):
            largest[name] = float(np.max([largest.get(name, 0.0), np.abs(value).max()]))
    return largest


def to_int8(
    model: onnx.ModelProto, x: np.ndarray, provider: str
) -> tuple[onnx.ModelProto, list[QuantizationCandidate]]:
    """Static quantisation (QDQ), weights per channel, calibrated; the method and form that do best are taken.

    A form that is clearly faster is taken if its error is no disaster; of its methods the first that has nearly the
    smallest error: so that the choice, and with it the file, is the same each time. On GPUs the form is TensorRT's.

    Args:
        model: An fp32 graph.
        x: Inputs (N, C, H, W) float32 of training images: half to calibrate on, half to choose on.
        provider: That it is for.

    Returns:
        The graph, and how each candidate did.
    """
    calibration, others = x[::2], x[1::2]
    expected = _run(runtime.load(model.SerializeToString(), runtime.CPU), others)
    forms = list(FORMS) if provider == runtime.CPU else ["s8s8 symmetric"]
    ways = [(form, *way) for form in forms for way in (METHODS if form == forms[0] else METHODS[:1])]
    made: list[onnx.ModelProto] = []
    with tempfile.TemporaryDirectory(prefix="resnet-ops-") as folder, _quietly():
        prepared = Path(folder) / "prepared.onnx"
        onnx.save(model, str(Path(folder) / "fp32.onnx"))
        quant_pre_process(str(Path(folder) / "fp32.onnx"), str(prepared), skip_symbolic_shape=True)
        for form, method, _ in ways:
            some = calibration
            if method != CalibrationMethod.MinMax:
                some = calibration[: max(BATCH, HISTOGRAM_BYTES // activation_bytes_per_image(model))]
            made.append(_quantized(prepared, Path(folder) / "int8.onnx", some, method, form))
    sessions = [runtime.load(one.SerializeToString(), runtime.CPU) for one in made]
    speeds = _speeds(sessions, others[:BATCH])
    tried = [
        _judged(_run(session, others), expected, name, form, speed)
        for session, speed, (form, _, name) in zip(sessions, speeds, ways, strict=True)
    ]
    chosen = _best(tried)
    return made[tried.index(chosen)], [replace(one, chosen=one is chosen) for one in tried]


def _best(candidates: list[QuantizationCandidate]) -> QuantizationCandidate:
    smallest = min(candidate.error for candidate in candidates)
    if not np.isfinite(smallest):
        raise UserError(
            "Quantized to int8, the network gives non-finite outputs.", "Use --precision fp32.", WORK_FAILED
        )
    usable = [candidate for candidate in candidates if candidate.error <= NO_DISASTER * smallest]
    fastest = max(candidate.images_per_second for candidate in usable)
    speeds = {c.form: max(o.images_per_second for o in usable if o.form == c.form) for c in usable}
    form = next(form for form in speeds if speeds[form] * CLEARLY_FASTER >= fastest)
    same = [candidate for candidate in usable if candidate.form == form]
    least = min(candidate.error for candidate in same)
    return next(candidate for candidate in same if candidate.error <= AS_GOOD * least)


class _Batches(CalibrationDataReader):  # type: ignore[misc]
    """Calibration images as ONNX Runtime asks for them."""

    def __init__(self, x: np.ndarray) -> None:
        self.left = iter([{IMAGES: x[start : start + BATCH]} for start in range(0, len(x), BATCH)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch, or None."""
        return next(self.left, None)


def _quantized(prepared: Path, file: Path, x: np.ndarray, method: CalibrationMethod, form: str) -> onnx.ModelProto:
    activations, extra = FORMS[form]
    quantize_static(
        str(prepared),
        str(file),
        _Batches(x),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=activations,
        weight_type=QuantType.QInt8,
        calibrate_method=method,
        extra_options=extra,
    )
    made = onnx.load(str(file))
    used = {node.domain for node in made.graph.node}
    imports = [entry for entry in made.opset_import if entry.domain in used]
    del made.opset_import[:], made.metadata_props[:]  # of eight domains that the tools know
    made.opset_import.extend(imports)
    return made


def _speeds(sessions: list[runtime.OnnxSession], x: np.ndarray) -> list[float]:
    """Images a second of each; in turns, so that whatever else runs slows all of them."""
    best = [float("inf")] * len(sessions)
    for _ in range(ROUNDS):
        for index, session in enumerate(sessions):
            began = time.perf_counter()
            session.run(x)
            best[index] = min(best[index], time.perf_counter() - began)
    return [len(x) / seconds for seconds in best]


def _judged(found: np.ndarray, expected: np.ndarray, method: str, form: str, speed: float) -> QuantizationCandidate:
    error = float(np.abs(found - expected).mean() / max(np.abs(expected).max(), 1e-12))
    return QuantizationCandidate(method, form, float((found.argmax(1) == expected.argmax(1)).mean()), error, speed)


def _run(session: runtime.OnnxSession, x: np.ndarray) -> np.ndarray:
    return np.concatenate([session.run(x[start : start + BATCH]) for start in range(0, len(x), BATCH)])


def activation_bytes_per_image(model: onnx.ModelProto) -> int:
    """What all intermediate values of one image take."""
    sizes = [
        int(np.prod([dim.dim_value for dim in value.type.tensor_type.shape.dim[1:]], dtype=np.int64))
        for value in model.graph.value_info
        if len(value.type.tensor_type.shape.dim) > 1
    ]
    return max(1, 4 * sum(sizes))


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep ONNX Runtime's tools from giving advice on stderr."""
    logging.disable(logging.WARNING)
    try:
        # They print, too: into a buffer, which would come out at the end.
        with warnings.catch_warnings(), runtime.quiet(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
