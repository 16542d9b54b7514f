"""The form of every dataset: encoded images that are read on demand, with labels, splits and a fingerprint.

Class folders and Parquet files are brought to it in discovery.py and parquet.py, and decoded in parallel_decode.py.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from typing import Literal, Protocol, TypeVar

import numpy as np

from resnet_ops import files
from resnet_ops.data.listing import File
from resnet_ops.errors import UserError

T = TypeVar("T")
Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
SPLIT_NAMES: dict[Split, str] = {"train": "training", "val": "validation", "test": "test"}  # in messages
# Words in the names of folders and files, as in Hugging Face's datasets; of each split the first that exists counts.
TRAIN_NAMES = ("train", "training", "trainset", "traindata")
VAL_NAMES = ("validation", "valid", "val", "dev", "validate", "validationset", "valset", "devset")
TEST_NAMES = ("test", "testing", "eval", "evaluation", "testset", "testdata", "evalset")
SPLIT_OF: dict[str, Split] = {
    **dict.fromkeys(TRAIN_NAMES, "train"),
    **dict.fromkeys(VAL_NAMES, "val"),
    **dict.fromkeys(TEST_NAMES, "test"),
}
VAL_FRACTION = 0.2  # of each class, where the data has neither validation nor test images of its own
VAL_FRACTION_BESIDE_TEST = 0.1  # where it has test images: 45,000 and 5,000 of CIFAR-10 (He et al. 2015, sec. 4.2)

FingerprintKind = Literal["content", "names and sizes"]
CONTENT_HASH_BYTES = 512 * 2**20  # 0.3 to 1 s to read and hash, each time that the images are opened
SAMPLED_FILES, SAMPLED_BYTES = 1000, 64 * 2**10  # at most of each split, and of each of them


class EncodedImages(Protocol):
    """The images of one split as they are stored. Can be pickled, and read by several threads at once."""

    @property
    def labels(self) -> np.ndarray:
        """The class of each image, (N,) int64."""

    @property
    def row_groups(self) -> np.ndarray | None:
        """The number of the Parquet row group of each image, (N,) int64, ascending; None where each is read alone."""

    @property
    def sizes(self) -> np.ndarray | None:
        """The bytes of each image, (N,) int64, where they are known without reading it; None where they are not."""

    def read(self, rows: Sequence[int]) -> list[bytes | OSError]:
        """Read the bytes of these images, in this order; for one that cannot be read, return the error in its place."""

    def name(self, row: int) -> str:
        """Return where an image is stored, for messages."""


@dataclass(frozen=True)
class LabeledImages:
    """Encoded images with the names of their classes (() where the data has none) and the files that they are from.

    `problems` are the reasons why training refuses them, though images can be read.
    """

    encoded: EncodedImages
    class_names: tuple[str, ...]
    files: tuple[File, ...]
    problems: tuple[UserError, ...] = ()


@dataclass(frozen=True)
class Skipped:
    """Something that is not read, and why, in a few words that name a kind of such things."""

    name: str
    reason: str


def summarize_skipped(skipped: Sequence[Skipped]) -> str:
    """Return how many things are not read for each reason: '3 .txt, 1 hidden or of the system'."""
    return ", ".join(f"{count:,} {reason}" for reason, count in Counter(each.reason for each in skipped).most_common())


@dataclass(frozen=True)
class DiscoveredData:
    """The training images of a path or a name, and its validation and test images where the data has some of its own.

    `names_matter` is true where files' names carry meaning, as folders named after classes do; `skipped` is what
    is not read; `notes` are what the user should know.
    """

    name: str
    train: LabeledImages
    val: LabeledImages | None
    names_matter: bool = False
    skipped: tuple[Skipped, ...] = ()
    test: LabeledImages | None = None
    notes: tuple[str, ...] = ()

    @property
    def by_split(self) -> dict[Split, LabeledImages]:
        """The images of each split that the data has, in the order of `SPLITS`."""
        parts = zip(SPLITS, (self.train, self.val, self.test), strict=True)
        return {split: part for split, part in parts if part is not None}

    @property
    def parts(self) -> tuple[LabeledImages, ...]:
        """The same without their names."""
        return tuple(self.by_split.values())


def split_word(name: str) -> str | None:
    """Return the last word of a name that names a split, as Hugging Face's datasets do.

    Words are what is between other characters than letters, or begins with a capital: `TestSet`. A split comes
    after what the dataset is called: `wind-tunnel-test-train-00000-of-00002`.
    """
    words = re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    return next((word for word in reversed(words) if word in SPLIT_OF), None)


def named_split(name: str) -> Split | None:
    """Return the split that a name is of, by its last word that names one; None if none does."""
    return SPLIT_OF.get(split_word(name) or "")


def choose_splits(words: Mapping[T, str | None]) -> dict[T, Split]:
    """Return the split of each thing that a word names: of several words for one split only those of the first."""
    chosen = {
        split: next((word for word in SPLIT_OF if SPLIT_OF[word] == split and word in words.values()), None)
        for split in ("val", "test")
    }
    return {
        thing: SPLIT_OF[word]
        for thing, word in words.items()
        if word is not None and (SPLIT_OF[word] == "train" or word == chosen[SPLIT_OF[word]])
    }


@dataclass(frozen=True)
class Subset:
    """Some rows of other `EncodedImages`, or all of them, with labels of their own."""

    images: EncodedImages
    rows: np.ndarray
    labels: np.ndarray

    @property
    def row_groups(self) -> np.ndarray | None:
        """Row groups as in `EncodedImages`, renumbered."""
        groups = self.images.row_groups
        return None if groups is None else np.unique(groups[self.rows], return_inverse=True)[1]

    @property
    def sizes(self) -> np.ndarray | None:
        """See `EncodedImages.sizes`."""
        return None if self.images.sizes is None else self.images.sizes[self.rows]

    def read(self, rows: Sequence[int]) -> list[bytes | OSError]:
        """See `EncodedImages.read`."""
        return self.images.read([int(self.rows[row]) for row in rows])

    def name(self, row: int) -> str:
        """See `EncodedImages.name`."""
        return self.images.name(int(self.rows[row]))


def subset(encoded: EncodedImages, mask: np.ndarray) -> Subset:
    """Return the images where `mask` (N,) bool is true."""
    rows = np.flatnonzero(mask)
    return Subset(encoded, rows, encoded.labels[rows])


@dataclass(frozen=True)
class JoinedImages:
    """`EncodedImages` of two splits, one after the other."""

    first: EncodedImages
    second: EncodedImages

    @cached_property
    def labels(self) -> np.ndarray:
        """See `EncodedImages.labels`."""
        return np.concatenate([self.first.labels, self.second.labels])

    @cached_property
    def row_groups(self) -> np.ndarray | None:
        """Row groups as in `EncodedImages`, numbered on; None where the images of one of them are read alone."""
        first, second = self.first.row_groups, self.second.row_groups
        if first is None or second is None:
            return None
        return np.concatenate([first, second + first.max(initial=-1) + 1])

    @cached_property
    def sizes(self) -> np.ndarray | None:
        """See `EncodedImages.sizes`."""
        first, second = self.first.sizes, self.second.sizes
        return None if first is None or second is None else np.concatenate([first, second])

    def read(self, rows: Sequence[int]) -> list[bytes | OSError]:
        """See `EncodedImages.read`."""
        own = [int(row) for row in rows if row < self._size]
        others = [int(row) - self._size for row in rows if row >= self._size]
        first, second = iter(self.first.read(own)), iter(self.second.read(others))
        return [next(first if row < self._size else second) for row in rows]

    def name(self, row: int) -> str:
        """See `EncodedImages.name`."""
        return self.first.name(row) if row < self._size else self.second.name(row - self._size)

    @cached_property
    def _size(self) -> int:
        return len(self.first.labels)


def digest(image: bytes | OSError) -> bytes:
    """Return the SHA-256 of an image's bytes; of nothing where it cannot be read."""
    return hashlib.sha256(b"" if isinstance(image, OSError) else image).digest()


def choose_validation(digests: np.ndarray, labels: np.ndarray, fraction: float = VAL_FRACTION) -> np.ndarray:
    """Choose the validation images (N,) bool: a fraction of each class, those of the smallest digests.

    The choice depends on the images alone, not on their order, so it stays when files are
    renamed or shuffled, and mostly stays when images are added.
    """
    chosen = np.zeros(len(labels), bool)
    for label, count in enumerate(validation_counts(labels, fraction)):
        members = np.flatnonzero(labels == label)
        chosen[members[np.argsort(digests[members], kind="stable")[:count]]] = True
    return chosen


def validation_counts(labels: np.ndarray, fraction: float = VAL_FRACTION) -> np.ndarray:
    """Return how many images of each class `choose_validation` chooses: one at least where there are three."""
    counts = np.bincount(labels)
    return np.maximum(np.round(counts * fraction), counts >= 3).astype(int)


def choose_test(digests: np.ndarray, labels: np.ndarray, fraction: float, val_fraction: float) -> np.ndarray:
    """Choose the test images (N,) bool: a fraction of each class, those of the largest digests.

    As stable as `choose_validation`, which with `val_fraction` chooses others. Where copies would be on both sides of
    the border, they stay in the training split.
    """
    chosen = np.zeros(len(labels), bool)
    for label, count in enumerate(held_out_test_counts(labels, fraction, val_fraction)):
        members = np.flatnonzero(labels == label)
        if count:
            chosen[members] = digests[members] > np.sort(digests[members])[-count - 1]
    return chosen


def held_out_test_counts(labels: np.ndarray, fraction: float, val_fraction: float) -> np.ndarray:
    """Return how many images of each class `choose_test` chooses, without copies; one at least is left for training."""
    counts = np.bincount(labels)
    most = np.maximum(counts - validation_counts(labels, val_fraction) - 1, 0) if val_fraction else counts - 1
    return np.asarray(np.clip(validation_counts(labels, fraction), 0, np.maximum(most, 0)))


def image_count(images: int) -> str:
    """Return a number of images in words: '1 image', '1,200 images'."""
    return f"{images:,} image" + ("" if images == 1 else "s")


def fingerprint(parts: Mapping[Split, Sequence[File]], *, names_matter: bool) -> tuple[str, FingerprintKind]:
    """Hash the files of each split, in their order.

    Up to `CONTENT_HASH_BYTES` on a disk every byte counts. Beyond, names and sizes do, and how a sample of the files
    begins: pixels that are not compressed take equal sizes. In buckets names, sizes and ETags do.

    Args:
        parts: The files.
        names_matter: Whether names carry meaning; otherwise a renamed file is the same data.
    """
    all_files = [file for part in parts.values() for file in part]
    is_remote = any(files.is_remote(file.root) for file in all_files)
    by_content = not is_remote and sum(file.size for file in all_files) <= CONTENT_HASH_BYTES
    total = hashlib.sha256()
    if not by_content:
        total.update(b"names and sizes")
    with ThreadPoolExecutor() as pool:
        for split, part in parts.items():
            total.update(split.encode())
            hashes = pool.map(_hash_content, part) if by_content else map(_hash_name_and_size, part)
            for file, file_hash in zip(part, hashes, strict=True):
                if names_matter:
                    total.update(file.name.encode(errors="surrogateescape") + b"\0")
                total.update(file_hash)
            if not by_content and not is_remote:
                sample = part[:: 1 + len(part) // SAMPLED_FILES]
                for file_hash in pool.map(_hash_content, sample, repeat(SAMPLED_BYTES)):
                    total.update(file_hash)
    return total.hexdigest(), "content" if by_content else "names and sizes"


def _hash_content(file: File, most: int | None = None) -> bytes:
    try:
        with file.path.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256") if most is None else hashlib.sha256(opened.read(most))
            return digest.digest()
    except OSError:
        return b"unreadable"


def _hash_name_and_size(file: File) -> bytes:
    return hashlib.sha256(f"{file.name}\0{file.size}\0{file.etag}".encode(errors="surrogateescape")).digest()
