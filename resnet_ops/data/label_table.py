"""Read the labels of loose images from a table beside them: CSV, TSV, text or JSON lines, as on Kaggle and the Hub.

Which folders need one is decided in folders.py.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from resnet_ops import files
from resnet_ops.data.dataset import SPLIT_OF, Split, image_count, split_word
from resnet_ops.data.image_kinds import is_image
from resnet_ops.data.listing import File
from resnet_ops.errors import UserError
from resnet_ops.formatting import decode_text, text_lines

TABLES = (".csv", ".tsv", ".txt", ".jsonl")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "category", "target", "class_name", "label_name", "choice")
SPLIT_COLUMNS = ("split", "set", "subset", "partition", "data set", "dataset")
DELIMITERS = "\t;, "
LEAST_NAMED = 0.5  # of the images that a table names, at least; one of another folder names none
Row = Mapping[str, str]
FindImage = Callable[[str | None], str | None]


@dataclass(frozen=True)
class LabelTable:
    """A table and what it says of each image that it names, by the name of its file.

    Args:
        file: The table.
        column: The column of the labels.
        labels: The label of each image.
        splits: The split of each, where it has a column of them.
        notes: What the user should know.
    """

    file: File
    column: str
    labels: dict[str, str]
    splits: dict[str, Split]
    notes: tuple[str, ...] = ()


def is_table(name: str) -> bool:
    """Return whether a file's name ends as a table's does."""
    return PurePosixPath(name).suffix.lower() in TABLES


def find_label_table(
    root: Path,
    folders: Sequence[str],
    listed: Sequence[File],
    images: Sequence[File],
    label_column: str | None,
    split: Split,
    *,
    known_column: bool = False,
) -> LabelTable | None:
    """Return the first table in one of some folders that names images and labels them.

    Args:
        root: The folder that all names are relative to.
        folders: Where the table may be, each with '/' at its end, '' for the root.
        listed: The files.
        images: Those to label.
        label_column: The column of the labels; None for the first of their usual names, or the only other one.
        split: The split of the images: a table that is named after another one is none of theirs.
        known_column: Whether a table counts only if a column has that name, or a usual one.

    Raises:
        UserError: A table names the images, and several columns might be their labels, or images have several labels.
    """
    candidates = [
        file
        for folder in dict.fromkeys(folders)
        for file in listed
        if is_table(file.name)
        and file.name.rpartition("/")[0] == folder.rstrip("/")
        and SPLIT_OF.get(split_word(PurePosixPath(file.name).name) or "", split) == split
    ]
    if not candidates:
        return None
    find = _image_finder(images, folders)
    for file in candidates:
        columns, rows, has_header = _read_rows(file, find)
        column = _file_column(columns, rows, find, len(images))
        if column is None:
            continue
        others = [name for name in columns if name != column]
        usual = (label_column,) if label_column else LABEL_COLUMNS
        lower = {name.strip().lower(): name for name in others}
        label = next((lower[name.lower()] for name in usual if name.lower() in lower), None)
        if not others or (label is None and known_column):
            continue
        path = root / file.name
        named = [(row, image) for row in rows if (image := find(row.get(column)))]
        splits = next(filter(None, (_splits(named, lower.get(name)) for name in SPLIT_COLUMNS)), {})
        if label is None and label_column is None and (len(others) == 1 or not has_header):
            after = columns.index(column) + 1  # as in lists of Caffe
            label = columns[after] if after < len(columns) else others[0]
        pairs = [(image, (row.get(label) or "").strip()) for row, image in named] if label else _one_hot(named, others)
        if not pairs:
            raise UserError(
                f"{path} has the columns {', '.join(columns)}; none is known to hold the labels.",
                "Name it: --label-column.",
            )
        names = {name for other in listed for name in (_last(other.name), PurePosixPath(other.name).stem)}
        missing = [value for row in rows if (value := row.get(column)) and _last(value) not in names]
        note = (
            f"{path} names {image_count(len(missing))} that cannot be found here, first {missing[0]}."
            if missing
            else ""
        )
        return LabelTable(file, label or "", _one_label_each(path, pairs), splits, (note,) if note else ())
    return None


def _read_rows(file: File, find: FindImage) -> tuple[list[str], list[Row], bool]:
    """Return the columns, the rows, and whether the first row names the columns; otherwise numbers do."""
    content = files.read(file.path)
    try:
        text = decode_text(content)
    except UnicodeDecodeError:  # of Excel, on most machines
        text = content.decode("cp1252", errors="replace")
    if file.name.lower().endswith(".jsonl"):
        try:
            objects = [json.loads(line) for line in text_lines(text) if line.strip()]
        except ValueError:
            return [], [], True
        rows: list[Row] = [{str(key): str(value) for key, value in o.items()} for o in objects if isinstance(o, dict)]
        return list(rows[0]) if rows else [], rows, True
    first = text.partition("\n")[0]
    try:
        lines = list(csv.reader(io.StringIO(text, newline=None), delimiter=max(DELIMITERS, key=first.count)))
    except csv.Error:  # no table
        lines = []
    columns = lines[0] if lines else []
    has_header = not any(map(find, columns))
    if not has_header:
        columns = [f"column {number}" for number in range(1, 1 + max(map(len, lines)))]
    return columns, [dict(zip(columns, line, strict=False)) for line in lines[has_header:]], has_header


def _image_finder(images: Sequence[File], folders: Sequence[str]) -> FindImage:
    """Return what finds the image that a table means: by its path from any folder on, with or without its extension.

    A name that several images have is none's.
    """
    names: dict[str, str | None] = {}

    def without_extension(name: str) -> str:
        return str(PurePosixPath(name).with_suffix(""))

    ways: list[Callable[[str], str]] = [
        str,
        *(lambda name, folder=folder: name.removeprefix(folder) for folder in folders),
        _last,
    ]
    for way in ways:
        for shorten in (str, without_extension):
            own: dict[str, str | None] = {}
            for image in images:
                name = shorten(way(image.name))
                own[name] = image.name if own.get(name, image.name) == image.name else None
            names = own | names

    def find(value: str | None) -> str | None:
        parts = _parts(value or "")
        tails = ("/".join(parts[start:]) for start in range(len(parts)))
        return next((image for tail in tails if (image := names.get(tail))), None)

    return find


def _parts(path: str) -> list[str]:
    return path.strip().replace("\\", "/").split("/")  # as Windows writes paths


def _last(path: str) -> str:
    return _parts(path)[-1]


def _file_column(columns: Sequence[str], rows: Sequence[Row], find: FindImage, images: int) -> str | None:
    """Return the column that names at least `LEAST_NAMED` of the images."""
    for column in sorted(columns, key=lambda name: not any(is_image(row.get(name) or "") for row in rows)):
        known = {image for row in rows if (image := find(row.get(column)))}
        if len(known) >= LEAST_NAMED * images:
            return column
    return None


def _splits(named: Sequence[tuple[Row, str]], column: str | None) -> dict[str, Split]:
    """Return the split of each image by a column of them; {} where it is none."""
    words = {image: split_word(row.get(column) or "") for row, image in named} if column else {}
    return {image: SPLIT_OF[word] for image, word in words.items() if word} if all(words.values()) else {}


def _one_hot(named: Sequence[tuple[Row, str]], columns: Sequence[str]) -> list[tuple[str, str]]:
    """Return the labels of a table with a column for each class, 1 for those that an image has; [] of any other."""
    values = [(image, [(row.get(column) or "").strip() for column in columns]) for row, image in named]
    known = {"0", "0.0", "1", "1.0"}
    if not known.issuperset(value for _, of_row in values for value in of_row):
        return []
    return [
        (image, column.strip())
        for image, of_row in values
        for column, value in zip(columns, of_row, strict=True)
        if value.startswith("1")
    ]


def _one_label_each(table: Path, pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    labels: dict[str, str] = {}
    for image, label in pairs:
        if label and labels.setdefault(image, label) != label:
            raise UserError(
                f"{table} gives {image} several labels, {labels[image]} and {label}.",
                "Training takes one label per image: remove the others, or the image.",
            )
    return labels
