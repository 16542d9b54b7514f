"""Predictions as files: a table (CSV or JSON lines), or copies of the images in a folder for each class."""

import csv
import io
import json
import shutil
from collections.abc import Iterable, Sequence
from itertools import chain, count
from pathlib import Path

from resnet_ops import files
from resnet_ops.errors import UserError
from resnet_ops.export.classifier import Prediction

NOT_DECODED = "_not_decoded"  # folder of images without a class


def check_outputs(table: Path | None, folder: Path | None) -> None:
    """Check, before any work, that the outputs can be written.

    Raises:
        UserError: The folder of the table does not exist, or the folder for the images is not new.
    """
    if table is not None and not table.absolute().parent.is_dir():
        raise UserError(f"--output {table}: its folder does not exist.", "Create it, or choose another.")
    if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--copy-to {folder} is not empty.", "Choose a new folder.")


def write_table(file: Path, predictions: Sequence[Prediction], top: int) -> None:
    """Write a row, or a JSON object, for each image: path, the `top` classes, their probabilities, any error."""
    if file.suffix.lower() == ".jsonl":
        lines = [json.dumps(prediction.model_dump(mode="json"), ensure_ascii=False) for prediction in predictions]
        files.write_atomically(file, "".join(f"{line}\n" for line in lines).encode(errors="surrogateescape"))
        return
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    ranks = ["", *(f"_{rank}" for rank in range(2, top + 1))]
    rows.writerow(["path", *(name + rank for rank in ranks for name in ("class", "probability")), "error"])
    for prediction in predictions:
        cells = [cell for likely in prediction.top for cell in (likely.name, f"{likely.probability:.6f}")]
        cells += [""] * (2 * len(ranks) - len(cells))
        rows.writerow([str(prediction.path), *cells, prediction.error])
    files.write_atomically(file, text.getvalue().encode(errors="surrogateescape"))


def copy_images(folder: Path, predictions: Sequence[Prediction]) -> None:
    """Copy each image into a folder of its likeliest class within `folder`, under its own name, made unique."""
    folders = folders_of({prediction.top[0].name for prediction in predictions if prediction.top})
    for prediction in predictions:
        name = folders[prediction.top[0].name] if prediction.top else NOT_DECODED
        target = folder / name / prediction.path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        number = 2
        while target.exists():
            target = target.with_name(f"{prediction.path.stem}-{number}{prediction.path.suffix}")
            number += 1
        shutil.copy2(prediction.path, target)


def folders_of(class_names: Iterable[str]) -> dict[str, str]:
    """Return the folder of each class, which no other has: its name where that can be one."""
    taken, folders = {NOT_DECODED}, dict[str, str]()
    for name in sorted(class_names, key=lambda name: (as_file_name(name) != name, name)):
        own = as_file_name(name)
        folders[name] = next(each for each in chain([own], (f"{own}-{n}" for n in count(2))) if each not in taken)
        taken.add(folders[name])
    return folders


def as_file_name(class_name: str) -> str:
    """Return a class's name as that of a folder: names come from files of others, and may hold `/` or be `..`."""
    kept = "".join(
        "_" if character in '/\\\0:*?"<>|' or not character.isprintable() else character for character in class_name
    )
    shortened = kept.encode()[:200].decode(errors="ignore").strip()
    return shortened if shortened.strip(".") else f"_{shortened}"
