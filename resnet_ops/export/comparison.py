"""How far two pipelines' answers to the same images are apart, and how far they may be.

Differences are measured as max |difference| / max |logit|: an absolute limit fails sound models whose logits are
large, an element's own relative one those with logits near zero. A clean fp32 export has about 5e-7. Rounding to TF32
or fp16 gives 4e-4, a neighbouring checkpoint 2e-3; accuracy tells none of these apart.
"""

from dataclasses import dataclass

import numpy as np

from resnet_ops.export import runtime
from resnet_ops.export.metadata import Precision

BINS = 15  # of confidence, as usual since Guo et al. 2017


@dataclass(frozen=True)
class Tolerances:
    """How far apart a file of some precision may be from its checkpoint.

    Args:
        largest: Max |difference| / max |logit|, by provider.
        mean: Mean |difference| / max |logit|.
        agreement: Share of images with the same top class, not counting near ties.
    """

    largest: dict[str, float]
    mean: float
    agreement: float


LIMITS: dict[Precision, Tolerances] = {
    # 20 times a clean export, 40 times less than the smallest fault (TF32, half precision). GPUs sum in another order.
    "fp32": Tolerances({runtime.CPU: 1e-5, runtime.CUDA: 1e-4, runtime.TENSORRT: 1e-3}, 1e-5, 1.0),
    # Weights and activations have 11 bits: 2.3e-3 was measured. One layer's overflow is infinite, or far beyond.
    "fp16": Tolerances(dict.fromkeys((runtime.CPU, runtime.CUDA, runtime.TENSORRT), 1e-2), 2e-3, 0.995),
    # 8 bits: single logits of single images move by 15 %, the mean by 0.5 %. Without calibration it is above 5 %.
    "int8": Tolerances(dict.fromkeys((runtime.CPU, runtime.CUDA, runtime.TENSORRT), 0.5), 2e-2, 0.97),
}


@dataclass(frozen=True)
class Comparison:
    """What both pipelines gave for the same images, (N, classes) float64."""

    torch: np.ndarray
    onnx: np.ndarray

    @property
    def finite(self) -> bool:
        """Whether there is no NaN or infinity on either side: NaN passes most comparisons."""
        return bool(np.isfinite(self.torch).all() and np.isfinite(self.onnx).all())

    @property
    def scale(self) -> float:
        """The largest |logit|."""
        return max(float(np.abs(self.torch).max()), 1e-12)

    @property
    def max_abs(self) -> float:
        """The largest |difference|."""
        return float(np.abs(self.torch - self.onnx).max())

    @property
    def max_rel(self) -> float:
        """The largest |difference|, as a share of the largest |logit|."""
        return self.max_abs / self.scale

    @property
    def mean_rel(self) -> float:
        """The mean |difference|, as a share of the largest |logit|."""
        return float(np.abs(self.torch - self.onnx).mean()) / self.scale

    @property
    def agrees(self) -> np.ndarray:
        """Where the top classes are the same, (N,) bool."""
        return np.asarray(self.torch.argmax(1) == self.onnx.argmax(1))

    def ties(self, rounding: float) -> np.ndarray:
        """Where, (N,) bool, the two largest logits are closer than `rounding` of each tells apart: either is right."""
        if self.torch.shape[1] < 2:
            return np.ones(len(self.torch), bool)
        top = np.partition(self.torch, -2, axis=1)
        return np.asarray(top[:, -1] - top[:, -2] <= 2 * rounding)


def accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """Top-1, from 0 to 1, of (N, classes) and (N,)."""
    return float((scores.argmax(1) == labels).mean())


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error (Guo et al. 2017): how far confidence is from accuracy, over bins of confidence."""
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == labels
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, confidence - right, BINS)
    return float(np.abs(gaps).sum() / len(labels))
