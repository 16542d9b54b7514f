"""Who may write to a run: one process at a time, on this machine or on any.

On a disk it is a file lock, which the system lets go of however the process ends. Object stores have no locks:
there the holder writes a lease and renews it, and one that was not renewed for a while is anybody's.
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
EXPIRE_S = 60.0  # six renewals: an outage of storage shorter than this loses no run
SETTLE_S = 1.0  # what a write needs to be seen by all, where a storage cannot refuse the second writer


LOST: set[Path] = set()  # leases that this process held, until another took them


class Lease(BaseModel):
    """Who holds a run in a bucket. `renewed` is in seconds since 1970 by the holder's clock."""

    model_config = ConfigDict(frozen=True)

    host: str
    pid_space: str
    pid: int
    nonce: str
    renewed: float

    @property
    def left_s(self) -> float:
        """Seconds until it is anybody's; none where its holder was a process of this machine and is gone."""
        if self.pid_space == _pid_space() and not _lives(self.pid):
            return 0.0
        return max(0.0, self.renewed + EXPIRE_S - time.time())


@contextlib.contextmanager
def hold(file: Path, name: str) -> Iterator[None]:
    """Hold the run called `name` for the length of a `with` block.

    Raises:
        UserError: Another process holds it, or took it meanwhile.
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
def exclusive(file: Path) -> Iterator[None]:
    """Wait until no other process of this machine is in such a `with` block on this file.

    Where the file system knows no locks nobody waits: what is done in the block must be right all the same.
    """
    with file.open("w") as opened:
        with contextlib.suppress(OSError):
            fcntl.flock(opened, fcntl.LOCK_EX)
        yield


def is_held(file: Path) -> bool:
    """Whether a living process holds the run."""
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
    """Whether another process took a lease that this one held."""
    return file in LOST


@contextlib.contextmanager
def _leased(file: Path, name: str) -> Iterator[None]:
    try:
        mine = _take(file, name)
    except PausedError as error:  # nothing was begun that could go on later
        raise error.copy_with(exit_code=BAD_REQUEST) from None
    LOST.discard(file)  # of an earlier time in this process
    done, waiting = threading.Event(), threading.get_ident()

    def renew() -> None:
        while not done.wait(RENEW_S):
            with contextlib.suppress(PausedError):  # the next one may get through
                there = _read(file, patience_s=0)
                if there is not None and there.nonce != mine.nonce:
                    LOST.add(file)
                    signal.pthread_kill(waiting, signal.SIGINT)
                    return
                _write(file, mine.model_copy(update={"renewed": time.time()}), patience_s=0)

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
    mine = Lease(
        host=socket.gethostname(),
        pid_space=_pid_space(),
        pid=os.getpid(),
        nonce=uuid.uuid4().hex,
        renewed=time.time(),
    )
    there = _read(file, patience_s=0)
    if there is None:
        _create(file, mine)
        exclusive = not _create(file, mine)  # refused, unless this storage refuses nobody
    else:
        if there.left_s > 0:
            raise _refuse(there, name)
        _write(file, mine, patience_s=0)
        exclusive = False
    if not exclusive:
        # Of two who took it at once, the later one has it. Should its write come later still, the first one
        # is told at its next renewal.
        time.sleep(SETTLE_S)
    there = _read(file, patience_s=0)
    if there is None or there.nonce != mine.nonce:
        raise _refuse(there, name)
    return mine


def _refuse(there: Lease | None, name: str) -> UserError:
    who, left_s = (f" (pid {there.pid} on {there.host})", there.left_s) if there else ("", EXPIRE_S)
    return UserError(
        f"Run {name} is being trained by another process{who}.",
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
    """Write a lease where there is none; false where there is one already."""
    try:
        content = lease.model_dump_json().encode()
        files.ask(file, lambda storage, key: storage.pipe_file(key, content, mode="create"), patience_s=0)
    except FileExistsError:
        return False
    return True


def _pid_space() -> str:
    """Where a process number means the same process: containers on a machine, and machines of one name, differ."""
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
