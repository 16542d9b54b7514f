"""The files that images are in, on a disk or in a bucket: found, told apart, and read many at a time."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import IO, Any, cast

from resnet_ops import files


@dataclass(frozen=True, slots=True)
class File:
    """A file that was found below a folder: its name from there, its size in bytes (-1 where it cannot be told).

    `tag` is what a bucket says of its content, e.g. an ETag; on a disk it is ''.
    """

    root: Path
    name: str
    size: int
    tag: str = ""

    @property
    def path(self) -> Path:
        """Where it is."""
        return self.root / self.name


def find(root: Path) -> list[File]:
    """Every file below a folder, in no order, but hidden ones and what is in hidden folders.

    An empty folder counts as a file whose name ends with '/'.

    Raises:
        PausedError: The bucket is out of reach.
    """
    if not files.is_remote(root):
        return list(_find_on_disk(root))
    try:
        found = files.ask(root, lambda storage, key: cast("dict[str, dict[str, Any]]", storage.find(key, detail=True)))
    except FileNotFoundError:
        return []
    prefix = cast("Any", root).path.strip("/") + "/"
    named = {key.lstrip("/").removeprefix(prefix): info for key, info in found.items()}
    return [
        _in_bucket(root, name, info)
        for name, info in named.items()
        if not any(part.startswith(".") for part in name.split("/"))
    ]


def _find_on_disk(root: Path) -> Iterator[File]:
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


def read_many(root: Path, names: Sequence[str]) -> list[bytes | OSError]:
    """The bytes of files below a folder; for one that cannot be read, the reason in its place."""
    if not files.is_remote(root):
        return [_read_or_say_why(f"{root}/{name}") for name in names]
    prefix = cast("Any", root).path.rstrip("/")
    keys = [f"{prefix}/{name}" for name in names]
    got = files.ask(root, lambda storage, _: cast("dict[str, Any]", storage.cat(keys, on_error="return")))
    every = [got.get(key, FileNotFoundError(0, "it does not exist")) for key in keys]
    return [one if isinstance(one, bytes | OSError) else OSError(0, str(one)) for one in every]


def _read_or_say_why(path: str) -> bytes | OSError:
    try:
        with open(path, "rb") as file:  # noqa: PTH123  # a Path each takes twice as long
            return file.read()
    except OSError as error:
        return error


def open_to_read(path: Path) -> IO[bytes]:
    """Open a file to read from anywhere in it."""
    if files.is_remote(path):
        return files.ask(path, lambda storage, key: cast("IO[bytes]", storage.open(key, "rb")))
    return path.open("rb")


def expand_glob(pattern: Path) -> list[Path]:
    """The files that a path with *, ? or [ in it stands for."""
    if not files.is_remote(pattern):
        return [Path(name) for name in glob(str(pattern), recursive=True)]  # noqa: PTH207  # absolute ones too
    remote = cast("Any", pattern)
    keys = files.ask(pattern, lambda storage, key: cast("list[str]", storage.glob(key)))
    return [files.to_path(f"{remote.protocol}://{key.lstrip('/')}") for key in keys]


def stat_file(path: Path) -> File:
    """One file, as `find` would tell of it.

    Raises:
        OSError: It is not there.
    """
    if not files.is_remote(path):
        return File(path.parent, path.name, path.stat().st_size)
    info = files.ask(path, lambda storage, key: cast("dict[str, Any]", storage.info(key)))
    return _in_bucket(path.parent, path.name, info)


def _in_bucket(root: Path, name: str, info: dict[str, Any]) -> File:
    return File(root, name, int(info.get("size") or 0), str(info.get("ETag") or info.get("etag") or ""))
