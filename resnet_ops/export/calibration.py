"""Temperature scaling: one factor of all logits, fitted on validation images and folded into the weights of the head.

It makes the probabilities fit how often the network is right (Guo et al. 2017, On Calibration of Modern Neural
Networks, sec. 4.2). The most likely class stays the same, and the graph has no node more.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import nn

from resnet_ops.errors import WORK_FAILED, UserError
from resnet_ops.export.classifier import softmax
from resnet_ops.export.inputs import ResolvedCheckpoint, ValidationImages
from resnet_ops.export.metadata import MAX_TEMPERATURE, MIN_TEMPERATURE, Calibration, Preprocessing
from resnet_ops.export.reference import Reference
from resnet_ops.export.tolerances import top1_accuracy
from resnet_ops.formatting import percent
from resnet_ops.training.checkpoint import Checkpoint

BISECTIONS = 60  # of a range of 1e4, to the last bits of float64
SAME_FIT = 1e-3  # relative difference of fits to the same images on two machines
DEVIATIONS = 4.0  # standard errors by which fits to different images of a dataset may differ


def calibrate(checkpoint: Checkpoint, images: ValidationImages) -> Calibration:
    """Fit the temperature of a checkpoint on validation images.

    Raises:
        UserError: No image can be decoded, or none is classified incorrectly, so that no temperature is the best.
    """
    reference = Reference(checkpoint)
    crop = Preprocessing.of(checkpoint.info, "normalized").crop
    parts = [(reference.logits(pixels), labels) for pixels, labels in images.batches(crop)]
    if not parts:
        raise UserError("--calibrate: no validation image can be decoded.", "Choose others: --data.")
    logits, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
    temperature, accuracy = fit_temperature(logits, labels), top1_accuracy(logits, labels)
    if accuracy == 1 or not 1.01 * MIN_TEMPERATURE < temperature < 0.99 * MAX_TEMPERATURE:
        raise UserError(
            f"--calibrate: no temperature fits the {len(labels):,} validation images, with an accuracy of "
            f"{percent(accuracy)}.",
            "It is fitted to confident errors: use more validation images, or leave --calibrate out.",
            WORK_FAILED,
        )
    return Calibration(temperature=temperature, images=len(labels))


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature of the smallest mean cross-entropy of logits (N, classes) / temperature and labels (N,).

    The cross-entropy is convex in 1 / temperature. Where there is no smallest one, an end of the range is returned.
    """
    low, high = math.log(1 / MAX_TEMPERATURE), math.log(1 / MIN_TEMPERATURE)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if _slopes(logits, labels, math.exp(middle)).mean() < 0:
            low = middle
        else:
            high = middle
    return math.exp(-(low + high) / 2)


def _slopes(logits: np.ndarray, labels: np.ndarray, factor: float) -> np.ndarray:
    """Return the derivative by `factor` of each image's cross-entropy of logits * factor, (N,)."""
    expected = (softmax(logits * factor) * logits).sum(1)
    return np.asarray(expected - logits[np.arange(len(labels)), labels])


def scale_head(checkpoint: Checkpoint, calibration: Calibration | None) -> Checkpoint:
    """Return a checkpoint whose logits are divided by the temperature; the same one without a calibration."""
    if calibration is None:
        return checkpoint
    scaled = {name: checkpoint.model[name] / calibration.temperature for name in _head_parameters(checkpoint)}
    return replace(checkpoint, model=checkpoint.model | scaled)


def _head_parameters(checkpoint: Checkpoint) -> Sequence[str]:
    """Return the names of the weights and biases of the last layer."""
    layers = checkpoint.info.build_network().named_modules()
    (*_, head) = (name for name, module in layers if isinstance(module, nn.Linear))
    return f"{head}.weight", f"{head}.bias"


def scaled_checkpoint(resolved: ResolvedCheckpoint, calibration: Calibration | None) -> ResolvedCheckpoint:
    """Return the same checkpoint with its head scaled, also when it is read again."""
    return replace(
        resolved,
        checkpoint=scale_head(resolved.checkpoint, calibration),
        reread=lambda: scale_head(resolved.reread(), calibration),
    )


def check_calibration(logits: np.ndarray, labels: np.ndarray, calibration: Calibration) -> tuple[str, bool]:
    """Check that no other temperature than the recorded one fits logits that are already divided by it.

    Args:
        logits: Of validation images of the training, (N, classes).
        labels: Their classes, (N,).
        calibration: What the file records.
    """
    text, others = f"temperature {calibration.temperature:.4g}", calibration.images != len(labels)
    if others and top1_accuracy(logits, labels) == 1:
        return f"{text}, not compared: it is fitted to errors, and none of {len(labels):,} images is one", True
    factor = 1 / fit_temperature(logits, labels)
    # At the fit: there alone does the spread not depend on what the file says.
    h, fitted = 1e-4, logits * factor  # of a central difference
    curvature = float((_slopes(fitted, labels, 1 + h) - _slopes(fitted, labels, 1 - h)).mean()) / (2 * h)
    deviation = float(_slopes(fitted, labels, 1.0).std()) / max(curvature, 1e-12)  # of a fit to one image (White 1982)
    allowed = SAME_FIT
    if others:
        allowed += DEVIATIONS * deviation * math.sqrt(1 / len(labels) + 1 / calibration.images)
    return f"{text}, fitted here {calibration.temperature / factor:.4g}", abs(math.log(factor)) <= allowed
