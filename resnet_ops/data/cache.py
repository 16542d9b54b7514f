"""Store decoded splits on disk: one .npy a split, memory-mapped by all processes that train on it.

    CACHE/images/KEY/pixels.npy   (N, H, W, C) uint8
                     labels.npy   (N,) int64
                     aspects.npy  (N,) float32, width / height of each image, where that is not the pixels'
                     digests.npy  (N,) of 32 bytes: the SHA-256 of each image as it was stored
                     index.json   the rest of `DecodedImages`, and the size of each file

A folder gets its name once it is complete; a damaged one is written again. Images that cannot be decoded are left out
when it is written, so that all processes leave out the same. What is decoded, and when, is in sources.py.
"""

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL

from resnet_ops import files, formatting, locks
from resnet_ops.data.dataset import EncodedImages
from resnet_ops.data.parallel_decode import (
    KINDS,
    DecodedImages,
    DecodeOptions,
    ImageArray,
    Report,
    broken_image_error,
    check_bad_count,
    decode_all,
    do_not_report,
)
from resnet_ops.errors import WORK_FAILED, PausedError, UserError
from resnet_ops.run_records import BadImage

PIXELS, LABELS, ASPECTS, DIGESTS, INDEX = "pixels.npy", "labels.npy", "aspects.npy", "digests.npy", "index.json"


def cache_folder(cache_dir: Path | None) -> Path:
    """Return the folder of this machine's cache: `cache_dir`, RESNET_OPS_CACHE, or resnet-ops in the user's caches."""
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = cache_dir or Path(os.environ.get("RESNET_OPS_CACHE") or f"{caches}/resnet-ops")
    return folder.expanduser().absolute()


def cache_key(*parts: object) -> str:
    """Return the name of decoded images that depend on all of `parts`, and on the decoder's version."""
    text = "\0".join(["3", PIL.__version__, *map(str, parts)])
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:32]


def cached_images(
    folder: Path, encoded: Callable[[], EncodedImages], options: DecodeOptions, report: Report = do_not_report
) -> DecodedImages:
    """Return the decoded images of `folder`, decoding and storing them if they are not there.

    Of several processes of one machine that need them at once one decodes. The pixels are memory-mapped, not read.

    Args:
        folder: The folder of these images alone.
        encoded: Returns the images to decode; called only if needed.
        options: How to decode them.
        report: Called as images are decoded.

    Raises:
        UserError: As for `decode_all`, or the folder cannot be written.
        PausedError: The disk is full.
    """
    decoded = _load(folder)
    if decoded is None:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with locks.exclusive(folder.with_suffix(".lock")):
                decoded = _load(folder)  # another process may have written it meanwhile
                if decoded is None:
                    _write(folder, encoded(), options, report)
                    decoded = _load(folder)
        except OSError as error:
            raise _write_error(folder, error) from None
    if decoded is None:
        raise UserError(
            f"{folder}: data just written could not be read back unchanged.", "Check the disk.", WORK_FAILED
        )
    if options.strict and decoded.bad:
        raise broken_image_error(decoded.bad[0])
    if bad := decoded.bad:  # what may be left out may have changed since
        first = f"The first: {bad[0].name}: {bad[0].reason}."
        check_bad_count(len(bad), len(bad) + len(decoded.images), options, first)
    return decoded


def cached_array(file: Path, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """Return the array in `file`, computed by one process of a machine and stored there if it is not.

    Raises:
        UserError: The folder cannot be written.
        PausedError: The disk is full.
    """

    def load() -> np.ndarray | None:
        with contextlib.suppress(OSError, ValueError, EOFError):
            return np.asarray(np.load(file))
        return None

    if (known := load()) is not None:  # which may be another user's, whose lock is not ours to take
        return known
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with locks.exclusive(file.with_suffix(".lock")):
            if (known := load()) is not None:
                return known
            array, content = compute(), io.BytesIO()
            np.save(content, array)
            files.write_atomically(file, content.getvalue())
            return array
    except OSError as error:
        raise _write_error(file, error) from None


def _write_error(path: Path, error: OSError) -> UserError:
    return UserError(
        f"Cannot write decoded images to {path.parent}: {error.strerror}.", "Choose another folder with --cache-dir."
    )


def _write(folder: Path, encoded: EncodedImages, options: DecodeOptions, report: Report) -> None:
    for leftover in folder.parent.glob(f".{folder.name}-*"):  # of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        shape = (len(encoded.labels), *options.crop.shape)
        pixels = np.lib.format.open_memmap(temporary / PIXELS, "w+", np.uint8, shape)
        _reserve(temporary / PIXELS)
        decoded = decode_all(encoded, options, pixels, report)
        pixels.flush()
        if decoded.bad:
            _truncate(temporary / PIXELS, decoded.images.pixels.shape)
        np.save(temporary / LABELS, decoded.images.labels)
        if decoded.images.aspects is not None:
            np.save(temporary / ASPECTS, decoded.images.aspects)
        np.save(temporary / DIGESTS, decoded.digests)
        index = {
            "bytes": {file.name: file.stat().st_size for file in temporary.iterdir()},
            "counts": decoded.counts.tolist(),
            "bad": [bad.model_dump() for bad in decoded.bad],
            **{kind: getattr(decoded, kind) for kind in KINDS},
        }
        (temporary / INDEX).write_text(json.dumps(index))
        for file in temporary.iterdir():
            files.sync(file)
        shutil.rmtree(folder, ignore_errors=True)  # damaged, or it would not be written
        os.umask(mask := os.umask(0))
        temporary.chmod(0o777 & ~mask)  # mkdtemp's is this user's alone; a cache may be shared
        temporary.rename(folder)
        files.sync(folder.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            size = len(encoded.labels) * int(np.prod(options.crop.shape))
            raise PausedError(
                f"The disk is full: the decoded images ({formatting.size(size)}) do not fit into {folder.parent} "
                f"({formatting.size(shutil.disk_usage(folder.parent).free)} free).",
                "Free some space, or choose another folder with --cache-dir.",
            ) from None
        if not folder.is_dir():  # else another process, which the lock did not exclude, was first
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _reserve(file: Path) -> None:
    """Allocate the file's disk space: writing through a memory map to a full disk would kill the process."""
    if hasattr(os, "posix_fallocate"):
        with file.open("r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)


def _truncate(file: Path, shape: tuple[int, ...]) -> None:
    """Cut an .npy file to fewer rows; its header has room for the other shape."""
    with file.open("r+b") as opened:
        np.lib.format.read_magic(opened)
        np.lib.format.read_array_header_1_0(opened)
        start = opened.tell()
        opened.seek(0)
        np.lib.format.write_array_header_1_0(opened, {"descr": "|u1", "fortran_order": False, "shape": shape})
        if opened.tell() != start:
            raise AssertionError("NumPy's header of a shorter array has another length")
        opened.truncate(start + int(np.prod(shape)))


def _load(folder: Path) -> DecodedImages | None:
    try:
        index = json.loads((folder / INDEX).read_text())
        if any((folder / name).stat().st_size != size for name, size in index["bytes"].items()):
            return None
        pixels = np.load(folder / PIXELS, mmap_mode="c")  # never written to; torch warns of read-only arrays
        labels, digests = np.load(folder / LABELS), np.load(folder / DIGESTS)
        aspects = np.load(folder / ASPECTS) if ASPECTS in index["bytes"] else None
        bad = tuple(BadImage(**image) for image in index["bad"])
        if not len(pixels) == len(labels) == len(digests) or pixels.dtype != np.uint8 or pixels.ndim != 4:
            return None
        counts = np.array(index["counts"], np.int64)
        kinds = {kind: index.get(kind, 0) for kind in KINDS}  # of which earlier versions had the first only
        return DecodedImages(ImageArray(pixels, labels, aspects), counts, digests, bad, **kinds)
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
