"""Nodes that work can be placed on: this machine, or those of the cluster that this process is connected to.

Which of them a job gets is decided in `placement`.
"""

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from resnet_ops.errors import UserError
from resnet_ops.machine import cores, read_gpus
from resnet_ops.orchestration.ray_internals import available_resources_per_node

RESPONSE_TIMEOUT_S = 1.0
TASK_TIMEOUT_S = 120.0


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


def smallest_gpu_bytes() -> int:
    """Return the memory of the smallest GPU that this process may use, in bytes; 0 where the driver knows none."""
    return min((gpu.memory_bytes for gpu in read_gpus()), default=0)


def smallest_gpu_bytes_of_node() -> int:
    """Return the memory of the smallest GPU of a node, in bytes; runs there as a task that holds no GPU."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        del os.environ["CUDA_VISIBLE_DEVICES"]  # so Ray hides the GPUs from such tasks
    return smallest_gpu_bytes()


def start_on_nodes(nodes: Sequence[Node], function: Callable[..., Any], *arguments: Any) -> dict[Node, Any]:
    """Start a task that calls `function` on each node, and return it by its node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote = ray.remote(num_cpus=0, max_retries=0)(function)
    strategies = {node: NodeAffinitySchedulingStrategy(node.id, soft=False) for node in nodes}
    return {node: remote.options(scheduling_strategy=s).remote(*arguments) for node, s in strategies.items()}


def collect_results(tasks: Mapping[Node, Any]) -> dict[Node, Any]:
    """Wait for the tasks of `start_on_nodes`, and return their results.

    Raises:
        UserError: A node does not answer, or its task raised one.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    ray.wait(list(tasks.values()), num_returns=len(tasks), timeout=TASK_TIMEOUT_S)
    results = {}
    for node, task in tasks.items():
        try:
            results[node] = ray.get(task, timeout=0.1)
        except RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause.copy_with(cause=f"On {node.name}: {error.cause.cause}") from error
            raise
        except RayError as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise UserError(f"{node.name} did not answer when it was checked ({reason}).") from error
    return results


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
