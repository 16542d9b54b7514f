"""Which images are read together, and in which order, so that batches are complete in theirs.

Knows numbers of rows and batches only; stream.py reads the images.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Piece:
    """Images that one thread reads and decodes at a time: their rows, the batch of each, and its place in it; (n,)."""

    rows: np.ndarray
    batches: np.ndarray
    places: np.ndarray


@dataclass(frozen=True)
class ReadSchedule:
    """The pieces that make up some batches, in the order in which they are first needed.

    Args:
        images: All pieces, one after the other.
        starts: Where each begins, and the number of images, (P + 1,) int64.
        reach: The last batch that each, or one before it, has images of, (P,) int64.
        needed: How many pieces make the first batch complete, the first two batches, ..., (B,) int64.
    """

    images: Piece
    starts: np.ndarray
    reach: np.ndarray
    needed: np.ndarray

    @classmethod
    def of(cls, batches: Sequence[np.ndarray], row_groups: np.ndarray | None, piece_images: int) -> "ReadSchedule":
        """Cut the rows of batches into pieces of at most `piece_images`; in Parquet each is of one row group.

        All pieces of a row group follow each other, so that it is read once, though its images may be in many batches.
        """
        rows = np.concatenate([np.empty(0, np.int64), *batches])
        sizes = np.array([len(batch) for batch in batches], np.int64)
        batch_of = np.repeat(np.arange(len(sizes)), sizes)
        place_of = np.arange(len(rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        order, changes = np.arange(len(rows)), np.empty(0, np.int64)
        if row_groups is not None:
            _, firsts, inverse = np.unique(row_groups[rows], return_index=True, return_inverse=True)
            first_use = firsts[inverse]  # where the row group of each row is first needed
            order = np.argsort(first_use, kind="stable")
            changes = np.flatnonzero(np.diff(first_use[order])) + 1
        images = Piece(rows[order], batch_of[order], place_of[order])
        runs = itertools.pairwise([0, *changes.tolist(), len(rows)])
        starts = np.concatenate([*(np.arange(start, end, piece_images) for start, end in runs), [len(rows)]])
        reach = np.maximum.accumulate(np.maximum.reduceat(images.batches, starts[:-1])) if len(rows) else rows
        needed = np.zeros(len(batches), np.int64)
        np.maximum.at(needed, images.batches, np.repeat(np.arange(1, len(starts)), np.diff(starts)))
        return cls(images, starts, reach, np.maximum.accumulate(needed))

    def __len__(self) -> int:
        return len(self.reach)

    def piece(self, number: int) -> Piece:
        """Return one piece."""
        part = slice(self.starts[number], self.starts[number + 1])
        return Piece(self.images.rows[part], self.images.batches[part], self.images.places[part])

    @property
    def span(self) -> int:
        """Return how many batches have to be begun at most before one is complete, besides that one itself."""
        begun = np.concatenate([[0], self.reach])[self.needed]
        return int(np.max(begun - np.arange(len(self.needed)), initial=0))
