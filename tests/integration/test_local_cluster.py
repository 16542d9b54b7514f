"""`resnet-ops cluster up`, `status` and `down`: real raylets, a real job on them, and nothing left behind."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from resnet_ops.orchestration import templates
from resnet_ops.orchestration.local import share_gpus
from resnet_ops.orchestration.template_values import ClusterValues
from tests.cluster.namespaces import missing_requirement
from tests.conftest import COMMAND, command
from tests.json_keys import assert_keys
from tests.ports import listening
from tests.waiting import wait_for

MARK = "RESNET_OPS_LOCAL_CLUSTER"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An environment whose local cluster, token and 'auto' are this module's own."""
    folder = tmp_path_factory.mktemp("home")
    ours = {"HOME": str(folder), "XDG_STATE_HOME": str(folder / "state")}
    rest = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = rest | ours
    yield environment
    command("cluster", "down", env=environment)


@pytest.fixture(scope="module")
def up(home: dict[str, str]) -> dict[str, Any]:
    inactive = home | {"PATH": "/usr/bin:/bin"}  # of a shell in which this virtual environment is not activated
    ended = command("cluster", "up", "--nodes", 2, "--json", env=inactive)
    assert ended.returncode == 0, ended.stderr
    result: dict[str, Any] = json.loads(ended.stdout)
    assert_keys("cluster up", result)
    return result


def state_files(home: dict[str, str]) -> list[Path]:
    return list(Path(home["XDG_STATE_HOME"], "resnet-ops").glob("local-cluster-*.json"))


def status(home: dict[str, str]) -> dict[str, Any]:
    ended = command("cluster", "status", "--json", env=home)
    assert ended.returncode == 0, ended.stderr
    result: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return result


def traces(folder: str) -> list[str]:
    """Command lines of the living processes that name `folder`, or whose environment does."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            told = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
        except OSError:
            continue
        if folder.encode() in told:
            found.append(told.decode(errors="replace")[-200:])
    return found


def test_up_says_where_it_is_and_how_to_go_on(home: dict[str, str], up: dict[str, Any]) -> None:
    assert (up["nodes"], up["cpus_per_node"]) == (2, 1)
    assert "resnet-ops train --nodes 2" in up["next_steps"]
    assert "resnet-ops cluster down" in up["next_steps"]
    assert Path(up["folder"]).stat().st_mode & 0o777 == 0o700  # Ray makes its own folders open to all


def test_its_jobs_find_this_python_though_its_environment_is_not_activated(up: dict[str, Any]) -> None:
    paths = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{up['folder']}/head/".encode() in (process / "cmdline").read_bytes():
                environment = (process / "environ").read_bytes().decode().split("\0")
                paths |= {entry.partition("=")[2] for entry in environment if entry.startswith("PATH=")}
    (path,) = paths
    assert path.endswith(":/usr/bin:/bin")
    ask = "import sys, typer; print(sys.prefix)"
    told = subprocess.run(
        ["/bin/sh", "-c", 'exec python -c "$0"', ask], env={"PATH": path}, capture_output=True, text=True
    )
    assert told.stdout.strip() == sys.prefix, told.stderr


def test_another_container_with_the_same_home_leaves_it_alone(home: dict[str, str], up: dict[str, Any]) -> None:
    if reason := missing_requirement():
        pytest.skip(reason)
    (state,) = state_files(home)
    before = state.read_bytes()
    within = ["unshare", "--pid", "--uts", "--mount-proc", "--fork", "sh", "-c", 'hostname other && exec "$@"', "sh"]
    elsewhere = home | {"RAY_TMPDIR": home["XDG_STATE_HOME"]}  # which has a /tmp of its own
    for arguments in (["down", "--json"], ["status"]):
        told = subprocess.run(
            [*within, *COMMAND, "cluster", *arguments], env=elsewhere, capture_output=True, text=True, timeout=60
        )
        assert f"{socket.gethostname()} ({up['address']})" in told.stderr, told.stderr
        if "--json" in arguments:
            ended = json.loads(told.stdout)
            assert (ended["ended"], ended["elsewhere"]) == (False, [socket.gethostname()])
    assert state.read_bytes() == before
    assert state_files(home) == [state]
    assert traces(up["folder"])


def test_nobody_gets_in_without_the_token(home: dict[str, str], up: dict[str, Any]) -> None:
    token = Path(up["folder"], "token")
    assert token.stat().st_mode & 0o777 == 0o600
    assert not Path(home["HOME"], ".ray").exists()  # the token of the user's other clusters, if any
    asked = urllib.request.Request(f"{up['dashboard']}/api/jobs/")
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(asked, timeout=20)
    assert refusal.value.code == 401
    asked.add_header("Authorization", f"Bearer {token.read_text()}")
    with urllib.request.urlopen(asked, timeout=20) as answer:
        assert json.load(answer) == []


def test_it_listens_on_loopback_only(up: dict[str, Any]) -> None:
    sockets = listening(up["folder"])
    assert len(sockets) >= 3 * 2 + 2  # of each node at least raylet's two, and the head's
    assert [address for address in sockets if not address.is_loopback] == []
    assert up["address"].startswith("127.0.0.1:")


def test_jobs_are_listed_with_its_own_token(home: dict[str, str], up: dict[str, Any]) -> None:
    for where in ((), ("--cluster", up["dashboard"])):
        ended = command("jobs", "list", *where, "--json", env=home | {"RAY_AUTH_TOKEN": "of-another-cluster"})
        assert ended.returncode == 0, ended.stderr
        assert json.loads(ended.stdout)["cluster"] == up["dashboard"]


def test_tools_of_ray_are_let_in_with_what_the_docs_say(home: dict[str, str], up: dict[str, Any]) -> None:
    ours = {
        "RAY_ADDRESS": up["address"], "RAY_AUTH_TOKEN_PATH": f"{up['folder']}/token", "RAY_AUTH_MODE": "token",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }  # fmt: skip
    code = "import ray; ray.init(logging_level='error'); print(len(ray.nodes()))"
    ended = subprocess.run([sys.executable, "-c", code], env=home | ours, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["3"]


def test_status_shows_the_nodes_and_what_fits(home: dict[str, str], up: dict[str, Any]) -> None:
    seen = status(home)
    assert_keys("cluster status", seen)
    assert seen["address"] == up["address"]
    assert [(n["name"], n["cpus"], n["free_cpus"], n["state"]) for n in seen["nodes"]] == [
        ("head", 0, 0, "alive"),
        ("node-1", 1, 1, "alive"),
        ("node-2", 1, 1, "alive"),
    ]
    assert seen["totals"] == {"nodes": 3, "cpus": 2, "gpus": 0, "free_cpus": 2, "free_gpus": 0}
    assert seen["fits"] == {"device": "cpu", "nodes": 2, "workers_per_node": 1, "options": "--nodes 2"}
    assert seen["running"] == []


@pytest.mark.slow
def test_what_fits_trains_and_is_seen_running(home: dict[str, str], up: dict[str, Any], tmp_path: Path) -> None:
    job = subprocess.Popen(
        [*COMMAND, "train", "--nodes", "2", "--model", "resnet8", "--epochs", "20", "--name", "r", "--json"],
        cwd=tmp_path, env=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for((tmp_path / "runs" / "r" / "metrics.jsonl").exists, 60)
    seen = status(home)
    assert seen["totals"]["free_cpus"] == 0
    assert seen["fits"] is None
    (running,) = seen["running"]
    assert "train --nodes 2" in running["command"]
    assert abs(time.time() - running["started"]) < 60
    out, err = job.communicate(timeout=120)
    assert job.returncode == 0, err
    result = json.loads(out)
    assert (result["status"], result["world_size"]) == ("finished", 2)
    wait_for(lambda: status(home)["totals"]["free_cpus"] == 2)


@pytest.mark.slow
@pytest.mark.parametrize(("code", "status"), [(1, "STOPPED"), (75, "FAILED")])
def test_what_kuberay_submits_ends_so_that_its_operator_retries_what_may_succeed(
    home: dict[str, str], up: dict[str, Any], tmp_path: Path, code: int, status: str
) -> None:
    name = f"job-{code}"
    texts = templates.render("kuberay", ClusterValues.of(name=name, storage_path=tmp_path), {})
    script = yaml.safe_load(texts["rayjob.yaml"].partition("\n---\n")[0])["data"]["train.sh"]
    assert "http://127.0.0.1:8265" in script
    ray = f"{sys.executable} -m ray.scripts.scripts"
    (tmp_path / "train.sh").write_text(
        f'resnet-ops() {{ return {code}; }}\nenv() {{ command env -u RAY_ADDRESS {ray} "${{@:4}}"; }}\n'
        + script.replace("http://127.0.0.1:8265", up["dashboard"])
    )
    token = home | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": f"{up['folder']}/token"}
    submit = [*ray.split(), "job", "submit", "--address", up["dashboard"], "--submission-id", name, "--"]
    ended = subprocess.run(
        [*submit, "bash", str(tmp_path / "train.sh")], env=token, capture_output=True, text=True, timeout=90
    )
    listed = json.loads(command("jobs", "list", "--all", "--json", env=home).stdout)["jobs"]
    assert {job["job_id"]: job["status"] for job in listed}[name] == status, ended.stdout + ended.stderr


def test_what_does_not_fit_is_refused_at_once_with_a_table(
    home: dict[str, str], up: dict[str, Any], tmp_path: Path
) -> None:
    began = time.monotonic()
    ended = command("train", "--nodes", 5, "--json", env=home, cwd=tmp_path)
    assert time.monotonic() - began < 5
    assert ended.returncode == 2
    table, error = ended.stderr.splitlines()[:-1], ended.stderr.splitlines()[-1]
    assert table[0].split() == ["node", "CPUs", "free"]
    assert sorted(line.split()[0] for line in table[1:]) == ["head", "node-1", "node-2"]
    assert error.startswith("error: --nodes 5 needs 5 nodes with a CPU core each; this cluster has 2")
    assert {node["name"] for node in json.loads(ended.stdout)["nodes"]} == {"head", "node-1", "node-2"}
    assert not (tmp_path / "runs").exists()


def test_a_second_one_is_refused(home: dict[str, str], up: dict[str, Any]) -> None:
    ended = command("cluster", "up", env=home)
    assert ended.returncode == 2
    assert ended.stderr.splitlines() == [
        f"error: A local cluster of 2 nodes is already running ({up['address']}). "
        "Use it, or stop it first: resnet-ops cluster down."
    ]


@pytest.mark.slow
def test_a_node_that_was_killed_is_seen(home: dict[str, str], up: dict[str, Any]) -> None:
    (raylet,) = (
        int(process.parent.name)
        for process in Path("/proc").glob("[0-9]*/cmdline")
        if b"raylet_socket_name" in (line := process.read_bytes()) and f"{up['folder']}/node-2/".encode() in line
    )
    os.kill(raylet, signal.SIGKILL)
    seen = status(home)
    assert {n["name"]: n["state"] for n in seen["nodes"]}["node-2"] in ("not answering", "gone")
    assert seen["fits"]["options"] == "--nodes 1"
    wait_for(lambda: {n["name"]: n["state"] for n in status(home)["nodes"]}["node-2"] == "gone", 60)


def test_a_node_that_is_drained_leaves(home: dict[str, str], up: dict[str, Any]) -> None:
    refused = command("cluster", "drain", env=home)  # all nodes are on this machine
    assert refused.returncode == 2
    assert "3 nodes of the cluster run on this machine. Name one: --node " in refused.stderr
    drained = command("cluster", "drain", "--node", "node-1", "--json", env=home)
    assert drained.returncode == 0, drained.stderr
    result = json.loads(drained.stdout)
    assert_keys("cluster drain", result)
    assert (result["node"], result["left"]) == ("node-1", True)
    seen = status(home)
    assert result["node_id"] not in {node["id"] for node in seen["nodes"]}
    assert "Did you mean node-2?" in command("cluster", "drain", "--node", "node-1", env=home).stderr


def test_down_ends_this_cluster_and_nothing_else(home: dict[str, str], up: dict[str, Any]) -> None:
    bystander = subprocess.Popen(["sleep", "60"], env={MARK: "another's"})
    assert traces(up["folder"])
    ended = command("cluster", "down", "--json", env=home)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == {"ended": True, "address": up["address"], "nodes": 2, "elsewhere": []}
    assert_keys("cluster down", json.loads(ended.stdout))
    assert traces(up["folder"]) == []
    assert not Path(up["folder"]).exists()
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()
    again = command("cluster", "down", "--json", env=home)
    assert (again.returncode, json.loads(again.stdout)["ended"]) == (0, False)
    assert_keys("cluster down again", json.loads(again.stdout))


def test_status_without_a_cluster_says_so(home: dict[str, str]) -> None:
    address = "127.0.0.1:1"  # 'auto' might find somebody else's
    ended = command("cluster", "status", "--cluster", address, "--json", env=home)
    assert ended.returncode == 2
    assert "No Ray cluster answers" in ended.stderr.splitlines()[-1]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGKILL, -9)])
def test_an_up_that_is_stopped_leaves_nothing_behind(home: dict[str, str], number: signal.Signals, code: int) -> None:
    process = subprocess.Popen([*COMMAND, "cluster", "up"], env=home, stderr=subprocess.DEVNULL)
    wait_for(lambda: state_files(home))
    (state,) = state_files(home)
    folder = json.loads(state.read_text())["folder"]
    wait_for(lambda: any("gcs_server" in line for line in traces(folder)))
    process.send_signal(number)
    assert process.wait(30) == code
    if number == signal.SIGKILL:  # then the next command finds what was begun
        refused = command("cluster", "up", env=home)
        assert "partly started" in refused.stderr
        assert refused.returncode == 2
        assert command("cluster", "down", env=home).returncode == 0
    assert traces(folder) == []
    assert not Path(folder).exists()
    assert not state.exists()


# A driver of NVIDIA's that knows as many GPUs as STUB_GPUS says, of 1 GiB, 2 GiB...
DRIVER = """
#include <stddef.h>
#include <stdlib.h>
int cuInit(unsigned flags) { return 0; }
int cuDeviceGetCount(int *count) { *count = atoi(getenv("STUB_GPUS")); return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)(device + 1) << 30; return 0; }
"""
# Prints what the nodes have, and the GPUs that tasks see which hold one each at the same time.
ASK_WORKERS = """
import json, os, time, ray
from resnet_ops.orchestration.connect import connected
def look():
    time.sleep(2)
    return os.environ["CUDA_VISIBLE_DEVICES"]
with connected("auto"):
    gpus = {node["NodeName"]: node["Resources"].get("GPU", 0) for node in ray.nodes()}
    ours = ray.get([ray.remote(num_gpus=1, num_cpus=0)(look).remote() for _ in range(3)])
    print(json.dumps([gpus, sorted(ours)]))
"""


@pytest.fixture
def three_gpus(home: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """An environment in which the driver knows three GPUs, those that the machine calls 2, 5 and 7."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    library = tmp_path / "libcuda.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-xc", "-", "-o", library], input=DRIVER, text=True, check=True)
    own = {"XDG_STATE_HOME": str(tmp_path / "state")}  # beside the cluster that other tests share
    return home | own | {"LD_LIBRARY_PATH": str(tmp_path), "STUB_GPUS": "3", "CUDA_VISIBLE_DEVICES": "2,5,7"}


def run_python(code: str, env: dict[str, str]) -> Any:
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    return json.loads(ended.stdout.splitlines()[-1])


def test_gpus_are_counted_by_the_driver_and_named_as_the_user_chose(three_gpus: dict[str, str]) -> None:
    code = "import json\nfrom resnet_ops.machine import read_gpus\nprint(json.dumps([vars(g) for g in read_gpus()]))"
    chosen = [{"id": id_, "memory_bytes": (1 + number) << 30} for number, id_ in enumerate("257")]
    assert run_python(code, three_gpus) == chosen
    assert [gpu["id"] for gpu in run_python(code, three_gpus | {"STUB_GPUS": "2"})] == ["2", "5"]
    every = {name: value for name, value in three_gpus.items() if name != "CUDA_VISIBLE_DEVICES"}
    assert [gpu["id"] for gpu in run_python(code, every)] == ["0", "1", "2"]
    assert run_python(code, three_gpus | {"CUDA_VISIBLE_DEVICES": "", "STUB_GPUS": "0"}) == []


@given(st.integers(0, 20), st.integers(1, 9))
def test_gpus_are_shared_evenly_and_the_first_nodes_get_the_rest(gpus: int, nodes: int) -> None:
    shares = share_gpus([str(number) for number in range(gpus)], nodes)
    assert [gpu for share in shares for gpu in share] == [str(number) for number in range(gpus)]
    sizes = list(map(len, shares))
    assert len(sizes) == nodes
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1


@pytest.mark.slow  # how they are shared and named is seen above, how nodes start in the other tests
def test_nodes_share_the_gpus_and_each_sees_its_own(three_gpus: dict[str, str]) -> None:
    ended = command("cluster", "up", "--nodes", 2, "--cpus-per-node", 1, "--json", env=three_gpus)
    try:
        assert ended.returncode == 0, ended.stderr
        assert json.loads(ended.stdout)["gpus_per_node"] == [2, 1]
        assert "2 nodes with 1 CPU and 1 or 2 GPUs each" in ended.stderr
        seen = status(three_gpus)
        assert {node["name"]: node["gpus"] for node in seen["nodes"]} == {"head": 0, "node-1": 2, "node-2": 1}
        assert seen["fits"]["options"] in ("--nodes 1 --gpus-per-node 2", "--nodes 2 --gpus-per-node 1")
        assert run_python(ASK_WORKERS, three_gpus) == [{"head": 0, "node-1": 2, "node-2": 1}, ["2", "5", "7"]]
    finally:
        assert command("cluster", "down", env=three_gpus).returncode == 0
