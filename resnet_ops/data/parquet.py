"""Read Parquet files of labeled images: a column of images {bytes, path}, bytes or paths, and one of labels.

Labels are numbers, text, categories or booleans. The names of the classes are in each file's schema metadata, as
Hugging Face's datasets have them, or are the values that occur; files may number them in different orders. Files are on
a disk or in a bucket. Which files of a folder are read is decided in discovery.py.
"""

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from resnet_ops.data import listing
from resnet_ops.data.dataset import (
    SPLITS,
    DiscoveredData,
    LabeledImages,
    Skipped,
    Split,
    choose_splits,
    split_word,
    subset,
)
from resnet_ops.data.image_finder import SPLIT_COLUMNS
from resnet_ops.data.label_table import LABEL_COLUMNS, parse_splits
from resnet_ops.data.listing import File
from resnet_ops.errors import PausedError, UserError
from resnet_ops.formatting import first_names

IMAGE_COLUMNS = ("image", "img", "jpg", "png", "picture", "image_bytes", "image_path", "file_name", "path", "bytes")
WHOLE = (pa.types.is_floating, pa.types.is_decimal)  # numbers that are taken for labels if they are whole
NAMED = 8  # classes that a message names


def discover_parquet(
    paths: Sequence[Path], name: str, columns: tuple[str | None, str | None], *, for_validation: bool = False
) -> DiscoveredData:
    """Return the images in some Parquet files.

    A file that cannot be read, lacks a column, or has images without a label becomes one of `LabeledImages.problems`.
    Without names, the values of the training labels are the classes.

    Args:
        paths: The files, at least one.
        name: The name of the data.
        columns: The columns of the images and of the labels; None for the first of their usual names.
        for_validation: Whether no training files are needed.

    Raises:
        UserError: That is so for all files of a split, or the columns do not exist or are of other types.
    """
    by_split, skipped = _split_by_name(paths, for_validation)
    notes: tuple[str, ...] = ()
    parts: dict[Split, ReadFiles] = {}
    for split, of_split in by_split.items():
        try:
            if of_split:
                parts[split] = _read_files(of_split, columns, split)
        except UserError as error:
            if split != "test":
                raise
            skipped += [Skipped(str(path), "Parquet without labels") for path in of_split]
            notes = (f"The test split is left out: {error.cause}",)
    train = parts["train"]
    if not train.named:
        values = np.unique(np.concatenate([labels.numbers for labels in train.labels]))
        is_odd = values.min(initial=0) >= 0 and not np.array_equal(values, np.arange(len(values)))
        if is_odd or any(own.names and not own.closed for part in parts.values() for own in part.labels):
            parts = {split: part.by_value() for split, part in parts.items()}
            notes += (
                f"The {len(values):,} classes of {name} are the values of its labels: "
                f"{first_names(map(str, values), NAMED)}.",
            )
    data = {split: part.labeled_images() for split, part in parts.items()}
    if len(data) == 1 and not data["train"].problems:
        data = _split_by_column(data["train"], parts["train"].labels)
    elif len(data) > 1:
        _check_splits(parts)
    if "train" not in data and not for_validation:
        raise UserError(f"{name} has no training images by its column of splits.", "Add some, or remove the column.")
    train_images = data.pop(next(split for split in SPLITS if split in data))
    return DiscoveredData(
        name, train_images, data.get("val"), test=data.get("test"), skipped=tuple(skipped), notes=notes
    )


def _split_by_column(images: LabeledImages, files: "Sequence[FileLabels]") -> dict[Split, LabeledImages]:
    """Return the images of each split, where files have a column of them; else all of them for training.

    Raises:
        UserError: Some files lack it.
    """
    known = [file.splits for file in files if file.splits is not None]
    if not known:
        return {"train": images}
    if lacking := [file.path for file in files if file.splits is None]:
        raise UserError(
            f"{lacking[0]} lacks the column of splits of other files.", "Use the same columns in all files."
        )
    split_of = np.concatenate(known)
    return {
        split: replace(images, encoded=subset(images.encoded, split_of == split))
        for split in SPLITS
        if (split_of == split).any()
    }


def _check_splits(parts: "Mapping[Split, ReadFiles]") -> None:
    """Refuse a column that says another split than the names of files, which are of several.

    Raises:
        UserError: There is one.
    """
    for split, part in parts.items():
        for file in part.labels:
            if file.splits is not None and len(others := file.splits[file.splits != split]):
                raise UserError(
                    f"{file.path} is of the {split} split by its name, but of {others[0]} by its column of splits.",
                    "Rename the file, or the column.",
                )


def _split_by_name(paths: Sequence[Path], for_validation: bool) -> tuple[dict[Split, list[Path]], list[Skipped]]:
    """Return the files of each split by `choose_splits`, those without a word for training, and what is not used.

    The word is in the file's name, or in that of a folder below the one that all are in. Where none are training files
    and none are needed, those for validation, or else all, are the training files.

    Raises:
        UserError: None are training files, and some are needed.
    """
    ordered = sorted(paths, key=str)
    if len(ordered) == 1:
        return {"train": ordered}, []
    parts = [str(path).removesuffix(".parquet").split("/") for path in ordered]
    levels = zip(*(folders for *folders, _ in parts), strict=False)
    shared = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, levels))
    words = {
        path: next(filter(None, map(split_word, reversed(own[shared:]))), None)
        for path, own in zip(ordered, parts, strict=True)
    }
    split_of = choose_splits(words)
    by_split: dict[Split, list[Path]] = {split: [p for p in ordered if split_of.get(p) == split] for split in SPLITS}
    by_split["train"] = [path for path in ordered if words[path] is None or split_of.get(path) == "train"]
    if not by_split["train"] and for_validation:
        return {"train": by_split["val"] or ordered}, []
    if not by_split["train"]:
        raise UserError(
            f"{ordered[0].parent} contains only validation or test files ({ordered[0].name}...).",
            "Name the training files train-*.parquet.",
        )
    used = {path for of_split in by_split.values() for path in of_split}
    return by_split, [Skipped(str(p), "Parquet beside others of its split") for p in ordered if p not in used]


@dataclass(frozen=True)
class RowGroup:
    """A row group: rows of one file that are stored, and so read, together.

    `number` is its number in the file, `first` the row of the split that it begins with.
    """

    file: File
    number: int
    first: int


@dataclass(frozen=True)
class FileLabels:
    """The labels of a file's rows, (N,) int64, as numbers of `names`; `closed` if these are all classes that there are.

    Without names, a number is the label itself. `splits` (N,) has the split of each row, where a column has them.
    """

    path: Path
    numbers: np.ndarray
    names: tuple[str, ...] = ()
    closed: bool = False
    splits: np.ndarray | None = None

    def renumbered(self, names: tuple[str, ...]) -> np.ndarray:
        """Return the labels as numbers of other names, among which are all of its own."""
        if self.names == names:
            return self.numbers
        known = (self.numbers >= 0) & (self.numbers < len(self.names))  # others are reported as they are
        position = {name: number for number, name in enumerate(names)}
        index = np.array([*(position[name] for name in self.names), 0], np.int64)
        return np.where(known, index[np.where(known, self.numbers, len(self.names))], self.numbers)


@dataclass(frozen=True)
class ReadFiles:
    """The readable files of a split, their row groups and their labels, and the problems of the others."""

    column: str
    files: tuple[File, ...]
    groups: tuple[RowGroup, ...]
    labels: tuple[FileLabels, ...]
    problems: tuple[UserError, ...]

    @property
    def named(self) -> bool:
        """True if the classes have names."""
        return any(labels.names for labels in self.labels)

    def by_value(self) -> "ReadFiles":
        """Return the same, where labels without names are named by their values."""
        return replace(self, labels=tuple(map(_named_by_value, self.labels)))

    def labeled_images(self) -> LabeledImages:
        """Return the images, with labels as the first file, or else the sorted names, number them."""
        problems, groups, files, labels = list(self.problems), list[RowGroup](), list[File](), list[np.ndarray]()
        closed = next((own.names for own in self.labels if own.closed), None)
        every = {name for own in self.labels for name in own.names}
        names = closed or tuple(
            sorted(every, key=lambda name: (not name.isdecimal(), len(name) * name.isdecimal(), name))
        )
        first = 0
        for file, own in zip(self.files, self.labels, strict=True):
            own_groups = [group for group in self.groups if group.file == file]
            if own.names != names and len(own.numbers) and (error := _other_classes(own, names)):
                problems.append(error)
                continue
            files.append(file)
            labels.append(own.renumbered(names))
            groups += [replace(group, first=first + group.first) for group in own_groups]
            first += len(own.numbers)
        if not files:
            raise problems[0]
        images = ParquetImages(tuple(groups), self.column, np.concatenate(labels))
        return LabeledImages(images, names, tuple(files), tuple(problems))


def _named_by_value(labels: FileLabels) -> FileLabels:
    if labels.names:
        return labels
    values, numbers = np.unique(labels.numbers, return_inverse=True)
    return replace(labels, numbers=numbers.astype(np.int64), names=tuple(map(str, values.tolist())))


def _other_classes(own: FileLabels, names: tuple[str, ...]) -> UserError | None:
    """Return the error where the classes of a file are not those of the others."""
    same = sorted(own.names) == sorted(names) if own.closed else set(own.names) <= set(names)
    if same and own.names and len(set(own.names)) == len(own.names):
        return None
    return UserError(
        f"{own.path} has the classes {first_names(own.names, NAMED) or '(without names)'}; the first file has "
        f"{first_names(names, NAMED) or '(without names)'}.",
        "Use the same classes in all files; their order may differ.",
    )


def _read_files(paths: Sequence[Path], columns: tuple[str | None, str | None], split: Split) -> ReadFiles:
    """Read the labels of all files of a split.

    Raises:
        UserError: No file can be read.
    """
    problems: list[UserError] = []
    readable, groups, labels = [], [], []
    chosen: tuple[str, str] | None = None
    for path in paths:
        try:
            file = _stat_file(path)
            with _open(path) as parquet:
                image, label = chosen = chosen or _choose_columns(parquet.schema_arrow, path, columns)
                own = _read_labels(parquet, path, image, label, may_lack=split == "test")
                labels.append(replace(own, splits=_read_splits(parquet, path)))
                sizes = [parquet.metadata.row_group(number).num_rows for number in range(parquet.num_row_groups)]
        except UserError as error:
            problems.append(error)
            continue
        readable.append(file)
        firsts = np.cumsum([0, *sizes])
        groups += [RowGroup(file, number, int(firsts[number])) for number in range(len(sizes))]
    if not readable or chosen is None:
        raise problems[0]
    return ReadFiles(chosen[0], tuple(readable), tuple(groups), tuple(labels), tuple(problems))


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


def _choose_columns(schema: pa.Schema, path: Path, columns: tuple[str | None, str | None]) -> tuple[str, str]:
    """Return the columns of the images and of the labels.

    Raises:
        UserError: There are no such columns, or they are of other types.
    """
    usual = [(own,) if own else names for own, names in zip(columns, (IMAGE_COLUMNS, LABEL_COLUMNS), strict=True)]
    own = {name.lower(): name for name in reversed(schema.names)}
    image, label = (next((own[name.lower()] for name in names if name.lower() in own), None) for names in usual)
    if image is None or label is None:
        raise UserError(
            f"{path} has the columns {', '.join(schema.names)}; an image column and a label column are needed.",
            f"Name them with --image-column ({{bytes, path}}, bytes or paths) and --label-column; the defaults are "
            f"{usual[0][0]!r} and {usual[1][0]!r}.",
        )
    _check_types(schema, path, image, label)
    return image, label


def _check_types(schema: pa.Schema, path: Path, image: str, label: str) -> None:
    images, labels = schema.field(image).type, _value_type(schema.field(label).type)
    is_struct = pa.types.is_struct(images) and {field.name for field in images} & {"bytes", "path"}
    if not (is_struct or _is_binary(images) or _is_text(images)):
        raise UserError(
            f"{path}: column {image!r} is {images}.", "Images must be a struct {bytes, path}, bytes, or paths."
        )
    known = (pa.types.is_integer, pa.types.is_boolean, *WHOLE, pa.types.is_null, _is_text)
    if not any(is_kind(labels) for is_kind in known):
        raise UserError(
            f"{path}: column {label!r} is {labels}.", "Labels must be numbers, text, categories or booleans."
        )


def _value_type(of: pa.DataType) -> pa.DataType:
    return of.value_type if pa.types.is_dictionary(of) else of


def _is_binary(of: pa.DataType) -> bool:
    return bool(pa.types.is_binary(of) or pa.types.is_large_binary(of) or pa.types.is_binary_view(of))


def _is_text(of: pa.DataType) -> bool:
    return bool(pa.types.is_string(of) or pa.types.is_large_string(of) or pa.types.is_string_view(of))


def _class_names(schema: pa.Schema, label: str) -> tuple[str, ...]:
    try:
        content = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        return tuple(content["info"]["features"][label]["names"] or ())
    except (ValueError, KeyError, TypeError):  # of another form, or without names
        return ()


def _read_labels(parquet: pq.ParquetFile, path: Path, image: str, label: str, *, may_lack: bool) -> FileLabels:
    """Return the labels of a file; of text, categories and booleans the values are the names of the classes.

    Raises:
        UserError: A column is missing, or is of another type, or images have no label, unless they may lack it.
    """
    if missing := {image, label} - set(parquet.schema_arrow.names):
        raise UserError(
            f"{path} lacks the column {min(missing)!r} of the first file.", "Use the same columns in all files."
        )
    _check_types(parquet.schema_arrow, path, image, label)
    try:
        column = parquet.read(columns=[label]).column(0)
        values = column.cast(_value_type(column.type))
        if _is_text(values.type):
            texts = pc.utf8_trim_whitespace(values.cast(pa.string()))
            values = pc.if_else(pc.equal(texts, ""), None, texts)
        elif pa.types.is_floating(values.type):  # pandas has no integers beside nulls
            values = pc.if_else(pc.is_nan(values), None, values)
        if not (_is_text(values.type) or pa.types.is_boolean(values.type)):
            values = values.cast(pa.int64())
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{path}: column {label!r} cannot be read: {error}.", "Labels must be whole numbers, or text."
        ) from None
    if values.null_count and not may_lack:
        raise UserError(f"{path}: some images have no label.", "Label these images, or remove them.")
    if pa.types.is_integer(values.type):
        numbers = np.asarray(values.fill_null(-1).to_numpy())
        names = _class_names(parquet.schema_arrow, label)
        if len(set(names)) < len(names):
            raise UserError(f"{path} has a name for two classes: {first_names(names, NAMED)}.", "Give each its own.")
        return FileLabels(path, numbers, names, closed=bool(names))
    texts = values.cast(pa.string())
    names = tuple(sorted(texts.drop_null().unique().to_pylist()))
    numbers = pc.index_in(texts, value_set=pa.array(names, pa.string())).fill_null(-1)
    return FileLabels(path, np.asarray(numbers.to_numpy()).astype(np.int64), names)


def _read_splits(parquet: pq.ParquetFile, path: Path) -> np.ndarray | None:
    """Return the split of each row, (N,) of their names, by a column of them; None without one.

    Raises:
        UserError: Some of its values name none.
    """
    for name in parquet.schema_arrow.names:
        if name.lower() not in SPLIT_COLUMNS or not _is_text(_value_type(parquet.schema_arrow.field(name).type)):
            continue
        if splits := parse_splits(path, name, parquet.read(columns=[name]).column(0).to_pylist()):
            return np.array(splits)
    return None


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
        if isinstance(images, OSError):
            return [images for _ in rows]
        return [self._content(images[row - group.first].as_py(), group.file) for row in rows]

    def _content(self, image: "bytes | str | dict[str, Any] | None", file: File) -> bytes | OSError:
        """Return the bytes of an image, which may be in a file beside the Parquet file."""
        content = (image.get("bytes") or image.get("path")) if isinstance(image, dict) else image
        if not isinstance(content, str):
            return content or b""
        if content.startswith(("http:", "https:", "data:")):
            return OSError(0, f"it is a URL, {content[:40]}; download the images first")
        folder = Path("/") if content.startswith("/") else file.path.parent
        return listing.read_files(folder, [content.lstrip("/")])[0]

    @cached_property
    def _firsts(self) -> np.ndarray:
        return np.array([group.first for group in self.groups])

    def _read_group(self, group: RowGroup) -> Any:
        try:
            with _open(group.file.path) as parquet:
                return parquet.read_row_group(group.number, columns=[self.column]).column(0)
        except PausedError:
            raise
        except (OSError, UserError, pa.ArrowException) as error:
            return error if type(error) is OSError else OSError(0, " ".join(str(error).split()))

    def _group_of(self, row: int) -> int:
        return int(np.searchsorted(self._firsts, row, side="right")) - 1
