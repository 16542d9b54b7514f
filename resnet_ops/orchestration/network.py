"""The network interface that gloo binds to: that of the address by which Ray knows the node."""

import fcntl
import os
import socket
import struct
from typing import Any

import ray
from ray.train.torch import TorchConfig

from resnet_ops.orchestration.ray_internals import TorchBackend
from resnet_ops.orchestration.worker_stop import take_signals

SIOCGIFADDR = 0x8915  # netdevice(7): the IPv4 address of a network interface


class GlooInterfaceConfig(TorchConfig):
    """Ray's TorchConfig, with gloo bound to the network interface of each node's address.

    By default gloo looks up the host's name and listens on that address. On Debian and Ubuntu it is 127.0.1.1, and
    for an unknown name 127.0.0.1: other nodes then cannot connect.
    """

    @property
    def backend_cls(self) -> type[TorchBackend]:
        """Return the class that sets up the process group."""
        return _GlooInterfaceBackend


class _GlooInterfaceBackend(TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(set_gloo_interface)
        worker_group.execute(take_signals)
        super().on_start(worker_group, backend_config)


def set_gloo_interface() -> None:
    """Have gloo in this process use the interface of this node's address, unless the user has set one."""
    name = interface_of(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def interface_of(address: str) -> str | None:
    """Return the network interface that has the IPv4 `address`, or None."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for _, name in socket.if_nameindex():
            try:
                reply = fcntl.ioctl(control, SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:  # it has no IPv4 address
                continue
            if socket.inet_ntoa(reply[20:24]) == address:
                return name
    return None
