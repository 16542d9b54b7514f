"""What is exported or proven: the weights, where the file goes, and the images to prove it on."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resnet_ops import files, runs
from resnet_ops.config import DATA_SETS, DataConfig
from resnet_ops.data.dataset import EncodedImages, Split
from resnet_ops.data.decode import CropSpec, DecodeError, decode, read_header
from resnet_ops.data.parallel_decode import decode_rows
from resnet_ops.data.sources import Source, open_source
from resnet_ops.errors import UserError, did_you_mean
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


@dataclass(frozen=True)
class ValidationImages:
    """Images of one split in their order, or some of them, and the classes that a network has for them.

    Args:
        encoded: All images of the split.
        rows: Which of them, (N,).
        labels: The network's class of each, (N,) int64.
    """

    encoded: EncodedImages
    rows: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, frame: CropSpec) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Pixels (n, H, W, C) uint8 and labels (n,), without the images that cannot be decoded."""
        for places, pixels in decode_rows(self.encoded, self.rows, frame):
            yield pixels, self.labels[places]

    def first(self, count: int, frame: CropSpec) -> np.ndarray:
        """The first `count` images that can be decoded, over and over if there are fewer: (count, H, W, C) uint8."""
        some = ValidationImages(self.encoded, self.rows[: 2 * count], self.labels[: 2 * count])
        for pixels, _ in some.batches(frame):
            return np.asarray(pixels[np.arange(count) % len(pixels)])
        raise UserError("No image can be decoded.", "Choose others: --data.")

    def of_own_size(self, count: int, channels: int) -> list[np.ndarray]:
        """Up to `count` images as they are stored, each (H, W, C) uint8 of its own size."""
        found = []
        for image in self.encoded.read([int(row) for row in self.rows[: 2 * count]]):
            try:
                seen = read_header(image)
                found.append(decode(image, CropSpec((seen.height, seen.width), seen.height, seen.width, channels)))
            except DecodeError:
                continue
        return found[:count]


def noise(images: int, frame: CropSpec) -> np.ndarray:
    """Random pixels (images, H, W, C) uint8, the same each time."""
    return np.random.default_rng(0).integers(0, 256, (images, *frame.shape), np.uint8)


def open_validation_images(
    source: Source, split: Split, class_names: Sequence[str], limit: int | None = None, seed: int = 0
) -> ValidationImages:
    """Choose images of a data set for a network that knows `class_names`.

    Args:
        source: The data set.
        split: Of it.
        class_names: The network's; those of the images are found among them by name.
        limit: At most so many: of "val" evenly spread, of "train" drawn with `seed`.
        seed: As it says.

    Raises:
        UserError: There is a class that the network does not know.
    """
    encoded = source.encoded(split)
    known = {name: index for index, name in enumerate(class_names)}
    names = source.record.class_names
    for name in (names[label] for label in np.unique(encoded.labels)):
        if name not in known:
            raise UserError(
                f"The images in {source.config.data} have a class {name!r} that the network does not have.",
                f"{did_you_mean(name, class_names)} Classes of the network: {', '.join(class_names)[:200]}.",
            )
    table = np.array([known.get(name, -1) for name in names], np.int64)
    rows = np.arange(len(encoded.labels))
    if limit is not None and limit < len(rows):
        if split == "train":
            rows = np.sort(np.random.default_rng(seed).permutation(rows)[:limit])
        else:
            rows = np.unique(np.linspace(0, len(rows) - 1, limit).round().astype(int))
    return ValidationImages(encoded, rows, table[encoded.labels[rows]])
