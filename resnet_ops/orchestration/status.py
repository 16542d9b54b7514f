"""What a cluster has, what of it is free, and the largest job that would fit on it now."""

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field, computed_field

from resnet_ops.orchestration.connect import connected, resolve_address
from resnet_ops.orchestration.placement import Device, Node, Request, place_workers, read_nodes
from resnet_ops.orchestration.ray_internals import UNEXPECTED_TERMINATION, job_table
from resnet_ops.results import Result

State = Literal["alive", "not answering", "gone"]


class NodeStatus(Result):
    """A machine of a cluster; one that is gone has nothing."""

    id: str = Field(description="Ray's id of it.")
    name: str
    cpus: float = Field(description="CPU cores that it offers.")
    gpus: float
    free_cpus: float = Field(description="CPU cores that nobody uses now.")
    free_gpus: float
    address: str = Field(description="IP address.")
    state: State

    @property
    def node(self) -> Node:
        """What work is placed on."""
        return Node(self.id, self.name, self.cpus, self.gpus, self.free_cpus, self.free_gpus)


class Totals(Result):
    """What the machines have together that work can be sent to."""

    nodes: int
    cpus: float
    gpus: float
    free_cpus: float
    free_gpus: float


class LargestJob(Result):
    """The largest job: workers on each of so many machines."""

    device: Device
    nodes: int = Field(description="Machines.")
    workers_per_node: int = Field(description="Workers on each, one for each GPU.")

    @computed_field(description="What to type after `resnet-ops train`.")  # type: ignore[prop-decorator]
    @property
    def options(self) -> str:
        """What to type."""
        gpus = f" --gpus-per-node {self.workers_per_node}" if self.device == "cuda" else ""
        return f"--nodes {self.nodes}{gpus}"

    def __str__(self) -> str:
        if self.device == "cuda":
            return f"{self.options} ({_count(self.nodes * self.workers_per_node, 'GPU worker')})"
        return f"{self.options} ({self.workers_per_node} CPU worker{'s' * (self.workers_per_node > 1)} each)"


class Driver(Result):
    """A `resnet-ops` command that works on the cluster."""

    command: str = Field(description="Its command line.")
    host: str = Field(description="The machine that it runs on.")
    started: float = Field(description="Seconds since 1970.")


class ClusterStatus(Result):
    """A cluster as it is now."""

    address: str = Field(description="HOST:PORT.")
    nodes: tuple[NodeStatus, ...] = Field(description="Its machines.")
    totals: Totals = Field(description="What the living machines have together.")
    fits: LargestJob | None = Field(description="The largest job that there is room for now.")
    running: tuple[Driver, ...] = Field(description="The commands that work on it.")


def read_status(address: str) -> ClusterStatus:
    """Look at the cluster at `address` ('auto' or host:port).

    Raises:
        UserError: There is none, it cannot be reached, or it does not let us in.
    """
    address = resolve_address(address)
    with connected(address):
        import ray

        rows = ray.nodes()  # type: ignore[no-untyped-call]
        alive = {node.id: node for node in read_nodes()}
        answering = {node.id for node in read_nodes(only_responsive=True)}
        seen = [
            _see(row, alive, answering) for row in rows if row["Alive"] or row["DeathReason"] == UNEXPECTED_TERMINATION
        ]
        living = [one.node for one in seen if one.state == "alive"]
        return ClusterStatus(
            address=address,
            nodes=tuple(sorted(seen, key=lambda one: (one.state, one.name))),
            totals=_totals(living),
            fits=largest_job(living),
            running=_drivers(),
        )


def _see(row: dict[str, Any], alive: dict[str, Node], answering: set[str]) -> NodeStatus:
    node = alive.get(row["NodeID"])
    state: State = "gone" if node is None else "alive" if node.id in answering else "not answering"
    node = node or Node(row["NodeID"], row["NodeName"], 0, 0, 0, 0)
    return NodeStatus(**vars(node), address=row["NodeManagerAddress"], state=state)


def _totals(living: list[Node]) -> Totals:
    return Totals(
        nodes=len(living),
        cpus=sum(node.cpus for node in living),
        gpus=sum(node.gpus for node in living),
        free_cpus=sum(node.free_cpus for node in living),
        free_gpus=sum(node.free_gpus for node in living),
    )


def _drivers() -> tuple[Driver, ...]:
    """Our own programs that are connected to the cluster, but for this one."""
    import ray

    mine = ray.get_runtime_context().get_job_id()
    return tuple(
        Driver(command=job["Entrypoint"], host=job["DriverIPAddress"], started=job["StartTime"] / 1000)
        for job in job_table()
        if not job["IsDead"] and job["JobID"] != mine and "resnet-ops" in job["Entrypoint"]
    )


def largest_job(nodes: Iterable[Node]) -> LargestJob | None:
    """The largest job that there is room for: most GPUs, else most CPU machines; None where there is no room."""
    nodes = tuple(nodes)
    fits = []
    for gpus in range(1, int(max((node.gpus for node in nodes), default=0)) + 1):
        layout = place_workers(nodes, Request("cuda", 1, len(nodes), gpus))
        if layout is not None:
            fits.append(LargestJob(device="cuda", nodes=len(layout.assignments), workers_per_node=gpus))
    if fits:
        return max(fits, key=lambda fit: (fit.nodes * fit.workers_per_node, fit.workers_per_node))
    layout = place_workers(nodes, Request("cpu", 1, len(nodes))) if nodes else None
    if layout is None:
        return None
    return LargestJob(
        device="cpu", nodes=len(layout.assignments), workers_per_node=layout.workers // len(layout.assignments)
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
