"""What can be wrong with images and their labels, each looked for in what a survey saw of all of them."""

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from resnet_ops.data.dataset import SPLITS, EncodedImages, image_count
from resnet_ops.data.sources import NAMED
from resnet_ops.data.survey import Survey
from resnet_ops.formatting import size
from resnet_ops.machine import memory_bytes

FEW = 10  # training images of a class; from fewer there is little to learn
IMBALANCE = 10  # times as many images in the largest class as in the smallest
TRAIN, VAL = 0, 1
State = Literal["ok", "note", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One thing looked for, and what was found; `details` name the first cases, a line each."""

    state: State
    name: str
    found: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class FindingTable:
    """Every image of a data set.

    Args:
        parts: The images, in this order.
        labels: (N,) int64, indices of `class_names`.
        split: (N,) int64, `TRAIN` or `VAL`.
        class_names: Those of both splits.
        seen: What was seen of each image.
    """

    parts: tuple[EncodedImages, ...]
    labels: np.ndarray
    split: np.ndarray
    class_names: tuple[str, ...]
    seen: Survey

    def name(self, row: int) -> str:
        """Where an image lies."""
        first = len(self.parts[0].labels)
        return self.parts[0].name(row) if row < first else self.parts[1].name(row - first)

    @cached_property
    def per_class(self) -> np.ndarray:
        """Training and validation images of each class, (classes, 2) int64, broken ones among them."""
        count = len(self.class_names)
        return np.stack([np.bincount(self.labels[self.split == s], minlength=count) for s in (TRAIN, VAL)], axis=1)

    def broken(self, split: int) -> np.ndarray:
        """Which images of a split cannot be decoded, (N,) bool."""
        return np.asarray(~self.seen.sound & (self.split == split))


@dataclass(frozen=True)
class Repeats:
    """Images that are byte for byte the same.

    Args:
        copies: Of training and of validation images, those that are another one of their split once more.
        in_both: Validation images that are among the training images too.
        conflicting: Images that are there under another label too.
        findings: The same in words.
    """

    copies: tuple[int, int]
    in_both: int
    conflicting: int
    findings: tuple[Finding, ...]


def repeats(table: FindingTable) -> Repeats:
    """Look for the same bytes twice, broken images aside."""
    good = np.flatnonzero(table.seen.sound)
    _, group, sizes = np.unique(table.seen.digests[good], return_inverse=True, return_counts=True)
    of = [group[table.split[good] == split] for split in (TRAIN, VAL)]
    copies = tuple(len(groups) - len(np.unique(groups)) for groups in of)
    same: dict[int, list[int]] = {}
    repeated = sizes[group] > 1
    for row, number in zip(good[repeated].tolist(), group[repeated].tolist(), strict=True):
        same.setdefault(number, []).append(row)
    conflicts = [rows for rows in same.values() if len(set(table.labels[rows].tolist())) > 1]
    shared = [rows for rows in same.values() if len(set(table.split[rows].tolist())) > 1]
    twice = [rows for rows in same.values() if np.bincount(table.split[rows]).max() > 1]
    conflicting, in_both = sum(map(len, conflicts)), int(np.isin(of[VAL], of[TRAIN]).sum())

    def told(groups: list[list[int]]) -> tuple[str, ...]:
        return some(" = ".join(_where(table, row) for row in rows) for rows in groups)

    findings = (
        Finding("error", "label conflicts", f"{image_count(conflicting)} with more than one label", told(conflicts))
        if conflicts
        else Finding("ok", "label conflicts", "no image has more than one label"),
        Finding(
            "warning",
            "in both splits",
            f"{image_count(in_both)} of the validation split also in the training split",
            told(shared),
        )
        if in_both
        else Finding("ok", "in both splits", "no validation image is in the training split"),
        Finding("warning", "copies", f"{copies[TRAIN]:,} training, {copies[VAL]:,} validation", told(twice))
        if any(copies)
        else Finding("ok", "copies", "no duplicates within a split"),
    )
    return Repeats((copies[TRAIN], copies[VAL]), in_both, conflicting, findings)


def find_broken(table: FindingTable) -> Finding:
    """Images that cannot be decoded."""
    reasons = table.seen.broken
    if not reasons:
        return Finding("ok", "broken images", "all images can be decoded")
    split = [int(table.broken(split).sum()) for split in (TRAIN, VAL)]
    found = f"{image_count(len(reasons))} cannot be decoded: {split[TRAIN]:,} training, {split[VAL]:,} validation"
    details = some(f"{table.name(row)}: {reason}" for row, reason in reasons.items())
    return Finding("error", "broken images", found, details)


def find_class_problems(table: FindingTable) -> Iterator[Finding]:
    """Classes with too few images, or none, and how unequal they are."""
    names, train, val = table.class_names, table.per_class[:, TRAIN], table.per_class[:, VAL]
    here = {name: (int(t), int(v)) for name, t, v in zip(names, train, val, strict=True)}
    if unknown := [f"{name}: {v:,}" for name, (t, v) in here.items() if v and not t]:
        yield Finding(
            "error", "unknown classes", "in the validation split but not in the training split", some(unknown)
        )
    if few := [f"{name}: {t:,}" for name, (t, v) in here.items() if t < FEW and (t or not v)]:
        yield Finding("warning", "few images", f"classes with fewer than {FEW} training images", some(few))
    if val.any() and (unseen := [name for name, (t, v) in here.items() if t and not v]):
        yield Finding("warning", "not validated", "classes without validation images", some(unseen))
    if not train.any():
        return
    most, least = int(train.argmax()), int(np.where(train, train, train.max()).argmin())
    times = train[most] / train[least]
    told = f"{names[most]} ({train[most]:,}) has {times:.1f} times as many as {names[least]} ({train[least]:,})"
    told = told if times > 1 else f"{train[most]:,} training images of each class"
    yield Finding("note", "imbalance", told) if times >= IMBALANCE else Finding("ok", "balance", told)


def find_pixel_problems(table: FindingTable, channels: int) -> Iterator[Finding]:
    """Colours that are lost, and images that show nothing."""
    seen = table.seen
    sound, names = seen.sound, table.name
    if channels == 1 and (colour := np.flatnonzero(sound & ~seen.grey)).size:
        told = f"{image_count(colour.size)} will be converted to grey, as the first images sampled are grey"
        yield Finding("warning", "colours lost", told, some(map(names, colour.tolist())))
    if channels == 3 and (grey := int(seen.grey.sum())):
        yield Finding(
            "note", "grey images", f"{image_count(grey)} in grey, {int((sound & ~seen.grey).sum()):,} in colour"
        )
    if (blank := np.flatnonzero(sound & seen.blank)).size:
        yield Finding(
            "warning", "blank images", f"{image_count(blank.size)} of a single colour", some(map(names, blank.tolist()))
        )


def find_memory_problems(train_bytes: int, decoded_bytes: int, streamed: bool, cache: Path | None) -> Iterator[Finding]:
    """Whether decoded images fit into this machine's memory, or are streamed, and whether into the cache."""
    told = f"decoded training images take {size(train_bytes)} of {size(memory_bytes())}"
    if streamed:
        yield Finding("note", "memory", f"{told}: streaming, decoded in every epoch")
    else:
        yield Finding("ok", "memory", told)
    if cache is None:
        return
    there = next(folder for folder in (cache, *cache.parents) if folder.exists())
    if decoded_bytes > (free := shutil.disk_usage(there).free):
        yield Finding(
            "warning",
            "cache",
            f"{size(decoded_bytes)} decoded, but {size(free)} free in {there}; choose another folder with --cache-dir",
        )


def find_skipped_files(names: tuple[str, ...]) -> Finding:
    """Files that lie there and are not read."""
    if not names:
        return Finding("ok", "other files", "none ignored")
    return Finding("note", "other files", f"{len(names):,} ignored", some(names))


def _where(table: FindingTable, row: int) -> str:
    return f"{table.name(row)} ({SPLITS[table.split[row]]}, {table.class_names[table.labels[row]]})"


def some(cases: Iterable[str]) -> tuple[str, ...]:
    """The first `NAMED` of them, and how many more there are."""
    every = list(cases)
    more = len(every) - NAMED
    return (*every[:NAMED], *([f"and {more:,} more"] if more > 0 else []))
