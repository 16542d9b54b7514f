"""Processes that carry a mark in their environment, and those they started: found, and ended.

A process id is used again once its process is gone; a mark that was made up for one purpose is not.
"""

import contextlib
import os
import signal
import time
from pathlib import Path

TERM_S, KILL_S = 1.0, 10.0  # raylets that lose their head wait for minutes
LOOK_INTERVAL_S = 0.05


def find_processes(mark: str) -> list[int]:
    """The ids of the living processes with `mark` (NAME=VALUE) and their children, as far as they may be looked at."""
    parents: dict[int, int] = {}
    ours: set[int] = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, parent = (process / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
            if state in "ZX":
                continue
            parents[int(process.name)] = int(parent)
            if mark.encode() in (process / "environ").read_bytes().split(b"\0"):
                ours.add(int(process.name))
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return sorted(ours)


def end_processes(mark: str) -> list[int]:
    """Ask the processes with `mark` to end, kill those that do not, and return those that cannot be killed."""
    for number, patience_s in ((signal.SIGTERM, TERM_S), (signal.SIGKILL, KILL_S)):
        deadline, told = time.monotonic() + patience_s, set[int]()
        while (left := find_processes(mark)) and time.monotonic() < deadline:
            for pid in left:
                if number == signal.SIGKILL or pid not in told:
                    _signal(mark, pid, number)
                told.add(pid)
            time.sleep(LOOK_INTERVAL_S)
    return left


def _signal(mark: str, pid: int, number: signal.Signals) -> None:
    """Signal a process only while it is surely still the one that was found: through a handle on it."""
    with contextlib.suppress(OSError):
        handle = os.pidfd_open(pid)
        try:
            if pid in find_processes(mark):
                signal.pidfd_send_signal(handle, number)
        finally:
            os.close(handle)
