"""A Ray cluster of several nodes on this machine, for testing; it keeps running after the command that starts it.

Each node is a raylet that claims some cores and its share of the GPUs, and sees no others; the head node claims none,
so that `--nodes N` fits a cluster of N. All that they write is in one folder. Their processes, and those that they
start, are known by a marker in their environment: process ids are reused, and `ray stop` would end every cluster on the
machine. They listen on 127.0.0.1 only, and want the token in that folder. Its state file is in `local_state`.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated

from pydantic import Field

from resnet_ops.config_base import Config, Positive, option
from resnet_ops.errors import WORK_FAILED, UserError
from resnet_ops.machine import cores, read_gpus
from resnet_ops.orchestration import access_token, process_tree, ray_internals
from resnet_ops.orchestration.connect import AUTO, resolve_address
from resnet_ops.orchestration.local_state import (
    MARKER_VARIABLE,
    LocalCluster,
    clusters_elsewhere,
    lock_state,
    read_state,
    state_file,
    write_state,
)
from resnet_ops.results import Result

DASHBOARD_PORT = 8265  # Ray's default, if it is free
OBJECT_STORE_BYTES = 100_000_000  # training does not use it; Ray's minimum is 75 MB
START_S = 120.0
POLL_INTERVAL_S = 0.05
# Ports are chosen by the system: by default every node tries 52365 for its agent for 3.5 s, then does without, and uses
# 10002 to 19999 for its workers. Log monitors are not needed.
EVERY_NODE = (
    "--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0",
    "--include-log-monitor=False", "--disable-usage-stats", f"--object-store-memory={OBJECT_STORE_BYTES}",
)  # fmt: skip
# What the user has set for other clusters.
NOT_INHERITED = ("RAY_ADDRESS", access_token.TOKEN_VARIABLE)
ReportProgress = Callable[[str], None]


class LocalConfig(Config):
    """Size of the local cluster."""

    nodes: Annotated[int, option("Number of nodes, not counting the head node.", ge=1, le=64)] = 2
    cpus_per_node: Annotated[
        Positive | None,
        option(
            "CPU cores per node; the total may exceed the cores of this machine. By default 1, or where there are GPUs "
            "an even share of the cores."
        ),
    ] = None


class UpResult(Result):
    """The local cluster that was started."""

    address: str = Field(description="HOST:PORT of the head.")
    dashboard: str = Field(description="URL of the dashboard and of the job server.")
    nodes: int = Field(description="Nodes to train on.")
    cpus_per_node: int = Field(description="CPU cores that each claims.")
    gpus_per_node: tuple[int, ...] = Field(description="GPUs of each node, in order: this machine's, shared evenly.")
    folder: str = Field(description="Folder of all that it writes.")
    next_steps: tuple[str, ...] = Field(description="Commands to run next.")


class DownResult(Result):
    """The local cluster that was stopped, if there was one."""

    ended: bool = Field(description="Whether there was one.")
    address: str | None = Field(description="HOST:PORT that its head had.")
    nodes: int | None = Field(description="Nodes that it had to train on.")
    elsewhere: tuple[str, ...] = Field(
        (), description="Where else local clusters of this home were started: other machines, other containers."
    )


def up(config: LocalConfig, report_progress: ReportProgress) -> UpResult:
    """Start a cluster; if that fails or is interrupted, nothing of it remains.

    Args:
        config: Size of the cluster.
        report_progress: Called with what is being waited for.

    Raises:
        UserError: One is running already, or a node did not start.
    """
    with lock_state():
        old = read_state()
        if old is not None and old.processes():
            raise UserError(
                f"A local cluster of {old.nodes} nodes is already running ({old.address or 'partly started'}).",
                "Use it, or stop it first: resnet-ops cluster down.",
            )
        if old is not None:
            _remove(old)  # it ended with the machine or was killed, and left its folder
        # Not in TMPDIR: the path of a socket may have 107 characters, and Ray adds 68.
        folder = tempfile.mkdtemp(prefix="resnet-ops-", dir="/tmp")
        access_token.create(Path(folder))
        gpus = share_gpus([gpu.id for gpu in read_gpus()], config.nodes)
        cpus = config.cpus_per_node or (max(1, cores() // config.nodes) if any(gpus) else 1)
        cluster = LocalCluster(uuid.uuid4().hex, folder, config.nodes, cpus, gpus=gpus)
        try:
            write_state(cluster)  # first, so that `down` finds what a killed `up` has started
            cluster = _start(cluster, report_progress)
        except BaseException:
            _remove(cluster)
            raise
        return _up_result(cluster)


def down() -> DownResult:
    """Stop the cluster, if there is one, and remove all its files.

    Raises:
        UserError: One of its processes cannot be killed.
    """
    with lock_state():
        cluster = read_state()
        elsewhere = tuple(other.host for other in clusters_elsewhere())
        if cluster is None:
            return DownResult(ended=False, address=None, nodes=None, elsewhere=elsewhere)
        _remove(cluster)
        return DownResult(ended=True, address=cluster.address, nodes=cluster.nodes, elsewhere=elsewhere)


def share_gpus(gpus: Sequence[str], nodes: int) -> tuple[tuple[str, ...], ...]:
    """Divide GPUs among nodes as evenly as possible, neighbors together; the first nodes get what is left over."""
    share, rest = divmod(len(gpus), nodes)
    starts = [number * share + min(number, rest) for number in range(nodes + 1)]
    return tuple(tuple(gpus[start:end]) for start, end in pairwise(starts))


def _up_result(cluster: LocalCluster) -> UpResult:
    option = "" if _is_default(cluster) else f" --cluster {cluster.address}"
    usable = sum(map(bool, cluster.gpus)) or cluster.nodes  # a training takes GPUs where there are any
    return UpResult(
        address=cluster.address,
        dashboard=cluster.dashboard,
        nodes=cluster.nodes,
        cpus_per_node=cluster.cpus_per_node,
        gpus_per_node=tuple(map(len, cluster.gpus)),
        folder=cluster.folder,
        next_steps=(
            f"resnet-ops train --nodes {usable}{option}",
            f"resnet-ops train --nodes {usable} --cluster {cluster.dashboard}",
            f"resnet-ops cluster status{option}",
            "resnet-ops cluster down",
        ),
    )


def _is_default(cluster: LocalCluster) -> bool:
    """Return whether 'auto' finds this cluster here, rather than another one."""
    with contextlib.suppress(UserError):
        return resolve_address(AUTO) == cluster.address
    return False


def _start(cluster: LocalCluster, report_progress: ReportProgress) -> LocalCluster:
    report_progress("Starting the head")
    dashboard_port = _free_port(DASHBOARD_PORT)
    head = _start_node(
        cluster,
        "head",
        (),
        "--head",
        "--port=0",
        "--num-cpus=0",
        "--no-monitor",  # no autoscaler: there is nothing to scale
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard_port}",
    )
    _wait_until_started(cluster, {"head": head})
    address = Path(cluster.folder, "head", "ray_current_cluster").read_text().strip()
    cluster = replace(cluster, address=address, dashboard=f"http://127.0.0.1:{dashboard_port}")
    report_progress(f"Starting {cluster.nodes} nodes")
    gpus_by_node = {f"node-{number}": gpus for number, gpus in enumerate(cluster.gpus, 1)}
    options = (f"--address={address}", f"--num-cpus={cluster.cpus_per_node}")
    starting = {name: _start_node(cluster, name, gpus, *options) for name, gpus in gpus_by_node.items()}
    _wait_until_started(cluster, starting)
    write_state(cluster)
    return cluster


def _start_node(cluster: LocalCluster, name: str, gpus: Sequence[str], *options: str) -> "subprocess.Popen[bytes]":
    """Run `ray start`, which exits once the node is up, in a session of its own that outlives the terminal."""
    environment = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED} | {
        MARKER_VARIABLE: cluster.mark,
        # The job server runs `python`: this one, also where its virtual environment is not activated.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "RAY_AUTH_MODE": "token",
        access_token.FILE_VARIABLE: str(cluster.token_file),
        "PYTHONSAFEPATH": "1",
        "CUDA_VISIBLE_DEVICES": ",".join(gpus),  # or every node would number its GPUs from 0
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_START_HOOK": f"{ray_internals.__name__}.{ray_internals.start_on_loopback.__name__}",
    }
    with _log(cluster, name).open("wb") as log:
        return subprocess.Popen(  # noqa: S603
            [
                sys.executable, "-m", "ray.scripts.scripts", "start", *EVERY_NODE, *options, f"--num-gpus={len(gpus)}",
                f"--node-name={name}", f"--temp-dir={cluster.folder}/{name}",
            ],
            env=environment, cwd=cluster.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip


def _wait_until_started(cluster: LocalCluster, starting: dict[str, "subprocess.Popen[bytes]"]) -> None:
    deadline = time.monotonic() + START_S
    while starting:
        for name, process in list(starting.items()):
            code = process.poll()
            if code == 0:
                del starting[name]
            elif code is not None or time.monotonic() > deadline:
                lines = [line for line in _log(cluster, name).read_text(errors="replace").splitlines() if line.strip()]
                reason = lines[-1].strip()[:300] if lines else f"exit code {code}"
                late = "" if code is not None else f" within {START_S:.0f} s"
                raise UserError(
                    f"{name} of the local cluster did not start{late}: {reason}",
                    "Check this machine with resnet-ops doctor, or use fewer --nodes.",
                    WORK_FAILED,
                )
        time.sleep(POLL_INTERVAL_S)


def _free_port(preferred: int) -> int:
    """Return a free port of 127.0.0.1: `preferred`, if it is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", preferred))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _log(cluster: LocalCluster, name: str) -> Path:
    return Path(cluster.folder, f"{name}.log")


def _remove(cluster: LocalCluster) -> None:
    """End the cluster's processes and remove its files, as far as they still exist."""
    remaining = process_tree.end_processes(f"{MARKER_VARIABLE}={cluster.mark}")
    if remaining:
        raise UserError(
            f"Processes of the local cluster cannot be killed: {', '.join(map(str, remaining))}.",
            "They are waiting for a disk or a device; try again later.",
            WORK_FAILED,
        )
    shutil.rmtree(cluster.folder, ignore_errors=True)
    state_file().unlink(missing_ok=True)
