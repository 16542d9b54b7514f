"""The whole of `resnet-ops export --onnx`: read the weights, build the file, verify it, and give it its final name.

The steps themselves are in `inputs`, `graph`, `precision` and `proof`.
"""

import hashlib
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from pydantic import Field

from resnet_ops import files
from resnet_ops.class_metrics import MajorityBaseline
from resnet_ops.config_base import as_typed
from resnet_ops.data.sources import Source
from resnet_ops.errors import WORK_FAILED, UserError
from resnet_ops.export import budget, graph, inputs, precision, runtime, snapshot, untrusted
from resnet_ops.export.calibration import calibrate, images_to_fit, scaled_checkpoint
from resnet_ops.export.classifier import Classifier, normalize_pixels
from resnet_ops.export.config import ExportConfig
from resnet_ops.export.inputs import (
    ResolvedCheckpoint,
    ValidationImages,
    Warn,
    random_pixels,
    select_images,
    select_validation_images,
    warn_of_trained_images,
)
from resnet_ops.export.metadata import Calibration, ModelMetadata, Preprocessing
from resnet_ops.export.metadata_checks import Origin
from resnet_ops.export.precision import QuantizationCandidate
from resnet_ops.export.proof import ProofThresholds, verify_file
from resnet_ops.export.proof_report import ProofReport, ValidationResult
from resnet_ops.export.reference import Reference
from resnet_ops.files import Place, write_atomically
from resnet_ops.locks import exclusive
from resnet_ops.machine import versions
from resnet_ops.training.defaults import suggest_at_chance

FP16_IMAGES = 64  # whose values are measured


class ExportResult(ValidationResult):
    """An export and its verification; if a check failed, `onnx` is the name of the rejected file."""

    opset: int = Field(description="ONNX operator set.")
    checkpoint: Place = Field(description="The checkpoint that it was exported from, and compared with.")
    epoch: int = Field(description="Epoch of the checkpoint.")
    majority_baseline: MajorityBaseline | None = Field(
        description="What always answering the largest class reached on the validation images of the training; null "
        "where nothing was validated, or on one class only."
    )
    size_bytes: int = Field(description="Size of the file, external weights included.")
    proof: Place = Field(description="JSON file with the proof.")
    candidates: tuple[QuantizationCandidate, ...] = Field(description="The int8 quantizations that were tried.")
    kept_in_fp32: str = Field(description="What fp16 left in fp32, in words.")


def export_onnx(
    config: ExportConfig | Path | str,
    warn: Warn = lambda _: None,
    started_at: float | None = None,
    on_step: Callable[[str], object] = lambda _: None,
) -> ExportResult:
    """Export a run's best checkpoint to `export/model.onnx`, and verify it.

    A file that fails a check is kept as `model.onnx.rejected` beside the record of the checks, never as `model.onnx`.

    Args:
        config: The options, or the name or path of a run.
        warn: Called with warnings for the user, e.g. that a damaged checkpoint was skipped.
        started_at: When the user asked, in seconds since 1970; by default now.
        on_step: Called with the name of each step and check as it begins.

    Raises:
        UserError: There is no such run or no intact checkpoint, its images are missing or changed, or the provider
            cannot be used here.
    """
    started_at = started_at or time.time()
    config = config if isinstance(config, ExportConfig) else ExportConfig(run=as_typed(config))
    provider = runtime.resolve_provider(config.provider, config.precision)
    if config.out is not None and not config.out.absolute().parent.is_dir():
        raise UserError(f"Folder {config.out.absolute().parent} does not exist.", "Create it first.")
    resolved = inputs.resolve_checkpoint(config, warn)
    final = config.out or resolved.folder / graph.file_name(config.precision, config.input)
    files.check_writable(final.parent)
    info = resolved.checkpoint.info
    source, is_training_data = inputs.open_validation_data(config, resolved.run, info, warn)
    if source is None:
        if config.precision == "int8":
            raise UserError("int8 quantization needs images like the training images for calibration.", "Add --data.")
        warn(
            "Accuracy is not measured, as no validation images are known here: the file is verified on random pixels; "
            "add --data."
        )
    images = None
    if source is not None:
        images = select_validation_images(source, info.class_names, config.precision, is_training_data, warn)
        if not is_training_data:
            warn_of_trained_images(images, source, resolved.run, info, warn)
    if config.calibrate and (images is None or (is_training_data and info.fitted_on_all)):
        raise UserError(
            "--calibrate needs validation images; none are known that the network was not trained on.", "Add --data."
        )
    files.make_folder(final.parent, exist_ok=True)
    on_step("network")
    exported = graph.to_onnx(info, resolved.checkpoint.model, config.opset)
    calibration = None
    if config.calibrate and images is not None:
        on_step("calibration")
        most = images_to_fit(exported, images, provider, None, config.images)
        calibration = calibrate(resolved.checkpoint, images.stratified(most))
        resolved = scaled_checkpoint(resolved, calibration)
        exported = graph.to_onnx(info, resolved.checkpoint.model, config.opset)
    if config.precision != "fp32":
        on_step(f"{config.precision} conversion")
    model, metadata, candidates = _build_model(exported, config, resolved, source, provider, calibration)
    with tempfile.TemporaryDirectory(prefix=snapshot.PREFIX) as folder:  # ONNX Runtime reads disks only
        unverified = Path(folder) / final.name
        graph.set_metadata(model, metadata)
        graph.write(model, unverified)
        thresholds = ProofThresholds(
            provider,
            config.opset,
            config.precision,
            config.tolerance,
            config.max_accuracy_drop / 100,
            info.validated.val_accuracy if is_training_data else None,
            Origin(resolved.run_names),
            images=config.images,
            seen=is_training_data and info.fitted_on_all,
        )
        with snapshot.unchanged(unverified.parent):
            report = verify_file(unverified, Reference(resolved.read_again()), images, thresholds, exported, on_step)
        if report.validated:
            _embed_report(unverified, metadata, report, provider)
        file, proof_file, size = _publish(unverified, final, report, resolved, config)
    return ExportResult(
        **dict(report),
        onnx=file,
        precision=metadata.precision,
        input=metadata.input,
        checkpoint=resolved.checkpoint.path,
        total_s=time.time() - started_at,
        fitted_temperature=calibration is not None,
        metadata=metadata,
        opset=config.opset,
        epoch=info.epoch,
        majority_baseline=None
        if info.fitted_on_all
        else MajorityBaseline.of(info.val_classes, suggest_at_chance(resolved.record) if resolved.record else ""),
        size_bytes=size,
        proof=proof_file,
        candidates=tuple(candidates),
        kept_in_fp32=(metadata.precision_choice or "") if config.precision == "fp16" else "",
    )


def _build_model(
    exported: onnx.ModelProto,
    config: ExportConfig,
    resolved: ResolvedCheckpoint,
    source: Source | None,
    provider: str,
    calibration: Calibration | None,
) -> tuple[onnx.ModelProto, ModelMetadata, list[QuantizationCandidate]]:
    """Return the model, made of the network in fp32, its metadata, and the quantizations tried for int8."""
    checkpoint = resolved.checkpoint
    info = checkpoint.info
    model = onnx.ModelProto()
    model.CopyFrom(exported)
    steps = Preprocessing.of(info, "normalized")
    candidates, choice, error = list[QuantizationCandidate](), None, None
    if config.precision == "fp16":
        pixels = random_pixels(precision.BATCH, steps.crop)
        if source is not None:
            images = select_images(source, "train", info.class_names)
            pixels = np.concatenate([pixels, _decode_all(images, FP16_IMAGES, steps)])
        model, choice = precision.to_fp16(model, normalize_pixels(pixels, steps))
    elif config.precision == "int8":
        assert source is not None
        most = precision.CALIBRATION_IMAGES + precision.CHOICE_IMAGES
        count = max(2 * precision.BATCH, budget.images_within(budget.CALIBRATION, model, most))
        pixels = _decode_all(select_images(source, "train", info.class_names), count, steps)
        model, candidates = precision.to_int8(model, normalize_pixels(pixels, steps), provider)
        chosen = next(candidate for candidate in candidates if candidate.chosen)
        choice, error = precision.describe_int8(chosen.form, chosen.method, len(pixels) // 2), chosen.measured
    metadata = ModelMetadata.of(
        info,
        checkpoint.sha256,
        resolved.record.name if resolved.record else None,  # that of its folder may be a link's
        input=config.input,
        output="probabilities" if config.softmax else "logits",
        precision=config.precision,
        precision_choice=choice,
        quantization_error=error,
        calibration=calibration,
        made_by=graph.tool_versions(),
    )
    if config.input == "raw":
        graph.prepend_preprocessing(model, metadata.preprocessing)
    if config.softmax:
        graph.append_softmax(model)
    return model, metadata, candidates


def _decode_all(images: ValidationImages, count: int, steps: Preprocessing) -> np.ndarray:
    return np.concatenate([pixels for pixels, _ in images.stratified(count).batches(steps.crop)])


def _embed_report(file: Path, metadata: ModelMetadata, report: ProofReport, provider: str) -> None:
    """Append the numbers of the report to the file's metadata, and check that its outputs are still the same.

    Raises:
        UserError: They are not.
    """
    classifier = Classifier.from_session(metadata, runtime.create_session(file, provider))
    pixels = random_pixels(2, classifier.crop)
    before = classifier.run(pixels)
    validation = metadata.model_copy(update={"validation": report.summary()}).properties()["validation"]
    write_atomically(file, file.read_bytes() + graph.serialize_metadata({"validation": validation}))
    _, extended = untrusted.scan(file)
    after = Classifier.from_session(extended, runtime.create_session(file, provider)).run(pixels)
    if not np.array_equal(before, after) or extended.validation is None:
        raise UserError("The outputs changed when the proof was written into the file.", "", WORK_FAILED)


def _publish(
    unverified: Path, final: Path, report: ProofReport, resolved: ResolvedCheckpoint, config: ExportConfig
) -> tuple[Path, Path, int]:
    """Copy the file to its final name, or to that of a rejected one, and write the record of the checks beside it.

    Of several exports into one folder each does so alone, so that what lies there is of one.

    Returns:
        The file, the record, and the size of the file with external weights.

    Raises:
        UserError: The run of the checkpoint is gone, or replaced: the folder is another's.
    """
    file = final if report.validated else final.with_name(final.name + ".rejected")
    weights, content = unverified.with_name(graph.external_data_name(unverified)), unverified.read_bytes()
    final_weights = final.with_name(weights.name)
    proof_file = file.with_name(file.name + ".json")
    record = {
        "onnx": file.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "checkpoint": str(resolved.checkpoint.path),
        "checkpoint_sha256": resolved.checkpoint.sha256,
        "opset": config.opset,
        "precision": config.precision,
        "input": config.input,
        "validated": report.validated,
        **report.model_dump(),
        "versions": versions(),
    }
    resolved.check_run()  # before its folder is locked, which may be gone
    with exclusive(final.parent):
        resolved.check_run()
        if report.validated and files.is_file(final_weights):
            files.remove(final)  # first: an interruption must not leave it with the weights of another
            files.remove(final_weights)
        if report.validated and weights.exists():  # those of a rejected file would replace those of a verified one
            write_atomically(final_weights, weights.read_bytes())
        write_atomically(file, content)
        write_atomically(proof_file, json.dumps(record, indent=2).encode() + b"\n")
    return file, proof_file, len(content) + (weights.stat().st_size if weights.exists() else 0)
