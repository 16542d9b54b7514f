"""List and read the files that images are in, on a disk or in a bucket.

Knows names and sizes only; what a folder or a file holds is in discovery.py and parquet.py.
"""

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from glob import glob
from heapq import heappop, heappush
from pathlib import Path
from typing import IO, Any, cast

from resnet_ops import files

# What systems and programs leave among images, with the thumbnails that some make of them.
SYSTEM_FOLDERS = {"__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found", "system volume information"}
SYSTEM_NAMES = SYSTEM_FOLDERS | {"thumbs", "thumbnails", "__pycache__", "thumbs.db", "desktop.ini"}
HIDDEN = "hidden or of the system"


@dataclass(frozen=True, slots=True)
class File:
    """A file below a folder: its name relative to it, its size in bytes (-1 where it is unknown), its ETag.

    The ETag is a bucket's mark of the content; on a disk it is ''. `unread` is why it is not to be read, if it is not.
    """

    root: Path
    name: str
    size: int
    etag: str = ""
    unread: str = ""

    @property
    def path(self) -> Path:
        """The whole path."""
        return self.root / self.name


def list_files(root: Path) -> list[File]:
    """List the files below a folder that are to be read, in no order: see `list_everything`."""
    return [file for file in list_everything(root) if not file.unread]


def list_everything(root: Path, rank: Callable[[str], int] = lambda _: 0) -> list[File]:
    """List what is below a folder, each folder once; what is not read says why, such as hidden or unreadable folders.

    A folder that is not entered, and an empty one, count as a file whose name ends with '/'. Of a folder that has
    several names, as links to it are, the one with the fewest links in it counts.

    Args:
        root: The folder.
        rank: Ranks the names in `root`: of a folder with several names one of the lowest rank counts.

    Raises:
        PausedError: The bucket is out of reach.
    """
    if not files.is_remote(root):
        return list(_walk(root, rank))
    try:
        infos = files.ask(root, lambda storage, key: cast("dict[str, dict[str, Any]]", storage.find(key, detail=True)))
    except FileNotFoundError:
        return []
    prefix = cast("Any", root).path.strip("/") + "/"
    named = {key.lstrip("/").removeprefix(prefix): info for key, info in infos.items()}
    return [
        replace(_bucket_file(root, name, info), unread=HIDDEN if any(map(_is_hidden, name.split("/"))) else "")
        for name, info in named.items()
    ]


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def _walk(root: Path, rank: Callable[[str], int]) -> Iterator[File]:
    pending = [(0, 0, "")]
    names: dict[tuple[int, int], str] = {}
    while pending:
        ranked, links, below = heappop(pending)
        try:
            status = os.stat(f"{root}/{below}")  # noqa: PTH116  # a Path each takes twice as long
            with os.scandir(f"{root}/{below}") as scanned:
                entries = sorted(scanned, key=lambda entry: entry.name)
        except OSError as error:
            yield File(root, below, -1, unread=error.strerror or type(error).__name__)
            continue
        if (known := names.setdefault((status.st_dev, status.st_ino), below)) != below:
            yield File(root, below, 0, unread=f"the same folder as {known or './'}")
            continue
        if below and all(_is_hidden(entry.name) for entry in entries):
            yield File(root, below, 0)
        for entry in entries:
            name, is_folder = below + entry.name, entry.is_dir()
            if _is_hidden(entry.name):
                yield File(root, name + "/" * is_folder, 0, unread=HIDDEN)
            elif is_folder:
                heappush(pending, (ranked if below else rank(entry.name), links + entry.is_symlink(), name + "/"))
            else:
                yield _file_on_disk(root, name, entry)


def _file_on_disk(root: Path, name: str, entry: "os.DirEntry[str]") -> File:
    try:
        status = entry.stat()
    except OSError:
        return File(root, name, -1)
    return File(root, name, status.st_size, unread="" if stat.S_ISREG(status.st_mode) else "no regular file")


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
    except FileNotFoundError as error:
        target = f": a link to {os.readlink(path)}" if os.path.islink(path) else ""  # noqa: PTH114, PTH115
        return FileNotFoundError(error.errno, f"{error.strerror}{target}")
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
