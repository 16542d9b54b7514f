"""What `--json` prints keeps every key that it had before results were models, with values of the same type.

data/json_keys.json was recorded at the commit before. More keys may come; none may go or change.
"""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from resnet_ops.runs import Run
from resnet_ops.training import job
from tests.conftest import COMMAND, Ended, command
from tests.data.samples import shades, write_class_folders

Keys = dict[str, str]
FILE = Path(__file__).with_name("data") / "json_keys.json"
NAMES = {bool: "bool", int: "number", float: "number", str: "string", type(None): "null"}


def keys(value: Any, path: str = "") -> Keys:
    """Each key, with the types of its values; of the items of lists those of all together."""
    inner = (
        [(f"{path}.{name}".lstrip("."), item) for name, item in value.items()]
        if isinstance(value, dict)
        else [(f"{path}[]", item) for item in value]
        if isinstance(value, list)
        else []
    )
    kind = "object" if isinstance(value, dict) else "list" if isinstance(value, list) else NAMES[type(value)]
    found_keys: Keys = {path: kind}
    for name, item in inner:
        for key, kinds in keys(item, name).items():
            found_keys[key] = " or ".join(sorted({*found_keys.get(key, kinds).split(" or "), *kinds.split(" or ")}))
    return found_keys


def compare(results: dict[str, Any]) -> None:
    """Compare the results of commands with the recorded keys."""
    recorded: dict[str, Keys] = json.loads(FILE.read_text())
    for name, result in results.items():
        now = keys(result)
        assert {key: now.get(key) for key in recorded[name]} == recorded[name], name


def test_commands_on_this_machine(
    cli: Callable[..., Ended], trained: job.TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_class_folders(tmp_path / "images", shades({"cat": 220, "dog": 60}, 12, (16, 12)))
    (tmp_path / "images" / "cat" / "broken.png").write_bytes(b"no image")
    Path("runs").mkdir()
    results: dict[str, Any] = {}

    def record(name: str, *arguments: object, code: int = 0) -> dict[str, Any]:
        ended = cli(*arguments, "--json")
        assert ended.code == code, ended.err
        results[name] = ended.json
        return ended.json

    quick = ("--epochs", 1, "--cpus-per-trial", 1)
    record("train", "train", "--model", "resnet8", "--epochs", 1, "--name", "a")
    record("train --resume", "train", "--resume", "a")
    exported = record("export", "export", trained.run.path, "--onnx", "--out", "model.onnx")
    record("export refuted", "export", trained.run.path, "--onnx", "--precision", "int8", "--tolerance", 1e-12,
        "--out", "int8.onnx", code=1)  # fmt: skip
    record("validate", "validate", exported["onnx"], "--checkpoint", trained.run.path)
    record("validate alone", "validate", exported["onnx"])
    record("predict", "predict", "model.onnx", "images", "--top", 2, code=1)
    record("bench", "bench", "model.onnx", "--batch", 1, "--seconds", 0.05, "--no-compile")
    record("data check", "data", "check", "digits")
    record("data check of a folder", "data", "check", "images", "--contact-sheet", "sheet.png", code=1)
    record("runs", "runs")
    record("report", "report", "a", "-o", "report.html")
    record("recipes", "recipes")
    record("recipes fast", "recipes", "fast")
    record("cluster template", "cluster", "template", "slurm", "-o", "slurm")
    record("doctor", "doctor")
    record("error", "train", "--lr", -1, code=2)
    record("tune", "tune", *quick, "--trials", 2, "--depths", 8, "--refit", "--name", "b")
    record("study", "study", "degradation", *quick, "--depths", 8, "--seeds", 1, "--name", "c")
    compare(results)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An environment whose local cluster and token are its own."""
    ours = {"HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path / "state"), "RAY_TMPDIR": str(tmp_path),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | ours
    yield environment
    command("cluster", "down", env=environment)


def test_commands_on_a_cluster(home: dict[str, str], tmp_path: Path) -> None:
    results: dict[str, Any] = {}

    def record(name: str, *arguments: object) -> dict[str, Any]:
        ended = command(*arguments, "--json", env=home, cwd=tmp_path)
        assert ended.returncode == 0, ended.stderr
        results[name] = json.loads(ended.stdout.splitlines()[-1])
        return results[name]

    up = record("cluster up", "cluster", "up", "--nodes", 1)
    server = ("--cluster", up["dashboard"])
    record("cluster status", "cluster", "status")
    sent = record("train as a job", "train", "--model", "resnet8", "--epochs", 1, "--name", "a", "--runs-dir",
               tmp_path / "runs", *server)  # fmt: skip
    record("jobs list", "jobs", "list", *server)
    record("jobs logs", "jobs", "logs", sent["job_id"], *server)
    record("jobs stop", "jobs", "stop", sent["job_id"], *server)
    record("cluster down", "cluster", "down")
    record("cluster down again", "cluster", "down")
    compare(results)


def test_serve(trained: job.TrainResult, cli: Callable[..., Ended], tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    assert cli("export", Run(trained.run.path).path, "--onnx", "--out", file).code == 0
    serving = subprocess.Popen([*COMMAND, "serve", file, "--port", "0", "--json"], stdout=subprocess.PIPE, text=True)
    try:
        assert serving.stdout is not None
        result = json.loads(serving.stdout.readline())
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", result["url"])
    finally:
        serving.send_signal(signal.SIGINT)
        serving.wait(60)
    compare({"serve": result})
