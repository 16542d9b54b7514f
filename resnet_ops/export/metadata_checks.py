"""Checks of what a file says of itself: each field of its metadata, and the proof that is recorded in it.

`ModelMetadata` is compared as a whole with that of an export of the checkpoint, so that no field is forgotten. What
does not follow from the checkpoint is compared with the graph, the run and this verification.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import hypot, isclose, isfinite, isnan, nan, sqrt

import onnx
from onnx import TensorProto
from packaging.version import InvalidVersion, Version
from pydantic import ValidationError

import resnet_ops
from resnet_ops.config import MAX_BAD_IMAGES
from resnet_ops.export import budget, graph, precision, runtime
from resnet_ops.export.checks import MAX_BATCH, summarize
from resnet_ops.export.metadata import ModelMetadata, Precision
from resnet_ops.export.proof_report import ProofReport
from resnet_ops.export.untrusted import fields_in_use
from resnet_ops.formatting import percent
from resnet_ops.machine import release
from resnet_ops.significance import sampling_margin
from resnet_ops.training.checkpoint import Checkpoint

# Not from the checkpoint: those of the form of the file are compared with its graph, `run` with the run's name, the
# temperature with one fitted anew.
OF_THE_FILE = {
    "input", "output", "precision", "precision_choice", "quantization_error", "calibration", "made_by", "validation",
    "run",
}  # fmt: skip
MADE_BY = re.compile("resnet-ops (?P<ours>[^ ,]+), torch (?P<torch>[^ ,]+), onnx (?P<onnx>[^ ,]+)")
# Local parts of versions, after `+`: those of PyTorch's builds, of commits, and of NVIDIA's containers.
BUILD = re.compile(r"cpu|xpu|cu[0-9]{2,3}|rocm[0-9](\.[0-9]{1,2}){0,2}|(g|git)?[0-9a-f]{7,40}(\.nv[0-9]{2}\.[0-9]{2})?")
LONGEST_VERSION = 64  # characters
TEMPERATURE = "temperature"  # the name of its check
QUANTIZER = "onnx.quantize"  # ONNX Runtime's name for itself as the producer of int8 files
MAX_IMAGES = 10**12  # a guard: more of them than anybody has
# Of a recorded proof: what version 0.1 already recorded, what every later one does, and what depends on images.
# Of each kind of message, what exports have.
EXPORTED_FIELDS = {
    "ModelProto": {"ir_version", "producer_name", "producer_version", "graph", "opset_import", "metadata_props"},
    "OperatorSetIdProto": {"domain", "version"},
    "StringStringEntryProto": {"key", "value"},
    "GraphProto": {"name", "node", "initializer", "input", "output", "value_info"},
    "NodeProto": {"name", "op_type", "domain", "input", "output", "attribute"},
    "AttributeProto": {"name", "type", "f", "i", "s", "t", "floats", "ints"},
    "TensorProto": {
        "name", "data_type", "dims", "raw_data", "float_data", "int32_data", "int64_data", "data_location",
        "external_data",
    },
    "ValueInfoProto": {"name", "type"},
    "TypeProto": {"tensor_type"},
    "Tensor": {"elem_type", "shape"},
    "TensorShapeProto": {"dim"},
    "Dimension": {"dim_param", "dim_value"},
}  # fmt: skip
RECORDED_BY_0_1 = {"provider", "tolerance", "nodes_by_provider", "images", "largest_batch", "validated"}
RECORDED_SINCE = {"black_box_only", "images_total", "images_fingerprint", "sample"}
ON_IMAGES = ("accuracy_torch", "accuracy_onnx", "top1_agreement", "max_abs_diff", "max_rel_diff")
ON_UNSEEN_IMAGES = ("val_accuracy_torch", "val_accuracy_onnx", "calibration_error_torch", "calibration_error_onnx")
SHARES = ("accuracy_torch", "accuracy_onnx", "top1_agreement", "calibration_error_torch", "calibration_error_onnx")
NOT_RECORDED = {"checks", "unverified"}
SAME_CALIBRATION = 0.02  # int8 on a CPU with other instructions
# Where nodes may run of a file that is verified on a provider; other runtimes do not tell.
PLACES = {
    runtime.CPU: {runtime.CPU},
    runtime.CUDA: {runtime.CPU, runtime.CUDA},
    runtime.TENSORRT: {runtime.CPU, runtime.CUDA, runtime.TENSORRT},
}
MARGINS = 1.5  # margins of 95%, three standard errors, by which two accuracies of the same network may differ
RELATIVE = 1e-3  # by which numbers that float64 gives differ from one machine to another
# Times a recorded largest difference may be less than that of now: other CPUs round otherwise, of more images one may
# be worse. Between precisions it is 40 and more.
LESS_ROUNDING = 10.0


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
    metadata: ModelMetadata,
    model: onnx.ModelProto,
    checkpoint: Checkpoint | None,
    origin: Origin,
    fitted_on: str | None = None,
) -> tuple[str, bool]:
    """Check the metadata against the graph and, if it is at hand, the checkpoint.

    Args:
        metadata: The file's metadata.
        model: The file.
        checkpoint: The checkpoint that it is compared with.
        origin: The run and the dataset that it names.
        fitted_on: The fingerprint of the images that a temperature is fitted on; by default that of the recorded proof.

    Returns:
        The faults, or what was compared, and whether it passed.
    """
    choices, names = precision_choices(metadata, model), origin.run_names
    made_by, error = _versions(metadata.made_by), metadata.quantization_error
    fitted_on = calibration_fingerprint(metadata) if fitted_on is None else fitted_on
    faults = {
        f"made by {metadata.made_by[:40]!r}, not by resnet-ops": made_by is None,
        f"made by {metadata.made_by[:40]!r}, newer than this resnet-ops {resnet_ops.__version__}": (
            made_by is not None and release(made_by["ours"]) > release(resnet_ops.__version__)
        ),
        f"precision choice {metadata.precision_choice!r}, the graph has {' or '.join(map(repr, sorted(choices)))}": (
            (metadata.precision_choice or "") not in choices
        ),
        f"a quantization error though it is {metadata.precision}": error is not None and metadata.precision != "int8",
        "no quantization error though it is int8": (
            error is None and metadata.precision == "int8" and not _is_from_0_1(metadata)
        ),
        "a temperature that is fitted on images that it was trained on": (
            metadata.calibration is not None and metadata.fitted_on_all and fitted_on == metadata.data_fingerprint
        ),
        "a quantization error on more images than are ever used": (
            error is not None and error.images > precision.CHOICE_IMAGES
        ),
        "a quantization error that cannot be": error is not None
        and not (error.mean <= error.largest and _is_count(error.agreement, error.images)),
        f"run is {metadata.run}, expected {' or '.join(sorted(names))}": (bool(names) and metadata.run not in names),
        f"{metadata.data} has another fingerprint": origin.data_fingerprint not in (None, metadata.data_fingerprint),
    } | dict.fromkeys(_claims_elsewhere(model, made_by["torch"] if made_by else "", metadata.precision), True)
    if checkpoint is not None:
        faults |= differences_from_checkpoint(metadata, checkpoint)
    versions = graph.tool_versions()
    other = "" if metadata.made_by == versions else f"; made by {metadata.made_by[:100]}, this is {versions}"
    if checkpoint is not None and metadata.run is not None and not names:
        other += f"; that its run was called {metadata.run[:40]} is not verified here"
    return summarize(faults, ("as in the checkpoint" if checkpoint else "as in the graph") + other)


def differences_from_checkpoint(metadata: ModelMetadata, checkpoint: Checkpoint) -> dict[str, bool]:
    """Compare what a file says of its network with its checkpoint, and return for each field in words if it differs."""
    same = {name: getattr(metadata, name) for name in OF_THE_FILE}
    expected = ModelMetadata.of(checkpoint.info, checkpoint.sha256, **same)
    pairs = {name: (getattr(metadata, name), getattr(expected, name)) for name in ModelMetadata.model_fields}
    return {_difference(name, *pair): pair[0] != pair[1] for name, pair in pairs.items()}


def _claims_elsewhere(model: onnx.ModelProto, torch_version: str, precision: Precision) -> Iterator[str]:
    """Yield what a file says where no export says anything, such as in documentation strings."""
    keys = Counter(entry.key for entry in model.metadata_props)
    if unknown := sorted(keys - Counter(list(ModelMetadata.model_fields))):
        yield f"unknown or repeated metadata {', '.join(key[:40] for key in unknown[:5])}"
    known = {f"{message}.{field}" for message, fields in EXPORTED_FIELDS.items() for field in fields}
    if strange := sorted(set(fields_in_use(model)) - known):
        yield f"it has {', '.join(strange)[:200]}, which no export has"
    elsewhere = [tensor for tensor in model.graph.initializer if tensor.data_location == TensorProto.EXTERNAL]
    if elsewhere and 2 * graph.weight_bytes(model) <= graph.ONE_FILE_BYTES:
        yield "it keeps weights in another file, though they fit into one"
    name, version = model.producer_name, model.producer_version
    by_torch = (name, version) == ("pytorch", torch_version)
    if not by_torch and not (precision == "int8" and name == QUANTIZER and _is_version(version)):
        yield f"its producer is {name[:40]!r} {version[:40]!r}"


def _versions(made_by: str) -> dict[str, str] | None:
    """Return the versions of the packages that made a file; None if it does not say that, or says more."""
    match, here = MADE_BY.fullmatch(made_by), MADE_BY.fullmatch(graph.tool_versions())
    if match is None or here is None:
        return None
    versions = match.groupdict()
    known = (version == here[name] or _is_version(version) for name, version in versions.items())
    return versions if all(known) else None


def _is_version(text: str) -> bool:
    """Return whether a text is a version as PEP 440 writes it, without words of its own."""
    if len(text) > LONGEST_VERSION:
        return False
    public, plus, build = text.partition("+")
    try:
        return Version(public).public == public and (not plus or BUILD.fullmatch(build) is not None)
    except InvalidVersion:
        return False


def _difference(name: str, actual: object, required: object) -> str:
    if name == "checkpoint_sha256":
        return "exported from another checkpoint"
    if name == "class_names":
        return "classes or their order differ"
    if name == "preprocessing":
        return "preprocessing differs"
    if name == "held_out":
        return "other validation images are held out"
    return f"{name.replace('_', ' ')} is {str(actual)[:60]}, expected {str(required)[:60]}"


def _is_count(share: float, images: int) -> bool:
    """Return whether a share of some images is a number of them."""
    return round(share * images, 6) % 1 == 0


def precision_choices(metadata: ModelMetadata, model: onnx.ModelProto) -> set[str]:
    """Return what `precision_choice` may be for this graph: the method of calibration leaves no trace in it."""
    if metadata.precision == "fp16":
        network = graph.with_inferred_shapes(model)
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
    recorded: ProofReport | None,
    metadata: ModelMetadata,
    model: onnx.ModelProto,
    report: ProofReport,
    all_images: int | None,
) -> tuple[str, bool]:
    """Check that the recorded proof is possible and, if it is of the same dataset, that its numbers are those of now.

    What depends on the machine, such as differences by rounding, is only held to the limit that it records.

    Args:
        recorded: The recorded proof; None if it is damaged.
        metadata: The file's metadata.
        model: The file.
        report: This verification.
        all_images: The number of images that there are, decodable or not; None if it is of another dataset.
    """
    same_data = all_images is not None
    if recorded is None:
        return "it is damaged", False
    faults = _form_faults(recorded, metadata)
    if any(faults.values()):  # the others compare numbers that are there
        return summarize(faults, "")
    n, total = recorded.images, recorded.images_total
    nodes = recorded.nodes_by_provider
    counts = {
        name: _is_count(value, n)
        for name in ("accuracy_torch", "accuracy_onnx", "top1_agreement")
        if n and (value := getattr(recorded, name)) == value
    }
    margin = sampling_margin(recorded.accuracy_onnx, n, total) if n else 0.0
    of_training = (recorded.images_fingerprint or metadata.data_fingerprint) == metadata.data_fingerprint
    # The checkpoint's own images are at hand, so that a claim about others needs them as well.
    own_images = report.images_fingerprint == metadata.data_fingerprint and not isnan(report.val_accuracy_torch)
    faults = {
        "it claims an accuracy on images that the network was trained on": (
            metadata.fitted_on_all and of_training and not recorded.has_seen_images and n > 0
        ),
        "it says of images that the network has seen them": (
            recorded.has_seen_images and not (metadata.fitted_on_all and of_training)
        ),
        "it is of other images than the run's own; if they are at hand, give them: --data": (
            own_images and not same_data and n > 0
        ),
        "it is of outputs only": bool(recorded.black_box_only),
        "it did not pass": (metadata.validation or {}).get("validated") is not True,
        f"provider {recorded.provider[:40]!r} is unknown": not {recorded.provider, *nodes} <= PLACES.keys(),
        f"nodes on {', '.join(sorted(nodes))[:100]} though it ran on {recorded.provider[:40]}": bool(nodes)
        and not {recorded.provider} <= nodes.keys() <= PLACES.get(recorded.provider, set()),
        "it says why it is of a sample as no proof does": bool(recorded.sample)
        and not budget.REASON.fullmatch(recorded.sample),
        f"{sum(nodes.values())} nodes ran of {len(model.graph.node)}": bool(nodes)
        and not (min(nodes.values()) > 0 and sum(nodes.values()) <= 2 * len(model.graph.node)),
        f"a largest batch of {recorded.largest_batch:,}": not _is_batch(recorded.largest_batch),
        f"a difference above its tolerance of {recorded.tolerance:g}": n > 0
        and not recorded.max_rel_diff <= recorded.tolerance,
        f"differences of {recorded.max_abs_diff:.1e} and, as a share, {recorded.max_rel_diff:.1e}": n > 0
        and not (
            min(recorded.max_abs_diff, recorded.max_rel_diff) > 0 or recorded.max_abs_diff == recorded.max_rel_diff
        ),
        "accuracies that differ by more than the answers do": n > 0
        and abs(recorded.accuracy_torch - recorded.accuracy_onnx) > 1 - recorded.top1_agreement + 1e-9,
        "its margin does not follow from its numbers": n > 0
        and recorded.accuracy_margin == recorded.accuracy_margin
        and not isclose(recorded.accuracy_margin, margin, rel_tol=RELATIVE, abs_tol=1e-9),
    } | {f"no count of {n:,} images is a {name.replace('_', ' ')}": not is_count for name, is_count in counts.items()}
    if all_images is not None and n:
        faults |= _compare(recorded, report, metadata, all_images)
    on_same = "those of now" if recorded.images == report.images else "within chance of those of now"
    passed = f"its numbers are {on_same}" if same_data and n else "possible"
    return summarize(faults, "; ".join((passed, *report.unverified)))


def _form_faults(recorded: ProofReport, metadata: ModelMetadata) -> dict[str, bool]:
    """Return what of a recorded proof is missing, or is no number that it can be."""
    recorded_names, n = (metadata.validation or {}).keys(), recorded.images
    required = RECORDED_BY_0_1 | (set() if _is_from_0_1(metadata) else RECORDED_SINCE)
    if n and not _is_from_0_1(metadata):
        required |= {"accuracy_margin"}
    missing = required - recorded_names
    unknown = recorded_names - (ProofReport.model_fields.keys() - NOT_RECORDED) - {"validated"}
    values = {name: getattr(recorded, name) for name in {*recorded_names, *ON_IMAGES, *SHARES} - unknown}
    numbers = {
        name: value for name, value in values.items() if isinstance(value, float) and not isinstance(value, bool)
    }
    expected = {*ON_IMAGES, "tolerance"} if n else {"tolerance"}
    if n and not recorded.has_seen_images:
        expected |= set(ON_UNSEEN_IMAGES)
    no_numbers = {
        name for name in expected | (numbers.keys() & recorded_names) if not isfinite(getattr(recorded, name))
    }
    known = {name: value for name, value in numbers.items() if isfinite(value)}
    claims = known.keys() - {"tolerance"}
    return {
        f"{n:,} of {recorded.images_total:,} images": not 0 <= n <= recorded.images_total
        or (n < recorded.images_total) != bool(recorded.sample),
        f"it lacks {_listed(missing)}": bool(missing),
        f"it has {_listed(unknown)}, which none has": bool(unknown),
        f"no number as {_listed(no_numbers)}": bool(no_numbers),
        f"numbers without images: {_listed(claims)}": n == 0 and bool(claims),
        "numbers that cannot be": any(value < 0 for value in known.values())
        or any(known.get(name, 0.0) > 1 for name in SHARES),
        "it claims an accuracy on unseen images beside that on seen ones": recorded.has_seen_images
        and any(name in known for name in ON_UNSEEN_IMAGES),
    }


def _listed(names: set[str]) -> str:
    return ", ".join(name.replace("_", " ")[:40] for name in sorted(names)[:5])


def _is_from_0_1(metadata: ModelMetadata) -> bool:
    """Return whether the file has, or before its verification may have, the form that version 0.1 wrote."""
    return not (metadata.validation or {}).keys() & RECORDED_SINCE


def unverified_claims(
    recorded: ProofReport | None, metadata: ModelMetadata, report: ProofReport, same_data: bool
) -> tuple[str, ...]:
    """Return what this verification cannot tell about the recorded proof."""
    if recorded is None:
        return ()
    elsewhere = report.images_fingerprint != metadata.data_fingerprint
    fitted_elsewhere = report.images_fingerprint != calibration_fingerprint(metadata)
    is_open = metadata.calibration is not None and all(check.name != TEMPERATURE for check in report.checks)
    notes = {
        "it is of other images, not verified here": recorded.images > 0 and not same_data,
        f"recorded on {recorded.provider[:40]}, not verified here": recorded.provider != report.provider,
        "its form is that of version 0.1": _is_from_0_1(metadata),
        "its temperature is fitted on other images, not verified here": is_open and fitted_elsewhere,
        "its temperature is not verified without its checkpoint": is_open and not fitted_elsewhere,
        "its quantization error is measured on other images, not verified here": (
            metadata.quantization_error is not None and elsewhere
        ),
    }
    return tuple(note for note, applies in notes.items() if applies)


def calibration_fingerprint(metadata: ModelMetadata) -> str:
    """Return the fingerprint of the images that a temperature is fitted on: those that the recorded proof is of."""
    recorded = read_recorded_proof(metadata)
    of_proof = recorded.images_fingerprint if recorded is not None and recorded.images else ""
    return of_proof or metadata.data_fingerprint


def read_recorded_proof(metadata: ModelMetadata) -> ProofReport | None:
    """Return the recorded proof; None if there is none, or it is damaged."""
    try:
        recorded = ProofReport.model_validate_json(json.dumps(metadata.validation), strict=True)
    except ValidationError:
        return None
    if max(abs(recorded.images), abs(recorded.images_total)) > MAX_IMAGES:
        return None
    if recorded.images_total:
        return recorded
    return recorded.model_copy(update={"images_total": recorded.images})  # version 0.1 always used all


def _is_batch(size: int) -> bool:
    return size == 0 or (1 <= size <= MAX_BATCH and size.bit_count() == 1)


def _compare(recorded: ProofReport, now: ProofReport, metadata: ModelMetadata, all_images: int) -> dict[str, bool]:
    """Compare the numbers of two proofs on the same dataset, which has so many images."""
    # A sample is of all, those that cannot be decoded, too; how many these are it does not tell.
    most = all_images if recorded.sample else now.images_total
    least = (1 - MAX_BAD_IMAGES) * most if now.sample and not recorded.sample else most
    faults = {f"{recorded.images_total:,} images, expected {most:,}": not least <= recorded.images_total <= most}
    same_sample = recorded.images == now.images
    for name in ("accuracy_torch", "top1_agreement"):
        then, value = getattr(recorded, name), getattr(now, name)
        allowed = 1 / now.images if metadata.precision != "int8" or name == "accuracy_torch" else SAME_CALIBRATION
        if not same_sample:
            allowed += MARGINS * accuracy_margin(recorded, now, then, value)
        faults[f"{name.replace('_', ' ')} {percent(then)}, now {percent(value)}"] = _differs(
            then, value, allowed + 1e-9
        )
    then, value = recorded.calibration_error_torch, now.calibration_error_torch
    faults[f"calibration error torch {then:.4f}, now {value:.4f}"] = not recorded.has_seen_images and _differs(
        then, value, calibration_margin(recorded, now, exact=True)
    )
    for name in ("max_abs_diff", "max_rel_diff"):
        then, value = getattr(recorded, name), getattr(now, name)
        faults[f"{name.replace('_', ' ')} {then:.1e}, now {value:.1e}"] = (
            recorded.provider == now.provider and then < value / LESS_ROUNDING
        )
    scale, scale_now = _scale(recorded), _scale(now)
    if same_sample and metadata.output == "logits" and recorded.max_rel_diff:
        faults[f"largest logit {scale:.4g}, now {scale_now:.4g}"] = _differs(scale, scale_now, RELATIVE * scale_now)
    return faults


def _differs(then: float, now: float, allowed: float) -> bool:
    """Return whether a recorded number is not that of now; without a checkpoint there is none to compare with."""
    return not isnan(now) and not abs(then - now) <= allowed  # a recorded NaN differs


def calibration_margin(recorded: ProofReport, now: ProofReport, exact: bool) -> float:
    """Return by how much two calibration errors on one dataset may differ; on few images they are far too large.

    Args:
        recorded: One proof.
        now: The other.
        exact: Whether they are of outputs that are the same everywhere but for the rounding of fp32: an image at the
            edge of a bin may then be in the next.
    """
    if recorded.images == now.images:
        return RELATIVE + 2 / now.images if exact else SAME_CALIBRATION
    return SAME_CALIBRATION + 2 / sqrt(min(recorded.images, now.images))


def accuracy_margin(recorded: ProofReport, now: ProofReport, then: float, value: float) -> float:
    """Return half the 95% confidence interval of the difference of two accuracies of two samples of one dataset."""
    total, then = now.images_total, min(max(then, 0.0), 1.0)
    return hypot(sampling_margin(value, now.images, total), sampling_margin(then, min(recorded.images, total), total))


def _scale(report: ProofReport) -> float:
    """Return the largest |logit| that the differences of a report follow from."""
    return report.max_abs_diff / report.max_rel_diff if report.max_rel_diff else nan
