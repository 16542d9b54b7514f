"""Read Parquet files in Hugging Face's layout: a column of images {bytes, path}, a column of integer labels.

The names of the classes are in each file's schema metadata; files may number them in different orders. Files are on a
disk or in a bucket. Which files of a folder are read is decided in discovery.py.
"""

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from resnet_ops.data import listing
from resnet_ops.data.dataset import TEST_NAMES, VAL_NAMES, DiscoveredData, LabeledImages, split_word
from resnet_ops.data.listing import File
from resnet_ops.errors import PausedError, UserError

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")


def discover_parquet(
    paths: Sequence[Path], name: str, columns: tuple[str | None, str | None], *, for_validation: bool = False
) -> DiscoveredData:
    """Return the images in some Parquet files.

    A file that cannot be read, lacks a column, or has images without a label becomes one of `LabeledImages.problems`.

    Args:
        paths: The files, at least one.
        name: The name of the data.
        columns: The columns of the images and of the labels; None for the first of their usual names.
        for_validation: Whether no training files are needed.

    Raises:
        UserError: That is so for all files of a split, or the columns do not exist or are of other types.
    """
    train, val, test = _split_by_name(paths, for_validation)
    return DiscoveredData(
        name,
        _labeled_images(train, columns),
        _labeled_images(val, columns) if val else None,
        test=_labeled_images(test, columns) if test else None,
    )


def _split_by_name(paths: Sequence[Path], for_validation: bool) -> tuple[list[Path], list[Path], list[Path]]:
    """Return training, validation and test files; of the latter two those with the first of their names that there is.

    The word is in the file's name, or in that of a folder below the one that all are in. Where none are training files
    and none are needed, those for validation, or else all, come first.

    Raises:
        UserError: None are training files, and some are needed.
    """
    ordered = sorted(paths, key=str)
    if len(ordered) == 1:
        return ordered, [], []
    parts = [str(path).removesuffix(".parquet").split("/") for path in ordered]
    levels = zip(*(folders for *folders, _ in parts), strict=False)
    shared = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, levels))
    words = [next(filter(None, map(split_word, reversed(own[shared:]))), None) for own in parts]
    train = [path for path, word in zip(ordered, words, strict=True) if word not in VAL_NAMES + TEST_NAMES]
    if not train and for_validation:
        return [path for path, word in zip(ordered, words, strict=True) if word in VAL_NAMES] or ordered, [], []
    if not train:
        raise UserError(
            f"{ordered[0].parent} contains only validation or test files ({ordered[0].name}...).",
            "Name the training files train-*.parquet.",
        )

    def named(names: Sequence[str]) -> list[Path]:
        chosen = next((name for name in names if name in words), None)
        return [path for path, word in zip(ordered, words, strict=True) if chosen and word == chosen]

    return train, named(VAL_NAMES), named(TEST_NAMES)


def _labeled_images(paths: Sequence[Path], columns: tuple[str | None, str | None]) -> LabeledImages:
    problems: list[UserError] = []
    readable, groups, labels, first = [], [], [], 0
    schema = None
    for path in paths:
        try:
            file = _stat_file(path)
            with _open(path) as parquet:
                (image, label), names = schema = schema or _read_schema(parquet.schema_arrow, path, columns)
                numbers = _read_labels(parquet, path, image, label)
                labels.append(_renumbered(numbers, _class_names(parquet.schema_arrow, label), names, path))
                sizes = [parquet.metadata.row_group(number).num_rows for number in range(parquet.num_row_groups)]
        except UserError as error:
            problems.append(error)
            continue
        readable.append(file)
        for number, rows in enumerate(sizes):
            groups.append(RowGroup(file, number, first))
            first += rows
    if not readable:
        raise problems[0]
    images = ParquetImages(tuple(groups), image, np.concatenate(labels))
    return LabeledImages(images, names, tuple(readable), tuple(problems))


def _stat_file(path: Path) -> File:
    try:
        return listing.stat_file(path)
    except OSError as error:
        raise _read_error(path, error) from None


@contextmanager
def _open(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        file = listing.open_file(path)
    except OSError as error:
        raise _read_error(path, error) from None
    with file:
        try:
            parquet = pq.ParquetFile(file)
        except (OSError, pa.ArrowException) as error:
            raise _read_error(path, error) from None
        yield parquet


def _read_error(path: Path, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
    return UserError(f"{path} cannot be read as Parquet: {reason}.", "Check that it is a complete Parquet file.")


def _read_schema(
    schema: pa.Schema, path: Path, columns: tuple[str | None, str | None]
) -> tuple[tuple[str, str], tuple[str, ...]]:
    """Return the columns of the images and of the labels, and the names of the classes, () where there are none.

    Raises:
        UserError: There are no such columns, or they are of other types.
    """
    usual = [(own,) if own else names for own, names in zip(columns, (IMAGE_COLUMNS, LABEL_COLUMNS), strict=True)]
    image, label = (next((name for name in names if name in schema.names), None) for names in usual)
    if image is None or label is None:
        raise UserError(
            f"{path} has the columns {', '.join(schema.names)}; an image column and a label column are needed.",
            f"Name them with --image-column ({{bytes, path}}) and --label-column (integers); the defaults are "
            f"{usual[0][0]!r} and {usual[1][0]!r}.",
        )
    _check_types(schema, path, image, label)
    return (image, label), _class_names(schema, label)


def _check_types(schema: pa.Schema, path: Path, image: str, label: str) -> None:
    types = schema.field(image).type, schema.field(label).type
    if not pa.types.is_struct(types[0]) or not pa.types.is_integer(types[1]):
        raise UserError(
            f"{path}: column {image!r} is {types[0]}, column {label!r} {types[1]}.",
            "They must be a struct {bytes, path} and integers.",
        )
    if types[0].get_field_index("bytes") < 0:
        raise UserError(f"{path}: column {image!r} has no field 'bytes'.", "Embed the encoded images in the file.")


def _class_names(schema: pa.Schema, label: str) -> tuple[str, ...]:
    features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    return tuple(features.get(label, {}).get("names", ()))


def _renumbered(labels: np.ndarray, own: tuple[str, ...], names: tuple[str, ...], path: Path) -> np.ndarray:
    """Return the labels of a file whose classes are `own` as the first file numbers its own, `names`.

    Raises:
        UserError: They are not the same classes.
    """
    if own == names:
        return labels
    if sorted(own) != sorted(names) or len(set(own)) < len(own):
        raise UserError(
            f"{path} has the classes {', '.join(own) or '(without names)'}; the first file has "
            f"{', '.join(names) or '(without names)'}.",
            "Use the same classes in all files; their order may differ.",
        )
    known = (labels >= 0) & (labels < len(own))  # others are reported as they are
    index = np.array([names.index(name) for name in own], np.int64)
    return np.where(known, index[np.where(known, labels, 0)], labels)


def _read_labels(parquet: pq.ParquetFile, path: Path, image: str, label: str) -> np.ndarray:
    if missing := {image, label} - set(parquet.schema_arrow.names):
        raise UserError(
            f"{path} lacks the column {min(missing)!r} of the first file.", "Use the same columns in all files."
        )
    _check_types(parquet.schema_arrow, path, image, label)
    try:
        labels = parquet.read(columns=[label]).column(0)
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{path}: column {label!r} cannot be read: {error}.", "Check that the file is complete."
        ) from None
    if labels.null_count:
        raise UserError(f"{path}: some images have no label.", "Label these images, or remove them.")
    return np.asarray(labels.to_numpy()).astype(np.int64)


@dataclass(frozen=True)
class RowGroup:
    """A row group: rows of one file that are stored, and so read, together.

    `number` is its number in the file, `first` the row of the split that it begins with.
    """

    file: File
    number: int
    first: int


class RowGroupCache:
    """The row groups that were read last, as rows are read in their order. A pickled copy is empty."""

    SIZE = 2  # threads that work on neighboring rows begin them on two groups at most

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.groups: dict[int, Future[Any]] = {}

    def __reduce__(self) -> tuple[type["RowGroupCache"], tuple[()]]:
        return RowGroupCache, ()

    def get(self, index: int, read: Callable[[], Any]) -> Any:
        """Return group `index`, read if it is not in the cache; several threads read different groups at once."""
        with self.lock:
            group = self.groups.get(index)
            if is_new := group is None:
                while len(self.groups) >= self.SIZE:
                    del self.groups[next(iter(self.groups))]
                group = self.groups[index] = Future()
        if is_new:
            try:
                group.set_result(read())
            except BaseException as error:
                with self.lock:
                    self.groups.pop(index, None)
                group.set_exception(error)  # for the threads that wait as well
        return group.result()


@dataclass(frozen=True)
class ParquetImages:
    """`EncodedImages` of the rows of some Parquet files."""

    groups: tuple[RowGroup, ...]
    column: str
    labels: np.ndarray
    sizes: None = None
    cache: RowGroupCache = field(default_factory=RowGroupCache, compare=False, repr=False)

    @property
    def row_groups(self) -> np.ndarray:
        """See `EncodedImages.row_groups`."""
        return np.searchsorted(self._firsts, np.arange(len(self.labels)), side="right") - 1

    def read(self, rows: Sequence[int]) -> list[bytes | OSError]:
        """See `EncodedImages.read`."""
        return [
            image for group, part in groupby(map(int, rows), self._group_of) for image in self._read_from(group, part)
        ]

    def name(self, row: int) -> str:
        """See `EncodedImages.name`."""
        group = self.groups[self._group_of(row)]
        first_of_file = next(other.first for other in self.groups if other.file == group.file)
        return f"image {row - first_of_file} of {group.file.path}"

    def _read_from(self, index: int, rows: Iterable[int]) -> list[bytes | OSError]:
        group = self.groups[index]
        images = self.cache.get(index, lambda: self._read_group(group))
        return [images if isinstance(images, OSError) else images[row - group.first].as_py() or b"" for row in rows]

    @cached_property
    def _firsts(self) -> np.ndarray:
        return np.array([group.first for group in self.groups])

    def _read_group(self, group: RowGroup) -> Any:
        try:
            with _open(group.file.path) as parquet:
                return pc.struct_field(parquet.read_row_group(group.number, columns=[self.column]).column(0), "bytes")
        except PausedError:
            raise
        except (OSError, UserError, pa.ArrowException) as error:
            return error if type(error) is OSError else OSError(0, " ".join(str(error).split()))

    def _group_of(self, row: int) -> int:
        return int(np.searchsorted(self._firsts, row, side="right")) - 1
