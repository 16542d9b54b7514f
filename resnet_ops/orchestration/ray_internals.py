"""The private parts of Ray that are used here, each with its reason; no other file uses one.

Ray may change any of them without notice: tests/orchestration/test_ray_internals.py shows which. Nothing of Ray is
imported until a function is called or one of Ray Train's classes is accessed.
"""

import contextlib
import functools
import json
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_ops.environment import with_variable

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
# The modules of Ray Train's parts; once more than above, which is for mypy: importing them takes a second, and torch.
TRAIN = {
    # To replace where workers run and which losses they survive; the public TorchTrainer has no parameter for it.
    "TrainController": "ray.train.v2._internal.execution.controller",
    "RunningState": "ray.train.v2._internal.execution.controller.state",
    "ScalingPolicy": _SCALING,
    "ScalingDecision": _SCALING,
    "NoopDecision": _SCALING,
    "ResizeDecision": _SCALING,
    "FailurePolicy": _FAILURES,
    "FailureDecision": _FAILURES,
    # Environment variables that a controller must pass on to its workers.
    "get_env_vars_to_propagate": "ray.train.v2._internal.constants",
    # Losses of workers and of their resources: only these classes tell what may be retried.
    "CollectiveTimeoutError": _EXCEPTIONS,
    "WorkerGroupStartupFailedError": _EXCEPTIONS,
    "WorkerGroupStartupTimeoutError": _EXCEPTIONS,
    "WorkerHealthCheckFailedError": _EXCEPTIONS,
    "WorkerHealthCheckTimeoutError": _EXCEPTIONS,
    # To be left out: they start actors that are not needed, and each start waits for them.
    "DatasetsCallback": "ray.train.v2._internal.callbacks.datasets",
    "PlacementGroupCleanerCallback": "ray.train.v2._internal.callbacks.placement_group_callback",
    # Ends the process group.
    "TorchBackend": "ray.train.torch.config",
}

# Set by the job server for the commands that it runs; their code has been shipped.
JOB_CONFIG_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
LOOPBACK = "127.0.0.1"
GCS_FLAG = b"--gcs-address="  # of a raylet
# The 'DeathReason' in ray.nodes() of a node that was lost; others were removed, for example by an autoscaler.
UNEXPECTED_TERMINATION = 2


def __getattr__(name: str) -> Any:
    if name not in TRAIN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(TRAIN[name]), "_TorchBackend" if name == "TorchBackend" else name)


def silence_worker_logs() -> None:
    """Drop what Ray prints of other processes' logs.

    When a node dies, it prints 20 lines of its log to stderr, whatever the log level.
    """
    from ray._private import worker

    worker.print_to_stdstream = lambda *_, **__: None


def keep_signals() -> None:
    """Leave signals to this process, which saves a checkpoint first.

    Ray takes SIGTERM for itself, and the processes that it starts are in this one's group, as are its workers: a
    terminal that closes, `timeout` and others signal them all.
    """
    from ray._private import services, utils

    utils.set_sigterm_handler = lambda sigterm_handler: None  # noqa: ARG005  # named as Ray's own
    if not isinstance(services.ConsolePopen, functools.partial):
        services.ConsolePopen = functools.partial(services.ConsolePopen, start_new_session=True)  # type: ignore[assignment, misc]


def job_config_of_driver() -> Any:
    """Return a job configuration with which workers import from where this process does.

    Ray adds the current folder, which may be a download, before all else.
    """
    from ray.job_config import JobConfig

    class DriverPath(JobConfig):
        def _serialize(self) -> Any:
            self._py_driver_sys_path = [folder for folder in self._py_driver_sys_path if folder in sys.path]
            return super()._serialize()

    return DriverPath()


def keep_loopback() -> None:
    """Have Ray take 127.0.0.1 for what it is, in this process.

    Ray replaces it by the machine's own address: that of another server, which would be sent the token, and one that
    every port is then opened to the network for. A node whose address is 127.0.0.1 listens there only.
    """
    from ray._private import services

    services.resolve_ip_for_localhost = lambda host: host


def start_on_loopback(parameters: Any, head: bool) -> None:  # noqa: ARG001
    """Have the node that `ray start` starts, and all it starts, listen on 127.0.0.1 only; a hook that it calls."""
    keep_loopback()
    parameters.node_ip_address = LOOPBACK
    parameters.ray_client_server_port = None  # there is no option for it
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # then even 'localhost' stays what it is in its processes


def bootstrap_address(address: str) -> str | None:
    """Return the host:port that an address stands for, or None if there is no cluster.

    It is needed before ray.init, which would resolve it.

    Raises:
        ValueError: It is no address.
        OSError: Its host is unknown.
    """
    from ray._private.services import canonicalize_bootstrap_address

    keep_loopback()
    resolved: str | None = canonicalize_bootstrap_address(address)
    return resolved


def running_addresses() -> set[str]:
    """Return the addresses of the clusters that have a node on this machine, of this user's or root's.

    Ray counts every user's, and what a file in /tmp says.
    """
    addresses = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if process.stat().st_uid in (0, os.getuid()):
                parts = (process / "cmdline").read_bytes().split(b"\0")
                if Path(os.fsdecode(parts[0])).name == "raylet":
                    addresses |= {os.fsdecode(p[len(GCS_FLAG) :]) for p in parts if p.startswith(GCS_FLAG)}
    return addresses


def latest_address() -> str:
    """Return the address of the cluster that was started last, as Ray has noted it; anyone may have written it."""
    from ray._common.utils import get_ray_address_file

    with contextlib.suppress(OSError, UnicodeDecodeError):
        return Path(get_ray_address_file(None)).read_text().strip()
    return ""


def ask_for_cluster_id(address: str, headers: tuple[tuple[str, str], ...], timeout_s: float) -> Any:
    """Return the grpc.StatusCode of a cluster's response to a request for its id, which needs only a valid token.

    ray.init does not tell a cluster that is down from one that requires another token.
    """
    import grpc

    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        call = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")
        try:
            call(b"", timeout=timeout_s, metadata=headers)
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


@contextlib.contextmanager
def with_token_file(file: Path) -> Iterator[None]:
    """Use the token in `file` in this process, and in those that it starts, for the length of a `with` block."""
    variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": None, "RAY_AUTH_TOKEN_PATH": str(file)}
    try:
        with contextlib.ExitStack() as stack:
            for name, value in variables.items():
                stack.enter_context(with_variable(name, value))
            _reload_token()
            yield
    finally:
        _reload_token()


def _reload_token() -> None:
    """Have Ray read the variables and the token again, which it does once by itself."""
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # compiled

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def actor_id(handle: Any) -> str:
    """Return the id of an actor; only the actor itself can ask for it in public."""
    return str(handle._actor_id.hex())


def placement_groups_of(creator: str) -> list[str]:
    """Return the ids of the placement groups that an actor has created and that still exist.

    The public table does not tell who created them.
    """
    from ray._private.state import state
    from ray.core.generated import gcs_pb2

    accessor: Any = state._connect_and_get_accessor()
    message: Any = gcs_pb2
    groups = map(message.PlacementGroupTableData.FromString, accessor.get_placement_group_table())
    return [
        group.placement_group_id.hex()
        for group in groups
        if group.creator_actor_id.hex() == creator and group.state != message.PlacementGroupTableData.REMOVED
    ]


def head_answers(address: str, timeout_s: float) -> bool:
    """Return whether a cluster's head answers at all, be it that it refuses; Ray's own client would wait for it."""
    import grpc
    from ray._private.grpc_utils import init_grpc_channel

    # With a pool of its own it connects anew, instead of waiting longer after each attempt that failed.
    options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
    with init_grpc_channel(address, options=options) as channel:
        try:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")(b"", timeout=timeout_s)
        except grpc.RpcError as error:
            return error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    return True


def draining_nodes() -> set[str]:
    """Return the ids of the nodes that are about to leave the cluster; the public functions do not tell."""
    from ray._private.state import state

    return {*state.get_draining_nodes()}


def head_client(address: str) -> Any:
    """Return a client of a cluster's head, which needs no node on this machine as ray.init does."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled

    return GcsClient(address=address)


def own_head_client() -> Any:
    """Return the client of the head that this process is connected to."""
    import ray

    worker: Any = ray._private.worker.global_worker
    return worker.gcs_client


@dataclass(frozen=True)
class HeadsNode:
    """A node as a `head_client` has it."""

    id: str
    name: str
    host: str


def alive_nodes(client: Any, timeout_s: float) -> list[HeadsNode]:
    """Return the nodes that are alive, as a `head_client` knows them."""
    nodes = client.get_all_node_info(timeout=timeout_s).items()
    return [
        HeadsNode(node_id.hex(), node.node_name, node.node_manager_hostname)
        for node_id, node in nodes
        if not node.state
    ]


def drain_node(client: Any, node_id: str, reason: str, deadline: float, timeout_s: float) -> None:
    """Have a node take no more work, and leave the cluster once it has none; `ray drain-node` is hidden.

    Args:
        client: Of the cluster's head.
        node_id: Its id.
        reason: Why, for the cluster's records.
        deadline: When it will be gone, in seconds since 1970.
        timeout_s: To wait for the head.
    """
    from ray.core.generated import autoscaler_pb2

    reasons: Any = autoscaler_pb2
    client.drain_node(node_id, reasons.DRAIN_NODE_REASON_PREEMPTION, reason, int(deadline * 1000), timeout=timeout_s)


def enable_token() -> bool:
    """Use the token on this machine, as ray.init does, and return whether there is one."""
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

    return bool(maybe_enable_token_auth_if_token_available(warn_if_disabled=False))


def disable_token() -> None:
    """Use no token, even if there is one on this machine; once Ray is imported, it does not read the variable again."""
    from ray._raylet import Config  # type: ignore[attr-defined]  # compiled

    os.environ["RAY_AUTH_MODE"] = "disabled"
    Config.initialize("")


def token_headers() -> tuple[tuple[str, str], ...]:
    """Use the token on this machine, and return the headers that carry it; () if there is none."""
    from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]  # compiled

    loader = AuthenticationTokenLoader.instance()
    if not (enable_token() and loader.has_token()):
        return ()
    return tuple((name.lower(), value) for name, value in loader.get_token_for_http_header().items())


def available_resources_per_node() -> dict[str, dict[str, float]]:
    """Return the free resources of each node, by its id; the public functions return their sum."""
    from ray._private.state import state

    free: dict[str, dict[str, float]] = state.available_resources_per_node()  # type: ignore[no-untyped-call]
    return free


def job_table() -> list[dict[str, Any]]:
    """Return the drivers that are or were connected; the public function needs the dashboard, which may be off."""
    from ray._private.state import state

    jobs: list[dict[str, Any]] = state.job_table()  # type: ignore[no-untyped-call]
    return jobs


def node_types() -> set[str]:
    """Return the node types that the cluster's monitor reports.

    Only they tell whether there is an autoscaler.
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


# The key-value store of the cluster's head: it outlives every process of a job, and unlike an actor needs no resources.


def kv_get(key: str, namespace: str | None = None) -> bytes | None:
    """Return the value of `key`, or None."""
    from ray.experimental.internal_kv import _internal_kv_get

    value: bytes | None = _internal_kv_get(key, namespace=namespace)
    return value


def kv_put(key: str, value: bytes, namespace: str) -> None:
    """Set the value of `key`, replacing an earlier one."""
    from ray.experimental.internal_kv import _internal_kv_put

    _internal_kv_put(key, value, True, namespace=namespace)


def kv_list(prefix: str, namespace: str) -> list[str]:
    """Return the keys that start with `prefix`."""
    from ray.experimental.internal_kv import _internal_kv_list

    return [key.decode() for key in _internal_kv_list(prefix, namespace=namespace)]


def kv_del(key: str, namespace: str) -> None:
    """Delete `key`."""
    from ray.experimental.internal_kv import _internal_kv_del

    _internal_kv_del(key, namespace=namespace)


def started_ray_is_gone() -> bool:
    """Return whether a process of the Ray that this process started has ended.

    Shutting Ray Serve down would then take a minute, and end this process.
    """
    from ray._private import worker

    node: Any = worker._global_node
    return node is None or bool(node.dead_processes())


def serve_is_running() -> bool:
    """Return whether Ray Serve runs on the cluster; serve.status() does not tell an idle Ray Serve from none."""
    import ray
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    try:
        ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    except ValueError:
        return False
    return True


def job_client_class(timeout_s: tuple[float, float]) -> Any:
    """Return a JobSubmissionClient without its logs, and with timeouts to connect and for a response."""
    from ray.job_submission import JobSubmissionClient

    # They log each upload and each end of a log, at levels of their own.
    for module in ("dashboard_sdk", "job.sdk"):
        logging.getLogger(f"ray.dashboard.modules.{module}").setLevel(logging.ERROR)

    class Client(JobSubmissionClient):
        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            return super()._do_request(method, endpoint, **{"timeout": timeout_s, **options})

    return Client


def server_version(client: Any) -> str:
    """Return the version of Ray that the job server runs, a private attribute of the client; '' if it has none."""
    return str(getattr(client, "_server_ray_version", None) or "")
