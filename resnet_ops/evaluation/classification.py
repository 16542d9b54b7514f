"""The network run on all images: its most likely classes, and the probability that it gives to the true one.

What is measured with them is in evaluation_metrics.py.
"""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from torch.nn import functional as F

from resnet_ops.class_metrics import TOP
from resnet_ops.data.decode import DecodeError, decode
from resnet_ops.data.loader import EVAL_BATCH, EVAL_BATCH_PIXELS
from resnet_ops.data.parallel_decode import decode_rows
from resnet_ops.errors import UserError
from resnet_ops.evaluation.evaluated_network import EvaluatedNetwork
from resnet_ops.evaluation.labeled_images import LabeledSplit
from resnet_ops.run_records import BadImage

MOST_AT_ONCE = 4096  # images decoded before the network computes, of small ones
MAX_LISTED = 20  # images that cannot be decoded, of which the reason is given
T = TypeVar("T")


@dataclass(frozen=True)
class ClassifiedImages:
    """The answers of a network for N images. `k` is 5, or the number of classes if there are fewer.

    Args:
        rows: Their rows in the split, (N,) int64.
        labels: The true classes, (N,) int64.
        top: The most likely classes, (N, k) int64, the likeliest first.
        top_probability: Their probabilities, (N, k) float64.
        label_loss: -log of the probability of the true class, (N,) float64.
        bad: The images that cannot be decoded; of many, the first.
        bad_images: How many there are.
    """

    rows: np.ndarray
    labels: np.ndarray
    top: np.ndarray
    top_probability: np.ndarray
    label_loss: np.ndarray
    bad: tuple[BadImage, ...]
    bad_images: int

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def predicted(self) -> np.ndarray:
        """The most likely class of each image, (N,) int64."""
        return self.top[:, 0]

    @cached_property
    def confidence(self) -> np.ndarray:
        """The probability of that class, (N,) float64."""
        return self.top_probability[:, 0]

    @cached_property
    def label_probability(self) -> np.ndarray:
        """The probability of the true class, (N,) float64."""
        return np.asarray(np.exp(-self.label_loss))

    @cached_property
    def correct(self) -> np.ndarray:
        """(N,) bool, true where that is the true class."""
        return np.asarray(self.predicted == self.labels)

    @cached_property
    def correct_in_top(self) -> np.ndarray:
        """(N,) bool, true where the true class is among the `k` most likely ones."""
        return np.asarray((self.top == self.labels[:, None]).any(1))


def classify_images(
    network: EvaluatedNetwork, images: LabeledSplit, on_progress: Callable[[int, int], object] = lambda *_: None
) -> ClassifiedImages:
    """Run the network on all images; those that cannot be decoded are left out and reported.

    All cores decode while the network computes.

    Args:
        network: The network.
        images: The images.
        on_progress: Called now and then with the number of images that are done, and of all.

    Raises:
        UserError: None of the images can be decoded.
    """
    on_gpu = network.device not in ("cpu", "CPUExecutionProvider")
    largest = max(1, EVAL_BATCH_PIXELS // math.prod(network.crop.shape[:2]))
    batch_size = largest if on_gpu else min(largest, EVAL_BATCH)
    k = min(TOP, len(network.class_names))
    positions: list[np.ndarray] = []
    parts: list[tuple[torch.Tensor, ...]] = []
    done = 0
    for some, pixels in _ahead(_decoded(images, network)):
        for start in range(0, len(some), batch_size):
            cut = slice(start, start + batch_size)
            log_probabilities = network.log_probabilities(pixels[cut])
            labels = torch.from_numpy(images.labels[some[cut]])
            top = log_probabilities.topk(k, dim=1)
            parts.append((top.indices, top.values.exp(), F.nll_loss(log_probabilities, labels, reduction="none")))
            positions.append(some[cut])
            done += len(some[cut])
            on_progress(done, len(images))
    if not parts:
        bad = _reason(images, network, int(images.rows[0]))
        raise UserError(f"No image of {images.path} can be decoded, such as {bad.name}: {bad.reason}.")
    kept = np.concatenate(positions)
    missing = np.setdiff1d(np.arange(len(images)), kept)
    top_classes, top_probability, loss = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
    return ClassifiedImages(
        images.rows[kept],
        images.labels[kept],
        top_classes,
        top_probability,
        loss,
        tuple(_reason(images, network, int(images.rows[position])) for position in missing[:MAX_LISTED]),
        len(missing),
    )


def _decoded(images: LabeledSplit, network: EvaluatedNetwork) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield positions among the images, and their pixels, some at a time."""
    for start in range(0, len(images), MOST_AT_ONCE):
        rows = images.rows[start : start + MOST_AT_ONCE]
        for positions, pixels in decode_rows(images.encoded, rows, network.crop):
            yield start + positions, pixels


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield the items of an iterator, while another thread makes the next one."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item


def _reason(images: LabeledSplit, network: EvaluatedNetwork, row: int) -> BadImage:
    (encoded,) = images.encoded.read([row])
    try:
        decode(encoded, network.crop)
        reason = "it could not be read before"
    except DecodeError as error:
        reason = str(error)
    return BadImage(name=images.encoded.name(row), reason=reason)
