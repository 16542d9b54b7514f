"""Checks of what a file says of itself: each field of its metadata, and the proof that is recorded in it.

`ModelMetadata` is compared as a whole with that of an export of the checkpoint, so that no field is forgotten. What
does not follow from the checkpoint is compared with the graph, the run and this verification.
"""

import re
from dataclasses import dataclass
from math import hypot, isclose, nan, sqrt

import onnx
from onnx import TensorProto
from pydantic import ValidationError

from resnet_ops.data.parallel_decode import MAX_BAD_SHARE
from resnet_ops.export import graph, precision
from resnet_ops.export.checks import MAX_BATCH, summarize
from resnet_ops.export.metadata import ModelMetadata
from resnet_ops.export.proof_report import ProofReport
from resnet_ops.export.tolerances import EVERYWHERE
from resnet_ops.formatting import percent
from resnet_ops.significance import sampling_margin
from resnet_ops.training.checkpoint import Checkpoint

# Not from the checkpoint: those of the form of the file are compared with its graph, `run` with the run's name.
OF_THE_FILE = {"input", "output", "precision", "precision_choice", "quantization_error", "made_by", "validation", "run"}
VERSION = r"\d+(\.\d+)+[\w.+-]*"
MADE_BY = re.compile(rf"resnet-ops {VERSION}, torch {VERSION}, onnx {VERSION}")
SAME_CALIBRATION = 0.02  # int8 on a CPU with other instructions
MARGINS = 1.5  # margins of 95%, three standard errors, by which two accuracies of the same network may differ
RELATIVE = 1e-3  # by which numbers that float64 gives differ from one machine to another


@dataclass(frozen=True)
class Origin:
    """The run and the dataset that a file names, as far as they are known.

    Args:
        run_names: The names of the run that the checkpoint belongs to; empty if it is not known.
        data_fingerprint: The fingerprint of the dataset of that name; None if it is not at hand.
    """

    run_names: frozenset[str] = frozenset()
    data_fingerprint: str | None = None


def check_metadata(
    metadata: ModelMetadata, model: onnx.ModelProto, checkpoint: Checkpoint | None, origin: Origin
) -> tuple[str, bool]:
    """Check the metadata against the graph and, if it is at hand, the checkpoint.

    Args:
        metadata: The file's metadata.
        model: The file.
        checkpoint: The checkpoint that it is compared with.
        origin: The run and the dataset that it names.

    Returns:
        The faults, or what was compared, and whether it passed.
    """
    choices, names = precision_choices(metadata, model), origin.run_names
    faults = {
        f"made by {metadata.made_by[:40]!r}, not by resnet-ops": not MADE_BY.fullmatch(metadata.made_by),
        f"precision choice {metadata.precision_choice!r}, the graph has {' or '.join(map(repr, sorted(choices)))}": (
            (metadata.precision_choice or "") not in choices
        ),
        f"a quantization error though it is {metadata.precision}": (
            metadata.quantization_error is not None and metadata.precision != "int8"
        ),
        f"run is {metadata.run}, expected {' or '.join(sorted(names))}": (
            bool(names) and metadata.run is not None and metadata.run not in names
        ),
        f"{metadata.data} has another fingerprint": origin.data_fingerprint not in (None, metadata.data_fingerprint),
    }
    if checkpoint is not None:
        same = {name: getattr(metadata, name) for name in OF_THE_FILE}
        expected = ModelMetadata.of(checkpoint.info, checkpoint.sha256, **same)
        for name in ModelMetadata.model_fields:
            actual, required = getattr(metadata, name), getattr(expected, name)
            faults[_difference(name, actual, required)] = actual != required
    return summarize(faults, "as in the checkpoint" if checkpoint else "as in the graph")


def _difference(name: str, actual: object, required: object) -> str:
    if name == "checkpoint_sha256":
        return "exported from another checkpoint"
    if name == "class_names":
        return "classes or their order differ"
    if name == "preprocessing":
        return "preprocessing differs"
    return f"{name.replace('_', ' ')} is {str(actual)[:60]}, expected {str(required)[:60]}"


def precision_choices(metadata: ModelMetadata, model: onnx.ModelProto) -> set[str]:
    """Return what `precision_choice` may be for this graph: the method of calibration leaves no trace in it."""
    if metadata.precision == "fp16":
        network = onnx.ModelProto()
        network.CopyFrom(model)
        del network.graph.value_info[:]  # those in the file are its own word
        network.graph.value_info.extend(onnx.shape_inference.infer_shapes(network).graph.value_info)
        network.graph.value_info.extend(network.graph.output)
        nodes = [node for node in network.graph.node if not node.name.startswith(graph.PREPROCESSING_PREFIX)]
        del network.graph.node[:]
        network.graph.node.extend(nodes)
        return {precision.describe_fp16(network)}
    if metadata.precision == "int8":
        dtypes = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
        zero_points = [node.input[2] for node in model.graph.node if node.op_type == "QuantizeLinear"]
        symmetric = any(dtypes.get(name) == TensorProto.INT8 for name in zero_points)
        form = list(precision.FORMS)[symmetric]
        # Files of version 0.1 do not record the error.
        stated = re.search(r"(\d+) training images$", metadata.precision_choice or "")
        images = metadata.quantization_error.images if metadata.quantization_error else int(stated[1]) if stated else 0
        return {precision.describe_int8(form, name, images) for _, name in precision.METHODS}
    return {""}


def check_recorded_proof(
    metadata: ModelMetadata, model: onnx.ModelProto, report: ProofReport, same_data: bool
) -> tuple[str, bool]:
    """Check that the recorded proof is possible and, if it is of the same dataset, that its numbers are those of now.

    What depends on the machine, such as differences by rounding, is only held to the limit that it records.
    """
    recorded = read_recorded_proof(metadata)
    if recorded is None:
        return "it is damaged", False
    n, total = recorded.images, recorded.images_total
    ran = sum(recorded.nodes_by_provider.values())
    counts = {
        name: round(value * n, 6) % 1 == 0 or not n
        for name in ("accuracy_torch", "accuracy_onnx", "top1_agreement")
        if (value := getattr(recorded, name)) == value
    }
    margin = sampling_margin(recorded.accuracy_onnx, n, total) if n and total >= n else 0.0
    of_training = (recorded.images_fingerprint or metadata.data_fingerprint) == metadata.data_fingerprint
    faults = {
        "it claims an accuracy on images that the network was trained on": (
            metadata.fitted_on_all and of_training and not recorded.has_seen_images and n > 0
        ),
        "it says of images that the network has seen them": (
            recorded.has_seen_images and not (metadata.fitted_on_all and of_training)
        ),
        "it is of outputs only": bool(recorded.black_box_only),
        "it did not pass": (metadata.validation or {}).get("validated") is not True,
        f"provider {recorded.provider[:40]!r} is unknown": recorded.provider not in EVERYWHERE,
        f"{ran} nodes ran of {len(model.graph.node)}": bool(recorded.nodes_by_provider)
        and not 0 < ran <= 2 * len(model.graph.node),
        f"{n:,} of {total:,} images": not 0 <= n <= total or (n < total) != bool(recorded.sample),
        f"a largest batch of {recorded.largest_batch:,}": not _is_batch(recorded.largest_batch),
        f"a difference above its tolerance of {recorded.tolerance:g}": recorded.max_rel_diff > recorded.tolerance,
        "its margin does not follow from its numbers": n > 0
        and recorded.accuracy_margin == recorded.accuracy_margin
        and not isclose(recorded.accuracy_margin, margin, rel_tol=RELATIVE, abs_tol=1e-9),
    } | {f"no count of {n:,} images is a {name.replace('_', ' ')}": not is_count for name, is_count in counts.items()}
    if same_data and 0 < n <= total:
        faults |= _compare(recorded, report, metadata)
    passed = "possible" if not (same_data and n) else "its numbers are those of now"
    return summarize(faults, passed + ("" if same_data else "; it is of other images"))


def read_recorded_proof(metadata: ModelMetadata) -> ProofReport | None:
    """Return the recorded proof; None if there is none, or it is damaged."""
    try:
        recorded = ProofReport.model_validate(metadata.validation)
    except ValidationError:
        return None
    if recorded.images_total:
        return recorded
    return recorded.model_copy(update={"images_total": recorded.images})  # version 0.1 always used all


def _is_batch(size: int) -> bool:
    return size == 0 or (1 <= size <= MAX_BATCH and size.bit_count() == 1)


def _compare(recorded: ProofReport, now: ProofReport, metadata: ModelMetadata) -> dict[str, bool]:
    """Compare the numbers of two proofs on the same dataset."""
    uncertain = bool(recorded.sample) != bool(now.sample)  # a sample counts images that cannot be decoded
    off = abs(recorded.images_total - now.images_total)
    faults = {
        f"{recorded.images_total:,} images, expected {now.images_total:,}": off
        > (MAX_BAD_SHARE * now.images_total if uncertain else 0)
    }
    same_sample = recorded.images == now.images
    for name in ("accuracy_torch", "top1_agreement"):
        then, value = getattr(recorded, name), getattr(now, name)
        allowed = 1 / now.images if metadata.precision != "int8" or name == "accuracy_torch" else SAME_CALIBRATION
        if not same_sample:
            allowed += MARGINS * accuracy_margin(recorded, now, then, value)
        faults[f"{name.replace('_', ' ')} {percent(then)}, now {percent(value)}"] = abs(then - value) > allowed + 1e-9
    then, value = recorded.calibration_error_torch, now.calibration_error_torch
    faults[f"calibration error torch {then:.4f}, now {value:.4f}"] = abs(then - value) > calibration_margin(
        recorded, now
    )
    scale, scale_now = _scale(recorded), _scale(now)
    if same_sample and metadata.output == "logits":
        faults[f"largest logit {scale:.4g}, now {scale_now:.4g}"] = abs(scale - scale_now) > RELATIVE * scale_now
    return faults


def calibration_margin(recorded: ProofReport, now: ProofReport) -> float:
    """Return by how much two calibration errors on one dataset may differ; on few images they are far too large."""
    return SAME_CALIBRATION + (0 if recorded.images == now.images else 2 / sqrt(min(recorded.images, now.images)))


def accuracy_margin(recorded: ProofReport, now: ProofReport, then: float, value: float) -> float:
    """Return half the 95% confidence interval of the difference of two accuracies of two samples of one dataset."""
    total, then = now.images_total, min(max(then, 0.0), 1.0)
    return hypot(sampling_margin(value, now.images, total), sampling_margin(then, min(recorded.images, total), total))


def _scale(report: ProofReport) -> float:
    """Return the largest |logit| that the differences of a report follow from."""
    return report.max_abs_diff / report.max_rel_diff if report.max_rel_diff else nan
