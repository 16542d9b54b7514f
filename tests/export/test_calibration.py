"""Temperature scaling: the fit against scipy's, a file whose temperature is proven, and forgeries of it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from scipy.optimize import minimize_scalar
from sklearn.metrics import log_loss

from resnet_ops.data.sources import open_source
from resnet_ops.errors import UserError
from resnet_ops.export import graph
from resnet_ops.export.calibration import calibrate, check_calibration, fit_temperature, scale_head
from resnet_ops.export.classifier import softmax
from resnet_ops.export.config import ExportConfig, ValidateConfig
from resnet_ops.export.inputs import ValidationImages, select_images
from resnet_ops.export.job import export_onnx
from resnet_ops.export.metadata import Calibration, ModelMetadata, Preprocessing
from resnet_ops.export.reference import Reference
from resnet_ops.export.tolerances import Comparison, compare_recalls, output_calibration_error, top1_accuracy
from resnet_ops.export.validate import validate_onnx
from resnet_ops.training import checkpoint as checkpoints
from resnet_ops.training.job import TrainResult
from tests.export.samples import properties_of, verify_model


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


def test_a_temperature_fitted_on_other_images_is_held_to_chance() -> None:
    """Of far too sharp ones too, whose own fit says little."""
    logits, labels = noisy(0, 8000)
    best = fit_temperature(logits, labels)
    some = slice(400)

    def passes(temperature: float) -> bool:
        recorded = Calibration(temperature=temperature, images=len(labels))
        return check_calibration(logits[some] / temperature, labels[some], recorded)[1]

    assert passes(best)
    assert not any(passes(best * factor) for factor in (0.005, 0.02, 0.1, 0.5, 2, 5))
    right = logits.argmax(1) == labels
    text, passed = check_calibration(logits[right], labels[right], Calibration(temperature=1, images=len(labels)))
    assert passed
    assert "not compared" in text


def test_an_export_is_calibrated_and_its_temperature_proven(
    trained: TrainResult, digits: ValidationImages, tmp_path: Path
) -> None:
    result = export_onnx(ExportConfig(run=str(trained.run.path), calibrate=True, out=tmp_path / "m.onnx"))
    assert result.validated
    calibration = result.metadata.calibration
    assert calibration is not None
    assert calibration.images == len(digits)
    assert calibration.temperature != pytest.approx(1, abs=0.01)
    read, checkpoint = checkpoints.read(result.checkpoint), str(trained.run.path)
    ((pixels, labels),) = digits.batches(result.metadata.preprocessing.crop)
    before = Reference(read).logits(pixels)
    assert result.calibration_error_onnx < output_calibration_error(softmax(before), labels)
    assert result.val_accuracy_onnx == top1_accuracy(before, labels)
    sample = validate_onnx(ValidateConfig(file=result.onnx, checkpoint=checkpoint, images=120))
    assert sample.validated, sample.failed_checks

    few = export_onnx(ExportConfig(run=checkpoint, calibrate=True, images=60, out=tmp_path / "few.onnx"))
    again = validate_onnx(ValidateConfig(file=few.onnx, checkpoint=checkpoint))
    assert again.validated, again.failed_checks

    # The weights divided by another temperature than the best, and the file saying so.
    best, images = calibration.temperature, calibration.images
    for temperature, of in ((best * 1.05, images), (5.0, 1), (best, 10**9)):
        wrong = Calibration(temperature=temperature, images=of)
        scaled = scale_head(read, wrong)
        model = graph.to_onnx(read.info, scaled.model, 18)
        metadata = ModelMetadata.of(
            read.info, read.sha256, result.metadata.run, made_by=result.metadata.made_by, calibration=wrong
        )
        graph.set_metadata(model, metadata)
        failed = [check.name for check in verify_model(model, Reference(scaled), digits, tmp_path).failed_checks]
        assert failed == ["temperature"]
    assert "calibration" in properties_of(onnx.load(result.onnx))


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
