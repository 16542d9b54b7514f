"""What is said of accuracy: selected on which images, measured on which, and nothing where all images were fitted."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from resnet_ops.errors import UserError
from resnet_ops.evaluation.job import evaluate
from resnet_ops.runs import Run
from resnet_ops.serving.app import ModelInfo
from resnet_ops.training import checkpoint as checkpoints
from resnet_ops.tuning import job as tuning
from resnet_ops.tuning.config import TuneConfig
from tests.conftest import Ended
from tests.data.samples import shades, write_class_folders
from tests.tracking.test_tensorboard import read_curves

SMALL = ("--model", "resnet8", "--image-size", 12, "--cpus-per-worker", 1)
CLAIM = re.compile(r"\d%? validation accuracy|validation accuracy of \d|\d(\.\d+)?% (±|\+-)")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of several sizes, of two classes that are hard to tell apart, in train/ and test/."""
    root = tmp_path_factory.mktemp("photos")
    for seed, (part, size, count) in enumerate([("train", (30, 20), 40), ("test", (24, 26), 20)]):
        classes = shades({"bright": 131, "dark": 128}, count, size, seed)
        write_class_folders(root / part, classes)
    return root


@pytest.fixture
def done(cli: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """Run a command to its end, in a runs folder of its own."""
    monkeypatch.setenv("RESNET_OPS_RUNS_DIR", str(tmp_path))

    def run(*arguments: object) -> Ended:
        ended = cli(*arguments, "--json")
        assert ended.code == 0, ended.err
        return ended

    return run


def test_the_test_split_is_left_alone_until_it_is_measured_on_the_selected_weights(
    photos: Path, done: Callable[..., Ended], tmp_path: Path
) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    for file in (tmp_path / "photos/test").rglob("*.png"):  # of which training has the names and numbers alone
        file.write_bytes(b"no image")
    ended = done("train", "--data", tmp_path / "photos", *SMALL, "--epochs", 4, "--lr", 0.02, "--name", "a")
    shutil.copytree(photos, tmp_path / "photos", dirs_exist_ok=True)
    best, run = ended.json["best"], Run(tmp_path / "a")
    epochs = run.epochs()
    accuracies = [epoch.val_accuracy or 0 for epoch in epochs]
    assert best["val_accuracy"] == max(accuracies)
    assert best["last_val_accuracy"] == accuracies[-1]
    assert (best["selected_on"], best["selected_by"]) == ("validation images", "top1")
    assert "chosen on these 8 images (last epoch " in ended.err
    assert (best["test_accuracy"], ended.json["test_images"]) == (None, 40)
    assert "40 images, untouched so far: resnet-ops evaluate a" in ended.err
    assert "test accuracy" not in ended.err
    evaluate(run.path)
    measured = run.read().best
    assert measured is not None
    # The same weights on the same images, by the exported file and ONNX Runtime.
    exported = done("export", "a", "--onnx").json
    assert exported["images"] == 8
    predictions = done("predict", exported["onnx"], photos / "test").json["predictions"]
    right = [Path(each["path"]).parent.name == each["top"][0]["class"] for each in predictions]
    assert len(right) == 40
    assert measured.test_accuracy == pytest.approx(sum(right) / 40)
    (listed,) = done("runs").json["runs"]
    assert (listed["test_accuracy"], listed["last_val_accuracy"]) == (measured.test_accuracy, accuracies[-1])
    page = tmp_path / "report.html"
    (reported,) = done("report", "a", "-o", page).json["runs"]
    assert reported["test_accuracy"] == measured.test_accuracy
    assert "which its best epoch was chosen on" in page.read_text()
    resumed = done("train", "--resume", "a")
    assert resumed.json["best"] == best | {"test_accuracy": measured.test_accuracy, "test_images": 40}
    assert f"{100 * measured.test_accuracy:.2f}% test accuracy: on 40 images" in resumed.err


def test_what_the_best_epoch_was_chosen_by_is_said_wherever_its_accuracy_stands(
    done: Callable[..., Ended], tmp_path: Path
) -> None:
    ended = done("train", "--model", "resnet8", "--epochs", 3, "--select", "macro-f1", "--cpus-per-worker", 1,
                 "--name", "f1")  # fmt: skip
    best, run = ended.json["best"], Run(tmp_path / "f1")
    chosen = max(run.epochs(), key=lambda epoch: (epoch.val_macro_f1 or 0, -(epoch.val_loss or 0)))
    assert (best["epoch"], best["val_macro_f1"], best["selected_by"]) == (chosen.epoch, chosen.val_macro_f1, "macro-f1")
    said = f"macro F1 {100 * best['val_macro_f1']:.2f}%"
    assert f"chosen by {said} on these 359 images" in ended.err
    assert (
        f"top-5 {100 * best['val_top5_accuracy']:.2f}%, macro recall {100 * best['val_macro_recall']:.2f}%" in ended.err
    )
    header, *rows = re.findall(r"^ *(?:epoch|\d/3)  .*$", ended.err, re.MULTILINE)
    assert "macro F1" in header
    assert [row.split("%")[2].strip() for row in rows] == [f"{100 * (e.val_macro_f1 or 0):.2f}" for e in run.epochs()]
    for row in ended.json["worst_classes"]:
        assert f"{row['name']}: recall {100 * row['recall']:.2f}% of {row['support']} (" in ended.err
    assert checkpoints.read_best(run)[0].info.epoch == best["epoch"]
    listed = done("runs")
    (row,) = listed.json["runs"]
    assert (row["selected_by"], row["best_metric"]) == ("macro-f1", best["val_macro_f1"])
    assert "(macro" in listed.err  # and F1, where the terminal is wide enough
    page = tmp_path / "report.html"
    (reported,) = done("report", "f1", "-o", page).json["runs"]
    assert (reported["selected_by"], reported["metric"]) == ("macro-f1", best["val_macro_f1"])
    assert f"which its best epoch was chosen on by its {said}" in page.read_text()
    drawn = read_curves(run.path / "tensorboard")
    assert {"top5_error/val", "macro_recall/val", "macro_f1/val"} < set(drawn)


def test_of_a_network_that_is_fitted_on_all_images_nothing_is_claimed(
    photos: Path, done: Callable[..., Ended], tmp_path: Path
) -> None:
    data = photos / "train"
    ended = done("train", "--data", data, *SMALL, "--epochs", 3, "--fit-all", "--name", "all")
    run = Run(tmp_path / "all")
    result = ended.json
    assert result["fit_all"] is True
    assert "train: 80 training images" in ended.err
    assert "Fitted on all images" in ended.err
    best = result["best"]
    nothing = {"val_accuracy": None, "last_val_accuracy": None, "selected_on": None, "test_accuracy": None}
    assert {field: best[field] for field in nothing} == nothing
    assert best["epoch"] == 3

    def last_weights_are_taken() -> None:
        selected, _ = checkpoints.read_best(run)
        last = checkpoints.read(checkpoints.saved_checkpoints(run)[0])
        assert selected.info.fitted_on_all
        assert (selected.info.epoch, last.info.epoch) == (3, 3)
        assert all(value.equal(last.model[name]) for name, value in selected.model.items())

    last_weights_are_taken()
    finished = checkpoints.best_file(run).read_bytes()
    checkpoints.saved_checkpoints(run)[0].unlink()  # killed during the last epoch
    run.write(run.read().model_copy(update={"status": "interrupted", "best": None}))
    ended = done("train", "--resume", "all")
    last_weights_are_taken()
    assert checkpoints.best_file(run).read_bytes() == finished

    lines = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    assert [(line["epoch"], line["val_error"], line["val_loss"]) for line in lines] == [
        (n, None, None) for n in (1, 2, 3)
    ]
    assert not {name for name in read_curves(run.path / "tensorboard") if "val" in name}
    (listed,) = done("runs").json["runs"]
    assert (listed["fit_all"], listed["best_val_accuracy"], listed["best_epoch"]) == (True, None, 3)
    page = tmp_path / "report.html"
    reported = done("report", "all", "-o", page)
    assert reported.json["runs"][0]["val_accuracy"] is None
    exported = done("export", "all", "--onnx")
    validated = done("validate", exported.json["onnx"])
    for proof in (exported, validated):
        assert (proof.json["val_accuracy_torch"], proof.json["val_accuracy_onnx"]) == (None, None)
        assert proof.json["seen_accuracy_onnx"] is not None
        assert proof.json["calibration_error_onnx"] is None
        assert "on images seen in training, to compare the two only" in proof.err
    properties = {entry.key: entry.value for entry in onnx.load(exported.json["onnx"]).metadata_props}
    assert properties["fitted_on_all"] == "true"
    assert "val_accuracy" not in properties
    assert "val_accuracy_onnx" not in json.loads(properties["validation"])
    assert "fitted_on_all" in ModelInfo.model_fields  # what GET / of a service answers
    for said in (ended.err, reported.err, page.read_text(), exported.err, validated.err):
        assert not CLAIM.search(said), CLAIM.search(said)
    assert "fitted on all images" in page.read_text()

    # As earlier versions wrote it: measured on images that were trained on, without saying so.
    selected, _ = checkpoints.read_best(run)
    metrics = selected.info.validated.model_copy(update={"val_loss": 0.1, "val_error": 0.0})
    info = selected.info.model_copy(update={"fitted_on_all": False, "metrics": metrics})
    tensors = {f"{checkpoints.MODEL}{name}": value for name, value in selected.model.items()}
    checkpoints.save(checkpoints.best_file(run), info, tensors)
    again = done("export", "all", "--onnx", "--out", tmp_path / "again.onnx")
    properties = {entry.key: entry.value for entry in onnx.load(again.json["onnx"]).metadata_props}
    assert (properties["fitted_on_all"], "val_accuracy" in properties) == ("true", False)
    assert again.json["val_accuracy_torch"] is None


def test_with_fit_all_a_test_split_is_measured_as_in_the_paper(
    photos: Path, done: Callable[..., Ended], tmp_path: Path
) -> None:
    ended = done("train", "--data", photos, *SMALL, "--epochs", 1, "--fit-all", "--stream", "on", "--name", "paper")
    assert "80 training, 40 test images" in ended.err
    best = ended.json["best"]
    assert {name for name, value in best.items() if value is not None} == {"epoch", "checkpoint"}
    reported = done("report", "paper", "-o", tmp_path / "report.html").json["runs"][0]
    assert "resnet-ops evaluate paper" in reported["missing"]
    result = evaluate(tmp_path / "paper")
    measured = Run(tmp_path / "paper").read().best
    assert measured is not None
    assert (measured.test_accuracy, result.recorded, result.images) == (result.top1, True, 40)


def test_a_search_leaves_test_images_alone_and_refits_on_photos(
    ray_session: None, photos: Path, tmp_path: Path
) -> None:
    given = {"data": str(photos), "image_size": 12, "runs_dir": tmp_path, "epochs": 1, "cpus_per_worker": 1}
    given |= {"select": "loss"}
    config = TuneConfig.of(depths="8", lr="0.01,0.1", search="grid", refit=True, given=given | {"name": "s"})
    result = tuning.tune(config)
    for trial in result.trials:
        assert trial.val_accuracy == trial.last_val_accuracy  # of one epoch
    best = result.search.run.read().best
    assert best is not None
    losses = [result.search.trial_run(trial).epochs()[-1].val_loss or 9 for trial in result.trials]
    assert [trial.metric for trial in result.trials] == losses
    assert (best.selected_by, best.val_loss, result.best.metric) == ("loss", min(losses), min(losses))
    assert result.best.why == f"the lowest validation loss {min(losses):.4f}, of 2 trials"
    assert (best.test_accuracy, result.best.test_accuracy) == (None, None)
    measured = evaluate(result.search.run.path)
    assert measured.recorded
    assert all(result.search.trial_run(t).read().best.test_accuracy is None for t in result.trials)  # type: ignore[union-attr]
    refit = Run(tmp_path / "s-refit").read()
    assert (refit.config.fit_all, refit.data.train_images, refit.data.val_images) == (True, 80, 0)
    assert refit.best is not None
    assert (refit.best.val_accuracy, refit.best.test_accuracy) == (None, None)
    again = tuning.resume(tmp_path, "s")
    assert again.best.test_accuracy == measured.top1
    with pytest.raises(UserError, match=r"compares networks on validation images.*--refit"):
        tuning.tune(TuneConfig.of(depths="8", given=given | {"fit_all": True, "name": "none"}))
    assert not (tmp_path / "none").exists()
