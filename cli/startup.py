"""When the user pressed enter, and how not to keep them waiting."""

import contextlib
import gc
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from resnet_ops.machine import cores, idle_s


def process_started_at() -> float:
    """When this process began, in seconds since 1970: before Python had read its first line."""
    try:
        with Path("/proc/self/stat").open() as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
        since_boot = time.clock_gettime(time.CLOCK_BOOTTIME)
        return time.time() - (since_boot - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, AttributeError, IndexError, ValueError):  # not Linux: a few hundredths late
        return time.time() - time.process_time()


Moment = tuple[float | None, float, float]


def cpu_snapshot() -> Moment:
    """Seconds: that the cores have idled, that this process has used of them, and of the clock."""
    return idle_s(), time.process_time(), time.monotonic()


def yield_cores(since: Moment) -> None:
    """Have the threads of one layer wait asleep for each other, if other programs have kept the cores busy since then.

    They spin by default (libgomp, which reads this when torch is imported), for milliseconds: of two trainings on the
    digits at a time, on 2 cores, each then has a twentieth of its speed; asleep, a third or more. Larger images suffer
    less (benchmarks/results/together.md). Where there is nobody else it would cost up to a sixth.
    """
    if (
        "OMP_WAIT_POLICY" not in os.environ
        and "torch" not in sys.modules
        and cores_are_busy(since, cpu_snapshot(), cores())
    ):
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def cores_are_busy(since: Moment, now: Moment, cores: int) -> bool:
    """Whether other programs have had more than a quarter of the cores; unknown counts as no."""
    (idle, used, began), (idle_now, used_now, ended) = since, now
    if idle is None or idle_now is None:
        return False
    return idle_now - idle + used_now - used < 0.75 * cores * (ended - began)


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
