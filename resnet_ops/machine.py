"""What this process has of its machine: cores, memory, and the versions of what is installed."""

import contextlib
import os
import platform
from importlib import metadata
from pathlib import Path

import resnet_ops

DISTRIBUTIONS = ("torch", "torchvision", "ray", "onnx", "onnxruntime-gpu", "numpy")  # those that shape a result


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def idle_s() -> float | None:
    """Return the idle seconds of this process's cores since the machine was started, in total; None but on Linux."""
    try:
        lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
    except OSError:
        return None
    names = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    return sum(int(line[4]) + int(line[5]) for line in lines if line[0] in names) / os.sysconf("SC_CLK_TCK")


def memory_bytes() -> int:
    """Return the memory that this process may use: the machine's, or its container's."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # "max"
            return min(total, int(Path(limit).read_text()))
    return total


def versions() -> dict[str, str]:
    """Return the versions of Python, of resnet-ops and of the distributions that shape a result."""
    # Of resnet-ops not the installed version, but the running one: a cluster is sent the submitter's.
    known = {"python": platform.python_version(), "resnet-ops": resnet_ops.__version__}
    for name in DISTRIBUTIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            known[name] = metadata.version(name)
    return known
