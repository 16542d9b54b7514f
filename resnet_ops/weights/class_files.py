"""Read the file of `--classes`: the names of a network's classes, in order, as text or JSON."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resnet_ops.errors import UserError
from resnet_ops.formatting import class_name, decode_text, is_one_line, printable, text_lines

FORMS = 'Write one class per line, in order; or JSON: ["cat", "dog"], {"0": "cat", "1": "dog"} or {"cat": 0, "dog": 1}.'


class JsonClassesError(ValueError):
    """JSON has a name or a number of a class twice, of which only one would count, or can be read in two ways."""


def read_class_names(file: Path) -> tuple[str, ...]:
    """Return the names in a file: one per line, or JSON such as imagenet_class_index.json and config.json have.

    Raises:
        UserError: It cannot be read, is of another form, or a name is empty, there twice, or more than a line.
    """
    try:
        text = decode_text(file.read_bytes()).strip()
        is_json = text.startswith(("{", "["))
        content = _of_json(json.loads(text, object_pairs_hook=_without_repeats)) if is_json else text_lines(text)
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is neither text in UTF-8 nor JSON of classes"
        if isinstance(error, JsonClassesError):
            reason = printable(str(error))
        raise UserError(f"--classes {file} cannot be read: {reason}.", FORMS) from None
    names = tuple(class_name(name.strip()) for name in content)
    _check(file, names)
    return names


def _check(file: Path, names: Sequence[str]) -> None:
    """Check that every class has a name of its own, on one line.

    Raises:
        UserError: One has not.
    """
    first = dict[str, int]()
    for number, name in enumerate(names, 1):
        if not name:
            raise UserError(f"--classes {file}: class {number} of {len(names)} has no name.", FORMS)
        if not is_one_line(name):
            raise UserError(
                f"--classes {file}: the name of class {number}, '{printable(name[:60])}', has characters that separate "
                "lines or command a terminal.",
                "Remove them.",
            )
        if (earlier := first.setdefault(name, number)) != number:
            raise UserError(
                f"--classes {file}: classes {earlier} and {number} are both called {name[:60]!r}.",
                "Name them apart, such as crane (bird) and crane (machine).",
            )


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON.

    Raises:
        JsonClassesError: A key is there twice.
    """
    _check_repeats([key for key, _ in pairs])
    return dict(pairs)


def _check_repeats(keys: Sequence[str | int]) -> None:
    repeated = next((key for key, count in Counter(keys).items() if count > 1), None)
    if repeated is not None:
        raise JsonClassesError(f"{str(repeated)[:60]} is there twice")


def _of_json(content: Any) -> Sequence[str]:
    """Return the names of a list, or of numbers and names in either direction.

    Raises:
        JsonClassesError: A number is there twice, or both sides are numbers.
        ValueError, TypeError, LookupError: It is something else.
    """
    if isinstance(content, dict):
        content = content.get("id2label") or content.get("label_names") or content
    if isinstance(content, dict):
        if all(type(number) is int for number in content.values()):
            pairs = [(number, name) for name, number in content.items()]
        else:
            pairs = [(int(number), name) for number, name in content.items()]
        _check_repeats([number for number, _ in pairs])
        by_number = dict(pairs)
        sides = {str(number): str(name) for number, name in pairs}
        if sides.keys() == set(sides.values()) and any(sides[name] != number for number, name in sides.items()):
            raise JsonClassesError("which side is the numbers of the classes, and which their names, cannot be told")
        content = [by_number[number] for number in range(len(by_number))]
    if all(isinstance(name, list) for name in content):  # an id and a name, which may be that of two classes
        names = [each[-1] for each in content]
        content = names if len(set(names)) == len(names) else [each[0] for each in content]
    if not all(isinstance(name, str) for name in content):
        raise TypeError("names must be text")
    return list(content)
