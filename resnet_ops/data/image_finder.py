"""Find the image that a row of a table means, by its path or its name, among all images of a folder."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from resnet_ops.data.dataset import Split
from resnet_ops.data.listing import File

ABSOLUTE = re.compile(r"[/\\]|[A-Za-z][A-Za-z0-9+.-]*:")  # of a disk, a drive of Windows or a URL


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
        return Match(image, tuple(name for name in matches if name != image), moved)

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


def path_parts(path: str) -> list[str]:
    """Return the folders and the file of a path, as Windows writes it, too."""
    return [part for part in path.strip().replace("\\", "/").split("/") if part not in ("", ".", "..")]


def _without_extension(name: str) -> str:
    folder, slash, last = name.rpartition("/")
    stem, dot, _ = last.rpartition(".")
    return f"{folder}{slash}{stem}" if dot and stem else name
