"""Parquet files in Hugging Face's layout: a column of images {bytes, path}, a column of integer labels.

The names of the classes are in the schema's metadata. Files lie on a disk or in a bucket.
"""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from resnet_ops.data import listing
from resnet_ops.data.dataset import VAL_NAMES, DiscoveredData, LabeledImages
from resnet_ops.data.listing import File
from resnet_ops.errors import UserError

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")


@dataclass(frozen=True)
class RowGroup:
    """Rows of one file that are stored, and so read, together; `first` is the number of the first one in the split."""

    file: File
    number: int
    first: int


class Recent:
    """The row groups that were read last, for rows are asked for in their order. A copy begins with none."""

    KEPT = 2  # threads that work on neighbouring rows work on two groups at most

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.groups: dict[int, Any] = {}

    def __reduce__(self) -> tuple[type["Recent"], tuple[()]]:
        return Recent, ()

    def get(self, index: int, read: Callable[[], Any]) -> Any:
        """Group `index`, read if it is not one of the recent ones."""
        with self.lock:
            if index not in self.groups:
                while len(self.groups) >= self.KEPT:
                    del self.groups[next(iter(self.groups))]
                self.groups[index] = read()
            return self.groups[index]


@dataclass(frozen=True)
class ParquetImages:
    """An `Encoded`: the rows of some files."""

    groups: tuple[RowGroup, ...]
    column: str
    labels: np.ndarray
    recent: Recent = field(default_factory=Recent, compare=False, repr=False)

    @property
    def units(self) -> np.ndarray:
        """As `Encoded.units`: row groups."""
        return np.searchsorted(self._firsts, np.arange(len(self.labels)), side="right") - 1

    def read(self, rows: Sequence[int]) -> list[bytes | OSError]:
        """As `Encoded.read`."""
        return [self._one(int(row)) for row in rows]

    def _one(self, row: int) -> bytes | OSError:
        index = self._group_of(row)
        images = self.recent.get(index, lambda: self._read_group(self.groups[index]))
        if isinstance(images, OSError):
            return images
        return images[row - self.groups[index].first].as_py() or b""

    @cached_property
    def _firsts(self) -> np.ndarray:
        return np.array([group.first for group in self.groups])

    def _read_group(self, group: RowGroup) -> Any:
        try:
            with _opened(group.file.path) as parquet:
                return pc.struct_field(parquet.read_row_group(group.number, columns=[self.column]).column(0), "bytes")
        except (OSError, UserError, pa.ArrowException) as error:
            return error if type(error) is OSError else OSError(0, " ".join(str(error).split()))

    def _group_of(self, row: int) -> int:
        return int(np.searchsorted(self._firsts, row, side="right")) - 1

    def name(self, row: int) -> str:
        """As `Encoded.name`."""
        group = self.groups[self._group_of(row)]
        before = next(other.first for other in self.groups if other.file == group.file)
        return f"image {row - before} of {group.file.path}"


def split_by_names(found: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Tell training from validation files; the first kind of `VAL_NAMES` that is there counts.

    Raises:
        UserError: There are validation files only.
    """
    ordered = sorted(found, key=str)
    kinds = [[f for f in ordered if f.name.startswith(prefix)] for prefix in VAL_NAMES if len(ordered) > 1]
    named = {f for kind in kinds for f in kind}
    train = [f for f in ordered if f not in named]
    if not train:
        raise UserError(
            f"{ordered[0].parent} contains only validation files ({ordered[0].name}...).",
            "Name the training files train-*.parquet.",
        )
    return train, next((kind for kind in kinds if kind), [])


def find_parquet(found: Sequence[Path], name: str, columns: tuple[str | None, str | None]) -> DiscoveredData:
    """The images in some Parquet files.

    Args:
        found: The files, at least one.
        name: What to call the data.
        columns: Of the images and of the labels; None where they are to be found by their usual names.

    A file that cannot be read, lacks a column, or has images without a label is a problem.

    Raises:
        UserError: That is so for all files of a split, or the columns are not there or of other types.
    """
    train, val = split_by_names(found)
    return DiscoveredData(name, _part(train, columns), _part(val, columns) if val else None)


def _part(paths: Sequence[Path], columns: tuple[str | None, str | None]) -> LabeledImages:
    problems: list[UserError] = []
    found, groups, labels, first = [], [], [], 0
    schema = None
    for path in paths:
        try:
            file = _file(path)
            schema = schema or _read_schema(path, columns)
            (image, label), names = schema
            with _opened(path) as parquet:
                labels.append(_read_labels(parquet, path, image, label))
                sizes = [parquet.metadata.row_group(number).num_rows for number in range(parquet.num_row_groups)]
        except UserError as error:
            problems.append(error)
            continue
        found.append(file)
        for number, rows in enumerate(sizes):
            groups.append(RowGroup(file, number, first))
            first += rows
    if not found:
        raise problems[0]
    return LabeledImages(
        ParquetImages(tuple(groups), image, np.concatenate(labels)), names, tuple(found), tuple(problems)
    )


def _file(path: Path) -> File:
    try:
        return listing.stat_file(path)
    except OSError as error:
        raise _unreadable(path, error) from None


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        file = listing.open_to_read(path)
    except OSError as error:
        raise _unreadable(path, error) from None
    with file:
        try:
            parquet = pq.ParquetFile(file)
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(path, error) from None
        yield parquet


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
    return UserError(f"{path} cannot be read as Parquet: {reason}.", "Check that it is a complete Parquet file.")


def _read_schema(path: Path, wanted: tuple[str | None, str | None]) -> tuple[tuple[str, str], tuple[str, ...]]:
    with _opened(path) as parquet:
        schema = parquet.schema_arrow
    usual = [(own,) if own else names for own, names in zip(wanted, (IMAGE_COLUMNS, LABEL_COLUMNS), strict=True)]
    image, label = (next((name for name in names if name in schema.names), None) for names in usual)
    if image is None or label is None:
        raise UserError(
            f"{path} has the columns {', '.join(schema.names)}; an image column and a label column are needed.",
            f"Name them with --image-column ({{bytes, path}}) and --label-column (integers); the defaults are "
            f"{usual[0][0]!r} and {usual[1][0]!r}.",
        )
    types = schema.field(image).type, schema.field(label).type
    if not pa.types.is_struct(types[0]) or not pa.types.is_integer(types[1]):
        raise UserError(
            f"{path}: column {image!r} is {types[0]}, column {label!r} {types[1]}.",
            "They must be a struct {bytes, path} and integers.",
        )
    if types[0].get_field_index("bytes") < 0:
        raise UserError(f"{path}: column {image!r} has no field 'bytes'.", "Embed the encoded images in the file.")
    features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    return (image, label), tuple(features.get(label, {}).get("names", ()))


def _read_labels(parquet: pq.ParquetFile, path: Path, image: str, label: str) -> np.ndarray:
    if missing := {image, label} - set(parquet.schema_arrow.names):
        raise UserError(
            f"{path} lacks the column {min(missing)!r} of the first file.", "Use the same columns in all files."
        )
    try:
        labels = parquet.read(columns=[label]).column(0)
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{path}: column {label!r} cannot be read: {error}.", "Check that the file is complete."
        ) from None
    if labels.null_count:
        raise UserError(f"{path}: some images have no label.", "Label these images, or remove them.")
    return np.asarray(labels.to_numpy()).astype(np.int64)
