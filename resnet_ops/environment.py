"""The environment that processes of ours begin with: where they import from, and whom they reach without a proxy."""

import contextlib
import os
import pwd
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

LOOPBACK = ("localhost", "127.0.0.1", "::1")
PROXIES = ("http_proxy", "https_proxy", "all_proxy")
SAFE_PATH = "PYTHONSAFEPATH"


def leave_current_folder() -> None:
    """Import nothing more from the current folder, where `python -m` looks first: it may be a download."""
    if not sys.flags.safe_path:
        del sys.path[0]


def clean_python_path() -> None:
    """Take the current folder out of PYTHONPATH, where an empty part stands for it: PYTHONPATH=$PYTHONPATH:/mine."""
    listed = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    kept = [folder for folder in listed if folder not in ("", ".")]
    if listed in ([""], kept):
        return
    os.environ["PYTHONPATH"] = os.pathsep.join(kept)
    with contextlib.suppress(OSError, ValueError):  # the folder is gone, or not there
        sys.path.remove(str(Path.cwd()))


def safe_path() -> contextlib.AbstractContextManager[None]:
    """Have `python -c` and `-m` that are started within a `with` block import from no current folder."""
    return with_variable(SAFE_PATH, "1")


@contextlib.contextmanager
def with_variable(name: str, value: str | None) -> Iterator[None]:
    """Set an environment variable, or unset it with None, for the length of a `with` block."""
    before = os.environ.get(name)
    _set(name, value)
    try:
        yield
    finally:
        _set(name, before)


def _set(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def prepare(warn: Callable[[str], None]) -> None:
    """Set what this process and those that it starts begin with: imports from no current folder, no proxy to itself.

    Args:
        warn: Called with what the user should know.
    """
    os.environ[SAFE_PATH] = "1"  # of `python -c` and `-m`, as multiprocessing, torch and Ray call them
    reach_loopback_directly()
    if not _user_is_known():
        os.environ.setdefault("LOGNAME", f"user-{os.getuid()}")
        if not os.access(os.environ.get("HOME", ""), os.W_OK):  # unset, or / as on OpenShift
            os.environ["HOME"] = _own_folder()
            folder = os.environ["HOME"]
            warn(f"User {os.getuid()} has no home folder of its own: caches go to {folder}. HOME names another.")


def _user_is_known() -> bool:
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:  # of a container that runs as any user
        return False
    return True


def _own_folder() -> str:
    """Return a temporary folder of this user that later commands find again, unless another user has taken its name."""
    folder = Path(tempfile.gettempdir(), f"resnet-ops-{os.getuid()}")
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid():
        return str(folder)
    return tempfile.mkdtemp(prefix="resnet-ops-")


def reach_loopback_directly() -> None:
    """Have no client of this process, or of one that it starts, ask a proxy for this machine."""
    if not any(os.environ.get(name) or os.environ.get(name.upper()) for name in PROXIES):
        return
    listed = [host.strip() for name in ("no_proxy", "NO_PROXY") for host in os.environ.get(name, "").split(",")]
    hosts = ",".join(dict.fromkeys((*filter(None, listed), *LOOPBACK)))
    os.environ.update(no_proxy=hosts, NO_PROXY=hosts)
