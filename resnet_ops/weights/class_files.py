"""Read the file of `--classes`: the names of a network's classes, in order, as text or JSON."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resnet_ops.errors import UserError
from resnet_ops.formatting import class_name, decode_text

FORMS = 'Write one class per line, in order; or JSON: ["cat", "dog"], {"0": "cat", "1": "dog"} or {"cat": 0, "dog": 1}.'


def read_class_names(file: Path) -> tuple[str, ...]:
    """Return the names in a file: one per line, or JSON such as imagenet_class_index.json and config.json have.

    Raises:
        UserError: It cannot be read, or is of another form.
    """
    try:
        text = decode_text(file.read_bytes()).strip()
        names = _of_json(json.loads(text)) if text.startswith(("{", "[")) else text.splitlines()
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is neither text in UTF-8 nor JSON of classes"
        raise UserError(f"--classes {file} cannot be read: {reason}.", FORMS) from None
    return tuple(class_name(name.strip()) for name in names if name.strip())


def _of_json(content: Any) -> Sequence[str]:
    """Return the names of a list, or of numbers and names in either direction.

    Raises:
        ValueError, TypeError, KeyError: It is something else.
    """
    if isinstance(content, dict):
        content = content.get("id2label") or content.get("label_names") or content
    if isinstance(content, dict):
        if all(isinstance(number, int) for number in content.values()):
            content = {number: name for name, number in content.items()}
        by_number = {int(number): name for number, name in content.items()}
        content = [by_number[number] for number in range(len(by_number))]
    if all(isinstance(name, list) for name in content):  # an id and a name, which may be that of two classes
        names = [str(each[-1]) for each in content]
        return names if len(set(names)) == len(names) else [str(each[0]) for each in content]
    if not all(isinstance(name, str) for name in content):
        raise TypeError("names must be text")
    return list(content)
