"""Training on several machines, each with a network and an address of its own, while things happen to them."""

import json
import math
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from resnet_ops.runs import Run
from tests.cluster.namespaces import Machines, machines, missing_requirement
from tests.conftest import COMMAND
from tests.integration.test_train import assert_same_bytes, weights

EPOCHS = 40
TRAIN = ("train", "--cluster", "auto", "--nodes", "3", "--model", "resnet8", "--epochs", EPOCHS, "--json")
SECONDS = 240


@pytest.fixture(scope="module")
def cluster() -> Iterator[Machines]:
    """A head and three machines of one core each."""
    if reason := missing_requirement():
        pytest.skip(reason)
    with machines(4) as simulated:
        yield simulated


@pytest.fixture(scope="module")
def undisturbed(cluster: Machines) -> Run:
    """A run that nothing happens to; what crossed the network meanwhile is in `crossed`."""
    before = {machine.name: cluster.bytes_sent(machine) for machine in cluster.all[1:]}
    ended(begin(cluster, "undisturbed"))
    run = Run(cluster.folder / "runs" / "undisturbed")
    crossed = {machine.name: cluster.bytes_sent(machine) - before[machine.name] for machine in cluster.all[1:]}
    (run.path / "crossed.json").write_text(json.dumps(crossed))
    return run


def begin(cluster: Machines, name: str, *options: object) -> "subprocess.Popen[str]":
    arguments = [*COMMAND, *map(str, (*TRAIN, "--name", name, *options))]
    return cluster.run(cluster.all[0], arguments, cwd=str(cluster.folder))


def ended(process: "subprocess.Popen[str]", code: int = 0) -> tuple[dict[str, Any], str]:
    """Return the result and the messages of a job that ends with `code`."""
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == code, err
    assert "Traceback" not in err
    return json.loads(out.splitlines()[-1]), err


def until(true: Callable[[], bool], process: "subprocess.Popen[str]", seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "what was waited for did not come"
        time.sleep(0.02)


def trains(cluster: Machines, name: str) -> tuple["subprocess.Popen[str]", Run]:
    """Return a job that has started and will run for a while."""
    process, run = begin(cluster, name, "--checkpoint-every", 5), Run(cluster.folder / "runs" / name)
    until(lambda: len(run.epochs()) >= 3, process)
    assert len(run.epochs()) < EPOCHS / 2
    return process, run


def assert_undisturbed(run: Run, undisturbed: Run) -> None:
    assert [e.epoch for e in run.epochs()] == list(range(1, EPOCHS + 1))
    assert_same_bytes(weights(run, EPOCHS), weights(undisturbed, EPOCHS))


@pytest.mark.slow
def test_three_machines_train_over_the_network(cluster: Machines, undisturbed: Run) -> None:
    record = undisturbed.read()
    assert (record.status, record.world_size, str(record.config.nodes)) == ("finished", 3, "3")
    crossed = json.loads((undisturbed.path / "crossed.json").read_text())
    assert set(crossed) == {"machine-1", "machine-2", "machine-3"}
    # A ring of three sends every gradient 4/3 times: 75,002 of 4 bytes, in 12 steps an epoch.
    gradients = EPOCHS * math.ceil(1438 / 128) * 75_002 * 4 * 4 / 3
    assert all(gradients < sent < 1.2 * gradients for sent in crossed.values()), crossed
    (event,) = undisturbed.events()
    assert (event.kind, event.what) == (
        "detail", "Network: eth0 of machine-1 (10.77.0.2), machine-2 (10.77.0.3), machine-3 (10.77.0.4)"
    )  # fmt: skip


@pytest.mark.slow
def test_a_run_folder_that_one_machine_does_not_see_is_named_at_once(cluster: Machines) -> None:
    lonely, runs = cluster.all[2], cluster.folder / "runs"
    runs.mkdir(exist_ok=True)
    cluster.mount_small(lonely, runs, "1m")
    try:
        began = time.monotonic()
        result, err = ended(begin(cluster, "unseen"), code=2)
        assert time.monotonic() - began < 60
    finally:
        cluster.unmount(lonely, runs)
    assert lonely.name in result["error"]
    assert f"{runs} is not the same folder on every node" in result["error"]
    assert not (runs / "unseen").exists()
    assert err.splitlines()[-1].startswith("error: ")


@pytest.mark.slow
def test_a_link_that_drops_packets_is_named_before_training(cluster: Machines) -> None:
    """Ray and gloo would wait for it until their timeouts: half an hour."""
    cluster.drop(cluster.all[2], cluster.all[3])
    try:
        began = time.monotonic()
        result, _ = ended(begin(cluster, "dropping"), code=1)
        assert time.monotonic() - began < 90
    finally:
        cluster.restore(cluster.all[2], cluster.all[3])
    for one, other in ((cluster.all[2], cluster.all[3]), (cluster.all[3], cluster.all[2])):
        assert (
            f"{one.name} cannot reach {other.name} at {other.address} (eth0): no answer within 5 s" in result["error"]
        )
    assert "GLOO_SOCKET_IFNAME" in result["remedy"]
    losses = [event.what for event in Run(cluster.folder / "runs" / "dropping").events() if event.kind == "loss"]
    assert [loss.startswith("Lost: machine-2 cannot") for loss in losses] == [True]  # tried once more, then ended


@pytest.mark.chaos
def test_a_network_that_is_cut_for_seconds_costs_no_byte(cluster: Machines, undisturbed: Run) -> None:
    process, run = trains(cluster, "cut")
    cluster.cut(cluster.all[2])
    stands_at = len(run.epochs())
    time.sleep(4)
    assert len(run.epochs()) <= stands_at + 1  # it was cut indeed
    cluster.heal(cluster.all[2])
    ended(process)
    assert_undisturbed(run, undisturbed)


@pytest.mark.chaos
def test_a_machine_that_dies_and_is_replaced_costs_no_byte(cluster: Machines, undisturbed: Run) -> None:
    process, run = trains(cluster, "killed")
    cluster.kill(cluster.all[3])
    cluster.replace(cluster.all[3])
    ended(process)
    assert any("Lost" in event.what for event in run.events())
    assert_undisturbed(run, undisturbed)


@pytest.mark.chaos
def test_a_newcomer_that_does_not_see_the_run_is_left_out_once(cluster: Machines) -> None:
    newcomer, runs = cluster.all[3], cluster.folder / "runs"
    cluster.kill(newcomer)
    process, run = begin(cluster, "alone", "--nodes", "2:3", "--epochs", 60), Run(runs / "alone")
    until(lambda: len(run.epochs()) >= 2, process)
    cluster.replace(newcomer, without=runs)
    ended(process)
    messages = [event.what for event in run.events() if event.kind != "detail"]
    assert messages[0].startswith("More nodes are available")
    assert messages[1].startswith(f"Excluded: {newcomer.name} does not see {run.path}")
    assert len(messages) == 2  # it is not asked again at every epoch
    assert [(epoch.epoch, epoch.world_size) for epoch in run.epochs()] == [(n, 2) for n in range(1, 61)]
    cluster.replace(newcomer)


@pytest.mark.chaos
def test_a_machine_that_is_cut_off_for_long_is_left_and_taken_again(cluster: Machines, undisturbed: Run) -> None:
    """By its own settings Ray takes a machine for dead after 65 s of silence: five times 3 s and 10 s."""
    process, run = trains(cluster, "long")
    cluster.cut(cluster.all[1])
    time.sleep(70)
    cluster.replace(cluster.all[1])
    ended(process)
    assert_undisturbed(run, undisturbed)


@pytest.mark.chaos
def test_a_full_disk_where_checkpoints_are_written_is_told_and_survived(cluster: Machines, undisturbed: Run) -> None:
    cluster.resize(cluster.switch, cluster.disk, "1500k")
    result, _ = ended(begin(cluster, "full", "--runs-dir", cluster.disk), code=1)
    assert "full" in result["error"].lower()
    assert "train --resume full" in result["remedy"]
    cluster.resize(cluster.switch, cluster.disk, "64m")
    resume = [*COMMAND, "train", "--resume", "full", "--runs-dir", str(cluster.disk), "--json"]
    ended(cluster.run(cluster.all[0], resume, cwd=str(cluster.folder)))
    assert_undisturbed(Run(cluster.host_path(cluster.disk / "full")), undisturbed)
