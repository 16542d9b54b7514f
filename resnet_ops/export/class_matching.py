"""Match the classes of labeled images to those of a network: by their names, or by their order where there are none."""

from collections.abc import Sequence

import numpy as np

from resnet_ops.data.class_labels import are_numbers
from resnet_ops.errors import UserError
from resnet_ops.formatting import first_names


def match_labels(
    path: str,
    names: Sequence[str],
    used: np.ndarray,
    class_names: Sequence[str],
    *,
    are_named: bool,
    is_named_network: bool = True,
) -> tuple[np.ndarray, str]:
    """Return the network's label of each class of the images, -1 where it has none, and a note; "" by name.

    Where one side has numbers for names, as many classes are matched by their order if they cannot be by name.

    Args:
        path: The images, for messages.
        names: Their classes; where these have no names, their numbers.
        used: The labels that occur, each once.
        class_names: The network's classes.
        are_named: Whether the images' classes have names.
        is_named_network: Whether the network's are known to, even where they are numbers.

    Raises:
        UserError: A number may be the name of a class of the network, or the place of another one.
    """
    label_of = {name: label for label, name in enumerate(class_names)}
    by_name, places = np.array([label_of.get(name, -1) for name in names], np.int64), np.arange(len(names))
    known, as_many = by_name[used] >= 0, len(names) == len(class_names)
    may_be_places = as_many and are_numbers(class_names) if are_named else len(names) <= len(class_names)
    if not may_be_places or np.array_equal(by_name[used], used):
        return by_name, ""
    if as_many and (not known.any() or not (are_named or known.all())):
        side = "network has" if are_named else "images have"
        note = f"Classes are matched by their order, as the {side} numbers for names: {names[0]} is {class_names[0]}."
        return places, note
    if known.any() and not (are_named and is_named_network):
        first = int(used[by_name[used] != used][0])
        raise UserError(
            f"It is not known which classes the images in {path} show: {names[first]!r} may be the class of that name, "
            f"or in its place {class_names[first]!r}.",
            "Name the network's classes: --classes FILE."
            if are_named
            else f"Label the images by the names of the network's classes: {first_names(class_names)}.",
        )
    return by_name, ""
