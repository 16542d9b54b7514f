"""Read what another program answered for images: a CSV of paths, and classes, probabilities or logits.

Of any program and any user: lines can be wrong. The table and its columns are found in `answer_table`; what explains
the answers is found in `diagnosis`.
"""

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from resnet_ops.data.dataset import EncodedImages
from resnet_ops.errors import UserError, did_you_mean
from resnet_ops.export import answer_table
from resnet_ops.export.answer_table import EXAMPLE, SAMPLED, Columns, ImageIndex, find_columns, read_rows
from resnet_ops.export.program_steps import Kind

Classes = tuple[int, int]  # of a cell: as a name where it can be both a name and a number, and as a number
Read = tuple[int, int, Classes, np.ndarray]  # a line that can be used: its number, the image, its class and values


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
        column: The column that the classes were read from, if another could have been it.
        is_cut: Whether the file has more lines than are read.
        numbered: The classes, if they are other ones where the names of classes are read as numbers of classes.
    """

    kind: Kind
    images: np.ndarray
    lines: np.ndarray
    classes: np.ndarray
    values: np.ndarray | None
    bad_lines: tuple[str, ...]
    column: str | None = None
    is_cut: bool = False
    numbered: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, rows: np.ndarray) -> "Answers":
        """Return some of the answers."""
        arrays = {name: getattr(self, name) for name in ("images", "lines", "classes", "values", "numbered")}
        return replace(self, **{name: array[rows] for name, array in arrays.items() if array is not None})


class BadLineError(ValueError):
    """A line that cannot be used: why, and what can be done."""

    def __init__(self, why: str, remedy: str) -> None:
        super().__init__(why)
        self.remedy = remedy


def read_answers(path: Path, images: EncodedImages, class_names: Sequence[str]) -> Answers:
    """Read the answers of another program, one for each image.

    Raises:
        UserError: The file is missing, too large or no table of text, has no column of paths or of answers, or most of
            its lines cannot be used.
    """
    index = ImageIndex(images)
    rows = read_rows(path, index)
    first = list(itertools.islice(rows, SAMPLED))
    columns = find_columns(path, first, index, class_names)
    reader = _LineReader(columns, index, class_names)
    read: list[Read] = []
    bad: list[tuple[int, BadLineError]] = []
    is_cut = False
    for number, (line, cells) in enumerate(itertools.chain(first[columns.has_header :], rows)):
        if number == answer_table.MAX_LINES:
            is_cut = True
            break
        try:
            read.append((line, *reader.read(cells)))
        except BadLineError as error:
            bad.append((line, error))
    read, conflicting = _one_each(read)
    bad = sorted([*bad, *conflicting], key=lambda one: one[0])
    if len(bad) > len(read) or not read:
        if not bad:
            raise UserError(f"{path} has no answers.", EXAMPLE)
        (line, why), count = bad[0], len(bad) + len(read)
        raise UserError(
            f"{len(bad):,} of the {count:,} lines of {path} cannot be used, first line {line}: {why}.", why.remedy
        )
    lines, rows_of_images, classes, values = (list(column) for column in zip(*read, strict=True))
    table = np.array(values) if columns.values else None
    by_name, by_number = np.array(classes).T
    return Answers(
        _kind(table),
        np.array(rows_of_images),
        np.array(lines),
        by_name,
        _from_percent(table),
        tuple(f"line {line}: {why}" for line, why in bad),
        columns.chosen,
        is_cut,
        None if np.array_equal(by_name, by_number) else by_number,
    )


def _one_each(read: Sequence[Read]) -> tuple[list[Read], list[tuple[int, BadLineError]]]:
    """Return the first of equal answers for an image, and the lines of those that differ."""
    of_image: dict[int, list[Read]] = defaultdict(list)
    for one in read:
        of_image[one[1]].append(one)
    kept, conflicting = [], []
    for same in of_image.values():
        if all(one[2] == same[0][2] and np.array_equal(one[3], same[0][3]) for one in same):
            kept.append(same[0])
            continue
        for line, *_ in same:
            other = same[1][0] if line == same[0][0] else same[0][0]
            why = f"its image has another answer in line {other}"
            conflicting.append((line, BadLineError(why, "Give one answer for each image.")))
    return kept, conflicting


def _from_percent(table: np.ndarray | None) -> np.ndarray | None:
    if table is not None and math.isclose(float(np.median(table.sum(1))), 100, abs_tol=0.5) and table.min() >= 0:
        return table / 100
    return table


def _kind(table: np.ndarray | None) -> Kind:
    values = _from_percent(table)
    if values is None:
        return "classes"
    return "probabilities" if values.min() >= -1e-3 and values.max() <= 1 + 1e-3 else "logits"


class _LineReader:
    """Reads one line: the image, its class, and the values if there are."""

    def __init__(self, columns: Columns, index: ImageIndex, class_names: Sequence[str]) -> None:
        self.columns, self.index, self.count = columns, index, len(class_names)
        self.label_of = {name: label for label, name in enumerate(class_names)}
        folded = [name.casefold() for name in class_names]
        self.label_of |= {n: i for i, n in enumerate(folded) if folded.count(n) == 1 and n not in self.label_of}
        self.class_names = class_names

    def read(self, cells: list[str]) -> tuple[int, Classes, np.ndarray]:
        """Return the number of the image, its class, and its values if there are.

        Raises:
            BadLineError: The line cannot be used.
        """
        needed = max(self.columns.path, self.columns.classes or 0, *self.columns.values)
        if len(cells) <= needed:
            raise BadLineError(f"it has {len(cells)} of {needed + 1} columns", EXAMPLE)
        try:
            image = self.index.find(cells[self.columns.path])
        except ValueError as error:
            raise BadLineError(str(error), f"{EXAMPLE} Choose the folder of the images: --data.") from None
        if self.columns.classes is not None:
            return image, self.labels(cells[self.columns.classes]), np.empty(0)
        values = np.array([self.number(cells[place]) for place in self.columns.values])
        largest = int(np.argmax(values))
        return image, (largest, largest), values

    def labels(self, cell: str) -> Classes:
        named = self.label_of.get(cell, self.label_of.get(cell.casefold()))
        number = int(float(cell)) if re.fullmatch(r"[+-]?\d{1,9}(\.0*)?", cell) else None
        if number is not None and -1 <= number <= self.count:  # a class number can be off by one
            return number if named is None else named, number
        if named is not None:
            return named, named
        listed = f"Classes: {', '.join(self.class_names)[:200]}."
        if number is not None:
            raise BadLineError(f"the network has no class number {number}, but {self.count} classes", listed)
        meant = did_you_mean(cell[:100], self.class_names).rstrip("?")
        raise BadLineError(f"the network has no class {cell[:100]!r}{f' ({meant}?)' if meant else ''}", listed)

    def number(self, cell: str) -> float:
        remedy = "Give a probability or a logit for each class: finite numbers such as 0.25, 2.5e-1 or 25%."
        try:
            value = float(cell[:-1]) / 100 if cell.endswith("%") else float(cell)
        except ValueError:
            raise BadLineError(f"{cell[:100]!r} is not a number", remedy) from None
        if not math.isfinite(value) or abs(value) > 1e30:
            raise BadLineError(f"a value is {cell[:20]}", remedy)
        return value
