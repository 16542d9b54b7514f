"""Nodes that work can be placed on: this machine, or those of the cluster that this process is connected to.

Which of them a job gets is decided in `placement`.
"""

import socket
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from resnet_ops.machine import cores
from resnet_ops.orchestration.ray_internals import available_resources_per_node

RESPONSE_TIMEOUT_S = 1.0


@dataclass(frozen=True)
class Node:
    """A machine of a cluster: its resources, and those of them that are free."""

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


def this_node() -> Node:
    """Return this machine as a cluster of one node."""
    return Node("", socket.gethostname(), cores(), count_gpus(), cores(), count_gpus())


def count_gpus() -> int:
    """Return the number of CUDA devices that this process may use."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def read_nodes(only_responsive: bool = False) -> list[Node]:
    """Return the nodes of the connected cluster that are alive.

    Args:
        only_responsive: Leave out those that refuse a connection; Ray takes up to 30 s to call a node dead.
    """
    import ray

    free = available_resources_per_node()
    alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    if only_responsive:
        with ThreadPoolExecutor(32) as pool:
            alive = [node for node, responds in zip(alive, pool.map(_responds, alive), strict=True) if responds]
    hosts = [node["NodeManagerHostname"] for node in alive]
    return [
        _read_node(node, free.get(node["NodeID"], {}), hosts.count(node["NodeManagerHostname"]) > 1) for node in alive
    ]


def _responds(node: dict[str, Any]) -> bool:
    try:
        address = (node["NodeManagerAddress"], node["NodeManagerPort"])
        socket.create_connection(address, timeout=RESPONSE_TIMEOUT_S).close()
    except OSError:
        return False
    return True


def _read_node(node: dict[str, Any], free: Mapping[str, float], shares_its_host: bool) -> Node:
    total = node["Resources"]
    suffix = f"/{node['NodeID'][:6]}" if shares_its_host else ""
    has_name = node["NodeName"] not in ("", node["NodeManagerAddress"])  # Ray's default is the address
    return Node(
        id=node["NodeID"],
        name=node["NodeName"] if has_name else node["NodeManagerHostname"] + suffix,
        cpus=total.get("CPU", 0),
        gpus=total.get("GPU", 0),
        free_cpus=free.get("CPU", 0),
        free_gpus=free.get("GPU", 0),
    )


def _format_amount(free: float, total: float, unit: str) -> str:
    if free < total:
        return f"{free:g} of {total:g} {unit}s free"
    return f"{total:g} {unit}" + ("" if total == 1 else "s")
