"""What this process has of its machine: cores, memory, GPUs, and the versions of what is installed."""

import contextlib
import ctypes
import math
import os
import platform
import re
import resource
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import resnet_ops

ROOT = Path("/")
# Those that shape a result.
DISTRIBUTIONS = ("torch", "torchvision", "ray", "onnx", "onnxruntime-gpu", "onnxruntime", "numpy")


def cores(root: Path = ROOT) -> int:
    """Return the number of CPU cores that this process may use, or has the time of: a quota may allow fewer.

    Args:
        root: Where /proc and /sys are.
    """
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = []
    for group in _control_groups("cpu", root):
        with contextlib.suppress(OSError, ValueError):  # no such file; "max 100000"
            quota, period = map(int, (group / "cpu.max").read_text().split())
            quotas.append(quota / period)
        with contextlib.suppress(OSError, ValueError):
            quota, period = (int((group / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
            quotas += [quota / period] if quota > 0 else []
    return max(1, math.ceil(min([own, *quotas])))


def _control_groups(controller: str, root: Path) -> Iterator[Path]:
    """Yield the folders of this process's control group and of those above it: of cgroup v2, and of v1."""
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            mounted = root / "sys/fs/cgroup"
            mounted = next((each for each in (mounted / controllers, mounted / controller) if each.is_dir()), mounted)
            folder = mounted / group.lstrip("/")
            yield from (folder, *folder.parents[: len(folder.relative_to(mounted).parts)])


def pid_space() -> str:
    """Return an id of the pid namespace: containers on a machine, and machines of the same name, have their own."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + str(Path("/proc/self/ns/pid").readlink())
    except OSError:  # not Linux
        return f"{socket.gethostname()} {sys.platform}"


def idle_s() -> float | None:
    """Return the idle seconds of this process's cores since the machine was started, in total; None but on Linux."""
    try:
        lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
    except OSError:
        return None
    names = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    return sum(int(line[4]) + int(line[5]) for line in lines if line[0] in names) / os.sysconf("SC_CLK_TCK")


def memory_bytes(root: Path = ROOT) -> int:
    """Return the memory that this process may use: the machine's, or less by a limit of it, a container or a job.

    Args:
        root: Where /proc and /sys are.
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    limits += [limit for limit, _ in _memory_limits(root)]
    address_space, _ = resource.getrlimit(resource.RLIMIT_AS)
    return min([*limits, address_space] if address_space != resource.RLIM_INFINITY else limits)


def free_memory_bytes(root: Path = ROOT) -> int:
    """Return the memory that is free for this process: of the machine, and within the limits on it.

    Args:
        root: Where /proc and /sys are.
    """
    lines = (root / "proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    return max(0, min([free, *(limit - used for limit, used in _memory_limits(root))]))


def _memory_limits(root: Path) -> Iterator[tuple[int, int]]:
    """Yield each limit on the memory of this process's control groups, and what of it is used."""
    for group in _control_groups("memory", root):
        for limit, used in (
            ("memory.max", "memory.current"),
            ("memory.high", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            with contextlib.suppress(OSError, ValueError):  # no such file; "max"
                yield int((group / limit).read_text()), int((group / used).read_text())


@dataclass(frozen=True)
class Gpu:
    """A GPU: its name in CUDA_VISIBLE_DEVICES (a number or a UUID), and the bytes of its memory."""

    id: str
    memory_bytes: int


def read_gpus() -> tuple[Gpu, ...]:
    """Return the NVIDIA GPUs that CUDA lets this process use; torch is not needed, only the driver.

    CUDA numbers those in CUDA_VISIBLE_DEVICES from 0, up to the first that does not exist.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ()
    count, device, memory = ctypes.c_int(0), ctypes.c_int(0), ctypes.c_size_t(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return ()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    ids = map(str, range(count.value)) if visible is None else map(str.strip, visible.split(","))
    gpus = []
    for number, name in zip(range(count.value), ids, strict=False):
        if driver.cuDeviceGet(ctypes.byref(device), number) or driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device):
            break
        gpus.append(Gpu(name, memory.value))
    return tuple(gpus)


def release(version: str) -> tuple[int, ...]:
    """Return the numbers of a version: (0, 1, 0) for 0.1.0.dev3."""
    numbers = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, numbers[0].split("."))) if numbers else ()


def versions() -> dict[str, str]:
    """Return the versions of Python, of resnet-ops and of the distributions that shape a result."""
    # Of resnet-ops not the installed version, but the running one: a cluster is sent the submitter's.
    known = {"python": platform.python_version(), "resnet-ops": resnet_ops.__version__}
    for name in DISTRIBUTIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            known[name] = metadata.version(name)
    return known
