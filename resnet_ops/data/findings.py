"""Find what is wrong with images and their labels, from a survey of all of them and the files on disk.

The survey is taken in image_statistics.py, the report composed in audit.py.
"""

import shutil
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from resnet_ops.data.dataset import SPLIT_NAMES, SPLITS, EncodedImages, Skipped, image_count, summarize_skipped
from resnet_ops.data.decode import WHITE_OF_16_BITS
from resnet_ops.data.image_sizes import BRIGHTER_PIXELS
from resnet_ops.data.image_statistics import Survey
from resnet_ops.data.near_duplicates import SIDE, find_nearest
from resnet_ops.data.sources import MAX_LISTED
from resnet_ops.formatting import size
from resnet_ops.machine import memory_bytes

FEW_IMAGES = 10  # training images of a class; from fewer there is little to learn
LONG = 2  # long side / short side, from which half of an image or more is cut off
IMBALANCE = 10  # times as many images in the largest class as in the smallest
TRAIN, VAL, TEST = range(len(SPLITS))
State = Literal["ok", "note", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """The outcome of one check; `details` name the first cases, a line each."""

    state: State
    name: str
    summary: Annotated[str, Field(serialization_alias="found")]
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImageTable:
    """All images of a dataset.

    Args:
        parts: The images, in this order.
        labels: (N,) int64, indices of `class_names`.
        split: (N,) int64, `TRAIN`, `VAL` or `TEST`.
        class_names: Of all splits.
        survey: Facts of each image.
    """

    parts: tuple[EncodedImages, ...]
    labels: np.ndarray
    split: np.ndarray
    class_names: tuple[str, ...]
    survey: Survey

    def _place(self, row: int) -> tuple[EncodedImages, int]:
        for part in self.parts:
            if row < len(part.labels):
                return part, row
            row -= len(part.labels)
        raise IndexError(row)

    def name(self, row: int) -> str:
        """Return where an image is stored."""
        part, own = self._place(row)
        return part.name(own)

    def read(self, row: int) -> bytes | OSError:
        """Read an image as it is stored."""
        part, own = self._place(row)
        (image,) = part.read([own])
        return image

    @cached_property
    def per_class(self) -> np.ndarray:
        """Training, validation and test images of each class that can be decoded, (classes, 3) int64."""
        count, good = len(self.class_names), self.survey.decodable
        return np.stack(
            [np.bincount(self.labels[good & (self.split == s)], minlength=count) for s in (TRAIN, VAL, TEST)], axis=1
        )

    def broken(self, split: int) -> np.ndarray:
        """Return which images of a split cannot be decoded, (N,) bool."""
        return np.asarray(~self.survey.decodable & (self.split == split))


@dataclass(frozen=True)
class Duplicates:
    """Numbers of images that are byte for byte the same.

    Args:
        copies: Training, validation and test images that repeat another of their split.
        in_both: Validation and test images that are in the training split too, and test images in the validation split.
        conflicting: Images that have another label elsewhere.
        findings: The same in words.
    """

    copies: tuple[int, int, int]
    in_both: int
    conflicting: int
    findings: tuple[Finding, ...]


def find_duplicates(table: ImageTable, *, refused: bool = True) -> Duplicates:
    """Find images of the same bytes, leaving out those that cannot be decoded.

    Args:
        table: The images.
        refused: Whether training refuses test images that are in another split too.
    """
    good = np.flatnonzero(table.survey.decodable)
    _, group, sizes = np.unique(table.survey.digests[good], return_inverse=True, return_counts=True)
    group_of = [group[table.split[good] == split] for split in (TRAIN, VAL, TEST)]
    train, val, test = (len(groups) - len(np.unique(groups)) for groups in group_of)
    same: dict[int, list[int]] = {}
    repeated = sizes[group] > 1
    for row, number in zip(good[repeated].tolist(), group[repeated].tolist(), strict=True):
        same.setdefault(number, []).append(row)
    conflicts = [rows for rows in same.values() if len(set(table.labels[rows].tolist())) > 1]
    shared = [rows for rows in same.values() if len(set(table.split[rows].tolist())) > 1]
    twice = [rows for rows in same.values() if np.bincount(table.split[rows]).max() > 1]
    conflicting = sum(map(len, conflicts))
    val_in_train = int(np.isin(group_of[VAL], group_of[TRAIN]).sum())
    is_in_train, is_in_val = (np.isin(group_of[TEST], group_of[split]) for split in (TRAIN, VAL))
    counts = (
        (val_in_train, "validation", "training"),
        (int(is_in_train.sum()), "test", "training"),
        (int(is_in_val.sum()), "test", "validation"),
    )
    shares = [
        f"{image_count(count)} of the {split} split also in the {other}" for count, split, other in counts if count
    ]
    in_both = val_in_train + int((is_in_train | is_in_val).sum())

    def details(groups: list[list[int]]) -> tuple[str, ...]:
        return first_cases(" = ".join(_describe(table, row) for row in rows) for rows in groups)

    findings = (
        Finding("error", "label conflicts", f"{image_count(conflicting)} with more than one label", details(conflicts))
        if conflicts
        else Finding("ok", "label conflicts", "no image has more than one label"),
        Finding(
            "error" if refused and (is_in_train.any() or is_in_val.any()) else "warning",
            "in both splits",
            f"{', '.join(shares)} split",
            details(shared),
        )
        if in_both
        else Finding("ok", "in both splits", "no image is in more than one split"),
        Finding("warning", "copies", f"{train:,} training, {val:,} validation, {test:,} test", details(twice))
        if twice
        else Finding("ok", "copies", "no duplicates within a split"),
    )
    return Duplicates((train, val, test), in_both, conflicting, findings)


@dataclass(frozen=True)
class NearDuplicates:
    """Images that look like one of another split, and are not byte for byte the same.

    Args:
        counts: Validation images like a training image, test images like a training, and like a validation image.
        pairs: Rows of each such image and of the one it is most like, (n, 2) int64, the most alike first.
        finding: The same in words.
    """

    counts: tuple[int, int, int]
    pairs: np.ndarray
    finding: Finding


def find_near_duplicates(table: ImageTable) -> NearDuplicates:
    """Find images that look like one of another split, leaving out copies, which `find_duplicates` finds."""
    hashes, digests = table.survey.hashes, table.survey.digests
    rows_of = [np.flatnonzero((table.split == split) & hashes.any(1)) for split in (TRAIN, VAL, TEST)]
    counts, pairs, distances, mirrored = list[int](), list[np.ndarray](), list[np.ndarray](), list[np.ndarray]()
    for split, other in ((VAL, TRAIN), (TEST, TRAIN), (TEST, VAL)):
        rows = rows_of[split][~np.isin(digests[rows_of[split]], digests[rows_of[other]])]
        nearest = find_nearest(hashes[rows], hashes[rows_of[other]])
        counts.append(int(nearest.matched.sum()))
        pairs.append(np.column_stack((rows[nearest.matched], rows_of[other][nearest.index[nearest.matched]])))
        distances.append(nearest.distance[nearest.matched])
        mirrored.append(nearest.mirrored[nearest.matched])
    order = np.argsort(np.concatenate(distances), kind="stable")
    ordered, is_mirrored = np.concatenate(pairs)[order], np.concatenate(mirrored)[order]
    details = first_cases(
        f"{_describe(table, row)} looks like {_describe(table, other)}{', mirrored' if flip else ''}"
        for (row, other), flip in zip(ordered.tolist(), is_mirrored.tolist(), strict=True)
    )
    shares = [
        f"{image_count(count)} of the {split} split {'looks' if count == 1 else 'look'} like {other} images"
        for count, split, other in zip(
            counts, ("validation", "test", "test"), ("training", "training", "validation"), strict=True
        )
        if count
    ]
    if shares:
        finding = Finding("warning", "near duplicates", ", ".join(shares), details)
    else:
        finding = _found_no_near_duplicates(table, [len(rows) for rows in rows_of])
    return NearDuplicates((counts[0], counts[1], counts[2]), ordered, finding)


def _found_no_near_duplicates(table: ImageTable, comparable: Sequence[int]) -> Finding:
    """Say which splits were compared; `comparable` images each has."""
    names = [SPLIT_NAMES[split] for split, images in zip(SPLITS, comparable, strict=True) if images]
    small = int((table.survey.decodable & (table.survey.sizes.min(1) < SIDE)).sum())
    left_out = f"; {image_count(small)} of fewer than {SIDE} pixels a side not compared" if small else ""
    if len(names) > 1:
        compared = f"{', '.join(names[:-1])} and {names[-1]}"
        return Finding("ok", "near duplicates", f"none found between {compared} images{left_out}")
    why = f"all are smaller than {SIDE} pixels, or of one color"
    if len(np.unique(table.split)) < 2:
        why = "there is one split only, as training refuses the data"
    return Finding("note", "near duplicates", f"not compared with those of other splits: {why}")


def find_broken(table: ImageTable) -> Finding:
    """Find images that cannot be decoded."""
    reasons = table.survey.broken
    if not reasons:
        return Finding("ok", "broken images", "all images can be decoded")
    train, val, test = (int(table.broken(split).sum()) for split in (TRAIN, VAL, TEST))
    counts = f"{train:,} training, {val:,} validation, {test:,} test"
    summary = f"{image_count(len(reasons))} cannot be decoded: {counts}; training skips them"
    details = first_cases(f"{table.name(row)}: {reason}" for row, reason in reasons.items())
    return Finding("error", "broken images", summary, details)


def find_class_problems(table: ImageTable) -> Iterator[Finding]:
    """Find classes with few images or none or with names alike, and how much their sizes differ."""
    names, train, val = table.class_names, table.per_class[:, TRAIN], table.per_class[:, VAL]
    counts = {name: (int(t), int(v)) for name, t, v in zip(names, train, val, strict=True)}
    others = dict(zip(names, table.per_class[:, VAL:].sum(1).tolist(), strict=True))
    if unknown := [f"{name}: {others[name]:,}" for name, (t, _) in counts.items() if others[name] and not t]:
        refused = any(v and not t for t, v in counts.values())
        yield Finding(
            "error" if refused else "warning",  # such test images are left out
            "unknown classes",
            f"in the {'validation or test' if refused else 'test'} split but not in the training split",
            first_cases(unknown),
        )
    if few := [f"{name}: {t:,}" for name, (t, _) in counts.items() if t < FEW_IMAGES and (t or not others[name])]:
        yield Finding(
            "warning",
            "few images",
            f"classes with fewer than {FEW_IMAGES} training images: add images, or remove the class",
            first_cases(few),
        )
    if val.any() and (unseen := [name for name, (t, v) in counts.items() if t and not v]):
        summary = "classes without validation images: add images, or remove the class"
        yield Finding("warning", "not validated", summary, first_cases(unseen))
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(unicodedata.normalize("NFKC", name).casefold(), []).append(name)
    if pairs := [" and ".join(map(ascii, group)) for group in alike.values() if len(group) > 1]:
        summary = "classes whose names differ in case or in how Unicode writes them: if they are one, rename them"
        yield Finding("warning", "alike names", summary, first_cases(pairs))
    if not train.any():
        return
    most, least = int(train.argmax()), int(np.where(train, train, train.max() + 1).argmin())
    ratio = train[most] / train[least]
    summary = f"{names[most]} ({train[most]:,}) has {ratio:.1f} times as many as {names[least]} ({train[least]:,})"
    summary = summary if ratio > 1 else f"{train[most]:,} training images of each class"
    yield Finding("note", "imbalance", summary) if ratio >= IMBALANCE else Finding("ok", "balance", summary)


def find_pixel_problems(table: ImageTable, channels: int) -> Iterator[Finding]:
    """Find colors that are lost, and images of a single color."""
    survey, name = table.survey, table.name
    decodable = survey.decodable
    if channels == 1 and (color := np.flatnonzero(decodable & ~survey.grey)).size:
        summary = f"{image_count(color.size)} will be converted to grey, as the first images sampled are grey"
        yield Finding("warning", "colors lost", summary, first_cases(map(name, color.tolist())))
    if channels == 3 and (grey := int(survey.grey.sum())):
        yield Finding(
            "note", "grey images", f"{image_count(grey)} in grey, {int((decodable & ~survey.grey).sum()):,} in color"
        )
    if (blank := np.flatnonzero(decodable & survey.blank)).size:
        yield Finding(
            "warning",
            "blank images",
            f"{image_count(blank.size)} of a single color",
            first_cases(map(name, blank.tolist())),
        )


def find_bit_depth_problems(table: ImageTable, bit_depth: int | None) -> Iterator[Finding]:
    """Report how many bits the values of 16-bit images use, and which images exceed what that was concluded from."""
    if bit_depth is None:
        if (wide := np.flatnonzero(table.survey.largest_values)).size:
            most = int(table.survey.largest_values.max())
            summary = f"{image_count(wide.size)} of 16 bits, as no image sampled is, with values up to {most:,}"
            summary += f" of {WHITE_OF_16_BITS:,}, which is white: convert them to 8 bits"
            yield Finding("warning", "16-bit images", summary, first_cases(map(table.name, wide.tolist())))
        return
    white = 2**bit_depth - 1
    share = f"{1 - BRIGHTER_PIXELS:.1%} of their pixels"
    summary = f"{share} use {bit_depth} of 16 bits: 0 to {white:,} become 0 to 255 in all of them"
    yield Finding("note", "16-bit images", summary)
    if (brighter := np.flatnonzero(table.survey.largest_values > white)).size:
        summary = f"{image_count(brighter.size)} with values above {white:,}, which become white"
        yield Finding("warning", "too bright", summary, first_cases(map(table.name, brighter.tolist())))


def find_other_sizes(table: ImageTable, size: tuple[int, int] | None) -> Iterator[Finding]:
    """Find images of another size than that of all images sampled, which the network sees."""
    if size is None:
        return
    other = np.flatnonzero(table.survey.decodable & (table.survey.sizes != size).any(1))
    if other.size:
        summary = (
            f"{image_count(other.size)} will be resized and cropped to {size[0]}x{size[1]}, as the first sampled are"
        )
        yield Finding("warning", "other sizes", summary, first_cases(map(table.name, other.tolist())))


def find_long_images(table: ImageTable, stored: tuple[int, int] | None) -> Iterator[Finding]:
    """Find images whose ends are cut off where images are resized, so that they cover `stored`, and cropped to it."""
    if stored is None:
        return
    sizes = table.survey.sizes / stored
    long = np.flatnonzero(table.survey.decodable & (sizes.max(1) >= LONG * sizes.min(1)))
    if long.size:
        shape = f"whose shape differs from {stored[0]}x{stored[1]} by a factor of {LONG} or more"
        shape = f"at least {LONG} times as long as wide" if stored[0] == stored[1] else shape
        summary = f"{image_count(long.size)} {shape}, of which training sees the center"
        details = first_cases(map(table.name, long.tolist()))
        yield Finding("note", "long images", f"{summary}; with --random-resized-crop all of it", details)


def find_space_problems(train_bytes: int, decoded_bytes: int, streamed: bool, cache: Path | None) -> Iterator[Finding]:
    """Check whether decoded images fit into this machine's memory, or are streamed, and into the cache's disk."""
    summary = f"decoded training images take {size(train_bytes)} of {size(memory_bytes())}"
    if streamed:
        yield Finding("note", "memory", f"{summary}: streaming, decoded in every epoch")
    else:
        yield Finding("ok", "memory", summary)
    if cache is None:
        return
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    if decoded_bytes > (free := shutil.disk_usage(existing).free):
        summary = f"{size(decoded_bytes)} decoded, but {size(free)} free in {existing}"
        yield Finding("warning", "cache", f"{summary}; choose another folder with --cache-dir")


def find_cut_images(table: ImageTable) -> Iterator[Finding]:
    """Report JPEGs that lack their end and are read all the same."""
    if (cut := np.flatnonzero(table.survey.cut)).size:
        summary = f"{image_count(cut.size)} without the end of the JPEG: next to all pixels are there, and are used"
        yield Finding("note", "cut images", summary, first_cases(map(table.name, cut.tolist())))


def find_skipped_files(skipped: Sequence[Skipped]) -> Finding:
    """Report files that are not read."""
    if not skipped:
        return Finding("ok", "other files", "none ignored")
    summary = f"{len(skipped):,} ignored: {summarize_skipped(skipped)}"
    return Finding("note", "other files", summary, first_cases(each.name for each in skipped))


def _describe(table: ImageTable, row: int) -> str:
    return f"{table.name(row)} ({SPLITS[table.split[row]]}, {table.class_names[table.labels[row]]})"


def first_cases(cases: Iterable[str]) -> tuple[str, ...]:
    """Return the first `MAX_LISTED` cases, and how many more there are."""
    lines = list(cases)
    more = len(lines) - MAX_LISTED
    return (*lines[:MAX_LISTED], *([f"and {more:,} more"] if more > 0 else []))
