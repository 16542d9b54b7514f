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
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import COMMAND, Ended
from tests.integration.test_cli import refused
from tests.json_keys import assert_keys
from tests.processes import command_line, descendants, parent_of
from tests.waiting import wait_for

TOKEN = "t0ken-of-these-tests-and-of-nothing-else"
LONG = ("--model", "resnet8", "--epochs", 300)  # it is stopped long before
SHORT = ("--model", "resnet8", "--epochs", 2)


def environment(**changes: str) -> dict[str, str]:
    """This process's environment without what would reach another cluster; the venv's python comes first."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**kept, "PATH": f"{Path(sys.executable).parent}:{kept['PATH']}", **changes}


def interruptible() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # shells start what runs in the background with it ignored


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


def rest_of(process: "subprocess.Popen[str]") -> tuple[str, str]:
    """The rest of stderr, of which lines were read before (communicate loses what is buffered), and stdout."""
    assert process.stderr is not None
    assert process.stdout is not None
    rest = process.stderr.read(), process.stdout.read()
    process.wait()
    return rest


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="rj", dir="/tmp"))  # sockets' paths must be short
    token_file = folder / "token"
    token_file.write_text(TOKEN + "\n")
    token_file.chmod(0o600)
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
            env=environment(
                RAY_AUTH_MODE="token",
                RAY_AUTH_TOKEN_PATH=str(token_file),
                PYTHONPATH=str(installed),
                GOMP_SPINCOUNT="0",  # two jobs share two cores here: threads that wait must not spin
            ),
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


def driver_of(option: str) -> int:
    """The driver of the job with this option: a child of the process that supervises it, with the same command line."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        words = command_line(int(file.parent.name)).split(b"\0")
        if b"resnet_ops.cli.main" in words and option.encode() in words:
            found.append(int(file.parent.name))
    (driver,) = (pid for pid in found if parent_of(pid) in found)
    assert b"JobSupervisor" in command_line(parent_of(parent_of(driver)))
    return driver


def test_a_job_is_submitted_shown_and_told(cluster: Cluster, record_property: Callable[[str, object], None]) -> None:
    began = time.monotonic()
    process = cluster.train(*SHORT, "--json")
    assert process.stderr is not None
    assert process.stdout is not None
    job_line = process.stderr.readline()
    submitted_s = time.monotonic() - began
    first_line = process.stderr.readline()
    record_property("seconds to the job's id and to its first line", (submitted_s, time.monotonic() - began))
    err, out = rest_of(process)
    assert process.returncode == 0, err
    assert job_line.startswith("job resnet-ops-resnet8-digits-")
    told = Ended(0, out, err).json
    assert re.fullmatch(r"resnet8-digits-[0-9a-f]{6}", told["name"])
    assert re.fullmatch(rf"resnet-ops-{told['name']}-[0-9a-f]{{6}}", told["job_id"])
    assert told["status"] == "finished"
    assert "run_dir" in told, err
    assert told["run_dir"] == str(cluster.runs_dir / told["name"])
    assert cluster.epochs(told["name"]) == [1, 2]
    assert re.search(r"^ *2/2 ", err, re.MULTILINE)
    assert "validation accuracy" in err
    assert "entrypoint" not in err
    assert "INFO" not in err
    assert "{" not in err  # the object at the end is for programs
    assert TOKEN not in job_line + first_line + out + err
    (job,) = [job for job in cluster.jobs() if job["job_id"] == told["job_id"]]
    assert job["status"] == "SUCCEEDED"
    assert job["run"] == told["name"]
    assert json.loads(last_line_of_a_log_closed_early(cluster, job["job_id"]))["run_dir"] == told["run_dir"]
    assert_keys("train as a job", told)
    assert_keys("jobs list", cluster.ask("jobs", "list", "--json").json | {"jobs": [job]})
    for command in ("logs", "stop"):
        assert_keys(f"jobs {command}", cluster.ask("jobs", command, job["job_id"], "--json").json)


def last_line_of_a_log_closed_early(cluster: Cluster, job_id: str) -> str:
    """What is heard last of a job that has ended, where the connection is cut after the log's first line."""
    code = (
        "from resnet_ops.orchestration.jobs import JobServer, JobLog\n"
        f"server = JobServer('{cluster.address}')\n"
        "tail = server._client.tail_job_logs\n"
        "async def cut(job_id):\n"
        "    async for piece in tail(job_id):\n"
        "        yield piece[: piece.index('\\n') + 1]\n"
        "        return\n"
        "server._client.tail_job_logs = cut\n"
        "lines = []\n"
        f"server.follow(JobLog('{job_id}'), lines.append)\n"
        "print(lines[-1])\n"
    )
    return subprocess.check_output([sys.executable, "-c", code], env=cluster.env, text=True)


@pytest.mark.slow
def test_a_search_runs_as_a_job_with_the_files_that_are_here(cluster: Cluster, tmp_path: Path) -> None:
    space, recipe = tmp_path / "space.toml", tmp_path / "mine.toml"
    space.write_text("weight_decay = [0.0, 1e-3]\n")
    recipe.write_text("epochs = 2\nmomentum = 0.8\n")
    options = (
        "--depths",
        8,
        "--lr",
        0.1,
        "--search",
        "grid",
        "--scheduler",
        "none",
        "--space",
        space,
        "--recipe",
        recipe,
    )
    ended = cluster.ask("tune", *options, "--runs-dir", cluster.runs_dir, "--name", "searched", "--json")
    assert ended.code == 0, ended.err
    told = ended.json
    assert [(t["status"], t["epochs"]) for t in told["trials"]] == [("finished", 2)] * 2
    assert {t["options"]["weight_decay"] for t in told["trials"]} == {0.0, 1e-3}
    assert told["job_id"].startswith("resnet-ops-searched-")
    config = cluster.record("searched")["config"]
    assert (config["model"], config["momentum"], config["epochs"]) == ("resnet8", 0.8, 2)
    refused(cluster.ask("tune", "lr=1:0.1", "--runs-dir", cluster.runs_dir), "the range 1:0.1 is inverted")


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


def test_the_shipped_code_is_needed(cluster: Cluster) -> None:
    """Without it a job here finds another resnet-ops: those that ran in these tests ran what was shipped."""
    code = (
        "from ray.job_submission import JobSubmissionClient as C\n"
        f"client = C('{cluster.address}')\n"
        "job = client.submit_job(entrypoint='python -m resnet_ops.cli.main --version')\n"
        "import time\n"
        "while not client.get_job_status(job).is_terminal(): time.sleep(0.2)\n"
        "print(client.get_job_logs(job), client.get_job_info(job).driver_exit_code)\n"
    )
    env = {**cluster.env, "RAY_AUTH_MODE": "token"}
    said = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    assert "the other one, here" in said
    assert said.split()[-1] == "1"
    assert "raysubmit_" not in cluster.ask("jobs", "list").out  # it is not one of ours
    assert "raysubmit_" in cluster.ask("jobs", "list", "--all").out


@pytest.mark.slow
def test_detached_then_listed_read_and_stopped(cluster: Cluster) -> None:
    process = cluster.train(*LONG, "--name", "left")
    wait_for(lambda: cluster.epochs("left"))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130, err
    last = err.splitlines()[-1]
    assert last.startswith("interrupted: Detached; job resnet-ops-left-")
    job_id = last.split()[3]
    assert f"resnet-ops jobs logs {job_id} --cluster {cluster.address}" in last
    assert f"resnet-ops jobs stop {job_id}" in last
    assert not out

    seen = len(cluster.epochs("left"))
    listed = cluster.ask("jobs", "list")
    row = next(line for line in listed.out.splitlines() if line.startswith(job_id))
    for word in ("left", "running", "just now", "train --model=resnet8"):
        assert word in row, row

    logs = cluster.ask("jobs", "logs", "left", "--no-follow")
    assert logs.code == 0
    assert "\n  1/300 " in logs.out
    wait_for(lambda: len(cluster.epochs("left")) > seen)  # it does go on

    refused(cluster.ask("jobs", "stop", job_id[:-1] + "x"), "no job or run called", f"Did you mean {job_id}?")
    stopped = cluster.ask("jobs", "stop", "left", "--json")
    assert stopped.code == 0, stopped.err
    assert stopped.json["status"] == "STOPPED"
    record = cluster.record("left")
    assert record["status"] == "interrupted"
    assert list((cluster.runs_dir / "left" / "checkpoints").iterdir())
    assert "had already finished: stopped" in cluster.ask("jobs", "stop", job_id).out
    followed = cluster.ask("jobs", "logs", job_id)
    assert "Training stopped. Last intact checkpoint:" in followed.out
    assert followed.out.startswith(logs.out[:200])


@pytest.mark.slow
def test_ctrl_c_on_a_terminal_asks_and_stops(cluster: Cluster) -> None:
    ours, theirs = pty.openpty()
    process = cluster.train(*LONG, "--name", "asked", "--json", stdin=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    shown = ""

    def reads(word: str) -> bool:
        nonlocal shown
        if select.select([ours], [], [], 0.1)[0]:
            with contextlib.suppress(OSError):  # the other end is closed
                shown += os.read(ours, 65536).decode()
        return word in shown

    wait_for(lambda: reads("  2/300 "))
    process.send_signal(signal.SIGINT)
    wait_for(lambda: reads("Detach (the job keeps running) or stop it? [d/s]"))
    os.write(ours, b"s\n")
    wait_for(lambda: reads("interrupted"))
    out, _ = process.communicate(timeout=20)
    reads("")
    os.close(ours)
    assert process.returncode == 130, shown
    told = json.loads(out)
    assert told["status"] == "interrupted"
    assert "Training stopped. Last intact checkpoint:" in told["error"]
    assert f"--resume asked --runs-dir {cluster.runs_dir} --cluster {cluster.address}" in told["remedy"]
    assert shown.count("interrupted") == 1, shown
    assert cluster.record("asked")["status"] == "interrupted"
    assert [job["status"] for job in cluster.jobs() if job["run"] == "asked"] == ["STOPPED"]


def test_a_second_ctrl_c_leaves_the_job(cluster: Cluster) -> None:
    ours, theirs = pty.openpty()
    process = cluster.train(*LONG, "--name", "twice", stdin=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    shown = ""
    for word in ("job resnet-ops-twice", "[d/s]"):
        while word not in shown:
            assert select.select([ours], [], [], 30)[0], shown
            shown += os.read(ours, 65536).decode()
        process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 130
    os.close(ours)
    assert [job["status"] for job in cluster.jobs() if job["run"] == "twice"] in (["RUNNING"], ["PENDING"])
    assert cluster.ask("jobs", "stop", "twice").code == 0


@pytest.mark.slow
def test_a_driver_that_is_killed_is_started_again_whether_or_not_somebody_follows(cluster: Cluster) -> None:
    """Once while the job is followed, and once afterwards."""
    options = ("--model", "resnet8", "--epochs", 120, "--cpus-per-worker", 1, "--max-failures", 2)
    process = cluster.train(*options, "--name", "killed")
    for resumed, trained in ((0, 2), (1, 30)):
        wait_for(lambda trained=trained: len(cluster.epochs("killed")) >= trained)
        os.kill(driver_of("--name=killed"), signal.SIGKILL)  # forked, so it is called as the first one
        if not resumed:
            wait_for(lambda: cluster.record("killed")["resumed"] == 1)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=20)
            assert process.returncode == 130
            assert "The job's driver was killed (signal 9); resuming from the last checkpoint (1 more" in err
    wait_for(lambda: [job["status"] for job in cluster.jobs() if job["run"] == "killed"] == ["SUCCEEDED"], 120)
    assert cluster.epochs("killed") == list(range(1, 121))
    assert cluster.record("killed")["resumed"] == 2


def test_what_the_work_answers_comes_back(cluster: Cluster) -> None:
    """Its error, once, and its exit code; such a job is not submitted again."""
    process = cluster.train("--model", "resnet8", "--data", "/nowhere/x.parquet", "--name", "wrong", "--json")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2, err
    told = Ended(2, out, err).json
    assert "does not exist" in told["error"]
    assert told["job_id"].startswith("resnet-ops-wrong-")
    assert [line for line in err.splitlines() if line.startswith("error: ")] == [err.splitlines()[-1]]
    assert len([job for job in cluster.jobs() if job["run"] == "wrong"]) == 1


class Wire:
    """A TCP connection to the cluster that can be cut: what a network between here and there does."""

    def __init__(self, address: str) -> None:
        self.port = int(address.rpartition(":")[2])
        self.server = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.server.getsockname()[1]}"
        self.whole = True
        self.open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            near, _ = self.server.accept()
            if not self.whole:
                near.close()
                continue
            far = socket.create_connection(("127.0.0.1", self.port))
            self.open += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._pass_on, args=(one, other), daemon=True).start()

    def _pass_on(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        self.whole = False
        for end in self.open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self.open.clear()


@pytest.mark.slow
def test_a_cut_connection_is_made_anew(cluster: Cluster) -> None:
    wire = Wire(cluster.address)
    process = subprocess.Popen(
        [*COMMAND, "train", "--model", "resnet8", "--epochs", "14", "--runs-dir", str(cluster.runs_dir),
         "--name", "cut", "--cluster", wire.address],
        env=cluster.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    shown = ""
    while "epoch  2/14" not in shown:
        shown += process.stderr.readline()
    wire.cut()
    time.sleep(2)
    wire.whole = True
    rest, out = rest_of(process)
    assert process.returncode == 0, rest
    seen = re.findall(r"^epoch +(\d+)/14", shown + rest, re.MULTILINE)
    assert seen == [str(epoch) for epoch in range(1, 15)]  # none is missing, none shown twice
    assert re.fullmatch(
        r"Job resnet-ops-cut-\w+ succeeded in \d+ s: \d\d\.\d\d% validation accuracy, chosen on .*\n", out
    )


def test_sigterm_leaves_the_job(cluster: Cluster) -> None:
    """Nobody is there to be asked, be it on a terminal."""
    ours, theirs = pty.openpty()
    process = cluster.train(*LONG, "--name", "term", stdin=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    shown = ""
    while "job resnet-ops-term" not in shown:
        shown += os.read(ours, 65536).decode()
    process.terminate()
    assert process.wait(timeout=20) == 130
    os.close(ours)
    # Asked to stop while it is being started it does not miss it, though this head ignores SIGINT.
    assert cluster.ask("jobs", "stop", "term", "--json").json["status"] == "STOPPED"
    assert len(cluster.epochs("term")) < 300


@pytest.mark.parametrize(
    ("token", "words"),
    [
        ({}, ["requires a token, but none was sent (HTTP 401)", "RAY_AUTH_TOKEN"]),
        ({"RAY_AUTH_TOKEN": "not-the-token"}, ["rejected the token (HTTP 403)"]),
        ({"RAY_AUTH_TOKEN_PATH": "/nowhere/token"}, ["RAY_AUTH_TOKEN_PATH is set to /nowhere/token"]),
        ({"RAY_AUTH_TOKEN": "two\nlines"}, ["contains invalid characters"]),
    ],
)
@pytest.mark.parametrize("asked", [["jobs", "list"], ["train"]])
def test_without_the_right_token(
    cluster: Cluster, tmp_path: Path, asked: list[str], token: dict[str, str], words: list[str]
) -> None:
    where = ["--runs-dir", "/shared"] if asked == ["train"] else []
    ended = subprocess.run(
        [*COMMAND, *asked, *where, "--cluster", cluster.address],
        env=environment(HOME=str(tmp_path), **token), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    refused(Ended(ended.returncode, ended.stdout, ended.stderr), *words)
    assert "not-the-token" not in ended.stderr
    assert "lines" not in ended.stderr


def test_the_token_is_found_where_ray_looks(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / ".ray").mkdir()
    file = tmp_path / ".ray" / "auth_token"
    file.write_text(TOKEN)
    file.chmod(0o600)
    for variables in (
        {"HOME": str(tmp_path)},
        {"RAY_AUTH_TOKEN": TOKEN},
        {"RAY_AUTH_MODE": "token", "HOME": str(tmp_path)},
    ):
        # Another cluster's address in Ray's variables must not win over the option.
        env = environment(RAY_API_SERVER_ADDRESS="http://127.0.0.1:9", RAY_ADDRESS="127.0.0.1:9", **variables)
        asked = [*COMMAND, "jobs", "list", "--cluster", cluster.address]
        ended = subprocess.run(asked, env=env, capture_output=True, text=True, timeout=60, check=False)
        assert ended.returncode == 0, ended.stderr
    env = {**environment(RAY_AUTH_TOKEN=TOKEN, RAY_API_SERVER_ADDRESS=cluster.address)}
    ended = subprocess.run([*COMMAND, "jobs", "list"], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
