"""MLflow: a real server and a training logged to it, either of them killed; and MLflow's store without a server."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from resnet_ops.config import TrainConfig
from resnet_ops.run_records import Epoch
from resnet_ops.runs import Run
from resnet_ops.tracking.tracker import service_environment
from resnet_ops.tracking.uploader import TrackedRun
from tests.conftest import COMMAND, Ended, command
from tests.test_runs import epoch, record
from tests.waiting import wait_for

Cli = Callable[..., Ended]
TRAIN = ("train", "--model", "resnet8", "--track", "mlflow")


@pytest.fixture(autouse=True)
def no_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep MLflow from reporting tests to its makers."""
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


class Server:
    """MLflow's own server on a database of its own, to be killed and started again."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.database = f"sqlite:///{folder}/mlflow.db"
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = ["--backend-store-uri", self.database, "--port", str(self.port), "--workers", "1"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *options],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        )  # fmt: skip
        wait_for(lambda: socket.socket().connect_ex(("127.0.0.1", self.port)) == 0)

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.process = None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    server.start()
    yield server
    server.kill()


def history(client: MlflowClient, run_id: str, name: str = "loss/val") -> list[tuple[int, float]]:
    return sorted((metric.step, metric.value) for metric in client.get_metric_history(run_id, name))


@pytest.mark.slow
def test_server_and_training_are_killed_and_every_epoch_is_there_once(server: Server, tmp_path: Path) -> None:
    run, environment = Run(tmp_path / "runs" / "r"), os.environ | {"MLFLOW_TRACKING_URI": server.uri}
    options = [*TRAIN, "--epochs", "400", "--name", "r", "--runs-dir", str(run.path.parent)]
    training = subprocess.Popen([*COMMAND, *options], env=environment, stderr=subprocess.DEVNULL)

    def logged(text: str) -> bool:
        return any(text in event.what for event in run.events())

    wait_for(lambda: logged(f"MLflow: {server.uri}/#/experiments/"))
    server.kill()
    # By the next call, or by one that the server had in hand.
    refused, cut = "[Errno 111] Connection refused", "ConnectionResetError(104, 'Connection reset by peer'))"
    causes = refused, f"('Connection aborted.', {cut}"
    wait_for(lambda: any(logged(f"MLflow: logging failed: {cause}. Training continues") for cause in causes))
    training.send_signal(signal.SIGSTOP)  # or it would be done before the server is back
    server.start()
    training.send_signal(signal.SIGCONT)
    wait_for(lambda: logged("MLflow: reconnected") and len(run.epochs()) > 2)
    training.kill()
    training.wait()
    done, stopped = len(run.epochs()), run.read()
    assert 2 < done < 400
    run.write(stopped.model_copy(update={"config": stopped.config.model_copy(update={"epochs": done + 3})}))
    resumed = command("train", "--resume", "r", "--runs-dir", run.path.parent, env=environment)
    assert resumed.returncode == 0, resumed.stderr
    assert server.uri not in resumed.stdout  # which is for the result; MLflow itself would print there

    client = MlflowClient(server.uri)
    experiment = client.get_experiment_by_name("resnet-ops")
    assert experiment is not None
    (server_run,) = client.search_runs([experiment.experiment_id])
    epochs = run.epochs()
    assert [e.epoch for e in epochs] == list(range(1, done + 4))
    run_id = server_run.info.run_id
    assert history(client, run_id) == [(e.epoch, e.val_loss) for e in epochs]
    assert history(client, run_id, "images_per_second") == [(e.epoch, e.images_per_second) for e in epochs]
    assert (server_run.info.run_name, server_run.info.status) == ("r", "FINISHED")
    assert (server_run.data.params["model"], server_run.data.params["lr"]) == ("resnet8", "0.1")
    assert server_run.data.tags["data_fingerprint"] == run.read().data.fingerprint
    assert server_run.data.tags["best_weights"] == str(run.best / "model.safetensors")
    assert server_run.data.tags["version.torch"] == run.read().versions["torch"]


def test_a_server_that_is_down_is_reported_without_secrets_and_the_run_is_uploaded_later(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    ended = cli(*TRAIN, "--epochs", 2, "--name", "r", "--runs-dir", tmp_path, "--json")
    assert (ended.code, ended.json["status"]) == (0, "finished")
    assert ended.err.count("MLflow: logging failed") == 1
    later = (
        f"MLflow: not logged: 2 of 2 epochs of r. To log it later: resnet-ops train --resume r --runs-dir {tmp_path}"
    )
    assert later in ended.err
    run = Run(tmp_path / "r")
    assert [event.what for event in run.events()][-1] == later
    assert not [f for f in run.path.rglob("*") if f.is_file() and b"secret" in f.read_bytes()]
    assert "secret" not in ended.err

    store = f"sqlite:///{tmp_path}/mlflow.db"  # MLflow without a server
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    again = cli("train", "--resume", "r", "--runs-dir", tmp_path)
    assert again.code == 0
    assert "not logged" not in again.err
    client = MlflowClient(store)
    (server_run,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])  # type: ignore[union-attr]
    assert history(client, server_run.info.run_id) == [(e.epoch, e.val_loss) for e in run.epochs()]
    assert server_run.info.status == "FINISHED"


def test_epochs_that_are_retrained_to_other_numbers_replace_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    run, client = Run(tmp_path / "r"), MlflowClient(store)
    run.path.mkdir()
    run_record = record(config=TrainConfig.of(track="mlflow", cache_dir="/a"))

    def upload(epochs: list[Epoch]) -> str:
        tracked = TrackedRun("mlflow", run, run_record)
        tracked.upload(epochs)
        assert tracked.id is not None
        return tracked.id

    same = [epoch(n) for n in range(1, 4)]
    first = upload(same)
    faster = [e.model_copy(update={"images_per_second": 2.0}) for e in same]
    assert upload([*faster[:2]]) == first  # rewound, and trained to the same numbers
    assert upload([*faster, epoch(4)]) == first
    assert history(client, first, "images_per_second") == [(n, 1.0) for n in range(1, 5)]
    other = [*same[:2], epoch(3).model_copy(update={"val_loss": 2.0})]
    second = upload(other)
    assert second != first
    assert history(client, second) == [(1, 1.0), (2, 1.0), (3, 2.0)]
    assert client.get_run(first).info.lifecycle_stage == "deleted"


@pytest.mark.parametrize("command_name", ["train", "tune"])
@pytest.mark.parametrize(("track", "name"), [("mlflow", "MLflow"), ("wandb", "Weights & Biases")])
def test_without_the_extra_nothing_begins(
    command_name: str, track: str, name: str, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, track, None)
    ended = cli(command_name, "--track", track, "--runs-dir", tmp_path)
    assert ended.code == 2
    assert ended.err == f"error: --track {track} needs {name}: pip install 'resnet-ops[{track}]'\n"
    assert not list(tmp_path.iterdir())


def test_a_job_gets_the_variables_of_tracking_and_no_secret(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://there:5000")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert service_environment("mlflow") == {"MLFLOW_TRACKING_URI": "http://there:5000"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@there:5000")
    assert service_environment("none") == {}
    ended = cli(*TRAIN, "--cluster", "http://127.0.0.1:9", "--runs-dir", "/shared")
    assert ended.code == 2
    assert "MLFLOW_TRACKING_URI contains a user name or a secret" in ended.err
