"""Read the labels of loose images from a table beside them: CSV, TSV, text or JSON lines, as on Kaggle and the Hub.

Which folders need one is decided in folders.py.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from resnet_ops import files
from resnet_ops.data.dataset import SPLIT_OF, Split, image_count, split_word
from resnet_ops.data.image_finder import NO_MATCH, ImageFinder, Match, path_parts
from resnet_ops.data.image_kinds import is_image
from resnet_ops.data.listing import File
from resnet_ops.errors import UserError
from resnet_ops.formatting import decode_text, first_names, text_lines

TABLES = (".csv", ".tsv", ".txt", ".jsonl")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "category", "target", "class_name", "label_name", "choice")
FILE_COLUMNS = (
    *("file_name", "filename", "filenames", "file", "files", "file_path", "filepath", "filepaths", "path", "paths"),
    *("image", "images", "image_name", "image_path", "image_id", "img", "img_name", "img_path", "name", "id"),
)
INDEX = re.compile(r"(unnamed: \d+|index)?")  # of pandas, which numbers rows
SPLIT_COLUMNS = ("split", "set", "subset", "partition", "data set", "dataset")
DELIMITERS = "\t;, "
SUBMISSION = "submission"  # in the name of a contest's table of test images, whose labels are made up
NAMED = 3  # images that a message names
LEAST_NAMED = 0.5  # of the images that a table names, at least; one of another folder names none
Row = Mapping[str, str]


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
        known_column: Whether a table counts only if a column has that name, or a usual one.

    Raises:
        UserError: A table names the images, but not which, or several columns might be their names or their labels, or
            images have several labels.
    """
    candidates = [
        file
        for folder in dict.fromkeys(folders)
        for file in listed
        if is_table(file.name)
        and _folder(file) == folder
        and SUBMISSION not in file.name.lower()
        and SPLIT_OF.get(split_word(PurePosixPath(file.name).name) or "", split) == split
    ]
    usual = (label_column,) if label_column else LABEL_COLUMNS
    own = {image.name for image in images}
    misplaced: UserError | None = None
    for file in candidates:
        columns, rows, has_header = _read_rows(file, finder)
        lower = {name.strip().lower(): name for name in columns}
        label = next((lower[name.lower()] for name in usual if name.lower() in lower), None)
        named = _choose_file_column(file, [name for name in columns if name != label], rows, finder, own)
        if named is None:
            misplaced = misplaced or _find_misplaced(file, columns, rows, finder, len(own))
            continue
        others = [name for name in columns if name != named.column]
        if not others or (label is None and known_column):
            continue
        if label is None and label_column is None and (len(others) == 1 or not has_header):
            after = columns.index(named.column) + 1  # as in lists of Caffe
            label = columns[after] if after < len(columns) else others[0]
        mine = [(row, match.image) for row, match in named.matches if match.image in own]
        pairs = [(image, (row.get(label) or "").strip()) for row, image in mine] if label else _one_hot(mine, others)
        if not pairs:
            raise UserError(
                f"{file.path} has the columns {', '.join(columns)}; none is known to hold the labels.",
                "Name it: --label-column.",
            )
        splits = next(filter(None, (_splits(mine, lower.get(name)) for name in SPLIT_COLUMNS)), {})
        notes = (*named.notes, *_tell_matches(file, named, finder), *_tell_missing(file, named, listed))
        return LabelTable(file, label or "", _one_label_each(file.path, pairs), splits, notes)
    if misplaced and split == "train" and not known_column:
        raise misplaced
    return None


def _folder(file: File) -> str:
    return file.name.removesuffix(PurePosixPath(file.name).name)


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
        rows: list[Row] = [{str(key): str(value) for key, value in o.items()} for o in objects if isinstance(o, dict)]
        return list(rows[0]) if rows else [], rows, True
    first = text.partition("\n")[0]
    try:
        lines = list(csv.reader(io.StringIO(text, newline=None), delimiter=max(DELIMITERS, key=first.count)))
    except csv.Error:  # no table
        lines = []
    columns = lines[0] if lines else []
    has_header = all(finder.find(cell, _folder(file)) == NO_MATCH for cell in columns)
    if not has_header:
        columns = [f"column {number}" for number in range(1, 1 + max(map(len, lines)))]
    return columns, [dict(zip(columns, line, strict=False)) for line in lines[has_header:]], has_header


@dataclass(frozen=True)
class FileColumn:
    """The column of a table that names files, each row with what it names, and what the user should know."""

    column: str
    matches: tuple[tuple[Row, Match], ...]
    notes: tuple[str, ...]


def _choose_file_column(
    file: File, columns: Sequence[str], rows: Sequence[Row], finder: ImageFinder, own: Set[str]
) -> FileColumn | None:
    """Return the column that names at least `LEAST_NAMED` of the images; None where none does.

    Of several the one with extensions, or else with a usual name, or at least a name: numbers of rows name images, too,
    where these are numbered.

    Raises:
        UserError: Several are alike in that, and name other images.
    """
    folder = _folder(file)
    split_column = next((name for name in columns if name.strip().lower() in SPLIT_COLUMNS), "")
    splits = [SPLIT_OF.get(split_word(row.get(split_column) or "") or "") for row in rows]
    naming: dict[str, list[Match]] = {}
    for column in columns:
        matches = [finder.find(row.get(column), folder, split) for row, split in zip(rows, splits, strict=True)]
        if len({match.image for match in matches} & own) >= LEAST_NAMED * len(own):
            naming[column] = matches

    def rank(column: str) -> tuple[bool, bool, bool]:
        name = column.strip().lower()
        has_extensions = any(is_image(row.get(column) or "") for row in rows)
        return not has_extensions, name not in FILE_COLUMNS, INDEX.fullmatch(name) is not None

    column = min(naming, key=rank, default="")
    if not naming or (rank(column)[2] and min(map(rank, columns)) < (True, True)):  # the one meant names none
        return None
    others = [other for other in naming if naming[other] != naming[column]]
    if alike := [other for other in others if rank(other) == rank(column)]:
        raise UserError(
            f"{file.path} names images by its column {column!r}, and others by {alike[0]!r}.",
            "Give the names their extensions in the column that is meant, as in 0.png.",
        )
    note = f"{file.path} names images by its column {column!r}, and others by {first_names(map(repr, others), NAMED)}."
    return FileColumn(column, tuple(zip(rows, naming[column], strict=True)), (note,) if others else ())


def _find_misplaced(
    file: File, columns: Sequence[str], rows: Sequence[Row], finder: ImageFinder, count: int
) -> UserError | None:
    """Return the error where a table names files of which there are only namesakes, in other folders."""
    for column in columns:
        values = [value for row in rows if (value := row.get(column)) and is_image(value)]
        namesakes = {value: images for value in values if (images := finder.namesakes(value))}
        none_is_here = all(finder.find(value, _folder(file)) == NO_MATCH for value in namesakes)
        if none_is_here and len(namesakes) >= LEAST_NAMED * count:
            value, (image, *_) = next(iter(namesakes.items()))
            return UserError(
                f"{file.path} names {value}, which is not here; {image} is another file.",
                f"Write the paths from the table on, or names alone, into its column {column}.",
            )
    return None


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
