"""Where a service runs and listens: the cluster, the resources of each replica, host and port.

Starting the service is in `job`.
"""

import errno
import socket
from contextlib import AbstractContextManager

from resnet_ops.errors import UserError
from resnet_ops.export import runtime
from resnet_ops.machine import cores, read_gpus
from resnet_ops.orchestration.connect import LOCAL, cluster_address, connected, local_ray
from resnet_ops.orchestration.job_client import is_job_server
from resnet_ops.orchestration.nodes import read_nodes
from resnet_ops.orchestration.ray_internals import serve_is_running
from resnet_ops.serving.config import ServeConfig

ANY_HOST = ("0.0.0.0", "::")  # noqa: S104


def resolve_address(config: ServeConfig) -> str:
    """Return the cluster to serve on: 'local', 'auto', or an address.

    Raises:
        UserError: It is the address of a job server.
    """
    address = cluster_address(config)
    if is_job_server(address):
        raise UserError(
            f"--cluster {address} is a job server; a service needs the cluster itself.",
            "Give the cluster's address: HOST:6379.",
        )
    return address


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to a port of this machine, or for 0 to any free one.

    Raises:
        OSError: It is taken, or `host` is no address of this machine.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def find_free_port(host: str, port: int) -> int:
    """Return `port` if it is free on this machine, or for 0 any free one.

    Raises:
        UserError: It is taken, or `host` is no address of this machine.
    """
    try:
        with listen(host, port) as listener:
            return int(listener.getsockname()[1])
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"Port {port} of {host} is taken.", "Choose another --port, or 0 for any free one."
            ) from None
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"--host {host} --port {port} cannot be listened on ({reason}).", "Choose another.") from None


def connect_to_cluster(address: str, provider: str) -> AbstractContextManager[None]:
    """Connect to the cluster during a `with` block; for 'local' start Ray here, with GPUs if `provider` needs them.

    Raises:
        UserError: There is no cluster, or `provider` cannot be used here.
    """
    if address != LOCAL:
        return connected(address)
    on_cpu = runtime.resolve_provider(provider) == runtime.CPU
    return local_ray(cores(), 0 if on_cpu else len(read_gpus()))


def choose_provider(address: str, provider: str) -> str:
    """Return 'cpu', 'cuda' or 'tensorrt' for the replicas; 'auto' is CUDA if the cluster has GPUs."""
    if provider != "auto":
        return provider
    if address == LOCAL:
        return "cpu" if runtime.resolve_provider("auto") == runtime.CPU else "cuda"
    return "cuda" if any(node.gpus for node in read_nodes()) else "cpu"


def resources_per_replica(replicas: int, provider: str) -> dict[str, float]:
    """Return the resources that Ray reserves for each replica: a GPU, or an even share of the cores.

    Raises:
        UserError: None is free.
    """
    nodes = read_nodes()
    if provider != "cpu":
        gpus = sum(int(node.free_gpus) for node in nodes)
        if not gpus:
            raise UserError(
                "No GPU is free to serve on.", "Use --provider cpu, or wait for one: resnet-ops cluster status."
            )
        return {"num_cpus": 1, "num_gpus": 1 if gpus >= replicas else int(1000 * gpus / replicas) / 1000}
    cpus = [node.free_cpus for node in nodes if node.free_cpus >= 1]
    if not cpus:
        raise UserError("No CPU core is free to serve on.", "See what uses them: resnet-ops cluster status.")
    share = min(cpus) / -(-replicas // len(cpus))
    return {"num_cpus": int(share) if share >= 1 else int(1000 * share) / 1000}


def check_no_other_service() -> None:
    """Check that Serve is not running, since stopping it would stop both.

    Raises:
        UserError: Serve is running on this cluster.
    """
    if serve_is_running():
        raise UserError(
            "Ray Serve is already running on this cluster.",
            "Stop it (serve shutdown), or serve from a separate cluster: --cluster local.",
        )


def listening_nodes(host: str) -> dict[str, str]:
    """Return the nodes that listen, by the host of their URL: one of each machine if `host` means any address."""
    import ray

    if host in ANY_HOST:
        nodes = ray.nodes()  # type: ignore[no-untyped-call]
        return {node["NodeManagerAddress"]: node["NodeID"] for node in nodes if node["Alive"]}
    return {host: ray.get_runtime_context().get_node_id()}


def service_url(host: str, port: int) -> str:
    """Return the URL of a service."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
