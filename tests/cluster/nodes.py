"""A cluster of several Ray nodes on this machine, and a run on it that can be disturbed."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ray.cluster_utils import Cluster

from resnet_ops.runs import Run
from resnet_ops.training import checkpoint as checkpoints
from tests.conftest import COMMAND
from tests.processes import command_line, parent_of

Node = Any  # of Ray's own; its class has no public name
NODE = {"num_cpus": 1, "object_store_memory": 80 << 20}


class Nodes:
    """A head without CPUs, and nodes of one CPU each; as much of a cluster as fits on one machine."""

    def __init__(self, count: int, job_server: bool = False) -> None:
        if job_server:  # jobs run the `python` that is first on the nodes' PATH
            os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        head = NODE | {"num_cpus": 0, "include_dashboard": job_server, "dashboard_port": 0}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address: str = self.cluster.address
        self.job_server = f"http://{self.cluster.webui_url}" if job_server else ""
        self.living = [self.cluster.add_node(wait=False, **NODE) for _ in range(count)]
        self.cluster.wait_for_nodes()

    def add(self) -> None:
        """Add a node."""
        self.living.append(self.cluster.add_node(**NODE))

    def workers(self) -> dict[int, Node]:
        """Return the processes of training workers, and the nodes that they are on."""
        return self.processes(b"RayTrainWorker")

    def processes(self, title: bytes) -> dict[int, Node]:
        """Return the processes of Ray with this in their title, and the nodes that they are on, the head included."""
        nodes = [self.cluster.head_node, *self.living]
        raylets = {node.all_processes["raylet"][0].process.pid: node for node in nodes}
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                line, environment = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
            except OSError:
                continue
            raylet = re.search(rb"\0RAY_RAYLET_PID=(\d+)\0", environment)
            if title in line and raylet and int(raylet[1]) in raylets:
                found[int(folder.name)] = raylets[int(raylet[1])]
        return found

    def kill(self, node: Node) -> None:
        """Kill a node's raylet; its workers notice."""
        self.living.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)

    def close(self) -> None:
        """Shut the cluster down."""
        self.cluster.shutdown()


def job_processes(run: Run) -> list[int]:
    """Return the processes of the job that trains a run: the one that supervises, then the driver."""
    names, folder = {f"--{option}={run.name}".encode() for option in ("name", "resume")}, str(run.path.parent).encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        words = command_line(int(process.name)).split(b"\0")
        if b"resnet_ops.cli.main" in words and names.intersection(words) and b"--runs-dir=" + folder in words:
            found.append(int(process.name))
    return sorted(found, key=lambda pid: parent_of(pid) in found)


class Training:
    """`resnet-ops train` in a process of its own, on a cluster."""

    def __init__(self, runs_dir: Path, name: str, *options: object) -> None:
        self.run = Run(runs_dir / name)
        self.log = runs_dir / f"{name}.log"
        self.options = ("--name", name, "--runs-dir", runs_dir, *options)
        self.start(*self.options)

    def start(self, *options: object) -> None:
        """Start, or resume."""
        with self.log.open("a") as log:
            self.process = subprocess.Popen([*COMMAND, "train", *map(str, options)], stdout=log, stderr=log)

    def again(self) -> None:
        """Start anew, as the first time."""
        self.start(*self.options)

    def resume(self, *options: object) -> None:
        """Resume the run."""
        self.start("--resume", self.run.name, "--runs-dir", self.run.path.parent, *options)

    def progress(self) -> tuple[int, int]:
        """Return the current epoch and step; (0, 0) before the first."""
        progress, _ = self.run.read_progress()
        return (progress["epoch"], progress["step"]) if progress and "epoch" in progress else (0, 0)

    def wait_until(self, condition: Callable[[], bool], timeout_s: float = 90) -> None:
        """Wait for something to come true while it trains."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert self.process.poll() is None, self.log.read_text()[-2000:]
            assert time.monotonic() < deadline, self.log.read_text()[-2000:]
            time.sleep(0.02)

    def wait_for_step_after(self, position: tuple[int, int]) -> None:
        """Wait until it has trained beyond a step."""
        self.wait_until(lambda: self.progress() > position)

    def ended(self, timeout_s: float = 120) -> int:
        """Wait for its end, and return its exit code."""
        return self.process.wait(timeout_s)

    def kill(self) -> None:
        """Kill the driver; its workers notice, and end."""
        self.process.kill()
        self.process.wait()

    def weights(self) -> dict[str, torch.Tensor]:
        """Return all tensors of the last checkpoint."""
        last = checkpoints.read(checkpoints.saved_checkpoints(self.run)[0])
        assert last.info.epoch == self.run.read_as_written().config.epochs
        return last.model | {f"optimizer/{name}": value for name, value in last.optimizer.items()}


def assert_same_bytes(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    """Assert that two states are the same, bit for bit."""
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].numpy().tobytes() == second[name].numpy().tobytes(), name
