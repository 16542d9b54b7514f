"""Which network the workers talk over: the one that Ray knows their machines by."""

import fcntl
import os
import socket
import struct
from typing import Any

import ray
from ray.train.torch import TorchConfig

from resnet_ops.orchestration.ray_internals import TorchBackend

SIOCGIFADDR = 0x8915  # netdevice(7): the IPv4 address of a network interface


class GlooInterfaceConfig(TorchConfig):
    """Ray's set-up of the process group, with gloo bound to each machine's own network.

    Left alone gloo looks its machine's name up and listens there. Debian and Ubuntu give the name
    127.0.1.1, and a name that nobody knows becomes 127.0.0.1: the others then cannot connect.
    """

    @property
    def backend_cls(self) -> type[TorchBackend]:
        """Who sets up the process group."""
        return _Backend


class _Backend(TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(set_gloo_interface)
        super().on_start(worker_group, backend_config)


def set_gloo_interface() -> None:
    """Tell gloo in this process the interface of this machine's address, unless the user has named one."""
    name = interface_of(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def interface_of(address: str) -> str | None:
    """The network interface that has the IPv4 `address`, or None."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(asked, SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:  # it has none
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None
