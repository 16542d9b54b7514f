"""Open a dataset for training: check that training can use it, describe it in a record, and decode its splits.

`open_source` reads only labels and a few images, so that a wrong request fails at once; `Source.prepare` decodes what
is not in the cache. Which images a path holds is in discovery.py. Nothing here knows torch.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np

from resnet_ops import files
from resnet_ops.config import DataConfig
from resnet_ops.data.cache import cache_folder, cache_key, cached_array, cached_images
from resnet_ops.data.class_labels import (
    check_every_class_is_trained,
    check_label_range,
    class_names,
    match_classes,
    match_test_classes,
)
from resnet_ops.data.dataset import (
    SPLIT_NAMES,
    VAL_FRACTION,
    VAL_FRACTION_BESIDE_TEST,
    DiscoveredData,
    EncodedImages,
    JoinedImages,
    Split,
    Subset,
    choose_validation,
    fingerprint,
    image_count,
    subset,
    validation_counts,
)
from resnet_ops.data.decode import CropSpec, DecodeError, ImageHeader, read_header, wide_values
from resnet_ops.data.discovery import EMBEDDED, discover
from resnet_ops.data.listing import File
from resnet_ops.data.parallel_decode import DecodedImages, DecodeOptions, ImageArray, decode_all, hash_all, map_chunks
from resnet_ops.errors import UserError
from resnet_ops.machine import memory_bytes
from resnet_ops.run_records import DataRecord

HEADERS_READ = 64  # images whose headers decide the size and the channels of all
WIDE_IMAGES_READ = 256  # 16-bit images whose values decide how many bits all of them use: 10 s at 4000x3000
BIT_DEPTHS = range(8, 17)
BRIGHTER_PIXELS = 0.001  # of all pixels of 16-bit images: hot pixels, which are clipped to white
MAX_NATIVE_SIDE = 64  # images of one size are not resized up to this side
IMAGE_SIZE = 224
STORED_SCALE = 256 / 224  # side of what training crops from to that of the crop (Krizhevsky et al. 2012)
SAMPLE_SIZE = 2000  # images whose mean and deviation stand for all where they are streamed
SAMPLE_ROW_GROUPS = 20  # row groups that these are from, in Parquet
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
        whole: Whether training images that are resized are kept whole, for random resized crops, and not cut at the
            center to a square.
    """

    record: DataRecord
    config: DataConfig
    splits: dict[Split, EncodedImages]
    files: tuple[File, ...]
    test_files: tuple[File, ...] = ()
    notes: tuple[str, ...] = ()
    whole: bool = False

    @property
    def embedded(self) -> bool:
        """True if the images ship with this package."""
        return self.config.data in EMBEDDED and self.config.val_data is None

    @property
    def used_splits(self) -> tuple[Split, ...]:
        """The splits that training uses: with `fit_all` the validation images are training images."""
        val: tuple[Split, ...] = () if self.config.fit_all else ("val",)
        test: tuple[Split, ...] = ("test",) if "test" in self.splits else ()
        return ("train", *val, *test)

    @property
    def val_fraction(self) -> float:
        """The fraction of each class that is held out for validation where the data has no validation images."""
        return _val_fraction(self.splits)

    def encoded(self, split: Split) -> EncodedImages:
        """Return the encoded images of one split. Where validation images are held out, it reads all of them.

        With `fit_all` training has them all, and "val" are those of them that would be for validation.
        """
        train = self.splits["train"]
        if split == "train" and self.config.fit_all:
            return JoinedImages(train, self.splits["val"]) if "val" in self.splits else train
        if split == "test" or "val" in self.splits:
            return self.splits[split]
        return subset(train, self._held_out == (split == "val"))

    @cached_property
    def _held_out(self) -> np.ndarray:
        train = self.splits["train"]
        digests = hash_all(train) if self.embedded else cached_array(self._cache("digests"), lambda: hash_all(train))
        return choose_validation(digests, train.labels, self.val_fraction)

    def crop_spec(self, split: Split) -> CropSpec:
        """Return size and channels of a split's decoded images; training images keep a margin to crop from."""
        data = self.record
        cover = (data.stored, data.stored) if data.stored else (data.height, data.width)
        bit_depth = data.bit_depth or 16
        if split == "train":
            return CropSpec(cover, *cover, data.channels, self.whole and data.stored is not None, bit_depth)
        return CropSpec(cover, data.height, data.width, data.channels, bit_depth=bit_depth)

    def decode_options(self, split: Split) -> DecodeOptions:
        """Return how a split is decoded."""
        return DecodeOptions(self.crop_spec(split), self.record.class_names, self.config.on_bad_image == "fail")

    def decoded(self, split: Split) -> DecodedImages:
        """Return one split decoded, from the cache if it is there, without the images that cannot be.

        Raises:
            UserError: An image cannot be decoded and that is an error, or too many; or the cache cannot be written.
            PausedError: The cache's disk is full.
        """
        options = self.decode_options(split)
        if self.embedded:
            return decode_all(self.encoded(split), options)
        return cached_images(self._cache(split), lambda: self.encoded(split), options)

    def load(self, split: Split) -> ImageArray:
        """Return the pixels and labels of `decoded`."""
        return self.decoded(split).images

    def prepare(self) -> "Source":
        """Decode the splits that training uses into the cache, unless they are in it.

        Returns:
            The same source, whose record and notes say what was left out, and what is in more than one split.

        Raises:
            UserError: See `decoded`.
            PausedError: See `decoded`.
        """
        if self.embedded:
            return self
        decoded = {split: self.decoded(split) for split in self.used_splits}
        bad, notes = [image for part in decoded.values() for image in part.bad], list(self.notes)
        if bad:
            notes.append(
                f"Skipped {image_count(len(bad))} that cannot be decoded, first: {bad[0].name}: {bad[0].reason}."
            )
        for earlier, split in combinations(self.used_splits, 2):
            if in_both := int(np.isin(decoded[split].digests, decoded[earlier].digests).sum()):
                notes.append(
                    f"{image_count(in_both)} of the {len(decoded[split].images):,} in the {SPLIT_NAMES[split]} split "
                    f"are also in the {SPLIT_NAMES[earlier]} split."
                )
        update = {
            **{f"{split}_images": len(part.images) for split, part in decoded.items()},
            "bad_images": len(bad),
            "first_bad_images": tuple(bad[:MAX_LISTED]),
        }
        return replace(self, record=self.record.model_copy(update=update), notes=tuple(notes))

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

    def _cache(self, content: Split | Literal["digests"]) -> Path:
        labels = [(split, hashlib.sha256(images.labels.tobytes()).hexdigest()) for split, images in self.splits.items()]
        crop = self.crop_spec(content) if content != "digests" else None
        whole_set = content == "train" and self.config.fit_all
        name = cache_key(
            "all" if whole_set else content,
            self.record.fingerprint,
            crop,
            labels,
            self.config.image_column,
            self._modification_times,
            *([self._test_identity] if content == "test" else []),
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


def _hash_times(of: Sequence[File]) -> str:
    times = [files.modified_ns(file.path) for file in of if not files.is_remote(file.root)]
    return hashlib.sha256(str(times).encode()).hexdigest()


def open_source(data: str | DataConfig) -> Source:
    """Find a dataset and check it without decoding it.

    Args:
        data: The dataset; a string is `DataConfig.data`. Validation images are those of `val_data`, or the data's own
            (those of a folder or of files that `VAL_NAMES` name), or else a part of each class, chosen by a hash of the
            images' bytes: a fifth, or a tenth where the data has test images of its own.

    Raises:
        UserError: There is nothing, it is not readable, it is empty, it has one class only, a label is out of range,
            a validation image is of a class that training lacks, or no image of a few can be decoded.
    """
    config = DataConfig(data=data) if isinstance(data, str) else data
    return make_source(config, discover(config))


def make_source(config: DataConfig, data: DiscoveredData) -> Source:
    """Check that training can use a dataset and return its source.

    Raises:
        UserError: See `open_source`.
    """
    name, train = config.data, data.train
    if problems := [problem for part in data.parts for problem in part.problems]:
        raise problems[0]
    names, labels = class_names(data), train.encoded.labels
    splits: dict[Split, EncodedImages] = {"train": train.encoded}
    if data.val and len(data.val.encoded.labels):
        splits["val"] = match_classes(data.val, names, config.val_data or name)
    if not len(labels):
        raise UserError(
            f"--data {name} contains no training images.", "Choose a dataset that contains training images."
        )
    for encoded in splits.values():
        check_label_range(name, encoded.labels, names)
    if len(np.unique(labels)) < 2:
        raise UserError(
            f"--data {name} has training images of one class only ({names[labels[0]]}).",
            "Add images of another class.",
        )
    check_every_class_is_trained(train.encoded, splits.get("val", train.encoded), names)
    notes = list(data.notes)
    if data.test:
        test = match_test_classes(data.test, names, labels)
        if len(test.labels):
            splits["test"] = test
        if left_out := len(data.test.encoded.labels) - len(test.labels):
            notes.append(f"Left out {image_count(left_out)} of the test split, whose classes have no training images.")
    held_out = 0 if "val" in splits else int(validation_counts(labels, _val_fraction(splits)).sum())
    val_images = len(splits["val"].labels) if "val" in splits else held_out
    if not val_images:
        raise UserError(
            f"--data {name} is too small to hold out validation images.", "Provide at least 3 images of a class."
        )
    parts: dict[Split, Sequence[File]] = {"train": train.files, "val": data.val.files if data.val else ()}
    digest, kind = fingerprint(parts, names_matter=data.names_matter)
    headers = read_headers(train.encoded)
    height, width, channels, stored = network_size(headers, config.image_size, config.resize)
    record = DataRecord(
        name=data.name,
        fingerprint=digest,
        fingerprint_of=kind,
        class_names=names,
        numbered=not any(part.class_names for part in data.parts),
        train_images=len(labels) - held_out + (val_images if config.fit_all else 0),
        val_images=0 if config.fit_all else val_images,
        test_images=len(splits["test"].labels) if "test" in splits else 0,
        channels=channels,
        height=height,
        width=width,
        stored=stored,
        bit_depth=find_bit_depth(train.encoded) if any(header.wide for header in headers) else None,
    )
    files = tuple(file for part in parts.values() for file in part)
    test_files = data.test.files if "test" in splits and data.test else ()
    return Source(record, config, splits, files, test_files, (*notes, *_bit_depth_notes(record)))


def _val_fraction(splits: dict[Split, EncodedImages]) -> float:
    return VAL_FRACTION_BESIDE_TEST if "test" in splits else VAL_FRACTION


def read_headers(encoded: EncodedImages) -> list[ImageHeader]:
    """Read the headers of a few images.

    Raises:
        UserError: None of the sampled images can be decoded.
    """
    rows = _spread_rows(encoded, HEADERS_READ).tolist()
    headers: list[ImageHeader] = []
    first_error = ""
    for row, image in zip(rows, encoded.read(rows), strict=True):
        try:
            headers.append(read_header(image))
        except DecodeError as error:
            first_error = first_error or f"{encoded.name(row)}: {error}"
    if not headers:
        raise UserError(
            f"None of {image_count(len(rows))} sampled can be decoded. First: {first_error}.",
            "Check that these files are images.",
        )
    return headers


def network_size(
    headers: Sequence[ImageHeader], image_size: int | None, resize: int | None = None
) -> tuple[int, int, int, int | None]:
    """Return height, width and channels for the network, and the side of the stored squares if images are resized.

    Raises:
        UserError: They would be resized to less than is cropped, or to a side that cannot be cropped exactly.
    """
    channels = 1 if all(header.grey for header in headers) else 3
    sizes = {(header.height, header.width) for header in headers}
    own_size = next(iter(sizes)) if len(sizes) == 1 else None
    if own_size and max(own_size) <= MAX_NATIVE_SIDE and image_size is None:
        return *own_size, channels, None
    side = image_size or IMAGE_SIZE
    resized = resized_side(side) if resize is None else resize
    if resized < side or (resized - side) % 4:
        nearest = max(side, resized_side(side, side / resized))
        raise UserError(
            f"--resize {resized} must be the image size, {side}, or larger by a multiple of 4.",
            f"Use --resize {nearest}.",
        )
    return side, side, channels, None if own_size == (side, side) or resized == side else resized


def resized_side(side: int, crop_share: float = 1 / STORED_SCALE) -> int:
    """Return the side that images are resized to for crops of `side`, about `crop_share` of it: 256 for 224.

    It is larger by a multiple of 4: only then a center crop of the center crop that is stored is the one that
    torchvision's CenterCrop takes from the whole image, as both round half a pixel to even.
    """
    return side + 4 * round(side * (1 / crop_share - 1) / 4)


def find_bit_depth(encoded: EncodedImages) -> int:
    """Return how many bits, 8 to 16, the values of 16-bit images use: cameras have 10, 12 or 14.

    One number for all of them, as stretching each image would take away how bright it is. `BRIGHTER_PIXELS` may exceed
    it: one hot pixel would leave 17 levels of 12 bits.
    """
    rows = _spread_rows(encoded, WIDE_IMAGES_READ)

    def count_of_chunk(chunk: range) -> np.ndarray:
        images = encoded.read([int(rows[position]) for position in chunk])
        return np.asarray(np.stack([_count_brighter(image) for image in images]).sum(0))

    pixels, *brighter = np.sum(list(map_chunks(len(rows), count_of_chunk)), axis=0).tolist()
    return next(bits for bits, count in zip(BIT_DEPTHS, brighter, strict=True) if count <= BRIGHTER_PIXELS * pixels)


def _count_brighter(encoded: bytes | OSError) -> np.ndarray:
    """Count the pixels of a 16-bit image, and those that exceed each of `BIT_DEPTHS`; zeros for other images."""
    values = wide_values(encoded)
    if values is None:
        return np.zeros(1 + len(BIT_DEPTHS), np.int64)
    return np.array([values.size, *(np.count_nonzero(values >= 2**bits) for bits in BIT_DEPTHS)])


def _bit_depth_notes(record: DataRecord) -> Iterator[str]:
    if record.bit_depth is not None and record.bit_depth < 16:
        yield (
            f"{1 - BRIGHTER_PIXELS:.1%} of the pixels in 16-bit images of {record.name} use {record.bit_depth} bits: "
            f"0 to {2**record.bit_depth - 1:,} become 0 to 255, and brighter ones white."
        )


def _spread_rows(encoded: EncodedImages, most: int) -> np.ndarray:
    """Return up to `most` rows, evenly spread."""
    count = len(encoded.labels)
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int))


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


def fingerprint_of(config: DataConfig) -> str:
    """Return the fingerprint of a dataset as this machine sees it."""
    return open_source(config).record.fingerprint
