"""Signals before a machine is taken: Slurm, Kubernetes, spot instances, terminals that close. Case C03 and its kin."""

import contextlib
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from resnet_ops.config import TrainConfig
from resnet_ops.errors import UserError
from resnet_ops.export import graph
from resnet_ops.runs import Run
from resnet_ops.stop_request import StopRequest
from resnet_ops.training import checkpoint as checkpoints
from resnet_ops.training import job
from tests.conftest import COMMAND, Ended
from tests.processes import ours
from tests.waiting import wait_for

Cli = Callable[..., Ended]
LONG = ("--model", "resnet8", "--epochs", "500", "--cpus-per-worker", "1", "--json")


def last_tensors(run: Run) -> dict[str, torch.Tensor]:
    read = checkpoints.read(checkpoints.saved_checkpoints(run)[0])
    return read.model | {f"optimizer/{name}": value for name, value in read.optimizer.items()}


def position(run: Run) -> tuple[int, int]:
    """The epochs done, and the steps of the one in hand, that the last checkpoint holds."""
    info = checkpoints.read(checkpoints.saved_checkpoints(run)[0]).info
    return info.epoch, info.step


class AfterLooks(StopRequest):
    """Asks to stop when it has been looked at so often: after each step, at each batch of validation images..."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.looks = looks

    @property
    def requested(self) -> bool:
        self.looks -= 1
        if self.looks < 0 and self.stop is None:
            self.request("SIGTERM", preempted=True)
        return super().requested


def test_stopped_anywhere_and_resumed_the_weights_are_the_same(trained: job.TrainResult, tmp_path: Path) -> None:
    config = trained.record.config.model_copy(update={"epochs": 2, "runs_dir": tmp_path, "name": "whole"})
    whole = job.train(config)
    steps = whole.run.epochs()[0].step
    run = Run(tmp_path / "cut")
    for looks, reached in (
        (steps, (0, steps)),  # in the validation of the first epoch
        (1, (0, steps)),  # there again
        (0, (0, steps)),  # before anything is done
        (5, (1, 2)),
    ):
        begin = functools.partial(job.train, config.model_copy(update={"name": "cut"}))
        if run.record_file.exists():
            begin = functools.partial(job.resume, tmp_path, "cut")
        with pytest.raises(UserError, match="preempted") as stopped:
            begin(stop=AfterLooks(looks))
        assert (stopped.value.exit_code, run.read().status) == (75, "preempted")
        assert position(run) == reached
    job.resume(tmp_path, "cut")
    assert not [name for name, value in last_tensors(run).items() if not value.equal(last_tensors(whole.run)[name])]
    assert [(e.val_loss, e.train_loss) for e in run.epochs()] == [
        (e.val_loss, e.train_loss) for e in whole.run.epochs()
    ]


@pytest.fixture
def signals() -> Iterator[Callable[..., None]]:
    """Sends signals to this process, where a command runs, once a run has made progress."""
    threads = []

    def send(run: Run, *numbers: signal.Signals) -> None:
        before = run.read_progress()[1]

        def wait_and_send() -> None:
            wait_for(lambda: "step" in (run.read_progress(before)[0] or {}), 60)
            for number in numbers:
                os.kill(os.getpid(), number)

        threads.append(threading.Thread(target=wait_and_send))
        threads[-1].start()

    yield send
    for thread in threads:
        thread.join()


def test_c03_signals_stop_at_a_checkpoint_within_the_epoch(
    cli: Cli, tmp_path: Path, signals: Callable[..., None]
) -> None:
    run, done = Run(tmp_path / "my runs" / "c03"), (0, 0)
    where = ("--runs-dir", tmp_path / "my runs")
    for number, code, status, why in (
        (signal.SIGTERM, 75, "preempted", "Training was preempted (SIGTERM)."),
        (signal.SIGUSR1, 75, "preempted", "Training was preempted (SIGUSR1)."),
        (signal.SIGHUP, 75, "preempted", "Training was preempted (SIGHUP)."),
        (signal.SIGINT, 130, "interrupted", "Training stopped."),
    ):
        signals(run, number)
        begins = ("--resume", "c03", "--json") if run.record_file.exists() else (*LONG, "--name", "c03")
        ended = cli("train", *where, *begins)
        saved = checkpoints.saved_checkpoints(run)[0]
        assert ended.code == ended.json["exit_code"] == code, ended.err
        assert ended.json["status"] == run.read().status == status
        assert ended.json["error"] == f"{why} Last intact checkpoint: {saved}."
        assert ended.json["remedy"] == f"Resume with: resnet-ops train --resume c03 --runs-dir '{where[1]}'"
        assert "Stopping: saving a checkpoint" in ended.err
        assert position(run) > done
        assert position(run)[1] > 0  # steps of an epoch that has not ended
        done = position(run)


def test_a_second_signal_ends_at_once(cli: Cli, tmp_path: Path, signals: Callable[..., None]) -> None:
    signals(Run(tmp_path / "s"), signal.SIGTERM, signal.SIGUSR1)
    ended = cli("train", *LONG, "--name", "s", "--runs-dir", tmp_path)
    assert ended.code == 75
    assert ended.err.splitlines()[-1].startswith("preempted: Training was preempted")
    assert f"--resume s --runs-dir {tmp_path}" in ended.err.splitlines()[-1]
    assert "Traceback" not in ended.err


def test_nohup_is_heeded(tmp_path: Path) -> None:
    process = subprocess.Popen(
        ["nohup", *COMMAND, "train", *LONG, "--name", "n"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    run = Run(tmp_path / "runs" / "n")
    wait_for(lambda: len(run.epochs()) >= 1)
    process.send_signal(signal.SIGHUP)
    seen = len(run.epochs())
    wait_for(lambda: len(run.epochs()) > seen + 2)
    process.terminate()
    _, err = process.communicate(timeout=30)
    assert process.returncode == 75, err
    assert "(SIGTERM)" in err.splitlines()[-1]
    assert "Traceback" not in err


STEP_THAT_NEVER_ENDS = """
import time
from resnet_ops import stop_request
stop_request.PATIENCE_S = 0.5
request = stop_request.StopRequest()
request.report = lambda error: print("given up:", error.cause, flush=True)
with stop_request.receive_signals(request):
    with request.deferring(lambda: print("stopping", flush=True)):
        print("begun", flush=True)
        while True:
            time.sleep(0.01)
"""


def test_a_step_that_never_ends_is_given_up() -> None:
    process = subprocess.Popen([sys.executable, "-c", STEP_THAT_NEVER_ENDS], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    began = time.monotonic()
    process.send_signal(signal.SIGUSR1)
    assert process.communicate(timeout=20)[0] == "stopping\ngiven up: The work was preempted (SIGUSR1).\n"
    assert process.returncode == 75
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("part", ["allocate", "check_training", "decode_images", "store_weights"])
def test_a_signal_before_training_ends_at_once(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    original = getattr(job, part)

    def with_signal(*arguments: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **options)

    monkeypatch.setattr(job, part, with_signal)
    ended = cli("train", *LONG, "--name", "b", "--runs-dir", tmp_path)
    assert (ended.code, ended.json["status"]) == (75, "preempted")
    assert ended.err.splitlines()[-1] == "preempted: Ended by SIGTERM."
    monkeypatch.undo()
    assert (
        cli("train", *LONG, "--name", "b", "--runs-dir", tmp_path, "--epochs", "1").code == 0
    )  # nothing is in its way


def test_a_signal_that_a_library_catches_ends_the_command(
    cli: Cli, trained: job.TrainResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export(*_: Any) -> None:
        with contextlib.suppress(KeyboardInterrupt):  # as within torch's imports
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
        raise AttributeError("half a module")

    monkeypatch.setattr(graph, "to_onnx", export)
    ended = cli("export", trained.run.path, "--onnx", "--json")
    assert (ended.code, ended.json["status"]) == (130, "interrupted")
    assert ended.err.splitlines()[-1] == "interrupted: Nothing was lost."


@pytest.mark.usefixtures("ray_session")
def test_a_signal_to_one_worker_stops_them_all(tmp_path: Path) -> None:
    run = Run(tmp_path / "w")

    def terminate() -> None:
        wait_for(lambda: "step" in (run.read_progress()[0] or {}), 60)
        os.kill(max(ours(b"RayTrainWorker")), signal.SIGTERM)

    thread = threading.Thread(target=terminate)
    thread.start()
    config = TrainConfig.of(model="resnet8", epochs=500, workers_per_node=2, runs_dir=tmp_path, name="w")
    with pytest.raises(UserError, match=r"Training was preempted \(SIGTERM\)") as stopped:
        job.train(config)
    thread.join()
    assert stopped.value.exit_code == 75
    assert run.read().status == "preempted"
    assert checkpoints.saved_checkpoints(run)
    assert not ours(b"RayTrainWorker")
