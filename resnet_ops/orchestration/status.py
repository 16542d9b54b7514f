"""The status of a cluster: its nodes, their free resources, and the largest job that fits on it now."""

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field, computed_field

from resnet_ops.errors import UserError
from resnet_ops.orchestration.connect import AUTO, connected, resolve_address
from resnet_ops.orchestration.local_state import clusters_elsewhere, describe_elsewhere
from resnet_ops.orchestration.nodes import Node, read_nodes
from resnet_ops.orchestration.placement import Device, Request, place_workers
from resnet_ops.orchestration.ray_internals import UNEXPECTED_TERMINATION, draining_nodes, job_table
from resnet_ops.results import Result

NodeState = Literal["alive", "draining", "not answering", "gone"]


class NodeStatus(Result):
    """A node of a cluster; one that is gone has no resources."""

    id: str = Field(description="Ray's id of it.")
    name: str
    cpus: float = Field(description="CPU cores that it offers.")
    gpus: float
    free_cpus: float = Field(description="CPU cores that are free now.")
    free_gpus: float
    address: str = Field(description="IP address.")
    state: NodeState

    @property
    def node(self) -> Node:
        """Return it as a node that work can be placed on."""
        return Node(self.id, self.name, self.cpus, self.gpus, self.free_cpus, self.free_gpus)


class Totals(Result):
    """Resources of all nodes that are alive."""

    nodes: int
    cpus: float
    gpus: float
    free_cpus: float
    free_gpus: float


class LargestJob(Result):
    """The largest job: workers on each of so many nodes."""

    device: Device
    nodes: int = Field(description="Nodes.")
    workers_per_node: int = Field(description="Workers on each, one for each GPU.")

    @computed_field(description="What to type after `resnet-ops train`.")  # type: ignore[prop-decorator]
    @property
    def options(self) -> str:
        """Return the options of `resnet-ops train` for this job."""
        gpus = f" --gpus-per-node {self.workers_per_node}" if self.device == "cuda" else ""
        return f"--nodes {self.nodes}{gpus}"

    def __str__(self) -> str:
        if self.device == "cuda":
            return f"{self.options} ({_count(self.nodes * self.workers_per_node, 'GPU worker')})"
        return f"{self.options} ({self.workers_per_node} CPU worker{'s' * (self.workers_per_node > 1)} each)"


class Driver(Result):
    """A `resnet-ops` command that uses the cluster."""

    command: str = Field(description="Its command line.")
    host: str = Field(description="The node that it runs on.")
    started: float = Field(description="Seconds since 1970.")


class ClusterStatus(Result):
    """A cluster as it is now."""

    address: str = Field(description="HOST:PORT.")
    nodes: tuple[NodeStatus, ...] = Field(description="Its nodes.")
    totals: Totals = Field(description="The resources of all nodes that are alive.")
    fits: LargestJob | None = Field(description="The largest job that there is room for now.")
    running: tuple[Driver, ...] = Field(description="The commands that work on it.")


def read_status(address: str) -> ClusterStatus:
    """Return the status of the cluster at `address` ('auto' or host:port).

    Raises:
        UserError: There is none, it cannot be reached, or it refuses the connection.
    """
    try:
        address = resolve_address(address)
    except UserError as error:
        if address == AUTO and (elsewhere := describe_elsewhere(clusters_elsewhere())):
            raise error.copy_with(remedy=f"{error.remedy} {elsewhere}") from None
        raise
    with connected(address):
        import ray

        rows = ray.nodes()  # type: ignore[no-untyped-call]
        alive = {node.id: node for node in read_nodes()}
        responsive = {node.id for node in read_nodes(only_responsive=True)}
        draining = draining_nodes()
        nodes = [
            _node_status(row, alive, responsive, draining)
            for row in rows
            if row["Alive"] or row["DeathReason"] == UNEXPECTED_TERMINATION
        ]
        usable = [node.node for node in nodes if node.state == "alive"]
        return ClusterStatus(
            address=address,
            nodes=tuple(sorted(nodes, key=lambda node: (node.state, node.name))),
            totals=_totals(usable),
            fits=largest_job(usable),
            running=_drivers(),
        )


def _node_status(row: dict[str, Any], alive: dict[str, Node], responsive: set[str], draining: set[str]) -> NodeStatus:
    node = alive.get(row["NodeID"])
    state: NodeState = "gone" if node is None else "alive" if node.id in responsive else "not answering"
    if state == "alive" and row["NodeID"] in draining:
        state = "draining"
    node = node or Node(row["NodeID"], row["NodeName"], 0, 0, 0, 0)
    return NodeStatus(**vars(node), address=row["NodeManagerAddress"], state=state)


def _totals(nodes: list[Node]) -> Totals:
    return Totals(
        nodes=len(nodes),
        cpus=sum(node.cpus for node in nodes),
        gpus=sum(node.gpus for node in nodes),
        free_cpus=sum(node.free_cpus for node in nodes),
        free_gpus=sum(node.free_gpus for node in nodes),
    )


def _drivers() -> tuple[Driver, ...]:
    """Return the commands of resnet-ops that are connected to the cluster, except this one."""
    import ray

    own_job = ray.get_runtime_context().get_job_id()
    return tuple(
        Driver(command=job["Entrypoint"], host=job["DriverIPAddress"], started=job["StartTime"] / 1000)
        for job in job_table()
        if not job["IsDead"] and job["JobID"] != own_job and "resnet-ops" in job["Entrypoint"]
    )


def largest_job(nodes: Iterable[Node]) -> LargestJob | None:
    """Return the largest job that fits now: with most GPUs, else on most CPU nodes; None if none fits."""
    nodes = tuple(nodes)
    gpu_jobs = []
    for gpus in range(1, int(max((node.gpus for node in nodes), default=0)) + 1):
        layout = place_workers(nodes, Request("cuda", 1, len(nodes), gpus))
        if layout is not None:
            gpu_jobs.append(LargestJob(device="cuda", nodes=len(layout.assignments), workers_per_node=gpus))
    if gpu_jobs:
        return max(gpu_jobs, key=lambda job: (job.nodes * job.workers_per_node, job.workers_per_node))
    layout = place_workers(nodes, Request("cpu", 1, len(nodes))) if nodes else None
    if layout is None:
        return None
    return LargestJob(
        device="cpu", nodes=len(layout.assignments), workers_per_node=layout.workers // len(layout.assignments)
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
