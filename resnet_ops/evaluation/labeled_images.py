"""The labeled images to evaluate on: their labels as the network numbers them, and what its training has seen of them.

How images are stored, split and decoded is in `resnet_ops.data`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from resnet_ops.config import DataConfig
from resnet_ops.data.class_labels import are_numbers
from resnet_ops.data.dataset import (
    SPLIT_NAMES,
    EncodedImages,
    Split,
    Subset,
    digest,
    image_count,
)
from resnet_ops.data.discovery import absolute_paths, discover_labeled, find_missing
from resnet_ops.data.opening import open_source
from resnet_ops.data.sources import Source
from resnet_ops.errors import UserError, did_you_mean
from resnet_ops.evaluation.config import EvaluateConfig
from resnet_ops.evaluation.evaluated_network import EvaluatedNetwork
from resnet_ops.export.class_matching import match_labels
from resnet_ops.export.trained_images import (
    NOT_DIVIDED,
    SeenCounts,
    TrainedImages,
    began_from,
    images_of_ancestors,
    open_intact,
    open_usable,
    training_config,
)
from resnet_ops.formatting import first_names
from resnet_ops.run_records import lineage_of

COLUMNS = ("image_column", "label_column")
NAMED = 5  # classes that a note names


@dataclass(frozen=True)
class HashedImages:
    """Encoded images that are hashed as they are read; `digests` has the SHA-256 of each that was."""

    images: EncodedImages
    digests: dict[int, bytes] = field(default_factory=dict)

    @property
    def labels(self) -> np.ndarray:
        """See `EncodedImages.labels`."""
        return self.images.labels

    @property
    def row_groups(self) -> np.ndarray | None:
        """See `EncodedImages.row_groups`."""
        return self.images.row_groups

    @property
    def sizes(self) -> np.ndarray | None:
        """See `EncodedImages.sizes`."""
        return self.images.sizes

    def read(self, rows: Sequence[int]) -> list[bytes | OSError]:
        """See `EncodedImages.read`."""
        encoded = self.images.read(rows)
        self.digests.update((int(row), digest(image)) for row, image in zip(rows, encoded, strict=True))
        return encoded

    def name(self, row: int) -> str:
        """See `EncodedImages.name`."""
        return self.images.name(row)


@dataclass(frozen=True)
class LabeledSplit:
    """Images with the network's labels.

    Args:
        name: Of their dataset.
        path: What was opened, as it was typed.
        split: Which part of it; None for all of it.
        is_own: Whether it is the dataset that the network was trained on, with the same columns.
        encoded: All images of the split.
        rows: Those with a class of the network, (N,) int64.
        labels: The network's label of each of those, (N,) int64.
        left_out: How many images have each class that the network does not have.
        trained_images: Those of the network, if they are at hand.
        notes: What the user should know.
        source: The dataset, where the network was trained on another, and its pretrained weights on this, or its
            temperature was fitted on it.
    """

    name: str
    path: str
    split: Split | None
    is_own: bool
    encoded: HashedImages
    rows: np.ndarray
    labels: np.ndarray
    left_out: dict[str, int]
    trained_images: TrainedImages | None
    notes: tuple[str, ...]
    source: Source | None = None

    def __len__(self) -> int:
        return len(self.rows)


def open_images(config: EvaluateConfig, network: EvaluatedNetwork) -> LabeledSplit:
    """Open the images to evaluate on.

    Raises:
        UserError: It is not known which, they are missing or have changed, there is no such split, or none of them has
            a class of the network.
    """
    trained_on = training_config(network.run, network.described.data)
    columns = {name: value for name in (*COLUMNS, "data_root") if (value := getattr(config, name)) is not None}
    if config.data is None:
        unknown = UserError(f"It is not known which images {network.name} was trained on.", "Choose some: --data.")
        if trained_on is None:
            raise unknown
        chosen = trained_on.model_copy(update=columns)
        if missing := find_missing(chosen):
            raise UserError(
                f"The images that {network.name} was trained on are not in {missing}.",
                "Give their folder, or other images: --data FOLDER",
            )
        source = open_source(chosen)
        if source.record.fingerprint != network.described.data_fingerprint:
            if network.run is None:  # a folder called digits has the name of other images
                raise unknown
            raise UserError(
                f"The images in {chosen.data} differ from those {network.name} was trained on.",
                "Restore them, or choose others: --data.",
            )
        return _own_split(config, network, source, trained_on)
    asked = DataConfig(data=config.data, **columns)
    asked = asked.model_copy(update=absolute_paths(asked))
    # By its fingerprint, as it may have moved, or have several names.
    same = trained_on and trained_on.model_copy(update={"data": asked.data, **columns})
    if same and (own := open_intact(same, network.described.data_fingerprint)):
        return _own_split(config, network, own, trained_on)
    discovered = discover_labeled(asked)
    usable = open_usable(asked, discovered)
    if usable and usable.record.fingerprint == network.described.data_fingerprint:
        return _own_split(config, network, usable, trained_on)
    original = open_intact(trained_on, network.described.data_fingerprint) if trained_on else None
    trained_images = TrainedImages.of(original, network.run, network.described) if original else None
    lineage = lineage_of(began_from(network.described, network.run))
    others = {network.fitted_on, *(each.data_fingerprint for each in lineage)}
    known = usable if usable and usable.record.fingerprint in others else None
    parts = discovered.by_split
    has_splits = len(parts) > 1
    split: Split | None = config.split or next((name for name in ("test", "val") if name in parts), None)
    if split is not None and split not in parts:
        raise UserError(
            f"--data {config.data} has no {SPLIT_NAMES[split]} images.",
            f"It has {' and '.join(SPLIT_NAMES[each] for each in parts)} images: --split {next(iter(parts))}."
            if has_splits
            else "Without --split, all of its images are evaluated.",
        )
    part = parts[split or "train"]
    notes = (*discovered.notes, *(problem.cause for problem in part.problems))
    names = part.class_names or tuple(map(str, range(int(part.encoded.labels.max(initial=-1)) + 1)))
    labeled = LabeledSplit(
        discovered.name,
        config.data,
        split,
        False,
        HashedImages(part.encoded),
        *_no_rows(),
        {},
        trained_images,
        notes,
        known,
    )
    return _with_labels(labeled, names, bool(part.class_names), network)


def _no_rows() -> tuple[np.ndarray, np.ndarray]:
    return np.empty(0, np.int64), np.empty(0, np.int64)


def _own_split(
    config: EvaluateConfig, network: EvaluatedNetwork, source: Source, trained_on: DataConfig | None
) -> LabeledSplit:
    columns = {name: getattr(trained_on or source.config, name) for name in COLUMNS}
    as_trained = source
    if any(getattr(source.config, name) != column for name, column in columns.items()):
        as_trained = open_source(source.config.model_copy(update=columns))
    is_own = _has_same_columns(source, as_trained)
    trained_images = TrainedImages.of(as_trained, network.run, network.described)
    if is_own:
        source = trained_images.source
    has_test = source.record.test_images > 0
    split: Split = config.split or ("test" if has_test else "val")
    if split == "test" and not has_test:
        raise UserError(f"{source.config.data} has no test images.", "Choose --split val, or other images: --data.")
    if config.split is None and split == "val" and network.described.fitted_on_all:
        raise UserError(
            f"{network.name} is fitted on all images of {source.config.data}, so that there are none to measure it on.",
            "Choose others: --data.",
        )
    # Test images of the data's own are in neither of the others, however these are divided.
    is_known = not is_own or trained_images.is_divided or (split == "test" and "test" not in source.held_out)
    labeled = LabeledSplit(
        source.record.name,
        source.config.data,
        split,
        is_own,
        HashedImages(source.encoded(split)),
        *_no_rows(),
        {},
        trained_images,
        () if is_known else (f"{source.config.data} {NOT_DIVIDED}",),
    )
    return _with_labels(labeled, source.record.class_names, not source.record.numbered, network)


def _has_same_columns(source: Source, other: Source) -> bool:
    """Return whether images and labels of the same files are from the same columns, a usual one typed or not."""
    if source.config.image_column != other.config.image_column:
        return False
    return all(np.array_equal(images.labels, other.splits[split].labels) for split, images in source.splits.items())


def _with_labels(split: LabeledSplit, names: Sequence[str], are_named: bool, network: EvaluatedNetwork) -> LabeledSplit:
    """Map labels to the network's classes; see `match_labels`.

    Raises:
        UserError: No image has a class of the network, or it is not known which.
    """
    own = split.encoded.labels
    is_label = (own >= 0) & (own < len(names))
    used, is_weights = np.unique(own[is_label]), network.kind == "weights"
    network_labels, note = match_labels(
        split.path, names, used, network.class_names, are_named=are_named, is_named_network=not is_weights
    )
    notes = [*split.notes, *([note] if note else [])]
    labels = np.where(is_label, network_labels[np.where(is_label, own, 0)], -1)
    rows = np.flatnonzero(labels >= 0)
    values, counts = np.unique(own[labels < 0], return_counts=True)
    left_out = {
        names[value] if 0 <= value < len(names) else f"label {value}": int(count)
        for value, count in zip(values, counts, strict=True)
    }
    if not len(rows):
        first = next(iter(left_out), "")
        known_names = f"Classes of the network: {first_names(network.class_names)}."
        if is_weights and are_numbers(network.class_names):
            known_names += " Name them with --classes FILE."
        raise UserError(
            f"No image of {split.path} has a class that {network.name} knows; its first class is {first!r}."
            if first
            else f"{split.path} contains no images.",
            f"{did_you_mean(first, network.class_names)} {known_names}",
        )
    if left_out:
        notes.append(
            f"Left out {image_count(sum(left_out.values()))} of classes that the network does not have: "
            f"{first_names(left_out, NAMED)}."
        )
    return replace(split, rows=rows, labels=labels[rows], left_out=left_out, notes=tuple(notes))


@dataclass(frozen=True)
class SeenImages:
    """The number of evaluated images that training has seen; None where its images are not known.

    Args:
        images: All evaluated images.
        trained_on: Those among the training images.
        chose_epoch: Those among the validation images, which the epoch was chosen on.
        origin: Where the pretrained weights are from that the training began with, which may have seen them; "" where
            it began with none, None where that is not known. Of those that are known to have, or may have, where they
            were trained on the same images: their own.
        origin_saw: Those that these were trained or chosen on, as far as is known; None where they may be on any.
        is_origin_at_hand: Whether the images of these weights are at hand, if it is known which these are.
        is_confirmed: Whether a checkpoint says so, not an exported file alone.
        by_content: Whether images were compared by their bytes, not by their paths.
        fitted_temperature: Those that the temperature of a file was fitted on, at most.
    """

    images: int
    trained_on: int | None = None
    chose_epoch: int | None = None
    origin: str | None = ""
    origin_saw: int | None = 0
    is_origin_at_hand: bool = True
    is_confirmed: bool = True
    by_content: bool = True
    fitted_temperature: int = 0

    @property
    def text(self) -> str:
        """Return it in a clause or two."""
        which = "these images" if self.fitted_temperature >= self.images else "some of these images"
        return self._of_training + (f"; its temperature was fitted on {which}" if self.fitted_temperature else "")

    @property
    def _of_training(self) -> str:
        if self.trained_on is None or self.chose_epoch is None:
            return "it is not known whether the network was trained on these images"
        weak = {"the metadata of the file": self.is_confirmed, "the paths of images": self.by_content}
        by = " and ".join(name for name, is_strong in weak.items() if not is_strong)
        return f"by {by} alone, {self._known}" if by else self._known

    @property
    def is_unseen(self) -> bool:
        """Return whether nothing was trained, chosen or fitted on any of them, nor what the network began from."""
        return self._is_unseen_since and self.origin_saw == 0 and not self.fitted_temperature

    @property
    def _is_unseen_since(self) -> bool:
        return self.trained_on == self.chose_epoch == 0

    @property
    def _known(self) -> str:
        if self.trained_on == self.images:
            return "the network was trained on these images"
        which = "which may have been trained on them" + (
            "" if self.is_origin_at_hand else ": its images are not at hand"
        )
        if self.origin_saw is not None:
            which = f"which was trained or chosen on {self.origin_saw:,} of them" if self.origin_saw else ""
        if self._is_unseen_since:
            since = f" since it began from {self.origin}" if self.origin else ""
            since = ", as far as is known" if self.origin is None else since
            return f"nothing was trained or chosen on these images{since}{', ' * bool(which)}{which}"
        before = f"; it began from {self.origin}, {which}" if which else ""
        if self.chose_epoch == self.images and not self.trained_on:
            return f"these images chose the epoch{before}"
        parts = {"are training images of the network": self.trained_on or 0, "chose the epoch": self.chose_epoch or 0}
        return " and ".join(f"{count:,} of these images {verb}" for verb, count in parts.items() if count) + before


def count_seen(images: LabeledSplit, network: EvaluatedNetwork, rows: np.ndarray) -> SeenImages:
    """Count which of some images of the split, once they are read, training has seen; see `TrainedImages`."""
    seen = _count_trained(images, network, rows)
    if network.calibration is None:
        return seen
    source = images.source
    is_fitted = source is not None and source.record.fingerprint == network.fitted_on
    if source is not None and is_fitted:  # on its validation images, or all where it has none
        is_fitted = images.split in (None, "val") or (images.split == "train" and "val" in source.held_out)
    most = len(rows) if is_fitted else 0
    if network.fitted_on == network.described.data_fingerprint:  # so on those that chose the epoch
        most = seen.chose_epoch or 0
    return replace(seen, fitted_temperature=min(most, network.calibration.images))


def _count_trained(images: LabeledSplit, network: EvaluatedNetwork, rows: np.ndarray) -> SeenImages:
    if images.trained_images is None:
        return SeenImages(len(rows))

    def count(trained_images: TrainedImages) -> SeenCounts | None:
        return trained_images.count_among(
            Subset(images.encoded, rows, images.encoded.labels[rows]),
            lambda: np.array([images.encoded.digests[int(row)] for row in rows], "S32"),
        )

    counts = count(images.trained_images)
    if counts is None:
        return SeenImages(len(rows))
    seen = SeenImages(
        len(rows),
        counts.trained_on,
        counts.chose_epoch,
        is_confirmed=network.is_confirmed,
        by_content=counts.by_content,
    )
    began, may_have_seen = began_from(network.described, network.run), None
    sources = (images.trained_images.source, images.source)
    for before, trained_images in images_of_ancestors(began, sources, network.run):
        own = count(trained_images) if trained_images else None
        if own is None:
            may_have_seen = may_have_seen or replace(
                seen, origin=before.origin, origin_saw=None, is_origin_at_hand=trained_images is not None
            )
            continue
        seen = replace(seen, by_content=seen.by_content and own.by_content)
        # Where all chose this epoch, it is no news that they chose that of another training, too.
        if saw := own.trained_on + (own.chose_epoch if counts.chose_epoch < len(rows) else 0):
            return replace(seen, origin=before.origin, origin_saw=saw)
    lineage = lineage_of(began)
    return may_have_seen or replace(seen, origin=None if began is None else lineage[0].origin if lineage else "")
