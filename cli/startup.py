"""The start of a command: when it began, what is refused before torch and Ray are imported, and a faster import."""

import contextlib
import gc
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from resnet_ops import files, runs
from resnet_ops.architectures import parse_name
from resnet_ops.config import AUTO, HUB, IMAGENET_WEIGHTS, TrainConfig
from resnet_ops.machine import cores, idle_s


def process_started_at() -> float:
    """Return when this process began, in seconds since 1970: before Python had read its first line."""
    try:
        with Path("/proc/self/stat").open() as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
        since_boot = time.clock_gettime(time.CLOCK_BOOTTIME)
        return time.time() - (since_boot - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, AttributeError, IndexError, ValueError):  # not Linux: a few hundredths of a second late
        return time.time() - time.process_time()


def check_run(config: TrainConfig, resume: str | None, overwrite: bool) -> None:
    """Check the network of a new run, that its name is free and its images are there; or that the run to resume is.

    No bucket is asked.

    Raises:
        UserError: It is not.
    """
    if resume is None and config.model != AUTO:
        parse_name(config.model)
    if files.is_remote(config.runs_dir):
        return
    if resume is not None:
        runs.find(config.runs_dir, resume)
        return
    runs.check_new(config.runs_dir, config.name, overwrite, waits=bool(config.wait))
    from resnet_ops.data import discovery

    if discovery.find_missing(config):
        discovery.discover(config)  # says what is not there


def check_network(name: str, model: str | None, runs_dir: Path) -> None:
    """Check that a network is there: a path or a run; what is published or in a bucket is looked for later.

    Raises:
        UserError: There is no such path, and no run of that name.
    """
    is_published = model is not None or name == IMAGENET_WEIGHTS or name.startswith(HUB)
    if not is_published and not files.is_remote(runs_dir) and not files.exists(files.to_path(name).expanduser()):
        runs.find(runs_dir, name, [IMAGENET_WEIGHTS])


CpuTimes = tuple[float | None, float, float]  # seconds: idle of all cores, used by this process, of the clock


def cpu_times() -> CpuTimes:
    """Return the idle time of the cores, the CPU time of this process, and the time of a clock."""
    return idle_s(), time.process_time(), time.monotonic()


def yield_cores(since: CpuTimes) -> None:
    """Make OpenMP threads sleep while they wait for each other, if other programs have kept the cores busy.

    By default they spin for milliseconds (libgomp reads this setting when torch is imported): of two training runs on
    the digits at a time, on 2 cores, each then has a twentieth of its speed; if they sleep, a third or more. Larger
    images suffer less (benchmarks/results/together.md). On an idle machine, sleeping costs up to a sixth.
    """
    if (
        "OMP_WAIT_POLICY" not in os.environ
        and "torch" not in sys.modules
        and cores_are_busy(since, cpu_times(), cores())
    ):
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def cores_are_busy(since: CpuTimes, now: CpuTimes, cores: int) -> bool:
    """Return whether other programs have used more than a quarter of the cores; False if that is unknown."""
    (idle, used, began), (idle_now, used_now, ended) = since, now
    if idle is None or idle_now is None:
        return False
    return idle_now - idle + used_now - used < 0.75 * cores * (ended - began)


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Disable garbage collection while torch and Ray are imported.

    They create a million permanent objects: collecting among them costs 0.4 s at the start and, unless they are frozen,
    as much at the end.
    """
    gc.disable()
    yield
    gc.freeze()
    gc.enable()
