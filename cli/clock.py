"""When the user pressed enter, and how not to keep them waiting."""

import contextlib
import gc
import os
import time
from collections.abc import Iterator
from pathlib import Path


def process_started_at() -> float:
    """When this process began, in seconds since 1970: before Python had read its first line."""
    try:
        with Path("/proc/self/stat").open() as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
        since_boot = time.clock_gettime(time.CLOCK_BOOTTIME)
        return time.time() - (since_boot - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, AttributeError, IndexError, ValueError):  # not Linux: a few hundredths late
        return time.time() - time.process_time()


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Collect no garbage while torch and Ray are imported.

    They make a million objects that stay: looking through them again and again costs 0.4 s at
    the start and, unless they are set apart, as much at the end.
    """
    gc.disable()
    yield
    gc.freeze()
    gc.enable()
