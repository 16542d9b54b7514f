"""Verification of an exported file as it is on the disk, against its checkpoint as it is on the disk.

Two pipelines compute the outputs for every image. One is the checkpoint's: our own preprocessing, torch, float64. The
other uses the file only: the preprocessing of its metadata or its graph, ONNX Runtime. They share nothing but the
pixels, so that a fault in the graph, the weights or the metadata shows as a difference. Single checks are in `checks`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from pydantic import ConfigDict, Field, computed_field

from resnet_ops.errors import UserError
from resnet_ops.export import runtime, untrusted
from resnet_ops.export.budget import ProofSize, proof_size
from resnet_ops.export.checks import check_graph, check_metadata, check_nodes, check_resizing, largest_batch
from resnet_ops.export.classifier import Classifier, softmax
from resnet_ops.export.inputs import ValidationImages, random_pixels
from resnet_ops.export.metadata import Input, ModelMetadata, Precision
from resnet_ops.export.reference import Reference
from resnet_ops.export.tolerances import TOLERANCES, Comparison, calibration_error, top1_accuracy
from resnet_ops.files import Place
from resnet_ops.formatting import percent
from resnet_ops.results import Result
from resnet_ops.significance import sampling_margin, standard_error

BATCH_SIZES = (1, 7, 64)
RANDOM_IMAGES = 16  # each depends on every weight; batches repeat them
SAME_ACCURACY = 0.005  # bf16 on a GPU while training, float64 here
CHANCE = 2.0  # standard errors by which a sample may exceed a limit
MARGINS = 1.5  # margins of 95%, three standard errors, by which two accuracies of the same network may differ


class ProofCheck(Result):
    """One check of a file."""

    name: str = Field(description="Name of the check.")
    result: str = Field(serialization_alias="found", description="Its result in words; in JSON `found`.")
    passed: bool = Field(serialization_alias="held", description="Whether it passed; in JSON `held`.")
    limit: str = Field(default="", description="The limit that it is held to, if there is one.")


class ProofReport(Result):
    """The checks of one file and their numbers. What could not be measured is NaN, in JSON null."""

    provider: str = Field(description="ONNX Runtime's execution provider, or OpenVINO or OpenCV.")
    tolerance: float = Field(default=nan, description="Largest max_rel_diff that passes.")
    checks: list[ProofCheck] = Field(default_factory=list, description="Each check: name, found, held, limit.")
    nodes_by_provider: dict[str, int] = Field(default_factory=dict, description="Number of nodes that each one ran.")
    images: int = Field(default=0, description="Validation images that were used.")
    images_total: int = Field(default=0, description="Validation images that there are; with fewer, a sample was used.")
    sample: str = Field(default="", description="Why a stratified sample was used; empty if all images were.")
    accuracy_margin: float = Field(
        default=nan, description="Half the 95% confidence interval of val_accuracy_onnx for a sample; 0 for all images."
    )
    largest_batch: int = Field(default=0, description="Largest batch that was tried.")
    max_abs_diff: float = Field(default=nan, description="Largest |difference| of logits on the validation images.")
    max_rel_diff: float = Field(default=nan, description="The same as a share of the largest |logit|.")
    top1_agreement: float = Field(default=nan, description="Share of the images, 0 to 1, with the same top class.")
    val_accuracy_torch: float = Field(default=nan, description="Top-1 accuracy of the checkpoint, 0 to 1.")
    val_accuracy_onnx: float = Field(default=nan, description="Top-1 accuracy of the file, 0 to 1.")
    seen_accuracy_torch: float = Field(
        default=nan,
        description="Instead, of a network that is fitted on all images: on images that it has seen, to compare the "
        "file with the checkpoint and no more.",
    )
    seen_accuracy_onnx: float = Field(default=nan, description="The same of the file.")
    calibration_error_torch: float = Field(default=nan, description="Expected calibration error of the checkpoint.")
    calibration_error_onnx: float = Field(default=nan, description="Expected calibration error of the file.")

    @computed_field(description="Whether all checks passed.")  # type: ignore[prop-decorator]
    @property
    def validated(self) -> bool:
        """Return whether all checks passed."""
        return bool(self.checks) and not self.failed_checks

    @property
    def failed_checks(self) -> list[ProofCheck]:
        """Return the checks that failed."""
        return [check for check in self.checks if not check.passed]

    def summary(self) -> dict[str, Any]:
        """Return the numbers that were measured, as the metadata of the file keeps them."""
        return {name: value for name, value in self.model_dump(exclude={"checks"}).items() if value == value}


class ValidationResult(ProofReport):
    """The verification of a file on this machine; without its checkpoint, against its metadata alone."""

    onnx: Place = Field(description="The file.")
    precision: Precision = Field(description="fp32, fp16 or int8.")
    input: Input = Field(description="normalized: floats (N, C, H, W); raw: pixels (N, H, W, C) uint8 of any size.")
    checkpoint: Place | None = Field(description="The checkpoint that it was compared with.")
    total_s: float = Field(description="Seconds from the request to this result.")
    metadata: ModelMetadata = Field(exclude=True, description="The file's metadata.")

    @computed_field(description="Whether all checks passed on a GPU.")  # type: ignore[prop-decorator]
    @property
    def cuda_validated(self) -> bool:
        """Return whether all checks passed on a GPU."""
        return self.provider in (runtime.CUDA, runtime.TENSORRT) and self.validated


@dataclass(frozen=True)
class ProofThresholds:
    """The limits of a verification, and what is known about the file from elsewhere; None for what is not known.

    Args:
        provider: ONNX Runtime's name of the execution provider, or that of another runtime.
        opset: The opset that was asked for.
        tolerance: Largest max |difference| / max |logit|; by default as in `TOLERANCES`.
        max_accuracy_drop: Largest drop of the accuracy, from 0 to 1, compared to the checkpoint.
        training_accuracy: The accuracy that training measured on the same images.
        metadata_accuracy: The accuracy on the same images, or on a sample of them, in the file's metadata.
        metadata_images: Number of the images that it was measured on; 0 where that is not recorded.
        images: The number of images to use; by default all, or as many as take about a minute.
        seen: Whether the network was trained on the images: then it has no validation accuracy.
    """

    provider: str
    opset: int | None = None
    tolerance: float | None = None
    max_accuracy_drop: float = 0.005
    training_accuracy: float | None = None
    metadata_accuracy: float | None = None
    metadata_images: int = 0
    images: int | None = None
    seen: bool = False


class ProofDraft(ProofReport):
    """A report to which checks are still added."""

    model_config = ConfigDict(frozen=False)

    def add(self, name: str, result: str, passed: bool, limit: str = "") -> None:
        """Add the result of a check."""
        self.checks.append(ProofCheck(name=name, result=result, passed=passed, limit=limit))

    def run(self, name: str, check: Callable[[], tuple[str, bool]], limit: str = "") -> None:
        """Run a check and add its result; one that raises has failed."""
        try:
            result, passed = check()
        except Exception as error:  # ONNX and ONNX Runtime raise errors of any kind on a faulty file
            lines = str(error).strip().splitlines() or [type(error).__name__]
            result, passed = lines[0][:300], False
        self.add(name, result, passed, limit)


def verify_file(
    file: Path, reference: Reference | None, images: ValidationImages | None, thresholds: ProofThresholds
) -> ProofReport:
    """Run all checks on an exported file.

    Args:
        file: The ONNX file.
        reference: The checkpoint that it was exported from; without it, the file is checked against its metadata only.
        images: The validation images; without them only random pixels are used.
        thresholds: The limits.
    """
    draft = ProofDraft(provider=thresholds.provider)
    try:
        model, metadata = untrusted.scan(file)
        session = runtime.load(file, thresholds.provider)
    except UserError as error:
        draft.add("file", str(error), False)
        return ProofReport(**dict(draft))
    classifier = Classifier.from_session(metadata, session)
    draft.tolerance = thresholds.tolerance or TOLERANCES[metadata.precision].largest[thresholds.provider]
    if images is not None:
        images = _choose_images(draft, model, images, reference, thresholds)
    draft.run("file", lambda: check_graph(file, model, metadata, thresholds.opset))
    if isinstance(session, runtime.OnnxSession):  # others do not tell where nodes run
        draft.nodes_by_provider = session.nodes_by_provider
        draft.run("nodes", partial(check_nodes, file, session))
    if reference is not None:
        draft.run("metadata", lambda: check_metadata(metadata, reference.checkpoint))
    if metadata.input == "raw":
        draft.run("resize and crop", lambda: check_resizing(file, thresholds.provider, metadata, images), "2 levels")
    draft.largest_batch = largest_batch(model, classifier.crop, thresholds.provider)
    if reference is not None:
        _check_batch_sizes(draft, classifier, reference, images)
    if images is not None:
        _check_validation_set(draft, classifier, reference, images, thresholds)
    if thresholds.seen:
        draft.seen_accuracy_torch, draft.val_accuracy_torch = draft.val_accuracy_torch, nan
        draft.seen_accuracy_onnx, draft.val_accuracy_onnx = draft.val_accuracy_onnx, nan
        draft.calibration_error_torch = draft.calibration_error_onnx = nan
    return ProofReport(**dict(draft))


def _choose_images(
    draft: ProofDraft,
    model: onnx.ModelProto,
    images: ValidationImages,
    reference: Reference | None,
    thresholds: ProofThresholds,
) -> ValidationImages:
    """Return the images that the checks use, all or a stratified sample."""
    draft.images_total = len(images)
    if thresholds.images is None:
        size = proof_size(model, images, thresholds.provider, reference.device if reference else None)
    else:
        size = ProofSize(thresholds.images, "as --images asks")
    chosen = images.stratified(size.images)
    draft.sample = size.reason if len(chosen) < len(images) else ""
    return chosen


def _check_batch_sizes(
    draft: ProofDraft, classifier: Classifier, reference: Reference, images: ValidationImages | None
) -> None:
    """Compare outputs for random and real pixels in batches of several sizes, which repeat the images."""
    crop, limit = classifier.crop, f"{draft.tolerance:.0e}"
    sizes = sorted({*BATCH_SIZES, draft.largest_batch})
    listed = ", ".join(map(str, sizes))

    def compare(pixels: np.ndarray) -> tuple[str, bool]:
        expected = _expected_outputs(classifier, reference, pixels)
        worst = 0.0
        for size in sizes:
            rows = np.arange(size) % len(pixels)
            comparison = Comparison(expected[rows], classifier.run(pixels[rows]).astype(np.float64))
            if not comparison.finite:
                return f"not finite at batch size {size}", False
            worst = max(worst, comparison.max_rel)
        return f"{worst:.1e} (batch {listed})", worst <= draft.tolerance

    draft.run("random pixels", lambda: compare(random_pixels(RANDOM_IMAGES, crop)), limit)
    if images is not None:
        draft.run("real images", lambda: compare(images.first(max(BATCH_SIZES), crop)), limit)


def _expected_outputs(classifier: Classifier, reference: Reference, pixels: np.ndarray) -> np.ndarray:
    logits = reference.logits(pixels)
    return softmax(logits) if classifier.metadata.output == "probabilities" else logits


def _check_validation_set(
    draft: ProofDraft,
    classifier: Classifier,
    reference: Reference | None,
    images: ValidationImages,
    thresholds: ProofThresholds,
) -> None:
    """Compute the outputs of both pipelines for the validation set, and check them."""
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    try:
        for pixels, labels in images.batches(classifier.crop):
            outputs = classifier.run(pixels).astype(np.float64)
            parts.append((_expected_outputs(classifier, reference, pixels) if reference else outputs, outputs, labels))
    except Exception as error:  # as in `ProofDraft.run`
        draft.add("validation set", str(error).splitlines()[0][:300], False)
        return
    if not parts:
        draft.add("validation set", "no image can be decoded", False)
        return
    expected, outputs, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
    draft.images = len(labels)
    if not draft.sample:
        draft.images_total = draft.images  # without those that cannot be decoded
    are_probabilities, finite = classifier.metadata.output == "probabilities", bool(np.isfinite(outputs).all())
    draft.val_accuracy_onnx = top1_accuracy(outputs, labels)
    draft.accuracy_margin = sampling_margin(draft.val_accuracy_onnx, draft.images, draft.images_total)
    if finite:
        draft.calibration_error_onnx = calibration_error(outputs if are_probabilities else softmax(outputs), labels)
    if thresholds.metadata_accuracy is not None:
        recorded, total = thresholds.metadata_accuracy, draft.images_total
        # A sample of a size is always of the same images.
        same_sample = thresholds.metadata_images in (0, draft.images)
        margins = (
            (0.0, 0.0)
            if same_sample
            else (draft.accuracy_margin, sampling_margin(recorded, thresholds.metadata_images, total))
        )
        compared = _compare_accuracy(draft.val_accuracy_onnx, recorded, float(np.hypot(*margins)))
        draft.add("accuracy as in metadata", *compared)
    if reference is None:
        draft.add("outputs", "finite" if finite else "not finite", finite)
        return
    draft.val_accuracy_torch = top1_accuracy(expected, labels)
    draft.calibration_error_torch = calibration_error(expected if are_probabilities else softmax(expected), labels)
    _check_outputs(draft, Comparison(expected, outputs), labels, classifier.metadata.precision, thresholds)


def _check_outputs(
    draft: ProofDraft, comparison: Comparison, labels: np.ndarray, precision: Precision, thresholds: ProofThresholds
) -> None:
    """Check the differences between the outputs of both pipelines for the validation set."""
    tolerances, finite, exact = TOLERANCES[precision], comparison.finite, precision == "fp32"
    draft.max_abs_diff, draft.max_rel_diff = comparison.max_abs, comparison.max_rel
    draft.top1_agreement = float(comparison.same_top1.mean())

    def add(name: str, result: str, passed: bool, limit: str = "") -> None:
        draft.add(name, result if finite else "not finite", passed and finite, limit)

    used = f"{draft.images:,} of {draft.images_total:,}" if draft.sample else f"{draft.images:,}"
    difference = f"{comparison.max_rel:.1e} ({used} images)"
    add(
        "seen images" if thresholds.seen else "validation set",
        difference,
        comparison.max_rel <= draft.tolerance,
        f"{draft.tolerance:.0e}",
    )
    if not exact:
        mean = comparison.mean_rel
        add("mean difference", f"{mean:.1e}", mean <= tolerances.mean, f"{tolerances.mean:.0e}")
    rounding = min(comparison.max_rel, draft.tolerance) if exact else min(comparison.mean_rel, tolerances.mean)
    agreement = float((comparison.same_top1 | comparison.near_ties(rounding * comparison.scale)).mean())
    # The limits are for all images: of a sample, what exceeds them by chance is not held against the file.
    least = tolerances.agreement - (CHANCE * standard_error(tolerances.agreement, draft.images) if draft.sample else 0)
    limit = "" if tolerances.agreement == 1 else percent(least, 1)
    ties = f", {percent(agreement)} without near ties" if agreement > draft.top1_agreement else ""
    add("top-1 agreement", percent(draft.top1_agreement) + ties, agreement >= least, limit)
    drop, allowed = draft.val_accuracy_torch - draft.val_accuracy_onnx, thresholds.max_accuracy_drop
    if draft.sample:  # what tells of two accuracies on the same images is where one is right only (McNemar 1947)
        allowed += CHANCE * float(np.sqrt(comparison.discordant(labels).sum())) / draft.images
    # Not (drop > allowed): accuracies of NaN would pass.
    add("accuracy", f"{0 - drop * 100:+.2f} points", drop <= allowed + 1e-12, f"-{100 * allowed:.3g} points")
    if thresholds.training_accuracy is not None:
        margin = draft.accuracy_margin
        compared = _compare_accuracy(draft.val_accuracy_torch, thresholds.training_accuracy, margin)
        add("accuracy as in training", *compared)


def _compare_accuracy(measured: float, recorded: float, margin: float) -> tuple[str, bool, str]:
    """Compare accuracies that are the same but for rounding and, if one is of a sample, chance."""
    difference, limit = abs(measured - recorded), SAME_ACCURACY + MARGINS * margin
    return f"differs by {percent(difference)}", difference <= limit, percent(limit, 1)
