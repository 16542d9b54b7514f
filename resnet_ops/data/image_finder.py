"""Find the images that the rows of a table mean, by their paths or names, among all images of a folder.

What a table says of them is read in label_table.py.
"""

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from resnet_ops.data.dataset import Split, named_split
from resnet_ops.data.image_kinds import is_image
from resnet_ops.data.listing import File
from resnet_ops.errors import UserError
from resnet_ops.formatting import first_names

ABSOLUTE = re.compile(r"[/\\]|[A-Za-z][A-Za-z0-9+.-]*:")  # of a disk, a drive of Windows or a URL
FILE_COLUMNS = (
    *("file_name", "filename", "filenames", "file", "files", "file_path", "filepath", "filepaths", "path", "paths"),
    *("image", "images", "image_name", "image_path", "image_id", "img", "img_name", "img_path", "name", "id"),
)
INDEX = re.compile(r"(unnamed: \d+|index)?")  # of pandas, which numbers rows
SPLIT_COLUMNS = ("split", "set", "subset", "partition", "data set", "dataset")
NAMED = 3  # images that a message names
SAMPLED_ROWS = 2000  # of which some name an image, if the column names `LEAST_NAMED` of them
LEAST_NAMED = 0.5  # of the images that a table names, at least; one of another folder names none
Row = Mapping[str, str]


class Match(NamedTuple):
    """An image that a table means by a name.

    Args:
        image: The name of the image; None where it is none's, or it cannot be told whose.
        others: The images that it may be as well, or instead.
        moved: Whether the image is in another folder than the table says, as of another machine.
    """

    image: str | None = None
    others: tuple[str, ...] = ()
    moved: bool = False


NO_MATCH = Match()


class ImageFinder:
    """Finds an image by any end of its path, with or without its extension, or by such a path from another machine.

    Args:
        root: The folder that the names of the images are relative to.
        images: All of them, not only those of a split: a name may be that of an image of another one.
        split_of: The split of the folders that are one, each with '/' at its end.
    """

    def __init__(self, root: Path, images: Sequence[File], split_of: Mapping[str, Split]) -> None:
        self.root = root
        self.split_of = split_of
        self._shared: dict[tuple[str | None, str, Split | None], Match] = {}  # those of names that many images have
        self._folders: set[str] = set()
        self._by_end: dict[str, list[str]] = {}  # all ends of all paths, without the extension
        for image in images:
            parts = image.name.split("/")
            self._folders.update(parts[:-1])
            bare = _without_extension(image.name).split("/")
            for start in range(len(bare)):
                self._by_end.setdefault("/".join(bare[start:]), []).append(image.name)

    def find(self, value: str | None, folder: str, split: Split | None = None) -> Match:
        """Return what a table in `folder` means by `value`: the image with which it has most of the path in common.

        A folder in `value` that is not in the path of the image must be one that is not here: that of an absolute path,
        or above what is here. Of several images it is the one with exactly that path from the table's folder on, or the
        one of the row's split, or else that of the training images.
        """
        if (known := self._shared.get((value, folder, split))) is not None:
            return known
        parts = path_parts(value or "")
        for start in range(len(parts)):
            end = "/".join(parts[start:])
            if matches := [name for name in self._ending_with(end) if name.startswith(folder)]:
                break
        else:
            return NO_MATCH
        if start:
            matches = self._from_elsewhere(value or "", parts[start - 1], end, folder, matches)
        exact = [name for name in matches if f"{folder}{end}" in (name, _without_extension(name))]
        if len(matches) > 1 and len(exact) == 1:
            matches = exact
        if len(matches) > 1 and split:
            matches = [name for name in matches if self.split(name) == split] or matches
        moved = start > 0 and start == len(parts) - 1 and any(parts[-2] != self._parent(name) for name in matches)
        if len(matches) == 1:
            return Match(matches[0], moved=moved)
        training = [name for name in matches if self.split(name) == "train"]
        image = training[0] if len(training) == 1 else None
        match = Match(image, tuple(name for name in matches if name != image), moved)
        self._shared[value, folder, split] = match
        return match

    def namesakes(self, value: str) -> list[str]:
        """Return the images of a name, whatever the folders before it are."""
        return self._ending_with((path_parts(value) or [""])[-1])

    def split(self, name: str) -> Split | None:
        """Return the split that an image's folder is of; None where it is in none."""
        return next((split for folder, split in self.split_of.items() if name.startswith(folder)), None)

    def _ending_with(self, end: str) -> list[str]:
        matches = self._by_end.get(_without_extension(end), [])
        return [name for name in matches if f"/{name}".endswith(f"/{end}")] or self._by_end.get(end, [])

    def _from_elsewhere(self, value: str, last: str, end: str, folder: str, matches: list[str]) -> list[str]:
        """Return those of the images that a value may mean in whose path its folder `last` is not."""
        if last in self._folders:
            return []
        whole = (end, f"{folder}{end}")
        return [name for name in matches if ABSOLUTE.match(value) or name in whole or _without_extension(name) in whole]

    def _parent(self, name: str) -> str:
        return (self.root / name).parent.name


@dataclass(frozen=True)
class FileColumn:
    """The column of a table that names files, each row with what it names, and what the user should know."""

    column: str
    matches: tuple[tuple[Row, Match], ...]
    notes: tuple[str, ...]


def choose_file_column(
    file: File, columns: Sequence[str], rows: Sequence[Row], finder: ImageFinder, own: Set[str]
) -> FileColumn | None:
    """Return the column that names at least `LEAST_NAMED` of the images; None where none does.

    Of several the one with extensions, or else with a usual name, or at least a name: numbers of rows name images, too,
    where these are numbered.

    Raises:
        UserError: Several are alike in that, and name other images.
    """
    folder = folder_of(file)
    split_column = next((name for name in columns if name.strip().lower() in SPLIT_COLUMNS), "")
    values = [row.get(split_column) or "" for row in rows]
    split_of = {value: named_split(value) for value in set(values)}
    splits = [split_of[value] for value in values]
    naming: dict[str, list[Match]] = {}
    spread = rows[:: 1 + len(rows) // SAMPLED_ROWS] if len(rows) <= SAMPLED_ROWS // 20 * len(own) else rows
    for column in columns:
        if all(finder.find(row.get(column), folder) == NO_MATCH for row in spread):
            continue  # before all rows are looked at
        matches = [finder.find(row.get(column), folder, split) for row, split in zip(rows, splits, strict=True)]
        if len({match.image for match in matches} & own) >= LEAST_NAMED * len(own):
            naming[column] = matches

    def rank(column: str) -> tuple[bool, bool, bool]:
        name = column.strip().lower()
        has_extensions = any(is_image(row.get(column) or "") for row in rows)
        return not has_extensions, name not in FILE_COLUMNS, INDEX.fullmatch(name) is not None

    ranks = {column: rank(column) for column in naming}
    column = min(ranks, key=ranks.__getitem__, default="")
    if not naming or (ranks[column][2] and min(map(rank, columns)) < (True, True)):  # the one meant names none
        return None
    others = [other for other in naming if naming[other] != naming[column]]
    if alike := [other for other in others if ranks[other] == ranks[column]]:
        raise UserError(
            f"{file.path} names images by its column {column!r}, and others by {alike[0]!r}.",
            "Give the names their extensions in the column that is meant, as in 0.png.",
        )
    unused = first_names(map(repr, others), NAMED)
    note = f"{file.path} names images by its column {column!r}, not by {unused}, which would be other images."
    return FileColumn(column, tuple(zip(rows, naming[column], strict=True)), (note,) if others else ())


def find_misplaced(
    file: File, columns: Sequence[str], rows: Sequence[Row], finder: ImageFinder, count: int
) -> UserError | None:
    """Return the error where a table names files of which there are only namesakes, in other folders."""
    for column in columns:
        values = [value for row in rows if (value := row.get(column)) and is_image(value)]
        namesakes = {value: images for value in values if (images := finder.namesakes(value))}
        none_is_here = all(finder.find(value, folder_of(file)) == NO_MATCH for value in namesakes)
        if none_is_here and len(namesakes) >= LEAST_NAMED * count:
            value, (image, *_) = next(iter(namesakes.items()))
            return UserError(
                f"{file.path} names {value}, which is not here; {image} is another file.",
                f"Write the paths from the table on, or names alone, into its column {column}.",
            )
    return None


def folder_of(file: File) -> str:
    """Return the folder of a file, with '/' at its end; '' for the root."""
    return file.name.removesuffix(PurePosixPath(file.name).name)


def path_parts(path: str) -> list[str]:
    """Return the folders and the file of a path, as Windows writes it, too."""
    return [part for part in path.strip().replace("\\", "/").split("/") if part not in ("", ".", "..")]


def _without_extension(name: str) -> str:
    folder, slash, last = name.rpartition("/")
    stem, dot, _ = last.rpartition(".")
    return f"{folder}{slash}{stem}" if dot and stem else name
