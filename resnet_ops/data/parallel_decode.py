"""Decode many images with all cores, and refuse a split of which too many cannot be decoded.

One image is decoded in decode.py; decoded splits are stored on disk in cache.py.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from PIL import Image

from resnet_ops.config import MAX_BAD_IMAGES
from resnet_ops.data.dataset import SPLIT_NAMES, EncodedImages, Split, digest
from resnet_ops.data.decode import CropSpec, DecodeError, decode, decode_image
from resnet_ops.errors import UserError
from resnet_ops.machine import cores
from resnet_ops.run_records import BadImage

T = TypeVar("T")
Report = Callable[[str, int, int], None]  # what is being done, to how many images so far, and of how many

KINDS = ("cut", "wide", "colored", "resized")  # of images, which `DecodedImages` counts
CHUNK = 64  # images that a thread reads and decodes at a time
DECODED_BYTES = 64 * 2**20  # of images that `decode_rows` decodes at a time, as a whole split may not fit in memory


@dataclass(frozen=True)
class DecodeOptions:
    """Options of a split: size and channels, class and split names for errors, and when broken images are an error.

    That is with `strict` the first one, and otherwise more than the share `max_bad` of all.
    """

    crop: CropSpec
    class_names: tuple[str, ...]
    strict: bool
    max_bad: float = MAX_BAD_IMAGES
    split: Split = "train"


@dataclass(frozen=True)
class ImageArray:
    """Decoded images of one split.

    Args:
        pixels: (N, H, W, C) uint8.
        labels: (N,) int64.
        aspects: (N,) float32, width / height of each image before it was resized; None where no aspect ratio changed.
    """

    pixels: np.ndarray
    labels: np.ndarray
    aspects: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class DecodedImages:
    """A decoded split.

    Args:
        images: Without those that cannot be decoded.
        counts: How often each value occurs in each channel, (C, 256).
        digests: The SHA-256 of each image as it was stored, (N,) of 32 bytes.
        bad: The images that cannot be decoded.
        cut: How many JPEGs lack their end, but next to no pixels.
        wide: How many images have 16 bits.
        colored: How many are not grey.
        resized: How many are of another size than the pixels.
    """

    images: ImageArray
    counts: np.ndarray
    digests: np.ndarray
    bad: tuple[BadImage, ...]
    cut: int = 0
    wide: int = 0
    colored: int = 0
    resized: int = 0


def map_chunks(images: int, function: Callable[[range], T]) -> Iterator[T]:
    """Yield `function` of each chunk of rows, in their order, computed by as many threads as there are cores.

    Threads, as Pillow releases the GIL while it decodes; processes would have to be started and sent the
    images, and were no faster for JPEG and half as fast for PNG of 32x32.
    """
    chunks = [range(start, min(start + CHUNK, images)) for start in range(0, images, CHUNK)]
    with ThreadPoolExecutor(cores()) as pool:
        try:
            yield from pool.map(function, chunks)
        finally:
            pool.shutdown(cancel_futures=True)


def do_not_report(stage: str, done: int, images: int) -> None:
    """Report nothing."""


def hash_all(encoded: EncodedImages, report: Report = do_not_report) -> np.ndarray:
    """Read all images and return their SHA-256, (N,) of 32 bytes."""
    digests: list[bytes] = []
    for chunk in map_chunks(len(encoded.labels), lambda rows: [digest(image) for image in encoded.read(rows)]):
        digests += chunk
        report("Reading", len(digests), len(encoded.labels))
    return np.array(digests, dtype="S32")


def decode_rows(encoded: EncodedImages, rows: np.ndarray, crop: CropSpec) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Decode the images `rows` (N,), some at a time, and yield their positions in `rows` (n,) and their pixels.

    Pixels are (n, H, W, C) uint8. Images that cannot be decoded are left out, as training, which reports them, does.
    """
    block_size = max(CHUNK, DECODED_BYTES // math.prod(crop.shape))

    def decode_chunk(start: int, chunk: range) -> tuple[list[int], list[np.ndarray]]:
        positions, pixels = [], []
        candidates = range(start + chunk.start, start + chunk.stop)
        images = encoded.read([int(rows[position]) for position in candidates])
        for position, image in zip(candidates, images, strict=True):
            try:
                pixels.append(decode(image, crop))
            except DecodeError:
                continue
            positions.append(position)
        return positions, pixels

    for start in range(0, len(rows), block_size):
        chunks = list(map_chunks(min(block_size, len(rows) - start), partial(decode_chunk, start)))
        pixels = [image for _, images in chunks for image in images]
        if pixels:
            yield np.array([position for positions, _ in chunks for position in positions]), np.stack(pixels)


def decode_all(
    encoded: EncodedImages,
    options: DecodeOptions,
    out: np.ndarray | None = None,
    report: Report = do_not_report,
) -> DecodedImages:
    """Decode a whole split.

    Args:
        encoded: The images.
        options: How to decode them.
        out: Array (N, H, W, C) uint8 for the pixels of all images; None for a new one.
        report: Called as images are decoded.

    Raises:
        UserError: An image is broken and `options.strict`, more than `options.max_bad` are, or all of a class.
    """
    crop = options.crop
    labels, counts = encoded.labels, np.zeros((crop.channels, 256), np.int64)
    pixels = np.empty((len(labels), *crop.shape), np.uint8) if out is None else out
    aspects = np.ones(len(labels), np.float32)

    def decode_chunk(rows: range) -> tuple[list[bytes], list[tuple[int, str]], np.ndarray, np.ndarray]:
        images = encoded.read(rows)
        broken, kinds = [], np.zeros(len(KINDS), np.int64)
        for row, image in zip(rows, images, strict=True):
            try:
                decoded_image = decode_image(image, crop)
                pixels[row], aspects[row] = decoded_image.pixels, decoded_image.aspect
                header, size = decoded_image.header, crop.shape[:2]
                is_resized = (header.height, header.width) != size
                kinds += (decoded_image.is_cut, header.wide, not header.grey, is_resized)  # as in KINDS
            except DecodeError as error:
                broken.append((row, str(error)))
        decoded = pixels[rows.start : rows.stop]
        if broken:
            decoded = np.delete(decoded, [row - rows.start for row, _ in broken], axis=0)
        return [digest(image) for image in images], broken, _value_counts(decoded), kinds

    digests: list[bytes] = []
    reasons: dict[int, str] = {}
    kinds = np.zeros(len(KINDS), np.int64)
    for chunk_digests, broken, chunk_counts, chunk_kinds in map_chunks(len(labels), decode_chunk):
        digests += chunk_digests
        report("Decoding", len(digests), len(labels))
        counts += chunk_counts
        reasons.update(broken)
        kinds += chunk_kinds
        if reasons and options.strict:
            row, reason = next(iter(reasons.items()))
            raise broken_image_error(BadImage(name=encoded.name(row), reason=reason))
    check_broken_share(encoded, options, reasons)
    good = np.delete(np.arange(len(labels)), list(reasons))
    for position, good_row in enumerate(good):
        if position != good_row:
            pixels[position] = pixels[good_row]
    bad = tuple(BadImage(name=encoded.name(row), reason=reason) for row, reason in reasons.items())
    images = ImageArray(pixels[: len(good)], labels[good], aspects[good] if crop.whole else None)
    return DecodedImages(
        images, counts, np.array(digests, "S32")[good], bad, **dict(zip(KINDS, kinds.tolist(), strict=True))
    )


def _value_counts(pixels: np.ndarray) -> np.ndarray:
    """Count each value in each channel, (C, 256), with Pillow: with NumPy it was a quarter of the whole work."""
    height, width, channels = pixels.shape[0] * pixels.shape[1], pixels.shape[2], pixels.shape[3]
    if not height:
        return np.zeros((channels, 256), np.int64)
    stacked = pixels.reshape((height, width) if channels == 1 else (height, width, channels))
    return np.array(Image.fromarray(stacked).histogram(), np.int64).reshape(channels, 256)


def check_broken_share(encoded: EncodedImages, options: DecodeOptions, reasons: Mapping[int, str]) -> None:
    """Refuse a split of which too many images are broken; `reasons` says why each such row cannot be decoded.

    Raises:
        UserError: They are more than the share that may be, or all of a class.
    """
    if not reasons:
        return
    row, reason = next(iter(reasons.items()))
    first = f"The first: {encoded.name(row)}: {reason}."
    check_bad_count(len(reasons), len(encoded.labels), options, first)
    good_labels = np.delete(encoded.labels, list(reasons))
    if lost := set(encoded.labels[list(reasons)].tolist()) - set(good_labels.tolist()):
        name = options.class_names[min(lost)]
        raise UserError(f"No image of class {name!r} can be decoded. {first}", "Repair or remove them.")


def check_bad_count(bad: int, images: int, options: DecodeOptions, first: str) -> None:
    """Refuse a split of which more than the share that may be of the images are broken; `first` names one of them.

    Raises:
        UserError: There are more.
    """
    if bad > options.max_bad * images:
        share = math.ceil(100 * bad / images) / 100
        setting = f", or use --max-bad-images {share:g}" if bad < images else ""
        raise UserError(
            f"{bad} of {images} {SPLIT_NAMES[options.split]} images cannot be decoded. {first}",
            f"Up to {options.max_bad:.0%} may be skipped; repair or remove these images{setting}.",
        )


def broken_image_error(image: BadImage) -> UserError:
    """Return the error to raise where one broken image is an error."""
    return UserError(
        f"Cannot decode {image.name}: {image.reason}.",
        "Repair or remove it, or skip such images: --on-bad-image skip.",
    )
