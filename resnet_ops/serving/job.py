"""The whole of `resnet-ops serve`: the file is read, Ray Serve started with it, and ended when it is time."""

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
from resnet_ops.export import untrusted
from resnet_ops.export.metadata import ModelMetadata
from resnet_ops.files import Place
from resnet_ops.orchestration.ray_internals import started_ray_is_gone
from resnet_ops.results import Result
from resnet_ops.serving import place
from resnet_ops.serving.config import ServeConfig
from resnet_ops.serving.service import ServiceLimits

APPLICATION = "resnet-ops"
DRAIN_S = 30.0  # for the requests that are in hand
LISTEN_S = 30.0
TOGETHER_S = 0.2  # within which a signal to a whole group of processes has reached all of them
LOOK_S = 1.0  # how often it is looked whether the service is still there
PRIVATE_LOGS = {"enable_access_log": False, "log_level": "WARNING"}  # who asked what is nobody's to keep


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
        """Return when the user stops it.

        Raises:
            UserError: Ray was ended, perhaps along with this process: who asked then has no answer.
        """
        from ray import serve

        try:
            while True:
                time.sleep(LOOK_S)
                _refuse_ifstarted_ray_is_gone()
                if APPLICATION not in serve.status().applications:
                    raise UserError("The service was stopped from elsewhere.", exit_code=WORK_FAILED)
        except KeyboardInterrupt:
            time.sleep(TOGETHER_S)
            _refuse_ifstarted_ray_is_gone()


@contextlib.contextmanager
def start_service(config: ServeConfig, warn: Callable[[str], None]) -> Iterator[ServeResult]:
    """Serve a file for the length of a `with` block; then the requests in hand are answered.

    Args:
        config: What is served, and how.
        warn: Is told what is being done.

    Raises:
        UserError: The file cannot be used, the port is taken, or it does not fit on the cluster.
    """
    warn("opening the file")
    metadata = untrusted.open_file(config.file)
    content = _whole(config.file)
    address = place.address(config)
    port = place.free_port(config.host, config.port)
    warn("starting Ray")
    with place.cluster(address, config.provider):
        import ray
        from ray import serve

        logging.getLogger("ray.serve").setLevel(logging.ERROR)  # it tells of every step
        place.check_no_other_service()
        provider = place.provider(address, config.provider)
        each = place.resources_per_replica(config.replicas, provider)
        threads = max(1, int(each["num_cpus"]))
        # By reference, or Serve would keep a copy for every version of the deployment in its own records.
        kept = ray.put(content)
        deployment = _deployment(config, each)
        application = deployment.bind([kept], metadata, config.file.name, provider, _limits(config), threads)
        warn("starting the service")
        try:
            serve.start(http_options={"host": config.host, "port": port}, logging_config=PRIVATE_LOGS)
            _run(application)
            urls = place.urls(config.host, port)
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
                # The application first: Serve as a whole would not wait for the requests in hand.
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


def _deployment(config: ServeConfig, each: dict[str, float]) -> Any:
    from ray import serve

    from resnet_ops.serving.replica import Replica

    return serve.deployment(
        serve.ingress()(Replica),
        name="Classifier",
        num_replicas=config.replicas,
        ray_actor_options=each,
        # A replica turns away by itself what it has no room for, in words; these are for what comes faster than that.
        max_ongoing_requests=config.max_waiting + 100,
        max_queued_requests=config.max_waiting,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=DRAIN_S,
        max_constructor_retry_count=1,
    )


def _run(application: Any) -> None:
    from ray import serve

    try:
        serve.run(application, name=APPLICATION, logging_config=PRIVATE_LOGS)
    except RuntimeError as error:
        raise UserError(f"The service did not start: {_reason(error)}.", exit_code=WORK_FAILED) from error


def _refuse_ifstarted_ray_is_gone() -> None:
    if started_ray_is_gone():
        raise UserError(
            "Ray was stopped before the service, so requests in progress were not answered.",
            "Signal this process only, not its process group (systemd: KillMode=mixed).",
            WORK_FAILED,
        )


def _whole(file: Path) -> bytes:
    """The file's bytes, which go to the machines that serve it.

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
    """The last words of a replica's traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300].rstrip(".")


def _wait_for_answer(url: str) -> None:
    """Ask until it answers.

    Raises:
        UserError: It does not.
    """
    until = time.monotonic() + LISTEN_S
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        try:
            with direct.open(f"{url}/health", timeout=LISTEN_S):
                return
        except (urllib.error.URLError, OSError) as error:
            if time.monotonic() > until:
                raise UserError(
                    f"Nothing answers at {url} ({error}).",
                    "On a cluster use an address that all nodes have: --host 0.0.0.0.",
                    WORK_FAILED,
                ) from error
            time.sleep(0.1)
