"""`resnet-ops runs`: which runs are listed and in which order, what is shown of one, how two differ, and deleting."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from resnet_ops import files
from resnet_ops.runs import Run, distinct_names
from resnet_ops.significance import MeasuredAccuracy, p_value
from resnet_ops.training import checkpoint as checkpoints
from resnet_ops.training import job
from tests.conftest import DigitFiles, Ended

Cli = Callable[..., Ended]


@pytest.fixture
def runs_dir(trained: job.TrainResult, tmp_path: Path) -> Path:
    """Three runs: `worse` gets fifty images wrong that `better` does not, `other` was trained on others."""
    folder = tmp_path / "runs"
    for name, lr in (("better", 0.1), ("worse", 0.05), ("other", 0.1)):
        shutil.copytree(trained.run.path, folder / name)
        run = Run(folder / name)
        record = run.read_as_written()
        run.write(record.model_copy(update={"name": name, "config": record.config.model_copy(update={"lr": lr})}))
    run = Run(folder / "worse")
    record, best = run.read_as_written(), json.loads((run.best / "model.json").read_text())
    right = int(best["val_correct"], 16)
    kept = [n for n in range(right.bit_length()) if right >> n & 1][50:]
    best["val_correct"] = f"{sum(1 << n for n in kept):x}"
    (run.best / "model.json").write_text(json.dumps(best))
    accuracy = len(kept) / record.data.val_images
    assert record.best is not None
    run.write_epochs([
        epoch.model_copy(update={"val_error": 1 - accuracy if epoch.epoch == record.best.epoch else 1.0})
        for epoch in run.epochs()
    ])  # fmt: skip
    other = Run(folder / "other")
    record = other.read_as_written()
    config = record.config.model_copy(update={"model": "plain8"})
    data = record.data.model_copy(update={"fingerprint": "of other images"})
    other.write(record.model_copy(update={"status": "failed", "config": config, "data": data}))
    return folder


def names(cli: Cli, *arguments: object) -> list[str]:
    ended = cli("runs", *arguments, "--json")
    assert ended.code == 0, ended.err
    return [run["name"] for run in ended.json["runs"]]


def test_which_runs_are_listed_and_in_which_order(cli: Cli, runs_dir: Path) -> None:
    here = ("--runs-dir", runs_dir)
    assert names(cli, *here, "--sort", "name") == ["better", "other", "worse"]
    assert names(cli, *here, "--sort", "accuracy")[-1] == "worse"
    assert names(cli, *here) == ["other", "worse", "better"]
    assert names(cli, *here, "--status", "failed") == ["other"]
    assert names(cli, *here, "--match", "plain") == ["other"]
    assert names(cli, *here, "--match", "wors") == ["worse"]
    table = cli("runs", *here, "--columns", "status,name").out.splitlines()
    assert table[0].split() == ["status", "name"]
    wrong = cli("runs", *here, "--columns", "nmae")
    assert (wrong.code, "Did you mean name?" in wrong.err) == (2, True)
    assert "Did you mean 'show'?" in cli("runs", "shwo").err


def test_a_run_is_shown_with_its_curves(cli: Cli, runs_dir: Path, trained: job.TrainResult) -> None:
    ended = cli("runs", "show", "better", "--runs-dir", runs_dir, "--plot")
    assert ended.code == 0, ended.err
    assert trained.record.best is not None
    for words in ("resnet8", f"in epoch {trained.record.best.epoch}", "--epochs=6", "random crop (padding 1)"):
        assert words in ended.out
    assert "top-1 error in % by epoch" in ended.out
    shown = cli("runs", "show", runs_dir / "better", "--json").json
    assert shown["curve"] == [json.loads(line) for line in (runs_dir / "better/metrics.jsonl").read_text().splitlines()]
    assert (shown["parameters"], shown["best_weights"]) == (75_002, str(runs_dir / "better/best/model.safetensors"))
    Run(runs_dir / "better").write_epochs([])
    begun = cli("runs", "show", "better", "--runs-dir", runs_dir).out
    assert ("epochs        0 of 6\n" in begun, "--image-size" in begun) == (True, False)
    missing = cli("runs", "show", "bettr", "--runs-dir", runs_dir)
    assert (missing.code, "Did you mean better?" in missing.err) == (2, True)


def test_an_exported_file_of_weights_that_are_no_longer_the_best_is_told(
    cli: Cli, runs_dir: Path, digit_files: DigitFiles, digit_images: list[Path]
) -> None:
    run, here = Run(runs_dir / "better"), ("--runs-dir", runs_dir)
    file = Path(shutil.copy(digit_files.normalized, run.export / "model.onnx"))
    proof = {"checks": [], "sha256": files.sha256(file), "checkpoint_sha256": digit_files.checkpoint.sha256}
    file.with_name("model.onnx.json").write_text(json.dumps(proof))
    assert cli("runs", "show", "better", *here, "--json").json["not_of_best"] == []
    assert "other than the best" not in cli("predict", "better", digit_images[0], *here).err
    info, model = digit_files.checkpoint.info, digit_files.checkpoint.model
    checkpoints.save(checkpoints.best_file(run), info, {f"model/{name}": value / 2 for name, value in model.items()})
    shown = " ".join(cli("runs", "show", "better", *here).out.split())
    assert "better/export/model.onnx, from weights other than the best ones now" in shown
    file.with_name("model.onnx.json").unlink()  # as of a copied file, which has its own word
    assert cli("runs", "show", "better", *here, "--json").json["not_of_best"] == [str(file)]
    (link := runs_dir.parent / "link.onnx").symlink_to(file)
    for given in ("better", link):
        told = cli("predict", given, digit_images[0], *here)
        assert told.code == 0
        assert ".onnx was exported from weights other than the best ones that its run has now" in told.err
    refused = cli("validate", "better", *here)
    error = refused.err[refused.err.index("error:") :]
    assert (refused.code, "FAIL" in refused.out) == (1, True)
    assert f"Export it again: resnet-ops export {run.path} --onnx." in error
    assert "(" not in error  # what the table says of each check


def test_two_runs_are_compared_by_an_exact_test_on_the_same_images(cli: Cli, runs_dir: Path) -> None:
    ended = cli("runs", "compare", "worse", "better", "--runs-dir", runs_dir, "--json")
    assert ended.code == 0, ended.err
    assert ended.json["options"] == {"lr": [0.05, 0.1]}
    (difference,) = ended.json["differences"]
    assert (difference["better"], difference["worse"], difference["beyond_chance"]) == ("better", "worse", True)
    images = Run(runs_dir / "better").read().data.val_images
    assert difference["difference"] == pytest.approx(50 / images)
    assert difference["p_value"] == pytest.approx(2 * 0.5**50)  # McNemar: fifty of fifty for one of the two
    right = [Run(runs_dir / name).val_correct() or 0 for name in ("worse", "better")]
    assert difference["p_value"] == p_value(*(MeasuredAccuracy(each.bit_count(), images, each) for each in right))
    assert "--lr" in ended.err
    assert "more than chance explains (p = 1.8e-15, exact McNemar test)" in ended.err
    other = Run(runs_dir / "other")
    record = other.read_as_written()
    config = record.config.model_copy(update={"model": "resnet18", "shortcut": "B", "image_size": "64"})
    other.write(record.model_copy(update={"config": config}))
    shapes = cli("runs", "compare", "better", "other", "--runs-dir", runs_dir, "--json").json["options"]
    assert shapes == {"model": ["resnet8", "resnet18"], "image_size": [None, "64"]}  # each has its usual shortcuts
    others = cli("runs", "compare", "better", "other", "--runs-dir", runs_dir)
    assert "not validated on the same images" in others.out
    assert cli("runs", "compare", "better", "--runs-dir", runs_dir).code == 2


def test_runs_of_one_name_are_told_apart(cli: Cli, runs_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(runs_dir / "worse", tmp_path / "elsewhere" / "better")
    both = (runs_dir / "better", tmp_path / "elsewhere" / "better")
    ended = cli("runs", "compare", *both)
    assert ended.code == 0, ended.err
    assert ended.out.split()[:2] == ["runs/better", "elsewhere/better"]
    assert "runs/better is 13.93 percentage points above elsewhere/better, more than chance" in ended.out
    report = cli("report", *both, "-o", tmp_path / "report.html")
    assert report.code == 0, report.err
    assert [line.split()[0] for line in report.out.splitlines()[1:3]] == ["runs/better", "elsewhere/better"]
    assert "elsewhere/better (resnet8) is 13.93 percentage points lower" in (tmp_path / "report.html").read_text()


def test_names_have_as_many_folders_as_tell_them_apart() -> None:
    folders = [Path("/a/x/run"), Path("/b/x/run"), Path("/a/x/other"), Path("run")]
    assert list(distinct_names(folders).values()) == ["a/x/run", "b/x/run", "other", "run"]


def test_runs_are_deleted_after_a_question(cli: Cli, runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rm(answer: str, *arguments: str) -> Ended:
        monkeypatch.setattr("sys.stdin", io.StringIO(answer))
        return cli("runs", "rm", *arguments, "--runs-dir", runs_dir)

    for answer, said in (("n\n", "Nothing was deleted"), ("", "Use --yes")):
        refused = rm(answer, "worse")
        assert (refused.code != 0, said in refused.err) == (True, True), refused.err
    with Run(runs_dir / "worse").lock():
        assert "is being trained" in rm("", "worse", "--yes").err
    (runs_dir / "mine").mkdir()
    (runs_dir / "mine" / "diary.txt").write_text("dear diary")
    assert rm("", str(runs_dir / "mine"), "--yes").code == 2
    assert {path.name for path in runs_dir.iterdir()} == {"better", "worse", "other", "mine"}
    assert rm("y\n", "worse", "other").code == 0
    assert {path.name for path in runs_dir.iterdir()} == {"better", "mine"}
