"""Read a table of answers from a CSV, and find its columns: of any program, with a first line of names or without.

What the cells say is read in `answers`.
"""

import csv
import io
import itertools
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from resnet_ops import formatting
from resnet_ops.data.dataset import EncodedImages
from resnet_ops.errors import UserError, did_you_mean, did_you_mean_path

MAX_CSV_BYTES, MAX_LINES = 64 * 2**20, 100_000  # some hundred images are enough
SAMPLED = 20  # lines that show what is in a column
PATH_NAMES = ("path", "image_path", "img_path", "filepath", "file_path", "file", "filename", "file_name", "image",
              "image_name", "img", "image_id", "name", "id")  # fmt: skip
# Of predictions first: where there are more, a class or a label can be the true one.
CLASS_NAMES = ("prediction", "predicted", "predicted_class", "predicted_label", "pred", "pred_class", "pred_label",
               "top1", "answer", "output", "argmax", "class", "class_name", "class_id", "class_index", "label",
               "category", "index")  # fmt: skip
TRUTH = re.compile(r"(?:y_?)?(?:true|target|ground_?truth|gt|actual|expected)(?:_.*)?|.*_(?:true|truth|target|gt)")
VALUE_PREFIX = re.compile(r"(?:probabilities|probability|prob|logits?|scores?|output|out|class|p|y)?[\s_\-\[(:.]*")
MAX_NAME = 200  # characters of a column's name
SEPARATOR = re.compile(r'"?sep=(.)"?', re.IGNORECASE)  # the first line, as Excel writes and reads it
NUMBER = re.compile(r"[+-]?\d*[.,]?\d*(?:[eE][+-]?\d+)?\s*%?")
EXAMPLE = "The first line names the columns: path,class or path and a column for each class."

Row = tuple[int, list[str]]  # the number of the line, its cells


@dataclass(frozen=True)
class Columns:
    """The columns of a table: that of the paths, and that of the classes or those of the values, in order.

    Args:
        path: The column of paths.
        classes: The column of classes, if there are no values.
        values: The columns of values.
        has_header: Whether the first line names the columns.
        chosen: The name of the column of classes, if another could have been it.
    """

    path: int
    classes: int | None
    values: tuple[int, ...] = ()
    has_header: bool = True
    chosen: str | None = None


@dataclass
class ImageIndex:
    """Finds images by what programs write for paths: whole or relative, of Windows or not, or the name alone."""

    images: EncodedImages
    by_name: dict[str, list[tuple[tuple[str, ...], int]]] = field(default_factory=lambda: defaultdict(list))
    by_path: dict[tuple[str, ...], int] = field(default_factory=dict)  # of Parquet, all images of a file share a name

    def __post_init__(self) -> None:
        for row in range(len(self.images.labels)):
            parts = _parts(self.images.name(row))
            self.by_path[parts] = row
            for name in {parts[-1].casefold(), PurePosixPath(parts[-1]).stem.casefold()}:
                self.by_name[name].append((parts, row))

    def is_name(self, cell: str) -> bool:
        """Return whether an image has this name."""
        parts = _parts(cell)
        return bool(parts) and parts[-1].casefold() in self.by_name

    def find(self, path: str) -> int:
        """Return the number of the image that shares the longest end with `path`; upper case matters for equals only.

        Raises:
            ValueError: There is none, or more than one.
        """
        parts = _parts(path)
        if parts in self.by_path:
            return self.by_path[parts]
        candidates = self.by_name.get(parts[-1].casefold(), []) if parts else []
        shared = [_shared_end(parts, own) for own, _ in candidates]
        best = [row for end, (_, row) in zip(shared, candidates, strict=True) if end == max(shared)]
        if len(best) == 1:
            return best[0]
        if not best and path.isdecimal() and len(path) < 10 and int(path) < len(self.images.labels):
            return int(path)
        asked = repr(path[:100])
        raise ValueError(f"{asked} is the name of {len(best)} images" if best else f"there is no image {asked}")


def _parts(path: str) -> tuple[str, ...]:
    cleaned = path.strip().removeprefix("file://").replace("\\", "/")
    return tuple(part for part in cleaned.split("/") if part not in ("", "."))


def _shared_end(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[int, ...]:
    """Return how many folders before the name are equal, whether the name is, and how many are with upper case."""

    def shared(a: tuple[str, ...], b: tuple[str, ...]) -> int:
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))

    a, b = one[-2::-1], other[-2::-1]
    folded = shared(tuple(map(str.casefold, a)), tuple(map(str.casefold, b)))
    name = (one[-1] == other[-1]) * 2 + (one[-1] == PurePosixPath(other[-1]).stem)
    return folded, name, shared(a, b)


def read_rows(path: Path, index: ImageIndex) -> Iterator[Row]:
    """Yield the lines of a table that are neither empty nor comments.

    Raises:
        UserError: The file is missing, too large, or no table of text.
    """
    text = _read_text(path)
    first = re.search(r"\S[^\r\n]*", text)
    named = SEPARATOR.fullmatch(first[0].strip()) if first else None
    start = next((line for line in _uncommented(text, index) if line.strip()), "")
    delimiter = named[1] if named else max(",;\t|", key=start.count)
    reader = csv.reader(_uncommented(text, index), delimiter=delimiter, skipinitialspace=True)
    try:
        for cells in reader:
            stripped = [cell.strip() for cell in cells]
            if any(stripped):
                # Where ; separates, numbers are often written 0,5.
                yield reader.line_num, [_point(c) for c in stripped] if delimiter == ";" else stripped
    except csv.Error as error:
        raise UserError(f"Line {reader.line_num} of {path} cannot be read: {error}.", "Save it as CSV.") from None


def _read_text(path: Path) -> str:
    try:
        size = path.stat().st_size if path.is_file() else None
        if size is None:
            what = "is a folder" if path.is_dir() else "does not exist"
            near = did_you_mean_path(path)
            raise UserError(f"{path} {what}.", f"{near} Give a CSV of your program's answers: --outputs.")
        if size > MAX_CSV_BYTES:
            raise UserError(
                f"{path} has {formatting.size(size)}, more than the {formatting.size(MAX_CSV_BYTES)} that are read.",
                "Give fewer images: some hundred are enough.",
            )
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    try:
        return formatting.decode_text(content)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8 (byte {error.start}).", "Save it as CSV in UTF-8.") from None


def _uncommented(text: str, index: ImageIndex) -> Iterator[str]:
    """Empty the lines that are comments: not `# path,class`, as NumPy writes it, nor of images whose name has a #."""
    for line in io.StringIO(text, newline=""):
        if SEPARATOR.fullmatch(line.strip()):
            line = "\n"
        elif line.startswith("#"):
            bare = line.lstrip("# ")
            cells = [cell.strip(" \"'\r\n") for cell in re.split(r"[,;\t|]", bare[:10_000])]
            if len(cells) > 1 and _name(cells[0]) in PATH_NAMES:
                line = bare
            elif not index.is_name(re.split(r"[,;\t|]", line, maxsplit=1)[0]):
                line = "\n"
        yield line


def _point(cell: str) -> str:
    return cell.replace(",", ".") if re.fullmatch(r"[+-]?\d*,\d+(?:[eE][+-]?\d+)?\s*%?", cell) else cell


def _name(cell: str) -> str:
    """Return the name of a column in the form of `PATH_NAMES`; '' if it is too long for one."""
    return re.sub(r"[\s\-]+", "_", cell.casefold()) if len(cell) <= MAX_NAME else ""


def find_columns(path: Path, rows: Sequence[Row], index: ImageIndex, class_names: Sequence[str]) -> Columns:
    """Return where the paths and the answers are in a table, of which `rows` are the first lines.

    Raises:
        UserError: It has no column of paths or of answers.
    """
    if not rows or len(rows[0][1]) < 2:
        raise UserError(f"{path} is no table of at least two columns.", EXAMPLE)
    first, sample = rows[0][1], [cells for _, cells in (rows[1:] or rows)]
    named = _path_column(sample, len(first), index)
    if _has_header(first, named, index, class_names):
        return _named_columns(path, first, sample, named, index, class_names)
    of_path = named or 0
    others = [place for place in range(len(first)) if place != of_path and not _counts(place, sample, of_path)]
    if not others:
        raise UserError(f"{path} has a column of image paths, but none of answers.", EXAMPLE)
    numeric = all(NUMBER.fullmatch(cells[place]) for cells in sample for place in others if place < len(cells))
    if len(others) == len(class_names) > 1 and numeric:
        return Columns(of_path, None, tuple(others), has_header=False)
    folded = {name.casefold() for name in class_names} | {str(label) for label in range(-1, len(class_names) + 1)}
    counts = [sum(_cell(cells, place).casefold() in folded for cells in sample) for place in others]
    return Columns(of_path, others[counts.index(max(counts))], has_header=False)


def _cell(cells: Sequence[str], place: int) -> str:
    return cells[place] if place < len(cells) else ""


def _path_column(sample: Sequence[list[str]], width: int, index: ImageIndex) -> int | None:
    """Return the column in which most cells are names of images; those that are numbers count less."""

    def names(place: int) -> tuple[int, int]:
        cells = [_cell(row, place) for row in sample]
        known = [cell for cell in cells if index.is_name(cell)]
        return sum(not NUMBER.fullmatch(cell) for cell in known), len(known)

    best = max(range(width), key=names)
    return best if any(names(best)) else None


def _has_header(first: list[str], of_path: int | None, index: ImageIndex, class_names: Sequence[str]) -> bool:
    is_answer = of_path is not None and index.is_name(first[of_path])
    if any(_name(cell) in PATH_NAMES for cell in first):
        others = [cell for place, cell in enumerate(first) if place != of_path]
        has_numbers = all(map(NUMBER.fullmatch, others)) and any("." in cell for cell in others)
        return not (is_answer and (has_numbers or sum(cell in class_names for cell in others) == 1))
    return not is_answer if of_path is not None else not _is_number_of_image(first[0], index)


def _is_number_of_image(cell: str, index: ImageIndex) -> bool:
    try:
        index.find(cell)
    except ValueError:
        return False
    return True


def _counts(place: int, sample: Sequence[list[str]], of_path: int) -> bool:
    """Return whether a column before the paths only counts the lines, as the index of pandas does."""
    cells = [_cell(row, place) for row in sample]
    start = int(cells[0]) if cells[0].isdecimal() and len(cells[0]) < 10 else -1
    return place < of_path and start in (0, 1, 2) and cells == [str(start + line) for line in range(len(cells))]


def _named_columns(
    path: Path,
    header: list[str],
    sample: Sequence[list[str]],
    named: int | None,
    index: ImageIndex,
    class_names: Sequence[str],
) -> Columns:
    lowered = [_name(cell) for cell in header]
    of_paths = [lowered.index(name) for name in PATH_NAMES if name in lowered]
    with_images = [place for place in of_paths if any(index.is_name(_cell(row, place)) for row in sample)]
    if named is not None and all(NUMBER.fullmatch(_cell(row, named)) for row in sample):
        named = None  # a column of any numbers
    of_path = next(iter([*with_images, *of_paths]), named)
    listed = ", ".join(cell for cell in header if cell)[:MAX_NAME].rstrip(".")
    if of_path is None:
        raise UserError(f"{path} has no column of image paths among {listed}.", f"{EXAMPLE} Images are in --data.")
    others = {
        place: name
        for place, name in enumerate(header)
        if place != of_path and name and len(name) <= MAX_NAME and lowered[place] != "unnamed:_0"
    }
    partly: list[str] = []
    for places in _value_columns(others, class_names):
        missing = [name for name, place in zip(class_names, places, strict=True) if place is None]
        if not missing:
            return Columns(of_path, None, tuple(place for place in places if place is not None))
        if len(missing) < len(class_names) - 1:
            partly = partly or missing
    of_class = [lowered.index(name) for name in CLASS_NAMES if name in lowered and lowered.index(name) in others]
    untrue = [place for place in others if not TRUTH.fullmatch(lowered[place])]
    if of_class or (len(untrue) == 1 and len(others) == 1):
        chosen = header[of_class[0]] if len(of_class) > 1 else None
        return Columns(of_path, of_class[0] if of_class else untrue[0], chosen=chosen)
    if partly:
        raise UserError(f"{path} has no column for class {partly[0]!r} ({len(partly)} missing).", EXAMPLE)
    raise UserError(
        f"{path} has neither a column of your program's classes nor one for each class of the network, among {listed}.",
        f"{did_you_mean(header[-1][:MAX_NAME], CLASS_NAMES)} {EXAMPLE} Classes: {', '.join(class_names)[:MAX_NAME]}.",
    )


def _value_columns(others: dict[int, str], class_names: Sequence[str]) -> Iterator[list[int | None]]:
    """Yield the columns of each class, as far as there are: by its name, after p_ or the like, by its number."""
    exact = {name: place for place, name in others.items()}
    yield [exact.get(name) for name in class_names]
    folded = {name.casefold(): place for place, name in others.items()}
    bare = {_without_prefix(name): place for name, place in folded.items()}
    if len({name.casefold() for name in class_names}) == len(class_names):
        yield [folded.get(name.casefold()) for name in class_names]
        yield [bare.get(name.casefold()) for name in class_names]
    yield [bare.get(str(label)) for label in range(len(class_names))]
    yield [bare.get(str(label + 1)) for label in range(len(class_names))]


def _without_prefix(name: str) -> str:
    stripped = name.rstrip("])")
    prefix = VALUE_PREFIX.match(stripped)
    return stripped[prefix.end() :] if prefix else stripped
