"""Bring the labels of both splits to one set of classes, and tell from their names whether mirroring harms.

Training refuses labels that are wrong or do not match; `data check` counts them. Images are not read here.
"""

import re
from collections.abc import Sequence

import numpy as np

from resnet_ops.data.dataset import DiscoveredData, EncodedImages, LabeledImages, Subset
from resnet_ops.errors import UserError, did_you_mean
from resnet_ops.formatting import is_one_line, printable

CHARACTER = re.compile(
    r"(?:(?:digit|number|letter|char|character)[ _-]?)?(?:[0-9a-z]|zero|one|two|three|four|five|six|seven|eight|nine)"
)
MIRRORED = {
    "left": "right",
    "right": "left",
    "anticlockwise": "clockwise",
    "counterclockwise": "clockwise",
    "clockwise": "counterclockwise",
}
SIDE = re.compile("|".join(MIRRORED))


def class_names(data: DiscoveredData) -> tuple[str, ...]:
    """Return the names of the classes as training numbers them; numbers where the data has no names.

    Raises:
        UserError: A name cannot be that of a class in an exported file.
    """
    if names := next((part.class_names for part in data.parts if part.class_names), ()):
        if bad := next((name for name in names if not is_one_line(name)), None):
            raise UserError(
                f"The name of class '{printable(bad)}' has characters that separate lines, command a terminal or "
                "turn the direction of text: it could not be exported.",
                "Rename its folder, or its label.",
            )
        return names
    labels = np.concatenate([part.encoded.labels for split, part in data.by_split.items() if split != "test"])
    return tuple(str(label) for label in range(int(labels.max(initial=-1)) + 1))


def match_classes(part: LabeledImages, names: tuple[str, ...], data: str) -> EncodedImages:
    """Return validation images with the labels that training gives to classes of the same names.

    Raises:
        UserError: There is a class that training does not have.
    """
    if not part.class_names or part.class_names == names:
        return part.encoded
    labels = part.encoded.labels
    check_label_range(data, labels, part.class_names)
    index = {name: number for number, name in enumerate(names)}
    for label in np.unique(labels):
        if (name := part.class_names[label]) not in index:
            raise _unknown_class(name, names)
    train_label = np.array([index.get(name, -1) for name in part.class_names], np.int64)
    return Subset(part.encoded, np.arange(len(labels)), train_label[labels])


def match_test_classes(part: LabeledImages, names: tuple[str, ...], trained: np.ndarray) -> EncodedImages:
    """Return those test images whose classes are trained, with the labels that training gives to them.

    Others, such as those of a benchmark with more classes, can never be classified correctly.
    """
    own, labels = part.class_names or names, part.encoded.labels
    index = {name: number for number, name in enumerate(names)}
    train_label = np.array([*(index.get(name, -1) for name in own), -1], np.int64)
    matched = train_label[np.where((labels >= 0) & (labels < len(own)), labels, len(own))]
    rows = np.flatnonzero(np.isin(matched, trained))
    if len(rows) == len(labels) and np.array_equal(matched, labels):
        return part.encoded
    return Subset(part.encoded, rows, matched[rows])


def check_label_range(data: str, labels: np.ndarray, names: tuple[str, ...]) -> None:
    """Refuse labels that are not numbers of classes.

    Raises:
        UserError: A label is negative, or too large.
    """
    if len(labels) and (labels.min() < 0 or labels.max() >= len(names)):
        raise UserError(
            f"--data {data} has labels from {labels.min()} to {labels.max()}, but {len(names)} classes.",
            "Labels must be 0 for the first class, 1 for the second, and so on.",
        )


def check_every_class_is_trained(train: EncodedImages, val: EncodedImages, names: tuple[str, ...]) -> None:
    """Refuse validation images of a class that has no training images.

    Raises:
        UserError: There are some.
    """
    if extra := set(val.labels.tolist()) - set(train.labels.tolist()):
        raise _unknown_class(names[min(extra)], names)


def _unknown_class(name: str, names: tuple[str, ...]) -> UserError:
    return UserError(
        f"There are validation images of class {name!r}, but no training images.",
        f"{did_you_mean(name, names)} Add training images of it, or remove it from the validation images.",
    )


def are_numbers(names: Sequence[str]) -> bool:
    """Return whether the names of classes are their numbers, as of data without names."""
    return tuple(names) == tuple(map(str, range(len(names))))


def merge_classes(data: DiscoveredData) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the names of the classes of both splits, and for each image the index of its own, whatever is wrong.

    Classes are matched by name, as training does; a label that has no name is named by its number.
    """
    parts = data.parts
    known = next((part.class_names for part in parts if part.class_names), ())
    if not known:
        top = max(int(part.encoded.labels.max(initial=-1)) for part in parts)
        known = tuple(map(str, range(top + 1 if top < sum(len(part.encoded.labels) for part in parts) else 0)))
    index = {name: number for number, name in enumerate(known)}
    indices = []
    for part in parts:
        own = part.class_names or known
        present, inverse = np.unique(part.encoded.labels, return_inverse=True)
        names = [own[label] if 0 <= label < len(own) else str(label) for label in present.tolist()]
        indices.append(np.array([index.setdefault(name, len(index)) for name in names], np.int64)[inverse])
    return tuple(index), np.concatenate(indices)


def mirroring_harm(class_names: Sequence[str]) -> str | None:
    """Return why images should not be mirrored, in the middle of a sentence; None where nothing says so.

    Args:
        class_names: The names of the classes, such as 0, 1, 2 or left_turn, right_turn.
    """
    names = {name.casefold(): name for name in class_names}
    characters = [name for name in names if CHARACTER.fullmatch(name)]
    if len(names) > 1 and all(map(str.isdecimal, names)):
        return f"class names are numbers ({_first(list(names))})"
    if len(characters) > max(1, len(names) / 2):
        return f"classes are digits or letters ({_first([names[name] for name in characters])})"
    for name in names:
        other = SIDE.sub(lambda side: MIRRORED[side[0]], name)
        if other != name and other in names:
            return f"class {names[name]} mirrored may be class {names[other]}"
    return None


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + ("..." if len(names) > 3 else "")
