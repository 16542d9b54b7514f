"""What is said of accuracy: selected on which images, measured on which, and nothing where all images were fitted."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from resnet_ops.errors import UserError
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


def test_the_test_split_is_measured_once_on_the_selected_weights(
    photos: Path, done: Callable[..., Ended], tmp_path: Path
) -> None:
    ended = done("train", "--data", photos, *SMALL, "--epochs", 4, "--lr", 0.02, "--name", "a")
    best, run = ended.json["best"], Run(tmp_path / "a")
    epochs = run.epochs()
    accuracies = [epoch.val_accuracy or 0 for epoch in epochs]
    assert best["val_accuracy"] == max(accuracies)
    assert best["last_val_accuracy"] == accuracies[-1]
    assert best["selected_on"] == "validation images"
    assert "chosen on these 8 images (last epoch " in ended.err
    # The same weights on the same images, by the exported file and ONNX Runtime.
    exported = done("export", "a", "--onnx").json
    assert exported["images"] == 8
    predictions = done("predict", exported["onnx"], photos / "test").json["predictions"]
    right = [Path(each["path"]).parent.name == each["top"][0]["class"] for each in predictions]
    assert len(right) == 40
    assert best["test_accuracy"] == pytest.approx(sum(right) / 40)
    assert f"{100 * best['test_accuracy']:.2f}% test accuracy: on 40 images" in ended.err
    (listed,) = done("runs").json["runs"]
    assert (listed["test_accuracy"], listed["last_val_accuracy"]) == (best["test_accuracy"], accuracies[-1])
    page = tmp_path / "report.html"
    (reported,) = done("report", "a", "-o", page).json["runs"]
    assert reported["test_accuracy"] == best["test_accuracy"]
    assert "which its best epoch was chosen on" in page.read_text()
    resumed = done("train", "--resume", "a").json["best"]
    assert resumed == best


def test_of_a_network_that_is_fitted_on_all_images_nothing_is_claimed(
    photos: Path, done: Callable[..., Ended], tmp_path: Path
) -> None:
    data = photos / "train"
    ended = done("train", "--data", data, *SMALL, "--epochs", 3, "--fit-all", "--name", "all")
    run = Run(tmp_path / "all")
    result = ended.json
    assert result["fit_all"] is True
    assert "80 training images of 12x12" in ended.err
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


def test_with_fit_all_a_test_split_is_measured_as_in_the_paper(photos: Path, done: Callable[..., Ended]) -> None:
    ended = done("train", "--data", photos, *SMALL, "--epochs", 1, "--fit-all", "--stream", "on", "--name", "paper")
    assert "80 training and 40 test images" in ended.err
    best = ended.json["best"]
    assert (best["val_accuracy"], best["selected_on"]) == (None, None)
    assert round(40 * best["test_accuracy"], 6) == round(40 * best["test_accuracy"])


def test_a_search_measures_the_selected_trial_and_refits_on_photos(
    ray_session: None, photos: Path, tmp_path: Path
) -> None:
    given = {"data": str(photos), "image_size": 12, "runs_dir": tmp_path, "epochs": 1, "cpus_per_worker": 1}
    config = TuneConfig.of(depths="8", lr="0.01,0.1", search="grid", refit=True, given=given | {"name": "s"})
    result = tuning.tune(config)
    for trial in result.trials:
        assert trial.val_accuracy == trial.last_val_accuracy  # of one epoch
    best = result.search.run.read().best
    assert best is not None
    assert best.test_accuracy == result.best.test_accuracy
    assert result.best.test_accuracy is not None
    assert all(result.search.trial_run(t).read().best.test_accuracy is None for t in result.trials)  # type: ignore[union-attr]
    refit = Run(tmp_path / "s-refit").read()
    assert (refit.config.fit_all, refit.data.train_images, refit.data.val_images) == (True, 80, 0)
    assert refit.best is not None
    assert (refit.best.val_accuracy, refit.best.test_accuracy is None) == (None, False)
    again = tuning.resume(tmp_path, "s")
    assert again.best.test_accuracy == best.test_accuracy
    with pytest.raises(UserError, match=r"compares networks on validation images.*--refit"):
        tuning.tune(TuneConfig.of(depths="8", given=given | {"fit_all": True, "name": "none"}))
    assert not (tmp_path / "none").exists()
