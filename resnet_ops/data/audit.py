"""What to know of images before training on them: how many, what they look like, and what is wrong with them.

Nothing is decoded into the cache, and no damage ends it: all that can be read is told of.
"""

from collections.abc import Callable

import numpy as np
from pydantic import Field

from resnet_ops.config import DataConfig
from resnet_ops.data.cache import cache_folder, check_too_many
from resnet_ops.data.dataset import SPLITS, DiscoveredData, choose_validation, subset
from resnet_ops.data.decode import CropSpec
from resnet_ops.data.discovery import discover
from resnet_ops.data.findings import (
    TRAIN,
    VAL,
    Finding,
    FindingTable,
    State,
    find_broken,
    find_class_problems,
    find_memory_problems,
    find_pixel_problems,
    find_skipped_files,
    repeats,
    some,
)
from resnet_ops.data.sources import IMAGE_SIZE, Source, network_size, should_stream, validate
from resnet_ops.data.survey import survey
from resnet_ops.errors import UserError
from resnet_ops.files import Place
from resnet_ops.results import Result


class ClassImages(Result):
    """How many images a class has, broken ones among them."""

    train: int
    val: int


class DataReport(Result):
    """All that the check found out."""

    data: str = Field(description="The data set, as it was asked for.")
    fit: bool = Field(description="Whether there is no error; with --strict no warning either.")
    name: str = Field(description="Of the data.")
    fingerprint: str | None = Field(description="As a run's record has it; null where training refuses the data.")
    held_out: bool = Field(description="Whether validation images are chosen from the training images.")
    class_names: tuple[str, ...] = Field(description="The classes of both splits.")
    height: int = Field(description="Height in pixels that the network sees.")
    width: int = Field(description="Width in pixels that the network sees.")
    channels: int = Field(description="1 if grey, else 3.")
    stored: int | None = Field(description="Side of the squares that training crops this from, if it does.")
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
    streamed: bool = Field(description="Whether training decodes them anew in each epoch, for lack of memory.")
    cache: Place | None = Field(description="The folder that decoded images are kept in, if they are.")
    broken: tuple[int, int] = Field(description="Training and validation images that cannot be decoded.")
    copies: tuple[int, int] = Field(description="Training and validation images that repeat another of their split.")
    in_both: int = Field(description="Validation images that are among the training images too.")
    conflicting: int = Field(description="Images that are there under another label too.")
    passed_over: int = Field(description="Files that are not read.")
    refused: str = Field(description="Why training refuses the data, if it does.")
    images: tuple[int, int] = Field(description="Training and validation images.")
    per_class: dict[str, ClassImages] = Field(description="Training and validation images of each class: train, val.")
    findings: tuple[Finding, ...] = Field(description="All this in words: state, name, found, details.")
    contact_sheet: Place | None = Field(default=None, description="File of the contact sheet, if one was drawn.")
    examples: dict[str, tuple[np.ndarray, ...]] = Field(
        exclude=True, description="Of some classes pixels (H, W, C) uint8 of some images, where these were asked for."
    )

    def having(self, *states: State) -> list[Finding]:
        """The findings of some states; with an error, training refuses images or learns wrong labels."""
        return [finding for finding in self.findings if finding.state in states]


def check(
    config: DataConfig | str,
    seen: Callable[[int, int], object] = lambda *_: None,
    pick: Callable[[np.ndarray], np.ndarray] = lambda labels: labels[:0],
    strict: bool = False,
) -> DataReport:
    """Read every image once and say what there is.

    Args:
        config: Which images; of a text, those that `data` names so.
        seen: Told now and then how many of how many images have been read.
        pick: Given the labels (N,) of the images under --data, which are those (n,) to keep as examples.
        strict: Whether warnings too make the data unfit.

    Raises:
        UserError: There is nothing to read: no such path, no images, no readable Parquet file.
    """
    config = DataConfig(data=config) if isinstance(config, str) else config
    found = discover(config)
    parts = tuple(part.encoded for part in (found.train, found.val) if part)
    names, labels = _classes(found)
    total, first = len(labels), len(parts[0].labels)
    if not total:
        raise UserError(f"--data {config.data} contains no images.", "Choose a data set that contains images.")
    source, refused = _opened(config, found)
    height, width, channels, stored = _network(config, found, source)
    frame = CropSpec((stored or height, stored or width), stored or height, stored or width, channels)
    picked = pick(labels[:first])
    told = survey(parts, frame, set(picked.tolist()), lambda done: seen(done, total))
    choose = first == total and source is not None
    split = (
        choose_validation(told.digests, labels).astype(int)
        if choose
        else np.repeat([TRAIN, VAL], [first, total - first])
    )
    table = FindingTable(parts, labels, split, names, told)
    if source:
        refused = _too_many_broken(source, table, choose)
    of_train, of_val = table.per_class.sum(0).tolist()
    train_bytes = of_train * int(np.prod(frame.shape))
    decoded_bytes = train_bytes + of_val * height * width * channels
    streamed = should_stream(config, train_bytes)
    cache = None if streamed or (source and source.embedded) else cache_folder(config.cache_dir)
    same = repeats(table)
    mean, std = _statistics(told.sums[told.sound & (split == TRAIN)], frame)
    sizes = told.sizes[told.sound]
    by_area = sizes[np.lexsort((sizes[:, 0], sizes.prod(1)))].tolist()
    findings = (
        _about_training(refused, found),
        find_broken(table),
        *same.findings,
        *find_class_problems(table),
        *find_pixel_problems(table, channels),
        *find_memory_problems(train_bytes, decoded_bytes, streamed, cache),
        find_skipped_files(found.passed_over),
    )
    return DataReport(
        data=config.data,
        fit=not any(finding.state == "error" or (strict and finding.state == "warning") for finding in findings),
        name=found.name,
        fingerprint=source.record.fingerprint if source else None,
        held_out=choose,
        class_names=names,
        height=height,
        width=width,
        channels=channels,
        stored=stored,
        sizes=tuple((by_area[i][0], by_area[i][1]) for i in (0, len(by_area) // 2, -1)) if by_area else (),
        distinct_sizes=len(np.unique(sizes, axis=0)),
        formats=dict(told.formats.most_common()),
        modes=dict(told.modes.most_common()),
        mean=mean,
        std=std,
        encoded_bytes=int(told.bytes.sum()),
        decoded_bytes=decoded_bytes,
        streamed=streamed,
        cache=cache,
        broken=(int(table.broken(TRAIN).sum()), int(table.broken(VAL).sum())),
        copies=same.copies,
        in_both=same.in_both,
        conflicting=same.conflicting,
        passed_over=len(found.passed_over),
        refused=refused,
        images=(of_train, of_val),
        per_class={
            name: ClassImages(train=train, val=val)
            for name, (train, val) in zip(names, table.per_class.tolist(), strict=True)
        },
        findings=findings,
        examples=_examples(table, picked),
    )


def _opened(config: DataConfig, found: DiscoveredData) -> tuple[Source | None, str]:
    """The source that training would have, or why it would have none."""
    try:
        return validate(config, found), ""
    except UserError as error:
        return None, str(error)


def _network(config: DataConfig, found: DiscoveredData, source: Source | None) -> tuple[int, int, int, int | None]:
    """As `network_size`, whether training takes the data or not."""
    if source:
        return source.record.height, source.record.width, source.record.channels, source.record.stored
    try:
        return network_size(found.train.encoded, config.image_size)
    except UserError:
        side = config.image_size or IMAGE_SIZE
        return side, side, 3, None


def _classes(found: DiscoveredData) -> tuple[tuple[str, ...], np.ndarray]:
    """The names of the classes of both splits, and of each image the index of its own; by names, as training does.

    A label that has no name is named by its number.
    """
    parts = [part for part in (found.train, found.val) if part]
    known = next((part.class_names for part in parts if part.class_names), ())
    if not known:
        top = max(int(part.encoded.labels.max(initial=-1)) for part in parts)
        known = tuple(map(str, range(top + 1 if top < sum(len(part.encoded.labels) for part in parts) else 0)))
    index = {name: number for number, name in enumerate(known)}
    every = []
    for part in parts:
        own = part.class_names or known
        present, inverse = np.unique(part.encoded.labels, return_inverse=True)
        names = [own[label] if 0 <= label < len(own) else str(label) for label in present.tolist()]
        every.append(np.array([index.setdefault(name, len(index)) for name in names], np.int64)[inverse])
    return tuple(index), np.concatenate(every)


def _too_many_broken(source: Source, table: FindingTable, chosen: bool) -> str:
    """What training would say of the broken images once it has decoded all."""
    for number, split in enumerate(SPLITS):
        rows = np.flatnonzero(table.split == number).tolist()
        encoded = subset(source.found["train"], table.split == number) if chosen else source.found[split]
        bad = {new: table.seen.broken[row] for new, row in enumerate(rows) if row in table.seen.broken}
        try:
            check_too_many(encoded, source.record.class_names, bad)
        except UserError as error:
            return str(error)
    return ""


def _about_training(refused: str, found: DiscoveredData) -> Finding:
    if not refused:
        return Finding("ok", "training", "usable for training")
    problems = [str(problem) for part in (found.train, found.val) if part for problem in part.problems]
    return Finding(
        "error", "training", f"cannot be trained on: {refused}", some(told for told in problems if told != refused)
    )


def _statistics(sums: np.ndarray, frame: CropSpec) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation a channel, from 0 to 1, of sums (n, 2, C); as `pixel_statistics` finds them."""
    pixels = len(sums) * frame.height * frame.width
    if not pixels:
        return (), ()
    mean, square = sums.sum(0) / pixels / [[255], [255**2]]
    return tuple(mean.tolist()), tuple(float(one) or 1.0 for one in np.sqrt(np.maximum(square - mean**2, 0)))


def _examples(table: FindingTable, rows: np.ndarray) -> dict[str, tuple[np.ndarray, ...]]:
    of_class: dict[str, tuple[np.ndarray, ...]] = {}
    for row in rows.tolist():
        name = table.class_names[table.labels[row]]
        of_class[name] = (*of_class.get(name, ()), *([table.seen.kept[row]] if row in table.seen.kept else []))
    return of_class
