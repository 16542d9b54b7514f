"""Whether a mirrored image is still one of its class, as far as the names of the classes tell.

Text, digits and whatever has a left and a right are not; knows no pixels.
"""

import re
from collections.abc import Sequence

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


def mirroring_harm(class_names: Sequence[str]) -> str | None:
    """Return why images should not be mirrored, in the middle of a sentence; None where nothing says so.

    Args:
        class_names: The names of the classes, such as 0, 1, 2 or left_turn, right_turn.
    """
    names = {name.casefold(): name for name in class_names}
    characters = [name for name in names if CHARACTER.fullmatch(name)]
    if len(characters) > max(1, len(names) / 2):
        return f"classes are digits or letters ({', '.join(names[name] for name in characters[:3])}...)"
    for name in names:
        other = SIDE.sub(lambda side: MIRRORED[side[0]], name)
        if other != name and other in names:
            return f"class {names[name]} mirrored may be class {names[other]}"
    return None
