"""The private parts of Ray that are used here, each with its reason; no other file imports or touches one.

Ray may change any of them without notice: tests/orchestration/test_ray_internals.py says which. Nothing of Ray is
imported until a function is called or, of Ray Train's classes, one is asked for.
"""

import json
import logging
import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.train.torch.config import _TorchBackend
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback as DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import (
        PlacementGroupCleanerCallback as PlacementGroupCleanerCallback,
    )
    from ray.train.v2._internal.constants import get_env_vars_to_propagate as get_env_vars_to_propagate
    from ray.train.v2._internal.exceptions import CollectiveTimeoutError as CollectiveTimeoutError
    from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError as WorkerGroupStartupFailedError
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError as WorkerGroupStartupTimeoutError
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError as WorkerHealthCheckFailedError
    from ray.train.v2._internal.exceptions import WorkerHealthCheckTimeoutError as WorkerHealthCheckTimeoutError
    from ray.train.v2._internal.execution.callback import WorkerGroupCallback as WorkerGroupCallback
    from ray.train.v2._internal.execution.controller import TrainController as TrainController
    from ray.train.v2._internal.execution.controller.state import RunningState as RunningState
    from ray.train.v2._internal.execution.failure_handling import FailureDecision as FailureDecision
    from ray.train.v2._internal.execution.failure_handling import FailurePolicy as FailurePolicy
    from ray.train.v2._internal.execution.scaling_policy import NoopDecision as NoopDecision
    from ray.train.v2._internal.execution.scaling_policy import ResizeDecision as ResizeDecision
    from ray.train.v2._internal.execution.scaling_policy import ScalingDecision as ScalingDecision
    from ray.train.v2._internal.execution.scaling_policy import ScalingPolicy as ScalingPolicy

    TorchBackend = _TorchBackend

_EXCEPTIONS = "ray.train.v2._internal.exceptions"
_FAILURES = "ray.train.v2._internal.execution.failure_handling"
_SCALING = "ray.train.v2._internal.execution.scaling_policy"
# Where Ray Train's parts lie; above once more, for mypy. To import them takes a second, and the last one torch.
TRAIN = {
    # Where workers go and which losses they survive is ours to say; a public TorchTrainer has no place to say it.
    "TrainController": "ray.train.v2._internal.execution.controller",
    "RunningState": "ray.train.v2._internal.execution.controller.state",
    "ScalingPolicy": _SCALING,
    "ScalingDecision": _SCALING,
    "NoopDecision": _SCALING,
    "ResizeDecision": _SCALING,
    "FailurePolicy": _FAILURES,
    "FailureDecision": _FAILURES,
    # What a controller started by us must hand on to its workers, as Ray's own does.
    "get_env_vars_to_propagate": "ray.train.v2._internal.constants",
    # Losses of workers and of their room: what may be tried again is known by these classes alone.
    "CollectiveTimeoutError": _EXCEPTIONS,
    "WorkerGroupStartupFailedError": _EXCEPTIONS,
    "WorkerGroupStartupTimeoutError": _EXCEPTIONS,
    "WorkerHealthCheckFailedError": _EXCEPTIONS,
    "WorkerHealthCheckTimeoutError": _EXCEPTIONS,
    # Tells which placement group the workers were given; users' callbacks are not told.
    "WorkerGroupCallback": "ray.train.v2._internal.execution.callback",
    # To be left out, by their classes: they start actors that are not needed, for which each start waits.
    "DatasetsCallback": "ray.train.v2._internal.callbacks.datasets",
    "PlacementGroupCleanerCallback": "ray.train.v2._internal.callbacks.placement_group_callback",
    # Sets up the process group; something is to be done on the workers just before.
    "TorchBackend": "ray.train.torch.config",
}

# Set by the job server for the commands that it runs: their code was shipped already.
JOB_CONFIG_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
# The 'DeathReason' in ray.nodes() of a machine that was lost; others were sent away, by an autoscaler for one.
UNEXPECTED_TERMINATION = 2


def __getattr__(name: str) -> Any:
    if name not in TRAIN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(TRAIN[name]), "_TorchBackend" if name == "TorchBackend" else name)


def silence_worker_logs() -> None:
    """Drop what Ray prints of other processes' logs.

    A machine's last words, with 20 lines of its log, go to stderr whatever the logging is set to.
    """
    from ray._private import worker

    worker.print_to_stdstream = lambda *_, **__: None


def bootstrap_address(address: str) -> str | None:
    """Return the host:port that 'auto' or an address stands for, or None where there is no cluster.

    It has to be known before ray.init is called, which only then finds it out.

    Raises:
        ValueError: It is no address.
        OSError: Its host is not known.
    """
    from ray._private.services import canonicalize_bootstrap_address

    found: str | None = canonicalize_bootstrap_address(address)
    return found


def address_file() -> Path:
    """Return the file that names the cluster that 'auto' means, which must be as it was once ours has ended."""
    from ray._common.utils import get_ray_address_file

    return Path(get_ray_address_file(None))


def ask_for_cluster_id(address: str, headers: tuple[tuple[str, str], ...], timeout_s: float) -> Any:
    """Return the grpc.StatusCode of a cluster's answer to the question for its id, which needs only to be let in.

    ray.init does not tell a cluster that is down from one that asks for another token.
    """
    import grpc

    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        call = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")
        try:
            call(b"", timeout=timeout_s, metadata=headers)
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


def enable_token() -> bool:
    """Use the token that lies on this machine, and return whether there is one; ray.init does so without a word."""
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

    return bool(maybe_enable_token_auth_if_token_available(warn_if_disabled=False))


def disable_token() -> None:
    """Use no token, though one lies on this machine; the variable alone is not read again once Ray is imported."""
    from ray._raylet import Config  # type: ignore[attr-defined]  # compiled

    os.environ["RAY_AUTH_MODE"] = "disabled"
    Config.initialize("")


def token_headers() -> tuple[tuple[str, str], ...]:
    """Use the token that lies on this machine, and return the headers that carry it; none where there is none."""
    from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]  # compiled

    loader = AuthenticationTokenLoader.instance()
    if not (enable_token() and loader.has_token()):
        return ()
    return tuple((name.lower(), value) for name, value in loader.get_token_for_http_header().items())


def available_resources_per_node() -> dict[str, dict[str, float]]:
    """Return what is free on each machine, by its id; the public readers add the machines up."""
    from ray._private.state import state

    free: dict[str, dict[str, float]] = state.available_resources_per_node()  # type: ignore[no-untyped-call]
    return free


def job_table() -> list[dict[str, Any]]:
    """Return the drivers that are or were connected; the public list needs the dashboard, which may be off."""
    from ray._private.state import state

    jobs: list[dict[str, Any]] = state.job_table()  # type: ignore[no-untyped-call]
    return jobs


def node_types() -> set[str]:
    """Return the types of machines that the cluster's monitor reports.

    Whether there is an autoscaler is told only by its types.
    """
    import ray
    from ray.autoscaler.v2.sdk import get_cluster_status
    from ray.autoscaler.v2.utils import is_autoscaler_v2

    worker: Any = ray._private.worker.global_worker
    report = json.loads(kv_get("__autoscaling_status") or "{}").get("autoscaler_report") or {}
    types = {*(report.get("active_nodes") or {}), *(report.get("node_type_mapping") or {}).values()}
    if is_autoscaler_v2(fetch_from_server=True, gcs_client=worker.gcs_client):
        status = get_cluster_status(ray.get_runtime_context().gcs_address)
        types |= {node.ray_node_type_name for node in (*status.active_nodes, *status.idle_nodes)}
    return types


# The key-value store of the cluster's head: it outlives every process of a job, and an actor would need room.


def kv_get(key: str, namespace: str | None = None) -> bytes | None:
    """Return what is kept under `key`, or None."""
    from ray.experimental.internal_kv import _internal_kv_get

    value: bytes | None = _internal_kv_get(key, namespace=namespace)
    return value


def kv_put(key: str, value: bytes, namespace: str) -> None:
    """Keep `value` under `key`, in place of what was there."""
    from ray.experimental.internal_kv import _internal_kv_put

    _internal_kv_put(key, value, True, namespace=namespace)


def kv_list(prefix: str, namespace: str) -> list[str]:
    """Return the keys that begin with `prefix`."""
    from ray.experimental.internal_kv import _internal_kv_list

    return [key.decode() for key in _internal_kv_list(prefix, namespace=namespace)]


def kv_del(key: str, namespace: str) -> None:
    """Forget `key`."""
    from ray.experimental.internal_kv import _internal_kv_del

    _internal_kv_del(key, namespace=namespace)


def started_ray_is_gone() -> bool:
    """Return whether a part of the Ray that was started by this process has ended.

    To shut Ray Serve down would then take a minute, and end this process.
    """
    from ray._private import worker

    node: Any = worker._global_node
    return node is None or bool(node.dead_processes())


def serve_is_running() -> bool:
    """Return whether Ray Serve runs on the cluster; serve.status() does not tell an idle one from none."""
    import ray
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    try:
        ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    except ValueError:
        return False
    return True


def job_client_class(timeout_s: tuple[float, float]) -> Any:
    """Return a JobSubmissionClient that is quiet, and gives up after `timeout_s` to connect and to be answered."""
    from ray.job_submission import JobSubmissionClient

    # They announce each upload and each end of a log, at levels of their own.
    for module in ("dashboard_sdk", "job.sdk"):
        logging.getLogger(f"ray.dashboard.modules.{module}").setLevel(logging.ERROR)

    class Client(JobSubmissionClient):
        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            return super()._do_request(method, endpoint, **{"timeout": timeout_s, **options})

    return Client


def server_version(client: Any) -> str:
    """Return the version of Ray that the job server runs, which the client keeps to itself; '' where it did not."""
    return str(getattr(client, "_server_ray_version", None) or "")
