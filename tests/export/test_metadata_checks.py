"""What a file says of itself is compared: a forgery in any field of its metadata, or of its proof, is found."""

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

from resnet_ops.data.sources import open_source
from resnet_ops.export import checks, runtime
from resnet_ops.export.config import ExportConfig
from resnet_ops.export.inputs import ValidationImages, select_images
from resnet_ops.export.job import ExportResult, export_onnx
from resnet_ops.export.metadata import JSON_FIELDS, ModelMetadata
from resnet_ops.export.metadata_checks import Origin
from resnet_ops.export.proof import ProofThresholds, verify_file
from resnet_ops.export.proof_report import ProofReport
from resnet_ops.export.reference import Reference
from resnet_ops.training import checkpoint as checkpoints
from resnet_ops.training.checkpoint import Checkpoint
from resnet_ops.training.job import TrainResult
from tests.export.samples import copy, properties_of, verify_model

IMAGES = 359
# Of each field of the metadata a forgery, and the check that finds it.
FORGERIES: dict[str, tuple[Any, str]] = {
    "class_names": (["0", "1", "2", "3", "4", "5", "6", "7", "9", "8"], "metadata"),
    "preprocessing": ({"mean": [0.5]}, "metadata"),
    "input": ("raw", "file"),
    "output": ("probabilities", "file"),
    "precision": ("fp16", "file"),
    "model": ("resnet110", "metadata"),
    "shortcut": ("B", "metadata"),
    "data": ("imagenet", "metadata"),
    "data_fingerprint": ("0" * 64, "metadata"),
    "run": ("prize-winner", "metadata"),
    "epoch": (7777, "metadata"),
    "val_accuracy": (0.9999, "metadata"),
    "fitted_on_all": (True, "metadata"),
    "checkpoint_sha256": ("0" * 64, "metadata"),
    "made_by": ("hand", "metadata"),
    "precision_choice": ("all nodes", "metadata"),
    "quantization_error": ({"mean": 1.0, "largest": 9.0, "agreement": 0.5, "images": 9}, "metadata"),
    "validation": ({"images": 50_000, "images_total": 50_000}, "recorded proof"),
}
# Of each number of the proof that a file records.
FORGED_NUMBERS: dict[str, dict[str, Any]] = {
    "provider": {"provider": "QuantumExecutionProvider"},
    "tolerance": {"tolerance": 1e-12},
    "nodes_by_provider": {"nodes_by_provider": {runtime.CUDA: 100_000}},
    "images": {"images": 358},
    "images_total": {"images_total": 10_000, "sample": "it would take long", "accuracy_margin": 0.0159},
    "sample": {"sample": "it would take long"},
    "accuracy_margin": {"accuracy_margin": 0.001},
    "largest_batch": {"largest_batch": 3000},
    "max_abs_diff": {"max_abs_diff": 1e-9},
    "max_rel_diff": {"max_rel_diff": 1e-9},
    "top1_agreement": {"top1_agreement": 0.5},
    "val_accuracy_torch": {"val_accuracy_torch": 1.0},
    "val_accuracy_onnx": {"val_accuracy_onnx": 1.0},
    "seen_accuracy_torch": {"seen_accuracy_torch": 0.5},
    "seen_accuracy_onnx": {"seen_accuracy_onnx": 0.5},
    "calibration_error_torch": {"calibration_error_torch": 0.3},
    "calibration_error_onnx": {"calibration_error_onnx": 0.3},
    "black_box_only": {"black_box_only": "--black-box"},
    "validated": {"validated": False},
}
# Of another dataset, which is not at hand: that is said, and its numbers are not compared.
NOT_COMPARED = {"images_fingerprint", "checks"}


@pytest.fixture(scope="module")
def exported(trained: TrainResult, tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    out = tmp_path_factory.mktemp("exported") / "m.onnx"
    return export_onnx(ExportConfig(run=str(trained.run.path), out=out))


@pytest.fixture(scope="module")
def digit_checkpoint(exported: ExportResult) -> Checkpoint:
    return checkpoints.read(exported.checkpoint)


@pytest.fixture(scope="module")
def digit_reference(digit_checkpoint: Checkpoint) -> Reference:
    return Reference(digit_checkpoint)


@pytest.fixture(scope="module")
def digits() -> ValidationImages:
    source = open_source("digits")
    return select_images(source, "val", source.record.class_names)


def forged(file: Path, **fields: Any) -> onnx.ModelProto:
    """Return a file with other metadata; dictionaries are merged."""
    model = onnx.load(file)
    properties = properties_of(model)
    for name, value in fields.items():
        if isinstance(value, dict) and name in properties:
            value = json.loads(properties[name]) | value
        properties[name] = json.dumps(value) if name in JSON_FIELDS else str(value)
    helper.set_model_props(model, properties)
    return model


def failed(
    model: onnx.ModelProto, reference: Reference | None, digits: ValidationImages, tmp_path: Path, **thresholds: object
) -> dict[str, str]:
    report = verify_model(copy(model), reference, digits, tmp_path, **thresholds)
    return {check.name: check.result for check in report.failed_checks}


def test_each_field_and_each_number_has_a_forgery() -> None:
    assert FORGERIES.keys() == ModelMetadata.model_fields.keys()
    assert FORGED_NUMBERS.keys() == (ProofReport.model_fields.keys() | {"validated"}) - NOT_COMPARED


@pytest.mark.parametrize("field", FORGERIES)
def test_a_forged_field_is_found(
    field: str,
    exported: ExportResult,
    digit_reference: Reference,
    digits: ValidationImages,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checks, "MAX_BATCH", 4)
    forgery, check = FORGERIES[field]
    model = forged(exported.onnx, **{field: forgery})
    origin = Origin(frozenset({"trained"}))
    assert check in failed(model, digit_reference, digits, tmp_path, origin=origin)


def test_an_honest_file_passes(
    exported: ExportResult, digit_reference: Reference, digits: ValidationImages, tmp_path: Path
) -> None:
    model, origin = onnx.load(exported.onnx), Origin(frozenset({"trained"}), digits.fingerprint)
    assert failed(model, digit_reference, digits, tmp_path, origin=origin, precision="fp32") == {}
    assert failed(model, None, digits, tmp_path, origin=origin) == {}
    # Another sample than recorded; and all of another dataset that has the same fingerprint.
    sampled = verify_file(exported.onnx, digit_reference, digits, ProofThresholds(runtime.CPU, images=100))
    assert sampled.validated, sampled.failed_checks
    assert "recorded proof" in failed(model, digit_reference, digits.stratified(200), tmp_path)


@pytest.mark.parametrize("name", FORGED_NUMBERS)
def test_a_forged_number_of_the_proof_is_found(
    name: str,
    exported: ExportResult,
    digit_reference: Reference,
    digits: ValidationImages,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checks, "MAX_BATCH", 4)
    model = forged(exported.onnx, validation=FORGED_NUMBERS[name])
    found = failed(model, digit_reference, digits, tmp_path)
    assert found.keys() & {"recorded proof", "accuracy as in metadata", "calibration as in metadata"}


@pytest.mark.parametrize("validation", [{"images": -3}, {"provider": 7}, {"tolerance": "much"}])
def test_a_damaged_proof_is_found(
    validation: dict[str, Any], exported: ExportResult, digits: ValidationImages, tmp_path: Path
) -> None:
    model = forged(exported.onnx, validation=validation)
    assert "recorded proof" in failed(model, None, digits, tmp_path)


@pytest.mark.parametrize(
    ("field", "forgery", "check"),
    [
        ("val_accuracy", 0.9999, "accuracy as in training"),
        ("data_fingerprint", "0" * 64, "metadata"),
        ("output", "probabilities", "file"),
        ("class_names", [str(n) for n in range(11)], "random pixels"),
        ("preprocessing", {"mean": [0.9]}, "accuracy as in metadata"),
        ("validation", {"images": 50_000, "images_total": 50_000}, "recorded proof"),
    ],
)
def test_without_its_checkpoint_a_file_is_held_to_graph_data_and_itself(
    field: str, forgery: Any, check: str, exported: ExportResult, digits: ValidationImages, tmp_path: Path
) -> None:
    model = forged(exported.onnx, **{field: forgery})
    assert check in failed(model, None, digits, tmp_path, origin=Origin(data_fingerprint=digits.fingerprint))


def test_a_proof_of_other_images_is_named_as_such(
    exported: ExportResult, digits: ValidationImages, tmp_path: Path
) -> None:
    model = forged(exported.onnx, validation={"images_fingerprint": "another"})
    report = verify_model(model, None, digits, tmp_path)
    assert report.validated, report.failed_checks
    result = next(check.result for check in report.checks if check.name == "recorded proof")
    assert result == "possible; it is of other images"
