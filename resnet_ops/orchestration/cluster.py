"""From a configuration to a place to work: which cluster, does the job fit, does it have to wait."""

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from resnet_ops.config import TrainConfig
from resnet_ops.errors import UserError
from resnet_ops.orchestration.connect import LOCAL, address_of, connected, local_ray, set_patience
from resnet_ops.orchestration.placement import (
    Layout,
    Node,
    NoRoomError,
    Request,
    choose,
    choose_device,
    here,
    refuse,
    survey,
)

AUTOSCALER_WAIT_S = 600.0
GRACE_S = 10.0
LOOK_INTERVAL_S = 0.5
Notice = Callable[[str], None]
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
    def elsewhere(self) -> list[Node]:
        """The machines of a cluster that it goes to; none where it stays on this one."""
        return [] if self.local else [node for node, _ in self.layout.on]

    def ray(self) -> contextlib.AbstractContextManager[None]:
        """Ray to run the workers on; of this machine's own it is started only now, when all else is checked."""
        if not self.local:
            return contextlib.nullcontext()
        ((node, workers),) = self.layout.on
        gpus = workers if self.layout.device == "cuda" else 0
        return local_ray(max(workers, int(node.cpus)), gpus)


@contextlib.contextmanager
def placed(config: TrainConfig, notice: Notice) -> Iterator[Placement]:
    """Find a place for a job, and be connected to it for the length of a `with` block.

    Raises:
        NoRoomError: It does not fit, or did not in the time that it may wait.
        UserError: The cluster cannot be reached.
    """
    set_patience(config)
    address = address_of(config)
    if address == LOCAL:
        node = here()
        request = Request.of(config, choose_device(config, [node], "here"))
        layout = choose([node], request)
        if layout is None:
            raise _refuse_here(node, request)
        yield Placement(request, layout, local=True)
        return
    with _connected_or_too_small(config, address):
        nodes = survey(only_answering=True)
        request = Request.of(config, choose_device(config, nodes, "on this cluster"))
        with _growing(request, nodes) as autoscales:
            layout = choose(nodes, request) or _wait_for_room(config, request, notice, autoscales)
            yield Placement(request, layout, local=False)


def _refuse_here(node: Node, request: Request) -> NoRoomError:
    if request.fewest > 1:
        return refuse([node], request, "this machine alone")
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
def _connected_or_too_small(config: TrainConfig, address: str) -> Iterator[None]:
    """A job for many machines, no cluster named and none here: that is one machine, and too few."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(connected(address))
        except UserError as error:
            if config.cluster is None and config.nodes.fewest > 1:
                raise NoRoomError(f"--nodes {config.nodes} needs a cluster. {error.cause}", error.remedy) from error
            raise
        yield


def _wait_for_room(config: TrainConfig, request: Request, notice: Notice, autoscales: bool) -> Layout:
    wait_s = (AUTOSCALER_WAIT_S if autoscales else 0.0) if config.wait is None else config.wait
    started, told = time.monotonic(), ""
    while True:
        nodes = survey(only_answering=True)
        layout = choose(nodes, request)
        if layout is not None:
            return layout
        up = sum(bool(request.workers_on(node)) for node in nodes)
        # Machines that are merely busy may be so with a job that was killed a moment ago.
        patience_s = max(wait_s, GRACE_S) if up >= request.fewest else wait_s
        if time.monotonic() - started >= patience_s:
            raise refuse(nodes, request)
        if told != (told := f"{min(up, request.fewest)} of {request.fewest} nodes up"):
            notice(f"{told}{', some of them busy' if up >= request.fewest else ''}; waiting up to {patience_s:.0f} s.")
        time.sleep(LOOK_INTERVAL_S)


def waited_for(look: Callable[[], T], config: TrainConfig, notice: Notice) -> T:
    """What `look` finds, once it finds room: at once, or within the time that an autoscaler or --wait is given.

    Raises:
        NoRoomError: There is none in that time.
    """
    wait_s = (AUTOSCALER_WAIT_S if has_autoscaler() else 0.0) if config.wait is None else config.wait
    deadline, told = time.monotonic() + wait_s, False
    while True:
        try:
            return look()
        except NoRoomError as refusal:
            if time.monotonic() >= deadline:
                raise
            if not told:
                notice(f"{refusal.cause} Waiting up to {wait_s:.0f} s.")
            told = True
        time.sleep(LOOK_INTERVAL_S)


def has_autoscaler() -> bool:
    """Whether something may add machines to the cluster that this process is connected to.

    Every cluster's head runs Ray's monitor, which reports machines by their type; where nobody has
    defined types it makes one up for each machine.
    """
    import ray
    from ray.autoscaler.v2.sdk import get_cluster_status
    from ray.autoscaler.v2.utils import is_autoscaler_v2
    from ray.experimental.internal_kv import _internal_kv_get

    worker: Any = ray._private.worker.global_worker
    report = json.loads(_internal_kv_get("__autoscaling_status") or "{}").get("autoscaler_report") or {}
    types = {*(report.get("active_nodes") or {}), *(report.get("node_type_mapping") or {}).values()}
    if is_autoscaler_v2(fetch_from_server=True, gcs_client=worker.gcs_client):
        status = get_cluster_status(ray.get_runtime_context().gcs_address)
        types |= {node.ray_node_type_name for node in (*status.active_nodes, *status.idle_nodes)}
    return any(name and not name.startswith("node_") for name in types)


@contextlib.contextmanager
def _growing(request: Request, nodes: Iterable[Node]) -> Iterator[bool]:
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
