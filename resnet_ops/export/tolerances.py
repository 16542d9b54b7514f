"""How far the outputs of an exported file are from torch's, and how far they may be, by precision and provider."""

from dataclasses import dataclass

import numpy as np

from resnet_ops.export import runtime
from resnet_ops.export.metadata import Precision
from resnet_ops.export.other_runtimes import OPENCV, OPENVINO

CONFIDENCE_BINS = 15  # as usual since Guo et al. 2017


@dataclass(frozen=True)
class Tolerances:
    """The largest differences between a file of some precision and its checkpoint that pass.

    Args:
        largest: Max |difference| / max |logit|, by provider or other runtime.
        mean: Mean |difference| / max |logit|.
        agreement: Share of images with the same top class, not counting near ties.
    """

    largest: dict[str, float]
    mean: float
    agreement: float


CPUS = (runtime.CPU, OPENVINO, OPENCV)
EVERYWHERE = (*CPUS, runtime.CUDA, runtime.TENSORRT)
TOLERANCES: dict[Precision, Tolerances] = {
    # 20 times a clean export, 40 times less than the smallest fault (TF32, half precision). GPUs sum in another order.
    "fp32": Tolerances(dict.fromkeys(CPUS, 1e-5) | {runtime.CUDA: 1e-4, runtime.TENSORRT: 1e-3}, 1e-5, 1.0),
    # Weights and activations have 11 bits: 2.3e-3 was measured. One layer's overflow is infinite, or far beyond.
    "fp16": Tolerances(dict.fromkeys(EVERYWHERE, 1e-2), 2e-3, 0.995),
    # int8: single logits of single images move by 15%, the mean by 0.5%. Without calibration it is above 5%.
    "int8": Tolerances(dict.fromkeys(EVERYWHERE, 0.5), 2e-2, 0.97),
}


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


def top1_accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the top-1 accuracy, from 0 to 1, of scores (N, classes) for labels (N,)."""
    return float((scores.argmax(1) == labels).mean())


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the expected calibration error (Guo et al. 2017): |confidence - accuracy|, over bins of confidence."""
    confidence = probabilities.max(1)
    correct = probabilities.argmax(1) == labels
    bins = np.minimum((confidence * CONFIDENCE_BINS).astype(int), CONFIDENCE_BINS - 1)
    gaps = np.bincount(bins, confidence - correct, CONFIDENCE_BINS)
    return float(np.abs(gaps).sum() / len(labels))
