"""Files on a disk or in a bucket: parsing paths and URLs, reading, and writing whole files. No run is known here.

A URL becomes a `UPath` over fsspec, which has the methods of a `Path` and so is typed as one. Folders, renaming and
appending, which object stores do not have, are emulated. No storage library is imported until a URL is used.
"""

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast
from urllib.parse import urlsplit

from pydantic import PlainSerializer, PlainValidator

from resnet_ops import formatting
from resnet_ops.errors import WORK_FAILED, PausedError, UserError

T = TypeVar("T")
# By folder: raises where what is in it is another process's to write by now (locks.py). Asked before each write.
FENCES: dict[Path, Callable[[], None]] = {}
PATIENCE_S = 60.0  # how long a bucket may be out of reach before work that needs it stops
RETRY_S = 2.0
TEMPORARY = ".tmp"  # ends the names of files that are being written
FIRST_ANSWER_S = 10.0
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
CREDENTIALS = {
    "s3": "the credentials (AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY) and the endpoint "
    "(AWS_ENDPOINT_URL, where it is not Amazon's)",
    "gcs": "the credentials (gcloud auth application-default login, or GOOGLE_APPLICATION_CREDENTIALS)",
}
# No cached listings: other processes write there, too. Files read in one piece: pieces could be of two versions.
# Few retries, or a wrong endpoint is only reported after minutes; `ask` retries where that is right.
OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {
        "use_listings_cache": False,
        "max_concurrency": 1,
        "config_kwargs": {"connect_timeout": 5, "retries": {"mode": "standard", "total_max_attempts": 3}},
    },
    "gcs": {"use_listings_cache": False},
}


def to_path(place: str | Path) -> Path:
    """Return the path of what a user typed: a path, or a URL such as s3://bucket/prefix.

    Raises:
        UserError: The URL is of an unknown kind, its library is not installed, or it contains credentials, which
            would be stored in run.json.
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
    """Return whether a path is in a bucket."""
    return not isinstance(path, Path)


def ask(path: Path, call: Callable[[Any, str], T], patience_s: float = PATIENCE_S) -> T:
    """Call the storage of a remote path, retrying: `call` gets the file system and the path's key in it.

    Raises:
        FileNotFoundError, FileExistsError: As on a disk.
        PausedError: The storage did not answer for `patience_s`, or refused.
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


def check_fences(path: Path) -> None:
    """Raise, as the fence says, where a folder that `path` is in is another process's to write by now."""
    for folder, check in list(FENCES.items()):
        if str(path).startswith(str(folder)) and (path == folder or folder in path.parents):
            check()


def check_reachable(folder: Path) -> None:
    """Check, within seconds, that a bucket exists and answers; a disk is not checked.

    Raises:
        UserError: It does not.
    """
    if not is_remote(folder):
        return

    def list_folder(storage: Any, key: str) -> None:
        try:
            storage.ls(key, detail=False, timeout=FIRST_ANSWER_S)
        except FileNotFoundError:  # the folder, which is fine, or the bucket
            bucket = key.partition("/")[0]
            try:
                storage.info(bucket, timeout=FIRST_ANSWER_S)
            except FileNotFoundError:
                raise ValueError(f"there is no bucket {bucket!r}") from None
            except Exception:  # permission to list a folder does not imply permission to inspect its bucket
                return

    try:
        ask(folder, list_folder, patience_s=0)
    except PausedError as error:
        raise UserError(error.cause, error.remedy) from None  # nothing has begun that could be resumed


def read(path: Path, patience_s: float = PATIENCE_S) -> bytes:
    """Return the content of a file."""
    if is_remote(path):
        return ask(path, lambda storage, key: bytes(storage.cat_file(key)), patience_s)
    return path.read_bytes()


def read_start(path: Path, size: int) -> bytes:
    """Return the first bytes of a file."""
    if is_remote(path):
        return ask(path, lambda storage, key: bytes(storage.cat_file(key, 0, size)))
    with path.open("rb") as file:
        return file.read(size)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file on this machine, in hexadecimal digits, however large it is."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_version(path: Path, patience_s: float = PATIENCE_S) -> tuple[bytes, str] | None:
    """Return the content of a file in a bucket and its version, or one before; None if it does not exist."""

    def read_both(storage: Any, key: str) -> tuple[bytes, str]:
        info = storage.info(key)  # first: a version that is too old is refused by `write_if_unchanged`
        return bytes(storage.cat_file(key)), str(info.get("generation") or info.get("ETag") or "")

    try:
        return ask(path, read_both, patience_s)
    except FileNotFoundError:
        return None


def write_if_unchanged(path: Path, content: bytes, version: str | None, patience_s: float = PATIENCE_S) -> None:
    """Write a file in a bucket only if it is still this version, or, with None, if there is none. No fence is asked.

    Raises:
        FileExistsError, FileNotFoundError: It is another one, or gone; not where the storage knows no conditions.
        PausedError: As for `write_atomically`.
    """

    def write(storage: Any, key: str) -> None:
        protocol = EXTRAS.get(cast("Any", path).protocol)
        try:
            if version is None:
                storage.pipe_file(key, content, mode="create")
            elif protocol == "s3":
                storage.pipe_file(key, content, IfMatch=version)
            elif protocol == "gcs":
                bucket, _, name = key.partition("/")
                upload = storage.base.replace("/storage/", "/upload/storage/") + "b/{}/o"
                condition = {"name": name, "ifGenerationMatch": version}
                storage.call("POST", upload, bucket, uploadType="media", data=content, **condition)
            else:
                storage.pipe_file(key, content)
        except Exception as error:
            if _is_conflict(error):
                raise FileExistsError(str(path)) from None
            raise

    ask(path, write, patience_s)


def _is_conflict(error: BaseException) -> bool:
    """Return whether a storage refused a write as something else is there: HTTP status 412, or of two at once 409."""
    codes = {getattr(error, "code", None)}  # as gcsfs has it; s3fs keeps botocore's error
    for each in (error, error.__cause__):
        codes.add(getattr(each, "response", {}).get("ResponseMetadata", {}).get("HTTPStatusCode"))
    return bool(codes & {409, 412})


def is_file(path: Path) -> bool:
    """Return whether a path is an existing file."""
    return path.is_file() if not is_remote(path) else (_info(path) or {}).get("type") == "file"


def exists(path: Path) -> bool:
    """Return whether a file or folder exists; in a bucket, a folder exists if it is not empty."""
    return path.exists() if not is_remote(path) else _info(path) is not None


def _info(path: Path) -> dict[str, Any] | None:
    try:
        return ask(path, lambda storage, key: cast("dict[str, Any]", storage.info(key)))
    except FileNotFoundError:
        return None


def modified_ns(path: Path) -> int | None:
    """Return when a file was last written, in ns since 1970 (whole seconds in a bucket); None if it does not exist."""
    try:
        return int((ask(path, lambda *_: path.stat()) if is_remote(path) else path.stat()).st_mtime_ns)
    except (FileNotFoundError, NotADirectoryError):
        return None


def listed(folder: Path) -> list[Path]:
    """Return the paths in a folder; none if it does not exist."""
    if not is_remote(folder):
        return list(folder.iterdir()) if folder.is_dir() else []
    try:
        keys = ask(folder, lambda storage, key: cast("list[str]", storage.ls(key, detail=False)))
    except FileNotFoundError:
        return []
    names = {key.rstrip("/").rpartition("/")[2] for key in keys}
    return [folder / name for name in names - {folder.name, ""}]


def check_writable(folder: Path) -> None:
    """Check that files can be written to a folder on a disk, or that it can be created.

    Raises:
        UserError: They cannot.
    """
    if is_remote(folder):
        return
    above = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not above.is_dir():
        raise UserError(f"{folder.absolute()} cannot be created: {above} is a file.", "Choose another folder.")
    try:
        with tempfile.TemporaryFile(dir=above):  # its permissions do not say what a server allows
            pass
    except OSError as error:
        raise UserError(
            f"{above} cannot be written to: {error.strerror}.", "Give access to it, or choose another folder."
        ) from None


def make_folder(path: Path, *, exist_ok: bool = False) -> None:
    """Create a folder and its parents; in a bucket, which has none, only check that nothing is there.

    Raises:
        FileExistsError: It exists, and `exist_ok` is false.
    """
    check_fences(path)
    if not is_remote(path):
        path.mkdir(parents=True, exist_ok=exist_ok)
    elif not exist_ok and exists(path):
        raise FileExistsError(str(path))


def rename(path: Path, target: Path) -> None:
    """Rename a file; in a bucket, both names exist for a moment."""
    check_fences(path)
    if is_remote(path):
        ask(path, lambda storage, key: storage.cp_file(key, cast("Any", target).path))
        remove(path)
    else:
        path.rename(target)


def remove(path: Path) -> None:
    """Delete a file, if it exists."""
    check_fences(path)
    if is_remote(path):
        with contextlib.suppress(FileNotFoundError):
            ask(path, lambda storage, key: storage.rm_file(key))
    else:
        path.unlink(missing_ok=True)


def remove_tree(folder: Path) -> None:
    """Delete a folder with its content, if it exists."""
    check_fences(folder)
    with contextlib.suppress(FileNotFoundError):
        if is_remote(folder):
            ask(folder, lambda storage, key: storage.rm(key, recursive=True))
        else:
            shutil.rmtree(folder)


def for_arrow(folder: Path) -> dict[str, Any]:
    """Return the arguments of Ray Train's RunConfig to store into a folder, with the credentials used here."""
    if not is_remote(folder):
        return {"storage_path": str(folder)}
    import pyarrow.fs

    remote = cast("Any", folder)
    return {
        "storage_path": remote.path,
        "storage_filesystem": pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(remote.fs)),
    }


def write_atomically(path: Path, content: bytes, patience_s: float = PATIENCE_S) -> None:
    """Replace the content of `path`: after a crash, the file is the old or the new one, whole.

    Raises:
        PausedError: The disk or its quota is full or refuses, or the bucket is out of reach; the old file is kept.
    """
    check_fences(path)
    if is_remote(path):
        try:
            ask(path, lambda storage, key: storage.pipe_file(key, content), patience_s)
        except FileNotFoundError as error:
            raise PausedError(
                f"{path} cannot be written: {error}.", "Check that the bucket exists.", WORK_FAILED
            ) from error
        return
    # A name that no other process has: if the folder is replaced meanwhile, nothing is there to be renamed.
    temporary = path.with_name(f".{secrets.token_hex(8)}{TEMPORARY}")
    with explain_disk(path, len(content)):
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            check_fences(path)  # that took its time
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        sync(path.parent)


def remove_temporary(folder: Path) -> None:
    """Delete what a process that was killed while it wrote left in a folder on a disk."""
    if not is_remote(folder):
        for path in folder.glob(f".*{TEMPORARY}"):
            remove(path)


def write_folder(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Replace a folder by one with these files: on a disk it is the old or the new one, whole, or for a moment none.

    Raises:
        PausedError: As for `write_atomically`.
    """
    check_fences(folder)
    if is_remote(folder):
        for name, content in contents.items():
            write_atomically(folder / name, content)
        return
    aside = [folder.with_name(f".{folder.name}-{secrets.token_hex(4)}") for _ in range(2)]
    try:
        with explain_disk(folder, sum(map(len, contents.values()))):
            aside[0].mkdir()
        for name, content in contents.items():
            write_atomically(aside[0] / name, content)
        with explain_disk(folder):
            if folder.exists():
                folder.rename(aside[1])
            aside[0].rename(folder)
        sync(folder.parent)
    finally:
        for each in aside:
            shutil.rmtree(each, ignore_errors=True)


def append(path: Path, line: str, patience_s: float = PATIENCE_S) -> None:
    """Append a line, synced to disk when this returns; in a bucket, the whole file is rewritten.

    Raises:
        PausedError: As for `write_atomically`.
    """
    check_fences(path)
    if is_remote(path):
        added = line.encode() + b"\n"
        before, version = read_version(path, patience_s) or (b"", None)
        while not before.endswith(added):  # else by a try whose answer was lost
            with contextlib.suppress(FileExistsError, FileNotFoundError):  # another thread or worker was faster
                write_if_unchanged(path, before + added, version, patience_s)
                break
            before, version = read_version(path, patience_s) or (b"", None)
        return
    with explain_disk(path), path.open("a") as file:
        check_fences(path)  # once it is open: what is open stays in its folder, also where that is replaced
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def explain_disk(path: Path, size: int = 0) -> Iterator[None]:
    """Turn what a disk answers within a `with` block into a PausedError that says what to do."""
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
    """Sync a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
