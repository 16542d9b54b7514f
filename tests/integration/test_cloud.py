"""Runs in a bucket: the same commands against a server that speaks S3, with real kills and real second processes."""

import contextlib
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import numpy as np
import pytest
import s3fs

from resnet_ops import doctor, files, locks, runs
from resnet_ops.config import TrainConfig
from resnet_ops.errors import RunLostError, UserError
from resnet_ops.files import to_path
from resnet_ops.locks import Lease
from resnet_ops.runs import Run
from resnet_ops.training import job
from tests.conftest import COMMAND, Ended, command
from tests.data.samples import noise, write_class_folders
from tests.integration.test_train import assert_same_bytes, weights
from tests.test_runs import epoch, record
from tests.tracking.test_tensorboard import curves, read_curves
from tests.waiting import wait_for

Cli = Callable[..., Ended]


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    """An S3 of our own, empty but for a bucket, that this process and those it starts talk to."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    moto = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stderr=subprocess.DEVNULL
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "someone")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        try:
            wait_for(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0)
            boto3.client("s3").create_bucket(Bucket="bucket")
            yield
        finally:
            moto.terminate()
            moto.wait()
            s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def place(server: None, request: pytest.FixtureRequest) -> str:
    """A folder in the bucket for one test."""
    return f"s3://bucket/{request.node.name.partition('[')[0]}"


@pytest.fixture
def run(place: str) -> Run:
    """A run whose record says that it is being trained."""
    run = runs.create(to_path(place), "mine", "", overwrite=False)
    run.write(record(status="running"))
    return run


def keys(run: Run) -> list[str]:
    """All that lies in a run's folder, asked of the server directly."""
    prefix = str(run.path).removeprefix("s3://bucket/") + "/"
    listed = boto3.client("s3").list_objects_v2(Bucket="bucket", Prefix=prefix).get("Contents", [])
    return [entry["Key"].removeprefix(prefix) for entry in listed]


@pytest.mark.slow
def test_a_killed_run_ends_in_the_bytes_of_an_undisturbed_one_on_a_disk(place: str, cli: Cli, tmp_path: Path) -> None:
    options = ("train", "--model", "resnet8", "--epochs", 12)
    whole = job.train(TrainConfig.of(model="resnet8", epochs=12, runs_dir=tmp_path, name="whole")).run
    begin = [*COMMAND, *map(str, options), "--runs-dir", place, "--name", "killed"]
    process = subprocess.Popen(begin, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    killed = Run(to_path(place) / "killed")
    wait_for(lambda: len(killed.epochs()) >= 1)
    for second in (("--resume", "killed"), (*options[1:], "--name", "killed", "--overwrite")):
        refused = cli("train", *second, "--runs-dir", place)
        assert refused.code == 2
        assert f"is being trained by another process (pid {process.pid} on " in refused.err
    wait_for(lambda: len(killed.epochs()) >= 3)
    process.kill()
    process.wait()
    assert len(killed.epochs()) < 12
    assert killed.read_as_written().status == "running"
    assert killed.read().status == "interrupted"  # at once: its process was one of this machine

    ended = cli("train", "--resume", "killed", "--runs-dir", place, "--json")
    assert ended.code == 0, ended.err
    assert "Resuming after" in ended.err
    assert ended.json["best"]["checkpoint"] == f"{place}/killed/best/model.safetensors"
    assert_same_bytes(weights(killed, 12), weights(whole, 12))
    assert [e.val_loss for e in killed.epochs()] == [e.val_loss for e in whole.epochs()]
    (row,) = json.loads(command("runs", "--runs-dir", place, "--json").stdout)["runs"]
    assert (row["name"], row["status"], row["run_dir"]) == ("killed", "finished", f"{place}/killed")

    exported = cli("export", "killed", "--onnx", "--runs-dir", place, "--json")
    assert exported.code == 0, exported.err
    assert exported.json["onnx"] == f"{place}/killed/export/model.onnx"
    onnx = files.read(to_path(exported.json["onnx"]))
    assert json.loads(files.read(to_path(exported.json["proof"])))["sha256"] == hashlib.sha256(onnx).hexdigest()
    refuted = cli("export", f"{place}/killed", "--onnx", "--tolerance", "1e-12")
    assert refuted.code == 1
    assert files.read(to_path(exported.json["onnx"])) == onnx  # the proven one stays
    checkpoints = [f"checkpoints/{path.name}" for path in sorted(whole.checkpoints.iterdir())]
    events = [key for key in keys(killed) if key.startswith("tensorboard/")]
    (tmp_path / "tensorboard").mkdir()
    for key in events:
        (tmp_path / key).write_bytes(files.read(killed.path / key))
    assert read_curves(tmp_path / "tensorboard") == curves(killed.epochs())
    assert keys(killed) == [
        "best/model.json", "best/model.safetensors", *checkpoints, "export/model.onnx", "export/model.onnx.json",
        "export/model.onnx.rejected", "export/model.onnx.rejected.json", "metrics.jsonl", "pictures/augmented.png",
        "pictures/confusion.png", "progress.json", "run.json",
        *events,
    ]  # fmt: skip


@pytest.mark.slow
def test_two_workers_train_into_a_bucket(place: str) -> None:
    ended = command(
        "train", "--model", "resnet8", "--epochs", 2, "--workers-per-node", 2, "--runs-dir", place, "--name", "two",
        "--json",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    run = Run(to_path(place) / "two")
    assert run.read().world_size == 2
    assert len(run.epochs()) == 2
    assert not [key for key in keys(run) if key.startswith("ray/") or key == ".lock"]


@pytest.mark.slow
def test_images_in_a_bucket_are_streamed_as_from_memory(place: str, tmp_path: Path) -> None:
    for split, count, seed in (("train", 20, 0), ("val", 6, 1)):
        images = np.split(noise(count, side=16, seed=seed), 2)
        write_class_folders(tmp_path / "images" / split, {"cat": images[0], "dog": images[1]})
    to_path(place).fs.put(f"{tmp_path}/images/", f"{place}/images/", recursive=True)  # type: ignore[attr-defined]
    options = {"model": "resnet8", "epochs": 1, "batch_size": 8, "runs_dir": tmp_path}
    there = job.train(TrainConfig.of(**options, name="there", data=str(tmp_path / "images")))
    ended = command(
        "train", "--model", "resnet8", "--epochs", 1, "--batch-size", 8, "--runs-dir", tmp_path, "--name", "streamed",
        "--stream", "on", "--data", f"{place}/images/train", "--val-data", f"{place}/images/val",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "note: Streaming: decoded, the training images take" in ended.stderr
    assert_same_bytes(weights(Run(tmp_path / "streamed"), 1), weights(there.run, 1))


def test_a_bucket_that_vanishes_stops_a_run_in_one_line(server: None) -> None:
    bucket = boto3.resource("s3").create_bucket(Bucket="short-lived")
    process = subprocess.Popen(
        [*COMMAND, "train", "--model", "resnet8", "--epochs", "500", "--runs-dir", "s3://short-lived", "--name", "v"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(lambda: len(Run(to_path("s3://short-lived/v")).epochs()) >= 1)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:  # something is written again while it is emptied
        with contextlib.suppress(bucket.meta.client.exceptions.ClientError):
            bucket.objects.all().delete()
            bucket.delete()
            break
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    last = err.splitlines()[-1]
    missed_first = "The folder of run v was removed or renamed", "The specified bucket does not exist"
    assert last.startswith("error: "), err
    assert any(words in last for words in missed_first), err  # by the lease, or by what was just being written
    assert "Traceback" not in err


def test_overwriting_leaves_nothing_of_the_old_and_all_of_the_others(run: Run) -> None:
    (run.best / "old").write_bytes(b"old")
    neighbor = Run(run.path.with_name("mine-2"))
    neighbor.write(record())
    folder = run.path.parent
    with pytest.raises(UserError, match=r"Run mine exists already.*--overwrite"):
        runs.create(folder, "mine", "", overwrite=False)
    assert runs.create(folder, None, "mine", overwrite=False).name == "mine-3"
    runs.create(folder, "mine", "", overwrite=True)
    assert keys(run) == []
    assert keys(neighbor) == ["run.json"]
    (folder / "precious" / "thesis.tex").write_bytes(b"1")
    with pytest.raises(UserError, match="is not a run"):
        runs.create(folder, "precious", "", overwrite=True)
    assert [found.name for found in runs.in_folder(folder)] == ["mine-2"]


def test_what_another_process_writes_is_seen_at_once(run: Run) -> None:
    folder = run.path.parent
    assert [found.name for found in runs.in_folder(folder)] == ["mine"]
    prefix = str(folder).removeprefix("s3://bucket/")
    boto3.client("s3").put_object(Bucket="bucket", Key=f"{prefix}/other/run.json", Body=b"{}")
    assert {found.name for found in runs.in_folder(folder)} == {"mine", "other"}


def test_a_damaged_checkpoint_is_set_aside(place: str, cli: Cli) -> None:
    done = job.train(TrainConfig.of(model="resnet8", epochs=2, runs_dir=place, name="d")).run
    expected = weights(done, 2)
    done.write(done.read().model_copy(update={"status": "interrupted"}))
    last = done.checkpoints / "epoch-0002.safetensors"
    last.write_bytes(last.read_bytes()[:-1000])
    ended = cli("train", "--resume", "d", "--runs-dir", place)
    assert ended.code == 0, ended.err
    assert "Skipping a checkpoint" in ended.err
    assert_same_bytes(weights(done, 2), expected)
    assert "checkpoints/epoch-0002.damaged" in keys(done)


# The lease


def lease(age_s: float) -> Lease:
    """Of a process on another machine, whose number no process here has."""
    return Lease(host="elsewhere", pid_space="another", pid=2**22 + 1, nonce="theirs", renewed=time.time() - age_s)


def test_a_lease_that_is_not_renewed_is_anybodys_once_one_has_seen_that(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "REMOTE_POLL_INTERVAL_S", 0.1)
    run.lock_file.write_bytes(lease(age_s=locks.EXPIRE_S - 20).model_dump_json().encode())
    assert run.read().status == "running"
    with pytest.raises(UserError, match=r"on elsewhere\)"), run.lock():
        pass
    waits: list[str] = []
    monkeypatch.setattr(locks, "EXPIRE_S", 1.0)
    monkeypatch.setattr(locks, "RENEW_S", 0.2)
    for age_s in (0, -3600):  # whatever the other machine's clock says
        run.lock_file.write_bytes(lease(age_s).model_dump_json().encode())
        began = time.monotonic()
        with run.lock(30, waits.append):
            assert time.monotonic() - began >= locks.EXPIRE_S
            assert run.read().status == "running"
            with pytest.raises(UserError, match=f"pid {os.getpid()}"), run.lock():
                pass
    assert waits == [f"Run mine is held by pid {2**22 + 1} on elsewhere; waiting up to 30 s."] * 2
    assert keys(run) == ["run.json"]


def test_of_many_who_take_a_run_at_once_one_has_it(run: Run) -> None:
    line_up, held, refused = threading.Barrier(5), [], []

    def take() -> None:
        line_up.wait()
        try:
            with locks.hold(run.lock_file, run.name):
                held.append(1)
                line_up.wait()
        except UserError as error:
            refused.append(error)
            line_up.wait()

    threads = [threading.Thread(target=take) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 4)


def test_a_lease_is_renewed_and_without_it_nothing_is_written(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "RENEW_S", 0.2)
    with run.lock():
        first = files.read(run.lock_file)
        time.sleep(0.7)
        assert files.read(run.lock_file) != first
        run.append_epoch(epoch(1))
        run.lock_file.write_bytes(lease(age_s=0).model_dump_json().encode())
        before = keys(run)
        for write in (
            lambda: run.append_epoch(epoch(2)),
            lambda: run.write(record()),
            lambda: run.write_progress({}),
            lambda: files.remove(run.record_file),
            lambda: files.remove_tree(run.path),
            lambda: files.write_atomically(run.best / "model.json", b""),
        ):
            with pytest.raises(RunLostError, match=r"Another process .* has taken over run mine"):
                write()
        assert keys(run) == before
        assert len(run.epochs()) == 1
        time.sleep(0.5)
    assert Lease.model_validate_json(files.read(run.lock_file)).nonce == "theirs"
    assert run.read_as_written().name == "r"


def test_lines_that_are_appended_at_once_are_all_there(run: Run) -> None:
    threads = [threading.Thread(target=run.log_event, args=(f"{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(event.what for event in run.events()) == [f"{n}" for n in range(8)]


# What can be wrong with a bucket


class Forbidding(BaseHTTPRequestHandler):
    """Allows to list an empty bucket, and nothing else; or not even that."""

    allowed = b""

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if not self.allowed:
            self.answer(403, b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>")
        elif "list-type" in self.path:
            self.answer(200, self.allowed)
        else:
            self.answer(404, b"<Error><Code>NoSuchKey</Code><Message>No such key</Message></Error>")

    def do_PUT(self) -> None:
        self.close_connection = True
        self.answer(403, b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>")

    def do_HEAD(self) -> None:
        self.send_response(200 if "/" not in self.path[1:] else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class ReadOnly(Forbidding):
    allowed = b"<ListBucketResult><Name>bucket</Name><KeyCount>0</KeyCount></ListBucketResult>"


@contextlib.contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{http.server_port}"
        finally:
            http.shutdown()


@pytest.fixture
def changing(server: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The environment, to be changed; fsspec remembers for a process what it was."""
    yield monkeypatch
    s3fs.S3FileSystem.clear_instance_cache()


def refusal(cli: Cli, *arguments: object) -> str:
    """The one line that a refused command says, within seconds."""
    s3fs.S3FileSystem.clear_instance_cache()
    began = time.monotonic()
    ended = cli(*arguments)
    assert time.monotonic() - began < 15
    assert ended.code == 2, ended.err
    assert "Traceback" not in ended.err
    (line,) = ended.err.splitlines()
    return line


def test_what_is_wrong_with_a_bucket_is_said(cli: Cli, changing: pytest.MonkeyPatch) -> None:
    there = ("--runs-dir", "s3://bucket/x")
    for order in (("runs",), ("train",), ("train", "--resume", "mine"), ("export", "mine", "--onnx")):
        assert "there is no bucket 'missing'" in refusal(cli, *order, "--runs-dir", "s3://missing/x")
    assert "There is no run called 'mine' in s3://bucket/x" in refusal(cli, "train", "--resume", "mine", *there)
    with serving(Forbidding) as address, changing.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", address)
        assert "s3://bucket/x cannot be reached: Access Denied. Check" in refusal(cli, "runs", *there)
    with serving(ReadOnly) as address, changing.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", address)
        assert "/.lock cannot be reached: Access Denied. Check" in refusal(cli, "train", "--model", "resnet8", *there)
    with changing.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        assert "Could not connect to the endpoint" in refusal(cli, "runs", *there)
    with changing.context() as patch:
        patch.delenv("AWS_ACCESS_KEY_ID")
        patch.delenv("AWS_SECRET_ACCESS_KEY")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("HOME", "/nowhere")
        line = refusal(cli, "runs", *there)
        assert "Unable to locate credentials" in line
        assert "AWS_PROFILE" in line


def test_the_doctor_tries_the_bucket(place: str) -> None:
    (finding,) = doctor.examine_runs(to_path(place))
    assert (finding.name, finding.state) == ("runs", "ok")
    assert "wrote, read, listed and deleted" in finding.result
    (finding,) = doctor.examine_runs(to_path("s3://missing"))
    assert finding.state == "broken"
    assert "there is no bucket" in finding.result
