"""Read the labels of loose images from a table beside them: CSV, TSV or JSON lines, as Kaggle and Hugging Face have it.

Which folders need one is decided in folders.py.
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from resnet_ops import files
from resnet_ops.data.dataset import SPLIT_OF, Split, split_word
from resnet_ops.data.listing import File
from resnet_ops.errors import UserError

TABLES = (".csv", ".tsv", ".jsonl")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "category", "target", "class_name", "label_name")
LEAST_NAMED = 0.5  # of the images that a table names, at least; one of another folder names none


@dataclass(frozen=True)
class LabelTable:
    """A table, and the label of each image that it names, by the name of its file."""

    file: File
    labels: dict[str, str]


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
) -> LabelTable | None:
    """Return the first table in one of some folders that names images and labels them.

    Args:
        root: The folder that all names are relative to.
        folders: Where the table may be, each with '/' at its end, '' for the root.
        listed: The files.
        images: Those to label.
        label_column: The column of the labels; None for the first of their usual names, or the only other one.
        split: The split of the images: a table that is named after another one is none of theirs.

    Raises:
        UserError: A table names the images, and several columns might be their labels.
    """
    candidates = [
        file
        for folder in dict.fromkeys(folders)
        for file in listed
        if is_table(file.name)
        and file.name.rpartition("/")[0] == folder.rstrip("/")
        and SPLIT_OF.get(split_word(PurePosixPath(file.name).name) or "", split) == split
    ]
    for file in candidates:
        rows = _read_rows(file)
        column, names = _file_column(rows, _names_of(images, folders))
        if column is None:
            continue
        others = [name for name in rows[0] if name != column]
        if not others:
            continue
        usual = (label_column,) if label_column else LABEL_COLUMNS
        lower = {name.strip().lower(): name for name in others}
        label = next((lower[name.lower()] for name in usual if name.lower() in lower), None)
        if label is None and len(others) == 1 and label_column is None:
            label = others[0]
        if label is None:
            raise UserError(
                f"{root / file.name} has the columns {', '.join(rows[0])}; none is known to hold the labels.",
                "Name it: --label-column.",
            )
        labels = {names[row[column]]: row[label].strip() for row in rows if row.get(column) in names and row.get(label)}
        return LabelTable(file, {name: text for name, text in labels.items() if text})
    return None


def _read_rows(file: File) -> list[dict[str, str]]:
    text = files.read(file.path).decode("utf-8-sig", errors="replace")
    if file.name.lower().endswith(".jsonl"):
        try:
            objects = [json.loads(line) for line in text.splitlines() if line.strip()]
        except ValueError:
            return []
        return [{str(key): str(value) for key, value in each.items()} for each in objects if isinstance(each, dict)]
    first = text.partition("\n")[0]
    delimiter = max("\t;,", key=first.count)
    return [dict(row) for row in csv.DictReader(io.StringIO(text), delimiter=delimiter, restkey="")]


def _names_of(images: Sequence[File], folders: Sequence[str]) -> dict[str, str]:
    """Return the file of each name that a table may have for it: relative to a folder, or without its extension."""
    names: dict[str, str] = {}
    for image in images:
        for own in (
            image.name,
            *(image.name.removeprefix(folder) for folder in folders),
            PurePosixPath(image.name).name,
        ):
            names.setdefault(own, image.name)
            names.setdefault(str(PurePosixPath(own).with_suffix("")), image.name)
    return names


def _file_column(rows: Sequence[Mapping[str, str]], names: Mapping[str, str]) -> tuple[str | None, dict[str, str]]:
    """Return the column that names at least `LEAST_NAMED` of the images, and the image of each of its values."""
    needed = len(set(names.values()))

    def known(column: str) -> Iterator[tuple[str, str]]:
        for row in rows:
            value = row.get(column)
            if isinstance(value, str) and (image := names.get(value.strip().removeprefix("./"))):
                yield value, image

    for column in rows[0] if rows else ():
        image_of = dict(known(column))
        if len(set(image_of.values())) >= LEAST_NAMED * needed:
            return column, image_of
    return None, {}
