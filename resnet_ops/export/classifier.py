"""An exported file put to use: pixels in, probabilities out, by what the file says of itself and nothing else."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resnet_ops.data.decode import Frame
from resnet_ops.export import opening, runtime
from resnet_ops.export.inside import Inside, Preprocessing


@dataclass(frozen=True)
class Classifier:
    """A file, loaded."""

    inside: Inside
    session: runtime.Session

    @classmethod
    def open(cls, path: Path, provider: str) -> "Classifier":
        """Look through a file of unknown origin, try it, and load it on `provider` (ONNX Runtime's name).

        Raises:
            UserError: As `opening.open_file` and `runtime.load`.
        """
        return cls(opening.open_file(path), runtime.load(path, provider))

    @property
    def frame(self) -> Frame:
        """How images are to be decoded for it: of one that takes raw pixels, as far as it would resize them."""
        frame = self.inside.preprocessing.frame
        return Frame(frame.cover, *frame.cover, frame.channels) if self.inside.input == "raw" else frame

    def run(self, pixels: np.ndarray) -> np.ndarray:
        """What the file gives, logits or probabilities (N, classes) float32.

        Args:
            pixels: (N, H, W, C) uint8, of the size of `frame`; of any where the file takes raw pixels.
        """
        if self.inside.input == "raw":
            return self.session.run(pixels)
        return self.session.run(normalised(pixels, self.inside.preprocessing))

    def classify(self, pixels: np.ndarray) -> np.ndarray:
        """Probabilities (N, classes) float32, of `pixels` as for `run`."""
        found = self.run(pixels)
        return found if self.inside.output == "probabilities" else softmax(found)

    def top(self, probabilities: np.ndarray, count: int) -> list[tuple[str, float]]:
        """The `count` likeliest classes of one image (classes,), and their probabilities, the likeliest first."""
        order = np.argsort(-probabilities, kind="stable")[:count]
        return [(self.inside.class_names[index], float(probabilities[index])) for index in order]


def normalised(pixels: np.ndarray, steps: Preprocessing) -> np.ndarray:
    """Do to raw pixels (N, H, W, C) uint8 what metadata says: (N, C, H, W) float32."""
    x: np.ndarray = pixels.astype(np.float32) * np.float32(steps.scale)
    x = (x - np.asarray(steps.mean, np.float32)) / np.asarray(steps.std, np.float32)
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of logits (N, classes)."""
    raised = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(raised / raised.sum(1, keepdims=True))
