"""List and read the files that images are in, on a disk or in a bucket.

Knows names and sizes only; what a folder or a file holds is in discovery.py and parquet.py.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import IO, Any, cast

from resnet_ops import files


@dataclass(frozen=True, slots=True)
class File:
    """A file below a folder: its name relative to it, its size in bytes (-1 where it is unknown), its ETag.

    The ETag is a bucket's mark of the content; on a disk it is ''.
    """

    root: Path
    name: str
    size: int
    etag: str = ""

    @property
    def path(self) -> Path:
        """The whole path."""
        return self.root / self.name


def list_files(root: Path) -> list[File]:
    """List the files below a folder, in no order, without hidden ones and what is in hidden folders.

    An empty folder counts as a file whose name ends with '/'.

    Raises:
        PausedError: The bucket is out of reach.
    """
    if not files.is_remote(root):
        return list(_list_on_disk(root))
    try:
        infos = files.ask(root, lambda storage, key: cast("dict[str, dict[str, Any]]", storage.find(key, detail=True)))
    except FileNotFoundError:
        return []
    prefix = cast("Any", root).path.strip("/") + "/"
    named = {key.lstrip("/").removeprefix(prefix): info for key, info in infos.items()}
    return [
        _bucket_file(root, name, info)
        for name, info in named.items()
        if not any(part.startswith(".") for part in name.split("/"))
    ]


def _list_on_disk(root: Path) -> Iterator[File]:
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = "" if folder == str(root) else os.path.relpath(folder, root) + "/"
        if below and not folders and not names:
            yield File(root, below, 0)
        for name in names:
            if not name.startswith("."):
                try:
                    size = os.stat(f"{folder}/{name}").st_size  # noqa: PTH116  # a Path each takes twice as long
                except OSError:
                    size = -1
                yield File(root, below + name, size)


def read_files(root: Path, names: Sequence[str]) -> list[bytes | OSError]:
    """Read files below a folder; for one that cannot be read, return the error in its place."""
    if not files.is_remote(root):
        return [_read_or_error(f"{root}/{name}") for name in names]
    prefix = cast("Any", root).path.rstrip("/")
    keys = [f"{prefix}/{name}" for name in names]
    by_key = files.ask(root, lambda storage, _: cast("dict[str, Any]", storage.cat(keys, on_error="return")))
    contents = [by_key.get(key, FileNotFoundError(0, "it does not exist")) for key in keys]
    return [content if isinstance(content, bytes | OSError) else OSError(0, str(content)) for content in contents]


def _read_or_error(path: str) -> bytes | OSError:
    try:
        with open(path, "rb") as file:  # noqa: PTH123  # a Path each takes twice as long
            return file.read()
    except OSError as error:
        return error


def open_file(path: Path) -> IO[bytes]:
    """Open a file for random access."""
    if files.is_remote(path):
        return files.ask(path, lambda storage, key: cast("IO[bytes]", storage.open(key, "rb")))
    return path.open("rb")


def expand_glob(pattern: Path) -> list[Path]:
    """Return the files that match a path with *, ? or [ in it."""
    if not files.is_remote(pattern):
        return [Path(name) for name in glob(str(pattern), recursive=True)]  # noqa: PTH207  # absolute ones too
    remote = cast("Any", pattern)
    keys = files.ask(pattern, lambda storage, key: cast("list[str]", storage.glob(key)))
    return [files.to_path(f"{remote.protocol}://{key.lstrip('/')}") for key in keys]


def stat_file(path: Path) -> File:
    """Return one file as `list_files` does.

    Raises:
        OSError: It does not exist.
    """
    if not files.is_remote(path):
        return File(path.parent, path.name, path.stat().st_size)
    info = files.ask(path, lambda storage, key: cast("dict[str, Any]", storage.info(key)))
    return _bucket_file(path.parent, path.name, info)


def _bucket_file(root: Path, name: str, info: dict[str, Any]) -> File:
    return File(root, name, int(info.get("size") or 0), str(info.get("ETag") or info.get("etag") or ""))
