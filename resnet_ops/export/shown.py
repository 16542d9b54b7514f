"""The images that a proof shows to both pipelines, decoded as they are needed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from resnet_ops.data.dataset import EncodedImages, Split, decode_rows
from resnet_ops.data.decode import CropSpec, DecodeError, decode, read_header
from resnet_ops.data.sources import Source
from resnet_ops.errors import UserError, did_you_mean


@dataclass(frozen=True)
class ValidationImages:
    """Images of one split in their order, or some of them, and the classes that a network has for them.

    Args:
        encoded: All images of the split.
        rows: Which of them, (N,).
        labels: The network's class of each, (N,) int64.
    """

    encoded: EncodedImages
    rows: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, frame: CropSpec) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Pixels (n, H, W, C) uint8 and labels (n,), without the images that cannot be decoded."""
        for places, pixels in decode_rows(self.encoded, self.rows, frame):
            yield pixels, self.labels[places]

    def first(self, count: int, frame: CropSpec) -> np.ndarray:
        """The first `count` images that can be decoded, over and over if there are fewer: (count, H, W, C) uint8."""
        some = ValidationImages(self.encoded, self.rows[: 2 * count], self.labels[: 2 * count])
        for pixels, _ in some.batches(frame):
            return np.asarray(pixels[np.arange(count) % len(pixels)])
        raise UserError("No image can be decoded.", "Choose others: --data.")

    def of_own_size(self, count: int, channels: int) -> list[np.ndarray]:
        """Up to `count` images as they are stored, each (H, W, C) uint8 of its own size."""
        found = []
        for image in self.encoded.read([int(row) for row in self.rows[: 2 * count]]):
            try:
                seen = read_header(image)
                found.append(decode(image, CropSpec((seen.height, seen.width), seen.height, seen.width, channels)))
            except DecodeError:
                continue
        return found[:count]


def noise(images: int, frame: CropSpec) -> np.ndarray:
    """Random pixels (images, H, W, C) uint8, the same each time."""
    return np.random.default_rng(0).integers(0, 256, (images, *frame.shape), np.uint8)


def open_validation_images(
    source: Source, split: Split, class_names: Sequence[str], limit: int | None = None, seed: int = 0
) -> ValidationImages:
    """Choose images of a data set for a network that knows `class_names`.

    Args:
        source: The data set.
        split: Of it.
        class_names: The network's; those of the images are found among them by name.
        limit: At most so many: of "val" evenly spread, of "train" drawn with `seed`.
        seed: As it says.

    Raises:
        UserError: There is a class that the network does not know.
    """
    encoded = source.encoded(split)
    known = {name: index for index, name in enumerate(class_names)}
    names = source.record.class_names
    for name in (names[label] for label in np.unique(encoded.labels)):
        if name not in known:
            raise UserError(
                f"The images in {source.config.data} have a class {name!r} that the network does not have.",
                f"{did_you_mean(name, class_names)} Classes of the network: {', '.join(class_names)[:200]}.",
            )
    table = np.array([known.get(name, -1) for name in names], np.int64)
    rows = np.arange(len(encoded.labels))
    if limit is not None and limit < len(rows):
        if split == "train":
            rows = np.sort(np.random.default_rng(seed).permutation(rows)[:limit])
        else:
            rows = np.unique(np.linspace(0, len(rows) - 1, limit).round().astype(int))
    return ValidationImages(encoded, rows, table[encoded.labels[rows]])
