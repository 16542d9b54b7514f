"""The inputs of an export or a verification: which checkpoint, and which images.

Weights that were trained elsewhere are read in `imported_weights`.
"""

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from resnet_ops import files, runs
from resnet_ops.config import IMAGENET_WEIGHTS, DataConfig
from resnet_ops.data.dataset import EncodedImages, Split, Subset
from resnet_ops.data.decode import CropSpec, DecodeError, decode_whole
from resnet_ops.data.discovery import absolute_paths, find_missing
from resnet_ops.data.opening import open_source
from resnet_ops.data.parallel_decode import decode_rows, hash_all
from resnet_ops.data.sources import Source
from resnet_ops.errors import WORK_FAILED, PausedError, UserError, did_you_mean, did_you_mean_path
from resnet_ops.export import imported_weights
from resnet_ops.export.class_matching import match_labels
from resnet_ops.export.config import ExportConfig, ProofConfig
from resnet_ops.export.metadata import ModelMetadata
from resnet_ops.export.trained_images import (
    NOT_DIVIDED,
    TrainedImages,
    began_from,
    divided_as_trained,
    images_of_ancestors,
    open_intact,
    training_config,
)
from resnet_ops.files import to_path
from resnet_ops.formatting import first_names
from resnet_ops.run_records import RunRecord
from resnet_ops.runs import Run
from resnet_ops.training import checkpoint as checkpoints
from resnet_ops.training.checkpoint import Checkpoint, CheckpointInfo
from resnet_ops.weights.locate import LocatedWeights, locate

Warn = Callable[[str], None]
PROOF_BATCH = 256  # of validation images; in the same batches, outputs of the reference are computed once


@dataclass(frozen=True)
class ResolvedCheckpoint:
    """A checkpoint that was found and read.

    Args:
        checkpoint: Its content.
        reread: Reads it from the disk again.
        folder: The default folder of its exports.
        run: The run that it belongs to.
        record: What run.json said before the checkpoint was read.
    """

    checkpoint: Checkpoint
    reread: Callable[[], Checkpoint]
    folder: Path
    run: Run | None = None
    record: RunRecord | None = None

    @property
    def run_names(self) -> frozenset[str]:
        """Return the names of its run: that of its folder, and the one that it was trained under."""
        return frozenset({self.run.name, self.record.name} if self.run and self.record else ())

    def read_again(self) -> Checkpoint:
        """Read it from the disk again, for a comparison that nothing in memory can have changed.

        Raises:
            UserError: There are other weights in its place by now.
        """
        again = self.reread()
        if again.sha256 != self.checkpoint.sha256:
            is_training = self.run is not None and self.run.is_locked()
            raise UserError(
                f"{self.checkpoint.path} has other weights than when the export began"
                f"{': its run is being trained' if is_training else ''}.",
                f"Export again{', or once the training has ended' if is_training else ''}.",
                WORK_FAILED,
            )
        return again

    def check_run(self) -> None:
        """Check that the folder of its run is still that of this run.

        Raises:
            UserError: It is gone, or another run has taken its name and its place.
        """
        if self.run and self.record and self.run.read_as_written().created != self.record.created:
            raise UserError(
                f"Run {self.run.name} was replaced by another one while it was exported.", "Export again.", WORK_FAILED
            )


def resolve_checkpoint(config: ExportConfig, warn: Warn) -> ResolvedCheckpoint:
    """Read the weights to export: of a run or a checkpoint file, or those trained elsewhere.

    Raises:
        UserError: There is no such run or file, or no intact checkpoint in it.
    """
    path = to_path(config.run).expanduser()
    files.check_reachable(path)
    located = _locate_weights(config, path, warn)
    if located is not None:
        read = imported_weights.read(located, config, warn)
        folder = located.path.absolute().parent if located.path == path else Path.cwd()
        return ResolvedCheckpoint(read, lambda: imported_weights.read(located, config), folder)
    for option in ("classes", "image_size", "resize", "mean", "std", "weights_key"):
        if getattr(config, option) is not None:
            raise UserError(
                f"--{option.replace('_', '-')} applies only to weights trained elsewhere.", f"{config.run} is a run."
            )
    return resolve_run(config.run, config.runs_dir, warn)


def _locate_weights(config: ExportConfig, path: Path, warn: Warn) -> LocatedWeights | None:
    """Return weights that were trained elsewhere; None where `config.run` is a run or a checkpoint of ours."""
    if config.model is not None:
        located = locate(config.run, config.model, warn)
        if located is None:
            raise UserError(
                f"File {path} does not exist.", f"{did_you_mean_path(path)} With --model, give a weights file."
            )
        return located
    if config.run == IMAGENET_WEIGHTS:
        raise UserError(f"torchvision has {IMAGENET_WEIGHTS} weights of several networks.", "Add --model resnet50.")
    located = locate(config.run, "", warn)
    return None if located is None or checkpoints.is_checkpoint(located.path) else located


def resolve_run(name: str, runs_dir: Path, warn: Warn) -> ResolvedCheckpoint:
    """Read the best checkpoint of a run, given by its name or folder, or one checkpoint file.

    Raises:
        UserError: There is no such run or file, or no intact checkpoint in it.
    """
    path = to_path(name).expanduser()
    if files.is_file(path):
        owner = Run(path.absolute().parent.parent)
        record = owner.read_as_written() if files.is_file(owner.record_file) else None
        checkpoint = checkpoints.read(path)
        _ = checkpoint.info.validated  # only such weights are exported
        if record is None:
            return ResolvedCheckpoint(checkpoint, lambda: checkpoints.read(path), path.absolute().parent)
        return _of_run(checkpoint, owner, record)
    run = runs.find_or_open(runs_dir, name, [IMAGENET_WEIGHTS])
    record = run.read_as_written()
    checkpoint, refused = checkpoints.read_best(run)
    for reason in refused:
        warn(f"Skipping a checkpoint: {reason}")
    if refused:
        warn(f"Using {checkpoint.path.name}, the best intact checkpoint (epoch {checkpoint.info.epoch}).")
    return _of_run(checkpoint, run, record)


def _of_run(checkpoint: Checkpoint, run: Run, record: RunRecord) -> ResolvedCheckpoint:
    """Return a checkpoint of a run, with what earlier versions did not write: that it is fitted on all images."""

    def completed(read: Checkpoint) -> Checkpoint:
        if read.info.fitted_on_all or not record.config.fit_all:
            return read
        metrics = read.info.metrics and read.info.metrics.without_validation()
        return replace(read, info=read.info.model_copy(update={"fitted_on_all": True, "metrics": metrics}))

    return ResolvedCheckpoint(
        completed(checkpoint), lambda: completed(checkpoints.read(checkpoint.path)), run.export, run, record
    )


def find_exported_checkpoint(file: Path, sha256: str, or_best: bool = False) -> ResolvedCheckpoint | None:
    """Return the checkpoint that a file anywhere in a run's folder was exported from, if it still exists.

    Args:
        file: The file.
        sha256: The checkpoint's checksum, as the file has it.
        or_best: If none has that checksum, return the best one: a file must not choose to have none.

    Raises:
        UserError: The best one is asked for, and none is intact, though there are some; or they cannot be read now.
    """
    # A link into a run, and one in it to elsewhere: without .., as it is written, and where it leads.
    around = (*Path(os.path.abspath(file)).parents, *file.resolve().parents)  # noqa: PTH100 - links stay
    run = next((run for run in map(Run, around) if files.is_file(run.record_file) and not _is_exported(run)), None)
    if run is None:
        return None
    paths = (checkpoints.best_file(run), *checkpoints.saved_checkpoints(run))
    for path in paths:
        try:
            checkpoint = checkpoints.read(path)
            _ = checkpoint.info.validated  # only such weights are exported
        except PausedError:
            raise
        except UserError:
            continue
        if checkpoint.sha256 == sha256:
            return _of_run(checkpoint, run, run.read_as_written())
    if or_best and any(files.is_file(path) for path in paths):
        return _of_run(checkpoints.read_best(run)[0], run, run.read_as_written())
    return None


def _is_exported(run: Run) -> bool:
    """Return whether a run lies among the exported files of another one, where it would choose its own checkpoint."""
    return any(
        folder == Run(folder.parent).export and files.is_file(Run(folder.parent).record_file)
        for folder in (run.path, *run.path.parents)
    )


def open_validation_data(
    config: ProofConfig, run: Run | None, trained: CheckpointInfo | ModelMetadata, warn: Warn
) -> tuple[Source | None, bool]:
    """Open the dataset to validate on.

    Args:
        config: The options of the verification.
        run: The run that the checkpoint belongs to.
        trained: The checkpoint's description, or without one what the file says.
        warn: Called where images are at hand, but not which of them training has seen.

    Returns:
        The dataset, None if it is not known which, or it is not on this machine; and whether it is the one of the
        training, by its checkpoint.

    Raises:
        UserError: The images of the training have changed, or those that are asked for may be training images.
    """
    has_checkpoint, trained_on = isinstance(trained, CheckpointInfo), training_config(run, trained.data)
    if config.data is not None:
        chosen = (trained_on or DataConfig()).model_copy(update={"data": config.data, "val_data": None})
        chosen = chosen.model_copy(update=absolute_paths(chosen))
    elif trained_on is not None:
        if find_missing(trained_on):  # trained on a cluster, exported on a laptop
            return None, False
        chosen = trained_on
    else:
        return None, False
    source = open_source(chosen)
    if source.record.fingerprint != trained.data_fingerprint:
        if config.data is None and run is not None:
            raise UserError(
                f"The images in {chosen.data} differ from those the network was trained on.",
                "Restore them, or choose images to validate on: --data.",
            )
        # Without a run, there is but a name: a folder called digits has that of other images.
        return source if config.data is not None else None, False
    if (divided := divided_as_trained(source, run, trained)) is not None:
        if run is not None and (warning := run.read_as_written().data.copies_warning):
            warn(f"{warning}.")
        return divided, has_checkpoint
    cause = f"{source.config.data} {NOT_DIVIDED}"
    if config.data is not None or run is not None or not has_checkpoint:
        raise UserError(cause, "Choose images that it was not: --data.")
    warn(cause)
    return None, False


@dataclass(frozen=True)
class ValidationImages:
    """Images of one split, or a selection in their order, with the labels of a network's classes.

    Args:
        encoded: All images of the split.
        rows: The selected ones, (N,).
        labels: The network's label of each selected image, (N,) int64.
        fingerprint: The fingerprint of the dataset; '' if it has none.
    """

    encoded: EncodedImages
    rows: np.ndarray
    labels: np.ndarray
    fingerprint: str = ""

    def __len__(self) -> int:
        return len(self.rows)

    def stratified(self, count: int) -> "ValidationImages":
        """Draw `count` of the images, the same each time, in their order: of each label its share, to within one."""
        if count >= len(self):
            return self
        shuffled = np.random.default_rng(0).permutation(len(self))
        by_label = shuffled[np.argsort(self.labels[shuffled], kind="stable")]
        chosen = np.sort(by_label[((np.arange(count) + 0.5) * len(self) / count).astype(int)])
        return replace(self, rows=self.rows[chosen], labels=self.labels[chosen])

    def batches(self, crop: CropSpec, most: int | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield pixels (n, H, W, C) uint8 and labels (n,), at most so many, without those that cannot be decoded."""
        for places, pixels in decode_rows(self.encoded, self.rows, crop):
            size = most or max(1, len(pixels))
            for start in range(0, len(pixels), size):
                yield pixels[start : start + size], self.labels[places[start : start + size]]

    def sample(self, count: int, crop: CropSpec) -> np.ndarray:
        """Decode `count` images of all labels, repeated if there are fewer: (count, H, W, C) uint8.

        Raises:
            UserError: None can be decoded.
        """
        # Twice as many, as some may be damaged. Datasets are sorted by label.
        parts = [pixels for pixels, _ in self.stratified(2 * count).batches(crop)]
        if not parts:
            raise UserError("No image can be decoded.", "Choose others: --data.")
        pixels = np.concatenate(parts)
        places = np.arange(count) * max(len(pixels), count) // count
        return np.asarray(pixels[places % len(pixels)])

    def stored(self, count: int) -> list[bytes | OSError]:
        """Read up to `count` of the images as they are stored, evenly spaced among them."""
        chosen = np.linspace(0, len(self) - 1, min(count, len(self))).astype(int)
        return list(self.encoded.read([int(row) for row in self.rows[chosen]]))

    def at_original_size(self, count: int, crop: CropSpec) -> list[np.ndarray]:
        """Decode up to `count` images as `crop` says but without resizing, each (H, W, C) uint8."""
        images = []
        for encoded in self.stored(count):
            with contextlib.suppress(DecodeError):
                images.append(decode_whole(encoded, crop.channels, crop.bit_depth))
        return images


def random_pixels(images: int, crop: CropSpec) -> np.ndarray:
    """Return random pixels (images, H, W, C) uint8, the same each time."""
    return np.random.default_rng(0).integers(0, 256, (images, *crop.shape), np.uint8)


def select_validation_images(
    source: Source, class_names: Sequence[str], precision: str, is_training_data: bool, warn: Warn
) -> ValidationImages:
    """Select the images to measure a file on.

    Where the network was trained on other images, these are all of a dataset without validation images of its own; but
    for int8, which may be calibrated on some of them.

    Raises:
        UserError: See `select_images`.
    """
    has_own = is_training_data or "val" not in source.held_out
    is_all = not has_own and precision != "int8"
    encoded = source.splits["train"] if is_all else source.encoded("val")
    images, note = _with_labels(source, encoded, class_names)
    if note:
        warn(note)
    if not has_own and not is_all:
        total = f"{len(source.splits['train'].labels):,} images in {source.config.data}"
        warn(f"Measured on {len(images):,} of the {total}: int8 is calibrated on others.")
    return images


def warn_of_trained_images(
    images: ValidationImages,
    source: Source,
    run: Run | None,
    trained: CheckpointInfo | ModelMetadata,
    warn: Warn,
) -> None:
    """Warn where a network, or one that it began from, was trained on some of these images, or may have been.

    Of the network itself only where the images of its training are at hand; see `TrainedImages.count_among`.
    """
    name = run.name if run else "The network"
    config = training_config(run, trained.data)
    own = open_intact(config, trained.data_fingerprint) if config else None
    trainings: list[tuple[str, TrainedImages | None]] = [(name, TrainedImages.of(own, run, trained))] if own else []
    for before, trained_images in images_of_ancestors(began_from(trained, run), (own, source), run):
        known = "which" if trained_images else "whose images are not at hand, and which"
        trainings.append((f"{name} began from {before.origin}, {known}", trained_images))
    chosen = Subset(images.encoded, images.rows, images.labels)
    for which, trained_images in sorted(trainings, key=lambda each: each[1] is None):  # what is known comes first
        counts = trained_images.count_among(chosen, lambda: hash_all(chosen)) if trained_images else None
        if counts is None:
            some = "may have been trained on some of the images"
        elif counts.trained_on:
            some = f"was trained on {counts.trained_on:,} of the {len(images):,} images"
        else:
            continue
        warn(f"{which} {some}: an accuracy on these tells nothing of others.")
        return


def select_images(source: Source, split: Split, class_names: Sequence[str]) -> ValidationImages:
    """Select the images of a split, and map their labels to a network's classes; see `match_labels`.

    Raises:
        UserError: An image has a class that the network does not have, or several classes of which have its name, or it
            is not known which it has.
    """
    return _with_labels(source, source.encoded(split), class_names)[0]


def _with_labels(source: Source, encoded: EncodedImages, class_names: Sequence[str]) -> tuple[ValidationImages, str]:
    """Return images with the network's labels, and a note on how their classes were matched."""
    counts, names, used = Counter(class_names), source.record.class_names, np.unique(encoded.labels)
    labels, note = match_labels(source.config.data, names, used, class_names, are_named=not source.record.numbered)
    for label in used:
        name = names[label]
        if counts[name] > 1:  # as 'crane' in ImageNet, a bird and a machine
            raise UserError(
                f"The network has {counts[name]} classes called {name!r}: it is not known which one the images in "
                f"{source.config.data} show.",
                "Name its classes apart: --classes.",
            )
        if labels[label] < 0:
            raise UserError(
                f"The images in {source.config.data} have a class {name!r} that the network does not have.",
                f"{did_you_mean(name, class_names)} Classes of the network: {first_names(class_names)}.",
            )
    rows = np.arange(len(encoded.labels))
    return ValidationImages(encoded, rows, labels[encoded.labels], source.record.fingerprint), note
