"""The labeled images to evaluate on: their labels as the network numbers them, and what its training has seen of them.

How images are stored, split and decoded is in `resnet_ops.data`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from resnet_ops.config import DATA_SETS, DataConfig
from resnet_ops.data.dataset import SPLIT_NAMES, EncodedImages, Split, digest, image_count
from resnet_ops.data.discovery import absolute_paths, discover_labeled, find_missing
from resnet_ops.data.parallel_decode import hash_all
from resnet_ops.data.sources import Source, make_source, open_source
from resnet_ops.errors import UserError, did_you_mean
from resnet_ops.evaluation.config import EvaluateConfig
from resnet_ops.evaluation.evaluated_network import EvaluatedNetwork
from resnet_ops.export.inputs import NOT_DIVIDED, divided_as_trained
from resnet_ops.formatting import first_names

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
        is_own: Whether it is the dataset that the network was trained on.
        encoded: All images of the split.
        rows: Those with a class of the network, (N,) int64.
        labels: The network's label of each of those, (N,) int64.
        left_out: How many images have each class that the network does not have.
        trained_on: The dataset of the training, if it can still be opened.
        notes: What the user should know.
        is_divided_alike: Whether these are the split's images as the training had it.
    """

    name: str
    path: str
    split: Split | None
    is_own: bool
    encoded: HashedImages
    rows: np.ndarray
    labels: np.ndarray
    left_out: dict[str, int]
    trained_on: Source | None
    notes: tuple[str, ...]
    is_divided_alike: bool = True

    def __len__(self) -> int:
        return len(self.rows)


def open_images(config: EvaluateConfig, network: EvaluatedNetwork) -> LabeledSplit:
    """Open the images to evaluate on.

    Raises:
        UserError: It is not known which, they are missing or have changed, there is no such split, or none of them has
            a class of the network.
    """
    trained_on = _training_config(network)
    if config.data is None:
        if trained_on is None:
            raise UserError(f"It is not known which images {network.name} was trained on.", "Choose some: --data.")
        columns = {name: getattr(config, name) for name in ("image_column", "label_column", "data_root")}
        chosen = trained_on.model_copy(update={name: value for name, value in columns.items() if value is not None})
        if missing := find_missing(chosen):
            raise UserError(
                f"The images that {network.name} was trained on are not in {missing}.",
                "Give their folder, or other images: --data FOLDER",
            )
        source = open_source(chosen)
        if source.record.fingerprint != network.data_fingerprint:
            raise UserError(
                f"The images in {chosen.data} differ from those {network.name} was trained on.",
                "Restore them, or choose others: --data.",
            )
        return _own_split(config, network, source)
    asked = DataConfig(
        data=config.data,
        image_column=config.image_column,
        label_column=config.label_column,
        data_root=config.data_root,
    )
    asked = asked.model_copy(update=absolute_paths(asked))
    own = _intact(trained_on, network) if trained_on else None
    if own is None and trained_on:  # which may have moved
        own = _intact(trained_on.model_copy(update={"data": asked.data}), network)
    if own is not None and own.config.data == asked.data:
        return _own_split(config, network, own)
    discovered = discover_labeled(asked)
    if own is None:
        own = _as_training_data(asked, network)
        if own is not None:
            return _own_split(config, network, own)
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
        discovered.name, config.data, split, False, HashedImages(part.encoded), *_no_rows(), {}, own, notes
    )
    return _with_labels(labeled, names, bool(part.class_names), network)


def _no_rows() -> tuple[np.ndarray, np.ndarray]:
    return np.empty(0, np.int64), np.empty(0, np.int64)


def _training_config(network: EvaluatedNetwork) -> DataConfig | None:
    if network.run is not None:
        return network.run.read_as_written().config
    return DataConfig(data=network.data) if network.data in DATA_SETS else None


def _intact(config: DataConfig, network: EvaluatedNetwork) -> Source | None:
    """Return the dataset of the training, if it is still there and the same."""
    try:
        source = open_source(config)
    except UserError:
        return None
    return source if source.record.fingerprint == network.data_fingerprint else None


def _as_training_data(asked: DataConfig, network: EvaluatedNetwork) -> Source | None:
    """Return images that were asked for as the dataset of the training, if they are that, by their fingerprint."""
    try:
        source = make_source(asked, discover_labeled(asked))
    except UserError:  # training could not use them
        return None
    return source if source.record.fingerprint == network.data_fingerprint else None


def _own_split(config: EvaluateConfig, network: EvaluatedNetwork, source: Source) -> LabeledSplit:
    divided = divided_as_trained(source, network.run, network.described)
    source = divided or source
    has_test = source.record.test_images > 0
    split: Split = config.split or ("test" if has_test else "val")
    if split == "test" and not has_test:
        raise UserError(f"{source.config.data} has no test images.", "Choose --split val, or other images: --data.")
    if config.split is None and split == "val" and network.fitted_on_all:
        raise UserError(
            f"{network.name} is fitted on all images of {source.config.data}, so that there are none to measure it on.",
            "Choose others: --data.",
        )
    # Test images of the data's own are in neither of the others, however these are divided.
    is_known = divided is not None or (split == "test" and "test" not in source.held_out)
    labeled = LabeledSplit(
        source.record.name,
        source.config.data,
        split,
        True,
        HashedImages(source.encoded(split)),
        *_no_rows(),
        {},
        source,
        () if is_known else (f"{source.config.data} {NOT_DIVIDED}",),
        is_known,
    )
    return _with_labels(labeled, source.record.class_names, not source.record.numbered, network)


def _with_labels(split: LabeledSplit, names: Sequence[str], are_named: bool, network: EvaluatedNetwork) -> LabeledSplit:
    """Map labels to the network's classes by name; by order where one side has numbers instead of as many names.

    Raises:
        UserError: No image has a class of the network.
    """
    known = {name: label for label, name in enumerate(network.class_names)}
    notes = list(split.notes)
    network_labels = np.array([known.get(name, -1) for name in names], np.int64)
    numbers = tuple(map(str, range(len(known))))
    by_order = not are_named or network.class_names == numbers
    if by_order and len(names) == len(known) and tuple(names) != network.class_names and (network_labels < 0).all():
        network_labels = np.arange(len(names))
        notes.append(
            f"Classes are matched by their order, as {split.name if not are_named else network.name} has numbers for "
            f"names: {names[0]} is {network.class_names[0]}."
        )
    own = split.encoded.labels
    is_label = (own >= 0) & (own < len(names))
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
        if network.kind == "weights" and network.class_names == numbers:
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
            it began with none.
        is_confirmed: Whether a checkpoint says so, not an exported file alone.
    """

    images: int
    trained_on: int | None
    chose_epoch: int | None
    origin: str = ""
    is_confirmed: bool = True

    @property
    def text(self) -> str:
        """Return it as a clause."""
        if self.trained_on is None or self.chose_epoch is None:
            return "it is not known whether the network was trained on these images"
        return self._known if self.is_confirmed else f"by the metadata of the file alone, {self._known}"

    @property
    def _known(self) -> str:
        if self.trained_on == self.images:
            return "the network was trained on these images"
        if self.chose_epoch == self.images:
            return "these images chose the epoch"
        if not self.trained_on and not self.chose_epoch:
            since = f" since it began from {self.origin}" if self.origin else ""
            return f"nothing was trained or chosen on these images{since}"
        parts = {"are training images of the network": self.trained_on or 0, "chose the epoch": self.chose_epoch or 0}
        return " and ".join(f"{count:,} of these images {verb}" for verb, count in parts.items() if count)


def count_seen(images: LabeledSplit, network: EvaluatedNetwork, rows: np.ndarray) -> SeenImages:
    """Count which of some images of the split, once they are read, training has seen.

    Images are compared by their content, or by their names where the fingerprint of the training's dataset is made of
    these, too.
    """
    total, is_confirmed = len(rows), network.is_confirmed
    if not images.is_divided_alike:
        return SeenImages(total, None, None)
    if images.is_own and images.split in ("train", "val"):
        trained_on = total if images.split == "train" or network.fitted_on_all else 0
        return SeenImages(total, trained_on, total - trained_on, is_confirmed=is_confirmed)
    source = images.trained_on
    if source is None:
        return SeenImages(total, None, None)
    by_content = source.record.fingerprint_of == "content"
    if by_content:
        own = np.array([images.encoded.digests[int(row)] for row in rows], "S32")
    else:
        own = np.array([images.encoded.name(int(row)) for row in rows])

    def among(split: Split) -> int:
        encoded = source.encoded(split)
        seen = hash_all(encoded) if by_content else np.array([encoded.name(n) for n in range(len(encoded.labels))])
        return int(np.isin(own, seen).sum())

    start = network.run.read_as_written().start if network.run else None
    chose_epoch = 0 if network.fitted_on_all else among("val")
    return SeenImages(total, among("train"), chose_epoch, start.origin if start else "", is_confirmed)
