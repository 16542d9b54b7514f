"""The environment that processes of ours begin with: where they import from, and whom they reach without a proxy."""

import contextlib
import os
import sys
from collections.abc import Iterator

LOOPBACK = ("localhost", "127.0.0.1", "::1")
PROXIES = ("http_proxy", "https_proxy", "all_proxy")
SAFE_PATH = "PYTHONSAFEPATH"


def leave_current_folder() -> None:
    """Import nothing more from the current folder, where `python -m` looks first: it may be a download."""
    if not sys.flags.safe_path:
        del sys.path[0]


@contextlib.contextmanager
def safe_path() -> Iterator[None]:
    """Have `python -c` and `-m` that are started within a `with` block import from no current folder."""
    before = os.environ.get(SAFE_PATH)
    os.environ[SAFE_PATH] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[SAFE_PATH]
        else:
            os.environ[SAFE_PATH] = before


def prepare() -> None:
    """Set what this process and those that it starts begin with: imports from no current folder, no proxy to itself."""
    os.environ[SAFE_PATH] = "1"  # of `python -c` and `-m`, as multiprocessing, torch and Ray call them
    # An empty part stands for the current folder; `PYTHONPATH=$PYTHONPATH:/mine` makes one.
    listed = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    kept = [folder for folder in listed if folder not in ("", ".")]
    if kept:
        os.environ["PYTHONPATH"] = os.pathsep.join(kept)
    else:
        os.environ.pop("PYTHONPATH", None)
    reach_loopback_directly()


def reach_loopback_directly() -> None:
    """Have no client of this process, or of one that it starts, ask a proxy for this machine."""
    if not any(os.environ.get(name) or os.environ.get(name.upper()) for name in PROXIES):
        return
    listed = [host.strip() for name in ("no_proxy", "NO_PROXY") for host in os.environ.get(name, "").split(",")]
    hosts = ",".join(dict.fromkeys((*filter(None, listed), *LOOPBACK)))
    os.environ.update(no_proxy=hosts, NO_PROXY=hosts)
