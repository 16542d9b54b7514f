"""Proves a file that is there already, wherever it came from."""

import time
from dataclasses import dataclass

from resnet_ops.errors import UserError
from resnet_ops.export import finding, opening, runtime
from resnet_ops.export.config import ValidateConfig
from resnet_ops.export.finding import Notice
from resnet_ops.export.inside import Inside
from resnet_ops.export.proof import Demands, Proof, prove
from resnet_ops.export.reference import Reference
from resnet_ops.export.shown import show
from resnet_ops.training.checkpoint import Checkpoint


@dataclass(frozen=True)
class ValidateResult:
    """What a proof found; without a `checkpoint` the file was put against its own word alone."""

    proof: Proof
    inside: Inside
    checkpoint: Checkpoint | None
    total_s: float


def validate_onnx(
    config: ValidateConfig, notice: Notice = lambda _: None, started_at: float | None = None
) -> ValidateResult:
    """Try to refute a file.

    Its checkpoint is the one that was named, or that of its checksum in the run that the file lies in.

    Args:
        config: What to validate.
        notice: Told what the user should know.
        started_at: When the user asked, in seconds since 1970; by default now.

    Raises:
        UserError: The file cannot be used at all, or there is nothing to put it against.
    """
    started_at = started_at or time.time()
    provider = runtime.choose_provider(config.provider)
    file = config.file.expanduser()
    inside = opening.open_file(file)
    subject = (
        finding.of_run(config.checkpoint, config.runs_dir, notice)
        if config.checkpoint is not None
        else finding.beside(file, inside.checkpoint_sha256)
    )
    checkpoint = subject.checkpoint if subject else None
    source, is_own = finding.images(
        config, subject.run if subject else None, checkpoint.info if checkpoint else None, inside.data
    )
    if source is None:
        raise UserError(f"{file} has no data set in its metadata.", "Choose images to validate on: --data.")
    if checkpoint is None:
        notice("Its checkpoint was not found: compared with its metadata only, not with torch.")
    same_images = source.record.fingerprint == inside.data_fingerprint and config.images is None
    said = (inside.validation or {}).get("val_accuracy_onnx")
    demands = Demands(
        provider,
        tolerance=config.tolerance,
        max_accuracy_drop=config.max_accuracy_drop / 100,
        recorded_accuracy=checkpoint.info.validated.val_accuracy if checkpoint and is_own and same_images else None,
        said_accuracy=said if isinstance(said, float) and same_images else None,
    )
    shown = show(source, "val", inside.class_names, config.images)
    proof = prove(file, Reference(checkpoint) if checkpoint else None, shown, demands)
    return ValidateResult(proof, inside, checkpoint, time.time() - started_at)
