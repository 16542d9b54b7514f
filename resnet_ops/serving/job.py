"""The whole of `resnet-ops serve`: read the file, start Ray Serve with it, and shut it down gracefully.

Where it runs is in `location`, what it answers in `app`, `service` and `replica`.
"""

import contextlib
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any, Literal

from pydantic import Field

from resnet_ops.errors import WORK_FAILED, UserError
from resnet_ops.export import claimed_network, runtime, untrusted
from resnet_ops.export.exported_files import check_is_of_best, with_exported_file
from resnet_ops.export.metadata import ModelMetadata
from resnet_ops.files import Place
from resnet_ops.orchestration.ray_internals import started_ray_is_gone
from resnet_ops.results import Result
from resnet_ops.serving import location
from resnet_ops.serving.config import ServeConfig
from resnet_ops.serving.limits import Served, ServiceLimits

APPLICATION = "resnet-ops"
DRAIN_S = 25.0  # for the requests in progress; Kubernetes kills after 30 s
REPLY_S = 5.0  # for a gateway to close then
REPLICA_STOP_S = 1.0  # for a replica, which has no requests then
LISTEN_S = 30.0
GROUP_SIGNAL_S = 0.2  # until a signal to a process group has reached all of its processes
POLL_S = 1.0
LOGGING = {"enable_access_log": False, "log_level": "WARNING"}  # requests are private


class ServeResult(Result):
    """A service that answers at `urls`."""

    status: Literal["serving"] = "serving"
    url: str = Field(description="The first of urls.")
    urls: tuple[str, ...] = Field(description="Where it listens.")
    file: Place = Field(description="The ONNX file.")
    model: str = Field(description="Network, such as resnet20.")
    classes: int = Field(description="Number of classes.")
    provider: str = Field(description="ONNX Runtime's execution provider.")
    replicas: int = Field(description="Copies of the network.")
    threads: int = Field(description="CPU threads of each.")
    metadata: ModelMetadata = Field(exclude=True, description="The file's metadata.")

    def watch(self) -> None:
        """Wait until the user stops it.

        Raises:
            UserError: The service was stopped from elsewhere, or Ray was, perhaps by the same signal as this process:
                then requests in progress were not answered.
        """
        from ray import serve

        try:
            while True:
                time.sleep(POLL_S)
                _refuse_if_ray_is_gone()
                if APPLICATION not in serve.status().applications:
                    raise UserError("The service was stopped from elsewhere.", exit_code=WORK_FAILED)
        except KeyboardInterrupt:
            time.sleep(GROUP_SIGNAL_S)
            _refuse_if_ray_is_gone()


@contextlib.contextmanager
def start_service(
    config: ServeConfig, on_progress: Callable[[str], None], warn: Callable[[str], None] = lambda _: None
) -> Iterator[ServeResult]:
    """Serve a file during a `with` block; at its end requests in progress are still answered.

    Args:
        config: The options.
        on_progress: Called with what is being done.
        warn: Called where the file is of weights that are no longer the best of its run.

    Raises:
        UserError: The file cannot be used, the port is taken, or it does not fit on the cluster.
    """
    on_progress("opening the file")
    config = with_exported_file(config)
    content, metadata = _read_single_file(config)
    check_is_of_best(config.file.expanduser(), metadata.checkpoint_sha256, warn)
    requested = runtime.restrict_provider(config.provider, metadata.precision)
    address = location.resolve_address(config)
    port = location.find_free_port(config.host, config.port)
    on_progress("starting Ray")
    with location.connect_to_cluster(address, requested):
        import ray
        from ray import serve

        logging.getLogger("ray.serve").setLevel(logging.ERROR)  # it logs every step
        location.check_no_other_service()
        provider = location.choose_provider(address, requested)
        resources = location.resources_per_replica(config.replicas, provider)
        threads = max(1, int(resources["num_cpus"]))
        nodes = location.listening_nodes(config.host)
        urls = tuple(location.service_url(each, port) for each in nodes)
        fetch = partial(ray.get, ray.put(content))
        deployment = _deployment(config, resources)
        limits = _limits(config)
        application = deployment.bind(fetch, metadata, provider, limits, threads)
        gateways: list[Any] = []
        on_progress("starting the service")
        try:
            serve.start(proxy_location="Disabled", logging_config=LOGGING)
            replicas = _run(application)
            provider_name = replicas.provider.remote().result()
            served = Served(config.file.name, metadata, provider_name)
            gateways = _start_gateways(nodes.values(), replicas, served, limits, config.host, port)
            _wait_for_answer(urls[0])
            yield ServeResult(
                url=urls[0],
                urls=urls,
                file=config.file.absolute(),
                model=metadata.model,
                classes=len(metadata.class_names),
                provider=provider,
                replicas=config.replicas,
                threads=threads,
                metadata=metadata,
            )
            _stop(gateways)
        finally:
            if not started_ray_is_gone():  # Ray would wait a minute for itself, and then end this process
                for gateway in gateways:
                    ray.kill(gateway)
                serve.shutdown()  # type: ignore[no-untyped-call]


def _limits(config: ServeConfig) -> ServiceLimits:
    return ServiceLimits(
        waiting=config.max_waiting * config.replicas,
        upload_bytes=int(config.max_upload_mb * 1e6),
        receive_s=config.receive_timeout_s,
        connections=config.max_connections,
        pixels=config.max_pixels,
        replicas=config.replicas,
        batch=config.batch,
    )


def _deployment(config: ServeConfig, resources: dict[str, float]) -> Any:
    from ray import serve

    from resnet_ops.serving.replica import Replica

    return serve.deployment(
        Replica,
        name="Classifier",
        num_replicas=config.replicas,
        ray_actor_options=resources,
        max_ongoing_requests=config.max_waiting,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=REPLICA_STOP_S,
        max_constructor_retry_count=1,
    )


def _run(application: Any) -> Any:
    """Start the replicas and return Serve's handle to them."""
    from ray import serve

    try:
        return serve.run(application, name=APPLICATION, route_prefix=None, logging_config=LOGGING)
    except RuntimeError as error:
        raise _not_started(error) from error


def _start_gateways(nodes: Collection[str], *arguments: Any) -> list[Any]:
    """Start a gateway on each node; Ray restarts one that dies."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from resnet_ops.serving.gateway import GatewayActor

    gateway_class: Any = ray.remote(num_cpus=0, max_restarts=-1)(GatewayActor)
    gateways = [
        gateway_class.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(*arguments)
        for node in nodes
    ]
    try:
        ray.get([gateway.__ray_ready__.remote() for gateway in gateways])
    except ray.exceptions.RayError as error:
        raise _not_started(error) from error
    return gateways


def _stop(gateways: list[Any]) -> None:
    """Let the gateways answer what has begun.

    Raises:
        UserError: Some of it was not answered.
    """
    import ray

    try:
        unanswered = ray.get([gateway.stop.remote(DRAIN_S) for gateway in gateways], timeout=DRAIN_S + REPLY_S)
    except ray.exceptions.RayError as error:
        raise UserError(f"The service did not stop in order: {_reason(error)}.", exit_code=WORK_FAILED) from error
    if sum(unanswered):
        raise UserError(
            f"{sum(unanswered)} requests were not answered within {DRAIN_S:.0f} seconds.", exit_code=WORK_FAILED
        )


def _not_started(error: Exception) -> UserError:
    return UserError(f"The service did not start: {_reason(error)}.", exit_code=WORK_FAILED)


def _refuse_if_ray_is_gone() -> None:
    if started_ray_is_gone():
        raise UserError(
            "Ray was stopped before the service, so requests in progress were not answered.",
            "Signal this process only, not its process group (systemd: KillMode=mixed).",
            WORK_FAILED,
        )


def _read_single_file(config: ServeConfig) -> tuple[bytes, ModelMetadata]:
    """Read and check the file's bytes, which are sent to the machines that serve it, and its metadata, at once.

    Raises:
        UserError: It cannot be used, is not of the network that it names, or its weights are in another file.
    """
    model, metadata = untrusted.read_checked(config.file, config.provider)
    claimed_network.check_layers(config.file, model, metadata)
    if any(tensor.external_data for tensor in model.graph.initializer):
        raise UserError(
            f"{config.file} keeps its weights in another file, which is not supported for serving.",
            "Serve a smaller network.",
        )
    return bytes(model.SerializeToString(deterministic=True)), metadata  # the same bytes, as `scan` checks


def _reason(error: Exception) -> str:
    """Return the last line of a replica's traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300].rstrip(".")


def _wait_for_answer(url: str) -> None:
    """Wait until the service answers at `url`.

    Raises:
        UserError: It does not within `LISTEN_S`.
    """
    deadline = time.monotonic() + LISTEN_S
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        try:
            with direct.open(f"{url}/health", timeout=LISTEN_S):
                return
        except (urllib.error.URLError, OSError) as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"Nothing answers at {url} ({error}).",
                    "On a cluster use an address that all nodes have: --host 0.0.0.0.",
                    WORK_FAILED,
                ) from error
            time.sleep(0.1)
