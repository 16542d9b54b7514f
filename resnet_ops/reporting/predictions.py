"""Predictions of a run's weights for its validation or test images; metrics per class and thumbnails made from them.

The page that shows them is written in run_report.py.
"""

import base64
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from resnet_ops import files
from resnet_ops.data.augment import normalize
from resnet_ops.data.dataset import Split
from resnet_ops.data.decode import decode
from resnet_ops.data.loader import EVAL_BATCH
from resnet_ops.data.opening import open_source
from resnet_ops.data.parallel_decode import decode_rows
from resnet_ops.data.sources import Source
from resnet_ops.errors import UserError
from resnet_ops.reliability import CalibrationBin, calibration_bins
from resnet_ops.runs import Run
from resnet_ops.training.checkpoint import Checkpoint, read_best

MISTAKES, CONFIDENT = 200, 12  # thumbnails of each, at most
CONFUSED = 3  # classes that another is confused with, in its row
THUMBNAIL_BYTES = 3_000_000  # of all mistakes of a report: a page that can be sent by mail
SMALL, THUMBNAIL = 64, 128  # sides in pixels: largest image that is not resized, and size of the others
Batch = tuple[np.ndarray, np.ndarray, np.ndarray]  # rows of the split, pixels (n, H, W, C) uint8, labels
# Its batches; the pixels, and the name, of the image in a row.
ReadSplit = tuple[Iterator[Batch], Callable[[int], np.ndarray], Callable[[int], str]]


@dataclass(frozen=True)
class Predictions:
    """The predictions of a network for N images.

    Args:
        checkpoint: The network and its weights.
        split: That of the images.
        labels: (N,) int64, the true classes.
        predicted: (N,) int64, the classes of the highest probability.
        confidence: (N,) float64, that probability.
        label_probability: (N,) float64, the probability of the true class.
        pixels: Returns image n, (H, W, C) uint8.
        name: Returns where image n is stored.
    """

    checkpoint: Checkpoint
    split: Split
    labels: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    label_probability: np.ndarray
    pixels: Callable[[int], np.ndarray]
    name: Callable[[int], str]

    @property
    def correct(self) -> np.ndarray:
        """(N,) bool, true where the prediction is correct."""
        return np.asarray(self.predicted == self.labels)

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy, from 0 to 1."""
        return float(self.correct.mean())

    @cached_property
    def calibration(self) -> tuple[CalibrationBin, ...]:
        """The bins of the reliability diagram."""
        return calibration_bins(self.confidence, self.correct)

    def confusion_matrix(self) -> np.ndarray:
        """Count images by true class (rows) and predicted class (columns), (K, K) int."""
        classes = len(self.checkpoint.info.class_names)
        return np.bincount(self.labels * classes + self.predicted, minlength=classes**2).reshape(classes, classes)


def predict(run: Run) -> Predictions:
    """Predict the classes of a run's validation images with its best weights, in fp32.

    Images that training streams are decoded as they are needed.

    Raises:
        UserError: There are no intact weights, or the images are missing or not those of the training, or the network
            was fitted on all of them.
    """
    record = run.read_as_written()
    split: Split = "val"
    if record.config.fit_all:
        remedy = f"Measure it on test images: resnet-ops evaluate {run.name}" if record.data.test_images else ""
        raise UserError(
            f"{run.name} is fitted on all images, so that there are no others to choose or report on.", remedy
        )
    checkpoint, _ = read_best(run)
    source = open_source(record.config)
    if source.record.fingerprint != record.data.fingerprint:
        raise UserError(
            f"The images in {record.config.data} differ from those {run.name} was trained on.",
            "Restore them.",
        )
    source = replace(source, record=record.data)  # decoded as then
    info = checkpoint.info
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = info.build_network()
    network.load_state_dict(checkpoint.model)
    network.eval().to(device)
    read = _streamed_batches if record.config.stream == "on" else _decoded_batches
    batches, pixels, name = read(source, split)
    parts: list[tuple[np.ndarray, ...]] = []
    for rows, images, labels in batches:
        with torch.inference_mode():
            x = normalize(torch.from_numpy(images).to(device), info.mean, info.std)
            probabilities = network(x).double().softmax(1).cpu().numpy()
        predicted = probabilities.argmax(1)
        n = np.arange(len(labels))
        parts.append((rows, labels, predicted, probabilities[n, predicted], probabilities[n, labels]))
    rows, labels, predicted, confidence, of_label = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Predictions(
        checkpoint,
        split,
        labels,
        predicted,
        confidence,
        of_label,
        lambda n: pixels(int(rows[n])),
        lambda n: name(int(rows[n])),
    )


def _decoded_batches(source: Source, split: Split) -> ReadSplit:
    decoded, encoded = source.decoded(split), source.encoded(split)
    images, bad, kept = decoded.images, {each.name for each in decoded.bad}, np.arange(len(encoded.labels))
    if bad:
        kept = kept[[encoded.name(row) not in bad for row in kept.tolist()]]
    batches = _batches(np.arange(len(images)), images.pixels, images.labels)
    return batches, lambda row: images.pixels[row], lambda row: encoded.name(int(kept[row]))


def _streamed_batches(source: Source, split: Split) -> ReadSplit:
    encoded, frame = source.encoded(split), source.crop_spec(split)
    labels = encoded.labels
    parts = decode_rows(encoded, np.arange(len(labels)), frame)
    batches = (batch for rows, pixels in parts for batch in _batches(rows, pixels, labels[rows]))
    return batches, lambda row: decode(encoded.read([row])[0], frame), encoded.name


def _batches(rows: np.ndarray, pixels: np.ndarray, labels: np.ndarray) -> Iterator[Batch]:
    for start in range(0, len(rows), EVAL_BATCH):
        cut = slice(start, start + EVAL_BATCH)
        yield rows[cut], pixels[cut], labels[cut]


@dataclass(frozen=True)
class ClassMetrics:
    """Recall and precision of a class."""

    name: str
    images: int
    recall: float | None
    precision: float | None
    confused_with: str


def per_class(counts: np.ndarray, class_names: Sequence[str]) -> list[ClassMetrics]:
    """Return the metrics of each class, the lowest recall first.

    Args:
        counts: (K, K) int: rows are the true class, columns the predicted.
        class_names: Of the K classes.
    """
    rows = []
    for label, name in enumerate(class_names):
        images, predicted, correct = int(counts[label].sum()), int(counts[:, label].sum()), int(counts[label, label])
        wrong = np.where(np.arange(len(counts)) == label, 0, counts[label])
        others = [int(other) for other in np.argsort(-wrong, kind="stable")[:CONFUSED] if wrong[other]]
        confused_with = ", ".join(f"{class_names[other]} ({wrong[other]})" for other in others)
        rows.append(
            ClassMetrics(
                name,
                images,
                recall=correct / images if images else None,
                precision=correct / predicted if predicted else None,
                confused_with=confused_with,
            )
        )
    return sorted(rows, key=lambda row: (row.recall is None, row.recall))


@dataclass(frozen=True)
class Thumbnail:
    """A small image with its true and predicted class. `source` is a data URL, `name` where the image is stored."""

    source: str
    small: bool
    true: str
    predicted: str
    confidence: float
    name: str = ""

    @property
    def link(self) -> str:
        """The URL of the image, where it is a file of this machine; else ""."""
        file = Path(self.name)
        return file.absolute().as_uri() if self.name and not files.is_remote(file) and file.is_file() else ""

    @property
    def short_name(self) -> str:
        """The name without folders."""
        return self.name.rsplit("/", 1)[-1] if self.link else re.sub(r"\S*/", "", self.name)


def thumbnails(predictions: Predictions, most_bytes: int = THUMBNAIL_BYTES) -> tuple[list[Thumbnail], list[Thumbnail]]:
    """Return the most confident errors, and the most confident correct predictions, class by class in turn.

    The errors, of which the first is there in any case, end where they have `most_bytes`.
    """
    order = np.argsort(-predictions.confidence, kind="stable")
    is_correct = predictions.correct[order]
    errors, correct = order[~is_correct][:MISTAKES], order[is_correct]
    labels = predictions.labels[correct]
    rank = np.zeros(len(correct), np.int64)  # how many of its class are before it
    for label in np.unique(labels):
        rank[labels == label] = np.arange((labels == label).sum())
    correct = correct[np.argsort(rank, kind="stable")][:CONFIDENT]
    mistakes, size = list[Thumbnail](), 0
    for n in errors:
        mistakes.append(_thumbnail(predictions, int(n)))
        size += len(mistakes[-1].source)
        if size >= most_bytes:
            break
    return mistakes, [_thumbnail(predictions, int(n)) for n in correct]


def _thumbnail(predictions: Predictions, n: int) -> Thumbnail:
    names = predictions.checkpoint.info.class_names
    true, predicted = names[predictions.labels[n]], names[predictions.predicted[n]]
    return thumbnail(predictions.pixels(n), true, predicted, float(predictions.confidence[n]), predictions.name(n))


def thumbnail(pixels: np.ndarray, true: str, predicted: str, confidence: float, name: str = "") -> Thumbnail:
    """Return pixels (H, W, C) uint8 as a thumbnail: small ones as they are, others as a JPEG of `THUMBNAIL` pixels."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    small, content = max(image.size) <= SMALL, io.BytesIO()
    if not small:
        image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    kind = "PNG" if small else "JPEG"
    image.save(content, kind, **({} if small else {"quality": 88}))
    source = f"data:image/{kind.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"
    return Thumbnail(source, small, true, predicted, confidence, name)
