"""Room for many small jobs at once: how many trials of a search fit on this machine or on a cluster."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from resnet_ops.config import NodeRange, TrainConfig
from resnet_ops.orchestration.cluster import Notice, waited_for
from resnet_ops.orchestration.connect import LOCAL, address_of, connected, local_ray, set_patience
from resnet_ops.orchestration.placement import (
    Device,
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


@dataclass(frozen=True)
class Share:
    """What each trial gets, as a user asked for it; None where we are to choose."""

    cpus: int | None = None
    gpus: float | None = None
    nodes: int = 1
    machines: int | None = None  # to spread trials over; by default all there are


@dataclass(frozen=True)
class Pool:
    """Where trials run: the machines, each trial's part of them, and how many run at once."""

    nodes: tuple[Node, ...]
    local: bool
    device: Device
    cpus: int
    gpus: float
    at_once: int

    @property
    def elsewhere(self) -> list[Node]:
        """The machines of a cluster; none where it is this one alone."""
        return [] if self.local else list(self.nodes)

    @property
    def resources(self) -> dict[str, float]:
        """What Ray Tune reserves for a trial on one machine."""
        return {"cpu": self.cpus} | ({"gpu": self.gpus} if self.gpus else {})

    def ray(self) -> contextlib.AbstractContextManager[None]:
        """Ray to run them on; of this machine's own it is started only now, when all else is checked."""
        if not self.local:
            return contextlib.nullcontext()
        return local_ray(int(self.nodes[0].cpus), int(self.nodes[0].gpus))


@contextlib.contextmanager
def pooled(config: TrainConfig, share: Share, notice: Notice) -> Iterator[Pool]:
    """Find room for trials, and be connected to it for the length of a `with` block.

    Raises:
        NoRoomError: Not one trial will ever fit.
        UserError: The cluster cannot be reached.
    """
    set_patience(config)
    address = address_of(config.model_copy(update={"nodes": NodeRange.parse(str(max(share.nodes, share.machines or 1)))}))
    config = config.model_copy(update={"nodes": NodeRange(share.nodes, share.nodes)})
    if address == LOCAL:
        yield _pool(config, share, [here()], local=True)
        return
    with connected(address):
        yield waited_for(lambda: _pool(config, share, survey(only_answering=True), local=False), config, notice)


def _pool(config: TrainConfig, share: Share, nodes: list[Node], local: bool) -> Pool:
    where = "this machine" if local else "this cluster"
    device = choose_device(config, nodes, "here" if local else "on this cluster")
    if device == "cpu" and share.gpus:
        raise NoRoomError(
            f"--gpus-per-trial {share.gpus:g}: {where} has no usable GPU.",
            "Remove it to search on CPUs, or check with resnet-ops doctor.",
            tuple(nodes),
        )
    if share.nodes > 1:
        request = Request.of(config, device)
        at_once = _layouts(nodes, request)
        if not at_once:
            refusal = refuse(nodes, request, where)
            raise NoRoomError(refusal.cause.replace("--nodes ", "--nodes-per-trial ", 1), refusal.remedy, tuple(nodes))
        return Pool(tuple(nodes), local, device, 0, 0, at_once)
    gpus = (share.gpus or 1.0) if device == "cuda" else 0.0
    cpus = share.cpus or 1
    fitting = sorted((_fitting(node, cpus, gpus) for node in nodes), reverse=True)
    able = sum(count > 0 for count in fitting)
    if able:
        if able < (share.machines or 1):
            raise NoRoomError(
                f"--nodes {share.machines} needs {share.machines} nodes with room for a trial; {where} has {able}.",
                f"Use --nodes {able}, or add nodes: resnet-ops cluster template.",
                tuple(nodes),
            )
        at_once = sum(fitting[: share.machines])
    else:
        needs = f"{cpus} CPU core{'s' if cpus > 1 else ''}" + (f" and {gpus:g} GPUs" if gpus else "")
        most = max((node.cpus for node in nodes), default=0)
        remedy = f"Use --cpus-per-trial {most:g}" if most < cpus else f"Use fewer than {gpus:g} GPUs"
        raise NoRoomError(
            f"A trial needs {needs} on one node; {where} has no such node.", f"{remedy}.", tuple(nodes)
        )
    return Pool(tuple(nodes), local, device, cpus, gpus, at_once)


def _fitting(node: Node, cpus: int, gpus: float) -> int:
    by_cpus = int(node.cpus / cpus)
    if not gpus:
        return by_cpus
    on_gpus = int(node.gpus / gpus) if gpus >= 1 else int(node.gpus) * int(1 / gpus + 1e-9)
    return min(by_cpus, on_gpus)


def _layouts(nodes: list[Node], request: Request) -> int:
    """How often a job on several machines fits on all of them, were they empty."""
    left = [replace(node, free_cpus=node.cpus, free_gpus=node.gpus) for node in nodes]
    count = 0
    while layout := choose(left, request):
        left = [_less(node, layout) for node in left]
        count += 1
    return count


def _less(node: Node, layout: Layout) -> Node:
    workers = sum(count for taken, count in layout.on if taken.id == node.id)
    gpus = workers if layout.device == "cuda" else 0
    return replace(node, free_cpus=node.free_cpus - workers * layout.cpus, free_gpus=node.free_gpus - gpus)
