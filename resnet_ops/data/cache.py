"""Decoded images: made once by all cores, kept as one .npy a split, and mapped into memory by all who train on them.

    CACHE/images/KEY/pixels.npy   (N, H, W, C) uint8
                     labels.npy   (N,) int64
                     digests.npy  (N,) of 32 bytes: the SHA-256 of each image as it was stored
                     index.json   the rest of `DecodedImages`, and the size of each file

A folder has its name once it is whole; one that is damaged later is made anew. Images that cannot be decoded are
left out when it is made, so that all who share it leave out the same.
"""

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from resnet_ops import files, formatting, locks
from resnet_ops.data.dataset import EncodedImages, digest, map_chunks
from resnet_ops.data.decode import CropSpec, DecodeError, decode
from resnet_ops.errors import WORK_FAILED, PausedError, UserError
from resnet_ops.records import BadImage

BAD_SHARE = 0.05  # of the images; with more of them broken, something else is wrong
PIXELS, LABELS, DIGESTS, INDEX = "pixels.npy", "labels.npy", "digests.npy", "index.json"


@dataclass(frozen=True)
class ImageArray:
    """Decoded images of one split.

    Args:
        pixels: (N, H, W, C) uint8.
        labels: (N,) int64.
    """

    pixels: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class DecodedImages:
    """A split decoded: its images, how often each value occurs in each channel (C, 256), and what was left out."""

    images: ImageArray
    counts: np.ndarray
    digests: np.ndarray
    bad: tuple[BadImage, ...]


@dataclass(frozen=True)
class DecodeOptions:
    """How a split is to be decoded: what images are to look like, and whether one that is broken is an error."""

    frame: CropSpec
    class_names: tuple[str, ...]
    strict: bool


def cache_folder(chosen: Path | None) -> Path:
    """Where decoded images are kept on this machine."""
    place = chosen or Path(os.environ.get("RESNET_OPS_CACHE") or "~/.cache/resnet-ops")
    return place.expanduser().absolute()


def key(*parts: object) -> str:
    """The name of decoded images that depend on all of `parts`, and on what decodes them."""
    text = "\0".join(["1", PIL.__version__, *map(str, parts)])
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:32]


def decode_all(
    encoded: EncodedImages, wanted: DecodeOptions, make: Callable[[tuple[int, ...]], np.ndarray]
) -> DecodedImages:
    """Decode every image.

    Args:
        encoded: The images.
        wanted: How.
        make: Gives an array for the pixels, of this shape.

    Raises:
        UserError: An image is broken and `wanted.strict`, more than `BAD_SHARE` are, or all of a class.
    """
    frame = wanted.frame
    labels, counts = encoded.labels, np.zeros((frame.channels, 256), np.int64)
    pixels = make((len(labels), *frame.shape))

    def work(rows: range) -> tuple[list[bytes], list[tuple[int, str]], np.ndarray]:
        read = encoded.read(rows)
        broken = []
        for row, image in zip(rows, read, strict=True):
            try:
                pixels[row] = decode(image, frame)
            except DecodeError as error:
                broken.append((row, str(error)))
        there = pixels[rows.start : rows.stop]
        if broken:
            there = np.delete(there, [row - rows.start for row, _ in broken], axis=0)
        occurs = _occurrences(there)
        return [digest(image) for image in read], broken, occurs

    hashes: list[bytes] = []
    bad: dict[int, str] = {}
    for found, broken, occurs in map_chunks(len(labels), work):
        hashes += found
        counts += occurs
        bad.update(broken)
        if bad and wanted.strict:
            row, reason = next(iter(bad.items()))
            raise check_broken(BadImage(name=encoded.name(row), reason=reason))
    check_too_many(encoded, wanted.class_names, bad)
    good = np.delete(np.arange(len(labels)), list(bad))
    for index, cached_array in enumerate(good):
        if index != cached_array:
            pixels[index] = pixels[cached_array]
    names = tuple(BadImage(name=encoded.name(row), reason=reason) for row, reason in bad.items())
    return DecodedImages(ImageArray(pixels[: len(good)], labels[good]), counts, np.array(hashes, "S32")[good], names)


def _occurrences(pixels: np.ndarray) -> np.ndarray:
    """How often each value occurs in each channel, (C, 256); by Pillow: by NumPy it was a quarter of the whole work."""
    height, width, channels = pixels.shape[0] * pixels.shape[1], pixels.shape[2], pixels.shape[3]
    if not height:
        return np.zeros((channels, 256), np.int64)
    tall = pixels.reshape((height, width) if channels == 1 else (height, width, channels))
    return np.array(Image.fromarray(tall).histogram(), np.int64).reshape(channels, 256)


def check_too_many(encoded: EncodedImages, class_names: Sequence[str], bad: dict[int, str]) -> None:
    """Stop where broken images (row: why) are too many to be left out.

    Raises:
        UserError: They are more than `BAD_SHARE`, or all of a class.
    """
    if not bad:
        return
    row, reason = next(iter(bad.items()))
    first = f"The first: {encoded.name(row)}: {reason}."
    if len(bad) > BAD_SHARE * len(encoded.labels):
        raise UserError(
            f"{len(bad)} of {len(encoded.labels)} images cannot be decoded. {first}",
            f"Up to {BAD_SHARE:.0%} may be skipped; repair or remove these images.",
        )
    if gone := set(encoded.labels[list(bad)].tolist()) - set(np.delete(encoded.labels, list(bad)).tolist()):
        name = class_names[min(gone)]
        raise UserError(f"No image of class {name!r} can be decoded. {first}", "Repair or remove them.")


def cached_images(folder: Path, encoded: Callable[[], EncodedImages], wanted: DecodeOptions) -> DecodedImages:
    """Decoded images from `folder`, made and kept there if they are not.

    Processes of one machine that ask at once decode once. The pixels are mapped, not read.

    Args:
        folder: Where they are or will be; nothing else may lie there.
        encoded: Gives what to decode; called only if needed.
        wanted: How to decode.

    Raises:
        UserError: As for `decode_all`, or the folder cannot be written.
        PausedError: The disk is full.
    """
    decoded = _open(folder)
    if decoded is None:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with locks.exclusive(folder.with_suffix(".lock")):
                decoded = _open(folder)  # another process may have made it meanwhile
                if decoded is None:
                    _make(folder, encoded(), wanted)
                    decoded = _open(folder)
        except PausedError:
            raise
        except OSError as error:
            raise _unwritable(folder, error) from None
    if decoded is None:
        raise UserError(
            f"{folder}: data just written could not be read back unchanged.", "Check the disk.", WORK_FAILED
        )
    if wanted.strict and decoded.bad:
        raise check_broken(decoded.bad[0])
    return decoded


def cached_array(file: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """An array from `file`, made by one process of a machine and kept there if it is not.

    Raises:
        UserError: The folder cannot be written.
        PausedError: The disk is full.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with locks.exclusive(file.with_suffix(".lock")):
            with contextlib.suppress(OSError, ValueError, EOFError):
                return np.asarray(np.load(file))
            array, content = make(), io.BytesIO()
            np.save(content, array)
            files.write_atomically(file, content.getvalue())
            return array
    except OSError as error:
        raise _unwritable(file, error) from None


def _unwritable(place: Path, error: OSError) -> UserError:
    return UserError(
        f"Cannot write decoded images to {place.parent}: {error.strerror}.", "Choose another folder with --cache-dir."
    )


def check_broken(image: BadImage) -> UserError:
    """What to say where one broken image is an error."""
    return UserError(
        f"Cannot decode {image.name}: {image.reason}.",
        "Repair or remove it, or skip such images: --on-bad-image skip.",
    )


def _make(folder: Path, encoded: EncodedImages, wanted: DecodeOptions) -> None:
    for old in folder.parent.glob(f".{folder.name}-*"):  # of a process that was killed
        shutil.rmtree(old, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        mapped: list[np.memmap[tuple[int, ...], np.dtype[np.uint8]]] = []

        def make(shape: tuple[int, ...]) -> np.ndarray:
            mapped.append(np.lib.format.open_memmap(temporary / PIXELS, "w+", np.uint8, shape))
            _reserve(temporary / PIXELS)
            return mapped[0]

        decoded = decode_all(encoded, wanted, make)
        mapped[0].flush()
        if decoded.bad:
            _shorten(temporary / PIXELS, decoded.images.pixels.shape)
        np.save(temporary / LABELS, decoded.images.labels)
        np.save(temporary / DIGESTS, decoded.digests)
        index = {
            "bytes": {name: (temporary / name).stat().st_size for name in (PIXELS, LABELS, DIGESTS)},
            "counts": decoded.counts.tolist(),
            "bad": [bad.model_dump() for bad in decoded.bad],
        }
        (temporary / INDEX).write_text(json.dumps(index))
        for file in temporary.iterdir():
            files.sync(file)
        shutil.rmtree(folder, ignore_errors=True)  # damaged, or it would not be made
        temporary.rename(folder)
        files.sync(folder.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            size = len(encoded.labels) * int(np.prod(wanted.frame.shape))
            raise PausedError(
                f"The disk is full: the decoded images ({formatting.size(size)}) do not fit into {folder.parent} "
                f"({formatting.size(shutil.disk_usage(folder.parent).free)} free).",
                "Free some space, or choose another folder with --cache-dir.",
            ) from None
        if not folder.is_dir():  # else another process, which no lock held off, was first
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _reserve(file: Path) -> None:
    """Take the file's space now: writing through a map to a full disk would kill the process."""
    if hasattr(os, "posix_fallocate"):
        with file.open("r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)


def _shorten(file: Path, shape: tuple[int, ...]) -> None:
    """Make an .npy file one of fewer rows; its header has room for it."""
    with file.open("r+b") as opened:
        np.lib.format.read_magic(opened)
        np.lib.format.read_array_header_1_0(opened)
        begin = opened.tell()
        opened.seek(0)
        np.lib.format.write_array_header_1_0(opened, {"descr": "|u1", "fortran_order": False, "shape": shape})
        if opened.tell() != begin:
            raise AssertionError("NumPy's header of a shorter array has another length")
        opened.truncate(begin + int(np.prod(shape)))


def _open(folder: Path) -> DecodedImages | None:
    try:
        index = json.loads((folder / INDEX).read_text())
        if any((folder / name).stat().st_size != size for name, size in index["bytes"].items()):
            return None
        pixels = np.load(folder / PIXELS, mmap_mode="c")  # written to by nobody; torch warns of what it may not write
        labels, digests = np.load(folder / LABELS), np.load(folder / DIGESTS)
        bad = tuple(BadImage(**one) for one in index["bad"])
        if not len(pixels) == len(labels) == len(digests) or pixels.dtype != np.uint8 or pixels.ndim != 4:
            return None
        return DecodedImages(ImageArray(pixels, labels), np.array(index["counts"], np.int64), digests, bad)
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
