"""The network that workers train over: the interface that gloo and NCCL use, and a check of each link before training.

By default gloo looks up the host's name and listens on that address: on Debian and Ubuntu 127.0.1.1, which other nodes
cannot connect to. NCCL takes the first interface it finds, which may be Docker's. A link that drops packets shows in
neither: the process group waits for it until its timeout.
"""

import os
import secrets
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import ray
from ray.train.torch import TorchConfig

from resnet_ops.errors import BAD_REQUEST, UserError
from resnet_ops.orchestration import process_group
from resnet_ops.orchestration.links import Endpoint, addresses_of_interfaces, listen, matching_interfaces, reach
from resnet_ops.orchestration.ray_internals import TorchBackend
from resnet_ops.orchestration.worker_loss import LinkError, LogEvent
from resnet_ops.orchestration.worker_stop import take_signals

GLOO, NCCL = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"
LINKS_TOLD = 3


@dataclass
class SocketInterfaceConfig(TorchConfig):
    """Ray's TorchConfig, with gloo and NCCL on the interface of each node's address, and the links between checked.

    Args:
        log_event: Called with the interfaces that a group on several machines uses.
    """

    log_event: LogEvent | None = None

    @property
    def backend_cls(self) -> type[TorchBackend]:
        """Return the class that sets up the process group."""
        return _CheckedBackend


class _CheckedBackend(TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        try:
            endpoints = _prepare_network(worker_group, backend_config)
            worker_group.execute(take_signals)
            process_group.form(worker_group, endpoints, backend_config.timeout_s)
        except Exception:
            # Ray forgets workers whose start fails here; their room would stay reserved, and the next ones wait for it.
            worker_group.abort()
            raise


def _prepare_network(worker_group: Any, config: Any) -> list[Endpoint]:
    variable = NCCL if worker_group.get_resources_per_worker().get("GPU", 0) else GLOO
    endpoints: list[Endpoint] = worker_group.execute(choose_interface, variable)
    for problem in filter(None, (endpoint.problem for endpoint in endpoints)):
        raise UserError(problem, f"Correct {variable} where Ray is started on the nodes, or unset it.", BAD_REQUEST)
    ranks = {
        endpoint.address: rank for rank, endpoint in reversed([*enumerate(endpoints)])
    }  # the first on each machine
    if len(ranks) > 1:
        one_each = {rank: endpoints[rank] for rank in sorted(ranks.values())}
        check_links(worker_group, one_each, variable)
        if config.log_event is not None:
            config.log_event(describe_network([*one_each.values()]), "detail")
    return endpoints


def choose_interface(variable: str) -> Endpoint:
    """Have gloo and NCCL in this process use the interface of this node's address, unless the user has set another.

    Args:
        variable: The environment variable of the one that will be used.
    """
    host, address = socket.gethostname(), str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
    interfaces = addresses_of_interfaces()
    if name := next((name for name, each in interfaces.items() if each == address), None):
        os.environ.setdefault(GLOO, name)
        os.environ.setdefault(NCCL, f"={name}")  # or it takes all whose names begin so
    if (setting := os.environ.get(variable)) is None:
        return Endpoint(host, address, None)  # of IPv6, or translated: gloo and NCCL choose by themselves
    usable = matching_interfaces(setting, [*interfaces], prefixes=variable == NCCL)
    if not usable:
        return Endpoint(host, address, None, f"{variable} is {setting}, but {host} has only {', '.join(interfaces)}.")
    chosen = name if name in usable else usable[0]
    return Endpoint(host, interfaces[chosen], chosen)


def describe_network(endpoints: Sequence[Endpoint]) -> str:
    """Return which interfaces the machines of a group use, in one line."""
    by_interface = sorted(endpoints, key=lambda endpoint: (endpoint.interface or "", endpoint.host))
    return "Network: " + "; ".join(
        f"{interface or 'the default interface'} of " + ", ".join(f"{each.host} ({each.address})" for each in group)
        for interface, group in groupby(by_interface, key=lambda endpoint: endpoint.interface)
    )


def check_links(worker_group: Any, endpoints: Mapping[int, Endpoint], variable: str) -> None:
    """Have each machine send a message to each other one, all at once, and receive it back.

    Args:
        worker_group: Ray Train's workers.
        endpoints: The endpoint of one worker on each machine, by its rank.
        variable: The environment variable that selects the interfaces.

    Raises:
        LinkError: Some did not arrive.
    """
    nonce = secrets.token_bytes(16)
    listening = [
        worker_group.execute_single_async(rank, listen, endpoint, nonce, len(endpoints) - 1)
        for rank, endpoint in endpoints.items()
    ]
    peers = list(zip(endpoints.values(), ray.get(listening), strict=True))
    reaching = [
        worker_group.execute_single_async(rank, reach, endpoint, [peer for peer in peers if peer[0] != endpoint], nonce)
        for rank, endpoint in endpoints.items()
    ]
    bad = [link for of_one in ray.get(reaching) for link in of_one]
    if bad:
        more = f"; {len(bad) - LINKS_TOLD} more links fail" if len(bad) > LINKS_TOLD else ""
        error = LinkError(
            "; ".join(sorted(map(str, bad))[:LINKS_TOLD]) + more + ".",
            f"Open all TCP ports between the nodes, or set {variable} to an interface that connects them.",
        )
        error.links = frozenset((link.own.host, link.peer.host) for link in bad)
        raise error
