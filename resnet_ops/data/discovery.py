"""Discover the dataset under a path or of a name: class folders, Parquet files, or one that torchvision downloads.

Nothing is decoded here, and whether training can use the data is decided in sources.py.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from glob import has_magic
from pathlib import Path
from typing import Any

import numpy as np

from resnet_ops import files, locks
from resnet_ops.config import DATA_SETS, TEST_NAME, DataConfig
from resnet_ops.config_base import check_text
from resnet_ops.data import listing
from resnet_ops.data.cache import cache_folder
from resnet_ops.data.dataset import (
    SPLIT_NAMES,
    DiscoveredData,
    LabeledImages,
    Skipped,
    Subset,
    image_count,
    summarize_skipped,
)
from resnet_ops.data.decode import DecodeError, read_header
from resnet_ops.data.folders import discover_folders, list_skipped, rank_by_split
from resnet_ops.data.image_kinds import FIRST_BYTES, LAYOUTS, describe_content, is_image
from resnet_ops.data.label_table import is_table
from resnet_ops.data.listing import File
from resnet_ops.data.parquet import discover_parquet
from resnet_ops.errors import UserError, did_you_mean, did_you_mean_path
from resnet_ops.formatting import first_names

PARQUET = ".parquet"
EMBEDDED = {"digits": Path(__file__).with_name("digits.parquet")}  # datasets that ship with this package
NAMED = 3  # classes that a note names
PEEKED = 3  # files of which it is told that they are images of another name
MAX_NAME = 60  # characters of a dataset's name in the name of a run, which has at most 100


def discover(config: DataConfig) -> DiscoveredData:
    """Return the dataset of `config`, whether training can use it or not.

    Raises:
        UserError: There are no images to read.
    """
    data = _without_unlabeled_test(_discover_one(config.data, "--data", config))
    return _with_names_note(_without_shared_test(_with_val_data(data, config)))


def discover_labeled(config: DataConfig) -> DiscoveredData:
    """Return the labeled images of `config.data`, which may be validation or test images alone.

    Raises:
        UserError: There are no images to read.
    """
    return _discover_one(config.data, "--data", config, for_training=False)


def _with_val_data(data: DiscoveredData, config: DataConfig) -> DiscoveredData:
    """Return the data with the validation images that `config` asks for."""
    if config.val_data is None:
        return data
    if config.val_data == TEST_NAME:
        if data.test is None:
            raise UserError(f"--data {config.data} has no test images.", "Use --val-data PATH, or remove it.")
        return replace(data, val=data.test, test=None)
    val_data = _discover_one(config.val_data, "--val-data", config, for_training=False)
    return replace(
        data,
        val=val_data.val or val_data.test or val_data.train,
        names_matter=data.names_matter or val_data.names_matter,
        skipped=(*data.skipped, *val_data.skipped),
        notes=(*data.notes, *val_data.notes),
    )


def _without_unlabeled_test(data: DiscoveredData) -> DiscoveredData:
    """Leave out test images of which none has a class of the training images: those of a contest, without labels."""
    if data.test is None:
        return data
    labels, names = data.test.encoded.labels, data.test.class_names
    trained = next(part.class_names for part in data.parts if part.class_names) if names else ()
    known = set(names) & set(trained) if names else labels.max(initial=-1) >= 0
    if known and (labels >= 0).any():
        return data
    skipped = (Skipped(file.name, "of a test split without known labels") for file in data.test.files)
    note = f"Left out {image_count(len(labels))} of the test split, none of which has a label of the training images."
    return replace(data, test=None, skipped=(*data.skipped, *skipped), notes=(*data.notes, note))


def _with_names_note(data: DiscoveredData) -> DiscoveredData:
    """Note where numbers of training images are taken for the classes that another split numbers so."""
    named = [(split, part.class_names) for split, part in data.by_split.items() if part.class_names]
    if data.train.class_names or not named:
        return data
    split, names = named[0]
    numbered = first_names((f"{number} is {name}" for number, name in enumerate(names)), NAMED)
    note = (
        f"Training images have numbers of classes; their names are those of the {SPLIT_NAMES[split]} split: {numbered}."
    )
    return replace(data, notes=(*data.notes, note))


def _without_shared_test(data: DiscoveredData) -> DiscoveredData:
    """Leave out test images whose files are trained or selected on: their accuracy would be too high."""
    if data.test is None or isinstance(data.test.encoded, Subset):  # of one file that says which rows are which
        return data
    test = _resolved(data.test.files)
    for split, part in data.by_split.items():
        if split == "test" or test.isdisjoint(_resolved(part.files)):
            continue
        note = f"There is no test split: files of it are in the {SPLIT_NAMES[split]} split."
        return replace(data, test=None, notes=(*data.notes, note))
    return data


def _resolved(parts: Sequence[File]) -> set[str]:
    """Return the paths of files, with symbolic links to their folders followed."""
    folders: dict[tuple[Path, str], str] = {}
    paths = set()
    for file in parts:
        if is_table(file.name):  # one may have the labels of several splits
            continue
        folder, _, name = file.name.rpartition("/")
        key = file.root, folder
        if key not in folders:
            path = file.root / folder
            folders[key] = str(path if files.is_remote(path) else path.resolve())
        paths.add(f"{folders[key]}/{name}")
    return paths


def find_missing(config: DataConfig) -> str | None:
    """Return which path of `config` there is no longer on this machine; None where all are there."""
    for data in (config.data, config.val_data):
        if data is None or data in (*DATA_SETS, TEST_NAME) or "://" in data:
            continue
        path = Path(data).expanduser()
        if not path.exists() and not (has_magic(data) and listing.expand_glob(path)):
            return data
    return None


def absolute_paths(config: DataConfig) -> dict[str, object]:
    """Return the options that name places, with absolute paths; names of datasets and URLs stay as they are."""
    folders = {name: getattr(config, name) for name in ("data_root", "cache_dir")}
    return {
        "data": _absolute(config.data),
        "val_data": config.val_data and (TEST_NAME if config.val_data == TEST_NAME else _absolute(config.val_data)),
        **{name: path and check_text(_normalized(path.expanduser().absolute())) for name, path in folders.items()},
    }


def _absolute(data: str) -> str:
    path = Path(data).expanduser()
    is_path = data not in DATA_SETS and "://" not in data and (has_magic(data) or path.exists())
    return str(check_text(_normalized(path.absolute()))) if is_path else data


def _normalized(path: Path) -> Path:
    """Return a path without `..`, unless that would lead elsewhere, as behind a symbolic link."""
    normal = Path(os.path.normpath(path))
    return normal if normal.resolve() == path.resolve() else path


def _discover_one(data: str, option: str, config: DataConfig, *, for_training: bool = True) -> DiscoveredData:
    """Return the dataset that `data`, the value of `option`, names."""
    if not data.strip():  # as of a variable that is not set
        raise UserError(f"{option} is empty.", f"Name a dataset or a path; this folder is {option} .")
    if data in DATA_SETS:
        return _with_folder_note(
            discover_parquet([EMBEDDED[data]], data, (None, None))
            if data in EMBEDDED
            else download_cifar(data, config.data_root or cache_folder(config.cache_dir) / "data"),
            option,
        )
    path = files.to_path(data)
    if not files.is_remote(path):
        path = path.expanduser()
    files.check_reachable(next(parent for parent in (path, *path.parents) if not has_magic(str(parent))))
    is_pattern = has_magic(data) and not files.exists(path)
    try:
        discovered = _discover_path(path, is_pattern, option, config, for_validation=not for_training)
    except OSError as error:
        raise UserError(f"{option} {data} cannot be read: {error.strerror}.", "Check its permissions.") from None
    if discovered is not None:
        return discovered
    if not is_pattern and files.exists(path):
        skipped = list_skipped(listing.list_everything(path), ())
        summary = summarize_skipped(skipped)
        unnamed = next(
            (path / each.name for each in skipped[:PEEKED] if _is_image_without_name(path / each.name)), None
        )
        raise UserError(
            f"{option} {data} contains no images{summary and ': '}{summary}.",
            f"{unnamed} is an image: give the files their extensions, such as .jpg." if unnamed else LAYOUTS,
        )
    raise _not_there(data, path, option, is_pattern)


def _not_there(data: str, path: Path, option: str, is_pattern: bool) -> UserError:
    """Return the error that there is no such path."""
    typed = data if option == "--data" else f"{option} {data}"  # --data is an argument of `data check`
    full = path if files.is_remote(path) else path.absolute()
    above = Path("..", data)
    elsewhere = f" ({above} does)" if not (files.is_remote(path) or is_pattern) and above.exists() else ""
    return UserError(
        f"{'' if typed == str(full) else f'{typed}: '}{full} {'matches no file' if is_pattern else 'does not exist'}"
        f"{elsewhere}.",
        f"{did_you_mean(data, DATA_SETS) or did_you_mean_path(path)} "
        f"Give a folder with a subfolder of images per class, or {', '.join(DATA_SETS)}.",
    )


def _with_folder_note(data: DiscoveredData, option: str) -> DiscoveredData:
    """Note that a folder here has the name of a dataset, and is not read."""
    if not Path(data.name).exists():
        return data
    note = f"{option} {data.name} is the dataset of that name; {data.name} in this folder is {option} ./{data.name}."
    return replace(data, notes=(*data.notes, note))


def _discover_path(
    path: Path, is_pattern: bool, option: str, config: DataConfig, *, for_validation: bool
) -> DiscoveredData | None:
    columns = config.image_column, config.label_column
    if is_pattern:
        if not (matches := listing.expand_glob(path)):
            return None
        if images := [match for match in matches if is_image(match.name)]:
            raise UserError(f"{option} {path} matches images, such as {images[0]}, and not Parquet files.", LAYOUTS)
        name = _run_name(matches[0].absolute().parent.name)
        return discover_parquet(matches, name, columns, for_validation=for_validation)
    if files.is_file(path):
        if path.suffix.lower() != PARQUET:
            _refuse_file(path, option)
        name = _run_name(path.name.removesuffix(PARQUET))
        return discover_parquet([path], name, columns, for_validation=for_validation)
    if not files.is_remote(path) and not path.exists():
        return None
    name = _run_name(path.name if files.is_remote(path) else path.resolve().name)
    listed = listing.list_everything(path, rank_by_split)
    tables = [file for file in listed if file.name.lower().endswith(PARQUET) and not file.unread]
    if not tables:
        return discover_folders(path, listed, name, config.label_column, for_validation=for_validation)
    data = discover_parquet([file.path for file in tables], name, columns, for_validation=for_validation)
    beside = f"beside {tables[0].name}, which is Parquet and read"
    return replace(data, skipped=(*data.skipped, *list_skipped(listed, tables, {"": beside})))


def _is_image_without_name(path: Path) -> bool:
    try:
        with listing.open_file(path) as opened:
            return not is_image(path.name) and read_header(opened.read()).format != "TIFF"  # which cameras' files are
    except (OSError, DecodeError):
        return False


def _refuse_file(path: Path, option: str) -> None:
    """Refuse a file that is not Parquet.

    Raises:
        UserError: Always, saying what it is; unless it is Parquet of another name.
    """
    with listing.open_file(path) as opened:
        start = opened.read(FIRST_BYTES)
    kind = "one image" if is_image(path.name) else describe_content(start)
    if not start.startswith(b"PAR1"):
        raise UserError(f"{option} {path} is no dataset, but {kind or 'a file of another kind'}.", LAYOUTS)


def _run_name(stem: str) -> str:
    """Return a short name that can be part of a run's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem)[:MAX_NAME].strip("-.") or "images"


@dataclass(frozen=True)
class ArrayImages:
    """`EncodedImages` of an array of pixels (N, H, W, 3) uint8; each is read as a PPM."""

    pixels: np.ndarray
    labels: np.ndarray
    description: str
    row_groups: None = None
    sizes: None = None

    def read(self, rows: Sequence[int]) -> list[bytes | OSError]:
        """See `EncodedImages.read`."""
        height, width = self.pixels.shape[1:3]
        header = f"P6 {width} {height} 255\n".encode()
        return [header + self.pixels[row].tobytes() for row in rows]

    def name(self, row: int) -> str:
        """See `EncodedImages.name`."""
        return f"image {row} of {self.description}"


def download_cifar(data: str, root: Path) -> DiscoveredData:
    """Return CIFAR-10 or CIFAR-100 (`data`: cifar10, cifar100) of the folder `root`, downloading it if necessary.

    Raises:
        UserError: It is missing or damaged, and cannot be downloaded; or the folder cannot be written.
    """
    from torchvision import datasets  # imports torch, which no other data needs

    dataset = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[data]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with locks.exclusive(root / f".{data}.lock"):  # processes of one machine would unpack over each other
            train, test = (dataset(root, train=is_train, download=True) for is_train in (True, False))
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{data} is missing or incomplete in {root} and could not be downloaded "
            f"({' '.join(str(error).split())[:200]}).",
            f"Extract {dataset.base_folder} from {dataset.filename} into {root}, or give the folder that contains it: "
            "--data-root.",
        ) from None
    return DiscoveredData(
        data,
        _cifar_images(data, train, dataset.train_list, root),
        None,
        test=_cifar_images(data, test, dataset.test_list, root),
    )


def _cifar_images(data: str, split: Any, checksums: list[tuple[str, str]], root: Path) -> LabeledImages:
    description = f"{data}'s {'training' if split.train else 'test'} images"
    images = ArrayImages(split.data, np.asarray(split.targets, np.int64), description)
    folder = root / split.base_folder
    split_files = [File(folder, name, (folder / name).stat().st_size) for name, _ in checksums]
    return LabeledImages(images, tuple(split.classes), tuple(split_files))
