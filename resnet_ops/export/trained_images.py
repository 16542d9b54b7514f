"""The images that a network was trained on: whether they are at hand, divided as they were, and seen among others."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from resnet_ops import files
from resnet_ops.config import DATA_SETS, DataConfig
from resnet_ops.data.copies import resolved_names
from resnet_ops.data.dataset import DiscoveredData, EncodedImages, Split
from resnet_ops.data.discovery import discover
from resnet_ops.data.opening import make_source, open_source
from resnet_ops.data.sources import Source
from resnet_ops.errors import UserError
from resnet_ops.export.metadata import ModelMetadata
from resnet_ops.run_records import BeganFrom, HeldOutRecord, PretrainedRecord, lineage_of
from resnet_ops.runs import Run, in_folder
from resnet_ops.training.checkpoint import CheckpointInfo

NOT_DIVIDED = (
    "has the images that the network was trained on, and which of them were held out is not known: it may have been "
    "trained on any, so that an accuracy on these tells nothing of others."
)


def training_config(run: Run | None, data: str) -> DataConfig | None:
    """Return the options of the dataset of a training, by its run or its name; None where it is not known which."""
    if run is not None:
        return run.read_as_written().config
    return DataConfig(data=data) if data in DATA_SETS else None


def open_usable(config: DataConfig, discovered: DiscoveredData | None = None) -> Source | None:
    """Return a dataset, if it is there, or `discovered` already, and training could use it."""
    try:
        return make_source(config, discovered or discover(config))
    except UserError:
        return None


def open_intact(config: DataConfig, fingerprint: str) -> Source | None:
    """Return a dataset, if it is there, training could use it, and it has this fingerprint."""
    source = open_usable(config)
    return source if source and source.record.fingerprint == fingerprint else None


Trained = CheckpointInfo | ModelMetadata | PretrainedRecord  # what says what a training held out


def divided_as_trained(source: Source, run: Run | None, trained: Trained) -> Source | None:
    """Return the dataset of a training with the validation and test images that it held out; None if not known which.

    Older versions did not record them: then it counts how many there were.
    """
    if source.held_out_images is None:
        # Of test images alone that are held out it is not recorded which, and other weights may have had them all.
        return None if isinstance(trained, PretrainedRecord) and source.held_out else source
    if trained.held_out is not None:
        # With all of the others trained on, it is the same which of them would be for validation.
        is_all = trained.fitted_on_all and trained.held_out.test_fraction == source.config.test_fraction
        return _divided_as(source, trained.held_out) or (source if is_all else None)
    if trained.fitted_on_all:
        return source
    if run is not None:
        data = run.read_as_written().data
        # Broken ones of them are not counted in a run.
        alike = 0 <= source.record.val_images - data.val_images <= data.bad_images
    elif isinstance(trained, CheckpointInfo):
        alike = [images for _, images in trained.val_classes] == source.count_classes("val").tolist()
    else:
        recorded = (trained.validation if isinstance(trained, ModelMetadata) else None) or {}
        alike = recorded.get("images_total", recorded.get("images")) == source.record.val_images
    return source if alike else None


def _divided_as(source: Source, recorded: HeldOutRecord) -> Source | None:
    """Return a dataset with the same validation images held out as a record says; None where it has others.

    They depend on an option, and on whether there are test images, which are not in the fingerprint.
    """
    if source.held_out_images in (None, recorded):
        return source
    try:
        other = open_source(source.config.model_copy(update={"test_fraction": recorded.test_fraction}))
    except UserError:  # it has test images now
        return None
    return other if other.held_out_images == recorded else None


@dataclass(frozen=True)
class TrainedImages:
    """The images of a training.

    Args:
        source: Their dataset.
        is_divided: Whether it holds out the images that the training did.
        fitted_on_all: Whether the validation images were trained on, too.
    """

    source: Source
    is_divided: bool
    fitted_on_all: bool

    @classmethod
    def of(cls, source: Source, run: Run | None, trained: Trained) -> "TrainedImages":
        """Return those of an intact dataset, divided as the training had it, if that is known."""
        divided = divided_as_trained(source, run, trained)
        return cls(divided or source, divided is not None, trained.fitted_on_all)

    def count_among(self, images: EncodedImages, digests: Callable[[], np.ndarray]) -> "SeenCounts | None":
        """Count which of other images are among these; None where some are, and it is not known what for.

        They are compared by their bytes, or, where these are too many to read, by their paths.

        Args:
            images: The other images.
            digests: Returns their SHA-256, (N,) of 32 bytes.
        """
        splits: list[Split] = ["train", "val", *(() if self.is_divided else self.source.held_out)]
        own = {split: self.source.digests_of_candidates(split, images.sizes) for split in splits}
        known = {split: each for split, each in own.items() if each is not None}
        by_content = len(known) == len(own)
        if not by_content:
            known = {split: resolved_names(self.source.encoded(split)) for split in splits}
        others = digests() if by_content else resolved_names(images)
        is_in = {split: np.isin(others, each) for split, each in known.items()}
        if not self.is_divided and any(each.any() for each in is_in.values()):
            return None
        if self.fitted_on_all:
            return SeenCounts(int((is_in["train"] | is_in["val"]).sum()), 0, by_content)
        return SeenCounts(int(is_in["train"].sum()), int(is_in["val"].sum()), by_content)


def images_of_ancestors(
    began_from: BeganFrom, sources: Iterable[Source | None], run: Run | None
) -> Iterator[tuple[PretrainedRecord, TrainedImages | None]]:
    """Yield each of the weights that a training began from, with its images; None where these are not at hand.

    Of weights from elsewhere, whose images nothing tells, there are none.

    Args:
        began_from: What the training began from.
        sources: Datasets whose images these may be.
        run: The run of the training, beside which those of its ancestors lie.
    """
    for before in lineage_of(began_from):
        if (fingerprint := before.data_fingerprint) is None:
            continue
        same = [each for each in sources if each is not None and each.record.fingerprint == fingerprint]
        if not same and run is not None and (source := _images_of_another_run(run, before)):
            same = [source]
        for source in same:
            yield before, TrainedImages.of(source, None, before)
        if not same:
            yield before, None


def _images_of_another_run(run: Run, before: PretrainedRecord) -> Source | None:
    """Return the images that weights were trained on, where their own run, or another one beside `run`, has them."""
    path, fingerprint = files.to_path(before.origin.removeprefix("run ")), before.data_fingerprint
    search = Run(run.path.parent.parent)  # of which it would be a trial
    folders = [run.path.parent, *([search.path.parent] if files.is_file(search.search_file) else [])]
    named = [each for each in (Run(path), Run(path.absolute().parent.parent)) if files.is_file(each.record_file)]
    for other in (*named, *(each for folder in folders for each in in_folder(folder))):
        with contextlib.suppress(UserError):
            record = other.read_as_written()
            if record.data.fingerprint == fingerprint:
                config = record.config.model_copy(update={"fit_all": before.fitted_on_all})
                if (source := open_intact(config, fingerprint)) is not None:
                    return source
    return None


def began_from(trained: CheckpointInfo | ModelMetadata, run: Run | None) -> BeganFrom:
    """Return what a training began from, as its checkpoint says, or the run of one of an earlier version."""
    if trained.began_from is None and run is not None:
        start = run.read_as_written().start
        return start.pretrained if start else ""
    return trained.began_from


@dataclass(frozen=True)
class SeenCounts:
    """The number of images that were trained on, and of those that chose the epoch, as they were for validation.

    They were compared by their bytes, `by_content`, or else by their paths.
    """

    trained_on: int
    chose_epoch: int
    by_content: bool
