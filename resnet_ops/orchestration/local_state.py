"""The state file of the local cluster: where it is, and the folder with its token.

It is started and stopped by `local`. Machines and containers may share a home: each has a state file of its own, named
after its boot and its space of process ids, for only there can processes be told to be dead.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from resnet_ops.errors import UserError
from resnet_ops.machine import pid_space
from resnet_ops.orchestration import access_token, process_tree

# Set for the processes of the cluster, and inherited by those that they start.
MARKER_VARIABLE = "RESNET_OPS_LOCAL_CLUSTER"


@dataclass(frozen=True)
class LocalCluster:
    """The state file of a cluster on this machine; `address` is '' until the cluster is up."""

    mark: str
    folder: str
    nodes: int
    cpus_per_node: int
    address: str = ""
    dashboard: str = ""
    gpus: tuple[tuple[str, ...], ...] = ()  # of each node
    host: str = field(default_factory=socket.gethostname)
    pid_space: str = field(default_factory=pid_space)

    def processes(self) -> list[int]:
        """Return the ids of its running processes."""
        return process_tree.find_processes(f"{MARKER_VARIABLE}={self.mark}")

    @property
    def token_file(self) -> Path:
        """The file with its token."""
        return access_token.file_in(Path(self.folder))


def state_file() -> Path:
    """Return the path of the state file: one for each user on each machine and in each container."""
    return _state_folder() / f"local-cluster-{hashlib.sha256(pid_space().encode()).hexdigest()[:12]}.json"


def clusters_elsewhere() -> list[LocalCluster]:
    """Return the clusters of this user on other machines and in other containers, or before a restart of this one.

    Whether they still run can be told only there.
    """
    clusters = []
    for file in sorted(_state_folder().glob("local-cluster-*.json")):
        with contextlib.suppress(OSError, ValueError, TypeError):  # being written, or removed by now
            if file != state_file():
                clusters.append(LocalCluster(**json.loads(file.read_bytes())))
    return clusters


def describe_elsewhere(clusters: list[LocalCluster]) -> str:
    """Return what the user may want to know of clusters on other machines, or ''."""
    if not clusters:
        return ""
    names = ", ".join(f"{cluster.host} ({cluster.address or 'partly started'})" for cluster in clusters)
    return (
        f"Started on another machine, in another container or before a restart: {names}. Stop it there: "
        f"resnet-ops cluster down; if it is gone, remove its file in {_state_folder()}."
    )


def _state_folder() -> Path:
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "resnet-ops"


def running_cluster() -> LocalCluster | None:
    """Return the cluster of the state file if it is up, or None; the file is the user's own, in a private folder."""
    with contextlib.suppress(UserError):
        cluster = read_state()
        if cluster is not None and cluster.address and cluster.processes():
            return cluster
    return None


@contextlib.contextmanager
def lock_state() -> Iterator[None]:
    """Hold the lock that lets one command at a time start or stop the cluster."""
    file = state_file().with_suffix(".lock")
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        opened = file.open("w")
    except OSError as error:
        raise UserError(
            f"The state of local clusters cannot be written to {file.parent}: {error.strerror}.",
            "Set XDG_STATE_HOME, or HOME, to a folder that can be written.",
        ) from None
    with opened as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError("Another `resnet-ops cluster up` or `down` is running.", "Wait for it to finish.") from None
        yield


def read_state() -> LocalCluster | None:
    """Return the cluster of the state file, or None if there is none.

    Raises:
        UserError: The file cannot be read.
    """
    try:
        with state_file().open("rb") as opened:
            if os.fstat(opened.fileno()).st_uid != os.getuid():  # it names a folder to remove
                raise ValueError("another user wrote it")
            return LocalCluster(**json.load(opened))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{state_file()} cannot be read ({error}).", "Check for a local cluster with `ps`, then remove the file."
        ) from None


def write_state(cluster: LocalCluster) -> None:
    """Replace the state file, down to the disk."""
    file = state_file()
    temporary = file.with_suffix(".tmp")
    with temporary.open("w") as new:
        json.dump(asdict(cluster), new, indent=2)
        new.flush()
        os.fsync(new.fileno())
    temporary.replace(file)
