"""How far the outputs of an exported file are from torch's, and how far they may be, by precision and provider."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from resnet_ops.export import runtime
from resnet_ops.export.metadata import ModelMetadata, Output, QuantizationError
from resnet_ops.export.other_runtimes import OPENCV, OPENVINO
from resnet_ops.reliability import calibration_bins, calibration_error
from resnet_ops.significance import LEVEL, MeasuredAccuracy, holm, p_value
from resnet_ops.training.mixed_precision import MeasuredPrecision

SMALLEST_PROBABILITY = 1e-30  # of which the logarithm is compared; fp32 ends at 1e-38
MEASURED_ERRORS = 2.0  # times the mean error that a quantization had on other images of the training may pass
MEASURED_LARGEST = 4.0  # times the largest: that of one image beyond the calibrated ranges, of others by 2.8 times
RULE_OF_THREE = 3.0  # of n images without an event, its rate is below 3 / n with 95% confidence (Hanley 1983)
BF16_ROUNDING = 1e-2  # of the largest logit: ResNet-8 trained on digits, then run in bf16, differs by at most 6e-3
# Of other precisions, which keep 3 bits more, and 16 bits more; None of checkpoints that do not say it.
TRAINING_ROUNDING: dict[MeasuredPrecision | None, float] = {
    "fp32": 1e-5, "tf32": 2e-3, "fp16": 2e-3, "bf16": BF16_ROUNDING, None: BF16_ROUNDING
}  # fmt: skip
CLASS_FLIPS = 1e-3  # the probability that a file as good as its limit fails for the images of one class


@dataclass(frozen=True)
class Tolerances:
    """The largest differences between a file of some precision and its checkpoint that pass.

    Args:
        largest: Max |difference| / max |logit|.
        mean: Mean |difference| / max |logit|.
        agreement: Share of images with the same top class, not counting near ties.
        unlike: As `largest`, for pixels that are unlike those of the training, and of int8's calibration.
    """

    largest: float
    mean: float
    agreement: float
    unlike: float


CPUS = (runtime.CPU, OPENVINO, OPENCV)
EVERYWHERE = (*CPUS, runtime.CUDA, runtime.TENSORRT)
# 20 times a clean export, 40 times less than the smallest fault (TF32, half precision). GPUs sum in another order.
FP32_LARGEST = dict.fromkeys(CPUS, 1e-5) | {runtime.CUDA: 1e-4, runtime.TENSORRT: 1e-3}
# Weights and activations have 11 bits: 2.3e-3 was measured. One layer's overflow is infinite, or far beyond.
FP16 = Tolerances(1e-2, 2e-3, 0.995, 1e-2)
# Whatever a file says of its own error. Trained networks: mean 5e-3, single logits of single images up to 0.1; far from
# what it was calibrated on 0.19. Untrained ones: mean up to 1.7e-2, and 0.89. Without calibration the mean is 5e-2.
INT8 = Tolerances(0.25, 2e-2, 0.97, 1.0)


def tolerances_of(
    metadata: ModelMetadata, provider: str, largest: float | None = None, measured: QuantizationError | None = None
) -> Tolerances:
    """Return the tolerances for a file on a provider or another runtime.

    Args:
        metadata: The file's metadata.
        provider: The provider, or the name of the runtime.
        largest: The largest difference that was asked for.
        measured: The error that a quantization of the same network has: those of int8 follow from it.
    """
    if metadata.precision == "fp32":
        most = FP32_LARGEST[provider]
        tolerances = Tolerances(most, most, 1.0, most)
    elif metadata.precision == "fp16":
        tolerances = FP16
    else:
        tolerances = INT8
        if measured is not None:
            tolerances = replace(
                INT8,
                largest=min(INT8.largest, MEASURED_LARGEST * measured.largest),
                mean=min(INT8.mean, MEASURED_ERRORS * measured.mean),
                agreement=max(INT8.agreement, 1 - allowed_flips(measured.agreement, measured.images)),
            )
    return (
        tolerances if largest is None else replace(tolerances, largest=largest, unlike=max(largest, tolerances.unlike))
    )


def allowed_flips(agreement: float, images: int) -> float:
    """Return the share of images that may flip where a quantization had an agreement on so many images."""
    return MEASURED_ERRORS * (1 - agreement) + RULE_OF_THREE / images


@dataclass(frozen=True)
class Comparison:
    """The outputs of torch and of the file for the same images, (N, classes) float64."""

    torch: np.ndarray
    onnx: np.ndarray

    @property
    def finite(self) -> bool:
        """Return whether both sides are free of NaN and infinity: NaN passes most comparisons."""
        return bool(np.isfinite(self.torch).all() and np.isfinite(self.onnx).all())

    @property
    def scale(self) -> float:
        """Return the largest |logit|."""
        return max(float(np.abs(self.torch).max()), 1e-12)

    @property
    def max_abs(self) -> float:
        """Return the largest |difference|."""
        return float(np.abs(self.torch - self.onnx).max())

    @property
    def max_rel(self) -> float:
        """Return the largest |difference|, as a share of the largest |logit|."""
        return self.max_abs / self.scale

    @property
    def mean_rel(self) -> float:
        """Return the mean |difference|, as a share of the largest |logit|."""
        return float(np.abs(self.torch - self.onnx).mean()) / self.scale

    @property
    def same_top1(self) -> np.ndarray:
        """Return for which images the top classes are the same, (N,) bool."""
        return np.asarray(self.torch.argmax(1) == self.onnx.argmax(1))

    def discordant(self, labels: np.ndarray) -> np.ndarray:
        """Return for which images, (N,) bool, only one of both is right."""
        return np.asarray((self.torch.argmax(1) == labels) != (self.onnx.argmax(1) == labels))

    def near_ties(self, rounding: float) -> np.ndarray:
        """Return for which images, (N,) bool, errors of `rounding` can exchange the two largest logits."""
        if self.torch.shape[1] < 2:
            return np.ones(len(self.torch), bool)
        top = np.partition(self.torch, -2, axis=1)
        return np.asarray(top[:, -1] - top[:, -2] <= 2 * rounding)

    def flips_by_class(self, rounding: float) -> tuple[np.ndarray, np.ndarray]:
        """Return of each class of torch's how many images there are, and how many have another top class in the file.

        Near ties are not counted.
        """
        clear = ~self.near_ties(rounding)
        top, classes = self.torch.argmax(1), self.torch.shape[1]
        flipped = clear & ~self.same_top1
        return np.bincount(top[clear], minlength=classes), np.bincount(top[flipped], minlength=classes)


def comparable(outputs: np.ndarray, output: Output) -> np.ndarray:
    """Return outputs as they are compared: logits, or the logarithms of probabilities, in float64."""
    outputs = outputs.astype(np.float64)
    return np.log(np.maximum(outputs, SMALLEST_PROBABILITY)) if output == "probabilities" else outputs


def is_improbable(flips: int, images: int, rate: float, classes: int) -> bool:
    """Return whether so many of the images of one of `classes` flip though each does at `rate`: a binomial tail."""
    if flips <= rate * images:
        return False
    tail = 0.0
    for k in range(flips, images + 1):
        ways = math.lgamma(images + 1) - math.lgamma(k + 1) - math.lgamma(images - k + 1)
        term = math.exp(ways + k * math.log(rate) + (images - k) * math.log1p(-rate))
        tail += term
        if term < 1e-9 * tail:
            break
    return tail < CLASS_FLIPS / classes


def compare_recalls(
    comparison: Comparison, labels: np.ndarray, class_names: Sequence[str], max_drop: float
) -> tuple[str, bool]:
    """Check that the recall of no class falls by more than the accuracy may and than chance explains.

    Each class's images are those of its label, its test the exact one of McNemar, corrected for the classes (Holm).
    """
    before, after = comparison.torch.argmax(1) == labels, comparison.onnx.argmax(1) == labels
    classes = np.unique(labels)
    rows = [labels == label for label in classes]
    drops = np.array([float(before[row].mean() - after[row].mean()) for row in rows])
    p_values = holm([p_value(*(MeasuredAccuracy.of_images(right[row]) for right in (before, after))) for row in rows])
    lost = [k for k in range(len(classes)) if drops[k] > max_drop and p_values[k] <= LEVEL]
    worst = max(lost or range(len(classes)), key=lambda k: drops[k])
    name = class_names[classes[worst]][:40]
    return f"{0 - 100 * drops[worst]:+.1f} points at most, of {rows[worst].sum():,} images of {name}", not lost


def rounding_flips(near_ties: int) -> int:
    """Return how many right answers rounding may add or remove where so many images are near ties.

    Each may change sides, to the right answer or from it: two standard errors of their sum, and at most all of them.
    """
    return min(near_ties, math.ceil(2 * math.sqrt(near_ties)))


def top1_accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the top-1 accuracy, from 0 to 1, of scores (N, classes) for labels (N,)."""
    return float((scores.argmax(1) == labels).mean())


def output_calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the expected calibration error of probabilities (N, classes) for labels (N,)."""
    correct = probabilities.argmax(1) == labels
    return calibration_error(calibration_bins(probabilities.max(1), correct))
