"""Allocation of nodes to a job: which cluster it runs on, whether it fits there, how long to wait until it does.

For many small jobs at once, the trials of a search, see `trial_slots`.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from resnet_ops.cluster_config import ClusterConfig
from resnet_ops.errors import UserError
from resnet_ops.orchestration import ray_internals
from resnet_ops.orchestration.connect import LOCAL, cluster_address, connected, local_ray, set_hang_timeouts
from resnet_ops.orchestration.nodes import Node, read_nodes, this_node
from resnet_ops.orchestration.placement import (
    Layout,
    NoRoomError,
    Request,
    choose_device,
    explain_refusal,
    place_workers,
)
from resnet_ops.stop_request import StopRequest

AUTOSCALER_WAIT_S = RECOVER_S = 600.0  # to wait for nodes at the start or after a loss, unless --wait is given
GRACE_S = 10.0
POLL_INTERVAL_S = 0.3
Warn = Callable[[str], None]
T = TypeVar("T")


@dataclass(frozen=True)
class Placement:
    """Nodes that a job runs on: this machine alone, or some of the cluster that this process is connected to."""

    request: Request
    layout: Layout
    local: bool

    @property
    def in_process(self) -> bool:
        """Return whether the only worker is this process: 2 s from the shell to its first step instead of 15."""
        return self.local and self.layout.workers == 1

    @property
    def remote_nodes(self) -> list[Node]:
        """Return the nodes of the cluster that it runs on; none if it runs on this machine."""
        return [] if self.local else [node for node, _ in self.layout.assignments]

    def start_ray(self, stop: StopRequest | None = None) -> contextlib.AbstractContextManager[None]:
        """Start Ray for workers on this machine, once all else is checked; a cluster is connected to already."""
        if not self.local:
            return contextlib.nullcontext()
        ((node, workers),) = self.layout.assignments
        gpus = workers if self.layout.device == "cuda" else 0
        return local_ray(max(workers, int(node.cpus)), gpus, stop)


@contextlib.contextmanager
def allocate(config: ClusterConfig, warn: Warn, stop: StopRequest | None = None) -> Iterator[Placement]:
    """Find room for a job, and stay connected to the cluster for the length of a `with` block.

    Args:
        config: What the job asks for.
        warn: Receives what is waited for.
        stop: Ends the process where the cluster's head is lost.

    Raises:
        NoRoomError: It does not fit, or did not within the time to wait.
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
    with _connect(config, address, stop):
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
def _connect(config: ClusterConfig, address: str, stop: StopRequest | None) -> Iterator[None]:
    """Connect to a cluster; if none was named and none runs here, a job for several nodes has too few."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(connected(address, stop))
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


def wait_for_room(attempt: Callable[[], T], config: ClusterConfig, warn: Warn, autoscales: bool) -> T:
    """Return what `attempt` returns, repeating it while it raises NoRoomError.

    Args:
        attempt: Allocates the room.
        config: Its `wait` limits the time, which by default is 10 minutes with an autoscaler and none without.
        warn: Receives what is missing, whenever that changes.
        autoscales: Whether an autoscaler may add nodes.

    Raises:
        NoRoomError: There was no room in that time.
    """
    timer = RetryTimer((AUTOSCALER_WAIT_S if autoscales else 0.0) if config.wait is None else config.wait, warn)
    while True:
        try:
            return attempt()
        except NoRoomError as refusal:
            timer.wait(refusal)


class RetryTimer:
    """Waits between attempts to allocate room, up to a limit, and reports what is missing."""

    def __init__(self, wait_s: float, warn: Warn) -> None:
        self.wait_s, self.warn = wait_s, warn
        self.started_at: float | None = None
        self.last_message = ""

    def wait(self, refusal: NoRoomError) -> None:
        """Wait until the next attempt is due, and report what is missing if that has changed.

        Raises:
            NoRoomError: The time is over.
        """
        now = time.monotonic()
        self.started_at = self.started_at or now
        # Nodes that are only busy may be so with a job that was killed a moment ago.
        wait_s = max(self.wait_s, GRACE_S) if refusal.busy else self.wait_s
        if now - self.started_at >= wait_s:
            raise refusal
        if self.last_message != refusal.missing:
            self.last_message = refusal.missing
            self.warn(f"{self.last_message}; waiting up to {wait_s:.0f} s.")
        time.sleep(POLL_INTERVAL_S)

    def reset(self) -> None:
        """Give the next wait the whole time again, after an attempt that succeeded."""
        self.started_at = None


def has_autoscaler() -> bool:
    """Return whether an autoscaler may add nodes to the cluster that this process is connected to.

    Every cluster's head runs Ray's monitor, which reports nodes by their type; if no types are defined it makes
    one up for each node.
    """
    return any(name and not name.startswith("node_") for name in ray_internals.node_types())


@contextlib.contextmanager
def _request_scaling(request: Request, nodes: Iterable[Node]) -> Iterator[bool]:
    """Ask an autoscaler, if there is one, for as many nodes as the job may use, until it ends.

    Yields:
        Whether there is one.
    """
    from ray.autoscaler.sdk import request_resources

    autoscales = has_autoscaler()
    if not autoscales:
        yield False
        return
    usable = [node for node in nodes if request.workers_on(node)]
    workers = request.workers or (max((request.workers_on(node) for node in usable), default=1))
    cores = request.cpus or min((request.cores_on(node) for node in usable), default=1)
    bundle = {"CPU": int(cores * workers) or 1} | ({"GPU": workers} if request.device == "cuda" else {})
    request_resources(bundles=[bundle] * request.most)
    try:
        yield True
    finally:
        request_resources(bundles=[])  # or Ray keeps the nodes, and someone pays, after the job has ended
