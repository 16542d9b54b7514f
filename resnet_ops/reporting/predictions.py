"""What a run's best weights say of its validation images, one by one."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from resnet_ops.data.augment import normalise
from resnet_ops.data.decode import decode
from resnet_ops.data.loader import EVAL_BATCH
from resnet_ops.data.parallel_decode import decode_rows
from resnet_ops.data.sources import Source, open_source
from resnet_ops.errors import UserError
from resnet_ops.runs import Run
from resnet_ops.training.checkpoint import Checkpoint, read_best

Batch = tuple[np.ndarray, np.ndarray, np.ndarray]  # rows of the split, pixels (n, H, W, C) uint8, labels


@dataclass(frozen=True)
class Predictions:
    """One network's word on N validation images.

    Args:
        checkpoint: The weights.
        labels: (N,) int64, the true classes.
        predicted: (N,) int64, the classes of the highest probability.
        confidence: (N,) float64, that probability.
        of_label: (N,) float64, the probability of the true class.
        pixels: Gives image n, (H, W, C) uint8.
    """

    checkpoint: Checkpoint
    labels: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    of_label: np.ndarray
    pixels: Callable[[int], np.ndarray]

    @property
    def right(self) -> np.ndarray:
        """Where the prediction is right, (N,) bool."""
        return np.asarray(self.predicted == self.labels)

    @property
    def accuracy(self) -> float:
        """Top-1, from 0 to 1."""
        return float(self.right.mean())

    def counts(self) -> np.ndarray:
        """How often each true class (rows) was taken for each (columns), (K, K) int."""
        classes = len(self.checkpoint.info.class_names)
        return np.bincount(self.labels * classes + self.predicted, minlength=classes**2).reshape(classes, classes)


def predict(run: Run) -> Predictions:
    """Validate a run's best weights once more, in fp32, and keep what they said.

    Images that training would stream are decoded as they are needed.

    Raises:
        UserError: There are no whole weights, or the images are gone or are not those of the training.
    """
    record = run.read_as_written()
    checkpoint, _ = read_best(run)
    source = open_source(record.config)
    if source.record.fingerprint != record.data.fingerprint:
        raise UserError(
            f"The images in {record.config.data} differ from those {run.name} was trained on.",
            "Restore them.",
        )
    info = checkpoint.info
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = info.build_network()
    network.load_state_dict(checkpoint.model)
    network.eval().to(device)
    batches, pixels = _streamed(source) if record.config.stream == "on" else _whole(source)
    parts: list[tuple[np.ndarray, ...]] = []
    for rows, images, labels in batches:
        with torch.inference_mode():
            x = normalise(torch.from_numpy(images).to(device), info.mean, info.std)
            probabilities = network(x).double().softmax(1).cpu().numpy()
        predicted = probabilities.argmax(1)
        each = np.arange(len(labels))
        parts.append((rows, labels, predicted, probabilities[each, predicted], probabilities[each, labels]))
    rows, true, predicted, confidence, of_label = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Predictions(checkpoint, true, predicted, confidence, of_label, lambda n: pixels(int(rows[n])))


def _whole(source: Source) -> tuple[Iterator[Batch], Callable[[int], np.ndarray]]:
    images = source.load("val")
    return _cut(np.arange(len(images)), images.pixels, images.labels), lambda row: images.pixels[row]


def _streamed(source: Source) -> tuple[Iterator[Batch], Callable[[int], np.ndarray]]:
    encoded, frame = source.encoded("val"), source.crop_spec("val")
    labels = encoded.labels
    parts = decode_rows(encoded, np.arange(len(labels)), frame)
    batches = (batch for rows, pixels in parts for batch in _cut(rows, pixels, labels[rows]))
    return batches, lambda row: decode(encoded.read([row])[0], frame)


def _cut(rows: np.ndarray, pixels: np.ndarray, labels: np.ndarray) -> Iterator[Batch]:
    for start in range(0, len(rows), EVAL_BATCH):
        cut = slice(start, start + EVAL_BATCH)
        yield rows[cut], pixels[cut], labels[cut]
