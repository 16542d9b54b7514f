"""Does it fit, and where: machines and what is free on them in, workers on each of them out.

Pure arithmetic over `Node`s, the same for this machine alone, for a cluster that is only being
asked about, and for one that has just lost a machine. Ray's own answer to a job that does not
fit is to wait for ever and not to say for what.
"""

import socket
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from resnet_ops.config import ClusterConfig, JobConfig
from resnet_ops.errors import UserError
from resnet_ops.machine import cores
from resnet_ops.orchestration.ray_internals import available_resources_per_node

Device = Literal["cpu", "cuda"]
NODE_LABEL = "ray.io/node-id"
ANSWER_S = 1.0


@dataclass(frozen=True)
class Node:
    """A machine of a cluster: what it has, and what of it nobody uses now."""

    id: str
    name: str
    cpus: float
    gpus: float
    free_cpus: float
    free_gpus: float

    def __str__(self) -> str:
        parts = [_format_amount(self.free_cpus, self.cpus, "CPU")]
        if self.gpus:
            parts.insert(0, _format_amount(self.free_gpus, self.gpus, "GPU"))
        return f"{self.name}: {', '.join(parts)}"


@dataclass(frozen=True)
class Request:
    """What a job asks of a cluster."""

    device: Device
    fewest: int  # machines
    most: int
    workers: int | None = None  # on each machine; by default one a GPU, or one on its CPUs
    cpus: float | None = None  # cores of a worker; by default its share of the machine's

    @classmethod
    def of(cls, config: ClusterConfig, device: Device) -> "Request":
        """Read a request out of a configuration.

        Raises:
            UserError: It asks for GPUs and means to train on CPUs, or the other way round.
        """
        if device == "cpu" and config.gpus_per_node is not None:
            raise UserError(
                f"--gpus-per-node {config.gpus_per_node}: no GPUs available.",
                "Check with resnet-ops doctor, or train on CPUs: --workers-per-node.",
            )
        if device == "cuda" and config.workers_per_node is not None:
            raise UserError(
                "--workers-per-node is for training on CPUs, but GPUs are available.",
                "Use --gpus-per-node, or train on CPUs with --device cpu.",
            )
        workers = config.gpus_per_node if device == "cuda" else config.workers_per_node
        return cls(device, config.nodes.fewest, config.nodes.most, workers, config.cpus_per_worker)

    @property
    def elastic(self) -> bool:
        """Whether the number of machines may change."""
        return self.fewest < self.most

    def workers_on(self, node: Node) -> int:
        """Workers that `node` would get if nobody else used it; 0 where it cannot hold them."""
        if self.device == "cuda":
            return (self.workers or int(node.gpus)) if node.gpus >= (self.workers or 1) else 0
        return (self.workers or 1) if node.cpus >= (self.workers or 1) else 0

    def cores_on(self, node: Node) -> float:
        """Cores for each worker on `node`: what was asked for, or an even share."""
        if self.cpus is not None:
            return self.cpus
        share = node.cpus / max(self.workers_on(node), 1)
        return float(int(share)) if share >= 1 else share


@dataclass(frozen=True)
class Layout:
    """Workers on machines: (node, workers) pairs, and the cores of each worker."""

    device: Device
    assignments: tuple[tuple[Node, int], ...]
    cpus: float

    @property
    def workers(self) -> int:
        """Workers on all machines together."""
        return sum(count for _, count in self.assignments)

    @property
    def resources(self) -> dict[str, float]:
        """What Ray reserves for each worker."""
        return {"CPU": self.cpus} | ({"GPU": 1} if self.device == "cuda" else {})

    @property
    def label_selectors(self) -> list[dict[str, str]]:
        """For each worker the label of the machine it belongs on: distinct machines, surely."""
        return [{NODE_LABEL: node.id} for node, count in self.assignments for _ in range(count)]


class NoRoomError(UserError):
    """A job does not fit; `nodes` are the machines there are.

    `missing` says so in a few words, to those who wait, and `busy` whether there are machines enough, but not free.
    """

    def __init__(self, cause: str, remedy: str, nodes: tuple[Node, ...] = (), exit_code: int = 2) -> None:
        super().__init__(cause, remedy, exit_code)
        self.args = (cause, remedy, nodes, exit_code)
        self.nodes = nodes
        self.missing, self.busy = cause.rstrip("."), False
        self.details["nodes"] = [vars(node) for node in nodes]


def place_workers(nodes: Iterable[Node], request: Request, ours: Mapping[str, int] | None = None) -> Layout | None:
    """Lay a job out on the machines that have room for it now, as many as it may take.

    Args:
        nodes: Machines that are alive.
        request: What the job asks for.
        ours: Workers that the job itself has on machines (by id): their room counts as free.

    Returns:
        None where fewer machines have room than the job needs.
    """
    able = [node for node in nodes if request.workers_on(node)]
    # Machines without GPUs first for a job that needs none, then the emptiest; the id makes it repeatable.
    able.sort(key=lambda n: (n.gpus if request.device == "cpu" else 0, -n.free_gpus, -n.free_cpus, n.id))
    chosen: list[Node] = []
    for node in able:
        cores = min([request.cores_on(n) for n in [*chosen, node]])
        count, held = request.workers_on(node), (ours or {}).get(node.id, 0)
        has_cores = node.free_cpus + held * cores + 1e-6 >= count * cores
        if has_cores and (request.device == "cpu" or node.free_gpus + held >= count):
            chosen.append(node)
        if len(chosen) == request.most:
            break
    if len(chosen) < request.fewest:
        return None
    cores = min(request.cores_on(node) for node in chosen)
    return Layout(request.device, tuple((node, request.workers_on(node)) for node in chosen), cores)


def explain_refusal(
    nodes: Iterable[Node], request: Request, where: str = "this cluster", option: str = "--nodes"
) -> NoRoomError:
    """Say why `choose` found no room for what `option` asks: what was asked for, what is there, what to do."""
    nodes = tuple(nodes)
    able = [node for node in nodes if request.workers_on(node)]
    needs = _describe_needs(request)
    each = f"a node with {needs}" if request.fewest == 1 else f"{request.fewest} nodes with {needs} each"
    inventory = "; ".join(map(str, nodes[:6])) + ("; ..." if len(nodes) > 6 else "") or "none"
    cause = f"{option} {_format_range(request)} needs {each}; {where} has {len(able)} ({inventory})."
    if len(able) >= request.fewest:
        busy = len(able) - request.fewest + 1
        remedy = f"Some are busy (at least {busy} must become free): use --wait 600, or request fewer resources."
        if request.device == "cpu" and request.cpus is None:
            remedy += " --cpus-per-worker reduces the cores of each worker."
    elif able:
        remedy = f"Use {option} {len(able)}, or add nodes: resnet-ops cluster template."
    else:
        remedy = "Request fewer resources per node, or add nodes: resnet-ops cluster template."
    refusal = NoRoomError(cause, remedy, nodes)
    refusal.busy = len(able) >= request.fewest
    refusal.missing = f"{min(len(able), request.fewest)} of {request.fewest} nodes up" + (
        ", some of them busy" if refusal.busy else ""
    )
    return refusal


def this_node() -> Node:
    """This machine, as a cluster of one."""
    return Node("", socket.gethostname(), cores(), count_gpus(), cores(), count_gpus())


def count_gpus() -> int:
    """CUDA devices that this process may use."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def choose_device(config: JobConfig, nodes: Iterable[Node], where: str) -> Device:
    """The device to train on: GPUs where there are any, unless CPUs are asked for.

    Raises:
        NoRoomError: GPUs are asked for, and there are none.
    """
    nodes = tuple(nodes)
    if config.device == "cpu":
        return "cpu"
    if any(node.gpus >= 1 for node in nodes):
        return "cuda"
    if config.device == "cuda":
        raise NoRoomError(
            f"--device cuda: no usable CUDA GPU {where}.",
            "Check with resnet-ops doctor, or train with --device cpu.",
            nodes,
        )
    return "cpu"


def read_nodes(only_responsive: bool = False) -> list[Node]:
    """The living machines of the cluster that this process is connected to.

    Args:
        only_responsive: Knock at each. Ray takes up to half a minute to call a machine dead.
    """
    import ray

    free = available_resources_per_node()
    alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    if only_responsive:
        with ThreadPoolExecutor(32) as pool:
            alive = [node for node, answers in zip(alive, pool.map(_responds, alive), strict=True) if answers]
    hosts = [node["NodeManagerHostname"] for node in alive]
    return [
        _read_node(node, free.get(node["NodeID"], {}), hosts.count(node["NodeManagerHostname"]) > 1) for node in alive
    ]


def _responds(node: dict[str, Any]) -> bool:
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), timeout=ANSWER_S).close()
    except OSError:
        return False
    return True


def _read_node(node: dict[str, Any], free: Mapping[str, float], shares_its_host: bool) -> Node:
    has = node["Resources"]
    suffix = f"/{node['NodeID'][:6]}" if shares_its_host else ""
    named = node["NodeName"] not in ("", node["NodeManagerAddress"])  # Ray's default is the address
    return Node(
        id=node["NodeID"],
        name=node["NodeName"] if named else node["NodeManagerHostname"] + suffix,
        cpus=has.get("CPU", 0),
        gpus=has.get("GPU", 0),
        free_cpus=free.get("CPU", 0),
        free_gpus=free.get("GPU", 0),
    )


def _describe_needs(request: Request) -> str:
    if request.device == "cuda":
        return f"{request.workers} GPUs" if (request.workers or 1) > 1 else "a GPU"
    count = (request.workers or 1) * (request.cpus or 1)
    return f"{count:g} CPU cores" if count > 1 else "a CPU core"


def _format_range(request: Request) -> str:
    return f"{request.fewest}:{request.most}" if request.elastic else str(request.fewest)


def _format_amount(free: float, total: float, unit: str) -> str:
    if free < total:
        return f"{free:g} of {total:g} {unit}s free"
    return f"{total:g} {unit}" + ("" if total == 1 else "s")
