"""Proves a file that is there already, wherever it came from."""

import time
from pathlib import Path

from resnet_ops.errors import UserError
from resnet_ops.export import inputs, runtime, untrusted
from resnet_ops.export.config import ValidateConfig
from resnet_ops.export.inputs import Warn, open_validation_images
from resnet_ops.export.proof import ProofThresholds, ValidationResult, prove
from resnet_ops.export.reference import Reference


def validate_onnx(
    config: ValidateConfig | Path | str, warn: Warn = lambda _: None, started_at: float | None = None
) -> ValidationResult:
    """Try to refute a file.

    Its checkpoint is the one that was named, or that of its checksum in the run that the file lies in.

    Args:
        config: What to validate; of a path, the file there.
        warn: Told what the user should know.
        started_at: When the user asked, in seconds since 1970; by default now.

    Raises:
        UserError: The file cannot be used at all, or there is nothing to put it against.
    """
    started_at = started_at or time.time()
    config = config if isinstance(config, ValidateConfig) else ValidateConfig(file=Path(config))
    provider = runtime.choose_provider(config.provider)
    file = config.file.expanduser()
    metadata = untrusted.open_file(file)
    subject = (
        inputs.of_run(config.checkpoint, config.runs_dir, warn)
        if config.checkpoint is not None
        else inputs.run_of(file, metadata.checkpoint_sha256)
    )
    checkpoint = subject.checkpoint if subject else None
    source, is_own = inputs.images(
        config, subject.run if subject else None, checkpoint.info if checkpoint else None, metadata.data
    )
    if source is None:
        raise UserError(f"{file} has no data set in its metadata.", "Choose images to validate on: --data.")
    if checkpoint is None:
        warn("Its checkpoint was not found: compared with its metadata only, not with torch.")
    same_images = source.record.fingerprint == metadata.data_fingerprint and config.images is None
    said = (metadata.validation or {}).get("val_accuracy_onnx")
    demands = ProofThresholds(
        provider,
        tolerance=config.tolerance,
        max_accuracy_drop=config.max_accuracy_drop / 100,
        recorded_accuracy=checkpoint.info.validated.val_accuracy if checkpoint and is_own and same_images else None,
        said_accuracy=said if isinstance(said, float) and same_images else None,
    )
    shown = open_validation_images(source, "val", metadata.class_names, config.images)
    proof = prove(file, Reference(checkpoint) if checkpoint else None, shown, demands)
    return ValidationResult(
        **dict(proof),
        onnx=config.file.absolute(),
        precision=metadata.precision,
        input=metadata.input,
        checkpoint=checkpoint.path if checkpoint else None,
        total_s=time.time() - started_at,
        metadata=metadata,
    )
