"""What an earlier version wrote is still read: a run that was killed, a finished search, an exported file.

`data/runs-0.1.0.tar.xz` was written by version 0.1.0 (commit 025ed69): `train --model resnet8 --batch-size 256
--num-to-keep 1 --name before`, killed after its first epoch; `tune --depths 8 --lr 0.05,0.1 --trials 2 --epochs 2
--scheduler none --name search`; `export search --onnx`. Only host and paths were edited, `epochs` of the run that was
killed, and what is large and not read here was left out.
"""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Ended

WRITTEN_BY_0_1_0 = Path(__file__).parent / "data" / "runs-0.1.0.tar.xz"


@pytest.fixture
def earlier_runs(tmp_path: Path) -> Path:
    """The runs folder of the earlier version."""
    with tarfile.open(WRITTEN_BY_0_1_0) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "runs"


def test_a_killed_run_resumes(cli: Callable[..., Ended], earlier_runs: Path) -> None:
    metrics = earlier_runs / "before" / "metrics.jsonl"
    first = metrics.read_text().splitlines()[0]
    ended = cli("train", "--resume", "before", "--runs-dir", earlier_runs, "--json")
    assert ended.code == 0, ended.err
    assert (ended.json["status"], ended.json["epochs"]) == ("finished", 3)
    epochs = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert metrics.read_text().splitlines()[0] == first
    assert [epoch["epoch"] for epoch in epochs] == [1, 2, 3]
    assert ended.json["epochs_s"] == pytest.approx(sum(epoch["seconds"] for epoch in epochs))
    assert "s since it was resumed" in ended.err
    assert epochs[-1]["val_loss"] < epochs[0]["val_loss"]


def test_the_best_weights_of_a_search_are_exported(cli: Callable[..., Ended], earlier_runs: Path) -> None:
    ended = cli("export", "search", "--onnx", "--runs-dir", earlier_runs, "--json")
    assert ended.code == 0, ended.err
    assert ended.json["validated"] is True


def test_an_exported_file_is_verified_and_used(
    cli: Callable[..., Ended], earlier_runs: Path, digit_images: list[Path]
) -> None:
    model = earlier_runs / "search" / "export" / "model.onnx"
    validated = cli("validate", model, "--runs-dir", earlier_runs, "--json")
    assert validated.code == 0, validated.err
    predicted = cli("predict", model, digit_images[0], "--json")
    assert predicted.code == 0, predicted.err


def test_runs_and_their_report_are_shown(cli: Callable[..., Ended], earlier_runs: Path, tmp_path: Path) -> None:
    listed = cli("runs", "--runs-dir", earlier_runs, "--json")
    assert {run["name"]: run["status"] for run in listed.json["runs"]} == {
        "before": "interrupted",
        "search": "finished",
    }
    page = tmp_path / "report.html"
    reported = cli("report", "search", "--runs-dir", earlier_runs, "-o", page, "--json")
    assert reported.code == 0, reported.err
    assert page.stat().st_size > 10_000
