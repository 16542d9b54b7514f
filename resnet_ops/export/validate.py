"""The whole of `resnet-ops validate`: verification of an existing file, of whatever origin.

The checks are in `proof`; `job` is the export, which runs the same checks.
"""

import time
from collections.abc import Callable
from pathlib import Path

from resnet_ops.errors import UserError
from resnet_ops.export import inputs, runtime, snapshot
from resnet_ops.export.calibration import scale_head
from resnet_ops.export.config import ValidateConfig
from resnet_ops.export.exported_files import with_exported_file
from resnet_ops.export.inputs import Warn
from resnet_ops.export.metadata_checks import Origin, calibration_fingerprint
from resnet_ops.export.other_runtimes import OPENCV, OTHER_RUNTIMES
from resnet_ops.export.proof import ProofThresholds, verify_file
from resnet_ops.export.proof_report import ValidationResult
from resnet_ops.export.reference import Reference
from resnet_ops.export.snapshot import Snapshot


def validate_onnx(
    config: ValidateConfig | Path | str,
    warn: Warn = lambda _: None,
    started_at: float | None = None,
    on_check: Callable[[str], object] = lambda _: None,
) -> ValidationResult:
    """Verify an exported file against its checkpoint and on validation images.

    The checkpoint is the one given, or of the run that the file is in the one with the checksum of the file's metadata.
    If none has it, it is the run's best one, which the file is not of; only `black_box` excuses it from that.

    Args:
        config: The options, or the path of the file.
        warn: Called with warnings for the user.
        started_at: When the user asked, in seconds since 1970; by default now.
        on_check: Called with the name of each check before it runs.

    Raises:
        UserError: The file cannot be used, or changes meanwhile; or it is not known which images to validate on.
    """
    started_at = started_at or time.time()
    config = config if isinstance(config, ValidateConfig) else ValidateConfig(file=Path(config))
    config = with_exported_file(config)
    file = config.file.expanduser()
    with snapshot.take(file, config.provider) as taken:
        result = _validate(config, taken, warn, started_at, on_check)
        taken.check_unchanged()
    return result


def _validate(
    config: ValidateConfig, taken: Snapshot, warn: Warn, started_at: float, on_check: Callable[[str], object]
) -> ValidationResult:
    """Verify the copy of a file."""
    file, metadata = taken.original, taken.metadata
    provider = _resolve(config, metadata.precision)
    if provider == OPENCV and metadata.precision == "int8":
        raise UserError("OpenCV does not run int8 files.", "Export with --precision fp32 for it.")
    resolved = (
        inputs.resolve_run(config.checkpoint, config.runs_dir, warn)
        if config.checkpoint is not None
        else inputs.find_exported_checkpoint(file, metadata.checkpoint_sha256, or_best=not config.black_box)
    )
    checkpoint = scale_head(resolved.checkpoint, metadata.calibration) if resolved else None
    source, is_training_data = inputs.open_validation_data(
        config, resolved.run if resolved else None, checkpoint.info if checkpoint else metadata, warn
    )
    if source is None and resolved is None:
        raise UserError(
            f"The images that {file} was trained on are not known here.", "Choose images to validate on: --data."
        )
    if source is None and metadata.precision == "int8" and not config.black_box:
        raise UserError(
            "Ranges and errors of an int8 file are measured on images like those of its training, of which none are "
            "known here.",
            "Choose some: --data.",
        )
    if source is None:
        warn(
            "Accuracy is not measured, as no validation images are known here: the file is verified on random pixels; "
            "add --data."
        )
    if checkpoint is not None and config.checkpoint is None and checkpoint.sha256 != metadata.checkpoint_sha256:
        warn(f"No checkpoint of its run has the checksum in its metadata: compared with {checkpoint.path.name}.")
    if checkpoint is None:
        warn("Its checkpoint was not found: compared with its metadata only, not with torch.")
    fingerprint = source.record.fingerprint if source else None
    same_images = fingerprint == metadata.data_fingerprint
    seen = same_images and metadata.fitted_on_all
    by_name = config.data in (None, metadata.data)
    thresholds = ProofThresholds(
        provider,
        tolerance=config.tolerance,
        max_accuracy_drop=config.max_accuracy_drop / 100,
        training_accuracy=(
            checkpoint.info.validated.val_accuracy if checkpoint and is_training_data and same_images else None
        ),
        origin=Origin(resolved.run_names if resolved else frozenset(), fingerprint if by_name else None),
        images=config.images,
        seen=seen,
        recorded=True,
        black_box=config.black_box,
    )
    images = None
    if source is not None:
        images = inputs.select_validation_images(source, metadata.class_names, metadata.precision, same_images, warn)
        if resolved and not is_training_data:
            inputs.warn_of_trained_images(images, source, resolved.run, resolved.checkpoint.info, warn)
    reference = Reference(checkpoint) if checkpoint else None
    report = verify_file(taken.file, reference, images, thresholds, on_check=on_check)
    return ValidationResult(
        **dict(report),
        onnx=config.file.absolute(),
        precision=metadata.precision,
        input=metadata.input,
        checkpoint=checkpoint.path if checkpoint else None,
        total_s=time.time() - started_at,
        fitted_temperature=metadata.calibration is not None
        and report.images_fingerprint == calibration_fingerprint(metadata),
        metadata=metadata,
    )


def _resolve(config: ValidateConfig, precision: str) -> str:
    """Return ONNX Runtime's name of the execution provider, or the name of another runtime that is installed."""
    if config.runtime == "onnxruntime":
        return runtime.resolve_provider(config.provider, precision)
    other = next(one for one in OTHER_RUNTIMES.values() if one.extra == config.runtime)
    other.installed()
    return other.name
