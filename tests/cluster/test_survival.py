"""Training on several nodes, while workers, nodes and the driver are killed."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from resnet_ops.data.discovery import EMBEDDED
from resnet_ops.runs import Run
from resnet_ops.tuning.results import Search
from tests.cluster.nodes import Node, Nodes, Training, assert_same_bytes
from tests.conftest import COMMAND, Ended, command
from tests.processes import ours
from tests.waiting import wait_for

NETWORK = ("--model", "resnet8", "--batch-size", 120)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    started = Nodes(4)
    yield started
    started.close()


@pytest.mark.slow
def test_a_job_that_does_not_fit_is_refused(nodes: Nodes, cli: Callable[..., Ended], tmp_path: Path) -> None:
    def refused(*options: object) -> str:
        ended = cli("train", "--cluster", nodes.address, "--runs-dir", tmp_path, *options)
        assert ended.code == 2
        assert not list(tmp_path.iterdir())
        return ended.err.splitlines()[-1]

    message = refused("--nodes", 5)
    assert "--nodes 5 needs 5 nodes with a CPU core each; this cluster has 4" in message
    assert "Use --nodes 4, or add nodes: resnet-ops cluster template" in message
    assert "1 CPU" in message
    message = refused("--nodes", 2, "--workers-per-node", 2)
    assert "2 nodes with 2 CPU cores each; this cluster has 0" in message
    assert "no usable CUDA GPU" in refused("--device", "cuda")
    assert "no GPUs available" in refused("--gpus-per-node", 2)


@pytest.mark.chaos
def test_machines_that_are_missing_can_be_waited_for(nodes: Nodes, tmp_path: Path) -> None:
    options = ("--cluster", nodes.address, "--nodes", 5, *NETWORK, "--epochs", 2, "--wait", 100)
    training = Training(tmp_path, "waits", *options)
    training.wait_until(lambda: "4 of 5 nodes up; waiting up to 100 s." in training.log.read_text())
    nodes.add()
    assert training.ended() == 0
    assert {epoch.world_size for epoch in training.run.epochs()} == {5}
    nodes.kill(nodes.living[-1])


@pytest.mark.slow
def test_trials_on_two_machines_each_more_than_fit_at_once(nodes: Nodes, tmp_path: Path) -> None:
    """Two fit; the third, and one in the place of one that is stopped, wait until machines are free again."""
    ended = command(
        "tune", "--cluster", nodes.address, "--nodes-per-trial", 2, "--depths", "8", "--search", "grid",
        "--lr", "0.1,1e-6,2e-6,0.05", "--epochs", 4, "--grace", 1, "--runs-dir", tmp_path, "--name", "s", "--json",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout)
    by_rate = {trial["lr"]: trial for trial in result["trials"]}
    assert len(by_rate) == 4
    assert by_rate[0.1]["status"] == "finished"
    assert {trial["status"] for trial in result["trials"]} <= {"finished", "stopped"}
    assert "stopped" in {by_rate[1e-6]["status"], by_rate[2e-6]["status"]}
    search = Search(Run(tmp_path / "s"))
    for trial in search.trials():
        assert {epoch.world_size for epoch in search.trial_run(trial).epochs()} == {2}
    assert Run(tmp_path / "s").read().world_size == 2


@pytest.mark.chaos
def test_a_trial_on_two_machines_whose_driver_is_killed_goes_on(nodes: Nodes, tmp_path: Path) -> None:
    options = ("--depths", 8, "--lr", "0.05,0.1,0.2", "--search", "grid", "--epochs", 40, "--scheduler", "none")
    place = ("--cluster", nodes.address, "--nodes-per-trial", 2, "--runs-dir", tmp_path, "--name", "s")
    started = subprocess.Popen([*COMMAND, "tune", *map(str, (*options, *place))], stderr=subprocess.PIPE, text=True)
    search = Search(Run(tmp_path / "s"))
    end = time.monotonic() + 120
    while not search.trial_run(1).epochs():
        assert time.monotonic() < end
        time.sleep(0.05)
    for driver in ours(b"ray::ResourceTrainable"):
        os.kill(driver, signal.SIGKILL)
    _, err = started.communicate(timeout=300)
    assert started.returncode == 0, err
    for trial in search.trials():
        assert (trial.status, trial.epochs) == ("finished", 40)
        assert [e.epoch for e in search.trial_run(trial).epochs()] == list(range(1, 41))


@pytest.mark.slow
def test_a_trial_on_two_machines_that_is_stopped_from_outside_has_not_failed(nodes: Nodes, tmp_path: Path) -> None:
    options = ("--depths", 8, "--lr", "0.05,0.1", "--search", "grid", "--epochs", 20, "--scheduler", "none")
    place = ("--cluster", nodes.address, "--runs-dir", tmp_path)
    first = ("--name", "p", "--nodes-per-trial", 2, "--max-failures", 0)
    started = subprocess.Popen(
        [*COMMAND, "tune", *map(str, (*options, *place, *first))], stderr=subprocess.PIPE, text=True
    )
    search = Search(Run(tmp_path / "p"))
    end = time.monotonic() + 120
    while not search.trial_run(1).epochs():
        assert time.monotonic() < end
        time.sleep(0.05)
    for worker in nodes.workers():
        os.kill(worker, signal.SIGKILL)
    _, err = started.communicate(timeout=120)
    assert started.returncode == 1, err
    assert "This exceeds --max-failures. Then resume with: resnet-ops tune --resume p" in err
    assert "train --resume" not in err
    assert "failed" not in {trial.status for trial in search.trials()}
    ended = command("tune", "--resume", "p", *place)
    assert ended.returncode == 0, ended.stderr
    for trial in search.trials():
        assert (trial.status, trial.epochs) == ("finished", 20)
        assert [e.epoch for e in search.trial_run(trial).epochs()] == list(range(1, 21))


@pytest.mark.slow
def test_killed_workers_nodes_and_drivers_change_no_byte(nodes: Nodes, tmp_path: Path) -> None:
    """3 workers: with two, any order of adding up gives the same sum."""
    options = ("--cluster", nodes.address, "--nodes", 3, *NETWORK, "--epochs", 24, "--checkpoint-every", 4)
    whole = Training(tmp_path, "whole", *options)
    assert whole.ended() == 0
    assert {epoch.world_size for epoch in whole.run.epochs()} == {3}

    disturbed = Training(tmp_path, "disturbed", *options)
    disturbed.wait_for_step_after((2, 5))
    workers = nodes.workers()
    assert len({node.node_id for node in workers.values()}) == 3
    os.kill(min(workers), signal.SIGKILL)
    disturbed.wait_until(lambda: len(disturbed.run.events()) == 1)
    disturbed.wait_for_step_after(disturbed.progress())

    nodes.kill(next(iter(nodes.workers().values())))  # the fourth takes its place
    disturbed.wait_until(lambda: len(disturbed.run.events()) == 2)
    disturbed.wait_for_step_after(disturbed.progress())

    disturbed.kill()
    assert disturbed.run.read().status == "interrupted"
    disturbed.resume()
    assert disturbed.ended() == 0
    assert_same_bytes(whole.weights(), disturbed.weights())
    assert [e.val_loss for e in disturbed.run.epochs()] == [e.val_loss for e in whole.run.epochs()]
    assert disturbed.run.read().status == "finished"
    log = disturbed.log.read_text()
    assert log.count("Resuming from the last checkpoint") == 2
    assert "Traceback" not in log
    nodes.add()


@pytest.mark.slow
def test_an_elastic_job_grows_and_shrinks(nodes: Nodes, tmp_path: Path) -> None:
    spare = nodes.living[2:]
    for node in spare:
        nodes.kill(node)
    training = Training(tmp_path, "elastic", "--cluster", nodes.address, "--nodes", "2:3", *NETWORK, "--epochs", 400)
    training.wait_for_step_after((2, 0))
    nodes.add()
    sizes = lambda: [epoch.world_size for epoch in training.run.epochs()]  # noqa: E731
    training.wait_until(lambda: sizes()[-1] == 3)
    nodes.kill(nodes.living[0])
    training.wait_until(lambda: sizes()[-1] == 2 and sizes().count(3) > 0)
    training.process.send_signal(signal.SIGTERM)
    assert training.ended() == 75
    numbers = [epoch.epoch for epoch in training.run.epochs()]
    assert numbers == list(range(1, len(numbers) + 1))  # none trained twice, none left out
    log = training.log.read_text()
    assert "More nodes are available" in log
    for _ in range(2):
        nodes.add()


@pytest.mark.chaos
def test_a_worker_that_hangs_is_replaced(nodes: Nodes, tmp_path: Path) -> None:
    options = ("--cluster", nodes.address, "--nodes", 2, *NETWORK, "--epochs", 12, "--hang-timeout", 4)
    training = Training(tmp_path, "hang", *options)
    training.wait_for_step_after((2, 0))
    os.kill(max(nodes.workers()), signal.SIGSTOP)
    training.wait_until(lambda: any("no step for 4 s" in event.what for event in training.run.events()))
    assert training.ended() == 0
    log = training.log.read_text()
    assert "Lost: " in log
    assert list(training.run.path.glob("hang-worker-*.txt"))


@pytest.mark.slow
def test_what_will_happen_again_is_not_tried_again(
    nodes: Nodes, cli: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(EMBEDDED["digits"], "images.parquet")  # machines have other working directories
    options = ("--cluster", nodes.address, "--nodes", 2, "--runs-dir", "runs", "--data", "images.parquet")
    ended = cli("train", *options, "--model", "plain8", "--epochs", 3, "--lr", "1e12", "--name", "nan")
    assert ended.code == 1
    assert "Training diverged in epoch" in ended.err.splitlines()[-1]
    assert not Run(tmp_path / "runs" / "nan").events()


@pytest.mark.slow
def test_losses_are_bounded(nodes: Nodes, tmp_path: Path) -> None:
    options = ("--cluster", nodes.address, "--nodes", 2, *NETWORK, "--epochs", 100, "--max-failures", 0)
    training = Training(tmp_path, "bounded", *options)
    training.wait_for_step_after((3, 0))
    os.kill(min(nodes.workers()), signal.SIGKILL)
    assert training.ended() == 1
    last = training.log.read_text().splitlines()[-1]
    assert last.startswith("error: Lost: worker ")
    assert "--max-failures" in last
    assert f"resnet-ops train --resume bounded --runs-dir {tmp_path}" in last
    assert training.run.read().status == "failed"


@pytest.mark.slow
def test_workers_leave_a_node_that_is_drained_and_stop_where_there_is_no_other(nodes: Nodes, tmp_path: Path) -> None:
    options = ("--cluster", nodes.address, *NETWORK, "--max-failures", 0)
    training = Training(tmp_path, "moves", *options, "--nodes", 2, "--epochs", 30)
    training.wait_for_step_after((2, 0))
    leaving = next(iter(nodes.workers().values()))
    assert drain(nodes, leaving)["left"]
    assert training.ended() == 0
    (event,) = training.run.events()
    assert event.what.endswith("will leave the cluster: resuming without it.")
    assert [epoch.epoch for epoch in training.run.epochs()] == [*range(1, 31)]
    nodes.living.remove(leaving)

    stays = Training(tmp_path, "stops", *options, "--nodes", len(nodes.living), "--epochs", 300)
    stays.wait_for_step_after((2, 0))
    leaving = next(iter(nodes.workers().values()))
    began = time.monotonic()
    assert drain(nodes, leaving)["left"]
    assert stays.ended() == 75
    assert time.monotonic() - began < 30
    assert stays.run.read().status == "preempted"
    last = stays.log.read_text().splitlines()[-1]
    assert "will leave the cluster, without room elsewhere). Last intact checkpoint: " in last
    assert "step-" in last.partition(" Resume with: ")[0]  # within an epoch
    nodes.living.remove(leaving)
    nodes.add()
    nodes.add()


def drain(nodes: Nodes, node: Node) -> dict[str, Any]:
    ended = command("cluster", "drain", "--node", node.node_id, "--cluster", nodes.address, "--json")
    assert ended.returncode == 0, ended.stderr
    result: dict[str, Any] = json.loads(ended.stdout)
    return result


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_head_is_told_within_15_s(tmp_path: Path, how: signal.Signals) -> None:
    own = Nodes(2)
    try:
        training = Training(tmp_path, "headless", "--cluster", own.address, "--nodes", 2, *NETWORK, "--epochs", 400)
        training.wait_for_step_after((2, 0))
        head = own.cluster.head_node.all_processes["gcs_server"][0].process
        began = time.monotonic()
        head.send_signal(how)
        assert training.ended() == 75
        assert time.monotonic() - began < 15
        assert training.run.read().status == "preempted"
        last = training.log.read_text().splitlines()[-1]
        assert last.startswith(f"preempted: Training was preempted (loss of the cluster's head at {own.address}).")
        assert "step-" in last.partition(" Resume with: ")[0]  # saved within the epoch
        assert f"resnet-ops train --resume headless --runs-dir {tmp_path}" in last
        wait_for(lambda: not own.workers(), 75)  # some end only as Ray itself notices, after 60 s
    finally:
        own.close()
