"""Files on a disk or in a bucket: how a place is named, how files are read, and how they are written whole.

A place is a `Path`; what was typed as a URL is a `UPath` over fsspec, which answers to the same calls and so is
typed as one. Folders, renaming and appending, which object stores do not have, are made up for here. Nothing
here knows what a run is, and no storage library is imported until a URL is used.
"""

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast
from urllib.parse import urlsplit

from pydantic import PlainSerializer, PlainValidator

from resnet_ops import formatting
from resnet_ops.errors import WORK_FAILED, PausedError, UserError

T = TypeVar("T")
PATIENCE_S = 60.0  # how long a bucket may be out of reach before work that needs it stops
RETRY_S = 2.0
FIRST_ANSWER_S = 10.0
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
CREDENTIALS = {
    "s3": "the credentials (AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY) and the endpoint "
    "(AWS_ENDPOINT_URL, where it is not Amazon's)",
    "gcs": "the credentials (gcloud auth application-default login, or GOOGLE_APPLICATION_CREDENTIALS)",
}
# No listings cached: other processes write there too. Files read in one piece: pieces could be of two versions.
# Few retries, or a wrong endpoint takes minutes to be told; `ask` is patient where that is right.
OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {
        "use_listings_cache": False,
        "max_concurrency": 1,
        "config_kwargs": {"connect_timeout": 5, "retries": {"mode": "standard", "total_max_attempts": 3}},
    },
    "gcs": {"use_listings_cache": False},
}


def to_path(place: str | Path) -> Path:
    """The place that a user named, by a path or by a URL such as s3://bucket/prefix.

    Raises:
        UserError: The URL is of an unknown kind, its library is not installed, or it holds credentials,
            which would end up in run.json.
    """
    text = str(place)
    if not isinstance(place, str) or "://" not in text:
        return Path(place) if isinstance(place, str) else place
    protocol = text.partition("://")[0]
    if protocol == "file":
        return Path(text.removeprefix("file://"))
    parts = urlsplit(text)
    if "@" in parts.netloc or parts.query:
        raise UserError(
            f"{protocol}://... contains credentials or a query, which would be stored in run.json.",
            "Give only bucket and folder; credentials come from the environment.",
        )
    extra = EXTRAS.get(protocol, "")
    import fsspec

    # Otherwise gcsfs asks what kind of bucket it is, each time anew where it may not know.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        remedy = f"pip install 'resnet-ops[{extra}]'" if extra else f"{error}."
        raise UserError(f"{protocol}:// needs a library that is not installed.", remedy) from None
    except ValueError:
        raise UserError(f"Storage {protocol}:// is not supported.", "Use s3:// or gs://.") from None
    from upath import UPath

    if extra and not parts.netloc:
        raise UserError(f"{text} has no bucket.", f"Write it as {protocol}://bucket/folder")
    return cast("Path", UPath(text.rstrip("/"), protocol=protocol, **OPTIONS.get(extra, {})))


def _place(value: object) -> Path:
    if isinstance(value, int | float | list | dict):  # in a file one can write anything
        raise ValueError("must be a path or a URL")
    return to_path(cast("str | Path", value))


Place = Annotated[Path, PlainValidator(_place), PlainSerializer(str)]


def is_remote(path: Path) -> bool:
    """Whether it is in a bucket."""
    return not isinstance(path, Path)


def ask(path: Path, call: Callable[[Any, str], T], patience_s: float = PATIENCE_S) -> T:
    """Ask the storage that a remote path lies in: `call` gets it and the path's key there.

    Raises:
        FileNotFoundError, FileExistsError: As on a disk.
        PausedError: The storage did not answer for `patience_s`, or refuses.
    """
    remote, deadline = cast("Any", path), time.monotonic() + patience_s
    while True:
        try:
            return call(remote.fs, remote.path)
        except (FileNotFoundError, FileExistsError):
            raise
        except Exception as error:  # every storage has exceptions of its own
            final = isinstance(error, PermissionError | NotImplementedError | ValueError)
            if final or time.monotonic() > deadline:
                reason = " ".join(str(error).split()) or f"no answer ({type(error).__name__})"
                check = CREDENTIALS.get(EXTRAS.get(remote.protocol, ""), "the credentials")
                raise PausedError(
                    f"{path} cannot be reached: {reason.rstrip('.')}.",
                    f"Check the bucket's name, {check}.",
                    exit_code=WORK_FAILED,
                ) from error
        time.sleep(RETRY_S)


def check_reachable(folder: Path) -> None:
    """See, within seconds, that a bucket is there and answers; of disks nothing is asked.

    Raises:
        UserError: It is not, or does not.
    """
    if not is_remote(folder):
        return

    def look(storage: Any, key: str) -> None:
        try:
            storage.ls(key, detail=False, timeout=FIRST_ANSWER_S)
        except FileNotFoundError:  # the folder, which is fine, or the bucket
            bucket = key.partition("/")[0]
            try:
                storage.info(bucket, timeout=FIRST_ANSWER_S)
            except FileNotFoundError:
                raise ValueError(f"there is no bucket {bucket!r}") from None
            except Exception:  # whoever may list a folder may yet be forbidden to look at its bucket
                return

    try:
        ask(folder, look, patience_s=0)
    except PausedError as error:
        raise UserError(error.cause, error.remedy) from None  # asked for in vain, rather than stopped


def read(path: Path, patience_s: float = PATIENCE_S) -> bytes:
    """All of a file."""
    if is_remote(path):
        return ask(path, lambda storage, key: bytes(storage.cat_file(key)), patience_s)
    return path.read_bytes()


def is_file(path: Path) -> bool:
    """Whether a file is there."""
    return path.is_file() if not is_remote(path) else (_info(path) or {}).get("type") == "file"


def exists(path: Path) -> bool:
    """Whether a file is there, or a folder; in a bucket, a folder that holds something."""
    return path.exists() if not is_remote(path) else _info(path) is not None


def _info(path: Path) -> dict[str, Any] | None:
    try:
        return ask(path, lambda storage, key: cast("dict[str, Any]", storage.info(key)))
    except FileNotFoundError:
        return None


def modified_ns(path: Path) -> int | None:
    """When a file was last written, in nanoseconds since 1970 (of whole seconds in a bucket); None without one."""
    try:
        return int((ask(path, lambda *_: path.stat()) if is_remote(path) else path.stat()).st_mtime_ns)
    except (FileNotFoundError, NotADirectoryError):
        return None


def listed(folder: Path) -> list[Path]:
    """What lies in a folder; nothing in one that is not there."""
    if not is_remote(folder):
        return list(folder.iterdir()) if folder.is_dir() else []
    try:
        keys = ask(folder, lambda storage, key: cast("list[str]", storage.ls(key, detail=False)))
    except FileNotFoundError:
        return []
    names = {key.rstrip("/").rpartition("/")[2] for key in keys}
    return [folder / name for name in names - {folder.name, ""}]


def make_folder(path: Path, *, exist_ok: bool = False) -> None:
    """Make a folder and those above it; a bucket has none, so only sees that nothing lies there.

    Raises:
        FileExistsError: It is there, and `exist_ok` is false.
    """
    if not is_remote(path):
        path.mkdir(parents=True, exist_ok=exist_ok)
    elif not exist_ok and exists(path):
        raise FileExistsError(str(path))


def rename(path: Path, target: Path) -> None:
    """Rename a file; in a bucket it is there twice for a moment."""
    if is_remote(path):
        ask(path, lambda storage, key: storage.cp_file(key, cast("Any", target).path))
        remove(path)
    else:
        path.rename(target)


def remove(path: Path) -> None:
    """Delete a file, if it is there."""
    if is_remote(path):
        with contextlib.suppress(FileNotFoundError):
            ask(path, lambda storage, key: storage.rm_file(key))
    else:
        path.unlink(missing_ok=True)


def remove_tree(folder: Path) -> None:
    """Delete a folder, if it is there, with all that is in it."""
    with contextlib.suppress(FileNotFoundError):
        if is_remote(folder):
            ask(folder, lambda storage, key: storage.rm(key, recursive=True))
        else:
            shutil.rmtree(folder)


def for_arrow(folder: Path) -> dict[str, Any]:
    """What Ray Train's RunConfig takes to store into a folder: with the credentials and settings of all the rest."""
    if not is_remote(folder):
        return {"storage_path": str(folder)}
    import pyarrow.fs

    remote = cast("Any", folder)
    return {
        "storage_path": remote.path,
        "storage_filesystem": pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(remote.fs)),
    }


def write_atomically(path: Path, content: bytes, patience_s: float = PATIENCE_S) -> None:
    """Replace `path` by `content`: after a crash it is the old file or the new one, whole.

    Raises:
        PausedError: The disk is full (or a quota is) or refuses, or the bucket is out of reach; the old file is still
            there.
    """
    if is_remote(path):
        try:
            ask(path, lambda storage, key: storage.pipe_file(key, content), patience_s)
        except FileNotFoundError as error:
            raise PausedError(
                f"{path} cannot be written: {error}.", "Check that the bucket exists.", WORK_FAILED
            ) from error
        return
    temporary = path.with_name(f".{path.name}.tmp")
    with _explain_disk(path, len(content)):
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        sync(path.parent)


def append(path: Path, line: str, patience_s: float = PATIENCE_S) -> None:
    """Append a line, on the disk when this returns; in a bucket the whole file is written anew.

    Raises:
        PausedError: As for `write_atomically`.
    """
    if is_remote(path):
        before = b""
        with contextlib.suppress(FileNotFoundError):
            before = read(path, patience_s)
        write_atomically(path, before + line.encode() + b"\n", patience_s)
        return
    with _explain_disk(path), path.open("a") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _explain_disk(path: Path, size: int = 0) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise PausedError(f"{path} cannot be written: {error.strerror}.", "Check the disk.", WORK_FAILED) from error
        free = shutil.disk_usage(path.parent).free
        raise PausedError(
            f"The disk is full: {path.name} ({formatting.size(size)}) does not fit into {path.parent} "
            f"({formatting.size(free)} free).",
            "Free some space.",
            exit_code=WORK_FAILED,
        ) from error


def sync(path: Path) -> None:
    """See that a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
