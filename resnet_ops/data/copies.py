"""Find test images that are also training or validation images, byte for byte: accuracy on them would be too high.

`data check`, which reads every image, finds copies of all kinds (findings.py); training asks for these alone.
"""

import functools
import hashlib
import os
from collections.abc import Mapping, Sequence

import numpy as np

from resnet_ops.data.dataset import SPLITS, EncodedImages, Split, Subset
from resnet_ops.data.parallel_decode import hash_all

UNREAD = hashlib.sha256(b"").digest()  # of what cannot be read, or is empty


def known_sizes(parts: Mapping[Split, EncodedImages]) -> dict[Split, np.ndarray]:
    """Return the sizes of the images of each split, (N,) int64; {} unless all are known without reading them."""
    sizes = {split: part.sizes for split, part in parts.items() if part.sizes is not None}
    return sizes if len(sizes) == len(parts) else {}


def hash_candidates(parts: Mapping[Split, EncodedImages], known: Mapping[Split, np.ndarray]) -> dict[Split, np.ndarray]:
    """Return the SHA-256 of the images of each split, (N,) of 32 bytes, "test" among them.

    Where sizes are known, images alone that share theirs between the test split and another are read and hashed.

    Args:
        parts: The images.
        known: Of some splits the result.
    """
    sizes = known_sizes(parts)
    if known or not sizes:
        return {split: known[split] if split in known else hash_all(part) for split, part in parts.items()}
    shared = np.intersect1d(sizes["test"], np.concatenate([own for split, own in sizes.items() if split != "test"]))
    digests = {}
    for split, part in parts.items():
        rows = np.flatnonzero(np.isin(sizes[split], shared))
        digests[split] = np.full(len(part.labels), UNREAD, "S32")
        digests[split][rows] = hash_all(Subset(part, rows, part.labels[rows]))
    return digests


def find_test_copies(digests: Mapping[Split, np.ndarray]) -> np.ndarray:
    """Return test images that are in another split too, (n, 3) int64: its row, the number of the other split, a row."""
    test, copies = digests["test"], [np.empty((0, 3), np.int64)]
    for number, split in enumerate(SPLITS):
        if split == "test" or split not in digests or not len(digests[split]):
            continue
        distinct, first = np.unique(digests[split], return_index=True)
        place = np.searchsorted(distinct, test).clip(max=len(distinct) - 1)
        rows = np.flatnonzero((distinct[place] == test) & (test != np.bytes_(UNREAD)))
        copies.append(np.column_stack((rows, np.full(len(rows), number), first[place[rows]])))
    return np.concatenate(copies)


def has_other_label(digests: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return which images (N,) bool have another label elsewhere, by their SHA-256, (N,) of 32 bytes."""
    _, group = np.unique(digests, return_inverse=True)
    least, most = (np.full(group.max(initial=-1) + 1, start) for start in (labels.max(initial=0), -1))
    np.minimum.at(least, group, labels)
    np.maximum.at(most, group, labels)
    return np.asarray((least < most)[group])


def name_copies(parts: Mapping[Split, EncodedImages], copies: np.ndarray, most: int) -> Sequence[str]:
    """Return the first of `find_test_copies` by the names of both images."""
    return [
        f"{parts['test'].name(row)} = {parts[SPLITS[number]].name(other)}"
        for row, number, other in copies[:most].tolist()
    ]


def resolved_names(images: EncodedImages) -> np.ndarray:
    """Return the names of all images, (N,), with symbolic links followed."""
    resolve_folder = functools.cache(os.path.realpath)

    def resolved(name: str) -> str:
        before, _, path = name.partition("/")  # "image 0 of " before that of a Parquet file
        folder, _, file = path.rpartition("/")
        path = f"{resolve_folder(f'/{folder}')}/{file}"
        return before + (os.path.realpath(path) if os.path.islink(path) else path)  # noqa: PTH114 - 1,000,000 of them

    return np.array([resolved(images.name(row)) for row in range(len(images.labels))], str)
