"""Runs an export: finds the best checkpoint, makes the file, and gives it its name once it is proven."""

import hashlib
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from resnet_ops import files, runs
from resnet_ops.config import DATA_SETS, DataConfig, ExportConfig
from resnet_ops.data.sources import Source, open_source
from resnet_ops.errors import UserError
from resnet_ops.export import graph, runtime
from resnet_ops.export.proof import Proof, prove
from resnet_ops.files import to_path, write_atomically
from resnet_ops.runs import Run
from resnet_ops.training import checkpoint as checkpoints
from resnet_ops.training.checkpoint import Checkpoint


@dataclass(frozen=True)
class ExportResult:
    """An export that was proven, or refuted: then `file` has the name of a rejected one."""

    file: Path
    proof_file: Path
    proof: Proof
    checkpoint: Checkpoint
    opset: int
    size_bytes: int
    total_s: float


def export_onnx(
    config: ExportConfig, notice: Callable[[str], None] = lambda _: None, started_at: float | None = None
) -> ExportResult:
    """Export a run's best checkpoint to `export/model.onnx`, unless the proof refutes it.

    A refuted file is left as `model.onnx.rejected`, beside its proof, and never as `model.onnx`.

    Args:
        config: What to export.
        notice: Told what the user should know, e.g. that a damaged checkpoint was passed over.
        started_at: When the user asked, in seconds since 1970; by default now.

    Raises:
        UserError: There is no such run or no whole checkpoint, its images are gone or changed,
            or the provider asked for cannot be used here.
    """
    started_at = started_at or time.time()
    run, checkpoint, folder = _find(config, notice)
    source, is_own = _find_images(config, run, checkpoint)
    provider = runtime.choose_provider(config.provider)
    files.make_folder(folder, exist_ok=True)
    final = graph.default_name(folder)
    content = graph.write(graph.to_onnx(checkpoint, config.opset))
    with tempfile.TemporaryDirectory(prefix="resnet-ops-") as unproven_folder:  # ONNX Runtime reads disks only
        unproven = Path(unproven_folder) / final.name
        write_atomically(unproven, content)
        proof = prove(
            unproven,
            checkpoint,
            source.load("val"),
            opset=config.opset,
            provider=provider,
            tolerance=config.tolerance,
            recorded_accuracy=checkpoint.info.validated.val_accuracy if is_own else None,
        )
    file = final if proof.validated else final.with_name(final.name + ".rejected")
    write_atomically(file, content)
    proof_file = file.with_name(file.name + ".json")
    record = {
        "onnx": file.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "checkpoint": str(checkpoint.path),
        "checkpoint_sha256": checkpoint.sha256,
        "opset": config.opset,
        "validated": proof.validated,
        **asdict(proof),
        "versions": runs.versions(),
    }
    write_atomically(proof_file, json.dumps(record, indent=2).encode() + b"\n")
    return ExportResult(file, proof_file, proof, checkpoint, config.opset, len(content), time.time() - started_at)


def _find(config: ExportConfig, notice: Callable[[str], None]) -> tuple[Run | None, Checkpoint, Path]:
    """The run (if it is one), the checkpoint to export, and the folder to export into."""
    path = to_path(config.run).expanduser()
    files.check_reachable(path)
    if files.is_file(path):
        owner = Run(path.absolute().parent.parent)
        checkpoint = checkpoints.read(path)
        _ = checkpoint.info.validated  # only such weights are exported
        is_run = files.is_file(owner.record_file)
        return (owner if is_run else None), checkpoint, owner.export if is_run else path.absolute().parent
    run = Run(path) if files.is_file(path / "run.json") else runs.find(config.runs_dir, config.run)
    run.read()
    checkpoint, refused = checkpoints.read_best(run)
    for reason in refused:
        notice(f"Passed over a checkpoint: {reason}")
    if refused:
        notice(f"Exporting {checkpoint.path.name}, the best that is whole (epoch {checkpoint.info.epoch}).")
    return run, checkpoint, run.export


def _find_images(config: ExportConfig, run: Run | None, checkpoint: Checkpoint) -> tuple[Source, bool]:
    """The images to validate on, and whether they are those of the training."""
    info = checkpoint.info
    trained = run.read().config if run else DataConfig(data=info.data) if info.data in DATA_SETS else None
    if config.data is not None:
        side = info.height if info.height == info.width else None
        wanted = (trained or DataConfig()).model_copy(
            update={"data": config.data, "val_data": None, "image_size": side}
        )
    elif trained is not None:
        wanted = trained
    else:
        raise UserError(f"{checkpoint.path} does not say where its images are.", "Name images to validate on: --data.")
    source, data = open_source(wanted), wanted.data
    is_own = source.record.fingerprint == info.data_fingerprint
    if not is_own and config.data is None:
        raise UserError(
            f"The images in {data} are not those that the network was trained on.",
            "Bring the old ones back, or name images to validate on: --data.",
        )
    record = source.record
    if (record.channels, record.height, record.width) != (info.channels, info.height, info.width):
        raise UserError(
            f"The network takes images of {info.width}x{info.height} with {info.channels} channels; those of {data} "
            f"are {record.width}x{record.height} with {record.channels}.",
            "Validate on images like those it was trained on.",
        )
    if record.class_names != info.class_names:
        raise UserError(
            f"The classes of {data} are not the network's.", f"The network's are: {', '.join(info.class_names)[:200]}."
        )
    return source, is_own
