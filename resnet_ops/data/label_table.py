"""Read the labels of loose images from a table beside them: CSV, TSV, text or JSON lines, as on Kaggle and the Hub.

Which folders need one is decided in folders.py.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

from resnet_ops import files
from resnet_ops.data.dataset import Split, image_count, named_split
from resnet_ops.data.image_finder import (
    NAMED,
    NO_MATCH,
    SPLIT_COLUMNS,
    FileColumn,
    ImageFinder,
    Row,
    choose_file_column,
    find_misplaced,
    folder_of,
    path_parts,
)
from resnet_ops.data.image_kinds import is_image
from resnet_ops.data.listing import File
from resnet_ops.errors import UserError
from resnet_ops.formatting import decode_text, first_names, text_lines

TABLES = (".csv", ".tsv", ".txt", ".jsonl")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "category", "target", "class_name", "label_name", "choice")
DELIMITERS = "\t;, "
SUBMISSION = "submission"  # in the name of a contest's table of test images, whose labels are made up
T = TypeVar("T")


@dataclass(frozen=True)
class LabelTable:
    """A table and what it says of each image that it names, by the name of its file.

    Args:
        file: The table.
        column: The column of the labels.
        labels: The label of each image; none where the table has splits only.
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
    finder: ImageFinder,
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
        finder: Of all images, among which are those to label.
        folders: Where the table may be, each with '/' at its end, '' for the root.
        listed: The files.
        images: Those to label.
        label_column: The column of the labels; None for the first of their usual names, or the only other one.
        split: The split of the images: a table that is named after another one is none of theirs.
        known_column: Whether a table counts only if a column has that name, or a usual one, or is one of splits.

    Raises:
        UserError: A table names the images, but not which, or several columns might be their names or their labels, or
            images have several labels.
    """
    candidates = [
        file
        for folder in dict.fromkeys(folders)
        for file in listed
        if is_table(file.name)
        and folder_of(file) == folder
        and SUBMISSION not in file.name.lower()
        and named_split(PurePosixPath(file.name).name) in (None, split)
    ]
    usual = (label_column,) if label_column else LABEL_COLUMNS
    own = {image.name for image in images}
    misplaced: UserError | None = None
    for file in candidates:
        columns, rows, has_header = _read_rows(file, finder)
        lower = {name.strip().lower(): name for name in columns}
        label = next((lower[name.lower()] for name in usual if name.lower() in lower), None)
        named = choose_file_column(file, [name for name in columns if name != label], rows, finder, own)
        if named is None:
            misplaced = misplaced or find_misplaced(file, columns, rows, finder, len(own))
            continue
        others = [name for name in columns if name != named.column]
        if not others:
            continue
        mine = [(row, match.image) for row, match in named.matches if match.image in own]
        labels: dict[str, str] = {}
        if label or not known_column:
            if label is None and label_column is None and (len(others) == 1 or not has_header):
                after = columns.index(named.column) + 1  # as in lists of Caffe
                label = columns[after] if after < len(columns) else others[0]
            labels = _read_labels(file, columns, mine, label, others)
            mine = [(row, image) for row, image in mine if image in labels]
        splits = _read_splits(file, columns, mine)
        if known_column and not (label or splits):
            continue
        notes = (*named.notes, *_tell_matches(file, named, finder), *_tell_missing(file, named, listed))
        return LabelTable(file, label or "", labels, splits, notes)
    if misplaced and split == "train" and not known_column:
        raise misplaced
    return None


def _read_rows(file: File, finder: ImageFinder) -> tuple[list[str], list[Row], bool]:
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
        rows: list[Row] = [
            {str(key): "" if value is None else str(value) for key, value in o.items()}
            for o in objects
            if isinstance(o, dict)
        ]
        return list(rows[0]) if rows else [], rows, True
    first = text.partition("\n")[0]
    try:
        lines = list(csv.reader(io.StringIO(text, newline=None), delimiter=max(DELIMITERS, key=first.count)))
    except csv.Error:  # no table
        lines = []
    columns = lines[0] if lines else []
    has_header = all(finder.find(cell, folder_of(file)) == NO_MATCH for cell in columns)
    if not has_header:
        columns = [f"column {number}" for number in range(1, 1 + max(map(len, lines)))]
    return columns, [dict(zip(columns, line, strict=False)) for line in lines[has_header:]], has_header


def _tell_matches(file: File, named: FileColumn, finder: ImageFinder) -> Iterator[str]:
    """Yield where images are taken for others, or for none, as the table does not say which it means.

    Raises:
        UserError: Names might be those of images of another split, and others of it are in the table.
    """
    column = named.column
    shared = [(row.get(column) or "", match) for row, match in named.matches if match.others]
    if shared:
        value, match = shared[0]
        which = first_names(((match.image,) if match.image else ()) + match.others, NAMED)
        cause = f"{file.path} has {len(shared):,} names of files that are in several folders, first {value}: {which}"
        taken = [match for _, match in shared if match.image]
        known = {finder.split(match.image) for _, match in named.matches if match.image and not match.others}
        if known & {finder.split(other) for match in taken for other in match.others}:
            raise UserError(f"{cause}.", f"Write their folders into its column {column}, as in {match.others[0]}.")
        result = "the training images are taken for them" if taken else "these images are left out"
        yield f"{cause}; {result}. Where others are meant, write their folders into its column {column}."
    if moved := [(row.get(column) or "", match.image) for row, match in named.matches if match.image and match.moved]:
        value, image = moved[0]
        yield f"{file.path} names {value}; {image} is taken for it, though in another folder: {len(moved):,} of them."


def _tell_missing(file: File, named: FileColumn, listed: Sequence[File]) -> Iterator[str]:
    """Yield how many of the files that a table names are not there."""
    others = {PurePosixPath(other.name) for other in listed if not is_image(other.name)}
    names = {name for other in others for name in (other.name, other.stem)}
    missing = [
        value
        for row, match in named.matches
        if match == NO_MATCH and (value := row.get(named.column)) and names.isdisjoint(path_parts(value)[-1:])
    ]
    if missing:
        yield f"{file.path} names {image_count(len(missing))} that cannot be found here, first {missing[0]}."


def _read_labels(
    file: File, columns: Sequence[str], named: Sequence[tuple[Row, str]], label: str | None, others: Sequence[str]
) -> dict[str, str]:
    """Return the label of each image, by a column or by one for each class."""
    pairs = [(image, (row.get(label) or "").strip()) for row, image in named] if label else _one_hot(named, others)
    if not pairs:
        raise UserError(
            f"{file.path} has the columns {', '.join(columns)}; none is known to hold the labels.",
            "Name it: --label-column.",
        )
    return _one_each(file.path, "label", pairs)


def _read_splits(file: File, columns: Sequence[str], named: Sequence[tuple[Row, str]]) -> dict[str, Split]:
    """Return the split of each image by a column of them; {} where there is none."""
    for column in columns:
        if column.strip().lower() in SPLIT_COLUMNS:
            splits = parse_splits(file.path, column, [row.get(column) for row, _ in named])
            if splits:
                return _one_each(file.path, "split", zip((image for _, image in named), splits, strict=True))
    return {}


def parse_splits(table: Path, column: str, values: Sequence[str | None]) -> list[Split]:
    """Return the split of each row that a column names; [] where none of its values is one.

    Raises:
        UserError: Some are, and others are not.
    """
    splits = {value: named_split(value or "") for value in set(values)}
    odd = [value for value in values if splits[value] is None]
    if not odd:
        return [split for value in values if (split := splits[value])]
    if any(splits.values()):
        raise UserError(
            f"{table}: column {column!r} has {len(odd):,} of {len(values):,} values that name no split, "
            f"such as {(odd[0] or '').strip()!r}.",
            "Write train, val or test into each row, or rename the column.",
        )
    return []


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


def _one_each(table: Path, kind: str, pairs: Iterable[tuple[str, T]]) -> dict[str, T]:
    values: dict[str, T] = {}
    for image, value in pairs:
        if value and values.setdefault(image, value) != value:
            raise UserError(
                f"{table} gives {image} several {kind}s, {values[image]} and {value}.",
                f"Training takes one {kind} per image: remove the others, or the image.",
            )
    return values
