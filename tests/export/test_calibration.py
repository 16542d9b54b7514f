"""Temperature scaling: the fit against scipy's, a file whose temperature is proven, and forgeries of it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from scipy.optimize import minimize_scalar
from sklearn.metrics import log_loss

from resnet_ops.data.opening import open_source
from resnet_ops.errors import UserError
from resnet_ops.evaluation.config import EvaluateConfig
from resnet_ops.evaluation.job import evaluate
from resnet_ops.export import checks, graph, runtime
from resnet_ops.export.calibration import (
    ERRORS,
    calibrate,
    check_calibration,
    fit_temperature,
    fit_variance,
    images_to_fit,
    scale_head,
)
from resnet_ops.export.classifier import softmax
from resnet_ops.export.config import ExportConfig, ValidateConfig
from resnet_ops.export.inputs import ValidationImages, select_images
from resnet_ops.export.job import export_onnx
from resnet_ops.export.metadata import Calibration, ModelMetadata, Preprocessing
from resnet_ops.export.proof import ProofThresholds, verify_file
from resnet_ops.export.reference import Reference
from resnet_ops.export.tolerances import Comparison, compare_recalls, output_calibration_error, top1_accuracy
from resnet_ops.export.validate import validate_onnx
from resnet_ops.training import checkpoint as checkpoints
from resnet_ops.training.checkpoint import Checkpoint
from resnet_ops.training.job import TrainResult
from tests.conftest import DigitFiles
from tests.export.samples import InMemoryImages, make_images, properties_of, verify_model


@pytest.fixture(scope="module")
def digits() -> ValidationImages:
    source = open_source("digits")
    return select_images(source, "val", source.record.class_names)


def noisy(seed: int, images: int = 800) -> tuple[np.ndarray, np.ndarray]:
    draws = np.random.default_rng(seed)
    labels = draws.integers(0, 7, images)
    return 4 * draws.normal(size=(images, 7)) + 5 * np.eye(7)[labels], labels


@pytest.mark.parametrize("seed", range(4))
def test_the_temperature_is_that_of_the_smallest_cross_entropy(seed: int) -> None:
    logits, labels = noisy(seed)
    best = minimize_scalar(lambda t: log_loss(labels, softmax(logits / np.exp(t))), bounds=(-3, 3), method="bounded")
    assert fit_temperature(logits, labels) == pytest.approx(np.exp(best.x), rel=1e-4)
    assert fit_temperature(7 * logits, labels) == pytest.approx(7 * fit_temperature(logits, labels), rel=1e-9)


def test_a_fit_to_a_sample_is_off_by_as_much_as_is_said() -> None:
    """Of 50 disjoint samples of a population."""
    logits, labels = noisy(0, 20_000)
    best, sample = fit_temperature(logits, labels), 400
    error = np.sqrt(fit_variance(logits, labels, best) / sample)
    rows = np.random.default_rng(1).permutation(20_000)[: 50 * sample].reshape(50, sample)
    off = np.array([np.log(fit_temperature(logits[row], labels[row]) / best) for row in rows]) / error
    assert off.std() == pytest.approx(1, abs=0.25)
    assert np.abs(off).max() < ERRORS


def test_images_to_fit_are_those_that_fit_into_memory_and_time(
    model: onnx.ModelProto, images: ValidationImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    def count(asked: int | None = None) -> int:
        return images_to_fit(model, images, runtime.CPU, None, asked)

    assert (count(), count(30), count(10**9)) == (100, 30, 100)
    monkeypatch.setattr(checks, "free_bytes", lambda _: 4 * 50 * 32 * 10)  # a quarter is used: 32 bytes a number
    assert (count(), count(30), count(10**9)) == (50, 30, 50)


def test_a_temperature_is_fitted_again_on_the_images_that_a_file_names(checkpoint: Checkpoint) -> None:
    """Also where some cannot be decoded: on the same ones, so that no other temperature passes."""
    images = make_images()
    ((pixels, _),) = images.batches(Preprocessing.of(checkpoint.info, "normalized").crop)
    labels = Reference(checkpoint).logits(pixels).argmax(1)
    labels[::7] = (labels[::7] + 1) % 10
    images = replace(images, labels=labels)
    assert isinstance(images.encoded, InMemoryImages)
    for row in images.stratified(60).rows[5:8]:
        images.encoded.stored[row] = b"damaged"
    best = calibrate(checkpoint, images.stratified(60))
    assert best.images == 60

    def check(
        temperature: float, fitted_on: int, where: ValidationImages = images, most: int = 100
    ) -> tuple[str, bool]:
        recorded = Calibration(temperature=temperature, images=fitted_on)
        return check_calibration(Reference(scale_head(checkpoint, recorded)), where, recorded, most)

    assert check(best.temperature, 60) == (
        f"temperature {best.temperature:.4g}, fitted here {best.temperature:.4g}",
        True,
    )
    for temperature in (0.0101, 0.99 * best.temperature, 1.01 * best.temperature, 99.0):
        assert not check(temperature, 60)[1]
    assert not check(best.temperature, 59)[1]
    assert check(best.temperature, 101) == ("fitted on 101 images, there are 100", False)
    found, passed = check(best.temperature, 60, most=40)
    assert found.startswith(f"temperature {best.temperature:.4g} on 60 images, fitted here ")
    assert (found.endswith(" on 40"), passed) == (True, True)
    assert not check(3 * best.temperature, 60, most=40)[1]
    right = np.flatnonzero(np.arange(100) % 7)
    no_errors = replace(images, rows=images.rows[right], labels=labels[right])
    assert not check(1.0, len(right), no_errors)[1]


def test_an_export_is_calibrated_and_its_temperature_proven(
    trained: TrainResult, digits: ValidationImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "MAX_BATCH", 4)
    result = export_onnx(ExportConfig(run=str(trained.run.path), calibrate=True, out=tmp_path / "m.onnx"))
    assert result.validated
    calibration = result.metadata.calibration
    assert calibration is not None
    assert calibration.images == len(digits)
    evaluated = evaluate(EvaluateConfig(run=str(result.onnx), output=tmp_path / "evaluated"))
    assert evaluated.seen.endswith("these images chose the epoch; its temperature was fitted on these images")
    assert (result.fitted_temperature, evaluated.fitted_temperature) == (True, True)
    assert calibration.temperature != pytest.approx(1, abs=0.01)
    read, checkpoint = checkpoints.read(result.checkpoint), str(trained.run.path)
    ((pixels, labels),) = digits.batches(result.metadata.preprocessing.crop)
    before = Reference(read).logits(pixels)
    assert result.calibration_error_onnx < output_calibration_error(softmax(before), labels)
    assert result.val_accuracy_onnx == top1_accuracy(before, labels)
    sample = validate_onnx(ValidateConfig(file=result.onnx, checkpoint=checkpoint, images=120))
    assert sample.validated, sample.failed_checks
    assert sample.fitted_temperature

    # What cannot be verified is said.
    reference, elsewhere = Reference(scale_head(read, calibration)), replace(digits, fingerprint="e" * 64)
    on_others, without = "fitted on other images, not verified here", "not verified without its checkpoint"
    for torch, where, note in ((reference, elsewhere, on_others), (None, digits, without)):
        thresholds = ProofThresholds(runtime.CPU, recorded=True, images=20)
        assert f"its temperature is {note}" in verify_file(result.onnx, torch, where, thresholds).unverified

    few = export_onnx(ExportConfig(run=checkpoint, calibrate=True, images=60, out=tmp_path / "few.onnx"))
    again = validate_onnx(ValidateConfig(file=few.onnx, checkpoint=checkpoint))
    assert again.validated, again.failed_checks

    # The weights divided by another temperature than the best, and the file saying so; on few images too.
    best, images = calibration.temperature, calibration.images
    for temperature, of, used in ((best * 1.05, images, 12), (5.0, 1, None), (best, 10**9, None)):
        wrong = Calibration(temperature=temperature, images=of)
        scaled = scale_head(read, wrong)
        model = graph.to_onnx(read.info, scaled.model, 18)
        metadata = ModelMetadata.of(
            read.info, read.sha256, result.metadata.run, made_by=result.metadata.made_by, calibration=wrong
        )
        graph.set_metadata(model, metadata)
        report = verify_model(model, Reference(scaled), digits, tmp_path, sample=used)
        assert [check.name for check in report.failed_checks] == ["temperature"]
    assert "calibration" in properties_of(onnx.load(result.onnx))


@pytest.mark.parametrize("of", ["others", "its own"])
def test_a_network_of_all_images_is_calibrated_on_others(
    of: str, digit_files: DigitFiles, digits: ValidationImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "MAX_BATCH", 4)
    info, metrics = digit_files.checkpoint.info, digit_files.checkpoint.info.metrics
    assert metrics is not None
    fitted = info.model_copy(update={"fitted_on_all": True, "metrics": metrics.without_validation()})
    checkpoint, exported = replace(digit_files.checkpoint, info=fitted), onnx.load(digit_files.normalized)
    images = replace(digits, fingerprint="e" * 64) if of == "others" else digits
    calibration = calibrate(checkpoint, images)
    for tensor in exported.graph.initializer:
        if tensor.name in ("fc.weight", "fc.bias"):
            scaled = onnx.numpy_helper.to_array(tensor) / np.float32(calibration.temperature)
            tensor.CopyFrom(onnx.numpy_helper.from_array(scaled, tensor.name))
    metadata = ModelMetadata.of(fitted, checkpoint.sha256, None, made_by=graph.tool_versions(), calibration=calibration)
    del exported.metadata_props[:]
    model = onnx.ModelProto()
    model.CopyFrom(exported)
    graph.set_metadata(model, metadata)
    graph.write(model, tmp_path / "m.onnx")
    reference = Reference(scale_head(checkpoint, calibration))
    thresholds = ProofThresholds(runtime.CPU, images=20)  # as of an export
    report = verify_file(tmp_path / "m.onnx", reference, images, thresholds, exported)
    failed = {check.name: check.result for check in report.failed_checks}
    on_seen = {"metadata": "a temperature that is fitted on images that it was trained on"}
    assert failed == ({} if of == "others" else on_seen)
    assert "temperature" in [check.name for check in report.checks]


def test_there_must_be_errors_to_calibrate_on(trained: TrainResult, digits: ValidationImages) -> None:
    checkpoint = checkpoints.read_best(trained.run)[0]
    ((pixels, labels),) = digits.batches(Preprocessing.of(checkpoint.info, "normalized").crop)
    right = np.flatnonzero(Reference(checkpoint).logits(pixels).argmax(1) == labels)[:40]
    few = replace(digits, rows=digits.rows[right], labels=digits.labels[right])
    with pytest.raises(UserError, match=r"no temperature fits the 40 validation images, with an accuracy of 100\.00%"):
        calibrate(checkpoint, few)


def outputs_of(labels: np.ndarray, wrong: list[int]) -> np.ndarray:
    return np.eye(3)[np.where(np.isin(np.arange(len(labels)), wrong), (labels + 1) % 3, labels)]


@pytest.mark.parametrize(
    ("lost", "passed"),
    [([], True), (list(range(4)), True), (list(range(12)), False), ([0, 1, 2, 200, 201, 400], True)],
)
def test_no_class_may_lose_recall_beyond_chance(lost: list[int], passed: bool) -> None:
    """12 of 100 images of the first class lost; overall that is 0.6 points of 2,000 images."""
    labels = np.repeat([0, 1, 2], [100, 900, 1000])
    comparison = Comparison(outputs_of(labels, []), outputs_of(labels, lost))
    text, is_fine = compare_recalls(comparison, labels, ("rare", "common", "usual"), 0.005)
    assert is_fine is passed
    assert passed or text == "-12.0 points at most, of 100 images of rare"
