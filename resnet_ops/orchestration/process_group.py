"""The process group of the workers, whose store listens on the address that they train over and on no other.

Where Ray or torch itself open the store, it listens on all addresses of the machine, and answers whoever connects.
"""

import os
import socket
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import ray
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # documented, and not in its __all__

from resnet_ops.orchestration.links import Endpoint

_opened: list[TCPStore] = []  # by `open_store`, for `join` in the same process


def form(worker_group: Any, endpoints: Sequence[Endpoint], timeout_s: int) -> None:
    """Have the workers form a process group, with NCCL if they have GPUs, otherwise with gloo.

    Args:
        worker_group: Ray Train's workers.
        endpoints: The endpoint of each, by its rank.
        timeout_s: Seconds for the operations of the group.
    """
    backend = "nccl" if worker_group.get_resources_per_worker().get("GPU", 0) else "gloo"
    address = endpoints[0].address
    port = worker_group.execute_single(0, open_store, endpoints[0], timeout_s)
    size = len(endpoints)
    ray.get(
        [
            worker_group.execute_single_async(rank, join, backend, address, port, rank, size, timeout_s)
            for rank in range(size)
        ]
    )


def open_store(own: Endpoint, timeout_s: int) -> int:
    """Open the store of the group on the address of this worker, and return its port."""
    timeout = timedelta(seconds=timeout_s)
    if own.interface is None:  # the address may be of none here: the other side of a translation
        store = TCPStore(own.address, 0, is_master=True, timeout=timeout, wait_for_workers=False)
    else:
        with socket.create_server((own.address, 0)) as listener:
            port = listener.getsockname()[1]
            store = TCPStore(
                own.address,
                port,
                is_master=True,
                timeout=timeout,
                wait_for_workers=False,
                master_listen_fd=os.dup(listener.fileno()),  # torch closes it
            )
    _opened[:] = [store]
    return store.port


def join(backend: str, address: str, port: int, rank: int, size: int, timeout_s: int) -> None:
    """Join the group whose store is at an address and a port."""
    if backend == "nccl":
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")  # as Ray: what fails or hangs ends the process
    timeout = timedelta(seconds=timeout_s)
    store = _opened.pop() if _opened else TCPStore(address, port, is_master=False, timeout=timeout)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
