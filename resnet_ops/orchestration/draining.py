"""Announces that a node will leave the cluster: its workers save, and go on elsewhere.

Ray's own draining is used: a node that drains gets no more work, and ends once it has none. `ray start --block` drains
its node when it receives SIGTERM; here it is done ahead, by hand, by a pod's preStop hook or at a spot notice. Workers
notice in `worker_stop`.
"""

import socket
import time
from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Any

from pydantic import Field

from resnet_ops.config_base import Config, option
from resnet_ops.errors import UserError, did_you_mean
from resnet_ops.orchestration.connect import AUTO, head_client, resolve_address
from resnet_ops.orchestration.ray_internals import alive_nodes, drain_node, own_head_client
from resnet_ops.results import Result

ANSWER_S = 10.0
POLL_INTERVAL_S = 0.2


class DrainConfig(Config):
    """The node to drain, and how long that may take."""

    node: Annotated[
        str | None, option("Name or id of the node, as `cluster status` shows them; by default this machine.")
    ] = None
    timeout: Annotated[float, option("Seconds until the node is stopped, whatever it still runs.", ge=1)] = 30.0
    cluster: Annotated[
        str, option("Ray cluster: auto (RAY_ADDRESS, or the one running on this machine) or an address.")
    ] = AUTO


class DrainResult(Result):
    """A node that was drained."""

    node_id: str = Field(description="Ray's id of it.")
    node: str = Field(description="Its name.")
    left: bool = Field(description="Whether it has left the cluster: its work has ended.")


def drain(config: DrainConfig) -> DrainResult:
    """Drain a node, and wait until it has left the cluster or its time is over.

    Raises:
        UserError: There is no such node, or the cluster does not answer.
    """
    with head_client(resolve_address(config.cluster)) as client:
        node_id, name = find_node(alive_nodes(client, ANSWER_S), config.node, socket.gethostname())
        deadline, left = time.time() + config.timeout, False
        drain_node(client, node_id, "resnet-ops cluster drain", deadline, ANSWER_S)
        while not left and time.time() < deadline:
            time.sleep(POLL_INTERVAL_S)
            left = node_id not in {node.id for node in alive_nodes(client, ANSWER_S)}
    return DrainResult(node_id=node_id, node=name, left=left)


def find_node(nodes: Iterable[Any], named: str | None, host: str) -> tuple[str, str]:
    """Return id and name of the node of that name or id, or else of that host.

    Args:
        nodes: Those of `alive_nodes`.
        named: A name or an id.
        host: This machine's name.

    Raises:
        UserError: There is none, or there are several.
    """
    nodes = list(nodes)
    matches = [node for node in nodes if (named in (node.name, node.id) if named else node.host == host)]
    names = sorted(node.name for node in nodes)
    if len(matches) == 1:
        return matches[0].id, matches[0].name
    if named:
        cause = f"The cluster has {len(matches) or 'no'} node{'s' * (len(matches) > 1)} called {named}."
        raise UserError(cause, did_you_mean(named, names) or f"It has: {', '.join(names[:10])}.")
    if matches:
        raise UserError(
            f"{len(matches)} nodes of the cluster run on this machine.", f"Name one: --node {matches[-1].name}."
        )
    raise UserError(
        f"No node of the cluster runs on this machine ({host}).", f"Name one: --node {(names or ['NAME'])[-1]}."
    )


def drain_own_node(cloud: str, ends: datetime) -> None:
    """Drain the node that this process is a worker on, after a spot notice."""
    import ray

    node_id = ray.get_runtime_context().get_node_id()
    drain_node(own_head_client(), node_id, f"spot notice of {cloud}", ends.timestamp(), ANSWER_S)
