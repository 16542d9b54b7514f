"""Open a dataset for training: check that training can use it, and describe it in a record.

Only labels and a few images are read, so that a wrong request fails at once; `Source.prepare` decodes what is not in
the cache. Which images a path holds is in discovery.py. Nothing here knows torch.
"""

from collections.abc import Sequence

import numpy as np

from resnet_ops.config import DataConfig
from resnet_ops.data.class_labels import (
    check_every_class_is_trained,
    check_label_range,
    class_names,
    match_classes,
    match_test_classes,
)
from resnet_ops.data.dataset import (
    DiscoveredData,
    EncodedImages,
    Split,
    fingerprint,
    held_out_test_counts,
    image_count,
    validation_counts,
)
from resnet_ops.data.discovery import discover
from resnet_ops.data.image_sizes import bit_depth_notes, find_bit_depth, network_size, read_headers
from resnet_ops.data.listing import File
from resnet_ops.data.sources import Source, val_fraction
from resnet_ops.errors import UserError
from resnet_ops.run_records import DataRecord


def open_source(data: str | DataConfig) -> Source:
    """Find a dataset and check it without decoding it.

    Args:
        data: The dataset; a string is `DataConfig.data`. Validation images are those of `val_data`, or the data's own
            (those of a folder or of files that `VAL_NAMES` name), or else a part of each class, chosen by a hash of the
            images' bytes: a fifth, or a tenth where the data has test images of its own.

    Raises:
        UserError: There is nothing, it is not readable, it is empty, it has one class only, a label is out of range,
            a validation image is of a class that training lacks, or no image of a few can be decoded.
    """
    config = DataConfig(data=data) if isinstance(data, str) else data
    return make_source(config, discover(config))


def make_source(config: DataConfig, data: DiscoveredData) -> Source:
    """Check that training can use a dataset and return its source.

    Raises:
        UserError: See `open_source`.
    """
    name, train = config.data, data.train
    if problems := [problem for part in data.parts for problem in part.problems]:
        raise problems[0]
    names, labels = class_names(data), train.encoded.labels
    splits: dict[Split, EncodedImages] = {"train": train.encoded}
    if data.val and len(data.val.encoded.labels):
        splits["val"] = match_classes(data.val, names, config.val_data or name)
    if not len(labels):
        raise UserError(
            f"--data {name} contains no training images.", "Choose a dataset that contains training images."
        )
    for encoded in splits.values():
        check_label_range(name, encoded.labels, names)
    if len(np.unique(labels)) < 2:
        raise UserError(
            f"--data {name} has training images of one class only ({names[labels[0]]}).",
            "Add images of another class.",
        )
    check_every_class_is_trained(train.encoded, splits.get("val", train.encoded), names)
    notes = list(data.notes)
    if data.test:
        test = match_test_classes(data.test, names, labels)
        if len(test.labels):
            splits["test"] = test
        if left_out := len(data.test.encoded.labels) - len(test.labels):
            notes.append(f"Left out {image_count(left_out)} of the test split, whose classes have no training images.")
    fraction = val_fraction(config, splits)
    held_out = int(validation_counts(labels, fraction).sum()) if fraction else 0
    val_images = len(splits["val"].labels) if "val" in splits else held_out
    held_out_test = 0
    if config.test_fraction:
        held_out_test = _count_held_out_test(config, labels, splits, fraction)
        share = f"{config.test_fraction:.0%} of each class, chosen by a hash of their bytes"
        notes.append(f"Held out {image_count(held_out_test)} as test images: {share}.")
    if not val_images:
        raise UserError(
            f"--data {name} is too small to hold out validation images.", "Provide at least 3 images of a class."
        )
    parts: dict[Split, Sequence[File]] = {"train": train.files, "val": data.val.files if data.val else ()}
    digest, kind = fingerprint(parts, names_matter=data.names_matter)
    headers = read_headers(train.encoded)
    height, width, channels, stored = network_size(headers, config.image_size, config.resize)
    record = DataRecord(
        name=data.name,
        fingerprint=digest,
        fingerprint_of=kind,
        class_names=names,
        numbered=not any(part.class_names for part in data.parts),
        train_images=len(labels) - held_out - held_out_test + (val_images if config.fit_all else 0),
        val_images=0 if config.fit_all else val_images,
        test_images=held_out_test or (len(splits["test"].labels) if "test" in splits else 0),
        channels=channels,
        height=height,
        width=width,
        stored=stored,
        bit_depth=find_bit_depth(train.encoded) if any(header.wide for header in headers) else None,
    )
    files = tuple(file for part in parts.values() for file in part)
    test_files = data.test.files if "test" in splits and data.test else ()
    return Source(record, config, splits, files, test_files, (*notes, *bit_depth_notes(record)), data.skipped)


def _count_held_out_test(
    config: DataConfig, labels: np.ndarray, splits: dict[Split, EncodedImages], fraction: float
) -> int:
    """Return how many test images are held out, but for copies.

    Raises:
        UserError: The data has test images of its own, or is too small to hold out one.
    """
    assert config.test_fraction is not None
    if "test" in splits:
        raise UserError(
            f"--data {config.data} has {image_count(len(splits['test'].labels))} in a test split of its own.",
            "Remove --test-fraction.",
        )
    count = int(held_out_test_counts(labels, config.test_fraction, fraction).sum())
    if not count:
        raise UserError(
            f"--data {config.data} is too small to hold out test images.", "Provide at least 3 images of a class."
        )
    return count


def fingerprint_of(config: DataConfig) -> str:
    """Return the fingerprint of a dataset as this machine sees it."""
    return open_source(config).record.fingerprint
