"""Locks of runs: one process at a time may write to a run, on this machine or on any other.

On a disk it is a file lock, which the system releases however the process ends. Object stores have no locks: there the
holder writes a lease and renews it; a lease that another process has seen unchanged for `EXPIRE_S` is free for it.

Either way the lock's file holds a nonce. Each write to the run first compares it (`files.check_fences`): a process that
was stopped while another took the run over, or whose folder was removed and made anew, writes no more.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import socket
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from resnet_ops import files
from resnet_ops.errors import BAD_REQUEST, WORK_FAILED, PausedError, RunHeldError, RunLostError, UserError
from resnet_ops.machine import pid_space

RENEW_S = 10.0
EXPIRE_S = 60.0  # six renewals: a shorter outage of the storage loses no run
SETTLE_S = 1.0  # for a write to be visible to all, where a storage cannot refuse the second writer
POLL_INTERVAL_S, REMOTE_POLL_INTERVAL_S = 0.25, 2.0
Warn = Callable[[str], None]
TEMPORARY = ".resnet-ops-"  # begins the names of folders of runs that are being made or removed
FLOCK = "hhqqi0q"  # struct flock of Linux: type, whence, start, length, pid

NONCES: dict[Path, str] = {}  # of the locks that this process holds, by their files


class Lease(BaseModel):
    """The holder of a run, as the file of its lock says. `renewed` is in seconds since 1970 by the holder's clock."""

    model_config = ConfigDict(frozen=True)

    host: str
    pid_space: str
    pid: int
    nonce: str
    renewed: float

    @classmethod
    def new(cls) -> "Lease":
        """Return a lease of this process."""
        return cls(
            host=socket.gethostname(),
            pid_space=pid_space(),
            pid=os.getpid(),
            nonce=uuid.uuid4().hex,
            renewed=time.time(),
        )

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host}"

    @property
    def has_died(self) -> bool:
        """True where the holder was a process of this machine that has ended."""
        return self.pid_space == pid_space() and not _lives(self.pid)

    @property
    def seems_expired(self) -> bool:
        """True where it would have expired if this machine's clock were the holder's. Nothing is decided by that."""
        return self.has_died or self.renewed + EXPIRE_S < time.time()


def ignore(_: str) -> None:
    """Do nothing with a message."""


@dataclass(frozen=True)
class Patience:
    """Patience with a process that holds a lock: seconds to wait for it, and who is told, once, that this one waits."""

    wait_s: float = 0.0
    warn: Warn = ignore


NONE = Patience()


@contextlib.contextmanager
def hold(file: Path, name: str, patience: Patience = NONE) -> Iterator[None]:
    """Hold the run called `name` for the length of a `with` block.

    Raises:
        FileNotFoundError: Its folder does not exist.
        UserError: Another process holds it, and did so for as long as this one waited.
        RunLostError: Another process took it over meanwhile.
    """
    lease = Lease.new()
    held = _leased(file, name, lease, patience) if files.is_remote(file) else _locked(file, name, lease, patience)
    with held, _fenced(file, name, lease.nonce):
        yield


@contextlib.contextmanager
def hold_new(file: Path, name: str, folders: Iterable[str]) -> Iterator[None]:
    """Create the folder of a run, which another process can only ever see locked; otherwise as `hold`.

    On a disk it is made under another name and then renamed, which no file system does onto a folder that has
    something in it: of many processes at once, one succeeds.

    Args:
        file: The lock's file, in the folder.
        name: The run.
        folders: Names of folders in it.

    Raises:
        FileExistsError: There is such a folder, with something in it.
    """
    lease = Lease.new()
    if files.is_remote(file):
        if files.exists(file.parent):
            raise FileExistsError(str(file.parent))
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(_leased(file, name, lease, NONE))
            except RunHeldError:  # another process was faster
                raise FileExistsError(str(file.parent)) from None
            if any(path != file for path in files.listed(file.parent)):  # it was, and is done already
                raise FileExistsError(str(file.parent))
            stack.enter_context(_fenced(file, name, lease.nonce))
            yield
        return
    with contextlib.ExitStack() as stack:
        temporary = _make_locked(stack, file, name, folders, lease)
        try:
            _rename_folder(temporary, file.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        files.sync(file.parent.parent)
        stack.enter_context(_fenced(file, name, lease.nonce))
        yield


def _make_locked(stack: contextlib.ExitStack, file: Path, name: str, folders: Iterable[str], lease: Lease) -> Path:
    """Create a folder of another name, held in `stack`."""
    while True:
        temporary = file.parent.with_name(TEMPORARY + secrets.token_hex(8))
        try:
            temporary.mkdir()
            stack.enter_context(_locked(temporary / file.name, name, lease, NONE))
            for folder in folders:
                (temporary / folder).mkdir()
            return temporary
        except RunHeldError:  # by another process in `sweep`, which was faster than the lock
            continue
        except BaseException as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if isinstance(error, FileNotFoundError) and file.parent.parent.is_dir():  # likewise
                continue
            raise


def _rename_folder(folder: Path, target: Path) -> None:
    try:
        folder.rename(target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise FileExistsError(str(target)) from None
        raise


def remove(file: Path, name: str, check: Callable[[], None], patience: Patience = NONE) -> None:
    """Delete the folder of a run on a disk, unless another process holds it.

    Args:
        file: The lock's file, in the folder.
        name: The run.
        check: Called once the run is held; raises where it is not to be deleted.
        patience: As for `hold`.

    Raises:
        FileNotFoundError: There is no such folder.
        UserError: Another process holds it.
    """
    aside = file.parent.with_name(TEMPORARY + secrets.token_hex(8))
    with _locked(file, name, Lease.new(), patience):
        check()
        # Not deleted while the lock is open in it: NFS keeps an open file, under another name.
        file.parent.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def sweep(runs_dir: Path, lock_name: str) -> None:
    """Delete what killed processes left of runs that they were making or removing on a disk."""
    for folder in runs_dir.glob(f"{TEMPORARY}*"):
        with contextlib.suppress(UserError, OSError):
            names = {path.name for path in folder.iterdir()}
            if lock_name in names:
                with _locked(folder / lock_name, folder.name, Lease.new(), NONE):
                    shutil.rmtree(folder, ignore_errors=True)
            elif names:  # the lock is the first that is made: it is being deleted
                shutil.rmtree(folder, ignore_errors=True)
            else:
                folder.rmdir()


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Wait until no other process of this machine is in such a `with` block for this file or folder.

    On a file system without locks, or in a bucket, this does not wait: the block must be correct without it.
    """
    if files.is_remote(path):
        yield
        return
    opened = os.open(path, os.O_RDONLY if path.is_dir() else os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


def nonce(file: Path) -> str | None:
    """Return the nonce of a lock that this process holds, for others that work for it to `join`."""
    return NONCES.get(file)


def join(file: Path, name: str, nonce: str) -> None:
    """Write to a run, from now on, only while its lock, which another process holds, has this nonce."""
    files.FENCES[file.parent] = lambda: _check(file, name, nonce)


def holder(file: Path) -> Lease | None:
    """Return the living process that holds the run, if one does. No lock is taken, which its driver could lose to.

    In a bucket, this goes by the clocks of two machines: it is to be shown, not to be acted upon.
    """
    lease = _parse(_content(file))
    if files.is_remote(file):
        is_own = lease is not None and lease.nonce == NONCES.get(file)
        return lease if lease and (is_own or not lease.seems_expired) else None
    try:
        with file.open("rb") as opened:
            query = struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind: int = struct.unpack(FLOCK, fcntl.fcntl(opened, fcntl.F_OFD_GETLK, query))[0]
            is_held = kind != fcntl.F_UNLCK
    except AttributeError:  # not Linux
        is_held = lease is not None and not lease.has_died
    except OSError:  # no such file, no locks there, or not ours to open
        return None
    return (lease or Lease.new().model_copy(update={"host": "an unknown machine", "pid": 0})) if is_held else None


def is_lock(file: Path) -> bool:
    """Return whether a file is the lock of a run, held or not."""
    return _parse(_content(file)) is not None


def refusal(lease: Lease | None, name: str) -> RunHeldError:
    """Return the error to report where another process holds a run."""
    who = f" ({lease})" if lease and lease.pid else ""
    return RunHeldError(
        f"Run {name} is being trained by another process{who}.",
        "Wait for it to finish (--wait SECONDS does, also for the lock of a machine that is gone), or use another "
        "--name.",
    )


@contextlib.contextmanager
def _fenced(file: Path, name: str, nonce: str) -> Iterator[None]:
    """Refuse this process's writes below the lock's folder once the lock is another's."""
    before = files.FENCES.get(file.parent)  # of a run of this name that this process held, too, before it was removed
    NONCES[file] = nonce
    join(file, name, nonce)
    try:
        yield
    finally:
        NONCES.pop(file, None)
        if before is None:
            del files.FENCES[file.parent]
        else:
            files.FENCES[file.parent] = before


def _check(file: Path, name: str, nonce: str) -> None:
    """Raise RunLostError unless a lock's file has this nonce."""
    content = _content(file, files.PATIENCE_S)
    if content is None:
        raise RunLostError(
            f"The folder of run {name} was removed or renamed while it was trained here: {file.parent} is not it.",
            "If it was renamed, resume it under its new name.",
            WORK_FAILED,
        )
    lease = _parse(content)
    if lease is None or lease.nonce != nonce:
        who = f" ({lease})" if lease else ""
        raise RunLostError(
            f"Another process{who} has taken over run {name}, or made it anew: this one writes to it no more.",
            "It goes on there: resnet-ops runs",
            WORK_FAILED,
        )


class _Waiting:
    """Decides how long to wait for a lock, and tells that this process does."""

    def __init__(self, name: str, patience: Patience) -> None:
        self.name, self.patience, self.began = name, patience, time.monotonic()
        self.has_told = False

    def wait(self, lease: Lease | None, least_s: float = 0.0, interval_s: float = POLL_INTERVAL_S) -> None:
        """Wait a moment.

        Raises:
            UserError: The time is over.
        """
        wait_s = max(self.patience.wait_s, least_s)
        if time.monotonic() - self.began >= wait_s:
            raise refusal(lease, self.name)
        if not self.has_told:
            who = f" by {lease}" if lease and lease.pid else ""
            self.patience.warn(f"Run {self.name} is held{who}; waiting up to {wait_s:.0f} s.")
            self.has_told = True
        time.sleep(interval_s)


# On a disk


@contextlib.contextmanager
def _locked(file: Path, name: str, lease: Lease, patience: Patience) -> Iterator[None]:
    waiting = _Waiting(name, patience)
    while True:
        with contextlib.ExitStack() as stack:
            opened = stack.enter_context(os.fdopen(_open(file, name), "r+b", buffering=0))
            if not _lock(opened.fileno(), name):
                waiting.wait(holder(file))
                continue
            if not _is_at(opened.fileno(), file):  # its folder was moved or removed in between
                continue
            content = lease.model_dump_json().encode()
            with files.explain_disk(file, len(content)):
                opened.write(content)
                opened.truncate()
            yield
            return


def _open(file: Path, name: str) -> int:
    try:
        return os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"Run {name} cannot be locked: {error.strerror}.", f"Give access to {file}.") from None


def _lock(descriptor: int, name: str) -> bool:
    """Lock an open file, unless another process has, and return whether that succeeded."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise UserError(
            f"Run {name} cannot be locked: {error.strerror}.",
            "The file system may not support locks (Lustre: mount it with -o flock); otherwise choose another "
            "--runs-dir.",
        ) from None
    # For `holder`: one of this kind can be seen without being taken. NFS makes the other one of this kind.
    with contextlib.suppress(OSError, AttributeError):
        query = struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, query)
    return True


def _is_at(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


# In a bucket


@contextlib.contextmanager
def _leased(file: Path, name: str, own: Lease, patience: Patience) -> Iterator[None]:
    try:
        version = _take(file, name, own, patience)
    except PausedError as error:  # nothing has begun that could be resumed
        raise error.copy_with(exit_code=BAD_REQUEST) from None
    done = threading.Event()
    renewed_at = [time.monotonic()]

    def renew(version: str) -> None:
        while not done.wait(RENEW_S):
            with contextlib.suppress(PausedError):  # the next one may get through
                began = time.monotonic()
                content = own.model_copy(update={"renewed": time.time()}).model_dump_json().encode()
                try:
                    files.write_if_unchanged(file, content, version, patience_s=0)
                except (FileExistsError, FileNotFoundError):
                    current, version = files.read_version(file, patience_s=0) or (b"", "")
                    lease = _parse(current)
                    if lease is None or lease.nonce != own.nonce:
                        return  # it is lost, as the next write will find
                    continue  # an answer was lost: it was renewed
                _, version = files.read_version(file, patience_s=0) or (b"", "")
                renewed_at[0] = began

    thread = threading.Thread(target=renew, args=(version,), name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        # Not where another process might just be taking it over.
        if time.monotonic() - renewed_at[0] < EXPIRE_S / 2:
            with contextlib.suppress(UserError):
                _check(file, name, own.nonce)
                files.remove(file)


def _take(file: Path, name: str, own: Lease, patience: Patience) -> str:
    """Write a lease where there is none, or none that is renewed; return the version of what was written."""
    waiting, content = _Waiting(name, patience), own.model_dump_json().encode()
    seen: bytes | None = None
    seen_at = time.monotonic()
    while True:
        stored = files.read_version(file, patience_s=0)
        current = _parse(stored[0]) if stored else None
        if stored and stored[0] != seen:
            seen, seen_at = stored[0], time.monotonic()
        is_expired = time.monotonic() - seen_at >= EXPIRE_S or (current is not None and current.has_died)
        if stored and not is_expired:
            looks_free = current is None or current.seems_expired
            waiting.wait(current, EXPIRE_S + 5 if looks_free else 0.0, REMOTE_POLL_INTERVAL_S)
            continue
        try:
            files.write_if_unchanged(file, content, stored[1] if stored else None, patience_s=0)
        except (FileExistsError, FileNotFoundError):
            continue  # another process was faster
        break
    if stored or not _is_refused(file, content):
        # Of two processes that take it at once where the storage knows no conditions, the later write wins.
        time.sleep(SETTLE_S)
    now, version = files.read_version(file, patience_s=0) or (b"", "")
    if now != content:
        raise refusal(_parse(now), name)
    return version


def _is_refused(file: Path, content: bytes) -> bool:
    """Return whether the storage refuses to create what exists, as it must for a lease to be taken by one only."""
    try:
        files.write_if_unchanged(file, content, None, patience_s=0)
    except FileExistsError:
        return True
    return False


def _content(file: Path, patience_s: float = files.PATIENCE_S) -> bytes | None:
    try:
        return files.read(file, patience_s)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _parse(content: bytes | None) -> Lease | None:
    try:
        return Lease.model_validate_json(content or b"")
    except ValidationError:
        return None


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
