"""Room for many small jobs at once: the trials of a search. For a single job see `allocation`."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from resnet_ops.cluster_config import ClusterConfig
from resnet_ops.orchestration.allocation import Warn, has_autoscaler, wait_for_room
from resnet_ops.orchestration.connect import LOCAL, cluster_address, connected, local_ray, set_hang_timeouts
from resnet_ops.orchestration.nodes import (
    Node,
    collect_results,
    read_nodes,
    smallest_gpu_bytes,
    smallest_gpu_bytes_of_node,
    start_on_nodes,
    this_node,
)
from resnet_ops.orchestration.placement import (
    Device,
    Layout,
    NoRoomError,
    Request,
    choose_device,
    explain_refusal,
    place_workers,
)
from resnet_ops.stop_request import StopRequest

GPU_MEMORY_SHARE = 0.8  # of a GPU's memory, that the trials on it may take
MOST_PER_GPU = 8  # without NVIDIA's MPS, processes take turns on a GPU: more of them fill no more of its idle time
GPU_UNITS = 10_000  # in which Ray counts a GPU


@dataclass(frozen=True)
class TrialResources:
    """Resources of each trial, as requested by the user; None where they are chosen automatically."""

    cpus: int | None = None
    gpus: float | None = None
    nodes: int = 1
    total_nodes: int | None = None  # to spread trials over; by default all


@dataclass(frozen=True)
class TrialSlots:
    """Nodes that trials run on, the resources that each trial gets of them, and how many trials run at once."""

    nodes: tuple[Node, ...]
    local: bool
    device: Device
    cpus: int
    gpus: float
    max_concurrent: int

    @property
    def remote_nodes(self) -> list[Node]:
        """Return the nodes of the cluster; none if the trials run on this machine."""
        return [] if self.local else list(self.nodes)

    @property
    def resources(self) -> dict[str, float]:
        """Return what Ray Tune reserves for a trial on one node."""
        return {"cpu": self.cpus} | ({"gpu": self.gpus} if self.gpus else {})

    def start_ray(self, stop: StopRequest | None = None) -> contextlib.AbstractContextManager[None]:
        """Start Ray for trials on this machine, once all else is checked; a cluster is connected to already."""
        if not self.local:
            return contextlib.nullcontext()
        return local_ray(int(self.nodes[0].cpus), int(self.nodes[0].gpus), stop)


@dataclass(frozen=True)
class GpuShare:
    """The number of trials that run on each GPU at once, and what limits it; `most` is `MOST_PER_GPU`."""

    trials_per_gpu: int
    limit: Literal["memory", "cores", "trials", "most"]


def smallest_gpu(slots: TrialSlots) -> int:
    """Return the memory of the smallest GPU that trials run on, in bytes; 0 where it is not known.

    Raises:
        UserError: A node does not answer.
    """
    if slots.local:
        return smallest_gpu_bytes()
    nodes = [node for node in slots.nodes if node.gpus >= 1]
    return min(collect_results(start_on_nodes(nodes, smallest_gpu_bytes_of_node)).values(), default=0)


def share_gpus(
    slots: TrialSlots, resources: TrialResources, trials: int, trials_in_memory: int
) -> tuple[TrialSlots, GpuShare]:
    """Run several trials on each GPU: as many as there are trials and CPU cores for, and as fit into its memory.

    Args:
        slots: Room for one trial on each GPU.
        resources: As requested.
        trials: Number of trials that could run at once if there was room.
        trials_in_memory: Number of trials that fit into the memory of the smallest GPU.
    """
    nodes = sorted((node for node in slots.nodes if node.gpus >= 1), key=lambda node: -node.gpus)
    nodes = nodes[: resources.total_nodes]
    gpus = sum(int(node.gpus) for node in nodes)
    # Ray fills a GPU before it takes the next: with too small a share, some would stay empty.
    limits: tuple[tuple[int, Literal["memory", "cores", "trials", "most"]], ...] = (
        (trials_in_memory, "memory"),
        (min(int(node.cpus / slots.cpus / int(node.gpus)) for node in nodes), "cores"),
        (-(-trials // gpus), "trials"),
        (MOST_PER_GPU, "most"),
    )
    count, limit = min(limits, key=lambda pair: pair[0])
    share = GpuShare(max(count, 1), limit)
    fraction = GPU_UNITS // share.trials_per_gpu / GPU_UNITS
    per_node = sorted((_trials_on(node, slots.cpus, fraction) for node in slots.nodes), reverse=True)
    return replace(slots, gpus=fraction, max_concurrent=sum(per_node[: resources.total_nodes])), share


@contextlib.contextmanager
def allocate_trials(
    config: ClusterConfig, resources: TrialResources, warn: Warn, stop: StopRequest | None = None
) -> Iterator[TrialSlots]:
    """Find room for trials, and stay connected to the cluster for a `with` block; `stop` as in `allocate`.

    Raises:
        NoRoomError: Not even one trial fits, or did within the time to wait.
        UserError: The cluster cannot be reached.
    """
    set_hang_timeouts(config.hang_timeout)
    address = cluster_address(config, max(resources.nodes, resources.total_nodes or 1))
    if address == LOCAL:
        yield _find_slots(config, resources, [this_node()], local=True)
        return
    with connected(address, stop):
        yield wait_for_room(
            lambda: _find_slots(config, resources, read_nodes(only_responsive=True), local=False),
            config,
            warn,
            has_autoscaler(),
        )


def _find_slots(config: ClusterConfig, resources: TrialResources, nodes: list[Node], local: bool) -> TrialSlots:
    location = "this machine" if local else "this cluster"
    device = choose_device(config, nodes, "here" if local else "on this cluster")
    if device == "cpu" and resources.gpus:
        raise NoRoomError(
            f"--gpus-per-trial {resources.gpus:g}: {location} has no usable GPU.",
            "Remove it to search on CPUs, or check with resnet-ops doctor.",
            tuple(nodes),
        )
    if resources.nodes > 1:
        request = replace(Request.of(config, device), fewest=resources.nodes, most=resources.nodes)
        max_concurrent = _count_layouts(nodes, request)
        if not max_concurrent:
            refusal = explain_refusal(nodes, request, location, "--nodes-per-trial")
            raise NoRoomError(refusal.cause, refusal.remedy, refusal.nodes)  # not busy: they were counted as free
        return TrialSlots(tuple(nodes), local, device, 0, 0, max_concurrent)
    gpus = (resources.gpus or 1.0) if device == "cuda" else 0.0
    cpus = resources.cpus or 1
    trials_per_node = sorted((_trials_on(node, cpus, gpus) for node in nodes), reverse=True)
    usable = sum(count > 0 for count in trials_per_node)
    if usable:
        if usable < (resources.total_nodes or 1):
            raise NoRoomError(
                f"--nodes {resources.total_nodes} needs {resources.total_nodes} nodes with room for a trial; "
                f"{location} has {usable}.",
                f"Use --nodes {usable}, or add nodes: resnet-ops cluster template.",
                tuple(nodes),
            )
        max_concurrent = sum(trials_per_node[: resources.total_nodes])
    else:
        needs = f"{cpus} CPU core{'s' if cpus > 1 else ''}" + (f" and {gpus:g} GPUs" if gpus else "")
        most = max((node.cpus for node in nodes), default=0)
        remedy = f"Use --cpus-per-trial {most:g}" if most < cpus else f"Use fewer than {gpus:g} GPUs"
        raise NoRoomError(f"A trial needs {needs} on one node; {location} has none.", f"{remedy}.", tuple(nodes))
    return TrialSlots(tuple(nodes), local, device, cpus, gpus, max_concurrent)


def _trials_on(node: Node, cpus: int, gpus: float) -> int:
    by_cpus = int(node.cpus / cpus)
    if not gpus:
        return by_cpus
    on_gpus = int(node.gpus / gpus) if gpus >= 1 else int(node.gpus) * int(1 / gpus + 1e-9)
    return min(by_cpus, on_gpus)


def _count_layouts(nodes: list[Node], request: Request) -> int:
    """Return how many jobs that span several nodes would fit on these nodes at once if they were free."""
    free = [replace(node, free_cpus=node.cpus, free_gpus=node.gpus) for node in nodes]
    count = 0
    while layout := place_workers(free, request):
        free = [_subtract(node, layout) for node in free]
        count += 1
    return count


def _subtract(node: Node, layout: Layout) -> Node:
    workers = sum(count for used, count in layout.assignments if used.id == node.id)
    gpus = workers if layout.device == "cuda" else 0
    return replace(node, free_cpus=node.free_cpus - workers * layout.cpus, free_gpus=node.free_gpus - gpus)
