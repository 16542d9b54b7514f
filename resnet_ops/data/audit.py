"""Check a dataset before training: count its images, measure them, and report all problems at once.

Nothing is decoded into the cache, and damaged files do not end it. Single problems are found in findings.py.
"""

from collections.abc import Callable

import numpy as np
from pydantic import Field

from resnet_ops.config import DataConfig
from resnet_ops.config_base import parse_image_size
from resnet_ops.data.cache import cache_folder
from resnet_ops.data.class_labels import merge_classes
from resnet_ops.data.dataset import SPLITS, DiscoveredData, EncodedImages, Subset, subset
from resnet_ops.data.decode import CropSpec, decode
from resnet_ops.data.discovery import discover
from resnet_ops.data.findings import (
    TEST,
    TRAIN,
    VAL,
    Finding,
    ImageTable,
    State,
    find_bit_depth_problems,
    find_broken,
    find_class_problems,
    find_cut_images,
    find_duplicates,
    find_long_images,
    find_near_duplicates,
    find_other_sizes,
    find_pixel_problems,
    find_skipped_files,
    find_space_problems,
    first_cases,
)
from resnet_ops.data.image_sizes import IMAGE_SIZE, network_size, read_headers
from resnet_ops.data.image_statistics import Survey, survey
from resnet_ops.data.opening import make_source
from resnet_ops.data.parallel_decode import check_broken_share
from resnet_ops.data.sources import Source, refuses_test_copies, should_stream
from resnet_ops.errors import UserError
from resnet_ops.files import Place
from resnet_ops.results import Result

PAIRS_PICTURED = 10


class ClassImages(Result):
    """Numbers of images of a class, without those that cannot be decoded."""

    train: int
    val: int
    test: int


class DataReport(Result):
    """The contents of a dataset and its problems."""

    data: str = Field(description="The dataset, as it was given.")
    fit: bool = Field(description="Whether there is no error; with --strict no warning either.")
    name: str = Field(description="Of the data.")
    fingerprint: str | None = Field(description="As a run's record has it; null where training refuses the data.")
    held_out: bool = Field(description="Whether validation images are chosen from the training images.")
    class_names: tuple[str, ...] = Field(description="The classes of all splits.")
    height: int = Field(description="Height in pixels that the network sees.")
    width: int = Field(description="Width in pixels that the network sees.")
    channels: int = Field(description="1 if grey, else 3.")
    stored: tuple[int, int] | None = Field(
        description="Height and width of the images that training crops this from, if it does."
    )
    sizes: tuple[tuple[int, int], ...] = Field(
        description="The least, the median and the greatest (height, width), by area; none if no image can be decoded."
    )
    distinct_sizes: int = Field(description="Number of different sizes.")
    formats: dict[str, int] = Field(description="Images of each format, in Pillow's words.")
    modes: dict[str, int] = Field(description="Images of each of Pillow's modes.")
    mean: tuple[float, ...] = Field(description="Of the training images' pixels, for each channel, 0 to 1.")
    std: tuple[float, ...] = Field(description="Their standard deviation likewise.")
    encoded_bytes: int = Field(description="Bytes of all images as they are stored.")
    decoded_bytes: int = Field(description="Bytes of all images decoded.")
    streamed: bool = Field(description="Whether training decodes them in every epoch, for lack of memory.")
    cache: Place | None = Field(description="The folder that decoded images are kept in, if they are.")
    broken: tuple[int, int, int] = Field(description="Training, validation and test images that cannot be decoded.")
    copies: tuple[int, int, int] = Field(
        description="Training, validation and test images that repeat another of their split."
    )
    in_both: int = Field(
        description="Validation and test images that are among the training images too, and test images that are among "
        "the validation images."
    )
    near_duplicates: tuple[int, int, int] = Field(
        description="Validation images that look like a training image, test images that do, and test images that look "
        "like a validation image; byte for byte the same ones are not counted."
    )
    conflicting: int = Field(description="Images that also have another label.")
    passed_over: int = Field(description="Files that are not read.")
    refused: str = Field(description="Why training refuses the data, if it does.")
    images: tuple[int, int, int] = Field(
        description="Training, validation and test images, without those that cannot be decoded."
    )
    per_class: dict[str, ClassImages] = Field(description="Images of each class that can be decoded: train, val, test.")
    findings: tuple[Finding, ...] = Field(description="All this in words: state, name, found, details.")
    contact_sheet: Place | None = Field(default=None, description="File of the contact sheet, if one was drawn.")
    examples: dict[str, tuple[np.ndarray, ...]] = Field(
        exclude=True, description="Of some classes pixels (H, W, C) uint8 of some images, if requested."
    )
    near_examples: tuple[np.ndarray, ...] = Field(
        exclude=True, description="Pixels of the most alike near duplicates, pair after pair, if requested."
    )

    def having(self, *states: State) -> list[Finding]:
        """Return the findings of some states; with an error, training refuses images or learns wrong labels."""
        return [finding for finding in self.findings if finding.state in states]


def check_data(
    config: DataConfig | str,
    on_progress: Callable[[int, int], object] = lambda *_: None,
    choose_examples: Callable[[np.ndarray], np.ndarray] = lambda labels: labels[:0],
    strict: bool = False,
) -> DataReport:
    """Read every image once and report what there is and what is wrong with it.

    Args:
        config: The dataset; a string is `DataConfig.data`.
        on_progress: Called now and then with the number of images read so far, and of all.
        choose_examples: Given the labels (N,) of the images under --data, returns the rows (n,) to keep as examples.
        strict: Whether warnings too make the data unfit.

    Raises:
        UserError: There is nothing to read: no such path, no images, no readable Parquet file.
    """
    config = DataConfig(data=config) if isinstance(config, str) else config
    data = discover(config)
    names, labels = merge_classes(data)
    if not len(labels):
        raise UserError(f"--data {config.data} contains no images.", "Choose a dataset that contains images.")
    source, refused = _source_or_reason(config, data)
    height, width, channels, stored = _network_size(config, data, source)
    cover, bit_depth = stored or (height, width), source.record.bit_depth if source else None
    crop = CropSpec(cover, *cover, channels, bit_depth=bit_depth or 16)
    example_rows = choose_examples(labels[: len(data.train.encoded.labels)])
    parts = tuple(part.encoded for part in data.parts)
    facts = survey(parts, crop, set(example_rows.tolist()), lambda done: on_progress(done, len(labels)))
    held_out = source is not None and "val" not in source.splits
    table = ImageTable(parts, labels, _split(data, facts, source), names, facts)
    if source:
        refused = _broken_share_error(source, table)
    train_images, val_images, test_images = table.per_class.sum(0).tolist()
    train_bytes = train_images * int(np.prod(crop.shape))
    decoded_bytes = train_bytes + (val_images + test_images) * height * width * channels
    streamed = should_stream(config, train_bytes)
    cache = None if streamed or (source and source.embedded) else cache_folder(config.cache_dir)
    duplicates = find_duplicates(table, refused=refuses_test_copies(config))
    near = find_near_duplicates(table)
    pictured = near.pairs[: PAIRS_PICTURED if len(example_rows) else 0].ravel().tolist()
    mean, std = _statistics(facts.sums[facts.decodable & (table.split == TRAIN)], crop)
    has_own_size = stored is None and config.leaves_size
    findings = (
        _find_refusal(refused, data),
        *(Finding("warning", "splits", note) for note in data.notes),
        find_broken(table),
        *duplicates.findings,
        near.finding,
        *find_class_problems(table),
        *find_pixel_problems(table, channels),
        *find_bit_depth_problems(table, bit_depth),
        *find_other_sizes(table, (height, width) if has_own_size else None),
        *find_long_images(table, stored),
        *find_space_problems(train_bytes, decoded_bytes, streamed, cache),
        *find_cut_images(table),
        find_skipped_files(data.skipped),
    )
    return DataReport(
        data=config.data,
        fit=not {finding.state for finding in findings} & ({"error", "warning"} if strict else {"error"}),
        name=data.name,
        fingerprint=source.record.fingerprint if source else None,
        held_out=held_out,
        class_names=names,
        height=height,
        width=width,
        channels=channels,
        stored=stored,
        sizes=_size_range(facts.sizes[facts.decodable]),
        distinct_sizes=len(np.unique(facts.sizes[facts.decodable], axis=0)),
        formats=dict(facts.formats.most_common()),
        modes=dict(facts.modes.most_common()),
        mean=mean,
        std=std,
        encoded_bytes=int(facts.bytes.sum()),
        decoded_bytes=decoded_bytes,
        streamed=streamed,
        cache=cache,
        broken=(int(table.broken(TRAIN).sum()), int(table.broken(VAL).sum()), int(table.broken(TEST).sum())),
        copies=duplicates.copies,
        in_both=duplicates.in_both,
        near_duplicates=near.counts,
        conflicting=duplicates.conflicting,
        passed_over=len(data.skipped),
        refused=refused,
        images=(train_images, val_images, test_images),
        per_class=_class_images(table),
        findings=findings,
        examples=_examples(table, example_rows),
        near_examples=tuple(decode(table.read(row), crop) for row in pictured),
    )


def _source_or_reason(config: DataConfig, data: DiscoveredData) -> tuple[Source | None, str]:
    """Return the source that training would use, or the reason why it would refuse the data."""
    try:
        return make_source(config, data), ""
    except UserError as error:
        return None, str(error)


def _network_size(
    config: DataConfig, data: DiscoveredData, source: Source | None
) -> tuple[int, int, int, tuple[int, int] | None]:
    """Return what `network_size` does, even where training refuses the data."""
    if source:
        return source.record.height, source.record.width, source.record.channels, source.record.stored
    try:
        return network_size(read_headers(data.train.encoded), config.image_size, config.resize)
    except UserError:
        return *parse_image_size(config.image_size or IMAGE_SIZE), 3, None


def _split(data: DiscoveredData, facts: Survey, source: Source | None) -> np.ndarray:
    """Return the split of each image, (N,) int64; images are held out as in `source`, if it is given."""
    split = np.repeat([SPLITS.index(each) for each in data.by_split], [len(p.encoded.labels) for p in data.parts])
    if source is not None and source.held_out:
        train = split == TRAIN
        split[train] = [SPLITS.index(each) for each in source.choose_splits(facts.digests[train]).tolist()]
    return split


def _broken_share_error(source: Source, table: ImageTable) -> str:
    """Return the error that training would raise for broken images once it has decoded all, or an empty string."""
    for number, split in enumerate(SPLITS):
        rows = np.flatnonzero(table.split == number).tolist()
        if split in source.held_out or (split == "train" and source.held_out):
            encoded: EncodedImages = subset(source.splits["train"], table.split[: len(table.parts[0].labels)] == number)
        elif split in source.splits:
            encoded = source.splits[split]
        else:
            continue
        own_test = split == "test" and split in source.splits
        if own_test and isinstance(encoded, Subset) and encoded is not table.parts[-1]:
            # Without images of classes that training lacks.
            rows = [rows[row] for row in encoded.rows.tolist()]
        reasons = {i: table.survey.broken[row] for i, row in enumerate(rows) if row in table.survey.broken}
        try:
            check_broken_share(encoded, source.decode_options(split), reasons)
        except UserError as error:
            return str(error)
    return ""


def _find_refusal(refused: str, data: DiscoveredData) -> Finding:
    if not refused:
        return Finding("ok", "training", "usable for training")
    problems = [str(problem) for part in data.parts for problem in part.problems]
    others = first_cases(problem for problem in problems if problem != refused)
    return Finding("error", "training", f"cannot be trained on: {refused}", others)


def _size_range(sizes: np.ndarray) -> tuple[tuple[int, int], ...]:
    """Return the smallest, the median and the largest of sizes (n, 2), by area; none of none."""
    by_area = sizes[np.lexsort((sizes[:, 0], sizes.prod(1)))].tolist()
    return tuple((by_area[i][0], by_area[i][1]) for i in (0, len(by_area) // 2, -1)) if by_area else ()


def _statistics(sums: np.ndarray, crop: CropSpec) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel, 0 to 1, from sums (n, 2, C), as `pixel_statistics` does."""
    pixels = len(sums) * crop.height * crop.width
    if not pixels:
        return (), ()
    mean, square = sums.sum(0) / pixels / [[255], [255**2]]
    return tuple(mean.tolist()), tuple(float(std) or 1.0 for std in np.sqrt(np.maximum(square - mean**2, 0)))


def _class_images(table: ImageTable) -> dict[str, ClassImages]:
    counts = zip(table.class_names, table.per_class.tolist(), strict=True)
    return {name: ClassImages(train=train, val=val, test=test) for name, (train, val, test) in counts}


def _examples(table: ImageTable, rows: np.ndarray) -> dict[str, tuple[np.ndarray, ...]]:
    by_class: dict[str, tuple[np.ndarray, ...]] = {}
    pixels = table.survey.examples
    for row in rows.tolist():
        name = table.class_names[table.labels[row]]
        by_class[name] = (*by_class.get(name, ()), *([pixels[row]] if row in pixels else []))
    return by_class
