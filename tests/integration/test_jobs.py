"""Jobs on a real Ray cluster with token authentication: a head node of this file's own, on this machine."""

import contextlib
import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import typer

from resnet_ops.config import TrainConfig
from resnet_ops.orchestration import jobs
from resnet_ops.orchestration.code import shippable_code
from tests.conftest import COMMAND, Ended
from tests.integration.test_cli import refused

TOKEN = "t0ken-of-these-tests-and-of-nothing-else"
LONG = ("--model", "resnet8", "--epochs", 300)  # it is stopped long before
SHORT = ("--model", "resnet8", "--epochs", 2)


def environment(**changes: str) -> dict[str, str]:
    """This process's environment without what would reach another cluster; the venv's python comes first."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**kept, "PATH": f"{Path(sys.executable).parent}:{kept['PATH']}", **changes}


def interruptible() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # shells start what runs in the background with it ignored


def wait_for(found: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
    return value


@dataclass(frozen=True)
class Cluster:
    """A cluster's job server, and how to ask it."""

    address: str
    token_file: Path
    runs_dir: Path

    @property
    def env(self) -> dict[str, str]:
        return environment(RAY_AUTH_TOKEN_PATH=str(self.token_file))

    def start(self, *arguments: object, **options: Any) -> "subprocess.Popen[str]":
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return subprocess.Popen(
            [*COMMAND, *map(str, arguments), "--cluster", self.address],
            text=True,
            env=self.env,
            preexec_fn=interruptible,
            **options,
        )

    def ask(self, *arguments: object) -> Ended:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=120)
        assert TOKEN not in out + err
        assert "Traceback" not in err, err
        return Ended(process.returncode, out, err)

    def train(self, *arguments: object, **options: Any) -> "subprocess.Popen[str]":
        return self.start("train", *arguments, "--runs-dir", self.runs_dir, **options)

    def record(self, name: str) -> dict[str, Any]:
        record: dict[str, Any] = json.loads((self.runs_dir / name / "run.json").read_text())
        return record

    def epochs(self, name: str) -> list[int]:
        file = self.runs_dir / name / "metrics.jsonl"
        return [json.loads(line)["epoch"] for line in file.read_text().splitlines()] if file.exists() else []

    def jobs(self) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = self.ask("jobs", "list", "--json").json["jobs"]
        return listed


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="rj", dir="/tmp"))  # sockets' paths must be short
    token_file = folder / "token"
    token_file.write_text(TOKEN + "\n")
    # Other installations of resnet-ops: where the cluster was started, and on its Python's path.
    here, installed = folder / "here", folder / "installed"
    for other in (here, installed):
        (other / "resnet_ops").mkdir(parents=True)
        (other / "resnet_ops" / "__init__.py").write_text(f"raise ImportError('the other one, {other.name}')\n")
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(4)]
    gcs, dashboard, agent, client = (free.getsockname()[1] for free in sockets)
    for free in sockets:
        free.close()
    start = (
        f"trap '' INT; exec {sys.executable} -m ray.scripts.scripts start --head --block --num-cpus=2 "
        f"--temp-dir={folder}/ray --disable-usage-stats "
        f"--dashboard-host=127.0.0.1 --port={gcs} --dashboard-port={dashboard} --ray-client-server-port={client} "
        f"--dashboard-agent-listen-port={agent} --object-store-memory=100000000"
    )
    log = folder / "head.log"
    with log.open("w") as output:
        head = subprocess.Popen(
            ["sh", "-c", start],
            cwd=here,
            env=environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token_file), PYTHONPATH=str(installed)),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        made = Cluster(f"http://127.0.0.1:{dashboard}", token_file, folder / "runs")
        try:
            wait_for(lambda: made.ask("jobs", "list").code == 0 or head.poll() is not None, 60)
        finally:
            assert head.poll() is None, log.read_text()
        yield made
    finally:
        for pid in descendants(head.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


def descendants(pid: int) -> list[int]:
    """A process and all below it: Ray gives its own groups of their own."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def pid_of(*words: str) -> int:
    """The process whose command line holds all these words."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = file.read_text().replace("\0", " ")
            if all(word in line for word in words) and "train --cluster http" not in line and "exec python" not in line:
                return int(file.parent.name)
    return 0


def test_a_job_is_submitted_shown_and_told(cluster: Cluster) -> None:
    began = time.monotonic()
    process = cluster.train(*SHORT, "--json")
    assert process.stderr is not None
    assert process.stdout is not None
    job_line = process.stderr.readline()
    submitted_s = time.monotonic() - began
    first_line = process.stderr.readline()
    print(f"submitted after {submitted_s:.1f} s, first line after {time.monotonic() - began:.1f} s")
    out, err = process.communicate(timeout=60)
    print(f"over after {time.monotonic() - began:.1f} s")
    assert process.returncode == 0, err
    assert job_line.startswith("job resnet-ops-resnet8-digits-")
    told = Ended(0, out, err).json
    assert re.fullmatch(r"resnet8-digits-[0-9a-f]{6}", told["name"])
    assert re.fullmatch(rf"resnet-ops-{told['name']}-[0-9a-f]{{6}}", told["job_id"])
    assert told["status"] == "finished"
    assert told["run_dir"] == str(cluster.runs_dir / told["name"])
    assert cluster.epochs(told["name"]) == [1, 2]
    assert "epoch 2/2" in err
    assert "validation accuracy" in err
    assert "{" not in err  # the object at the end is for programs
    assert TOKEN not in job_line + first_line + out + err
    (job,) = [job for job in cluster.jobs() if job["job_id"] == told["job_id"]]
    assert job["status"] == "SUCCEEDED"
    assert job["run"] == told["name"]


def test_nothing_secret_is_kept(cluster: Cluster) -> None:
    """Neither in what the server knows of a job, nor in what a run has written."""
    listed = subprocess.run(
        [sys.executable, "-c", f"from ray.job_submission import JobSubmissionClient as C; "
         f"print([j.json() for j in C('{cluster.address}').list_jobs()])"],
        env={**cluster.env, "RAY_AUTH_MODE": "token"}, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "resnet_ops_run" in listed
    assert TOKEN not in listed
    files = [file for file in cluster.runs_dir.rglob("*") if file.is_file()]
    assert any(file.name == "run.json" for file in files)
    assert not [file for file in files if TOKEN.encode() in file.read_bytes()]
