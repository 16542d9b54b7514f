"""The whole of `resnet-ops serve`: read the file, start Ray Serve with it, and shut it down gracefully.

Where it runs is in `location`, what it answers in `app` and `service`.
"""

import contextlib
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from resnet_ops.errors import WORK_FAILED, UserError
from resnet_ops.export import runtime, untrusted
from resnet_ops.export.exported_files import with_exported_file
from resnet_ops.export.metadata import ModelMetadata
from resnet_ops.files import Place
from resnet_ops.orchestration.ray_internals import started_ray_is_gone
from resnet_ops.results import Result
from resnet_ops.serving import location
from resnet_ops.serving.config import ServeConfig
from resnet_ops.serving.service import ServiceLimits

APPLICATION = "resnet-ops"
DRAIN_S = 30.0  # for the requests in progress
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
def start_service(config: ServeConfig, on_progress: Callable[[str], None]) -> Iterator[ServeResult]:
    """Serve a file during a `with` block; at its end requests in progress are still answered.

    Args:
        config: The options.
        on_progress: Called with what is being done.

    Raises:
        UserError: The file cannot be used, the port is taken, or it does not fit on the cluster.
    """
    on_progress("opening the file")
    config = with_exported_file(config)
    metadata = untrusted.check_file(config.file, config.provider)
    requested = runtime.restrict_provider(config.provider, metadata.precision)
    content = _read_single_file(config.file)
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
        # By reference, or Serve would keep a copy for every version of the deployment in its own records.
        reference = ray.put(content)
        deployment = _deployment(config, resources)
        application = deployment.bind([reference], metadata, config.file.name, provider, _limits(config), threads)
        on_progress("starting the service")
        try:
            serve.start(http_options={"host": config.host, "port": port}, logging_config=LOGGING)
            _run(application)
            urls = location.service_urls(config.host, port)
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
        finally:
            if not started_ray_is_gone():  # Ray would wait a minute for itself, and then end this process
                # The application first: Serve as a whole would not wait for requests in progress.
                serve.delete(APPLICATION)
                serve.shutdown()  # type: ignore[no-untyped-call]


def _limits(config: ServeConfig) -> ServiceLimits:
    return ServiceLimits(
        waiting=config.max_waiting,
        upload_bytes=int(config.max_upload_mb * 1e6),
        pixels=config.max_pixels,
        batch=config.batch,
        batch_wait_s=config.batch_wait_ms / 1e3,
    )


def _deployment(config: ServeConfig, resources: dict[str, float]) -> Any:
    from ray import serve

    from resnet_ops.serving.app import Replica

    return serve.deployment(
        serve.ingress()(Replica),
        name="Classifier",
        num_replicas=config.replicas,
        ray_actor_options=resources,
        # A replica itself refuses requests beyond its limit, with a reason, and answers /health even then; these limits
        # are for requests that come faster.
        max_ongoing_requests=config.max_waiting + 100,
        max_queued_requests=config.max_waiting + 100,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=DRAIN_S,
        max_constructor_retry_count=1,
    )


def _run(application: Any) -> None:
    from ray import serve

    try:
        serve.run(application, name=APPLICATION, logging_config=LOGGING)
    except RuntimeError as error:
        raise UserError(f"The service did not start: {_reason(error)}.", exit_code=WORK_FAILED) from error


def _refuse_if_ray_is_gone() -> None:
    if started_ray_is_gone():
        raise UserError(
            "Ray was stopped before the service, so requests in progress were not answered.",
            "Signal this process only, not its process group (systemd: KillMode=mixed).",
            WORK_FAILED,
        )


def _read_single_file(file: Path) -> bytes:
    """Read the file's bytes, which are sent to the machines that serve it.

    Raises:
        UserError: Its weights are in another file.
    """
    model, _ = untrusted.scan(file)
    if any(tensor.external_data for tensor in model.graph.initializer):
        raise UserError(
            f"{file} keeps its weights in another file, which is not supported for serving.", "Serve a smaller network."
        )
    return file.read_bytes()


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
