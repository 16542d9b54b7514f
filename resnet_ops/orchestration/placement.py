"""Placement of a job's workers on nodes: whether it fits, where each worker goes, and why not.

Arithmetic over `Node`s only, the same for this machine, for a cluster, and for one that has just lost a node. Ray
waits for ever for room for a job that does not fit, and does not say what is missing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from resnet_ops.cluster_config import ClusterConfig, JobConfig
from resnet_ops.errors import UserError
from resnet_ops.orchestration.nodes import Node

Device = Literal["cpu", "cuda"]
NODE_LABEL = "ray.io/node-id"


@dataclass(frozen=True)
class Request:
    """Resources that a job requests of a cluster."""

    device: Device
    fewest: int  # nodes
    most: int
    workers: int | None = None  # on each machine; by default one a GPU, or one on its CPUs
    cpus: float | None = None  # cores of a worker; by default its share of the machine's

    @classmethod
    def of(cls, config: ClusterConfig, device: Device) -> "Request":
        """Create the request of a configuration.

        Raises:
            UserError: It requests GPUs for a training on CPUs, or the other way round.
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
        """Return whether the number of nodes may change."""
        return self.fewest < self.most

    def workers_on(self, node: Node) -> int:
        """Return how many workers `node` gets if it is free; 0 if it is too small."""
        if self.device == "cuda":
            return (self.workers or int(node.gpus)) if node.gpus >= (self.workers or 1) else 0
        return (self.workers or 1) if node.cpus >= (self.workers or 1) else 0

    def cores_on(self, node: Node) -> float:
        """Return the cores of each worker on `node`: as requested, or an even share."""
        if self.cpus is not None:
            return self.cpus
        share = node.cpus / max(self.workers_on(node), 1)
        return float(int(share)) if share >= 1 else share


@dataclass(frozen=True)
class Layout:
    """Assignment of workers to nodes: (node, number of workers) pairs, and the cores of each worker."""

    device: Device
    assignments: tuple[tuple[Node, int], ...]
    cpus: float

    @property
    def workers(self) -> int:
        """Return the number of workers on all nodes."""
        return sum(count for _, count in self.assignments)

    @property
    def resources(self) -> dict[str, float]:
        """Return what Ray reserves for each worker."""
        return {"CPU": self.cpus} | ({"GPU": 1} if self.device == "cuda" else {})

    @property
    def label_selectors(self) -> list[dict[str, str]]:
        """Return, for each worker, the label of the node that it is pinned to."""
        return [{NODE_LABEL: node.id} for node, count in self.assignments for _ in range(count)]


class NoRoomError(UserError):
    """A job does not fit on `nodes`.

    `missing` describes it in a few words, while waiting; `busy` says that there are enough nodes, but not enough free.
    """

    def __init__(self, cause: str, remedy: str, nodes: tuple[Node, ...] = (), exit_code: int = 2) -> None:
        super().__init__(cause, remedy, exit_code)
        self.args = (cause, remedy, nodes, exit_code)
        self.nodes = nodes
        self.missing, self.busy = cause.rstrip("."), False
        self.details["nodes"] = [vars(node) for node in nodes]


def place_workers(
    nodes: Iterable[Node], request: Request, own_workers: Mapping[str, int] | None = None
) -> Layout | None:
    """Place a job's workers on the nodes that have room for them now, on as many as it may use.

    Args:
        nodes: Nodes that are alive.
        request: What the job requests.
        own_workers: Workers that the job already has, by node id; their resources count as free.

    Returns:
        The layout, or None if fewer nodes have room than the job needs.
    """
    usable = [node for node in nodes if request.workers_on(node)]
    # Nodes without GPUs first if the job needs none, then those with the most free; the id makes it repeatable.
    usable.sort(key=lambda n: (n.gpus if request.device == "cpu" else 0, -n.free_gpus, -n.free_cpus, n.id))
    selected: list[Node] = []
    for node in usable:
        cores = min([request.cores_on(n) for n in [*selected, node]])
        count, own = request.workers_on(node), (own_workers or {}).get(node.id, 0)
        has_cores = node.free_cpus + own * cores + 1e-6 >= count * cores
        if has_cores and (request.device == "cpu" or node.free_gpus + own >= count):
            selected.append(node)
        if len(selected) == request.most:
            break
    if len(selected) < request.fewest:
        return None
    cores = min(request.cores_on(node) for node in selected)
    return Layout(request.device, tuple((node, request.workers_on(node)) for node in selected), cores)


def explain_refusal(
    nodes: Iterable[Node], request: Request, location: str = "this cluster", option: str = "--nodes"
) -> NoRoomError:
    """Return the error for a job that `place_workers` found no room for: the request, the nodes, what to do.

    Args:
        nodes: The nodes of the cluster.
        request: What the job requests.
        location: What to call the cluster.
        option: The option that the number of nodes was given with.
    """
    nodes = tuple(nodes)
    usable = [node for node in nodes if request.workers_on(node)]
    needs = _describe_needs(request)
    each = f"a node with {needs}" if request.fewest == 1 else f"{request.fewest} nodes with {needs} each"
    inventory = "; ".join(map(str, nodes[:6])) + ("; ..." if len(nodes) > 6 else "") or "none"
    cause = f"{option} {_format_range(request)} needs {each}; {location} has {len(usable)} ({inventory})."
    if len(usable) >= request.fewest:
        busy = len(usable) - request.fewest + 1
        remedy = f"Some are busy (at least {busy} must become free): use --wait 600, or request fewer resources."
        if request.device == "cpu" and request.cpus is None:
            remedy += " --cpus-per-worker reduces the cores of each worker."
    elif usable:
        remedy = f"Use {option} {len(usable)}, or add nodes: resnet-ops cluster template."
    else:
        remedy = "Request fewer resources per node, or add nodes: resnet-ops cluster template."
    refusal = NoRoomError(cause, remedy, nodes)
    refusal.busy = len(usable) >= request.fewest
    refusal.missing = f"{min(len(usable), request.fewest)} of {request.fewest} nodes up" + (
        ", some of them busy" if refusal.busy else ""
    )
    return refusal


def choose_device(config: JobConfig, nodes: Iterable[Node], location: str) -> Device:
    """Return the device to train on: GPUs if there are any, unless CPUs are requested.

    Raises:
        NoRoomError: GPUs are requested, and there are none.
    """
    nodes = tuple(nodes)
    if config.device == "cpu":
        return "cpu"
    if any(node.gpus >= 1 for node in nodes):
        return "cuda"
    if config.device == "cuda":
        raise NoRoomError(
            f"--device cuda: no usable CUDA GPU {location}.",
            "Check with resnet-ops doctor, or train with --device cpu.",
            nodes,
        )
    return "cpu"


def _describe_needs(request: Request) -> str:
    if request.device == "cuda":
        return f"{request.workers} GPUs" if (request.workers or 1) > 1 else "a GPU"
    count = (request.workers or 1) * (request.cpus or 1)
    return f"{count:g} CPU cores" if count > 1 else "a CPU core"


def _format_range(request: Request) -> str:
    return f"{request.fewest}:{request.most}" if request.elastic else str(request.fewest)
