"""What a cluster has, what of it is free, and the largest job that would fit on it now."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from resnet_ops.orchestration.connect import connected, find
from resnet_ops.orchestration.placement import Device, Node, Request, choose, survey
from resnet_ops.orchestration.ray_internals import UNEXPECTED_TERMINATION, job_table

State = Literal["alive", "not answering", "gone"]


@dataclass(frozen=True)
class Seen:
    """A machine of a cluster as it is seen now; one that is gone has nothing."""

    node: Node
    address: str
    state: State


@dataclass(frozen=True)
class Fit:
    """The largest job: workers on each of so many machines."""

    device: Device
    nodes: int
    workers_per_node: int

    @property
    def options(self) -> str:
        """What to type."""
        gpus = f" --gpus-per-node {self.workers_per_node}" if self.device == "cuda" else ""
        return f"--nodes {self.nodes}{gpus}"

    def __str__(self) -> str:
        if self.device == "cuda":
            return f"{self.options} ({_count(self.nodes * self.workers_per_node, 'GPU worker')})"
        return f"{self.options} ({self.workers_per_node} CPU worker{'s' * (self.workers_per_node > 1)} each)"


@dataclass(frozen=True)
class Driver:
    """A `resnet-ops` command that works on the cluster."""

    command: str
    host: str
    started: float  # seconds since 1970


@dataclass(frozen=True)
class Status:
    """A cluster as it is now."""

    address: str
    seen: tuple[Seen, ...]
    drivers: tuple[Driver, ...]

    @property
    def living(self) -> tuple[Node, ...]:
        """The machines that work can be sent to."""
        return tuple(seen.node for seen in self.seen if seen.state == "alive")

    @property
    def fits(self) -> Fit | None:
        """The largest job there is room for now."""
        return largest(self.living)


def look(address: str) -> Status:
    """Look at the cluster at `address` ('auto' or host:port).

    Raises:
        UserError: There is none, it cannot be reached, or it does not let us in.
    """
    address = find(address)
    with connected(address):
        import ray

        rows = ray.nodes()  # type: ignore[no-untyped-call]
        alive = {node.id: node for node in survey()}
        answering = {node.id for node in survey(only_answering=True)}
        seen = [
            _see(row, alive, answering) for row in rows if row["Alive"] or row["DeathReason"] == UNEXPECTED_TERMINATION
        ]
        return Status(address, tuple(sorted(seen, key=lambda s: (s.state, s.node.name))), _drivers())


def _see(row: dict[str, Any], alive: dict[str, Node], answering: set[str]) -> Seen:
    node = alive.get(row["NodeID"])
    if node is None:
        return Seen(Node(row["NodeID"], row["NodeName"], 0, 0, 0, 0), row["NodeManagerAddress"], "gone")
    return Seen(node, row["NodeManagerAddress"], "alive" if node.id in answering else "not answering")


def _drivers() -> tuple[Driver, ...]:
    """Our own programs that are connected to the cluster, but for this one."""
    import ray

    mine = ray.get_runtime_context().get_job_id()
    return tuple(
        Driver(job["Entrypoint"], job["DriverIPAddress"], job["StartTime"] / 1000)
        for job in job_table()
        if not job["IsDead"] and job["JobID"] != mine and "resnet-ops" in job["Entrypoint"]
    )


def largest(nodes: Iterable[Node]) -> Fit | None:
    """The largest job that there is room for: most GPUs, else most CPU machines; None where there is no room."""
    nodes = tuple(nodes)
    fits = []
    for gpus in range(1, int(max((node.gpus for node in nodes), default=0)) + 1):
        layout = choose(nodes, Request("cuda", 1, len(nodes), gpus))
        if layout is not None:
            fits.append(Fit("cuda", len(layout.on), gpus))
    if fits:
        return max(fits, key=lambda fit: (fit.nodes * fit.workers_per_node, fit.workers_per_node))
    layout = choose(nodes, Request("cpu", 1, len(nodes))) if nodes else None
    return Fit("cpu", len(layout.on), layout.workers // len(layout.on)) if layout else None


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
