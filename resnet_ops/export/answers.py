"""Read what another program answered for images: a CSV of paths, and classes, probabilities or logits.

Of any program and any user: separators, names of columns and forms of paths differ, and lines can be wrong. What
explains the answers is found in `diagnosis`.
"""

import csv
import io
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from resnet_ops import formatting
from resnet_ops.data.dataset import EncodedImages
from resnet_ops.errors import UserError, did_you_mean
from resnet_ops.export.program_steps import Kind

MAX_CSV_BYTES = 64 * 2**20  # some hundred images are enough
PATH_NAMES = ("path", "image_path", "filepath", "file_path", "file", "filename", "file_name", "image", "image_name",
              "img", "image_id", "name", "id")  # fmt: skip
CLASS_NAMES = ("class", "class_name", "class_id", "class_index", "predicted_class", "prediction", "predicted", "pred",
               "label", "predicted_label", "answer", "output", "category", "top1", "argmax", "index")  # fmt: skip
VALUE = re.compile(r"(?:probabilities|probability|prob|logits?|scores?|output|out|class|p|y)?[\s_\-\[(:.]*(.+?)[\])]*")
EXAMPLE = "The first line names the columns: path,class or path and a column for each class."


@dataclass(frozen=True)
class Answers:
    """The answers of another program.

    Args:
        kind: Their kind.
        images: The number of the image that each is for, (N,).
        lines: The line that each is in, (N,).
        classes: The class with the highest value, (N,); -1 and the number of classes are possible, if they are numbers.
        values: Probabilities or logits (N, classes), if they are given.
        bad_lines: Why a line cannot be used, for each of those.
    """

    kind: Kind
    images: np.ndarray
    lines: np.ndarray
    classes: np.ndarray
    values: np.ndarray | None
    bad_lines: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, rows: np.ndarray) -> "Answers":
        """Return some of the answers."""
        values = None if self.values is None else self.values[rows]
        return Answers(self.kind, self.images[rows], self.lines[rows], self.classes[rows], values, self.bad_lines)


@dataclass(frozen=True)
class Columns:
    """The columns of a table: that of the paths, and that of the classes or those of the values, in order."""

    path: int
    classes: int | None
    values: tuple[int, ...] = ()


@dataclass
class ImageIndex:
    """Finds images by what programs write for paths: whole or relative, of Windows or not, or the name alone."""

    images: EncodedImages
    by_name: dict[str, list[tuple[tuple[str, ...], int]]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        for row in range(len(self.images.labels)):
            parts = _parts(self.images.name(row))
            for name in {parts[-1], PurePosixPath(parts[-1]).stem}:
                self.by_name[name].append((parts, row))

    def find(self, path: str) -> int:
        """Return the number of the image that shares the longest end with `path`.

        Raises:
            ValueError: There is none, or more than one.
        """
        parts = _parts(path)
        candidates = self.by_name.get(parts[-1], []) if parts else []
        lengths = [_shared_end(parts, own) for own, _ in candidates]
        best = [row for length, (_, row) in zip(lengths, candidates, strict=True) if length == max(lengths)]
        if len(best) == 1:
            return best[0]
        if not best and path.isdecimal() and int(path) < len(self.images.labels):
            return int(path)
        asked = repr(path[:100])
        raise ValueError(f"{asked} is the name of {len(best)} images" if best else f"there is no image {asked}")


def _parts(path: str) -> tuple[str, ...]:
    cleaned = path.strip().removeprefix("file://").replace("\\", "/")
    return tuple(part for part in cleaned.split("/") if part not in ("", "."))


def _shared_end(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    pairs = list(zip(reversed(one), reversed(other), strict=False))[1:]  # the names are the same, but for the ending
    return next((length for length, (a, b) in enumerate(pairs) if a != b), len(pairs))


def read_answers(path: Path, images: EncodedImages, class_names: Sequence[str]) -> Answers:
    """Read the answers of another program.

    Raises:
        UserError: The file is missing, too large or no table of text, has no column of paths or of answers, or most of
            its lines cannot be used.
    """
    rows = _read_table(path)
    index = ImageIndex(images)
    columns = _columns_without_header(rows[0][1], index, len(class_names))
    if columns is None:
        columns = _columns(path, rows[0][1], rows[1][1] if len(rows) > 1 else [], index, class_names)
        rows = rows[1:]
    reader = _LineReader(columns, index, class_names)
    bad, read = [], []
    for line, cells in rows:
        try:
            read.append((line, *reader.read(cells)))
        except ValueError as error:
            bad.append(f"line {line}: {error}")
    if len(bad) > len(read) or not read:
        cause = (
            f"{len(bad):,} of the {len(rows):,} lines of {path} cannot be used" if rows else f"{path} has no answers"
        )
        raise UserError(
            f"{cause}{', first ' + bad[0] if bad else ''}.", f"{EXAMPLE} Choose the folder of the images: --data."
        )
    lines, rows_of_images, classes, values = (list(column) for column in zip(*read, strict=True))
    table = np.array(values) if columns.values else None
    kind: Kind = "classes"
    if table is not None:
        if math.isclose(float(np.median(table.sum(1))), 100, abs_tol=0.5) and table.min() >= 0:
            table = table / 100  # percent
        kind = "probabilities" if table.min() >= -1e-3 and table.max() <= 1 + 1e-3 else "logits"
    return Answers(kind, np.array(rows_of_images), np.array(lines), np.array(classes), table, tuple(bad))


def _read_table(path: Path) -> list[tuple[int, list[str]]]:
    """Return the lines that are not empty, each with its number and its cells."""
    try:
        size = path.stat().st_size if path.is_file() else None
        if size is None:
            what = "is a folder" if path.is_dir() else "does not exist"
            raise UserError(f"{path} {what}.", "Give a CSV of your program's answers: --outputs.")
        if size > MAX_CSV_BYTES:
            raise UserError(
                f"{path} has {formatting.size(size)}, more than the {formatting.size(MAX_CSV_BYTES)} that are read.",
                "Give fewer images: some hundred are enough.",
            )
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    try:
        text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8 (byte {error.start}).", "Save it as CSV in UTF-8.") from None
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = max(",;\t|", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    rows = []
    try:
        for cells in reader:
            stripped = [cell.strip() for cell in cells]
            if any(stripped):
                # Where ; separates, numbers are often written 0,5.
                rows.append((reader.line_num, [_point(cell) for cell in stripped] if delimiter == ";" else stripped))
    except csv.Error as error:
        raise UserError(f"Line {reader.line_num} of {path} cannot be read: {error}.", "Save it as CSV.") from None
    if not rows or len(rows[0][1]) < 2:
        raise UserError(f"{path} is no table of at least two columns.", EXAMPLE)
    return rows


def _point(cell: str) -> str:
    return cell.replace(",", ".") if re.fullmatch(r"[+-]?\d*,\d+(?:[eE][+-]?\d+)?", cell) else cell


def _columns_without_header(first: list[str], index: ImageIndex, classes: int) -> Columns | None:
    """Return the columns of a table whose first line is an answer; None if it names the columns."""
    if first[0].casefold() in PATH_NAMES:
        return None
    try:
        index.find(first[0])
    except ValueError:
        return None
    return (
        Columns(0, None, tuple(range(1, classes + 1))) if classes > 1 and len(first) == classes + 1 else Columns(0, 1)
    )


def _columns(path: Path, header: list[str], first: list[str], index: ImageIndex, class_names: Sequence[str]) -> Columns:
    lowered = [name.casefold() for name in header]
    named = [lowered.index(name) for name in PATH_NAMES if name in lowered]
    of_path = named[0] if named else next((i for i, cell in enumerate(first) if _is_image(cell, index)), None)
    listed = ", ".join(header)[:200]
    if of_path is None:
        raise UserError(f"{path} has no column of image paths among {listed}.", f"{EXAMPLE} Images are in --data.")
    others = {number: name for number, name in enumerate(header) if number != of_path}
    partly: list[str] = []
    for places in _value_columns(others, class_names):
        missing = [name for name, place in zip(class_names, places, strict=True) if place is None]
        if not missing:
            return Columns(of_path, None, tuple(place for place in places if place is not None))
        if len(missing) < len(class_names) - 1:
            partly = partly or missing
    of_class = [lowered.index(name) for name in CLASS_NAMES if name in lowered and lowered.index(name) in others]
    if of_class or len(others) == 1:
        return Columns(of_path, of_class[0] if of_class else next(iter(others)))
    if partly:
        raise UserError(f"{path} has no column for class {partly[0]!r} ({len(partly)} missing).", EXAMPLE)
    raise UserError(
        f"{path} has neither a column of classes nor one for each class of the network, among {listed}.",
        f"{did_you_mean(header[-1], CLASS_NAMES)} {EXAMPLE} Classes: {', '.join(class_names)[:200]}.",
    )


def _is_image(cell: str, index: ImageIndex) -> bool:
    try:
        index.find(cell)
    except ValueError:
        return False
    return not re.fullmatch(r"[+-]?\d*\.?\d*", cell)


def _value_columns(others: dict[int, str], class_names: Sequence[str]) -> Iterator[list[int | None]]:
    """Yield the columns of each class, as far as there are: by its name, after p_ or the like, by its number."""
    exact = {name: number for number, name in others.items()}
    yield [exact.get(name) for name in class_names]
    rest = {match[1]: number for number, name in others.items() if (match := VALUE.fullmatch(name.casefold()))}
    yield [rest.get(name.casefold()) for name in class_names]
    yield [rest.get(str(label)) for label in range(len(class_names))]
    yield [rest.get(str(label + 1)) for label in range(len(class_names))]


class _LineReader:
    """Reads one line: the image, its class, and the values if there are."""

    def __init__(self, columns: Columns, index: ImageIndex, class_names: Sequence[str]) -> None:
        self.columns, self.index, self.count = columns, index, len(class_names)
        self.label_of = {name: label for label, name in enumerate(class_names)}
        folded = [name.casefold() for name in class_names]
        self.label_of |= {n: i for i, n in enumerate(folded) if folded.count(n) == 1 and n not in self.label_of}
        self.class_names = class_names

    def read(self, cells: list[str]) -> tuple[int, int, list[float]]:
        """Return the number of the image, its class, and its values or [].

        Raises:
            ValueError: The line cannot be used.
        """
        needed = max(self.columns.path, self.columns.classes or 0, *self.columns.values)
        if len(cells) <= needed:
            raise ValueError(f"it has {len(cells)} of {needed + 1} columns")
        image = self.index.find(cells[self.columns.path])
        if self.columns.classes is not None:
            return image, self.label(cells[self.columns.classes]), []
        values = [self.number(cells[place]) for place in self.columns.values]
        return image, int(np.argmax(values)), values

    def label(self, cell: str) -> int:
        label = self.label_of.get(cell, self.label_of.get(cell.casefold()))
        if label is not None:
            return label
        if not re.fullmatch(r"[+-]?\d{1,9}(\.0*)?", cell):
            raise ValueError(
                f"the network has no class {cell[:100]!r}. {did_you_mean(cell[:100], self.class_names)}".rstrip()
            )
        label = int(float(cell))
        if not -1 <= label <= self.count:  # one more and one less can be a class number that is off by one
            raise ValueError(f"the network has no class number {label}, but {self.count} classes")
        return label

    def number(self, cell: str) -> float:
        try:
            value = float(cell)
        except ValueError:
            raise ValueError(f"{cell[:100]!r} is not a number") from None
        if not math.isfinite(value) or abs(value) > 1e30:
            raise ValueError(f"a value is {cell[:20]}")
        return value
