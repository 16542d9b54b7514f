"""What every kind of data set comes to: encoded images that are read when they are asked for, and their labels."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, TypeVar

import numpy as np

from resnet_ops import files
from resnet_ops.data.decode import CropSpec, DecodeError, decode
from resnet_ops.data.listing import File
from resnet_ops.errors import UserError
from resnet_ops.machine import cores

T = TypeVar("T")
Split = Literal["train", "val"]
SPLITS: tuple[Split, Split] = ("train", "val")

CHUNK = 64  # images that a thread reads and decodes at a time
AT_ONCE_BYTES = 64 * 2**20  # of decoded images, where a whole split may not fit in memory
VAL_NAMES = ("validation", "valid", "val", "test")  # of folders and files; the first kind that is there counts
VAL_FRACTION = 0.2  # of each class, where the data has no validation images of its own


class EncodedImages(Protocol):
    """The images of one split as they are stored. Can be pickled, and read by several threads at once."""

    @property
    def labels(self) -> np.ndarray:
        """The class of each image, (N,) int64."""

    @property
    def units(self) -> np.ndarray | None:
        """For each image the number of the unit of storage that is read with it, (N,) int64; None for one of its own.

        They do not fall, for images are in the order of their units.
        """

    def read(self, rows: Sequence[int]) -> list[bytes | OSError]:
        """The bytes of these images, in this order; for one that cannot be read, the reason in its place."""

    def name(self, row: int) -> str:
        """Where an image lies, for messages."""


@dataclass(frozen=True)
class LabeledImages:
    """Encoded images with the names of their classes (() where the data has none) and the files that they are from.

    `problems` are why training refuses it, though there are images to look at.
    """

    encoded: EncodedImages
    class_names: tuple[str, ...]
    files: tuple[File, ...]
    problems: tuple[UserError, ...] = ()


@dataclass(frozen=True)
class DiscoveredData:
    """What lies under a path: training images, and validation images where the data tells them apart.

    `named_files` says that files' names carry meaning, as folders named after classes do; `passed_over` are names of
    files that lie there and are not read.
    """

    name: str
    train: LabeledImages
    val: LabeledImages | None
    named_files: bool = False
    passed_over: tuple[str, ...] = ()


@dataclass(frozen=True)
class Subset:
    """Some of the images of another `EncodedImages`, or all of them under other labels."""

    of: EncodedImages
    rows: np.ndarray
    labels: np.ndarray

    @property
    def units(self) -> np.ndarray | None:
        """As `EncodedImages.units`, numbered anew."""
        units = self.of.units
        return None if units is None else np.unique(units[self.rows], return_inverse=True)[1]

    def read(self, rows: Sequence[int]) -> list[bytes | OSError]:
        """As `EncodedImages.read`."""
        return self.of.read([int(self.rows[row]) for row in rows])

    def name(self, row: int) -> str:
        """As `EncodedImages.name`."""
        return self.of.name(int(self.rows[row]))


def subset(encoded: EncodedImages, chosen: np.ndarray) -> Subset:
    """The images where `chosen` (N,) bool says so."""
    rows = np.flatnonzero(chosen)
    return Subset(encoded, rows, encoded.labels[rows])


def map_chunks(images: int, work: Callable[[range], T]) -> Iterator[T]:
    """What `work` gives for each chunk of rows, in their order, computed by as many threads as there are cores.

    Threads, for Pillow lets go of Python's lock while it decodes; processes would have to be started and sent the
    images, and were no faster for JPEG and half as fast for PNG of 32x32.
    """
    chunks = [range(start, min(start + CHUNK, images)) for start in range(0, images, CHUNK)]
    with ThreadPoolExecutor(cores()) as pool:
        try:
            yield from pool.map(work, chunks)
        finally:
            pool.shutdown(cancel_futures=True)


def decode_rows(encoded: EncodedImages, rows: np.ndarray, frame: CropSpec) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Decode those of the images `rows` (N,) that can be, some at a time: their places in `rows` (n,) and pixels.

    Pixels are (n, H, W, C) uint8. Training leaves the other images out, too, and has said so.
    """
    at_once = max(CHUNK, AT_ONCE_BYTES // math.prod(frame.shape))

    def work(start: int, chunk: range) -> tuple[list[int], list[np.ndarray]]:
        places, pixels = [], []
        there = range(start + chunk.start, start + chunk.stop)
        for place, image in zip(there, encoded.read([int(rows[place]) for place in there]), strict=True):
            try:
                pixels.append(decode(image, frame))
            except DecodeError:
                continue
            places.append(place)
        return places, pixels

    for start in range(0, len(rows), at_once):
        chunks = list(map_chunks(min(at_once, len(rows) - start), partial(work, start)))
        pixels = [image for _, images in chunks for image in images]
        if pixels:
            yield np.array([place for places, _ in chunks for place in places]), np.stack(pixels)


def digest(image: bytes | OSError) -> bytes:
    """SHA-256 of an image's bytes; of nothing where it cannot be read."""
    return hashlib.sha256(b"" if isinstance(image, OSError) else image).digest()


def digests(encoded: EncodedImages) -> np.ndarray:
    """The SHA-256 of each image, (N,) of 32 bytes; reads them all."""
    found = map_chunks(len(encoded.labels), lambda rows: [digest(image) for image in encoded.read(rows)])
    return np.array([one for chunk in found for one in chunk], dtype="S32")


def choose_validation(hashes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Choose the validation images (N,) bool: a fifth of each class, those of the smallest hashes.

    The choice depends on the images alone, not on their order, so it stays when files are
    renamed or shuffled, and mostly stays when images are added.
    """
    chosen = np.zeros(len(labels), bool)
    for label, count in enumerate(validation_counts(labels)):
        members = np.flatnonzero(labels == label)
        chosen[members[np.argsort(hashes[members], kind="stable")[:count]]] = True
    return chosen


def validation_counts(labels: np.ndarray) -> np.ndarray:
    """How many images of each class `choose_validation` chooses."""
    return np.round(np.bincount(labels) * VAL_FRACTION).astype(int)


def image_count(images: int) -> str:
    """So many images, in words."""
    return f"{images:,} image" + ("" if images == 1 else "s")


Kind = Literal["content", "names and sizes"]
WHOLE_BYTES = 512 * 2**20  # 0.3 to 1 s to read and hash, each time that the images are opened


def fingerprint(parts: Mapping[Split, Sequence[File]], *, named_files: bool) -> tuple[str, Kind]:
    """Sum up what lies in the files of each split, in their order.

    Up to `WHOLE_BYTES` on a disk every byte counts; beyond, and in buckets, names, sizes and what the bucket says
    of the content (ETags) do.

    Args:
        parts: The files.
        named_files: Whether names carry meaning; otherwise a renamed file is the same data.
    """
    every = [file for part in parts.values() for file in part]
    whole = sum(file.size for file in every) <= WHOLE_BYTES and not any(files.is_remote(file.root) for file in every)
    total = hashlib.sha256()
    if not whole:
        total.update(b"names and sizes")
    with ThreadPoolExecutor() as pool:
        for split, part in parts.items():
            total.update(split.encode())
            contents = pool.map(_content, part) if whole else map(_stated, part)
            for file, content in zip(part, contents, strict=True):
                if named_files:
                    total.update(file.name.encode(errors="surrogateescape") + b"\0")
                total.update(content)
    return total.hexdigest(), "content" if whole else "names and sizes"


def _content(file: File) -> bytes:
    try:
        with file.path.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").digest()
    except OSError:
        return b"unreadable"


def _stated(file: File) -> bytes:
    return hashlib.sha256(f"{file.name}\0{file.size}\0{file.tag}".encode(errors="surrogateescape")).digest()
