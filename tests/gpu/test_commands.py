"""The commands that find a GPU by themselves: doctor, tune, cluster up, train on it, serve."""

import contextlib
import http.client
import json
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from resnet_ops.export import runtime
from resnet_ops.export.classifier import Classifier
from resnet_ops.export.untrusted import check_file
from resnet_ops.runs import Run
from tests.conftest import DigitFiles, Ended
from tests.gpu.conftest import command, start, succeeded
from tests.gpu.hardware import DEVICE, PROVIDER, REHEARSAL
from tests.processes import command_line
from tests.waiting import wait_for

Cli = Callable[..., Ended]
GPUS = torch.cuda.device_count() if DEVICE.type == "cuda" else 0


def test_doctor_has_tried_the_gpu(cli: Cli) -> None:
    findings = {finding["name"]: finding for finding in succeeded(cli("doctor", "--json"))["findings"]}
    state = "absent" if REHEARSAL else "ok"
    for name in ("GPU", "NCCL", "CUDAExecutionProvider"):
        assert findings[name]["state"] == state, findings[name]
    assert findings["torch"]["state"] == findings["Ray"]["state"] == findings["CPUExecutionProvider"]["state"] == "ok"
    assert not [finding for finding in findings.values() if finding["state"] == "broken"]
    if not REHEARSAL:
        assert torch.cuda.get_device_name() in findings["GPU"]["found"]


def test_a_search_runs_several_trials_on_one_gpu(tmp_path: Path) -> None:
    options = ("--depths", 8, "--lr", "0.02,0.05,0.1,0.2", "--search", "grid", "--scheduler", "none", "--epochs", 8)
    where = ("--device", "cpu") if REHEARSAL else ()
    ended = command("tune", *options, *where, "--runs-dir", tmp_path, "--name", "search", "--json", cwd=tmp_path)
    result = succeeded(ended)
    assert [trial["status"] for trial in result["trials"]] == ["finished"] * 4
    records = [Run(folder).read_as_written() for folder in sorted((tmp_path / "search" / "trials").iterdir())]
    assert {record.device for record in records} == {DEVICE.type}
    spans = [(record.created, record.updated) for record in records]
    at_once = max(sum(begin <= moment < end for begin, end in spans) for moment, _ in spans)
    assert at_once >= min(4, len(os.sched_getaffinity(0)))
    assert result["best"]["val_accuracy"] > 0.9


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An environment whose local cluster, token and 'auto' are these tests' own."""
    folder = tmp_path_factory.mktemp("home")
    own = {"HOME": str(folder), "XDG_STATE_HOME": str(folder / "state")}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | own
    yield environment
    command("cluster", "down", cwd=folder, env=environment)


@pytest.fixture(scope="module")
def cluster(home: dict[str, str]) -> dict[str, Any]:
    """A local cluster of one node."""
    return succeeded(command("cluster", "up", "--nodes", 1, "--json", cwd=Path(home["HOME"]), env=home))


def test_a_local_cluster_has_the_gpus(home: dict[str, str], cluster: dict[str, Any], tmp_path: Path) -> None:
    status = succeeded(command("cluster", "status", "--json", cwd=tmp_path, env=home))
    assert (status["totals"]["gpus"], status["totals"]["free_gpus"]) == (GPUS, GPUS)
    assert status["fits"]["device"] == DEVICE.type


def test_a_lost_worker_on_the_gpu_is_replaced(home: dict[str, str], cluster: dict[str, Any], tmp_path: Path) -> None:
    """Training through Ray, with NCCL and one worker."""
    where = ("--device", "cpu", "--workers-per-node", 1) if REHEARSAL else ("--gpus-per-node", 1)
    epochs = 40 if REHEARSAL else 100  # a GPU must not be done before its worker is lost
    options = ("--model", "resnet8", "--epochs", epochs, "--checkpoint-every", 10, "--deterministic")
    run = Run(tmp_path / "runs" / "lost")
    process = start(
        "train", "--cluster", "auto", *where, *options, "--name", "lost", "--json", cwd=tmp_path, env=home
    )  # fmt: skip
    try:
        wait_for(lambda: len(run.epochs()) >= 2)
        (worker,) = workers(cluster["folder"])
        os.kill(worker, signal.SIGKILL)
        out, err = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 0, err
    result = json.loads(out.splitlines()[-1])
    assert (result["status"], result["epochs"], result["world_size"]) == ("finished", epochs, 1)
    assert result["device"] == DEVICE.type
    assert [event.kind for event in run.events()].count("loss") == 1


def workers(folder: str) -> list[int]:
    """Return the processes that train on the cluster whose files are in `folder`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            name = command_line(int(process.name))
            if name.startswith(b"ray::") and b"TrainWorker" in name and on_cluster(process, folder):
                found.append(int(process.name))
    return found


def on_cluster(process: Path, folder: str) -> bool:
    """Return whether a process has files of the cluster open, such as its log."""
    return any(str(file.readlink()).startswith(folder) for file in (process / "fd").iterdir())


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    """Images to classify, (N, 8, 8, 1) uint8."""
    return np.random.default_rng(0).integers(0, 256, (96, 8, 8, 1), np.uint8)


@pytest.mark.parametrize("form", ["normalized", "raw"])
def test_a_service_on_the_gpu_answers_as_the_cpu_does(
    form: str, digit_files: DigitFiles, digits: np.ndarray, tmp_path: Path
) -> None:
    """Alone and in batches of all sizes up to 16."""
    file = getattr(digit_files, form)
    plain = Classifier.from_session(check_file(file), runtime.create_session(file, runtime.CPU))
    expected = plain.classify(digits)
    process = start(
        "serve", file, "--port", 0, "--provider", PROVIDER, "--batch", 16, "--json", cwd=tmp_path
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        service = json.loads(line)
        assert service["provider"] == PROVIDER
        port = int(service["url"].rpartition(":")[2])
        for threads in (1, 3, 16):
            with ThreadPoolExecutor(threads) as pool:
                answers = list(pool.map(lambda image: classify(port, image), digits))
            for answer, probabilities in zip(answers, expected, strict=True):
                order = np.argsort(-probabilities)[:3]
                found = {one["class"]: one["probability"] for one in answer["top"]}
                assert found == pytest.approx({str(i): float(probabilities[i]) for i in order}, abs=1e-3)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0


def classify(port: int, image: np.ndarray) -> dict[str, Any]:
    """Send an image as PNG."""
    import io

    encoded = io.BytesIO()
    Image.fromarray(image[:, :, 0]).save(encoded, "PNG")
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.request("POST", "/classify?top=3", encoded.getvalue())
        answer = connection.getresponse()
        content: dict[str, Any] = json.loads(answer.read())
        assert answer.status == 200, content
        return content
