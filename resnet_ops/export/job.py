"""Runs an export: finds the weights, makes the file, and gives it its name once it is proven."""

import hashlib
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from pydantic import Field

from resnet_ops import files
from resnet_ops.data.sources import Source
from resnet_ops.errors import WORK_FAILED, UserError
from resnet_ops.export import graph, inputs, precision, runtime, untrusted
from resnet_ops.export.classifier import Classifier, normalised
from resnet_ops.export.config import ExportConfig
from resnet_ops.export.inputs import Subject, ValidationImages, Warn, noise, open_validation_images
from resnet_ops.export.metadata import ModelMetadata, Preprocessing
from resnet_ops.export.precision import QuantizationCandidate
from resnet_ops.export.proof import Proof, ProofThresholds, ValidationResult, prove
from resnet_ops.export.reference import Reference
from resnet_ops.files import Place, write_atomically
from resnet_ops.machine import versions
from resnet_ops.options import as_typed
from resnet_ops.training.checkpoint import Checkpoint


class ExportResult(ValidationResult):
    """An export and its proof; where a check failed, `onnx` has the name of a rejected file."""

    opset: int = Field(description="ONNX operator set.")
    checkpoint: Place = Field(description="The checkpoint that it was made of, and compared with.")
    epoch: int = Field(description="Epoch of the checkpoint.")
    size_bytes: int = Field(description="Size of the file, external weights included.")
    proof: Place = Field(description="JSON file with the proof.")
    candidates: tuple[QuantizationCandidate, ...] = Field(description="The int8 quantizations that were tried.")
    kept_in_fp32: str = Field(description="What fp16 left in fp32, in words.")


def export_onnx(
    config: ExportConfig | Path | str, warn: Warn = lambda _: None, started_at: float | None = None
) -> ExportResult:
    """Export a run's best checkpoint to `export/model.onnx`, unless the proof refutes it.

    A refuted file is left as `model.onnx.rejected`, beside its proof, and never as `model.onnx`.

    Args:
        config: What to export; of a name or a path, the run there.
        warn: Told what the user should know, e.g. that a damaged checkpoint was passed over.
        started_at: When the user asked, in seconds since 1970; by default now.

    Raises:
        UserError: There is no such run or no whole checkpoint, its images are gone or changed,
            or the provider asked for cannot be used here.
    """
    started_at = started_at or time.time()
    config = config if isinstance(config, ExportConfig) else ExportConfig(run=as_typed(config))
    provider = runtime.choose_provider(config.provider)
    if config.out is not None and not config.out.absolute().parent.is_dir():
        raise UserError(f"Folder {config.out.absolute().parent} does not exist.", "Create it first.")
    subject = inputs.find_checkpoint(config, warn)
    info = subject.checkpoint.info
    source, is_own = inputs.images(config, subject.run, info, info.data)
    if source is None:
        if config.precision == "int8":
            raise UserError("int8 quantization needs images like the training images for calibration.", "Add --data.")
        warn("Accuracy is not measured, as no validation images are known; add --data.")
    shown = open_validation_images(source, "val", info.class_names, config.images) if source else None
    final = config.out or subject.folder / graph.file_name(config.precision, config.input)
    files.make_folder(final.parent, exist_ok=True)
    model, metadata, kept, candidates = _make(config, subject, source, provider)
    with tempfile.TemporaryDirectory(prefix="resnet-ops-") as folder:  # ONNX Runtime reads disks only
        unproven = Path(folder) / final.name
        graph.describe(model, metadata)
        graph.write(model, unproven)
        demands = ProofThresholds(
            provider,
            config.opset,
            config.tolerance,
            config.max_accuracy_drop / 100,
            info.validated.val_accuracy if is_own and config.images is None else None,
        )
        proof = prove(unproven, Reference(subject.reread()), shown, demands)
        if proof.validated:
            _add_proof(unproven, metadata, proof, provider)
        file, proof_file, size = _publish(unproven, final, proof, subject.checkpoint, config)
    return ExportResult(
        **dict(proof),
        onnx=file,
        precision=metadata.precision,
        input=metadata.input,
        checkpoint=subject.checkpoint.path,
        total_s=time.time() - started_at,
        metadata=metadata,
        opset=config.opset,
        epoch=info.epoch,
        size_bytes=size,
        proof=proof_file,
        candidates=tuple(candidates),
        kept_in_fp32=kept,
    )


def _make(
    config: ExportConfig, subject: Subject, source: Source | None, provider: str
) -> tuple[onnx.ModelProto, ModelMetadata, str, list[QuantizationCandidate]]:
    """The graph, what it says of itself, what fp16 kept in fp32, and what was tried for int8."""
    checkpoint = subject.checkpoint
    info = checkpoint.info
    model = graph.to_onnx(info, checkpoint.model, config.opset)
    steps = Preprocessing.of(info, "normalized")
    kept, candidates, choice = "", list[QuantizationCandidate](), None
    if config.precision == "fp16":
        some = open_validation_images(source, "train", info.class_names, precision.BATCH) if source else None
        pixels = _pixels(some, steps) if some else noise(precision.BATCH, steps.frame)
        model, kept = precision.to_fp16(model, normalised(pixels, steps))
        choice = kept
    elif config.precision == "int8":
        assert source is not None
        images = precision.CALIBRATION_IMAGES + precision.CHOICE_IMAGES
        pixels = _pixels(open_validation_images(source, "train", info.class_names, images), steps)
        model, candidates = precision.to_int8(model, normalised(pixels, steps), provider)
        chosen = next(candidate for candidate in candidates if candidate.chosen)
        choice = f"{chosen.form}, {chosen.method}, per channel, {len(pixels) // 2} training images"
    if config.input == "raw":
        steps = Preprocessing.of(info, "raw")
        graph.take_raw_pixels(model, steps)
    if config.softmax:
        graph.give_probabilities(model)
    return model, _inside(config, subject, steps, choice), kept, candidates


def _pixels(shown: ValidationImages, steps: Preprocessing) -> np.ndarray:
    return np.concatenate([pixels for pixels, _ in shown.batches(steps.frame)])


def _inside(config: ExportConfig, subject: Subject, steps: Preprocessing, choice: str | None) -> ModelMetadata:
    info = subject.checkpoint.info
    return ModelMetadata(
        class_names=info.class_names,
        preprocessing=steps,
        input=config.input,
        output="probabilities" if config.softmax else "logits",
        precision=config.precision,
        precision_choice=choice,
        model=info.model,
        shortcut=info.shortcut,
        data=info.data,
        data_fingerprint=info.data_fingerprint,
        run=subject.run.name if subject.run else None,
        epoch=info.epoch,
        val_accuracy=info.metrics.val_accuracy if info.metrics else None,
        checkpoint_sha256=subject.checkpoint.sha256,
        made_by=graph.made_by(),
    )


def _add_proof(file: Path, metadata: ModelMetadata, proof: Proof, provider: str) -> None:
    """Put into the file what its proof found, behind all that was proven, and see that it still answers the same.

    Raises:
        UserError: It does not.
    """
    classifier = Classifier.of(metadata, runtime.load(file, provider))
    pixels = noise(2, classifier.frame)
    before = classifier.run(pixels)
    said = metadata.model_copy(update={"validation": proof.summary()}).written()["validation"]
    write_atomically(file, file.read_bytes() + graph.added({"validation": said}))
    _, told = untrusted.scan(file)
    after = Classifier.of(told, runtime.load(file, provider)).run(pixels)
    if not np.array_equal(before, after) or told.validation is None:
        raise UserError("The outputs changed when the proof was written into the file.", "", WORK_FAILED)


def _publish(
    unproven: Path, final: Path, proof: Proof, checkpoint: Checkpoint, config: ExportConfig
) -> tuple[Path, Path, int]:
    """Give the file its name, or that of a rejected one, and write the record of its proof beside it."""
    file = final if proof.validated else final.with_name(final.name + ".rejected")
    weights = unproven.with_name(graph.data_name(unproven))
    if weights.exists() and proof.validated:  # those of a rejected file would take the place of a good one's
        write_atomically(final.with_name(weights.name), weights.read_bytes())
    content = unproven.read_bytes()
    write_atomically(file, content)
    proof_file = file.with_name(file.name + ".json")
    record = {
        "onnx": file.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "checkpoint": str(checkpoint.path),
        "checkpoint_sha256": checkpoint.sha256,
        "opset": config.opset,
        "precision": config.precision,
        "input": config.input,
        "validated": proof.validated,
        **proof.model_dump(),
        "versions": versions(),
    }
    write_atomically(proof_file, json.dumps(record, indent=2).encode() + b"\n")
    return file, proof_file, len(content) + (weights.stat().st_size if weights.exists() else 0)
