"""Verification of an exported file as it is on the disk, against its checkpoint as it is on the disk.

Two pipelines compute the outputs for every image. One is the checkpoint's: our own preprocessing, torch, float64. The
other uses the file only: the preprocessing of its metadata or its graph, ONNX Runtime. They share nothing but the
pixels, so that a fault in the graph, the weights or the metadata shows as a difference. Single checks are in `checks`,
`metadata_checks` and `black_box`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import onnx

from resnet_ops.errors import UserError
from resnet_ops.export import graph, runtime, untrusted
from resnet_ops.export.black_box import BlackBox, probe_images
from resnet_ops.export.budget import ASKED, ProofSize, proof_size
from resnet_ops.export.calibration import check_calibration, images_to_fit
from resnet_ops.export.checks import (
    check_graph,
    check_nodes,
    check_resizing,
    fitting_batch,
    largest_batch,
    size_fault,
)
from resnet_ops.export.classifier import Classifier, softmax
from resnet_ops.export.inputs import PROOF_BATCH, ValidationImages
from resnet_ops.export.metadata import ModelMetadata, Precision
from resnet_ops.export.metadata_checks import (
    MARGINS,
    TEMPERATURE,
    Origin,
    accuracy_margin,
    calibration_fingerprint,
    calibration_margin,
    check_metadata,
    check_recorded_proof,
    read_recorded_proof,
    unverified_claims,
)
from resnet_ops.export.proof_report import ProofDraft, ProofReport
from resnet_ops.export.reference import Reference
from resnet_ops.export.tolerances import (
    MEASURED_LARGEST,
    TRAINING_ROUNDING,
    Comparison,
    Tolerances,
    compare_recalls,
    is_improbable,
    output_calibration_error,
    rounding_flips,
    tolerances_of,
    top1_accuracy,
)
from resnet_ops.export.white_box import FreshQuantization, WhiteBox
from resnet_ops.formatting import percent
from resnet_ops.significance import sampling_margin, standard_error
from resnet_ops.training.mixed_precision import MeasuredPrecision

SAME_ACCURACY = 0.005  # images may be decoded a little otherwise elsewhere
CHANCE = 2.0  # standard errors by which a sample may exceed a limit
NOT_RUN = "its outputs were not checked: --black-box does"


@dataclass(frozen=True)
class ProofThresholds:
    """The limits of a verification, and what is known about the file from elsewhere; None for what is not known.

    Args:
        provider: ONNX Runtime's name of the execution provider, or that of another runtime.
        opset: The opset that was asked for.
        precision: The precision that was asked for.
        tolerance: Largest max |difference| / max |logit|; by default as in `tolerances_of`.
        max_accuracy_drop: Largest drop of the accuracy, from 0 to 1, compared to the checkpoint.
        training_accuracy: The accuracy that training measured on the same images.
        origin: The run and the dataset that the metadata names.
        images: The number of images to use; by default all, or as many as take about a minute.
        seen: Whether the network was trained on the images: then it has no validation accuracy.
        recorded: Whether the file must record a proof, as every exported one does.
        black_box: Whether only outputs are checked: structure and weights are not.
    """

    provider: str
    opset: int | None = None
    precision: Precision | None = None
    tolerance: float | None = None
    max_accuracy_drop: float = 0.005
    training_accuracy: float | None = None
    origin: Origin = field(default_factory=Origin)
    images: int | None = None
    seen: bool = False
    recorded: bool = False
    black_box: bool = False


def verify_file(
    file: Path,
    reference: Reference | None,
    images: ValidationImages | None,
    thresholds: ProofThresholds,
    exported: onnx.ModelProto | None = None,
    on_check: Callable[[str], object] = lambda _: None,
) -> ProofReport:
    """Run all checks on an exported file.

    Args:
        file: The ONNX file.
        reference: The checkpoint that it was exported from; without it, the file is checked against its metadata only.
        images: The validation images; without them only random and extreme pixels are used.
        thresholds: The limits.
        exported: The network as exported to fp32, where it is at hand: otherwise it is exported again, to compare.
        on_check: Called with the name of each check before it runs.
    """
    draft = ProofDraft(provider=thresholds.provider).announcing(on_check)
    try:
        written, metadata = untrusted.scan(file)
        session = runtime.load(file, thresholds.provider)
    except UserError as error:
        draft.add("file", str(error), False)
        return ProofReport(**dict(draft))
    try:
        model = graph.with_inferred_shapes(written)
    except Exception as error:  # as in `ProofDraft.run`
        draft.add("file", str(error).splitlines()[0][:300], False)
        return ProofReport(**dict(draft))
    classifier = Classifier.from_session(metadata, session)
    checkpoint = reference.checkpoint if reference else None
    draft.run("file", lambda: check_graph(file, model, metadata, thresholds.opset, thresholds.precision))
    if isinstance(session, runtime.OnnxSession):  # others do not tell where nodes run
        draft.nodes_by_provider = session.nodes_by_provider
        draft.run("nodes", partial(check_nodes, file, session))
    # Before a proof is recorded, in an export, they are those of this one.
    fitted_on = images.fingerprint if images is not None and not thresholds.recorded else None
    draft.run("metadata", lambda: check_metadata(metadata, written, checkpoint, thresholds.origin, fitted_on))
    if fault := size_fault(model, metadata, checkpoint):
        draft.add("structure", fault, False)
        return ProofReport(**dict(draft))
    box = WhiteBox(untrusted.with_weights(file, model), metadata, checkpoint, images, exported)
    white_box = _check_white_box(draft, box, thresholds)
    if any(check.name == "structure" for check in draft.failed_checks):  # it may compute anything, for any time
        return ProofReport(**dict(draft))
    afresh = None if thresholds.black_box else box.quantized_afresh()
    measured = afresh.error if afresh else metadata.quantization_error
    tolerances = tolerances_of(metadata, thresholds.provider, thresholds.tolerance, measured)
    draft.tolerance = tolerances.largest
    if afresh and images is not None and images.fingerprint == metadata.data_fingerprint:
        draft.run("quantization error", partial(afresh.check_recorded, metadata.quantization_error))
    every_image = images
    if images is not None:
        images = _choose_images(draft, model, images, reference, thresholds, white_box)
    if metadata.input == "raw":
        draft.run("resize and crop", lambda: check_resizing(file, thresholds.provider, metadata, images), "2 levels")
    most = fitting_batch(model, classifier.crop, thresholds.provider)
    draft.largest_batch = largest_batch(model, most, thresholds.provider)
    outputs = BlackBox(classifier, reference, tolerances, most)
    _probe(draft, outputs, images, afresh)
    if images is not None and every_image is not None:
        _check_validation_set(draft, outputs, model, images, every_image, thresholds)
    elif metadata.validation is not None or thresholds.recorded:
        _check_record(draft, draft.model_copy(), read_recorded_proof(metadata), model, metadata, 0)
    return draft.of_seen_images() if thresholds.seen else ProofReport(**dict(draft))


def _check_white_box(draft: ProofDraft, box: WhiteBox, thresholds: ProofThresholds) -> bool:
    """Compare structure and weights; return whether both are known to be those of an export of the checkpoint."""
    before = len(draft.failed_checks)
    if thresholds.black_box:
        draft.black_box_only = "--black-box"
        return False
    draft.run("structure", box.check_structure)
    if draft.checks[-1].name == "structure" and not draft.checks[-1].passed:
        draft.checks[-1] = draft.checks[-1].model_copy(update={"result": f"{draft.checks[-1].result}; {NOT_RUN}"})
    if box.checkpoint is None:
        draft.black_box_only = "its checkpoint was not found"
        return False
    draft.run("weights", box.check_weights)
    if box.form is not None:
        draft.run("activation ranges", box.check_ranges)
    return len(draft.failed_checks) == before


def _choose_images(
    draft: ProofDraft,
    model: onnx.ModelProto,
    images: ValidationImages,
    reference: Reference | None,
    thresholds: ProofThresholds,
    white_box: bool,
) -> ValidationImages:
    """Return the images that the checks use, all or a stratified sample."""
    draft.images_total, draft.images_fingerprint = len(images), images.fingerprint
    if thresholds.images is None:
        device = reference.device if reference else None
        size = proof_size(model, images, thresholds.provider, device, white_box)
    else:
        size = ProofSize(thresholds.images, ASKED)
    chosen = images.stratified(size.images)
    draft.sample = size.reason if len(chosen) < len(images) else ""
    return chosen


def _probe(draft: ProofDraft, box: BlackBox, images: ValidationImages | None, afresh: FreshQuantization | None) -> None:
    """Run the checks of single images, batches, repeated runs and, where the graph resizes, images of many sizes."""
    largest, unlike = box.tolerances.largest, box.tolerances.unlike
    try:
        probes = probe_images(box.classifier.crop, images)
    except UserError as error:
        draft.add("real images", str(error), False)
        return
    for name, some in probes.items():
        limit = largest if name == "real images" else unlike
        if afresh and limit == unlike:
            limit = min(unlike, max(largest, MEASURED_LARGEST * afresh.largest_on([image for _, image in some])))
        draft.run(name, partial(box.check_images, some, limit), f"{limit:.1g}" if box.reference else "")
    pixels = np.stack([image for some in probes.values() for _, image in some])
    draft.run("batch sizes", lambda: box.check_batches(pixels, draft.largest_batch), f"{largest:.1g}")
    draft.run("repeated runs", lambda: box.check_repeats(pixels))
    if box.classifier.metadata.input == "raw":
        draft.run("resized images", box.check_resizing, f"{largest:.1g}")
        if images is not None:
            draft.run("stored images", lambda: box.check_stored(images), f"{largest:.1g}")


def _check_validation_set(
    draft: ProofDraft,
    box: BlackBox,
    model: onnx.ModelProto,
    images: ValidationImages,
    every_image: ValidationImages,
    thresholds: ProofThresholds,
) -> None:
    """Compute the outputs of both pipelines for the validation set, and check them.

    Args:
        draft: This proof.
        box: The file.
        model: Its content.
        images: The images that are used.
        every_image: All that there are, of which a temperature may be fitted on others.
        thresholds: The limits.
    """
    metadata = box.classifier.metadata
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    draft.announce("validation set")
    try:
        for pixels, labels in images.batches(box.classifier.crop, min(PROOF_BATCH, box.most)):
            outputs, expected = box.outputs(pixels), box.expected(pixels)
            parts.append((outputs if expected is None else expected, outputs, labels))
    except Exception as error:  # as in `ProofDraft.run`
        draft.add("validation set", str(error).splitlines()[0][:300], False)
        return
    if not parts:
        draft.add("validation set", "no image can be decoded", False)
        return
    expected, outputs, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
    if not draft.sample:
        draft.images_total = len(labels)  # without those that cannot be decoded
    comparison = Comparison(expected, outputs)
    _measure(draft, comparison, labels, box.reference is not None)
    draft.accuracy_margin = sampling_margin(draft.val_accuracy_onnx, draft.images, draft.images_total)
    if box.reference is None:
        draft.run("outputs", partial(_check_form, outputs, metadata))
    else:
        _check_outputs(draft, comparison, labels, metadata, box.tolerances, thresholds)
        fitted_on_these = not thresholds.recorded or images.fingerprint == calibration_fingerprint(metadata)
        if metadata.calibration and fitted_on_these and not thresholds.seen:
            fit = partial(images_to_fit, model, every_image, thresholds.provider, box.reference.device)
            most = max(fit(None), fit(thresholds.images))  # not fewer, though fewer are asked for
            check = partial(check_calibration, box.reference, every_image, metadata.calibration, most)
            draft.run(TEMPERATURE, check)
    precision = box.reference.info.precision if box.reference else None
    rounding = _training_rounding(comparison, precision, draft.images)
    if metadata.validation is not None or thresholds.recorded:
        recorded, on_same = read_recorded_proof(metadata), draft.model_copy()
        if recorded is not None and not draft.sample and 0 < recorded.images < len(labels) == len(images):
            chosen = np.isin(images.rows, images.stratified(recorded.images).rows)
            _measure(on_same, Comparison(expected[chosen], outputs[chosen]), labels[chosen], box.reference is not None)
        _check_record(draft, on_same, recorded, model, metadata, len(every_image))
        _check_recorded_accuracy(draft, recorded, metadata, rounding)
    _check_training_accuracy(draft, metadata, thresholds, rounding)


def _measure(report: ProofDraft, comparison: Comparison, labels: np.ndarray, against_torch: bool) -> None:
    """Set the numbers of a report to those on some images."""
    report.images = len(labels)
    report.val_accuracy_onnx = top1_accuracy(comparison.onnx, labels)
    if np.isfinite(comparison.onnx).all():
        report.calibration_error_onnx = output_calibration_error(softmax(comparison.onnx), labels)
    if against_torch:
        report.max_abs_diff, report.max_rel_diff = comparison.max_abs, comparison.max_rel
        report.top1_agreement = float(comparison.same_top1.mean())
        report.val_accuracy_torch = top1_accuracy(comparison.torch, labels)
        report.calibration_error_torch = output_calibration_error(softmax(comparison.torch), labels)


def _check_form(outputs: np.ndarray, metadata: ModelMetadata) -> tuple[str, bool]:
    """Check that outputs are finite, and logits or logarithms of probabilities, as the metadata says."""
    if not np.isfinite(outputs).all():
        return "not finite", False
    if metadata.output == "probabilities":
        sums = np.exp(outputs).sum(1)
        return "finite, of sum 1", bool(np.abs(sums - 1).max() < 1e-3)
    are_probabilities = outputs.min() >= 0 and np.abs(outputs.sum(1) - 1).max() < 1e-3
    return "finite" if not are_probabilities else "probabilities, not logits", not are_probabilities


def _check_outputs(
    draft: ProofDraft,
    comparison: Comparison,
    labels: np.ndarray,
    metadata: ModelMetadata,
    tolerances: Tolerances,
    thresholds: ProofThresholds,
) -> None:
    """Check the differences between the outputs of both pipelines for the validation set."""
    finite, exact = comparison.finite, metadata.precision == "fp32"

    def add(name: str, result: str, passed: bool, limit: str = "") -> None:
        draft.add(name, result if finite else "not finite", passed and finite, limit)

    used = f"{draft.images:,} of {draft.images_total:,}" if draft.sample else f"{draft.images:,}"
    difference = f"{comparison.max_rel:.1e} ({used} images)"
    name = "seen images" if thresholds.seen else "validation set"
    add(name, difference, comparison.max_rel <= tolerances.largest, f"{tolerances.largest:.1g}")
    if not exact:
        mean = comparison.mean_rel
        add("mean difference", f"{mean:.1e}", mean <= tolerances.mean, f"{tolerances.mean:.1e}")
    rounding = min(comparison.max_rel, tolerances.largest) if exact else min(comparison.mean_rel, tolerances.mean)
    rounding *= comparison.scale
    agreement = float((comparison.same_top1 | comparison.near_ties(rounding)).mean())
    # The limits are for all images: of a sample, what exceeds them by chance is not held against the file.
    least = tolerances.agreement - (CHANCE * standard_error(tolerances.agreement, draft.images) if draft.sample else 0)
    limit = "" if tolerances.agreement == 1 else percent(least, 1)
    ties = f", {percent(agreement)} without near ties" if agreement > draft.top1_agreement else ""
    add("top-1 agreement", percent(draft.top1_agreement) + ties, agreement >= least, limit)
    if not exact:
        add("agreement by class", *_compare_classes(comparison, rounding, 1 - tolerances.agreement))
        add("recall by class", *compare_recalls(comparison, labels, metadata.class_names, thresholds.max_accuracy_drop))
    drop, allowed = draft.val_accuracy_torch - draft.val_accuracy_onnx, thresholds.max_accuracy_drop
    # What tells of two accuracies on the same images is where one is right only (McNemar 1947).
    allowed += CHANCE * float(np.sqrt(comparison.discordant(labels).sum())) / draft.images
    # Not (drop > allowed): accuracies of NaN would pass.
    add("accuracy", f"{0 - drop * 100:+.2f} points", drop <= allowed + 1e-12, f"-{100 * allowed:.3g} points")


def _compare_classes(comparison: Comparison, rounding: float, rate: float) -> tuple[str, bool]:
    """Check that of no class more images flip than chance explains: one lost class of 100 is 1% of all images."""
    images, flips = comparison.flips_by_class(rounding)
    worst = int(np.argmax(flips / np.maximum(images, 1)))
    lost = [k for k in range(len(images)) if is_improbable(int(flips[k]), int(images[k]), rate, len(images))]
    label = lost[0] if lost else worst
    return f"at most {flips[label]} of {images[label]} images of a class flip", not lost


def _training_rounding(comparison: Comparison, precision: MeasuredPrecision | None, images: int) -> float:
    """Return by how much the accuracy may differ from that of the training, which was measured in `precision`.

    Of images that are near ties in it, each may have had another answer there.
    """
    ties = int(comparison.near_ties(TRAINING_ROUNDING[precision] * comparison.scale).sum())
    return max(SAME_ACCURACY, rounding_flips(ties) / images)


def _check_recorded_accuracy(
    draft: ProofDraft, recorded: ProofReport | None, metadata: ModelMetadata, rounding: float
) -> None:
    """Compare the recorded accuracy of the run's own images with that of the training, whichever are used here."""
    trained = metadata.val_accuracy
    if recorded is None or trained is None or not 0 < recorded.images <= recorded.images_total:
        return
    if recorded.images_fingerprint in ("", metadata.data_fingerprint):
        margin = sampling_margin(trained, recorded.images, recorded.images_total)
        draft.add(
            "recorded accuracy", *_compare_accuracy(recorded.accuracy_torch, trained, rounding + MARGINS * margin)
        )


def _check_training_accuracy(
    draft: ProofDraft, metadata: ModelMetadata, thresholds: ProofThresholds, rounding: float
) -> None:
    """Compare the accuracy with that of the training on the same images."""
    measured, trained = draft.val_accuracy_torch, thresholds.training_accuracy
    drop = 0.0
    if measured != measured:  # without a checkpoint: the file's, which says what its checkpoint had
        same = draft.images_fingerprint == metadata.data_fingerprint
        measured, trained = draft.val_accuracy_onnx, metadata.val_accuracy if same else None
        drop = 0.0 if metadata.precision == "fp32" else thresholds.max_accuracy_drop
    if trained is not None:
        limit = rounding + drop + MARGINS * draft.accuracy_margin
        draft.add("accuracy as in training", *_compare_accuracy(measured, trained, limit))


def _check_record(
    draft: ProofDraft,
    now: ProofDraft,
    recorded: ProofReport | None,
    model: onnx.ModelProto,
    metadata: ModelMetadata,
    all_images: int,
) -> None:
    """Compare the proof that a file records with this one.

    Args:
        draft: This proof.
        now: Its numbers on the images of the recorded one, if they were among those that were used.
        recorded: The recorded proof.
        model: The file.
        metadata: Its metadata.
        all_images: The number of images at hand, decodable or not.
    """
    same_data = (
        recorded is not None
        and draft.images > 0
        and draft.images_fingerprint == (recorded.images_fingerprint or metadata.data_fingerprint)
    )
    if recorded is not None and same_data and 0 < recorded.images <= recorded.images_total:
        then, value = recorded.accuracy_onnx, now.val_accuracy_onnx
        same_sample = recorded.images == now.images  # a sample of a size is always of the same images
        margin = 0.0 if same_sample else accuracy_margin(recorded, now, then, value)
        exact = metadata.precision == "fp32" and recorded.provider == draft.provider
        rounding = 1 / now.images if exact and same_sample else max(1 / now.images, SAME_ACCURACY)
        draft.add("accuracy as in metadata", *_compare_accuracy(value, then, rounding + MARGINS * margin))
        if not recorded.has_seen_images:
            off = abs(now.calibration_error_onnx - recorded.calibration_error_onnx)
            allowed = calibration_margin(recorded, now, exact)
            # Not (off > allowed): outputs that are not finite have no calibration error.
            draft.add("calibration as in metadata", f"differs by {off:.4f}", off <= allowed, f"{allowed:.4f}")
    draft.unverified = now.unverified = unverified_claims(recorded, metadata, draft, same_data)
    draft.run(
        "recorded proof",
        partial(check_recorded_proof, recorded, metadata, model, now, all_images if same_data else None),
    )


def _compare_accuracy(measured: float, recorded: float, limit: float) -> tuple[str, bool, str]:
    """Compare accuracies that are the same but for rounding and, if one is of a sample, chance."""
    difference = abs(measured - recorded)
    return f"differs by {percent(difference)}", difference <= limit + 1e-12, percent(limit, 1)
