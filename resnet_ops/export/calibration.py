"""Temperature scaling: one factor of all logits, fitted on validation images and folded into the weights of the head.

It makes the probabilities fit how often the network is right (Guo et al. 2017, On Calibration of Modern Neural
Networks, sec. 4.2). The most likely class stays the same, and the graph has no node more.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx
import torch
from torch import nn

from resnet_ops.errors import WORK_FAILED, UserError
from resnet_ops.export.budget import proof_size
from resnet_ops.export.checks import memory_to_use
from resnet_ops.export.classifier import softmax
from resnet_ops.export.inputs import PROOF_BATCH, ResolvedCheckpoint, ValidationImages
from resnet_ops.export.metadata import MAX_TEMPERATURE, MIN_TEMPERATURE, Calibration, Preprocessing
from resnet_ops.export.reference import Reference
from resnet_ops.export.tolerances import top1_accuracy
from resnet_ops.formatting import percent
from resnet_ops.training.checkpoint import Checkpoint

LOGIT_BYTES = 4 * 8  # of each image and class: logits, their multiple, probabilities and a product of them, float64
BISECTIONS = 60  # of a range of 1e4, to the last bits of float64
SAME_FIT = 1e-3  # relative difference of fits to the same images on two machines
ERRORS = 4.0  # standard errors that a fit to a part of the images may be off
STEP = 1e-3  # of the logarithm of the temperature, for a derivative


def images_to_fit(
    model: onnx.ModelProto, images: ValidationImages, provider: str, device: torch.device | None, asked: int | None
) -> int:
    """Return how many of some images a temperature is fitted to, within the budget of a proof and its memory.

    Args:
        model: The file, or the network exported to fp32.
        images: All images that there are.
        provider: ONNX Runtime's name of the execution provider.
        device: Where torch computes; None if that is open.
        asked: How many the user asks for.
    """
    within = asked or proof_size(model, images, provider, device, white_box=True).images
    classes = int(model.graph.output[0].type.tensor_type.shape.dim[1].dim_value)
    fitting = memory_to_use(torch.device("cpu")) // (LOGIT_BYTES * max(1, classes))
    return min(len(images), within, max(1, fitting))


def calibrate(checkpoint: Checkpoint, images: ValidationImages) -> Calibration:
    """Fit the temperature of a checkpoint on validation images.

    Raises:
        UserError: No image can be decoded, or none is classified incorrectly, so that no temperature is the best.
    """
    logits, labels = _logits(Reference(checkpoint), images)
    if not len(labels):
        raise UserError("--calibrate: no validation image can be decoded.", "Choose others: --data.")
    temperature = best_temperature(logits, labels)
    if temperature is None:
        raise UserError(
            f"--calibrate: no temperature fits the {len(labels):,} validation images, with an accuracy of "
            f"{percent(top1_accuracy(logits, labels))}.",
            "It is fitted to confident errors: use more validation images, or leave --calibrate out.",
            WORK_FAILED,
        )
    return Calibration(temperature=temperature, images=len(images))


def check_calibration(
    reference: Reference, images: ValidationImages, calibration: Calibration, most: int
) -> tuple[str, bool]:
    """Check that the temperature of a file is the one that an export fits on the images that the file names.

    However few images a verification uses otherwise: fits to different images are far apart. Of more than may be used
    it is fitted to a sample, and may differ by as much as chance makes such fits differ.

    Args:
        reference: The network, whose logits are already divided by that temperature.
        images: All images that it may be fitted on.
        calibration: What the file records.
        most: How many images may be used: a file can claim any number.
    """
    if calibration.images > len(images):
        return f"fitted on {calibration.images:,} images, there are {len(images):,}", False
    logits, labels = _logits(reference, images.stratified(calibration.images).stratified(most))
    text = f"temperature {calibration.temperature:.4g}"
    best = best_temperature(logits * calibration.temperature, labels) if len(labels) else None
    if best is None:
        return f"{text}, though none fits the {len(labels):,} images that it is said to be fitted on", False
    limit = SAME_FIT
    if most < calibration.images:
        share = 1 / most - 1 / calibration.images
        limit += ERRORS * math.sqrt(fit_variance(logits * calibration.temperature, labels, best) * share)
        text += f" on {calibration.images:,} images"
    here = f"fitted here {best:.4g}" + (f" on {most:,}" if most < calibration.images else "")
    return f"{text}, {here}", abs(math.log(best / calibration.temperature)) <= limit


def _logits(reference: Reference, images: ValidationImages) -> tuple[np.ndarray, np.ndarray]:
    """Return the logits (N, classes) and the labels (N,) of the images that can be decoded."""
    info, crop = reference.info, Preprocessing.of(reference.info, "normalized").crop
    parts = [(reference.logits(pixels), labels) for pixels, labels in images.batches(crop, PROOF_BATCH)]
    empty = np.empty((0, len(info.class_names))), np.empty(0, np.int64)
    logits, labels = (np.concatenate(part) for part in zip(empty, *parts, strict=True))
    return logits, labels


def best_temperature(logits: np.ndarray, labels: np.ndarray) -> float | None:
    """Return what an export divides logits (N, classes) by; None if there is nothing to fit that to."""
    temperature = fit_temperature(logits, labels)
    fits = 1.01 * MIN_TEMPERATURE < temperature < 0.99 * MAX_TEMPERATURE
    return temperature if fits and top1_accuracy(logits, labels) < 1 else None


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


def fit_variance(logits: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    """Return the variance of the logarithm of a fit to one image, of which that to n has the n-th part.

    That of an M-estimator (Huber 1967): the variance of the slopes over the square of their mean derivative.
    """

    def slopes(shift: float) -> np.ndarray:
        factor = math.exp(shift) / temperature
        return _slopes(logits, labels, factor) * factor  # by the logarithm of the factor

    derivative = float((slopes(STEP) - slopes(-STEP)).mean()) / (2 * STEP)
    return float(np.square(slopes(0)).mean()) / derivative**2


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
