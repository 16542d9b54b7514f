"""Processes of this machine, as /proc has them: tests run beside each other, and each looks for its own."""

import contextlib
import os
from pathlib import Path


def descendants(pid: int) -> list[int]:
    """A process and all below it: Ray gives its own groups of their own."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = parent_of(int(stat.parent.name))
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def command_line(pid: int) -> bytes:
    """What it was started with, or calls itself; nothing of a process that is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def ours(word: bytes) -> list[int]:
    """Those below this process that hold `word` in their command lines."""
    return [pid for pid in descendants(os.getpid()) if word in command_line(pid)]
