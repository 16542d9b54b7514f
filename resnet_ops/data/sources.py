"""A path or a name in, images and labels out. What lives here knows files, not torch.

`open_source` looks only at labels and at a few images, so that a wrong request fails at once;
`Source.ready` decodes what was not decoded before. What data sets come in: `folders`, `parquet`, `named`.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from resnet_ops import files
from resnet_ops.config import DataConfig
from resnet_ops.data.cache import (
    DecodedImages,
    DecodeOptions,
    ImageArray,
    cache_folder,
    cached_array,
    cached_images,
    decode_all,
    key,
)
from resnet_ops.data.dataset import (
    DiscoveredData,
    EncodedImages,
    LabeledImages,
    Split,
    Subset,
    choose_validation,
    digests,
    fingerprint,
    image_count,
    subset,
    validation_counts,
)
from resnet_ops.data.decode import CropSpec, DecodeError, ImageHeader, read_header
from resnet_ops.data.discovery import EMBEDDED, discover
from resnet_ops.data.listing import File
from resnet_ops.errors import UserError, did_you_mean
from resnet_ops.machine import memory_bytes
from resnet_ops.records import DataRecord

PROBED = 64  # images looked at to tell the size and the colours of all
OWN_SIZE = 64  # images of one size are taken as they are up to this side
IMAGE_SIZE = 224
MARGIN = 256 / 224  # what training crops from, as a multiple of what it crops (Krizhevsky et al. 2012)
SAMPLED = 2000  # images that tell mean and deviation of all where they are streamed
SAMPLED_UNITS = 20  # that these are from, where images are read many at a time
NAMED = 20  # bad images named in the record


@dataclass(frozen=True)
class Source:
    """A data set that was found and looks sound; nothing of it is decoded yet but by `load` and `ready`.

    Args:
        record: What it is.
        config: How it was asked for.
        found: Its training images, and those for validation unless they are held out of the former.
        files: All its files, in order.
        notes: What the user should know.
    """

    record: DataRecord
    config: DataConfig
    found: dict[Split, EncodedImages]
    files: tuple[File, ...]
    notes: tuple[str, ...] = ()

    @property
    def embedded(self) -> bool:
        """Whether the images ship with this package."""
        return self.config.data in EMBEDDED and self.config.val_data is None

    @property
    def mirrors(self) -> bool:
        """Whether a mirrored image still shows its class; a mirrored digit does not."""
        return self.config.data not in EMBEDDED

    @cached_property
    def _held_out(self) -> np.ndarray:
        train = self.found["train"]
        found = digests(train) if self.embedded else cached_array(self._cache("digests"), lambda: digests(train))
        return choose_validation(found, train.labels)

    def encoded(self, split: Split) -> EncodedImages:
        """The images of one split as they are stored. Where validation images are held out, it reads all of them."""
        if "val" in self.found:
            return self.found[split]
        return subset(self.found["train"], self._held_out == (split == "val"))

    def frame(self, split: Split) -> CropSpec:
        """What the decoded images of a split look like."""
        data = self.record
        cover = (data.stored, data.stored) if data.stored else (data.height, data.width)
        height, width = cover if split == "train" else (data.height, data.width)
        return CropSpec(cover, height, width, data.channels)

    def wanted(self, split: Split) -> DecodeOptions:
        """How a split is to be decoded."""
        return DecodeOptions(self.frame(split), self.record.class_names, self.config.on_bad_image == "fail")

    def decoded(self, split: Split) -> DecodedImages:
        """One split, decoded or found decoded, without the images that cannot be.

        Raises:
            UserError: Such images are not to be left out, or are too many; or the cache cannot be written.
            PausedError: The cache's disk is full.
        """
        wanted = self.wanted(split)
        if self.embedded:
            return decode_all(self.encoded(split), wanted, lambda shape: np.empty(shape, np.uint8))
        return cached_images(self._cache(split), lambda: self.encoded(split), wanted)

    def load(self, split: Split) -> ImageArray:
        """As `decoded`, only the images."""
        return self.decoded(split).images

    def ready(self) -> "Source":
        """See that both splits are decoded.

        Returns:
            The same, with a record and notes that tell what was left out, and what is in both splits.

        Raises:
            UserError, PausedError: As `decoded`.
        """
        if self.embedded:
            return self
        train, val = self.decoded("train"), self.decoded("val")
        bad, notes = (*train.bad, *val.bad), list(self.notes)
        if bad:
            notes.append(
                f"Skipped {image_count(len(bad))} that cannot be decoded, first: {bad[0].name}: {bad[0].reason}."
            )
        if both := int(np.isin(val.digests, train.digests).sum()):
            notes.append(
                f"{image_count(both)} of the {len(val.images):,} in the validation split are also in the training split."
            )
        update = {
            "train_images": len(train.images),
            "val_images": len(val.images),
            "bad_images": len(bad),
            "first_bad_images": bad[:NAMED],
        }
        return replace(self, record=self.record.model_copy(update=update), notes=tuple(notes))

    @property
    def decoded_bytes(self) -> int:
        """What the training images would take in memory."""
        return self.record.train_images * int(np.prod(self.frame("train").shape))

    def sample_counts(self) -> np.ndarray:
        """How often each value occurs in each channel (C, 256) of some training images, always the same ones.

        Raises:
            UserError: Images of them cannot be decoded, and that is an error, or they are too many.
        """
        train = self.encoded("train")
        rows = sample(len(train.labels), train.units)
        # Of one class, for that none of a class is good is nothing to conclude from a sample.
        some = Subset(train, rows, np.zeros(len(rows), np.int64))
        return decode_all(some, self.wanted("train"), lambda shape: np.empty(shape, np.uint8)).counts

    def _cache(self, what: Split | Literal["digests"]) -> Path:
        labels = [(each, hashlib.sha256(found.labels.tobytes()).hexdigest()) for each, found in self.found.items()]
        image_column, fingerprint = self.config.image_column, self.record.fingerprint
        frame = self.frame(what) if what != "digests" else None
        name = key(what, fingerprint, frame, labels, image_column, self._written_at)
        return cache_folder(self.config.cache_dir) / "images" / name

    @cached_property
    def _written_at(self) -> str:
        """Where names and sizes tell data apart, an image may give way to one of the same length: its time tells."""
        if self.record.fingerprint_of == "content":
            return ""
        times = [files.modified_ns(file.path) for file in self.files if not files.is_remote(file.root)]
        return hashlib.sha256(str(times).encode()).hexdigest()


def open_source(data: str | DataConfig) -> Source:
    """Find a data set and check it without decoding it.

    Args:
        data: Which; as a string, `DataConfig.data`. Validation images are those of `val_data`, or those that `data`
            tells apart (a folder val/, files whose names start with validation, val or test), or else a fifth of
            each class, chosen by a hash of the images' bytes.

    Raises:
        UserError: Nothing is there, it is not readable, it is empty, it has one class only, a label is out of range,
            a validation image is of a class that training lacks, or no image of a few can be decoded.
    """
    config = DataConfig(data=data) if isinstance(data, str) else data
    return validate(config, discover(config))


def validate(config: DataConfig, found: DiscoveredData) -> Source:
    """A source of what was found.

    Raises:
        UserError: As `open_source`, for what is not fit for training.
    """
    name, train, val = config.data, found.train, found.val
    if problems := [*train.problems, *(val.problems if val else ())]:
        raise problems[0]
    names = train.class_names or (val.class_names if val else ()) or _numbers(train, val)
    encoded: dict[Split, EncodedImages] = {"train": train.encoded}
    if val is not None and len(val.encoded.labels):
        encoded["val"] = _by_name(val, names, config.val_data or name)
    labels = train.encoded.labels
    if not len(labels):
        raise UserError(
            f"--data {name} contains no training images.", "Choose a data set that contains training images."
        )
    for part in encoded.values():
        _check_range(name, part.labels, names)
    if len(np.unique(labels)) < 2:
        raise UserError(
            f"--data {name} has training images of one class only ({names[labels[0]]}).",
            "Add images of another class.",
        )
    _check_classes(encoded, names)
    val_images = len(encoded["val"].labels) if "val" in encoded else int(validation_counts(labels).sum())
    if not val_images:
        raise UserError(
            f"--data {name} is too small to hold out validation images.", "Provide at least 3 images of a class."
        )
    parts: dict[Split, Sequence[File]] = {"train": train.files, "val": val.files if val else ()}
    digest, kind = fingerprint(parts, named_files=found.named_files)
    height, width, channels, stored = network_size(train.encoded, config.image_size)
    record = DataRecord(
        name=found.name,
        fingerprint=digest,
        fingerprint_of=kind,
        class_names=names,
        train_images=len(labels) - (0 if "val" in encoded else val_images),
        val_images=val_images,
        channels=channels,
        height=height,
        width=width,
        stored=stored,
    )
    return Source(record, config, encoded, (*parts["train"], *parts["val"]))


def sample(images: int, units: np.ndarray | None) -> np.ndarray:
    """Row numbers of `SAMPLED` images, or of all; of some units only, where images are read many at a time."""
    rows, random = np.arange(images), np.random.default_rng(0)
    if images <= SAMPLED:
        return rows
    if units is not None:
        rows = rows[np.isin(units, random.permutation(units[-1] + 1)[:SAMPLED_UNITS])]
    return np.sort(random.permutation(rows)[:SAMPLED])


def should_stream(config: DataConfig, train_bytes: int) -> bool:
    """Whether training decodes its images anew in each epoch; `train_bytes` are what it would keep decoded."""
    return train_bytes > memory_bytes() / 2 if config.stream == "auto" else config.stream == "on"


def fingerprint_of(config: DataConfig) -> str:
    """The fingerprint of a data set, as it is seen from here."""
    return open_source(config).record.fingerprint


def _numbers(train: LabeledImages, val: LabeledImages | None) -> tuple[str, ...]:
    """Names for classes that have none."""
    labels = np.concatenate([part.encoded.labels for part in (train, val) if part])
    return tuple(str(label) for label in range(int(labels.max(initial=-1)) + 1))


def _by_name(val: LabeledImages, names: tuple[str, ...], data: str) -> EncodedImages:
    """Validation images with the labels that training gives to classes of the same names.

    Raises:
        UserError: There is a class that training does not know.
    """
    if not val.class_names or val.class_names == names:
        return val.encoded
    labels = val.encoded.labels
    _check_range(data, labels, val.class_names)
    known = {name: index for index, name in enumerate(names)}
    for label in np.unique(labels):
        if (name := val.class_names[label]) not in known:
            raise _unknown(name, names)
    table = np.array([known.get(name, -1) for name in val.class_names], np.int64)
    return Subset(val.encoded, np.arange(len(labels)), table[labels])


def _check_classes(encoded: dict[Split, EncodedImages], names: tuple[str, ...]) -> None:
    if "val" in encoded and (extra := set(encoded["val"].labels.tolist()) - set(encoded["train"].labels.tolist())):
        raise _unknown(names[min(extra)], names)


def _unknown(name: str, names: tuple[str, ...]) -> UserError:
    return UserError(
        f"There are validation images of class {name!r}, but no training images.",
        f"{did_you_mean(name, names)} Add training images of it, or remove it from the validation images.",
    )


def _check_range(data: str, labels: np.ndarray, names: tuple[str, ...]) -> None:
    if len(labels) and (labels.min() < 0 or labels.max() >= len(names)):
        raise UserError(
            f"--data {data} has labels from {labels.min()} to {labels.max()}, but {len(names)} classes.",
            "Labels must be 0 for the first class, 1 for the second, and so on.",
        )


def network_size(encoded: EncodedImages, wanted: int | None) -> tuple[int, int, int, int | None]:
    """Height, width and channels for the network, and the side of the squares to store unless images stay as they are.

    Raises:
        UserError: None of the images looked at can be decoded.
    """
    count = len(encoded.labels)
    rows = np.unique(np.linspace(0, count - 1, min(count, PROBED)).astype(int)).tolist()
    seen: list[ImageHeader] = []
    first = ""
    for row, image in zip(rows, encoded.read(rows), strict=True):
        try:
            seen.append(read_header(image))
        except DecodeError as error:
            first = first or f"{encoded.name(row)}: {error}"
    if not seen:
        raise UserError(
            f"None of {image_count(len(rows))} sampled can be decoded. First: {first}.",
            "Check that these files are images.",
        )
    channels = 1 if all(one.grey for one in seen) else 3
    sizes = {(one.height, one.width) for one in seen}
    own = next(iter(sizes)) if len(sizes) == 1 else None
    if own and max(own) <= OWN_SIZE and wanted is None:
        return *own, channels, None
    side = wanted or IMAGE_SIZE
    return side, side, channels, None if own == (side, side) else round(side * MARGIN)
