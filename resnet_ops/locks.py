"""Locks of runs: one process at a time may write to a run, on this machine or on any other.

On a disk it is a file lock, which the system releases however the process ends. Object stores have no locks: there the
holder writes a lease and renews it; a lease that was not renewed for `EXPIRE_S` is free for any process.
"""

import contextlib
import fcntl
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from resnet_ops import files
from resnet_ops.errors import BAD_REQUEST, WORK_FAILED, PausedError, UserError

RENEW_S = 10.0
EXPIRE_S = 60.0  # six renewals: a shorter outage of the storage loses no run
SETTLE_S = 1.0  # for a write to be visible to all, where a storage cannot refuse the second writer

LOST: set[Path] = set()  # leases that this process held until another took them over


class Lease(BaseModel):
    """The holder of a run in a bucket. `renewed` is in seconds since 1970 by the holder's clock."""

    model_config = ConfigDict(frozen=True)

    host: str
    pid_space: str
    pid: int
    nonce: str
    renewed: float

    @property
    def left_s(self) -> float:
        """Seconds until it expires; 0 if its holder was a process of this machine and has ended."""
        if self.pid_space == _pid_space() and not _lives(self.pid):
            return 0.0
        return max(0.0, self.renewed + EXPIRE_S - time.time())


@contextlib.contextmanager
def hold(file: Path, name: str) -> Iterator[None]:
    """Hold the run called `name` for the length of a `with` block.

    Raises:
        UserError: Another process holds it, or took it over meanwhile.
    """
    if files.is_remote(file):
        with _leased(file, name):
            yield
        return
    with file.open("w") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"Run {name} is being trained by another process.", "Wait for it to finish, or use another --name."
            ) from None
        except OSError as error:
            raise UserError(
                f"Run {name} cannot be locked: {error.strerror}.",
                "The file system may not support locks (Lustre: mount it with -o flock); otherwise choose another "
                "--runs-dir.",
            ) from None
        yield


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


def is_held(file: Path) -> bool:
    """Return whether a living process holds the run."""
    if files.is_remote(file):
        lease = _read(file)
        return lease is not None and lease.left_s > 0
    try:
        with file.open("r") as opened:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no such file, no locks there, or not ours to open
        return False
    return False


def is_lost(file: Path) -> bool:
    """Return whether another process took over a lease that this one held."""
    return file in LOST


@contextlib.contextmanager
def _leased(file: Path, name: str) -> Iterator[None]:
    try:
        own = _take(file, name)
    except PausedError as error:  # nothing has begun that could be resumed
        raise error.copy_with(exit_code=BAD_REQUEST) from None
    LOST.discard(file)  # from an earlier hold in this process
    done, waiting = threading.Event(), threading.get_ident()

    def renew() -> None:
        while not done.wait(RENEW_S):
            with contextlib.suppress(PausedError):  # the next one may get through
                current = _read(file, patience_s=0)
                if current is not None and current.nonce != own.nonce:
                    LOST.add(file)
                    signal.pthread_kill(waiting, signal.SIGINT)
                    return
                _write(file, own.model_copy(update={"renewed": time.time()}), patience_s=0)

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        if is_lost(file):
            raise UserError(
                f"Another process took over run {name}, as this one had not renewed its lock for {EXPIRE_S:.0f} s.",
                "It continues there: resnet-ops runs",
                WORK_FAILED,
            ) from None
        raise
    finally:
        done.set()
        thread.join()
        if not is_lost(file):
            with contextlib.suppress(PausedError):
                files.remove(file)


def _take(file: Path, name: str) -> Lease:
    own = Lease(
        host=socket.gethostname(),
        pid_space=_pid_space(),
        pid=os.getpid(),
        nonce=uuid.uuid4().hex,
        renewed=time.time(),
    )
    current = _read(file, patience_s=0)
    if current is None:
        _create(file, own)
        is_certain = not _create(file, own)  # refused, unless this storage never refuses
    else:
        if current.left_s > 0:
            raise _refusal(current, name)
        _write(file, own, patience_s=0)
        is_certain = False
    if not is_certain:
        # Of two processes that take it at once, the later write wins. If that comes later still, the first process
        # learns of it at its next renewal.
        time.sleep(SETTLE_S)
    current = _read(file, patience_s=0)
    if current is None or current.nonce != own.nonce:
        raise _refusal(current, name)
    return own


def _refusal(current: Lease | None, name: str) -> UserError:
    holder, left_s = (f" (pid {current.pid} on {current.host})", current.left_s) if current else ("", EXPIRE_S)
    return UserError(
        f"Run {name} is being trained by another process{holder}.",
        f"Wait for it to finish, or use another --name. If it was killed, the lock expires in {left_s:.0f} s.",
    )


def _read(file: Path, patience_s: float = files.PATIENCE_S) -> Lease | None:
    try:
        return Lease.model_validate_json(files.read(file, patience_s))
    except (FileNotFoundError, ValidationError):
        return None


def _write(file: Path, lease: Lease, patience_s: float) -> None:
    files.write_atomically(file, lease.model_dump_json().encode(), patience_s)


def _create(file: Path, lease: Lease) -> bool:
    """Write a lease if there is none, and return whether there was none."""
    try:
        content = lease.model_dump_json().encode()
        files.ask(file, lambda storage, key: storage.pipe_file(key, content, mode="create"), patience_s=0)
    except FileExistsError:
        return False
    return True


def _pid_space() -> str:
    """Return an id of the pid namespace: containers on a machine, and machines of the same name, have their own."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + str(Path("/proc/self/ns/pid").readlink())
    except OSError:  # not Linux
        return f"{socket.gethostname()} {sys.platform}"


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
