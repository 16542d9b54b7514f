"""Find and end processes that have a marker in their environment, and those that they started.

Process ids are reused; a random marker, an environment variable NAME=VALUE, is not.
"""

import contextlib
import os
import signal
import time
from pathlib import Path

TERM_S, KILL_S = 1.0, 10.0  # raylets that lose their head node wait for minutes
POLL_INTERVAL_S = 0.05


def find_processes(marker: str) -> list[int]:
    """Return the ids of the running processes with `marker` and of their descendants, as far as they are readable."""
    parents: dict[int, int] = {}
    pids: set[int] = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, parent = (process / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
            if state in "ZX":
                continue
            parents[int(process.name)] = int(parent)
            if marker.encode() in (process / "environ").read_bytes().split(b"\0"):
                pids.add(int(process.name))
    while more := {pid for pid, parent in parents.items() if parent in pids} - pids:
        pids |= more
    return sorted(pids)


def end_processes(marker: str) -> list[int]:
    """Terminate the processes with `marker`, kill those that do not end, and return those that remain."""
    for number, timeout_s in ((signal.SIGTERM, TERM_S), (signal.SIGKILL, KILL_S)):
        deadline, signalled = time.monotonic() + timeout_s, set[int]()
        while (left := find_processes(marker)) and time.monotonic() < deadline:
            for pid in left:
                if number == signal.SIGKILL or pid not in signalled:
                    _signal(marker, pid, number)
                signalled.add(pid)
            time.sleep(POLL_INTERVAL_S)
    return left


def _signal(marker: str, pid: int, number: signal.Signals) -> None:
    """Send a signal through a handle on the process, which still has the marker: its id may have been reused."""
    with contextlib.suppress(OSError):
        handle = os.pidfd_open(pid)
        try:
            if pid in find_processes(marker):
                signal.pidfd_send_signal(handle, number)
        finally:
            os.close(handle)
