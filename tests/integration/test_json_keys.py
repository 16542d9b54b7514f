"""Keys of what commands print with `--json`; those of clusters, jobs, serve and doctor are in their own tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resnet_ops.training import job
from tests.conftest import Ended
from tests.data.samples import shades, write_class_folders
from tests.json_keys import assert_keys

AUGMENTED = {  # what the first lines of commands that train say
    "train": "\naugmentation  random crop (padding 1)\n",
    "tune": "note: Augmentation: random crop (padding 1).\n",
    "study": "note: Augmentation: none.\n",
}


def test_commands_on_this_machine(
    cli: Callable[..., Ended],
    ray_session: None,  # or the search and the study would start one each
    trained: job.TrainResult,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_class_folders(tmp_path / "images", shades({"cat": 220, "dog": 60}, 12, (16, 12)))
    (tmp_path / "images" / "cat" / "broken.png").write_bytes(b"no image")
    Path("runs").mkdir()

    def record(name: str, *arguments: object, code: int = 0) -> dict[str, Any]:
        ended = cli(*arguments, "--json")
        assert ended.code == code, ended.err
        assert_keys(name, ended.json)
        if name in AUGMENTED:
            assert AUGMENTED[name] in ended.err
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
    record("error", "train", "--lr", -1, code=2)
    record("tune", "tune", *quick, "--trials", 2, "--depths", 8, "--refit", "--name", "b")
    record("study", "study", "degradation", *quick, "--depths", 8, "--seeds", 1, "--name", "c")
