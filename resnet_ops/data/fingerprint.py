"""Whether two machines, or two moments, see the same images: a SHA-256 that knows neither times nor absolute paths."""

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from resnet_ops import files
from resnet_ops.data.dataset import Split
from resnet_ops.data.listing import File

Kind = Literal["content", "names and sizes"]
WHOLE_BYTES = 512 * 2**20  # 0.3 to 1 s to read and hash, each time that the images are opened


def fingerprint(parts: Mapping[Split, Sequence[File]], *, named_files: bool) -> tuple[str, Kind]:
    """Sum up what lies in the files of each split, in their order.

    Up to `WHOLE_BYTES` on a disk every byte counts; beyond, and in buckets, names, sizes and what the bucket says
    of the content (ETags) do.

    Args:
        parts: The files.
        named_files: Whether names carry meaning; otherwise a renamed file is the same data.
    """
    every = [file for part in parts.values() for file in part]
    whole = sum(file.size for file in every) <= WHOLE_BYTES and not any(files.is_remote(file.root) for file in every)
    total = hashlib.sha256()
    if not whole:
        total.update(b"names and sizes")
    with ThreadPoolExecutor() as pool:
        for split, part in parts.items():
            total.update(split.encode())
            contents = pool.map(_content, part) if whole else map(_stated, part)
            for file, content in zip(part, contents, strict=True):
                if named_files:
                    total.update(file.name.encode(errors="surrogateescape") + b"\0")
                total.update(content)
    return total.hexdigest(), "content" if whole else "names and sizes"


def _content(file: File) -> bytes:
    try:
        with file.path.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").digest()
    except OSError:
        return b"unreadable"


def _stated(file: File) -> bytes:
    return hashlib.sha256(f"{file.name}\0{file.size}\0{file.tag}".encode(errors="surrogateescape")).digest()
