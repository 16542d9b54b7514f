"""A dataset that training can use: which of its images are of which split, and their pixels, from the cache or decoded.

It is opened, and checked, in opening.py. Nothing here knows torch.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from resnet_ops import files
from resnet_ops.config import DATA_SETS, DataConfig
from resnet_ops.config_base import quoted
from resnet_ops.data.cache import cache_folder, cache_key, cached_array, cached_images
from resnet_ops.data.copies import find_test_copies, has_other_label, hash_candidates, known_sizes, name_copies
from resnet_ops.data.dataset import (
    CONTENT_HASH_BYTES,
    SPLIT_NAMES,
    SPLITS,
    VAL_FRACTION,
    VAL_FRACTION_BESIDE_TEST,
    EncodedImages,
    JoinedImages,
    Skipped,
    Split,
    Subset,
    choose_test,
    choose_validation,
    fingerprint,
    image_count,
    subset,
    summarize_skipped,
)
from resnet_ops.data.decode import CropSpec
from resnet_ops.data.discovery import EMBEDDED
from resnet_ops.data.image_sizes import unlike_notes
from resnet_ops.data.listing import File
from resnet_ops.data.parallel_decode import (
    DecodedImages,
    DecodeOptions,
    ImageArray,
    Report,
    decode_all,
    do_not_report,
    hash_all,
)
from resnet_ops.errors import UserError
from resnet_ops.formatting import first_names
from resnet_ops.machine import memory_bytes
from resnet_ops.run_records import DataRecord, HeldOutRecord

SAMPLE_SIZE = 2000  # images whose mean and deviation stand for all where they are streamed
SAMPLE_ROW_GROUPS = 20  # row groups that these are from, in Parquet
COPIES_NAMED = 3  # test images that are also in another split, in a message
MAX_CONFLICTS = 0.5  # of the images with more than one label: with so many the folders are no classes
MAX_LISTED = 20  # bad images that the record names


@dataclass(frozen=True)
class Source:
    """A dataset that training can use; nothing of it is decoded before `load`, `decoded` or `prepare`.

    Args:
        record: What a run's record says of it.
        config: The options that it was opened with.
        splits: Its training images, its validation images unless they are held out of the former, and its test images
            if it has some.
        files: The files of its training and validation images, in order.
        test_files: The files of its test images.
        notes: What the user should know.
        skipped: What of the data is not read.
        whole: Whether training images that are resized are kept whole, for random resized crops, and not cut at the
            center.
        used_labels: The labels of the splits that `prepare` has decoded, without images that cannot be.
        report: Called as images are read and decoded.
    """

    record: DataRecord
    config: DataConfig
    splits: dict[Split, EncodedImages]
    files: tuple[File, ...]
    test_files: tuple[File, ...] = ()
    notes: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    whole: bool = False
    used_labels: Mapping[Split, np.ndarray] = field(default_factory=dict, compare=False, repr=False)
    report: Report = field(default=do_not_report, compare=False, repr=False)

    @property
    def summary(self) -> tuple[str, ...]:
        """The contents, in a line on splits and classes and, where something is not read, one on that."""
        names, classes = first_names(self.record.class_names), len(self.record.class_names)
        contents = f"{self.split_summary} of {classes:,} classes: {names}."
        return (contents, f"Passed over: {self.skipped_summary}.") if self.skipped else (contents,)

    @property
    def skipped_summary(self) -> str:
        """A few words on what is not read; "" if all is."""
        return f"{summarize_skipped(self.skipped)}; first {self.skipped[0].name}" if self.skipped else ""

    @property
    def split_summary(self) -> str:
        """The dataset's name and the numbers of images of each split."""
        data = self.record
        counts = {"training": data.train_images, "validation": data.val_images, "test": data.test_images}
        fraction = val_fraction(self.config, self.splits)
        held_out = f" ({fraction:.0%} of each class, held out)" if fraction and not self.config.fit_all else ""
        parts = [
            f"{count:,} {split}{held_out if split == 'validation' else ''}" for split, count in counts.items() if count
        ]
        return f"{data.name}: {', '.join(parts)} images"

    @property
    def embedded(self) -> bool:
        """True if the images ship with this package."""
        return self.config.data in EMBEDDED and self.config.val_data is None

    @property
    def used_splits(self) -> tuple[Split, ...]:
        """The splits that training uses: with `fit_all` the validation images are training images."""
        return ("train",) if self.config.fit_all else ("train", "val")

    @property
    def held_out(self) -> tuple[Split, ...]:
        """The splits that are chosen from the training images."""
        val: tuple[Split, ...] = () if "val" in self.splits else ("val",)
        return (*val, "test") if self.config.test_fraction else val

    def encoded(self, split: Split) -> EncodedImages:
        """Return the encoded images of one split. Where validation images are held out, it reads all of them.

        With `fit_all` training has them all, and "val" are those of them that would be for validation.
        """
        train = self.splits["train"]
        if split != "train":
            return subset(train, self._rows_of(split)) if split in self.held_out else self.splits[split]
        kept = subset(train, self._rows_of(split)) if self.left_out else train
        return JoinedImages(kept, self.splits["val"]) if self.config.fit_all and "val" in self.splits else kept

    def count_classes(self, split: Split) -> np.ndarray:
        """Return how many images of each class a split has, (classes,); without broken ones once it is decoded."""
        labels = self.used_labels.get(split)
        return np.bincount(
            self.encoded(split).labels if labels is None else labels, minlength=len(self.record.class_names)
        )

    @property
    def not_validated(self) -> tuple[str, ...]:
        """The classes that are trained but have no validation images, where others have."""
        if self.config.fit_all:
            return ()
        train, val = self.count_classes("train"), self.count_classes("val")
        return tuple(np.array(self.record.class_names)[(train > 0) & (val == 0)].tolist()) if val.any() else ()

    @property
    def left_out(self) -> tuple[Split, ...]:
        """The splits that are held out and that training does not have."""
        return tuple(split for split in self.held_out if split == "test" or not self.config.fit_all)

    def _rows_of(self, split: Split) -> np.ndarray:
        """Return which of the data's training images are a split, (N,) bool, where some are held out."""
        split_of = self._split_of
        return np.asarray(~np.isin(split_of, self.left_out) if split == "train" else split_of == split)

    @cached_property
    def _split_of(self) -> np.ndarray:
        return self.choose_splits(self._digests)

    def choose_splits(self, digests: np.ndarray) -> np.ndarray:
        """Return the split, (N,) of their names, of each image of the data's training split by its digest."""
        labels, chosen = self.splits["train"].labels, np.full(len(digests), "train", "U5")
        fraction = val_fraction(self.config, self.splits)
        if fraction:
            chosen[choose_validation(digests, labels, fraction)] = "val"
        if self.config.test_fraction:
            chosen[choose_test(digests, labels, self.config.test_fraction, fraction)] = "test"
        return chosen

    @cached_property
    def held_out_images(self) -> HeldOutRecord | None:
        """The record of which images are held out for validation; None where the data has some of its own."""
        if "val" in self.splits:
            return None
        digests = np.sort(self._digests[self._rows_of("val")])
        digest = hashlib.sha256(digests.tobytes()).hexdigest()
        return HeldOutRecord(val_sha256=digest, test_fraction=self.config.test_fraction)

    @cached_property
    def _digests(self) -> np.ndarray:
        train = self.splits["train"]
        return (
            hash_all(train)
            if self.embedded
            else cached_array(self._cache("digests"), lambda: hash_all(train, self.report))
        )

    def digests_of_candidates(self, split: Split, sizes: np.ndarray | None) -> np.ndarray | None:
        """Return the SHA-256 of images of a split that may equal others, (n,) of 32 bytes; None for too many to read.

        With `fit_all`, the training images may be without the validation images that the data has.

        Args:
            split: The split.
            sizes: The bytes of the others, if they are known.
        """
        if self.held_out and split in ("train", *self.held_out):  # to hold some out, all are read anyway
            return np.asarray(self._digests[self._rows_of(split)])
        images, to_read = self.encoded(split), sum(file.size for file in self.files)
        if to_read > CONTENT_HASH_BYTES and sizes is not None and (own := images.sizes) is not None:
            of_a_size = np.isin(own, sizes)
            images, to_read = subset(images, of_a_size), int(own[of_a_size].sum())
        return hash_all(images) if to_read <= CONTENT_HASH_BYTES else None

    @cached_property
    def _test_copies(self) -> np.ndarray:
        """Test images that are in another split too, as `find_test_copies` has them."""
        parts = self._compared
        joined = self.config.fit_all and "val" in self.splits
        hashed = [  # to hold some of them out
            split for split in parts if self.left_out and (split in self.held_out or (split == "train" and not joined))
        ]
        known = {split: self._digests[self._rows_of(split)] for split in hashed}
        if len(known) == len(parts):
            return find_test_copies(known)
        return cached_array(self._cache("copies"), lambda: find_test_copies(hash_candidates(parts, known)))

    @cached_property
    def _compared(self) -> dict[Split, EncodedImages]:
        splits: tuple[Split, ...] = (*self.used_splits, "test")
        return {split: self.encoded(split) for split in splits}

    def check_test_images(self) -> tuple[str, ...]:
        """Check that no test image is a training or a validation image too, byte for byte.

        Returns:
            Notes on those that are and are allowed, or that they were not compared.

        Raises:
            UserError: Some are, and that is not allowed.
        """
        if not self.record.test_images:
            return ()
        if should_stream(self.config, self.decoded_bytes) and not self.left_out and not known_sizes(self._compared):
            check = f"resnet-ops data check {quoted(self.config.data)}"
            return (f"Test images were not compared with the others: {check} does it.",)
        parts, copies = self._compared, self._test_copies
        if not len(copies):
            return ()
        counts = Counter(SPLIT_NAMES[SPLITS[number]] for number in copies[:, 1].tolist())
        summary = " and ".join(
            f"{image_count(count)} of the {len(parts['test'].labels):,} in the test split "
            f"{'is' if count == 1 else 'are'} also in the {split} split"
            for split, count in counts.items()
        )
        named = "; ".join(name_copies(parts, copies, COPIES_NAMED))
        if not refuses_test_copies(self.config):
            return (f"{summary}: {named}.",)
        raise UserError(
            f"{summary}, so that accuracy on them would be too high: {named}.",
            f"Remove them from one of the two (resnet-ops data check {quoted(self.config.data)} lists them), or use "
            "--allow-duplicates.",
        )

    def check_labels(self) -> tuple[str, ...]:
        """Check that no image has two labels, as `prepare` does, where images are streamed.

        Returns:
            Notes on those that have, or that not all were compared, as they are not read before training.

        Raises:
            UserError: Most have.
        """
        if not self.held_out or "val" in self.splits:
            return (f"Labels of equal images were not compared: resnet-ops data check {self.config.data} does it.",)
        used = self._split_of != "test"
        return tuple(_check_conflicts(self._digests[used], self.splits["train"].labels[used], self.config.data))

    def crop_spec(self, split: Split) -> CropSpec:
        """Return size and channels of a split's decoded images; training images keep a margin to crop from."""
        data = self.record
        cover = data.stored or (data.height, data.width)
        bit_depth = data.bit_depth or 16
        if split == "train":
            return CropSpec(cover, *cover, data.channels, self.whole and data.stored is not None, bit_depth)
        return CropSpec(cover, data.height, data.width, data.channels, bit_depth=bit_depth)

    def decode_options(self, split: Split) -> DecodeOptions:
        """Return how a split is decoded."""
        config = self.config
        strict, share = config.on_bad_image == "fail", config.max_bad_images
        return DecodeOptions(self.crop_spec(split), self.record.class_names, strict, share, split)

    def decoded(self, split: Split) -> DecodedImages:
        """Return one split decoded, from the cache if it is there, without the images that cannot be.

        Raises:
            UserError: An image cannot be decoded and that is an error, or too many; or the cache cannot be written.
            PausedError: The cache's disk is full.
        """
        options = self.decode_options(split)
        if self.embedded:
            return decode_all(self.encoded(split), options)
        return cached_images(self._cache(split), lambda: self.encoded(split), options, self.report)

    def load(self, split: Split) -> ImageArray:
        """Return the pixels and labels of `decoded`."""
        return self.decoded(split).images

    def prepare(self) -> "Source":
        """Decode the splits that training uses into the cache, unless they are in it.

        Returns:
            The same source, whose record and notes say what was left out, and what is in more than one split.

        Raises:
            UserError: See `decoded` and `check_test_images`.
            PausedError: See `decoded`.
        """
        copies = self.check_test_images()
        if self.embedded:
            exact = self.with_exact_counts()
            return replace(exact, notes=(*self.notes, *copies)) if copies else exact
        decoded = {split: self.decoded(split) for split in self.used_splits}
        bad, notes = [image for part in decoded.values() for image in part.bad], [*self.notes, *copies]
        if bad:
            notes.append(
                f"Skipped {image_count(len(bad))} that cannot be decoded, first: {bad[0].name}: {bad[0].reason}."
            )
        if cut := sum(part.cut for part in decoded.values()):
            notes.append(cut_note(cut))
        kinds = [(part.wide, part.colored, self.config.leaves_size and part.resized) for part in decoded.values()]
        notes += unlike_notes(self.record, *np.sum(kinds, axis=0).tolist())
        digests = np.concatenate([part.digests for part in decoded.values()])
        labels = np.concatenate([part.images.labels for part in decoded.values()])
        notes += _check_conflicts(digests, labels, self.config.data)
        val_copies = 0
        if "val" in decoded and (val_copies := int(np.isin(decoded["val"].digests, decoded["train"].digests).sum())):
            of_all = f"{image_count(val_copies)} of the {len(decoded['val'].images):,}"
            notes.append(f"{of_all} in the validation split are also in the training split.")
        update = {
            **{f"{split}_images": len(part.images) for split, part in decoded.items()},
            "bad_images": len(bad),
            "first_bad_images": tuple(bad[:MAX_LISTED]),
            "val_copies": val_copies,
        }
        exact = self.with_exact_counts()
        used_labels = {split: part.images.labels for split, part in decoded.items()}
        record = exact.record.model_copy(update=update)
        return replace(exact, record=record, notes=tuple(notes), used_labels=used_labels)

    def with_exact_counts(self) -> "Source":
        """Return the same source with the numbers of images after test images were held out, without copies."""
        if "test" not in self.held_out:
            return self
        counts = {f"{split}_images": len(self.encoded(split).labels) for split in (*self.used_splits, "test")}
        return replace(self, record=self.record.model_copy(update=counts))

    @property
    def decoded_bytes(self) -> int:
        """Bytes of the training images once decoded."""
        return self.record.train_images * int(np.prod(self.crop_spec("train").shape))

    def sample_counts(self) -> np.ndarray:
        """Count each value in each channel (C, 256) of a fixed sample of the training images.

        Raises:
            UserError: Images of them cannot be decoded, and that is an error, or they are too many.
        """
        train = self.encoded("train")
        rows = sample(len(train.labels), train.row_groups)
        # Labeled as one class: that all images of a class are broken cannot be concluded from a sample.
        images = Subset(train, rows, np.zeros(len(rows), np.int64))
        return decode_all(images, self.decode_options("train")).counts

    def _cache(self, content: Split | Literal["digests", "copies"]) -> Path:
        labels = [(split, hashlib.sha256(images.labels.tobytes()).hexdigest()) for split, images in self.splits.items()]
        crop = self.crop_spec(content) if content in SPLITS else None
        whole_set = content == "train" and self.config.fit_all
        name = cache_key(
            "all" if whole_set else content,
            self.record.fingerprint,
            crop,
            labels,
            self.config.image_column,
            self._modification_times,
            *([self._test_identity] if content in ("test", "copies") else []),
            *([self.config.test_fraction] if self.config.test_fraction and content != "digests" else []),
            *([self.config.fit_all] if content == "copies" else []),
        )
        return cache_folder(self.config.cache_dir) / "images" / name

    @cached_property
    def _modification_times(self) -> str:
        """A hash of the files' times, where the fingerprint misses that an image is replaced by another of its size."""
        if self.record.fingerprint_of == "content":
            return ""
        return _hash_times(self.files)

    @cached_property
    def _test_identity(self) -> str:
        """A hash of the test files, which the fingerprint leaves out: a training does not depend on them."""
        digest, kind = fingerprint({"test": self.test_files}, names_matter=True)
        return digest if kind == "content" else digest + _hash_times(self.test_files)


def cut_note(images: int) -> str:
    """Return what is said of JPEGs that lack their end, which are used."""
    return f"{image_count(images)} without the end of the JPEG: next to all pixels are there, and are used."


def _check_conflicts(digests: np.ndarray, labels: np.ndarray, data: str) -> Iterator[str]:
    """Note images that have more than one label.

    Raises:
        UserError: They are `MAX_CONFLICTS` of all or more, so that the labels are wrong throughout.
    """
    conflicting = int(has_other_label(digests, labels).sum())
    if conflicting >= MAX_CONFLICTS * len(labels):
        raise UserError(
            f"{conflicting:,} of {len(labels):,} images are in more than one class, byte for byte.",
            f"Check that folders are classes; resnet-ops data check {quoted(data)} lists the images.",
        )
    if conflicting:
        yield f"{image_count(conflicting)} with more than one label: resnet-ops data check {quoted(data)} lists them."


def _hash_times(of: Sequence[File]) -> str:
    times = [files.modified_ns(file.path) for file in of if not files.is_remote(file.root)]
    return hashlib.sha256(str(times).encode()).hexdigest()


def val_fraction(config: DataConfig, splits: dict[Split, EncodedImages]) -> float:
    """Return the fraction of each class that is held out for validation; 0 where the data has validation images."""
    if "val" in splits:
        return 0.0
    return VAL_FRACTION_BESIDE_TEST if "test" in splits or config.test_fraction else VAL_FRACTION


def sample(images: int, row_groups: np.ndarray | None) -> np.ndarray:
    """Return the rows of `SAMPLE_SIZE` images, or of all; in Parquet from `SAMPLE_ROW_GROUPS` row groups only."""
    rows, random = np.arange(images), np.random.default_rng(0)
    if images <= SAMPLE_SIZE:
        return rows
    if row_groups is not None:
        rows = rows[np.isin(row_groups, random.permutation(row_groups[-1] + 1)[:SAMPLE_ROW_GROUPS])]
    return np.sort(random.permutation(rows)[:SAMPLE_SIZE])


def should_stream(config: DataConfig, train_bytes: int) -> bool:
    """Return whether training decodes its images again in each epoch; `train_bytes` are those of all, decoded."""
    return train_bytes > memory_bytes() / 2 if config.stream == "auto" else config.stream == "on"


def refuses_test_copies(config: DataConfig) -> bool:
    """Return whether test images may not be in another split too; benchmarks are taken as they are."""
    return not config.allow_duplicates and config.data not in DATA_SETS
