"""Where a service runs and listens: which cluster, what of it each replica gets, which port."""

import errno
import socket
from contextlib import AbstractContextManager

from resnet_ops.errors import UserError
from resnet_ops.export import runtime
from resnet_ops.machine import cores
from resnet_ops.orchestration.connect import LOCAL, cluster_address, connected, local_ray
from resnet_ops.orchestration.job_client import is_job_server
from resnet_ops.orchestration.nodes import read_nodes
from resnet_ops.orchestration.ray_internals import serve_is_running
from resnet_ops.serving.config import ServeConfig

EVERY = ("0.0.0.0", "::")  # noqa: S104


def address(config: ServeConfig) -> str:
    """Which cluster is meant: 'local', 'auto', or an address.

    Raises:
        UserError: It is a job server's.
    """
    named = cluster_address(config)
    if is_job_server(named):
        raise UserError(
            f"--cluster {named} is a job server; a service needs the cluster itself.",
            "Give the cluster's address: HOST:6379.",
        )
    return named


def free_port(host: str, port: int) -> int:
    """The port to listen on, found free here.

    Raises:
        UserError: It is taken, or `host` is no address of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
            return int(tried.getsockname()[1])
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"Port {port} of {host} is taken.", "Choose another --port, or 0 for any free one."
            ) from None
        why = (error.strerror or str(error)).lower()
        raise UserError(f"--host {host} --port {port} cannot be listened on ({why}).", "Choose another.") from None


def cluster(address: str, provider: str) -> AbstractContextManager[None]:
    """The cluster, for the length of a `with` block; here, with what `provider` needs.

    Raises:
        UserError: There is none, or here `provider` cannot be used.
    """
    if address != LOCAL:
        return connected(address)
    gpus = 0
    if runtime.choose_provider(provider) != runtime.CPU:
        import torch

        gpus = torch.cuda.device_count()
    return local_ray(cores(), gpus)


def provider(address: str, wanted: str) -> str:
    """'cpu', 'cuda' or 'tensorrt', whatever the replicas run on; 'auto' is CUDA where the cluster has GPUs."""
    if wanted != "auto":
        return wanted
    if address == LOCAL:
        return "cpu" if runtime.choose_provider("auto") == runtime.CPU else "cuda"
    return "cuda" if any(node.gpus for node in read_nodes()) else "cpu"


def resources_per_replica(replicas: int, provider: str) -> dict[str, float]:
    """What Ray reserves for each replica: a GPU, or an even share of the cores.

    Raises:
        UserError: Nothing of it is free.
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
    each = min(cpus) / -(-replicas // len(cpus))
    return {"num_cpus": int(each) if each >= 1 else int(1000 * each) / 1000}


def check_no_other_service() -> None:
    """Serve listens where it was first told to, whatever it is told later; and ending ours would end theirs.

    Raises:
        UserError: Serve runs on this cluster.
    """
    if serve_is_running():
        raise UserError(
            "Ray Serve is already running on this cluster.",
            "Stop it (serve shutdown), or serve from a separate cluster: --cluster local.",
        )


def urls(host: str, port: int) -> tuple[str, ...]:
    """Where the service listens: at `host`, or where that stands for every address at each machine's own."""
    from ray import serve

    hosts = [host]
    if host in EVERY:
        listening = serve.status().proxies
        import ray

        nodes = ray.nodes()  # type: ignore[no-untyped-call]
        hosts = [node["NodeManagerAddress"] for node in nodes if node["NodeID"] in listening]
    return tuple(f"http://[{each}]:{port}" if ":" in each else f"http://{each}:{port}" for each in hosts)
