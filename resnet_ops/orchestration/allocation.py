"""From a configuration to a place to work: which cluster, does it fit, does it have to wait.

`placed` finds room for one job, `allocate_trials` for many small ones at once: the trials of a search.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

from resnet_ops.config import ClusterConfig
from resnet_ops.errors import UserError
from resnet_ops.orchestration import ray_internals
from resnet_ops.orchestration.connect import LOCAL, cluster_address, connected, local_ray, set_hang_timeouts
from resnet_ops.orchestration.placement import (
    Device,
    Layout,
    Node,
    NoRoomError,
    Request,
    choose_device,
    explain_refusal,
    place_workers,
    read_nodes,
    this_node,
)

AUTOSCALER_WAIT_S = RECOVER_S = 600.0  # for machines, at the start or after a loss, where --wait does not say
GRACE_S = 10.0
POLL_INTERVAL_S = 0.3
Warn = Callable[[str], None]
T = TypeVar("T")


@dataclass(frozen=True)
class Placement:
    """Where a job goes: on this machine alone, or on the cluster that this process is part of."""

    request: Request
    layout: Layout
    local: bool

    @property
    def in_process(self) -> bool:
        """Whether the one worker is this very process: 2 s from the shell to its first step instead of 15."""
        return self.local and self.layout.workers == 1

    @property
    def remote_nodes(self) -> list[Node]:
        """The machines of a cluster that it goes to; none where it stays on this one."""
        return [] if self.local else [node for node, _ in self.layout.assignments]

    def start_ray(self) -> contextlib.AbstractContextManager[None]:
        """Ray to run the workers on; of this machine's own it is started only now, when all else is checked."""
        if not self.local:
            return contextlib.nullcontext()
        ((node, workers),) = self.layout.assignments
        gpus = workers if self.layout.device == "cuda" else 0
        return local_ray(max(workers, int(node.cpus)), gpus)


@contextlib.contextmanager
def allocate(config: ClusterConfig, warn: Warn) -> Iterator[Placement]:
    """Find a place for a job, and be connected to it for the length of a `with` block.

    Raises:
        NoRoomError: It does not fit, or did not in the time that it may wait.
        UserError: The cluster cannot be reached.
    """
    set_hang_timeouts(config.hang_timeout)
    address = cluster_address(config, config.nodes.most)
    if address == LOCAL:
        node = this_node()
        request = Request.of(config, choose_device(config, [node], "here"))
        layout = place_workers([node], request)
        if layout is None:
            raise _explain_local_refusal(node, request)
        yield Placement(request, layout, local=True)
        return
    with _connect(config, address):
        nodes = read_nodes(only_responsive=True)
        request = Request.of(config, choose_device(config, nodes, "on this cluster"))
        with _request_scaling(request, nodes) as autoscales:
            layout = place_workers(nodes, request) or wait_for_room(
                lambda: _place_or_refuse(request), config, warn, autoscales
            )
            yield Placement(request, layout, local=False)


def _explain_local_refusal(node: Node, request: Request) -> NoRoomError:
    if request.fewest > 1:
        return explain_refusal([node], request, "this machine alone")
    option, unit, has = (
        ("--gpus-per-node", "GPU", node.gpus)
        if request.device == "cuda"
        else ("--workers-per-node", "CPU core", node.cpus)
    )
    return NoRoomError(
        f"{option} {request.workers} needs {request.workers} {unit}s; this machine has {has:g}.",
        f"Use at most {has:g}" + (", or train with --device cpu." if request.device == "cuda" else "."),
    )


@contextlib.contextmanager
def _connect(config: ClusterConfig, address: str) -> Iterator[None]:
    """A job for many machines, no cluster named and none here: that is one machine, and too few."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(connected(address))
        except UserError as error:
            if config.cluster is None and config.nodes.fewest > 1:
                raise NoRoomError(f"--nodes {config.nodes} needs a cluster. {error.cause}", error.remedy) from error
            raise
        yield


def _place_or_refuse(request: Request) -> Layout:
    nodes = read_nodes(only_responsive=True)
    layout = place_workers(nodes, request)
    if layout is None:
        raise explain_refusal(nodes, request)
    return layout


@dataclass(frozen=True)
class TrialResources:
    """What each trial gets, as a user asked for it; None where we are to choose."""

    cpus: int | None = None
    gpus: float | None = None
    nodes: int = 1
    total_nodes: int | None = None  # to spread trials over; by default all there are


@dataclass(frozen=True)
class TrialSlots:
    """Where trials run: the machines, each trial's part of them, and how many run at once."""

    nodes: tuple[Node, ...]
    local: bool
    device: Device
    cpus: int
    gpus: float
    max_concurrent: int

    @property
    def remote_nodes(self) -> list[Node]:
        """The machines of a cluster; none where it is this one alone."""
        return [] if self.local else list(self.nodes)

    @property
    def resources(self) -> dict[str, float]:
        """What Ray Tune reserves for a trial on one machine."""
        return {"cpu": self.cpus} | ({"gpu": self.gpus} if self.gpus else {})

    def start_ray(self) -> contextlib.AbstractContextManager[None]:
        """Ray to run them on; of this machine's own it is started only now, when all else is checked."""
        if not self.local:
            return contextlib.nullcontext()
        return local_ray(int(self.nodes[0].cpus), int(self.nodes[0].gpus))


@contextlib.contextmanager
def allocate_trials(config: ClusterConfig, resources: TrialResources, warn: Warn) -> Iterator[TrialSlots]:
    """Find room for trials, and be connected to it for the length of a `with` block.

    Raises:
        NoRoomError: Not one trial will ever fit.
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
    where = "this machine" if local else "this cluster"
    device = choose_device(config, nodes, "here" if local else "on this cluster")
    if device == "cpu" and resources.gpus:
        raise NoRoomError(
            f"--gpus-per-trial {resources.gpus:g}: {where} has no usable GPU.",
            "Remove it to search on CPUs, or check with resnet-ops doctor.",
            tuple(nodes),
        )
    if resources.nodes > 1:
        request = replace(Request.of(config, device), fewest=resources.nodes, most=resources.nodes)
        max_concurrent = _count_layouts(nodes, request)
        if not max_concurrent:
            raise explain_refusal(nodes, request, where, "--nodes-per-trial")
        return TrialSlots(tuple(nodes), local, device, 0, 0, max_concurrent)
    gpus = (resources.gpus or 1.0) if device == "cuda" else 0.0
    cpus = resources.cpus or 1
    fitting = sorted((_trials_on(node, cpus, gpus) for node in nodes), reverse=True)
    able = sum(count > 0 for count in fitting)
    if able:
        if able < (resources.total_nodes or 1):
            raise NoRoomError(
                f"--nodes {resources.total_nodes} needs {resources.total_nodes} nodes with room for a trial; {where} has {able}.",
                f"Use --nodes {able}, or add nodes: resnet-ops cluster template.",
                tuple(nodes),
            )
        max_concurrent = sum(fitting[: resources.total_nodes])
    else:
        needs = f"{cpus} CPU core{'s' if cpus > 1 else ''}" + (f" and {gpus:g} GPUs" if gpus else "")
        most = max((node.cpus for node in nodes), default=0)
        remedy = f"Use --cpus-per-trial {most:g}" if most < cpus else f"Use fewer than {gpus:g} GPUs"
        raise NoRoomError(f"A trial needs {needs} on one node; {where} has no such node.", f"{remedy}.", tuple(nodes))
    return TrialSlots(tuple(nodes), local, device, cpus, gpus, max_concurrent)


def _trials_on(node: Node, cpus: int, gpus: float) -> int:
    by_cpus = int(node.cpus / cpus)
    if not gpus:
        return by_cpus
    on_gpus = int(node.gpus / gpus) if gpus >= 1 else int(node.gpus) * int(1 / gpus + 1e-9)
    return min(by_cpus, on_gpus)


def _count_layouts(nodes: list[Node], request: Request) -> int:
    """How often a job on several machines fits on all of them, were they empty."""
    left = [replace(node, free_cpus=node.cpus, free_gpus=node.gpus) for node in nodes]
    count = 0
    while layout := place_workers(left, request):
        left = [_subtract(node, layout) for node in left]
        count += 1
    return count


def _subtract(node: Node, layout: Layout) -> Node:
    workers = sum(count for taken, count in layout.assignments if taken.id == node.id)
    gpus = workers if layout.device == "cuda" else 0
    return replace(node, free_cpus=node.free_cpus - workers * layout.cpus, free_gpus=node.free_gpus - gpus)


def wait_for_room(look: Callable[[], T], config: ClusterConfig, warn: Warn, autoscales: bool) -> T:
    """Return what `look` finds, once it finds room: at once, or within the time that --wait or an autoscaler is given.

    Raises:
        NoRoomError: There is none in that time.
    """
    timer = RetryTimer((AUTOSCALER_WAIT_S if autoscales else 0.0) if config.wait is None else config.wait, warn)
    while True:
        try:
            return look()
        except NoRoomError as refusal:
            timer.wait(refusal)


class RetryTimer:
    """How long room is waited for, between one look and the next."""

    def __init__(self, wait_s: float, warn: Warn) -> None:
        self.wait_s, self.warn = wait_s, warn
        self.since: float | None = None
        self.message = ""

    def wait(self, refusal: NoRoomError) -> None:
        """Wait until the next look is due, and say what is missing where that has changed.

        Raises:
            NoRoomError: It was waited for long enough.
        """
        now = time.monotonic()
        self.since = self.since or now
        # Machines that are merely busy may be so with a job that was killed a moment ago.
        wait_s = max(self.wait_s, GRACE_S) if refusal.busy else self.wait_s
        if now - self.since >= wait_s:
            raise refusal
        if self.message != refusal.missing:
            self.message = refusal.missing
            self.warn(f"{self.message}; waiting up to {wait_s:.0f} s.")
        time.sleep(POLL_INTERVAL_S)

    def renew(self) -> None:
        """There was room; what is waited for next is given the whole time again."""
        self.since = None


def has_autoscaler() -> bool:
    """Whether something may add machines to the cluster that this process is connected to.

    Every cluster's head runs Ray's monitor, which reports machines by their type; where nobody has
    defined types it makes one up for each machine.
    """
    return any(name and not name.startswith("node_") for name in ray_internals.node_types())


@contextlib.contextmanager
def _request_scaling(request: Request, nodes: Iterable[Node]) -> Iterator[bool]:
    """Ask an autoscaler, if there is one, for as many machines as the job may take, until it ends.

    Yields:
        Whether there is one.
    """
    from ray.autoscaler.sdk import request_resources

    autoscales = has_autoscaler()
    if not autoscales:
        yield False
        return
    able = [node for node in nodes if request.workers_on(node)]
    workers = request.workers or (max((request.workers_on(node) for node in able), default=1))
    cores = request.cpus or min((request.cores_on(node) for node in able), default=1)
    bundle = {"CPU": int(cores * workers) or 1} | ({"GPU": workers} if request.device == "cuda" else {})
    request_resources(bundles=[bundle] * request.most)
    try:
        yield True
    finally:
        request_resources(bundles=[])  # or they are kept, and paid for, when the job is long over
