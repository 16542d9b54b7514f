"""A Ray cluster of several nodes on this one machine, to try things on; it outlives the command that starts it.

Each node is a raylet that claims some cores. The head is one more that claims none: it coordinates,
so that `--nodes N` fits a cluster of N. All they write lies in one folder of the user's own, and a
mark in their environment tells their processes, and those they start, from everybody else's:
process ids are used again, and `ray stop` would end every cluster of the machine.
"""

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from resnet_ops.errors import WORK_FAILED, UserError
from resnet_ops.options import Config, Positive, option
from resnet_ops.orchestration import process_tree
from resnet_ops.orchestration.connect import AUTO, resolve_address
from resnet_ops.orchestration.ray_internals import address_file
from resnet_ops.results import Result

MARK = "RESNET_OPS_LOCAL_CLUSTER"
DASHBOARD_PORT = 8265  # Ray's own, where nobody has it
OBJECT_STORE_BYTES = 100_000_000  # training passes nothing through it; Ray wants 75 MB
START_S = 120.0
LOOK_INTERVAL_S = 0.05
# Ports are found by the system: given none, every node wants 52365 for its agent, tries for 3.5 s, and goes on
# without, and takes 10002 to 19999 for its workers. Nobody reads what log monitors would pass on.
EVERY_NODE = (
    "--num-gpus=0", "--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0",
    "--include-log-monitor=False", "--disable-usage-stats", f"--object-store-memory={OBJECT_STORE_BYTES}",
)  # fmt: skip
LogEvent = Callable[[str], None]


class LocalConfig(Config):
    """What to start."""

    nodes: Annotated[int, option("Number of nodes, not counting the head node.", ge=1, le=64)] = 2
    cpus_per_node: Annotated[
        Positive, option("CPU cores per node; the total may exceed the cores of this machine.")
    ] = 1


@dataclass(frozen=True)
class LocalCluster:
    """A cluster on this machine, as its state file holds it; `address` is '' until it is up."""

    mark: str
    folder: str
    nodes: int
    cpus_per_node: int
    address: str = ""
    dashboard: str = ""
    address_before: str = ""  # the cluster that 'auto' found before this one

    def processes(self) -> list[int]:
        """The ids of its living processes."""
        return process_tree.find_processes(f"{MARK}={self.mark}")


class UpResult(Result):
    """A local cluster that is up."""

    address: str = Field(description="HOST:PORT of the head.")
    dashboard: str = Field(description="URL of the dashboard and of the job server.")
    nodes: int = Field(description="Nodes to train on.")
    cpus_per_node: int = Field(description="CPU cores that each claims.")
    folder: str = Field(description="Folder of all that it writes.")
    next_steps: tuple[str, ...] = Field(description="Commands to go on with.")


class DownResult(Result):
    """A local cluster that was ended."""

    ended: bool = Field(description="Whether there was one.")
    address: str | None = Field(description="HOST:PORT that its head had.")
    nodes: int | None = Field(description="Nodes that it had to train on.")


def state_file() -> Path:
    """Where it is remembered which cluster runs: one for each user."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "resnet-ops" / "local-cluster.json"


def up(config: LocalConfig, log_event: LogEvent) -> UpResult:
    """Start a cluster; if that fails or is interrupted, nothing stays.

    Args:
        config: What to start.
        log_event: Told what is being waited for.

    Raises:
        UserError: One runs already, or a node did not come up.
    """
    with _alone():
        old = _read()
        if old is not None and old.processes():
            raise UserError(
                f"A local cluster of {old.nodes} nodes is already running ({old.address or 'partly started'}).",
                "Use it, or stop it first: resnet-ops cluster down.",
            )
        if old is not None:
            _end(old)  # the machine was started anew, or somebody has killed it: its folder is left
        _ensure_token()
        # Not in TMPDIR: the path of a socket may have 107 characters, and Ray adds 68.
        folder = tempfile.mkdtemp(prefix="resnet-ops-", dir="/tmp")
        cluster = LocalCluster(uuid.uuid4().hex, folder, config.nodes, config.cpus_per_node)
        try:
            _write(cluster)  # first of all, so that `down` finds what a killed `up` has started
            cluster = _start(cluster, log_event)
        except BaseException:
            _end(cluster)
            raise
        return _up(cluster)


def down() -> DownResult:
    """End the cluster, if there is one, and remove all it left.

    Raises:
        UserError: A process of it cannot be killed.
    """
    with _alone():
        cluster = _read()
        if cluster is not None:
            _end(cluster)
        if cluster is None:
            return DownResult(ended=False, address=None, nodes=None)
        return DownResult(ended=True, address=cluster.address, nodes=cluster.nodes)


def _up(cluster: LocalCluster) -> UpResult:
    place = "" if _is_found(cluster) else f" --cluster {cluster.address}"
    return UpResult(
        address=cluster.address,
        dashboard=cluster.dashboard,
        nodes=cluster.nodes,
        cpus_per_node=cluster.cpus_per_node,
        folder=cluster.folder,
        next_steps=(
            f"resnet-ops train --nodes {cluster.nodes}{place}",
            f"resnet-ops train --nodes {cluster.nodes} --cluster {cluster.dashboard}",
            f"resnet-ops cluster status{place}",
            "resnet-ops cluster down",
        ),
    )


def _is_found(cluster: LocalCluster) -> bool:
    """Whether 'auto' finds this cluster from here, and not another one."""
    with contextlib.suppress(UserError):
        return resolve_address(AUTO) == cluster.address
    return False


def _start(cluster: LocalCluster, log_event: LogEvent) -> LocalCluster:
    log_event("Starting the head")
    dashboard_port = _free_port(DASHBOARD_PORT)
    head = _begin(
        cluster,
        "head",
        "--head",
        "--port=0",
        "--num-cpus=0",
        "--no-monitor",  # of an autoscaler, which has nothing to scale
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard_port}",
    )
    _finish(cluster, {"head": head})
    address = Path(cluster.folder, "head", "ray_current_cluster").read_text().strip()
    cluster = replace(cluster, address=address, dashboard=f"http://127.0.0.1:{dashboard_port}")
    log_event(f"Starting {cluster.nodes} nodes")
    names = [f"node-{number}" for number in range(1, cluster.nodes + 1)]
    options = (f"--address={address}", f"--num-cpus={cluster.cpus_per_node}")
    _finish(cluster, {name: _begin(cluster, name, *options) for name in names})
    cluster = replace(cluster, address_before=_announce(address))
    _write(cluster)
    return cluster


def _begin(cluster: LocalCluster, name: str, *options: str) -> "subprocess.Popen[bytes]":
    """Run `ray start`, which leaves once the node is up; in a session of its own, which no terminal's end reaches."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {
        MARK: cluster.mark,
        "RAY_AUTH_MODE": "token",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_START_HOOK": f"{__name__}.without_client_server",
    }
    with _log(cluster, name).open("wb") as log:
        return subprocess.Popen(  # noqa: S603
            [
                sys.executable, "-m", "ray.scripts.scripts", "start", *EVERY_NODE, *options,
                f"--node-name={name}", f"--temp-dir={cluster.folder}/{name}",
            ],
            env=environment, cwd=cluster.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip


def without_client_server(parameters: Any, head: bool) -> None:  # noqa: ARG001
    """Called within `ray start`, which has no option for it: no door for Ray Client, which nothing here uses."""
    parameters.ray_client_server_port = None


def _finish(cluster: LocalCluster, starting: dict[str, "subprocess.Popen[bytes]"]) -> None:
    deadline = time.monotonic() + START_S
    while starting:
        for name, process in list(starting.items()):
            code = process.poll()
            if code == 0:
                del starting[name]
            elif code is not None or time.monotonic() > deadline:
                words = [line for line in _log(cluster, name).read_text(errors="replace").splitlines() if line.strip()]
                why = words[-1].strip()[:300] if words else f"exit code {code}"
                late = "" if code is not None else f" within {START_S:.0f} s"
                raise UserError(
                    f"{name} of the local cluster did not start{late}: {why}",
                    "Check this machine with resnet-ops doctor, or use fewer --nodes.",
                    WORK_FAILED,
                )
        time.sleep(LOOK_INTERVAL_S)


def _free_port(wanted: int) -> int:
    """A port of 127.0.0.1 that nobody listens on: `wanted` if it is one, else any."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _log(cluster: LocalCluster, name: str) -> Path:
    return Path(cluster.folder, f"{name}.log")


def _end(cluster: LocalCluster) -> None:
    """Kill what carries the cluster's mark, and remove its traces; what is gone already is no mistake."""
    left = process_tree.end_processes(f"{MARK}={cluster.mark}")
    if left:
        raise UserError(
            f"Processes of the local cluster cannot be killed: {', '.join(map(str, left))}.",
            "They are waiting for a disk or a device; try again later.",
            WORK_FAILED,
        )
    if cluster.address:
        _withdraw(cluster)
    shutil.rmtree(cluster.folder, ignore_errors=True)
    state_file().unlink(missing_ok=True)


def _announce(address: str) -> str:
    """Be the cluster that 'auto' finds, and Ray's own tools; returns the one they found before."""
    file = address_file()
    with contextlib.suppress(OSError):  # another user's: 'auto' then still finds this one if it is the only one
        if not file.parent.exists():
            file.parent.mkdir(parents=True)
            file.parent.chmod(0o1777)  # other users' clusters go there too
        before = file.read_text().strip() if file.exists() else ""
        file.write_text(address)
        return before
    return ""


def _withdraw(cluster: LocalCluster) -> None:
    file = address_file()
    with contextlib.suppress(OSError):
        if file.read_text().strip() != cluster.address:
            return
        if cluster.address_before:
            file.write_text(cluster.address_before)
        else:
            file.unlink()


def _ensure_token() -> None:
    """Have a token where Ray looks for it: whoever has none could run anything on this cluster as this user.

    Raises:
        UserError: One is named that is not there.
    """
    if os.environ.get("RAY_AUTH_TOKEN"):
        return
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if named and not Path(named).is_file():
        raise UserError(f"RAY_AUTH_TOKEN_PATH is set to {named}, which does not exist.", "Correct it, or unset it.")
    file = Path(named) if named else Path.home() / ".ray" / "auth_token"
    if file.is_file() and file.read_text().strip():
        return
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    file.touch(mode=0o600)
    file.chmod(0o600)
    file.write_text(secrets.token_hex(32))


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Let one command at a time change what runs."""
    file = state_file().with_suffix(".lock")
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError("Another `resnet-ops cluster up` or `down` is running.", "Wait for it to finish.") from None
        yield


def _read() -> LocalCluster | None:
    try:
        return LocalCluster(**json.loads(state_file().read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{state_file()} cannot be read ({error}).", "Check for a local cluster with `ps`, then remove the file."
        ) from None


def _write(cluster: LocalCluster) -> None:
    file = state_file()
    temporary = file.with_suffix(".tmp")
    with temporary.open("w") as new:
        json.dump(asdict(cluster), new, indent=2)
        new.flush()
        os.fsync(new.fileno())
    temporary.replace(file)
