"""Connections to Ray: to a running cluster, or to a Ray that this process starts on this machine.

How a cluster's job server is reached from outside is in `job_client`.
"""

import contextlib
import logging
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from resnet_ops.cluster_config import ConnectionConfig
from resnet_ops.config_base import quoted
from resnet_ops.environment import reach_loopback_directly, safe_path
from resnet_ops.errors import WORK_FAILED, UserError
from resnet_ops.orchestration import access_token, local_state, ray_internals
from resnet_ops.orchestration.head_loss import WORKERS_SAVE_S, HeadWatch, head_loss
from resnet_ops.orchestration.packaging import copy_package
from resnet_ops.stop_request import PATIENCE_S, StopRequest

# Set before Ray is imported, which reads them then; a value that the user has set stays.
SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # interval of polling for results; with Ray's 2 s a run ends 4 s late
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",  # room that was free a moment ago is given at once, or was taken
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # not needed, and it warns at each start
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # workers keep the directory that relative paths start from
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the future default; silences a warning about it
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a thread that uses Ray after its shutdown would start another one, in 20 s
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
}


LOCAL, AUTO = "local", "auto"
REACH_TIMEOUT_S = 3.0
SHORT_TEMP = "/tmp"  # noqa: S108  # Ray makes a folder of its own in it
SOCKET_PATH_BYTES = 107  # the longest path of a Unix socket
BELOW_TEMP_BYTES = 68  # of that, what Ray adds to its folder: /session_2026-01-31_12-00-00_123456_1234567/sockets/...


def cluster_address(config: ConnectionConfig, nodes: int = 1) -> str:
    """Return the cluster that a job on up to so many nodes uses: 'local', 'auto', or an address."""
    if config.cluster is not None:
        return config.cluster
    return AUTO if _named_cluster() not in ("", LOCAL) or nodes > 1 else LOCAL


def _named_cluster() -> str:
    """Return the cluster that RAY_ADDRESS names: an address, 'auto', 'local', or '' for none.

    Raises:
        UserError: It names a server of another kind.
    """
    named = os.environ.get("RAY_ADDRESS", "").strip()
    scheme, separator, _ = named.partition("://")
    if not separator:
        return named
    named = f"{scheme}://{named.rpartition('@')[2].removeprefix(f'{scheme}://')}"  # without a password
    if scheme.lower() in ("http", "https"):
        raise UserError(
            f"RAY_ADDRESS is {named}, a job server, which this process cannot connect to.",
            f"Submit work to it: --cluster {quoted(named)}; or work on this machine: --cluster local, or unset "
            "RAY_ADDRESS.",
        )
    raise UserError(
        f"RAY_ADDRESS is {named}: Ray Client is not supported.",
        "Submit the work as a job: --cluster http://HEAD:8265; or work on this machine: --cluster local, or unset "
        "RAY_ADDRESS.",
    )


def set_hang_timeouts(hang_timeout: float) -> None:
    """Set when Ray takes workers for hanging, instead of after 10 minutes or never; before Ray is imported."""
    for timeout in ("WORKER_HEALTH_CHECK", "COLLECTIVE"):
        os.environ[f"RAY_TRAIN_{timeout}_TIMEOUT_S"] = str(hang_timeout)


def enable_nccl_hang_detector(hang_timeout: float) -> None:
    """Have Ray ask NCCL too whether its ranks still make progress; if NCCL cannot tell, Ray warns and does without."""
    os.environ.setdefault("RAY_TRAIN_ENABLE_NCCL_HANG_DETECTOR", "1")
    os.environ.setdefault("RAY_TRAIN_NCCL_RAS_ACTION", "fail")
    os.environ.setdefault("RAY_TRAIN_NCCL_RAS_CONFIRM_DURATION_S", str(hang_timeout))


def import_ray() -> None:
    """Import Ray with our settings, logging errors only."""
    reach_loopback_directly()
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    ray_internals.silence_worker_logs()
    ray_internals.keep_signals()
    logging.getLogger("ray").setLevel(logging.ERROR)


@contextlib.contextmanager
def local_ray(cpus: int, gpus: int, stop: StopRequest | None = None) -> Iterator[None]:
    """Start Ray on this machine for the length of a `with` block, or use the one that this process has started.

    Args:
        cpus: Cores that it claims.
        gpus: GPUs that it claims.
        stop: Ends this process where Ray is lost.
    """
    import_ray()
    import ray

    if ray.is_initialized():
        yield
        return
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(_temporary_folder())
        stack.enter_context(ray_internals.with_token_file(access_token.create(folder)))
        # In a folder below: Ray opens the one that it is given to all.
        options = {"num_cpus": cpus, "num_gpus": gpus, "include_dashboard": False, "_temp_dir": f"{folder}/r"}
        try:
            stack.enter_context(_session(stop, address=LOCAL, **options))
        except Exception as error:  # whatever Ray lacks on this machine
            raise UserError(
                f"Ray cannot be started on this machine, with its files in {folder}: {_reason(error).rstrip('.')}.",
                "RAY_TMPDIR chooses another folder for them; resnet-ops doctor checks the machine.",
                WORK_FAILED,
            ) from error
        yield


@contextlib.contextmanager
def _temporary_folder() -> Iterator[Path]:
    """Make a folder for Ray's token, sockets and logs that only this user can enter.

    It is in RAY_TMPDIR, or in TMPDIR where its path is short enough.

    Raises:
        UserError: RAY_TMPDIR is too long, or no folder can be made there.
    """
    most = SOCKET_PATH_BYTES - BELOW_TEMP_BYTES - len("/ray-12345678/r")
    chosen = os.environ.get("RAY_TMPDIR")
    parent = Path(chosen or tempfile.gettempdir()).absolute()
    if len(os.fsencode(parent)) > most:
        if chosen:
            raise UserError(
                f"RAY_TMPDIR is {chosen}, too long for the paths of Ray's sockets.",
                f"Use one of at most {most} bytes, such as RAY_TMPDIR={SHORT_TEMP}.",
            )
        parent = Path(SHORT_TEMP)
    try:
        folder = tempfile.mkdtemp(prefix="ray-", dir=parent)
    except OSError as error:
        raise UserError(
            f"Ray cannot be started on this machine, with its files in {parent}: {error.strerror}.",
            "RAY_TMPDIR chooses another folder for them.",
            WORK_FAILED,
        ) from None
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # Ray's processes may still write


@contextlib.contextmanager
def connected(address: str, stop: StopRequest | None = None) -> Iterator[None]:
    """Connect to a running cluster for the length of a `with` block, or use the connection of this process.

    Args:
        address: 'auto' (RAY_ADDRESS, or the cluster that runs on this machine) or host:port.
        stop: Ends this process where the cluster's head is lost.

    Raises:
        UserError: There is none, it cannot be reached, or it refuses the connection.
    """
    import_ray()
    import ray

    if ray.is_initialized():
        yield
        return
    address = resolve_address(address)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_token_of(address))
        ship = ray_internals.JOB_CONFIG_VARIABLE not in os.environ
        try:
            stack.enter_context(_session(stop, address=address, ship=ship))
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(
                f"The Ray cluster at {address} refused the connection ({_reason(error)}).",
                "Run this on a node of the cluster, or submit a job from outside: --cluster http://HEAD:8265.",
            ) from error
        yield


@contextlib.contextmanager
def _session(stop: StopRequest | None, **options: Any) -> Iterator[None]:
    """Call `_init`, watch the head for the length of a `with` block, and shut Ray down."""
    import ray

    try:
        _init(**options)
        with _head_watched(stop):
            yield
    finally:
        ray.shutdown()


def _reason(error: Exception) -> str:
    """Return the first line of an error of Ray's."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def _token_of(address: str) -> Iterator[None]:
    """Use the token of the cluster at `address`, or none if it requires none, for the length of a `with` block.

    Raises:
        UserError: As `_set_up_token`.
    """
    local = local_state.running_cluster()
    is_local = local is not None and local.address == address
    with ray_internals.with_token_file(local.token_file) if local and is_local else contextlib.nullcontext():
        _set_up_token(address)
        yield


@contextlib.contextmanager
def _head_watched(stop: StopRequest | None) -> Iterator[None]:
    """End this process, for the length of a `with` block, if the head is lost; Ray would, in a minute."""
    import ray

    head = ray.get_runtime_context().gcs_address
    request = stop or StopRequest()

    def end() -> None:
        time.sleep(WORKERS_SAVE_S)  # workers notice the loss by themselves
        request.give_up(head_loss(head))

    watch = HeadWatch(head, end)
    try:
        with watch.watching():
            yield
    finally:
        if watch.lost:  # Ray's shutdown would wait until Ray ends the process
            time.sleep(PATIENCE_S)


def _init(ship: bool = False, **options: Any) -> None:
    """Call ray.init without its logs; `ship` sends this resnet-ops to every node."""
    import ray

    with tempfile.TemporaryDirectory(prefix="resnet-ops-") as folder:
        if ship:
            options["runtime_env"] = {"py_modules": [str(copy_package(Path(folder)))]}
        # Workers import from the directory that this is called in before any other: a resnet_ops/ in it would take
        # precedence over the one that runs.
        working_directory: contextlib.AbstractContextManager[None] = contextlib.chdir(folder)
        if options["address"] == LOCAL:  # workers keep the directory, and do not import from it
            working_directory = contextlib.nullcontext()
            options |= {"job_config": ray_internals.job_config_of_driver(), "_node_ip_address": ray_internals.LOOPBACK}
        ray_internals.keep_loopback()
        with working_directory, safe_path():
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    if threading.current_thread() is threading.main_thread():  # Ray's C++ has put one before it, which writes a page
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


def resolve_address(address: str) -> str:
    """Turn 'auto' or an address into host:port.

    Raises:
        UserError: No cluster runs here and none is named, or the address is invalid.
    """
    if address.startswith("ray://"):
        raise UserError(
            f"--cluster {address}: training through Ray Client is not supported.",
            "Submit a job instead: --cluster http://HEAD:8265; or run this on a node of the cluster.",
        )
    import_ray()
    named = _named_cluster() if address == AUTO else ""
    if named == LOCAL:
        raise UserError("RAY_ADDRESS is local, which is no cluster to connect to.", "Unset it, or give --cluster.")
    if address == AUTO and named in ("", AUTO):
        return _address_here()
    try:
        resolved = ray_internals.bootstrap_address(named or address)
    except (ValueError, OSError):
        resolved = None
    if resolved:
        return resolved
    if named:
        raise UserError(f"RAY_ADDRESS is {named}, which is not an address.", "Addresses look like 10.0.0.1:6379.")
    raise UserError(f"--cluster {address} is not an address.", "Addresses look like 10.0.0.1:6379 or http://HEAD:8265.")


def _address_here() -> str:
    """Return the address of the cluster that runs on this machine: this user's or root's, as it may be sent the token.

    Raises:
        UserError: There is none, or more than one.
    """
    local = local_state.running_cluster()
    if local is not None:
        return local.address
    addresses = ray_internals.running_addresses()
    latest = ray_internals.latest_address()
    if latest in addresses:
        return latest
    if len(addresses) > 1:
        raise UserError(
            f"Several Ray clusters are running on this machine: {', '.join(sorted(addresses))}.",
            "Choose one: --cluster HOST:PORT, or RAY_ADDRESS.",
        )
    if not addresses:
        raise UserError(
            "No Ray cluster of yours is running on this machine, and RAY_ADDRESS is not set.",
            "Start a local one: resnet-ops cluster up --nodes 4; create a real one: resnet-ops cluster template; "
            "or give an address: --cluster.",
        )
    return addresses.pop()


def _set_up_token(address: str) -> None:
    """Use the token on this machine if the cluster requires one, and none if it does not.

    Ray by itself uses a token if there is one on this machine's disk. With one that the cluster does not use it
    connects, rejects the cluster's calls, and is then taken for dead.

    Raises:
        UserError: Nothing answers, or a token is required and there is none here or a wrong one.
    """
    import grpc

    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):  # Ray's own certificates; its errors are clear
        ray_internals.enable_token()
        return
    status = ray_internals.ask_for_cluster_id(address, (), REACH_TIMEOUT_S)
    if status == grpc.StatusCode.OK:
        ray_internals.disable_token()
        return
    if status != grpc.StatusCode.UNAUTHENTICATED:
        raise UserError(
            f"No Ray cluster answers at {address} ({status.name.lower().replace('_', ' ')}).",
            "Check that it is running and reachable; from outside, submit a job: --cluster http://HEAD:8265.",
        )
    if os.environ.get("RAY_AUTH_MODE") == "disabled":
        del os.environ["RAY_AUTH_MODE"]
    access_token.user_token()  # not one that others know
    headers = ray_internals.token_headers()
    if not headers or ray_internals.ask_for_cluster_id(address, headers, REACH_TIMEOUT_S) != grpc.StatusCode.OK:
        raise UserError(
            f"The Ray cluster at {address} requires a token, but "
            + ("the one here does not match." if headers else "there is none here."),
            access_token.REMEDY,
        )


@contextlib.contextmanager
def head_client(address: str) -> Iterator[Any]:
    """Yield Ray's client of a cluster's head: without a driver, it outlives this machine's node.

    Args:
        address: host:port.

    Raises:
        UserError: Nothing answers, or the cluster's token is not here.
    """
    import_ray()
    with _token_of(address):
        yield ray_internals.head_client(address)
