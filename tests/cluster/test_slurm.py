"""The batch script on a real Slurm with several nodes on this machine: `make test-slurm`.

The nodes share one host, one address and one /tmp, which is harder than machines of their own: nothing of Ray's may
have a fixed port or place.
"""

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from resnet_ops.orchestration import templates
from resnet_ops.orchestration.template_values import ClusterValues
from tests.cluster.slurm import Slurm, slurm
from tests.cluster.test_templates import TRAINED
from tests.conftest import COMMAND

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

# In the place of `resnet-ops`: it does with the cluster what a test wants to see, and leaves a run directory.
STAND_IN = """
import json, os, signal, sys, time
from pathlib import Path

import ray

options = dict(zip(sys.argv[2:], sys.argv[3:]))
name = options.get("--name") or options["--resume"]
run = Path(options["--runs-dir"], name)
run.mkdir(parents=True, exist_ok=True)
ray.init(address="auto", log_to_driver=False)
nodes = int(name.rpartition("-")[2])
while len([n for n in ray.nodes() if n["Alive"]]) < nodes:
    time.sleep(0.2)

@ray.remote(num_cpus=1, scheduling_strategy="SPREAD")
def where():
    time.sleep(2)
    names = "SLURM_JOB_ID", "SLURMD_NODENAME", "SLURM_STEP_GPUS"
    return ray.get_runtime_context().get_node_id(), *(os.environ.get(name, "") for name in names)

tasks = ray.get([where.remote() for _ in range(nodes)])
record = {
    "argv": sys.argv[1:], "tasks": tasks, "status": "finished", "pid": os.getpid(),
    "nodes": [{k: n[k] for k in ("NodeID", "NodeManagerAddress", "NodeManagerPort", "Resources")} for n in ray.nodes()],
}
if name.startswith("long") and "--resume" not in options:
    record["status"] = "running"
    def stopped(*_):
        (run / "stopped").touch()
        sys.exit(75)
    signal.signal(signal.SIGTERM, stopped)
    signal.signal(signal.SIGUSR1, stopped)
(run / "run.json.new").write_text(json.dumps(record))
(run / "run.json.new").rename(run / "run.json")
while record["status"] == "running":
    time.sleep(0.1)
if name.startswith("fail"):
    sys.exit(7)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Slurm]:
    with slurm(count=3, cpus=4) as cluster:
        yield cluster


def environment_with(resnet_ops: str, folder: Path) -> Path:
    """Return a stand-in for a virtual environment: this one's Python and Ray, and a chosen resnet-ops."""
    ray = f"{sys.executable} -c 'from ray.scripts.scripts import main; main()'"
    (folder / "bin").mkdir(parents=True)
    for name, command in {"python": sys.executable, "ray": ray, "resnet-ops": resnet_ops}.items():
        (folder / "bin" / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (folder / "bin" / name).chmod(0o755)
    return folder


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """An environment whose resnet-ops is the stand-in."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    return environment_with(f"{sys.executable} {tmp_path / 'stand_in.py'}", tmp_path / "environment")


def write(cluster: Slurm, folder: Path, **values: Any) -> tuple[Path, Path]:
    """Write the script, and return it and the storage."""
    storage = cluster.folder / "storage"
    small: dict[str, Any] = {"cpus_per_node": 1, "memory_gib": 4, "shm_gib": 1, "storage_path": storage}
    trained = {name: values.pop(name, usual) for name, usual in TRAINED.items()}
    written = templates.write("slurm", ClusterValues.of(**small | values), trained, folder / str(values["name"]))
    return written.files[0], storage


def record(storage: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((storage / "runs" / name / "run.json").read_text())
    return content


def until(true: Any, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.2)


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def processes_of(job: str) -> dict[int, tuple[str, str]]:
    """Command lines and environments of all processes that have the job's ID in their environment."""
    processes = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes().decode(errors="replace")
            line = (process / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
        except OSError:
            continue
        if f"\0SLURM_JOB_ID={job}\0" in f"\0{environment}" and int(process.name) != os.getpid():
            processes[int(process.name)] = (line, environment)
    return processes


def folders_of(job: str) -> set[Path]:
    """The temporary folders of the job's Ray nodes."""
    lines = " ".join(line for line, _ in processes_of(job).values())
    return {Path(folder) for folder in re.findall(r"--temp-dir=(/tmp/ray-\w{6})/r ", lines)}


def left_nothing(job: str) -> bool:
    return not [line for line, _ in processes_of(job).values() if "slurmstepd" not in line]


@pytest.mark.parametrize(("nodes", "gpus"), [(1, 0), (3, 2)])
def test_each_slurm_node_becomes_one_ray_node(
    cluster: Slurm, stand_in: Path, tmp_path: Path, nodes: int, gpus: int
) -> None:
    script, storage = write(
        cluster, tmp_path, name=f"spread-{nodes}", nodes=str(nodes), gpus_per_node=gpus, environment=stand_in
    )
    job = cluster.submit(script)
    state = cluster.wait(job, "COMPLETED", "FAILED")
    assert state["JobState"] == "COMPLETED", cluster.logs()
    result = record(storage, f"spread-{nodes}")
    assert len(result["nodes"]) == nodes
    assert len({node["NodeManagerPort"] for node in result["nodes"]}) == nodes
    assert {node["Resources"]["CPU"] for node in result["nodes"]} == {1}
    assert {node["Resources"].get("GPU", 0) for node in result["nodes"]} == {gpus}
    assert {devices for _, _, _, devices in result["tasks"]} == ({"0,1"} if gpus else {""})
    assert {name for _, _, name, _ in result["tasks"]} == {f"n{i}" for i in range(1, nodes + 1)}
    assert "--cluster" in result["argv"]
    # The run is for whom the user's umask lets see it; only the job's own folder is closed.
    assert stat.S_IMODE((storage / "runs" / f"spread-{nodes}").stat().st_mode) == 0o777 & ~umask()
    until(lambda: left_nothing(job), 20)
    logs = storage / "slurm" / f"{job}.0" / "logs"
    assert {folder.name for folder in logs.iterdir()} == {f"n{i}" for i in range(1, nodes + 1)}
    assert all((folder / "raylet.out").exists() for folder in logs.iterdir())


def test_two_jobs_share_the_hosts_and_do_not_meet(cluster: Slurm, stand_in: Path, tmp_path: Path) -> None:
    names = ["long-a-2", "long-b-2"]
    jobs = {}
    for name in names:
        script, storage = write(cluster, tmp_path, name=name, nodes="2", environment=stand_in)
        jobs[name] = cluster.submit(script)
    until(lambda: all((storage / "runs" / name / "run.json").exists() for name in names))
    ids = []
    for name in names:
        result = record(storage, name)
        assert {job for _, job, _, _ in result["tasks"]} == {jobs[name]}
        ids += [node["NodeID"] for node in result["nodes"]]
    assert len(set(ids)) == 4

    # The token: in a file of the user's own, in no command line and no environment.
    for job in jobs.values():
        token_file = storage / "slurm" / f"{job}.0" / "ray_token"
        assert stat.S_IMODE(token_file.stat().st_mode) == 0o600
        assert stat.S_IMODE(token_file.parent.stat().st_mode) == 0o700
        token = token_file.read_text()
        assert len(token) == 64
        running = processes_of(job)
        assert any("raylet" in line for line, _ in running.values())
        for line, environment in running.values():
            assert token not in line
            assert token not in environment
        texts = [f.read_text(errors="replace") for f in token_file.parent.glob("*.log")]
        assert not any(token in text for text in texts)

    folders = {name: folders_of(job) for name, job in jobs.items()}
    assert [len(job_folders) for job_folders in folders.values()] == [2, 2]
    assert {stat.S_IMODE(folder.stat().st_mode) for job_folders in folders.values() for folder in job_folders} == {
        0o700
    }
    cluster.run("scancel", jobs["long-a-2"])
    cluster.wait(jobs["long-a-2"], "CANCELLED")
    until(lambda: left_nothing(jobs["long-a-2"]), 20)
    assert not left_nothing(jobs["long-b-2"])
    cluster.run("scancel", jobs["long-b-2"])
    until(lambda: left_nothing(jobs["long-b-2"]), 20)
    assert not [folder for job_folders in folders.values() for folder in job_folders if folder.exists()]


def test_nobody_without_the_token_gets_in(cluster: Slurm, stand_in: Path, tmp_path: Path) -> None:
    script, storage = write(cluster, tmp_path, name="long-locked-1", nodes="1", environment=stand_in)
    job = cluster.submit(script)
    until(lambda: (storage / "runs" / "long-locked-1" / "run.json").exists())
    (address,) = {
        part.partition("=")[2]
        for _, environment in processes_of(job).values()
        for part in environment.split("\0")
        if part.startswith("RAY_ADDRESS=") and part.count(":") == 1
    }
    code = f"import ray; ray.init(address={address!r}); print('inside', len(ray.nodes()))"
    for token, metadata in (("0" * 64, False), ((storage / "slurm" / f"{job}.0" / "ray_token").read_text(), True)):
        environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
        tried = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert ("inside 1" in tried.stdout) == metadata, tried.stderr
    cluster.run("scancel", job)
    until(lambda: left_nothing(job), 20)


@pytest.mark.parametrize("name", ["long-again-2", "long-killed-2"])
def test_a_job_whose_time_is_up_or_that_is_killed_is_queued_again_and_goes_on(
    cluster: Slurm, stand_in: Path, tmp_path: Path, name: str
) -> None:
    script, storage = write(cluster, tmp_path, name=name, nodes="2", retries=1, environment=stand_in)
    job = cluster.submit(script)
    run = storage / "runs" / name
    until((run / "run.json").exists)
    assert "--name" in record(storage, name)["argv"]
    assert cluster.state(job)["Requeue"] == "1"
    if name == "long-killed-2":
        os.kill(record(storage, name)["pid"], signal.SIGKILL)
    else:
        cluster.run("scancel", "--batch", "--signal=USR1", job)  # as Slurm does for `--signal=B:USR1@120`
        until((run / "stopped").exists)
    cluster.wait(job, "PENDING", "REQUEUED")
    until(lambda: left_nothing(job), 20)
    assert not (storage / "slurm" / f"{job}.0" / "ray_token").exists()
    time.sleep(3)  # a credential of the second in which the first try was killed is not taken
    cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now")  # Slurm would wait two minutes
    state = cluster.wait(job, "COMPLETED", "FAILED")
    assert (state["JobState"], state["Restarts"]) == ("COMPLETED", "1"), cluster.logs()
    result = record(storage, name)
    assert result["status"] == "finished"
    assert result["argv"][:3] == ["train", "--resume", name]
    assert len(result["nodes"]) == 2


def test_a_run_that_fails_fails_the_job(cluster: Slurm, stand_in: Path, tmp_path: Path) -> None:
    script, _ = write(cluster, tmp_path, name="fail-1", nodes="1", environment=stand_in)
    state = cluster.wait(cluster.submit(script), "COMPLETED", "FAILED")
    assert (state["JobState"], state["ExitCode"], state["Restarts"]) == ("FAILED", "7:0", "0")


def test_ray_that_does_not_start_fails_the_job_and_names_the_log(
    cluster: Slurm, stand_in: Path, tmp_path: Path
) -> None:
    (stand_in / "bin" / "ray").write_text("#!/bin/sh\necho no ray today\nexit 1\n")
    script, storage = write(cluster, tmp_path, name="broken-1", nodes="1", environment=stand_in)
    job = cluster.submit(script)
    assert cluster.wait(job, "COMPLETED", "FAILED")["JobState"] == "FAILED"
    head_log = storage / "slurm" / f"{job}.0" / "head.log"
    assert f"see {head_log}" in (cluster.folder / f"broken-1-{job}.log").read_text()
    assert "no ray today" in head_log.read_text()


def test_resnet_ops_itself_trains_on_two_nodes(cluster: Slurm, tmp_path: Path) -> None:
    environment = environment_with(COMMAND[0], tmp_path / "environment")
    script, storage = write(
        cluster, tmp_path, name="real", nodes="2", epochs=3, model="resnet8", environment=environment
    )
    state = cluster.wait(cluster.submit(script), "COMPLETED", "FAILED", seconds=400)
    assert state["JobState"] == "COMPLETED", cluster.logs()
    result = record(storage, "real")
    assert (result["status"], result["world_size"]) == ("finished", 2)
