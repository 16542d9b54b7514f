"""An exported file put to use: pixels in, probabilities out, by what the file says of itself and nothing else."""

from pathlib import Path
from typing import Self

import numpy as np

from resnet_ops.data.decode import CropSpec, decode
from resnet_ops.export import runtime, untrusted
from resnet_ops.export.config import Provider
from resnet_ops.export.metadata import ModelMetadata, Preprocessing


class Classifier:
    """An exported file, checked, tried in a process of its own, and loaded.

    Args:
        file: The ONNX file.
        provider: Where it runs; auto is CUDA where there is a GPU.

    Raises:
        UserError: The file is damaged or not of `resnet-ops export`, or the provider cannot be used here.
    """

    metadata: ModelMetadata
    session: runtime.OnnxSession

    def __init__(self, file: Path | str, provider: Provider = "auto") -> None:
        chosen, path = runtime.choose_provider(provider), Path(file).expanduser()
        self.metadata, self.session = untrusted.open_file(path), runtime.load(path, chosen)

    @classmethod
    def of(cls, metadata: ModelMetadata, session: runtime.OnnxSession) -> Self:
        """Make one of a session that is loaded already."""
        made = cls.__new__(cls)
        made.metadata, made.session = metadata, session
        return made

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the probabilities."""
        return self.metadata.class_names

    @property
    def frame(self) -> CropSpec:
        """How images are to be decoded for it: of one that takes raw pixels, as far as it would resize them."""
        frame = self.metadata.preprocessing.frame
        return CropSpec(frame.cover, *frame.cover, frame.channels) if self.metadata.input == "raw" else frame

    def read(self, *images: Path | str) -> np.ndarray:
        """Read image files and fit them to `frame`: pixels (N, H, W, C) uint8.

        Raises:
            DecodeError: One is no image.
        """
        return np.stack([decode(Path(image).read_bytes(), self.frame) for image in images])

    def run(self, pixels: np.ndarray) -> np.ndarray:
        """What the file gives, logits or probabilities (N, classes) float32.

        Args:
            pixels: (N, H, W, C) uint8, of the size of `frame`; of any where the file takes raw pixels.
        """
        if self.metadata.input == "raw":
            return self.session.run(pixels)
        return self.session.run(normalised(pixels, self.metadata.preprocessing))

    def classify(self, images: np.ndarray) -> np.ndarray:
        """Return the probabilities of the classes, (N, classes) float32.

        Args:
            images: Pixels (N, H, W, C) uint8, as for `run`.
        """
        found = self.run(images)
        return found if self.metadata.output == "probabilities" else softmax(found)

    def top(self, probabilities: np.ndarray, count: int) -> list[tuple[str, float]]:
        """The `count` likeliest classes of one image (classes,), and their probabilities, the likeliest first."""
        order = np.argsort(-probabilities, kind="stable")[:count]
        return [(self.metadata.class_names[index], float(probabilities[index])) for index in order]


def normalised(pixels: np.ndarray, steps: Preprocessing) -> np.ndarray:
    """Do to raw pixels (N, H, W, C) uint8 what metadata says: (N, C, H, W) float32."""
    x: np.ndarray = pixels.astype(np.float32) * np.float32(steps.scale)
    x = (x - np.asarray(steps.mean, np.float32)) / np.asarray(steps.std, np.float32)
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of logits (N, classes)."""
    raised = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(raised / raised.sum(1, keepdims=True))
