"""Room for many small jobs at once: the trials of a search. For a single job see `allocation`."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from resnet_ops.cluster_config import ClusterConfig
from resnet_ops.orchestration.allocation import Warn, has_autoscaler, wait_for_room
from resnet_ops.orchestration.connect import LOCAL, cluster_address, connected, local_ray, set_hang_timeouts
from resnet_ops.orchestration.nodes import Node, read_nodes, this_node
from resnet_ops.orchestration.placement import (
    Device,
    Layout,
    NoRoomError,
    Request,
    choose_device,
    explain_refusal,
    place_workers,
)


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

    def start_ray(self) -> contextlib.AbstractContextManager[None]:
        """Start Ray for trials on this machine, once all else is checked; a cluster is connected to already."""
        if not self.local:
            return contextlib.nullcontext()
        return local_ray(int(self.nodes[0].cpus), int(self.nodes[0].gpus))


@contextlib.contextmanager
def allocate_trials(config: ClusterConfig, resources: TrialResources, warn: Warn) -> Iterator[TrialSlots]:
    """Find room for trials, and stay connected to the cluster for the length of a `with` block.

    Raises:
        NoRoomError: Not even one trial fits, or did within the time to wait.
        UserError: The cluster cannot be reached.
    """
    set_hang_timeouts(config.hang_timeout)
    address = cluster_address(config, max(resources.nodes, resources.total_nodes or 1))
    if address == LOCAL:
        yield _find_slots(config, resources, [this_node()], local=True)
        return
    with connected(address):
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
