"""Tries to refute an exported file: as it lies on the disk, against the checkpoint as it lies on the disk.

Two pipelines answer every image. One is the checkpoint's: our own preprocessing, torch, float64. The other knows the
file only: the preprocessing that its metadata tells or its graph does, ONNX Runtime. They share nothing but the pixels,
so that a fault in the graph, in the weights or in the metadata shows as a difference.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ConfigDict, Field, computed_field

from resnet_ops.errors import UserError
from resnet_ops.export import runtime, untrusted
from resnet_ops.export.checks import (
    LIMITS,
    Comparison,
    accuracy,
    calibration_error,
    check_content,
    check_file,
    compare_resizing,
    largest_batch,
)
from resnet_ops.export.classifier import Classifier, softmax
from resnet_ops.export.inputs import ValidationImages, noise
from resnet_ops.export.metadata import Input, ModelMetadata, Precision
from resnet_ops.export.reference import Reference
from resnet_ops.files import Place
from resnet_ops.formatting import percent
from resnet_ops.results import Result

BATCHES = (1, 7, 64)
SAME_ACCURACY = 0.005  # bf16 on a GPU while training, float64 here


@dataclass(frozen=True)
class ProofCheck:
    """One attempt at refutation: what was looked at, what was found, whether it held."""

    name: str
    found: str
    held: bool
    limit: str = ""


class ProofReport(Result):
    """All that was tried against one file. What could not be measured is NaN, in JSON null."""

    provider: str = Field(description="ONNX Runtime's execution provider.")
    tolerance: float = Field(default=nan, description="Largest max_rel_diff that passes.")
    checks: list[ProofCheck] = Field(default_factory=list, description="Each check: name, found, held, limit.")
    nodes_by_provider: dict[str, int] = Field(default_factory=dict, description="Number of nodes that each one ran.")
    images: int = Field(default=0, description="Validation images.")
    largest_batch: int = Field(default=0, description="Largest batch that was tried.")
    max_abs_diff: float = Field(default=nan, description="Largest |difference| of logits on the validation images.")
    max_rel_diff: float = Field(default=nan, description="The same as a share of the largest |logit|.")
    top1_agreement: float = Field(default=nan, description="Share of the images, 0 to 1, with the same top class.")
    val_accuracy_torch: float = Field(default=nan, description="Top-1 accuracy of the checkpoint, 0 to 1.")
    val_accuracy_onnx: float = Field(default=nan, description="Top-1 accuracy of the file, 0 to 1.")
    calibration_error_torch: float = Field(default=nan, description="Expected calibration error of the checkpoint.")
    calibration_error_onnx: float = Field(default=nan, description="Expected calibration error of the file.")

    @computed_field(description="Whether all checks passed.")  # type: ignore[prop-decorator]
    @property
    def validated(self) -> bool:
        """Whether everything held."""
        return bool(self.checks) and all(check.held for check in self.checks)

    @property
    def refuted_by(self) -> list[ProofCheck]:
        """What did not hold."""
        return [check for check in self.checks if not check.held]


class ValidationResult(ProofReport):
    """A file's proof on this machine; without its checkpoint it was put against its own metadata alone."""

    onnx: Place = Field(description="The file.")
    precision: Precision = Field(description="fp32, fp16 or int8.")
    input: Input = Field(description="normalized: floats (N, C, H, W); raw: pixels (N, H, W, C) uint8 of any size.")
    checkpoint: Place | None = Field(description="The checkpoint that it was compared with.")
    total_s: float = Field(description="Seconds from the request to this result.")
    metadata: ModelMetadata = Field(exclude=True, description="The file's metadata.")

    @computed_field(description="Whether all checks passed on a GPU.")  # type: ignore[prop-decorator]
    @property
    def cuda_validated(self) -> bool:
        """Whether everything held, and not on a CPU."""
        return self.provider != runtime.CPU and self.validated


class Proof(ProofReport):
    """A report while it is being made."""

    model_config = ConfigDict(frozen=False)

    def attempt(self, name: str, check: Callable[[], tuple[str, bool]], limit: str = "") -> None:
        """Add a check; one that raises did not hold."""
        try:
            found, held = check()
        except Exception as error:  # whatever ONNX or ONNX Runtime raise on a faulty file refutes it
            lines = str(error).strip().splitlines() or [type(error).__name__]
            found, held = lines[0][:300], False
        self.checks.append(ProofCheck(name, found, held, limit))

    def summary(self) -> dict[str, Any]:
        """Its numbers, without those that could not be measured, as the file itself then holds them."""
        return {name: value for name, value in self.model_dump(exclude={"checks"}).items() if value == value}


@dataclass(frozen=True)
class ProofThresholds:
    """What a file is held to beside its own word; None where nothing is known.

    Args:
        provider: ONNX Runtime's name of the execution provider.
        opset: The operator set that was asked for.
        tolerance: Largest max |difference| / max |logit|; by default as in `LIMITS`.
        max_accuracy_drop: Share of the images, from 0 to 1, that it may get wrong more often than the checkpoint.
        recorded_accuracy: What training measured on the same images.
        said_accuracy: What the file says of its own accuracy on the same images.
    """

    provider: str
    opset: int | None = None
    tolerance: float | None = None
    max_accuracy_drop: float = 0.005
    recorded_accuracy: float | None = None
    said_accuracy: float | None = None


def prove(file: Path, reference: Reference | None, shown: ValidationImages | None, demands: ProofThresholds) -> Proof:
    """Try everything against an exported file.

    Args:
        file: The ONNX file.
        reference: The checkpoint that it was made of; without it, the file is put against its own word only.
        shown: The validation images; without them only random pixels are shown.
        demands: What it is held to.
    """
    proof = Proof(provider=demands.provider)
    try:
        model, metadata = untrusted.scan(file)
        session = runtime.load(file, demands.provider)
    except UserError as error:
        proof.checks.append(ProofCheck("file", str(error), False))
        return proof
    classifier = Classifier.of(metadata, session)
    proof.nodes_by_provider = session.nodes_by_provider
    limits = LIMITS[metadata.precision]
    proof.tolerance = demands.tolerance or limits.largest[demands.provider]
    proof.attempt("file", lambda: check_file(file, model, metadata, demands.opset))
    proof.attempt("nodes", lambda: _check_nodes(session))
    if reference is not None:
        proof.attempt("metadata", lambda: check_content(metadata, reference.checkpoint))
    if metadata.input == "raw":
        proof.attempt("resize and crop", lambda: compare_resizing(file, demands.provider, metadata, shown), "2 levels")
    proof.largest_batch = largest_batch(model, classifier.frame)
    if reference is not None:
        _try_batches(proof, classifier, reference, shown)
    if shown is not None:
        _show_all(proof, classifier, reference, shown, demands)
    return proof


def _try_batches(proof: Proof, classifier: Classifier, reference: Reference, shown: ValidationImages | None) -> None:
    """Random and real pixels in batches of several sizes; the largest one repeats what fewer images gave."""
    frame, limit = classifier.frame, f"{proof.tolerance:.0e}"
    batches = sorted({*BATCHES, proof.largest_batch})
    named = ", ".join(map(str, batches))

    def within(pixels: np.ndarray) -> tuple[str, bool]:
        expected = _expected(classifier, reference, pixels)
        worst = 0.0
        for batch in batches:
            rows = np.arange(batch) % len(pixels)
            pair = Comparison(expected[rows], classifier.run(pixels[rows]).astype(np.float64))
            if not pair.finite:
                return f"not finite at batch size {batch}", False
            worst = max(worst, pair.max_rel)
        return f"{worst:.1e} (batch {named})", worst <= proof.tolerance

    proof.attempt("random pixels", lambda: within(noise(max(BATCHES), frame)), limit)
    if shown is not None:
        proof.attempt("real images", lambda: within(shown.first(max(BATCHES), frame)), limit)


def _expected(classifier: Classifier, reference: Reference, pixels: np.ndarray) -> np.ndarray:
    logits = reference.logits(pixels)
    return softmax(logits) if classifier.metadata.output == "probabilities" else logits


def _show_all(
    proof: Proof, classifier: Classifier, reference: Reference | None, shown: ValidationImages, demands: ProofThresholds
) -> None:
    """The validation set, through both pipelines."""
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    try:
        for pixels, labels in shown.batches(classifier.frame):
            found = classifier.run(pixels).astype(np.float64)
            parts.append((_expected(classifier, reference, pixels) if reference else found, found, labels))
    except Exception as error:  # as above: the file is refuted, not the validator broken
        proof.checks.append(ProofCheck("validation set", str(error).splitlines()[0][:300], False))
        return
    expected, found, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
    proof.images = len(labels)
    probable = classifier.metadata.output == "probabilities"
    proof.val_accuracy_onnx = accuracy(found, labels)
    if np.isfinite(found).all():
        proof.calibration_error_onnx = calibration_error(found if probable else softmax(found), labels)
    if demands.said_accuracy is not None:
        apart = abs(proof.val_accuracy_onnx - demands.said_accuracy)
        held, limit = apart <= SAME_ACCURACY, percent(SAME_ACCURACY, 1)
        proof.checks.append(ProofCheck("accuracy as in metadata", f"differs by {percent(apart)}", held, limit))
    if reference is None:
        finite = bool(np.isfinite(found).all())
        proof.checks.append(ProofCheck("outputs", "finite" if finite else "not finite", finite))
        return
    proof.val_accuracy_torch = accuracy(expected, labels)
    proof.calibration_error_torch = calibration_error(expected if probable else softmax(expected), labels)
    _judge(proof, Comparison(expected, found), classifier.metadata, demands)


def _judge(proof: Proof, whole: Comparison, metadata: ModelMetadata, demands: ProofThresholds) -> None:
    limits = LIMITS[metadata.precision]
    proof.max_abs_diff, proof.max_rel_diff = whole.max_abs, whole.max_rel
    proof.top1_agreement = float(whole.agrees.mean())

    def add(name: str, found: str, held: bool, limit: str = "") -> None:
        proof.checks.append(ProofCheck(name, found if whole.finite else "not finite", held and whole.finite, limit))

    add(
        "validation set",
        f"{whole.max_rel:.1e} ({proof.images:,} images)",
        whole.max_rel <= proof.tolerance,
        f"{proof.tolerance:.0e}",
    )
    if metadata.precision != "fp32":
        add("mean difference", f"{whole.mean_rel:.1e}", whole.mean_rel <= limits.mean, f"{limits.mean:.0e}")
    exact = metadata.precision == "fp32"
    rounding = min(whole.max_rel, proof.tolerance) if exact else min(whole.mean_rel, limits.mean)
    counted = whole.agrees | whole.ties(rounding * whole.scale)
    needed = "" if limits.agreement == 1 else percent(limits.agreement, 1)
    add("top-1 agreement", percent(proof.top1_agreement), float(counted.mean()) >= limits.agreement, needed)
    drop, allowed = proof.val_accuracy_torch - proof.val_accuracy_onnx, demands.max_accuracy_drop
    # Not (drop > allowed): accuracies of NaN would pass.
    add("accuracy", f"{0 - drop * 100:+.2f} points", drop <= allowed + 1e-12, f"-{100 * allowed:g} points")
    if demands.recorded_accuracy is not None:
        apart = abs(proof.val_accuracy_torch - demands.recorded_accuracy)
        add(
            "accuracy as in training", f"differs by {percent(apart)}", apart <= SAME_ACCURACY, percent(SAME_ACCURACY, 1)
        )


def _check_nodes(session: runtime.OnnxSession) -> tuple[str, bool]:
    where = session.provider.removesuffix("ExecutionProvider")
    elsewhere = session.elsewhere
    if elsewhere:
        named = ", ".join(f"{node.operator} {node.name}" for node in elsewhere[:5])
        more = f" and {len(elsewhere) - 5} more" if len(elsewhere) > 5 else ""
        on = ", ".join(sorted({node.provider.removesuffix("ExecutionProvider") for node in elsewhere}))
        return f"{where} requested, {len(elsewhere)} nodes on {on}: {named}{more}", False
    own = session.nodes_by_provider.get(session.provider, 0)
    rest = "" if own == len(session.nodes) else "; the others compute shapes"
    return f"{own} of {len(session.nodes)} on {where}{rest}", own > 0
