"""What is exported or proven: the weights, where the file goes, and the images to prove it on."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from resnet_ops import files, runs
from resnet_ops.config import DATA_SETS, DataConfig
from resnet_ops.data.sources import Source, open_source
from resnet_ops.errors import UserError
from resnet_ops.export import weights
from resnet_ops.export.config import ExportConfig, ProofConfig
from resnet_ops.files import to_path
from resnet_ops.runs import Run
from resnet_ops.training import checkpoint as checkpoints
from resnet_ops.training.checkpoint import Checkpoint, CheckpointInfo, PickledFileError

Warn = Callable[[str], None]


@dataclass(frozen=True)
class Subject:
    """Weights to export, as they were read; `reread` reads them from the disk once more.

    `run` is the run that they are of, `folder` where a file of them belongs.
    """

    checkpoint: Checkpoint
    reread: Callable[[], Checkpoint]
    run: Run | None
    folder: Path


def find_checkpoint(config: ExportConfig, warn: Warn) -> Subject:
    """Find and read what `config.run` names.

    Raises:
        UserError: There is no such run or file, or no whole checkpoint in it.
    """
    path = to_path(config.run).expanduser()
    files.check_reachable(path)
    if config.model is not None:
        if not files.is_file(path):
            raise UserError(f"File {path} does not exist.", "With --model, give a weights file.")
        return Subject(weights.read(path, config), lambda: weights.read(path, config), None, path.absolute().parent)
    for option in ("classes", "image_size", "mean", "std"):
        if getattr(config, option) is not None:
            raise UserError(f"--{option.replace('_', '-')} applies only to weights trained elsewhere.", "Add --model.")
    return of_run(config.run, config.runs_dir, warn)


def of_run(name: str, runs_dir: Path, warn: Warn) -> Subject:
    """The best weights of a run, by its name or its folder, or those of one checkpoint file.

    Raises:
        UserError: There is no such run or file, or no whole checkpoint in it.
    """
    path = to_path(name).expanduser()
    if files.is_file(path):
        owner = Run(path.absolute().parent.parent)
        try:
            checkpoint = checkpoints.read(path)
        except PickledFileError as error:
            raise error.copy_with(remedy=f"{error.remedy} For weights trained elsewhere, add --model.") from None
        _ = checkpoint.info.validated  # only such weights are exported
        is_run = files.is_file(owner.record_file)
        folder = owner.export if is_run else path.absolute().parent
        return Subject(checkpoint, lambda: checkpoints.read(path), owner if is_run else None, folder)
    run = Run(path) if files.is_file(path / "run.json") else runs.find(runs_dir, name)
    run.read()
    checkpoint, refused = checkpoints.read_best(run)
    for reason in refused:
        warn(f"Skipping a checkpoint: {reason}")
    if refused:
        warn(f"Using {checkpoint.path.name}, the best intact checkpoint (epoch {checkpoint.info.epoch}).")
    return Subject(checkpoint, lambda: checkpoints.read(checkpoint.path), run, run.export)


def run_of(file: Path, sha256: str) -> Subject | None:
    """The checkpoint that a file in a run's folder was made of, if it is still there."""
    run = Run(file.absolute().parent.parent)
    if not files.is_file(run.record_file):
        return None
    for path in (checkpoints.best_file(run), *checkpoints.saved_checkpoints(run)):
        try:
            checkpoint = checkpoints.read(path)
        except UserError:
            continue
        if checkpoint.sha256 == sha256:
            return Subject(checkpoint, lambda path=path: checkpoints.read(path), run, run.export)  # type: ignore[misc]
    return None


def images(config: ProofConfig, run: Run | None, info: CheckpointInfo | None, data: str) -> tuple[Source | None, bool]:
    """The data set to validate on, and whether it is that of the training.

    Args:
        config: What was asked for.
        run: The run that the weights are of.
        info: What is known of the weights.
        data: The name of the data set that they were trained on.

    Returns:
        None where nothing tells which images there could be.

    Raises:
        UserError: There are none where they were, or they have changed.
    """
    trained = run.read().config if run else DataConfig(data=data) if data in DATA_SETS else None
    if config.data is not None:
        wanted = (trained or DataConfig()).model_copy(update={"data": config.data, "val_data": None})
    elif trained is not None:
        wanted = trained
    else:
        return None, False
    source = open_source(wanted)
    is_own = info is not None and source.record.fingerprint == info.data_fingerprint
    if not is_own and config.data is None and info is not None:
        raise UserError(
            f"The images in {wanted.data} differ from those the network was trained on.",
            "Restore them, or choose images to validate on: --data.",
        )
    return source, is_own
