"""Images in, their likeliest classes out: files and folders of them, as many as there are, by an exported file."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from resnet_ops.data import datafiles
from resnet_ops.data.decode import DecodeError, decode
from resnet_ops.data.encoded import CHUNK, in_chunks
from resnet_ops.data.folders import EXTENSIONS, is_image
from resnet_ops.errors import UserError
from resnet_ops.export.classifier import Classifier

AHEAD_BYTES = 128 * 2**20  # of decoded images that wait for the network


@dataclass(frozen=True)
class Prediction:
    """What an image shows: its likeliest classes and their probabilities, or why that cannot be told."""

    path: Path
    top: tuple[tuple[str, float], ...] = ()
    error: str = ""


def find(places: Sequence[Path]) -> list[Path]:
    """The files that are meant: those named, and in folders, at any depth, what is called like an image.

    In the order in which they were named, within a folder as people count: 9.png before 10.png. None comes twice.

    Raises:
        UserError: A place is not there, or there is no image in any.
    """
    found: dict[Path, None] = {}
    for place in places:
        if place.is_dir():
            names = [file.name for file in datafiles.find(place) if is_image(file.name)]
            found |= dict.fromkeys(place / name for name in sorted(names, key=_as_people_count))
        elif place.exists():
            found[place] = None
        else:
            raise UserError(f"{place} does not exist.", "Give images, or folders that contain images.")
    if not found:
        where = ", ".join(map(str, places))
        raise UserError(f"No images found in {where}.", f"Recognised file extensions: {_listed(EXTENSIONS)}.")
    return list(found)


def predict(classifier: Classifier, paths: Sequence[Path], top: int) -> Iterator[Prediction]:
    """Look at images, in their order; `top` is cut to the number of classes.

    They are decoded by all cores while the network computes. No more are in memory than a chunk, whether there are ten
    or a million.
    """
    frame = classifier.frame
    ahead = max(CHUNK, AHEAD_BYTES // int(np.prod(frame.shape)) // CHUNK * CHUNK)
    for start in range(0, len(paths), ahead):
        some = paths[start : start + ahead]
        for rows, pixels, errors in in_chunks(len(some), partial(_decode, classifier, some)):
            answers = iter(classifier.classify(np.stack(pixels)) if pixels else ())
            for path, error in zip(some[rows.start : rows.stop], errors, strict=True):
                yield (
                    Prediction(path, error=error)
                    if error
                    else Prediction(path, tuple(classifier.top(next(answers), top)))
                )


def _decode(classifier: Classifier, paths: Sequence[Path], rows: range) -> tuple[range, list[np.ndarray], list[str]]:
    """The images of these rows that can be decoded, and for each row why it cannot, or ''."""
    pixels, errors = [], []
    for path in paths[rows.start : rows.stop]:  # one by one: encoded, photos are large
        (encoded,) = datafiles.read_many(path.parent, [path.name])
        try:
            pixels.append(decode(encoded, classifier.frame))
            errors.append("")
        except DecodeError as error:
            errors.append(str(error))
    return rows, pixels, errors


def _as_people_count(name: str) -> tuple[list[tuple[int, str]], str]:
    parts = re.findall(r"\d+|\D+", name.casefold())
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], name


def _listed(suffixes: set[str]) -> str:
    return ", ".join(sorted(suffixes))
