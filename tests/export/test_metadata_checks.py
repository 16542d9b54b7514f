"""What a file says of itself is compared: a forgery in any field of its metadata, or of its proof, is found."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from resnet_ops.data.opening import open_source
from resnet_ops.errors import UserError
from resnet_ops.export import budget, checks, graph, runtime
from resnet_ops.export.config import ExportConfig, ValidateConfig
from resnet_ops.export.inputs import (
    ValidationImages,
    find_exported_checkpoint,
    select_images,
    warn_of_trained_images,
)
from resnet_ops.export.job import ExportResult, export_onnx
from resnet_ops.export.metadata import JSON_FIELDS, MAX_CHARACTERS, ModelMetadata, QuantizationError
from resnet_ops.export.metadata_checks import Origin, check_metadata, unverified_claims
from resnet_ops.export.proof import ProofThresholds, verify_file
from resnet_ops.export.proof_report import ProofReport
from resnet_ops.export.reference import Reference
from resnet_ops.export.validate import validate_onnx
from resnet_ops.runs import Run
from resnet_ops.significance import sampling_margin
from resnet_ops.training import checkpoint as checkpoints
from resnet_ops.training.checkpoint import Checkpoint, read_best
from resnet_ops.training.job import TrainResult
from tests.conftest import DigitFiles
from tests.export.samples import copy, make_lower, properties_of, verify_model

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
    "selected_by": ("loss", "metadata"),
    "held_out": ({"val_sha256": "0" * 64, "test_fraction": None}, "metadata"),
    "fitted_on_all": (True, "metadata"),
    "began_from": ({"origin": "run prize-winner"}, "metadata"),
    "checkpoint_sha256": ("0" * 64, "metadata"),
    "made_by": ("hand", "metadata"),
    "precision_choice": ("all nodes", "metadata"),
    "quantization_error": ({"mean": 1.0, "largest": 9.0, "agreement": 0.5, "images": 9}, "metadata"),
    "calibration": ({"temperature": 1.5, "images": IMAGES}, "temperature"),
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
    "images_fingerprint": {"images_fingerprint": "d" * 64},
    "checks": {"checks": []},
    "unverified": {"unverified": []},
}
PERFECT = dict.fromkeys(("val_accuracy_torch", "val_accuracy_onnx"), 0.9999) | {"accuracy_margin": 0.0}
ELSEWHERE = PERFECT | {"images": 50_000, "images_total": 50_000, "images_fingerprint": "d" * 64}
# Claims of several numbers, and those that no comparison with a number finds.
FORGED_PROOFS: dict[str, dict[str, Any]] = {
    "of images elsewhere": ELSEWHERE,
    "of no images": PERFECT | {"images": 0, "images_total": 0},
    "NaN": dict.fromkeys(("val_accuracy_torch", "top1_agreement", "calibration_error_torch"), float("nan")),
    "infinite": {"val_accuracy_torch": float("inf")},
    "absurdly many images": {"images": 10**300, "images_total": 10**300},
    "a difference that is none": {"max_abs_diff": 1e9, "max_rel_diff": 0.0},
    "no difference at all": {"max_abs_diff": 0.0, "max_rel_diff": 0.0},
    "negative counts of nodes": {"nodes_by_provider": {runtime.CPU: -4, runtime.CUDA: 30}},
    "nodes nowhere": {"nodes_by_provider": {"x": 26}},
    "another number": {"test_accuracy": 0.9999},
    "nodes on a GPU though on the CPU": {"nodes_by_provider": {runtime.CUDA: 26}},
    "better calibrated": {"calibration_error_torch": -0.015, "calibration_error_onnx": -0.015},
    "few easy images": {"images": 20, "sample": budget.ASKED, "val_accuracy_torch": 1.0, "val_accuracy_onnx": 1.0},
    "a reason of its own": {"images": 100, "sample": "all 10,000 others are right"},
    "seen and unseen": {"seen_accuracy_torch": 1.0, "seen_accuracy_onnx": 1.0},
}


@pytest.fixture
def few_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out large batches, which tell nothing of metadata."""
    monkeypatch.setattr(checks, "MAX_BATCH", 4)


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
            value = (json.loads(properties[name]) or {}) | value
        properties[name] = json.dumps(value) if name in JSON_FIELDS else str(value)
    helper.set_model_props(model, properties)
    return model


def failed(
    model: onnx.ModelProto,
    reference: Reference | None,
    digits: ValidationImages | None,
    tmp_path: Path,
    **thresholds: object,
) -> dict[str, str]:
    report = verify_model(copy(model), reference, digits, tmp_path, **thresholds)
    return {check.name: check.result for check in report.failed_checks}


def test_each_field_and_each_number_has_a_forgery() -> None:
    assert FORGERIES.keys() == ModelMetadata.model_fields.keys()
    assert FORGED_NUMBERS.keys() == ProofReport.model_fields.keys() | {"validated"}


@pytest.mark.usefixtures("few_batches")
@pytest.mark.parametrize("field", FORGERIES)
def test_a_forged_field_is_found(
    field: str,
    exported: ExportResult,
    digit_reference: Reference,
    digits: ValidationImages,
    tmp_path: Path,
) -> None:
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


@pytest.mark.usefixtures("few_batches")
@pytest.mark.parametrize("name", FORGED_NUMBERS)
def test_a_forged_number_of_the_proof_is_found(
    name: str,
    exported: ExportResult,
    digit_reference: Reference,
    digits: ValidationImages,
    tmp_path: Path,
) -> None:
    model = forged(exported.onnx, validation=FORGED_NUMBERS[name])
    found = failed(model, digit_reference, digits, tmp_path)
    assert found.keys() & {"recorded proof", "accuracy as in metadata", "calibration as in metadata"}


@pytest.mark.usefixtures("few_batches")
@pytest.mark.parametrize("name", FORGED_PROOFS)
def test_a_forged_proof_is_found(
    name: str,
    exported: ExportResult,
    digit_reference: Reference,
    digits: ValidationImages,
    tmp_path: Path,
) -> None:
    claim = dict(FORGED_PROOFS[name])
    recorded = json.loads(properties_of(onnx.load(exported.onnx))["validation"])
    for number in claim.keys() & {"calibration_error_torch", "calibration_error_onnx"}:
        claim[number] += recorded[number] if claim[number] < 0 else 0  # by so much less
    if 0 < claim.get("images", 0) < IMAGES:
        accuracy = claim.get("val_accuracy_onnx", recorded["val_accuracy_onnx"])
        claim["accuracy_margin"] = sampling_margin(accuracy, claim["images"], IMAGES)
    model = forged(exported.onnx, validation=claim)
    assert "recorded proof" in failed(model, digit_reference, digits, tmp_path)


@pytest.mark.usefixtures("few_batches")
@pytest.mark.parametrize("off", [0.03, -0.03])
def test_a_false_accuracy_of_all_images_is_found_on_a_few(
    off: float, exported: ExportResult, digit_reference: Reference, digits: ValidationImages, tmp_path: Path
) -> None:
    recorded = json.loads(properties_of(onnx.load(exported.onnx))["validation"])
    false = round((recorded["val_accuracy_torch"] + off) * IMAGES) / IMAGES
    model = forged(exported.onnx, validation=dict.fromkeys(("val_accuracy_torch", "val_accuracy_onnx"), false))
    assert "recorded accuracy" in failed(model, digit_reference, digits.stratified(60), tmp_path)
    of_file = forged(exported.onnx, validation={"val_accuracy_onnx": false})
    assert "recorded proof" in failed(of_file, digit_reference, digits.stratified(60), tmp_path)


@pytest.mark.usefixtures("few_batches")
def test_a_proof_of_a_sample_passes_where_all_images_are_used(
    digit_reference: Reference, trained: TrainResult, digits: ValidationImages, tmp_path: Path
) -> None:
    config, steps = ExportConfig(run=str(trained.run.path), out=tmp_path / "s.onnx", images=20), list[str]()
    result = export_onnx(config, on_step=steps.append)
    file, checks = result.onnx, [check.name for check in result.checks]
    assert steps[0] == "network"
    assert [step for step in steps if step in checks] == [check for check in checks if check in steps]
    assert {"weights", "batch sizes", "repeated runs"} <= set(steps)
    assert failed(onnx.load(file), digit_reference, digits, tmp_path) == {}
    lying = forged(file, validation={"val_accuracy_torch": 1.0, "calibration_error_torch": 0.0})
    assert "recorded proof" in failed(lying, digit_reference, digits, tmp_path)


@pytest.mark.parametrize(
    ("field", "text", "expected"),
    [
        ("preprocessing", '{"channel_order": "BGR", ', "preprocessing.channel_order"),
        ("preprocessing", '{"mean": [0.9], ', "preprocessing: not JSON as"),
        ("validation", '{"val_accuracy_onnx": 1.0, ', "validation: not JSON as"),
        ("class_names", "[ ", "class_names: not JSON as"),
    ],
)
def test_what_programs_read_differently_is_refused(
    field: str, text: str, expected: str, exported: ExportResult
) -> None:
    properties = properties_of(onnx.load(exported.onnx))
    with pytest.raises(UserError, match=expected):
        ModelMetadata.parse("m.onnx", properties | {field: text + properties[field][1:]})
    for number, other in (("epoch", '"1"'), ("epoch", "1.0"), ("fitted_on_all", '"off"')):
        with pytest.raises(UserError, match=f"{number}: Input should be a valid"):
            ModelMetadata.parse("m.onnx", properties | {number: other})


def test_long_texts_are_refused(exported: ExportResult) -> None:
    properties = properties_of(onnx.load(exported.onnx))
    for field in ("made_by", "precision_choice", "model", "run"):
        with pytest.raises(UserError, match="at most 4096 characters"):
            ModelMetadata.parse("m.onnx", properties | {field: "1." * 100_000})
    with pytest.raises(UserError, match="too long"):
        ModelMetadata.parse("m.onnx", properties | {"validation": " " * MAX_CHARACTERS})


@pytest.mark.usefixtures("few_batches")
def test_texts_cannot_command_a_terminal(
    exported: ExportResult, digit_reference: Reference, digits: ValidationImages, tmp_path: Path
) -> None:
    properties = properties_of(onnx.load(exported.onnx))
    for field, text in (("run", "\x1b[2J"), ("class_names", json.dumps(["a", "b\nVerified"])), ("data", "d\u2028")):
        with pytest.raises(UserError, match="has characters that separate lines") as refused:
            ModelMetadata.parse("m.onnx", properties | {field: text})
        assert str(refused.value).isprintable()
    model = forged(exported.onnx, validation={"\x1b[2J": 1})
    found = failed(model, digit_reference, digits, tmp_path, origin=Origin(frozenset({"trained"})))
    assert r"it has \x1b[2J, which none has" in found["recorded proof"]


@pytest.mark.parametrize("name", ["top1_agreement", "max_rel_diff", "val_accuracy_torch", "images_fingerprint"])
def test_a_proof_that_lacks_a_number_is_found(
    name: str, exported: ExportResult, digits: ValidationImages, tmp_path: Path
) -> None:
    model = onnx.load(exported.onnx)
    properties = properties_of(model)
    recorded = json.loads(properties["validation"])
    del recorded[name]
    helper.set_model_props(model, properties | {"validation": json.dumps(recorded)})
    assert name.replace("_", " ") in failed(model, None, digits, tmp_path)["recorded proof"]


def test_what_a_file_says_where_no_export_says_anything_is_found(exported: ExportResult) -> None:
    """Of properties, documentation strings, producer and domain, an export has its exporter's only."""

    def fault(change: Callable[[onnx.ModelProto], object], origin: Origin | None = None) -> str:
        model = onnx.load(exported.onnx)
        change(model)
        metadata = ModelMetadata.parse("m.onnx", properties_of(model))
        result, passed = check_metadata(metadata, model, None, origin or Origin())
        return "" if passed else result

    def remove_run(model: onnx.ModelProto) -> None:
        properties = properties_of(model)
        del properties["run"]
        helper.set_model_props(model, properties)

    def move_weights(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL

    def describe_values(model: onnx.ModelProto) -> None:
        value = model.graph.value_info[3]
        value.doc_string, value.type.denotation = "99.99% on ImageNet", "IMAGE"
        value.type.tensor_type.shape.dim[1].denotation = "DATA_CHANNEL"
        value.metadata_props.add(key="mean", value="0.5")

    def repeat_accuracy(model: onnx.ModelProto) -> None:
        model.metadata_props.add(key="val_accuracy", value=properties_of(model)["val_accuracy"])

    def claim_endless_version(model: onnx.ModelProto) -> None:
        model.producer_name, model.producer_version = "onnx.quantize", "1" + ".1" * 100_000 + "!"

    def claim_words_as_version(model: onnx.ModelProto) -> None:
        model.producer_name, model.producer_version = "onnx.quantize", "0.1.0+certified"

    assert fault(lambda model: None) == ""
    assert "unknown or repeated metadata names" in fault(lambda m: m.metadata_props.add(key="names", value="cat"))
    assert "repeated metadata val_accuracy" in fault(repeat_accuracy)
    assert "has ModelProto.doc_string, which no" in fault(lambda m: setattr(m, "doc_string", "99.99% on ImageNet"))
    assert "has GraphProto.doc_string, which no" in fault(lambda m: setattr(m.graph, "doc_string", "best"))
    assert "has NodeProto.doc_string, which no" in fault(lambda m: setattr(m.graph.node[3], "doc_string", "best"))
    assert "NodeProto.metadata_props" in fault(lambda m: m.graph.node[0].metadata_props.add(key="a", value="b"))
    assert "TypeProto.denotation" in fault(lambda m: setattr(m.graph.input[0].type, "denotation", "IMAGE"))
    assert "ModelProto.configuration" in fault(lambda m: m.configuration.add(name="gpu", num_devices=8))
    assert fault(describe_values) == (
        "it has Dimension.denotation, TypeProto.denotation, ValueInfoProto.doc_string, ValueInfoProto.metadata_props, "
        "which no export has"
    )
    assert "producer is 'onnx.quantize'" in fault(claim_words_as_version)
    assert "producer is 'evil'" in fault(lambda m: setattr(m, "producer_name", "evil"))
    assert "producer is 'pytorch' '9.9'" in fault(lambda m: setattr(m, "producer_version", "9.9"))
    assert "ModelProto.domain" in fault(lambda m: setattr(m, "domain", "com.example"))
    assert "ModelProto.model_version" in fault(lambda m: setattr(m, "model_version", 77))
    began = time.monotonic()
    assert "producer is 'onnx.quantize'" in fault(claim_endless_version)
    assert time.monotonic() - began < 10  # by a pattern that repeats repetitions it takes hours
    assert "weights in another file, though they fit into one" in fault(move_weights)
    assert "run is None" in fault(remove_run, Origin(frozenset({"trained"})))


@pytest.mark.usefixtures("few_batches")
def test_descriptions_of_values_inside_are_found(digit_files: DigitFiles, tmp_path: Path) -> None:
    """In the whole proof, which works with shapes that it infers itself."""
    for file in (digit_files.normalized, digit_files.raw):
        model = onnx.load(file)
        model.graph.value_info[3].doc_string = "resize to 512 pixels, BGR"
        found = failed(model, None, None, tmp_path)
        assert found["metadata"] == "it has ValueInfoProto.doc_string, which no export has"


def test_images_of_the_training_are_named(trained: TrainResult, digits: ValidationImages) -> None:
    source = open_source("digits")
    seen, warnings = select_images(source, "train", source.record.class_names), list[str]()
    info = read_best(trained.run)[0].info
    warn_of_trained_images(digits, source, trained.run, info, warnings.append)
    first = replace(seen, rows=seen.rows[:100], labels=seen.labels[:100])
    other = info.model_copy(update={"data_fingerprint": "other"})
    warn_of_trained_images(first, source, trained.run, other, warnings.append)
    assert not warnings
    warn_of_trained_images(first, source, trained.run, info, warnings.append)
    (warning,) = warnings
    assert "was trained on 100 of the 100 images" in warning


def test_the_run_of_a_checkpoint_that_lies_elsewhere_is_not_verified(
    exported: ExportResult, digit_checkpoint: Checkpoint
) -> None:
    model = forged(exported.onnx, run="winner")
    metadata = ModelMetadata.parse("m.onnx", properties_of(model))
    result, passed = check_metadata(metadata, model, digit_checkpoint, Origin())
    assert (result, passed) == ("as in the checkpoint; that its run was called winner is not verified here", True)


def test_other_versions_are_named_and_later_ones_refused(exported: ExportResult) -> None:
    def check(made_by: str) -> tuple[str, bool]:
        model = onnx.load(exported.onnx)
        model.producer_version = made_by.split()[3].rstrip(",")
        metadata = exported.metadata.model_copy(update={"made_by": made_by})
        return check_metadata(metadata, model, None, Origin())

    assert check(graph.tool_versions()) == ("as in the graph", True)
    earlier = "resnet-ops 0.0.9, torch 2.9.0, onnx 1.19.0"
    assert check(earlier) == (f"as in the graph; made by {earlier}, this is {graph.tool_versions()}", True)
    builds = ("2.9.0+cpu", "2.9.0+cu130", "2.9.0+rocm6.4", "2.15.0.dev20260901+cu130", "2.6.0a0+ecf3bae40a.nv25.01")
    for torch in (*builds, "2.7.0a0+git1a2b3c4"):
        assert check(f"resnet-ops 0.0.9, torch {torch}, onnx 1.19.0")[1]
    words = (
        "9.9-fp64_exact",
        "2.9.0+certified",
        "2.9.0+cpu.exact",
        "2.9.0+",
        "v2.9",
        "\u0662.9",
        "2." + "1." * 2000 + "0",
    )
    for torch in words:
        result, passed = check(f"resnet-ops 0.0.9, torch {torch}, onnx 1.19.0")
        assert not passed
        assert "not by resnet-ops" in result
    assert not check("resnet-ops 0.0.TUV-certified_for_medical_use, torch 2.9.0, onnx 1.19.0")[1]
    assert not check("resnet-ops 0.0.9, torch 2.9.0, onnx 9.9+best")[1]
    for later in ("9.9", "0.1.1", "0.10"):
        result, passed = check(f"resnet-ops {later}, torch 2.9.0, onnx 1.19.0")
        assert not passed
        assert "newer than this resnet-ops" in result


def test_an_int8_file_states_its_error(digit_checkpoint: Checkpoint, exported: ExportResult) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1), np.uint8)
    model = make_lower(digit_checkpoint, "int8", pixels)
    recorded = json.loads(properties_of(onnx.load(exported.onnx))["validation"])
    metadata = ModelMetadata.parse("m.onnx", properties_of(model)).model_copy(update={"validation": recorded})
    error = metadata.quantization_error
    assert error is not None
    assert check_metadata(metadata, model, digit_checkpoint, Origin())[1]
    described = copy(model)
    described.graph.value_info[0].doc_string = "best"
    assert "ValueInfoProto.doc_string" in check_metadata(metadata, described, digit_checkpoint, Origin())[0]
    for forgery, expected in (
        (None, "no quantization error though it is int8"),
        (error.model_copy(update={"images": 50_000}), "on more images than are ever used"),
        (error.model_copy(update={"images": error.images + 1}), "precision choice"),
        (error.model_copy(update={"largest": error.mean / 2}), "that cannot be"),
        (error.model_copy(update={"agreement": 0.9999}), "that cannot be"),
    ):
        lying = metadata.model_copy(update={"quantization_error": forgery})
        result, passed = check_metadata(lying, model, digit_checkpoint, Origin())
        assert not passed
        assert expected in result


def test_a_file_in_a_run_cannot_disown_its_checkpoint(
    trained: TrainResult, exported: ExportResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a checksum that no checkpoint of the run has, it is compared with the best, unless the user excuses it."""
    monkeypatch.setattr(checks, "MAX_BATCH", 4)
    run = Path(shutil.copytree(trained.run.path, tmp_path / "runs" / trained.run.path.name))
    (run / "export").mkdir(exist_ok=True)
    file = run / "export" / "lying.onnx"
    graph.write(forged(exported.onnx, checkpoint_sha256="0" * 64), file)
    report = validate_onnx(file)
    assert report.black_box_only == ""
    assert {check.name: check.result for check in report.failed_checks} == {
        "metadata": "exported from another checkpoint"
    }
    excused = validate_onnx(ValidateConfig(file=file, black_box=True))
    assert (excused.validated, excused.black_box_only, excused.checkpoint) == (True, "--black-box", None)
    (run / "other").mkdir()
    assert not validate_onnx(run / "export" / ".." / "other" / ".." / "export" / file.name).validated
    below = Path(shutil.copy(file, run / "export" / "other.onnx")).rename(run / "other" / "m.onnx")
    (tmp_path / "link").symlink_to(run / "export")
    for place in (below, Path(shutil.copy(file, run)), tmp_path / "link" / file.name):
        assert not validate_onnx(place).validated
    alone = Path(shutil.copy(file, tmp_path / "alone.onnx"))
    assert validate_onnx(alone).black_box_only == "its checkpoint was not found"


def test_weights_that_were_never_validated_are_not_those_of_a_file(
    trained: TrainResult, digit_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    run = Run(Path(shutil.copytree(trained.run.path, tmp_path / trained.run.path.name)))
    whole = find_exported_checkpoint(run.export / "m.onnx", digit_checkpoint.sha256)
    assert whole is not None
    within = digit_checkpoint.info.model_copy(update={"step": 5})
    file = run.checkpoints / within.file_name
    checkpoints.save(file, within, {f"model/{name}": value for name, value in digit_checkpoint.model.items()})
    assert find_exported_checkpoint(run.export / "m.onnx", checkpoints.read(file).sha256) is None


def test_a_run_among_the_exported_files_of_another_is_not_the_one_they_are_of(
    trained: TrainResult, digit_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    run = Run(Path(shutil.copytree(trained.run.path, tmp_path / "mine")))
    for inner in (run.export, run.export / "deep"):
        inner.mkdir(exist_ok=True)
        shutil.copy(trained.run.record_file, inner)
        found = find_exported_checkpoint(inner / "m.onnx", digit_checkpoint.sha256)
        assert found is not None
        assert found.run is not None
        assert found.run.path == run.path


def test_damaged_checkpoints_are_not_taken_for_ones_that_are_not_there(trained: TrainResult, tmp_path: Path) -> None:
    run = Run(Path(shutil.copytree(trained.run.path, tmp_path / trained.run.path.name)))
    for path in (checkpoints.best_file(run), *checkpoints.saved_checkpoints(run)):
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match="no intact checkpoint"):
        find_exported_checkpoint(run.export / "m.onnx", "of none", or_best=True)
    shutil.rmtree(run.best)
    shutil.rmtree(run.checkpoints)
    assert find_exported_checkpoint(run.export / "m.onnx", "of none", or_best=True) is None


def test_int8_needs_images(trained: TrainResult, exported: ExportResult, tmp_path: Path) -> None:
    """Random pixels do not tell the ranges of real ones: sound files exceed them, and clipped ones pass."""
    run = Run(Path(shutil.copytree(trained.run.path, tmp_path / trained.run.path.name)))
    record = run.read()
    run.write(record.model_copy(update={"config": record.config.model_copy(update={"data": "/nowhere"})}))
    run.export.mkdir(exist_ok=True)
    graph.write(forged(exported.onnx, precision="int8"), run.export / "m.onnx")
    with pytest.raises(UserError, match="an int8 file are measured on images like those of its training"):
        validate_onnx(run.export / "m.onnx")


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
        ("class_names", [str(n) for n in range(11)], "structure"),
        ("preprocessing", {"mean": [0.9]}, "accuracy as in metadata"),
        ("validation", {"images": 50_000, "images_total": 50_000}, "recorded proof"),
    ],
)
def test_without_its_checkpoint_a_file_is_held_to_graph_data_and_itself(
    field: str, forgery: Any, check: str, exported: ExportResult, digits: ValidationImages, tmp_path: Path
) -> None:
    model = forged(exported.onnx, **{field: forgery})
    assert check in failed(model, None, digits, tmp_path, origin=Origin(data_fingerprint=digits.fingerprint))


def test_what_cannot_be_verified_here_is_named(
    exported: ExportResult, digit_reference: Reference, digits: ValidationImages, tmp_path: Path
) -> None:
    """Of other images without the network's own, and on a GPU that is not here."""
    claim = {"images_fingerprint": "d" * 64, "provider": runtime.CUDA, "nodes_by_provider": {runtime.CUDA: 26}}
    model, expected = forged(exported.onnx, validation=claim), "of other images, not verified here"
    elsewhere = replace(digits, fingerprint="e" * 64)
    for reference, images in ((None, digits), (digit_reference, elsewhere)):
        report = verify_model(model, reference, images, tmp_path)
        assert report.validated, report.failed_checks
        assert report.unverified == (f"it is {expected}", f"recorded on {runtime.CUDA}, not verified here")
        result = next(check.result for check in report.checks if check.name == "recorded proof")
        assert result == f"possible; {'; '.join(report.unverified)}"
    # Nor is the proof of an export with --data refused where these images are at hand.
    there = replace(digits, fingerprint="d" * 64)
    assert verify_model(model, digit_reference, there, tmp_path).unverified == report.unverified[1:]
    # Without images the recorded proof must still be possible.
    alone = verify_model(model, digit_reference, None, tmp_path)
    assert (alone.validated, alone.unverified) == (True, report.unverified)
    damaged = forged(exported.onnx, validation={"top1_agreement": 1.5})
    assert failed(damaged, digit_reference, None, tmp_path) == {"recorded proof": "numbers that cannot be"}


def test_a_quantization_error_on_other_images_is_named(exported: ExportResult) -> None:
    error = QuantizationError(mean=1e-9, largest=1e-9, agreement=1.0, images=64)
    metadata = exported.metadata.model_copy(update={"quantization_error": error, "validation": {"sample": ""}})
    recorded, own = ProofReport(provider=runtime.CPU), exported.metadata.data_fingerprint
    expected = {own: (), "e" * 64: ("its quantization error is measured on other images, not verified here",)}
    for fingerprint, notes in expected.items():
        now = ProofReport(provider=runtime.CPU, images_fingerprint=fingerprint)
        assert unverified_claims(recorded, metadata, now, same_data=False) == notes
