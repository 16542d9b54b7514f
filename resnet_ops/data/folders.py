"""Discover the images of a folder: the split and the class of each, by the folders it is in or by a table of labels.

The rule, the same for a disk and a bucket: folders whose name has a word of `SPLIT_OF` and that contain class folders
are splits; the folders in them, or in the folder itself where there are none, are classes.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resnet_ops.config_base import quoted
from resnet_ops.data import listing
from resnet_ops.data.dataset import (
    SPLIT_OF,
    SPLITS,
    DiscoveredData,
    LabeledImages,
    Skipped,
    Split,
    choose_splits,
    image_count,
    named_split,
    split_word,
)
from resnet_ops.data.image_finder import ImageFinder
from resnet_ops.data.image_kinds import describe_extension, is_image
from resnet_ops.data.label_table import LabelTable, find_label_table, is_table
from resnet_ops.data.listing import File
from resnet_ops.errors import UserError
from resnet_ops.formatting import class_name, first_names, readable

NAMED = 5  # folders that a message names
NO_REASONS: Mapping[str, str] = {"": "not used"}
MOST_OTHERS = 0.5  # of a table's labels that differ from the folders': from there on it says something else
SAME_FOLDERS = 2  # from as many on, the same subfolders in every class are no coincidence


@dataclass(frozen=True)
class FolderImages:
    """`EncodedImages` of which each is a file below a folder."""

    root: Path
    names: tuple[str, ...]
    labels: np.ndarray
    sizes: np.ndarray | None = None
    row_groups: None = None

    def read(self, rows: Sequence[int]) -> list[bytes | OSError]:
        """See `EncodedImages.read`."""
        return listing.read_files(self.root, [self.names[row] for row in rows])

    def name(self, row: int) -> str:
        """See `EncodedImages.name`."""
        return readable(str(self.root / self.names[row]))


@dataclass(frozen=True)
class FolderTree:
    """The files to read below a folder, and the images among them."""

    root: Path
    files: tuple[File, ...]
    images: tuple[File, ...]

    def below(self, prefix: str) -> "FolderTree":
        """Return what is below one of its folders, whose name ends with '/'; all of it for ''."""
        files, images = (
            tuple(file for file in part if file.name.startswith(prefix)) for part in (self.files, self.images)
        )
        return FolderTree(self.root, files, images)

    def by_folder(self, prefix: str) -> dict[str, list[str]]:
        """Return the images in each folder in `prefix`, by their names in it; those in `prefix` itself under ''."""
        folders: dict[str, list[str]] = {}
        for image in self.images:
            if image.name.startswith(prefix):
                folder, _, name = image.name.removeprefix(prefix).rpartition("/")
                top, _, rest = folder.partition("/")
                folders.setdefault(top, []).append(f"{rest}/{name}" if rest else name)
        return folders


def rank_by_split(name: str) -> int:
    """Rank the names in a folder: of a folder that is a split and also has another name, the split counts."""
    word = split_word(name)
    return len(SPLIT_OF) if word is None else [*SPLIT_OF].index(word)


def discover_folders(
    root: Path, listed: Sequence[File], name: str, label_column: str | None = None, *, for_validation: bool = False
) -> DiscoveredData | None:
    """Return the images of a folder.

    A class folder of the training images without an image is a problem. torchvision refuses it as well: the class
    would be in the network, and never be learned. So is a folder that cannot be read, and a link to nothing.

    Args:
        root: The folder.
        listed: What is in it, as `list_everything` returns it.
        name: The name of the data.
        label_column: The column of the labels in tables; None for the first of their usual names.
        for_validation: Whether no training images are needed.

    Returns:
        None where nothing is in it.

    Raises:
        UserError: No folder contains images, or what it contains cannot be told.
    """
    problems = tuple(_unreadable(file) for file in listed if file.size < 0 and not _is_broken_image(file))
    files = tuple(file for file in listed if not file.unread)
    tree = FolderTree(root, files, tuple(file for file in files if is_image(file.name)))
    if not tree.images:
        if problems:
            raise problems[0]
        return None
    prefix = _descend(tree, "")
    notes: list[str] = []
    split_of = _find_splits(tree, prefix, notes)
    finder = ImageFinder(root, tree.images, {f"{prefix}{folder}/": split for folder, split in split_of.items()})
    parts: dict[Split, list[LabeledImages]] = {}
    reasons = {
        f"{prefix}{folder}/": f"in {folder}/, beside another folder of its split"
        for folder in tree.by_folder(prefix)
        if split_of and split_word(folder) and folder not in split_of
    }
    for folder, split in split_of.items():
        own = _descend(tree, f"{prefix}{folder}/", in_split=True)
        part, table = _labeled(tree, finder, own, label_column, split, (prefix, ""), notes)
        if part:
            for each, own_part in _split_by_table(part, table, split, set(split_of.values())).items():
                parts.setdefault(each, []).append(own_part)
            continue
        count = len(tree.below(own).images)
        reasons[own] = f"in {folder}/, which has no class folders"
        notes.append(
            f"{folder}/ holds {image_count(count)}, but no class folders, and no table labels them, so it is not used."
        )
    if not split_of:
        part, table = _labeled(tree, finder, prefix, label_column, "train", ("",), notes)
        if part is None:
            raise UserError(
                f"{root / prefix} holds {image_count(len(tree.images))}, but no folder for each class.",
                "Create one subfolder per class, or a table metadata.csv with the columns file_name and label.",
            )
        parts = {split: [own_part] for split, own_part in _split_by_table(part, table, "train", {"train"}).items()}
    if "train" not in parts and not for_validation:
        present = {file.name.removeprefix(prefix).partition("/")[0] for file in tree.below(prefix).files}
        empty = next((name for name in sorted(present) if named_split(name) == "train"), "")
        raise UserError(
            f"{root / prefix / empty} contains no subfolders with images."
            if empty
            else f"{root / prefix} contains only validation or test images ({', '.join(split_of)}).",
            "Create one subfolder per class in it." if empty else "Add training images in a folder train/.",
        )
    by_split = {split: _join(of_split) for split, of_split in parts.items()}
    order: tuple[Split, ...] = ("train", "val", "test")
    first = next(split for split in order if split in by_split)
    used = by_split[first]
    elsewhere = "outside the splits" if split_of else "outside class folders"
    if any(is_table(file.name) for part in by_split.values() for file in part.files):
        elsewhere = "without a label in the table"
    rest = {split: part for split, part in by_split.items() if split != first}
    return DiscoveredData(
        name,
        LabeledImages(used.encoded, used.class_names, used.files, (*problems, *used.problems)),
        rest.get("val"),
        names_matter=True,
        skipped=list_skipped(
            listed,
            [file for part in by_split.values() for file in part.files],
            reasons | {"": elsewhere},
        ),
        test=rest.get("test"),
        notes=tuple(dict.fromkeys(notes)),  # of a table for several splits once
    )


def _is_broken_image(file: File) -> bool:
    return not file.unread and is_image(file.name)


def _unreadable(file: File) -> UserError:
    return UserError(
        f"{file.path} cannot be read: {file.unread or 'it is a link to nothing'}.",
        "Give it back its permissions or its target, or remove it.",
    )


def _descend(tree: FolderTree, prefix: str, *, in_split: bool = False) -> str:
    """Return the first folder from `prefix` down that has several folders of images, or a split, as archives have one.

    That is `prefix` where there is none, or images lie on the way. A folder in that of a split is none itself: archives
    have train/train/.
    """
    place = prefix
    while folders := tree.by_folder(place):
        named = [folder for folder in folders if folder]
        if len(named) > 1 or (not in_split and any(map(split_word, named))):
            return place
        if "" in folders:
            break
        place += f"{named[0]}/"
    return prefix


def _find_splits(tree: FolderTree, prefix: str, notes: list[str]) -> dict[str, Split]:
    """Return which of the folders in `prefix` are splits, and note those that are classes though named so.

    Raises:
        UserError: That cannot be told, or neither splits nor classes make sense.
    """
    folders = {folder: names for folder, names in tree.by_folder(prefix).items() if folder}
    words = {folder: split_word(folder) for folder in sorted(folders)}
    inner = {folder: {name.partition("/")[0] for name in names if "/" in name} for folder, names in folders.items()}
    named = [folder for folder, word in words.items() if word]
    others = [folder for folder, word in words.items() if not word]
    with_classes = [folder for folder in named if inner[folder]]
    tables = any(is_table(file.name) for file in tree.below(prefix).files)
    place = tree.root / prefix
    if not with_classes and (others or not named or not tables):
        if named and not others:
            raise UserError(
                f"{place}: {first_names(named, NAMED)}, named after splits, contains no subfolders with images.",
                "Create one subfolder per class in each split, or a table of labels (file_name,label) beside the "
                "images.",
            )
        _check_subfolders(place, inner, folders)
        notes += [f"{name}/ is a class, like {first_names(others, NAMED)} beside it." for name in named]
        return {}
    if len(with_classes) == 1 and len(named) == 1 and (len(others) > 1 or any(inner[other] for other in others)):
        raise UserError(
            f"{place}: it cannot be told whether {named[0]} is a split or a class like {first_names(others, NAMED)}.",
            f"Give the training images alone, --data {quoted(place / named[0])}, or rename it.",
        )
    return choose_splits({folder: words[folder] for folder in named})


def _check_subfolders(place: Path, inner: Mapping[str, set[str]], folders: Mapping[str, Sequence[str]]) -> None:
    """Refuse classes that all contain the same folders: one of the two levels is no class."""
    sets = {frozenset(names) for names in inner.values()}
    if len(splits := {named_split(name) for names in inner.values() for name in names}) > 1:
        sets = sets if None in splits else {frozenset().union(*sets)}
    nested = all("/" in name for names in folders.values() for name in names)
    if len(folders) > 1 and len(sets) == 1 and nested and len(same := next(iter(sets))) >= SAME_FOLDERS:
        raise UserError(
            f"{place}: every folder ({first_names(sorted(folders), NAMED)}) contains the same folders "
            f"({first_names(sorted(same), NAMED)}), so it cannot be told which are classes.",
            "Name splits train, val and test, and put class folders into them; or move the images of each class "
            "directly into its folder.",
        )


def _labeled(
    tree: FolderTree,
    finder: ImageFinder,
    prefix: str,
    label_column: str | None,
    split: Split,
    tables_in: Sequence[str],
    notes: list[str],
) -> tuple[LabeledImages | None, LabelTable | None]:
    """Return the images in `prefix` by its class folders, or else by a table; None where it has neither.

    A table that says otherwise than class folders do counts if its column is asked for, and is told if it is not.
    """
    part = _class_folders(tree.below(prefix), prefix, refuse_empty=split == "train")
    images = tree.below(prefix).images
    in_classes = part is not None and len(tree.by_folder(prefix).keys() - {""}) > 1
    table = find_label_table(
        finder, (prefix, *tables_in), tree.files, images, label_column, split, known_column=in_classes
    )
    if part and in_classes and not (table and label_column):
        notes += _tell_levels(tree, prefix) + (_tell_other_labels(part, table) if table else [])
        return part, table
    if table is None:
        return part, None
    notes += table.notes
    names = sorted(set(table.labels.values()), key=_natural)
    rows = [file for file in images if file.name in table.labels]
    index = {name: number for number, name in enumerate(names)}
    labels = np.array([index[table.labels[file.name]] for file in rows], np.int64)
    return LabeledImages(_images(tree.root, rows, labels), tuple(names), (*rows, table.file)), table


def _split_by_table(
    part: LabeledImages, table: LabelTable | None, split: Split, folders: Set[Split]
) -> dict[Split, LabeledImages]:
    """Return the images of each split: that of their folder, or that of a table's column where all folders are of one.

    Raises:
        UserError: The folders are of several splits and the column says otherwise, or it lacks images.
    """
    images = [file for file in part.files if is_image(file.name)]
    of_table = [table.splits.get(file.name) for file in images] if table else []
    other = next((row for row, own in enumerate(of_table) if own not in (None, split)), None)
    if table is None or other is None:
        return {split: part}
    if len(folders) > 1:
        raise UserError(
            f"{table.file.path} says {of_table[other]} of {images[other].name}, whose folder is of the {split} split.",
            "Move the image, or correct or rename the column of splits.",
        )
    if lacking := [file.name for file, own in zip(images, of_table, strict=True) if own is None]:
        raise UserError(
            f"{table.file.path} has a column of splits, but lacks {image_count(len(lacking))}, first {lacking[0]}.",
            "Add them to it, or rename the column.",
        )
    rows_of = {each: [row for row, own in enumerate(of_table) if own == each] for each in SPLITS}
    return {
        each: LabeledImages(
            _images(table.file.root, [images[row] for row in rows], part.encoded.labels[rows]),
            part.class_names,
            (*(images[row] for row in rows), table.file),
            part.problems if each == "train" else (),
        )
        for each, rows in rows_of.items()
        if rows
    }


def _tell_levels(tree: FolderTree, prefix: str) -> list[str]:
    """Say which of two levels of folders are the classes, where all images lie a level lower."""
    lower = {
        f"{top}/{name.partition('/')[0]}": "/" in name for top, of in tree.by_folder(prefix).items() for name in of
    }
    inner = {name.partition("/")[2] for name in lower}
    if not all(lower.values()) or len(inner) == 1:
        return []
    return [
        f"Classes are the upper folders of {first_names(sorted(lower), NAMED)}; to change it, give --data one of them."
    ]


def _tell_other_labels(part: LabeledImages, table: LabelTable) -> list[str]:
    pairs = zip(part.files, part.encoded.labels.tolist(), strict=True)
    others = sum(table.labels.get(file.name, own) != own for file, label in pairs if (own := part.class_names[label]))
    if others <= MOST_OTHERS * len(table.labels):
        return []
    return [
        f"{table.file.path} has other labels than the folders for {image_count(others)}; classes are the folders. "
        f"To train on the table: --label-column {table.column}."
    ]


def _natural(name: str) -> tuple[bool, int, str]:
    return (False, int(name), name) if name.isdecimal() else (True, 0, name)


def _class_folders(tree: FolderTree, prefix: str, *, refuse_empty: bool) -> LabeledImages | None:
    def class_of(file: File) -> str:
        return class_name(file.name.removeprefix(prefix).partition("/")[0])

    in_folders = [file for file in tree.files if "/" in file.name.removeprefix(prefix)]
    images = sorted((file for file in in_folders if is_image(file.name)), key=lambda file: file.name)
    if not images:
        return None
    present = set(map(class_of, images))
    classes = sorted(set(map(class_of, in_folders)) if refuse_empty else present)
    problems = tuple(
        UserError(
            f"{tree.root / prefix / empty} contains no images, so its class cannot be learned.",
            f"{_why_empty([file for file in in_folders if class_of(file) == empty])}Add images, or remove it.",
        )
        for empty in classes
        if empty not in present
    )
    index = {name: number for number, name in enumerate(classes)}
    labels = np.array([index[class_of(file)] for file in images], np.int64)
    return LabeledImages(_images(tree.root, images, labels), tuple(classes), tuple(images), problems)


def _why_empty(files: Sequence[File]) -> str:
    kinds = sorted({describe_extension(file.name) for file in files if not file.name.endswith("/")})
    return f"Its files are {', '.join(kinds)}. " if kinds else ""


def _images(root: Path, images: Sequence[File], labels: np.ndarray) -> FolderImages:
    sizes = np.array([file.size for file in images], np.int64)
    return FolderImages(root, tuple(file.name for file in images), labels, None if (sizes < 0).any() else sizes)


def _join(parts: Sequence[LabeledImages]) -> LabeledImages:
    """Return the images of several folders of one split, such as train_1/ and train_2/, by the names of the classes."""
    if len(parts) == 1:
        return parts[0]
    names = tuple(sorted({name for part in parts for name in part.class_names}, key=_natural))
    index = {name: number for number, name in enumerate(names)}
    labels = [np.array([index[name] for name in part.class_names])[part.encoded.labels] for part in parts]
    files = tuple(file for part in parts for file in part.files)
    images = [file for file in files if is_image(file.name)]
    encoded = _images(images[0].root, images, np.concatenate(labels))
    return LabeledImages(encoded, names, files, tuple(problem for part in parts for problem in part.problems))


def list_skipped(
    listed: Sequence[File], used: Sequence[File], reasons: Mapping[str, str] = NO_REASONS
) -> tuple[Skipped, ...]:
    """Return what was listed and is not used, with the reason of each; `reasons` has those of whole folders."""
    names = {file.name for file in used}

    def reason(file: File) -> str:
        if file.unread:
            return file.unread
        if not is_image(file.name):
            return describe_extension(file.name)
        return next(why for folder, why in reasons.items() if file.name.startswith(folder))

    return tuple(
        Skipped(file.name, reason(file))
        for file in sorted(listed, key=lambda file: file.name)
        if file.name not in names and (file.unread or not file.name.endswith("/"))
    )
