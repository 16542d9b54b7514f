"""The report shows the numbers of its runs, and a browser shows the report."""

import base64
import hashlib
import html
import io
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import resnet_ops
from resnet_ops.config import TrainConfig
from resnet_ops.reporting.predictions import Predictions, per_class, predict, thumbnail, thumbnails
from resnet_ops.reporting.run_comparison import configuration_differences
from resnet_ops.reporting.run_report import RunData, render_report, verdict, write
from resnet_ops.runs import Run
from resnet_ops.training import job
from resnet_ops.training.checkpoint import best_file, read
from tests.conftest import Ended
from tests.reporting import samples
from tests.reporting.reading import Page, needs_browser, show

DIGITS = Path(resnet_ops.__file__).parent / "data" / "digits.parquet"
HOSTILE = "<script>alert(1)</script>"
EXPORTED = b"an exported file"
PROOF = {
    "onnx": "model.onnx",
    "sha256": hashlib.sha256(EXPORTED).hexdigest(),
    "checkpoint_sha256": "0" * 64,
    "opset": 18,
    "validated": True,
    "provider": "CPUExecutionProvider",
    "images": 359,
    "val_accuracy_torch": 0.9,
    "val_accuracy_onnx": 0.9,
    "checks": [
        {"name": "real images", "found": HOSTILE, "held": True, "limit": "1e-05"},
        {"name": "top-1 agreement", "found": "99.00%", "held": False, "limit": ""},
    ],
}


@pytest.fixture(scope="module")
def runs(trained: job.TrainResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs: a trained one, a copy with worse metrics, an export and no weights, and one without an epoch."""
    folder = tmp_path_factory.mktemp("reported")
    good, lost, empty = (Run(folder / name) for name in ("good", "lost", "empty"))
    for run in (good, lost, empty):
        shutil.copytree(trained.run.path, run.path)
    record = trained.record
    lost.write_epochs(samples.epochs([0.5, 0.25]))
    shutil.rmtree(lost.best)
    shutil.rmtree(lost.checkpoints)
    (lost.export / "model.onnx").write_bytes(EXPORTED)
    (lost.export / "model.onnx.json").write_text(json.dumps(PROOF))
    lost.write(record.model_copy(update={"status": "failed", "reason": HOSTILE, "best": None}))
    lost.log_event("Lost worker 1.")
    shutil.rmtree(empty.best)
    shutil.rmtree(empty.checkpoints)
    empty.metrics_file.unlink()
    empty.write(record.model_copy(update={"config": TrainConfig.of(model="plain20", lr=0.5), "best": None}))
    return folder


@pytest.fixture(scope="module")
def report(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("report") / "report.html"
    notes: list[str] = []
    write([Run(runs / name) for name in ("good", "lost", "empty")], file, notes.append)
    assert len(notes) == 2
    assert "lost" in notes[0]
    return file


@pytest.fixture(scope="module")
def page(report: Path) -> Page:
    return Page(report.read_text())


@pytest.fixture(scope="module")
def predictions(trained: job.TrainResult) -> Predictions:
    return predict(trained.run)


def test_the_numbers_are_those_of_the_files(page: Page, trained: job.TrainResult) -> None:
    epochs = trained.run.epochs()
    best = max(epochs, key=lambda epoch: (epoch.val_accuracy, -epoch.val_loss))
    first = next(n for n, row in enumerate(page.rows) if row[:1] == ["run"])
    rows = [row for row in page.rows[first:] if len(row) == 4][:16]
    assert rows[-1] == ["device", *["1 x cpu"] * 3]
    good, lost, empty = ({row[0]: row[n] for row in rows} for n in (1, 2, 3))
    assert good["epochs"] == f"{len(epochs)} of {len(epochs)}"
    assert good["val. accuracy, chosen"].startswith(f"{best.val_accuracy:.2%} (")
    assert good["best epoch"] == str(best.epoch)
    assert (good["macro recall"], good["macro F1"]) == (f"{best.val_macro_recall:.2%}", f"{best.val_macro_f1:.2%}")
    assert (good["top-5"], good["val. accuracy, last epoch"]) == (
        f"{1 - best.val_top5_error:.2%}",
        f"{epochs[-1].val_accuracy:.2%}",
    )
    assert [lost[name] for name in ("macro recall", "macro F1", "top-5")] == [""] * 3  # as an earlier version wrote it
    assert good["parameters"] == f"{trained.record.parameters:,}"
    assert (lost["status"], lost["epochs"]) == ("failed", f"2 of {len(epochs)}")
    assert (lost["val. accuracy, chosen"], lost["best epoch"]) == ("75.00% (70.27% to 79.20%)", "2")
    assert empty["val. accuracy, chosen"] == ""
    assert "test accuracy" not in good  # that none of them has
    assert "No predictions: Run lost has no intact checkpoint" in page.text


def test_metrics_per_class_and_exports_are_on_the_page(page: Page, predictions: Predictions) -> None:
    counts = predictions.confusion_matrix()
    rows = {row[0]: row for row in page.rows if len(row) == 5 and row[0].isdigit()}
    assert len(rows) == 10
    for label in range(10):
        recall = counts[label, label] / counts[label].sum()
        assert rows[str(label)][1:3] == [str(counts[label].sum()), f"{100 * recall:.2f}%"]
    assert ["real images", HOSTILE, "1e-05", "PASS"] in page.rows
    assert ["top-1 agreement", "99.00%", "", "FAIL"] in page.rows
    assert "Lost worker 1." in page.text
    assert "resnet-ops export good --onnx" in page.text


def test_an_export_is_spoken_of_as_it_is_now(runs: Path, tmp_path: Path) -> None:
    """A record vouches for the file that was verified, not for what is there by its name."""
    run = Run(tmp_path / "a run")
    shutil.copytree(runs / "lost", run.path)
    file = run.export / "model.onnx"

    def exports() -> str:
        write([run], tmp_path / "report.html")
        text = html.unescape((tmp_path / "report.html").read_text())
        return text.partition("<h3>Export</h3>")[2].partition("<h3>Events</h3>")[0]

    verified = exports()
    assert "model.onnx passed verification" in verified
    assert "Accuracy: torch 90.00%, ONNX 90.00% on 359 images." in verified
    file.write_bytes(EXPORTED + b"!")
    (run.export / "t.onnx").write_bytes(b"copied")
    other = exports()
    assert "model.onnx is another file than the one whose verification is recorded" in other
    assert f"resnet-ops validate '{file}'" in other
    assert "t.onnx has no record of a verification beside it" in other
    file.unlink()
    gone = exports()
    assert "model.onnx is gone: only the record of its verification is left." in gone
    for text in (other, gone):
        assert not any(claim in text for claim in ("passed verification", "90.00%", "top-1 agreement", "SHA-256"))


def test_an_export_of_other_weights_than_the_best_is_told_without_images(runs: Path, tmp_path: Path) -> None:
    run = Run(shutil.copytree(runs / "lost", tmp_path / "moved"))
    shutil.copytree(runs / "good" / "best", run.best)
    record = run.read()
    run.write(record.model_copy(update={"config": record.config.model_copy(update={"data": "gone"})}))
    (run.export / "current.onnx").write_bytes(EXPORTED)
    current = PROOF | {"checkpoint_sha256": read(best_file(run)).sha256}
    (run.export / "current.onnx.json").write_text(json.dumps(current))
    write([run], tmp_path / "report.html", lambda note: None)
    text = (tmp_path / "report.html").read_text()
    assert "No predictions: " in text
    other = "; it was exported from weights other than the best ones now"
    assert f"model.onnx passed verification with ONNX Runtime on CPU, opset 18{other}." in text
    assert "current.onnx passed verification with ONNX Runtime on CPU, opset 18." in text


def test_no_accuracy_is_said_to_be_nan(runs: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "blind")
    shutil.copytree(runs / "lost", run.path)
    numbers = {"images": 0, "images_total": 0, "val_accuracy_torch": math.nan, "val_accuracy_onnx": math.nan}
    (run.export / "model.onnx.json").write_text(json.dumps(PROOF | numbers))
    write([run], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "No accuracy was measured, as no images were at hand" in text
    assert "nan%" not in text
    assert "on 0 images" not in text


def test_the_page_loads_nothing_and_names_are_escaped(page: Page) -> None:
    assert page.loads() == []
    assert page.repeated_ids() == set()
    assert [tag for tag, _ in page.elements].count("script") == 1
    script = page.text.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page.text  # no other one runs
    assert page.text.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 2


def test_thumbnails_are_the_worst_mistakes_and_the_images_themselves(predictions: Predictions) -> None:
    errors, correct = thumbnails(predictions)
    wrong = np.flatnonzero(predictions.predicted != predictions.labels)
    first = max(wrong, key=lambda n: predictions.confidence[n])
    assert len(errors) == min(len(wrong), 200)
    assert (errors[0].true, errors[0].predicted) == (str(predictions.labels[first]), str(predictions.predicted[first]))
    assert [image.confidence for image in errors] == sorted((image.confidence for image in errors), reverse=True)
    content = base64.b64decode(errors[0].source.removeprefix("data:image/png;base64,"))
    assert (np.asarray(Image.open(io.BytesIO(content))) == predictions.pixels(int(first))[..., 0]).all()
    assert all(image.true == image.predicted for image in correct)
    assert {image.true for image in correct} == set("0123456789")
    assert errors[0].name == f"image {number_of(predictions, int(first))} of {DIGITS}"
    size = len(errors[0].source)
    few, _ = thumbnails(predictions, 2 * size)
    assert 1 < len(few) < len(errors)
    assert [image.source for image in few] == [image.source for image in errors[: len(few)]]


def number_of(predictions: Predictions, n: int) -> int:
    """The row of the Parquet file that has the same bytes as a validation image: found without splits or names."""
    rows = pq.read_table(DIGITS).column("image").to_pylist()
    pixels = predictions.pixels(n)[..., 0]
    (row,) = [
        number
        for number, row in enumerate(rows)
        if np.array_equal(np.asarray(Image.open(io.BytesIO(row["bytes"]))), pixels)
    ]
    return row


def test_files_are_linked_and_rows_of_parquet_named(predictions: Predictions, tmp_path: Path) -> None:
    file = tmp_path / "a folder" / "an image #1.png"
    file.parent.mkdir()
    file.touch()
    linked = thumbnail(predictions.pixels(0), "cat", "dog", 0.5, str(file))
    assert linked.link == f"{tmp_path.as_uri()}/a%20folder/an%20image%20%231.png"
    assert linked.short_name == "an image #1.png"
    missing = thumbnail(predictions.pixels(0), "cat", "dog", 0.5, "image 3 of /data/train.parquet")
    assert (missing.link, missing.short_name) == ("", "image 3 of train.parquet")


def test_large_images_become_small_ones(predictions: Predictions) -> None:
    large = np.full((300, 200, 3), 200, np.uint8)
    errors, _ = thumbnails(Predictions(**{**vars(predictions), "pixels": lambda _: large}))
    content = base64.b64decode(errors[0].source.removeprefix("data:image/jpeg;base64,"))
    assert Image.open(io.BytesIO(content)).size == (85, 128)


def test_classes_come_worst_first_and_empty_ones_last() -> None:
    rows = per_class(np.array([[9, 1, 0], [4, 6, 0], [0, 0, 0]]), ["cat", "dog", "fox"])
    assert [(row.name, row.images, row.recall, row.precision, row.confused_with) for row in rows] == [
        ("dog", 10, 0.6, 6 / 7, "cat (4)"),
        ("cat", 10, 0.9, 9 / 13, "dog (1)"),
        ("fox", 0, None, None, ""),
    ]


def test_the_verdict_weighs_the_difference(runs: Path, tmp_path: Path) -> None:
    lost, empty = (RunData.read(Run(runs / name)) for name in ("lost", "empty"))
    assert verdict([empty]) == "No epoch has finished yet."
    assert (
        verdict([lost, empty]) == "lost (resnet8) has a validation accuracy of 75.00% (70.27% to 79.20%), 95% "
        "confidence interval, on 359 validation images, which its best epoch was chosen on; its last epoch has 75.00%."
    )
    differences = configuration_differences([lost.record.config, empty.record.config], ())
    assert (differences["model"], differences["lr"]) == (["resnet8", "plain20"], [0.1, 0.5])
    assert "momentum" not in differences
    copies = []
    for name, error in (("close", 0.26), ("far", 0.6)):
        shutil.copytree(runs / "lost", tmp_path / name)
        Run(tmp_path / name).write_epochs(samples.epochs([error]))
        copies.append(RunData.read(Run(tmp_path / name)))
    close, far = copies
    assert "close (resnet8) is 1.00 percentage points lower, no more than chance explains (p = 0.8" in verdict(
        [close, lost]
    )
    assert "far (resnet8) is 35.00 percentage points lower, more than chance explains" in verdict([far, lost])
    far.record.data = far.record.data.model_copy(update={"fingerprint": "1"})
    assert verdict([far, lost]).endswith("trained on different images, so their accuracies are not comparable.")


def test_runs_are_compared_image_by_image(runs: Path, predictions: Predictions) -> None:
    good = RunData.read(Run(runs / "good"))
    bits = good.run.val_correct()
    assert bits is not None
    assert [bool(bits >> n & 1) for n in range(len(predictions.correct))] == predictions.correct.tolist()
    assert "no more than chance explains (p = 1, exact McNemar test)" in verdict([good, good_copy(runs)])


def good_copy(runs: Path) -> RunData:
    if not (runs / "twin").exists():
        shutil.copytree(runs / "good", runs / "twin")
    return RunData.read(Run(runs / "twin"))


def test_calibration_is_that_of_an_evaluation(
    page: Page, runs: Path, trained: job.TrainResult, cli: Callable[..., Ended], tmp_path: Path
) -> None:
    ended = cli("evaluate", trained.run.path, "--split", "val", "--output", tmp_path / "evaluation", "--json")
    assert ended.code == 0, ended.err
    summary = RunData.read(Run(runs / "good")).summary()
    assert summary.expected_calibration_error == pytest.approx(ended.json["expected_calibration_error"], abs=1e-6)
    assert f"{summary.expected_calibration_error:.2%}" in page.text
    assert {"reliability1", "learning", "learning-time"} <= {attributes.get("id") for _, attributes in page.elements}


def test_a_page_of_many_classes_and_images_is_small(predictions: Predictions, runs: Path) -> None:
    """1,000 classes and 50,000 images of 224 pixels, all noise: a third of them mistaken."""
    random, names = np.random.default_rng(0), tuple(f"class {n:04}" for n in range(1000))
    labels = random.integers(0, 1000, 50_000)
    predicted = np.where(random.random(50_000) < 0.35, random.integers(0, 1000, 50_000), labels)
    confidence = random.random(50_000)
    checkpoint = replace(
        predictions.checkpoint, info=predictions.checkpoint.info.model_copy(update={"class_names": names})
    )
    noise = random.integers(0, 256, (224, 224, 3), np.uint8)
    many = Predictions(
        checkpoint, "val", labels, predicted, confidence, confidence, lambda _: noise, lambda n: f"/images/{n}.jpeg"
    )
    data = [replace(RunData.read(Run(runs / name)), predictions=many) for name in ("lost", "empty")]
    content = render_report(data)
    assert len(content) < 5_000_000
    assert content.count(b"<tr><td>class 0") == 2000


def test_the_command_reports(cli: Callable[..., Ended], runs: Path, tmp_path: Path) -> None:
    file = tmp_path / "r.html"
    ended = cli("report", "good", runs / "good", "--runs-dir", runs, "-o", file, "--json")
    assert ended.code == 0, ended.err
    (row,) = ended.json["runs"]  # named twice, reported once
    assert row["val_accuracy"] == pytest.approx(row["val_accuracy_again"])
    assert ended.json["size_bytes"] == file.stat().st_size
    assert "<svg" in file.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("goot",), "Did you mean good?"), (("good", "-o", "nowhere/r.html"), "nowhere"), ((), "RUN")],
)
def test_bad_requests_are_refused(
    cli: Callable[..., Ended], runs: Path, arguments: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs)
    ended = cli("report", *arguments, "--runs-dir", runs)
    assert ended.code == 2
    assert message in ended.err
    assert not list(runs.glob("*.html"))


@needs_browser
def test_a_browser_shows_it(report: Path) -> None:
    screenshot = show(report, height=4000)
    assert screenshot.console == []
    assert (np.abs(screenshot.pixels.astype(int) - (0, 114, 178)).max(axis=2) < 12).sum() > 5000  # the diagonal
    assert show(report, "dark", height=4000).pixels.mean() < 80
