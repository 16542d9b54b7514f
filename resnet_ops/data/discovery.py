"""Discover the dataset under a path or of a name: class folders, Parquet files, or one that torchvision downloads.

Nothing is decoded here, and whether training can use the data is decided in sources.py.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from glob import has_magic
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from resnet_ops import files, locks
from resnet_ops.config import DATA_SETS, TEST_NAME, DataConfig
from resnet_ops.config_base import check_text
from resnet_ops.data import listing
from resnet_ops.data.cache import cache_folder
from resnet_ops.data.dataset import SPLIT_NAMES, TEST_NAMES, TRAIN_NAMES, VAL_NAMES, DiscoveredData, LabeledImages
from resnet_ops.data.listing import File
from resnet_ops.data.parquet import discover_parquet
from resnet_ops.errors import UserError, did_you_mean
from resnet_ops.formatting import class_name, readable

EMBEDDED = {"digits": Path(__file__).with_name("digits.parquet")}  # datasets that ship with this package
# torchvision's IMG_EXTENSIONS, and .gif, of which the first frame is taken.
MAX_NAME = 60  # characters of a dataset's name in the name of a run, which has at most 100
EXTENSIONS = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif"}


def discover(config: DataConfig) -> DiscoveredData:
    """Return the dataset of `config`, whether training can use it or not.

    Raises:
        UserError: There are no images to read.
    """
    data = _without_unlabeled_test(_discover_one(config.data, "--data", config))
    return _without_shared_test(_with_val_data(data, config))


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
        skipped_files=(*data.skipped_files, *val_data.skipped_files),
    )


def _without_unlabeled_test(data: DiscoveredData) -> DiscoveredData:
    """Leave out test images of which none has a class of the training images: those of a contest, without labels."""
    if data.test is None:
        return data
    labels, names = data.test.encoded.labels, data.test.class_names
    known = set(names) & set(data.train.class_names) if names else labels.max(initial=-1) >= 0
    if known and (labels >= 0).any():
        return data
    skipped = (*data.skipped_files, *(file.name for file in data.test.files))
    return replace(data, test=None, skipped_files=skipped)


def _without_shared_test(data: DiscoveredData) -> DiscoveredData:
    """Leave out test images whose files are trained or selected on: their accuracy would be too high."""
    if data.test is None:
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
        **{name: path and check_text(path.expanduser().absolute()) for name, path in folders.items()},
    }


def _absolute(data: str) -> str:
    path = Path(data).expanduser()
    is_path = data not in DATA_SETS and "://" not in data and (has_magic(data) or path.exists())
    return str(check_text(path.absolute())) if is_path else data


def _discover_one(data: str, option: str, config: DataConfig, *, for_training: bool = True) -> DiscoveredData:
    """Return the dataset that `data`, the value of `option`, names."""
    if data in EMBEDDED:
        return discover_parquet([EMBEDDED[data]], data, (None, None))
    if data in DATA_SETS:
        return download_cifar(data, config.data_root or cache_folder(config.cache_dir) / "data")
    path = files.to_path(data)
    if not files.is_remote(path):
        path = path.expanduser()
    files.check_reachable(next(parent for parent in (path, *path.parents) if not has_magic(str(parent))))
    try:
        columns = config.image_column, config.label_column
        is_pattern = has_magic(data) and not files.exists(path)  # a folder may be called photos [v2]
        discovered = _discover_path(path, is_pattern, columns, for_validation=not for_training)
    except OSError as error:
        raise UserError(f"{option} {data} cannot be read: {error.strerror}.", "Check its permissions.") from None
    if discovered is not None:
        return discovered
    if files.exists(path):
        raise UserError(
            f"{option} {data} contains no images.",
            "Use a folder of Parquet files, or one with a subfolder of images per class.",
        )
    raise UserError(
        f"{option} {data}: no such path, and no dataset of that name.",
        f"{did_you_mean(data, DATA_SETS)} Datasets by name: {', '.join(DATA_SETS)}.",
    )


def _discover_path(
    path: Path, is_pattern: bool, columns: tuple[str | None, str | None], *, for_validation: bool
) -> DiscoveredData | None:
    if is_pattern:
        if not (matches := listing.expand_glob(path)):
            return None
        name = _run_name(matches[0].absolute().parent.name)
        return discover_parquet(matches, name, columns, for_validation=for_validation)
    if files.is_file(path):
        return discover_parquet([path], _run_name(path.name.removesuffix(".parquet")), columns)
    name = _run_name(path.name if files.is_remote(path) else path.resolve().name)
    for folder in (path, path / "data"):  # where Hugging Face's repositories have them
        if tables := [file for file in files.listed(folder) if file.suffix == ".parquet"]:
            return discover_parquet(tables, name, columns, for_validation=for_validation)
    return discover_folders(path, name)


def _run_name(stem: str) -> str:
    """Return a short name that can be part of a run's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem)[:MAX_NAME].strip("-.") or "images"


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


def discover_folders(root: Path, name: str) -> DiscoveredData | None:
    """Return the images under `root`: class folders in train/, val/ and test/, or class folders only.

    They may be named by any of `TRAIN_NAMES`, `VAL_NAMES` and `TEST_NAMES`, in upper case too.

    A class folder of the training images without an image is a problem. torchvision refuses it as well: the class
    would be in the network, and never be learned.

    Returns:
        None where no folder contains images.

    Raises:
        UserError: The folder train/ exists, and contains no images.
    """
    all_files = listing.list_files(root)
    folders = {file.name.partition("/")[0] for file in all_files if "/" in file.name}
    nested = {file.name.partition("/")[0] for file in all_files if file.name.count("/") > 1}
    are_splits = all(folder.lower() in TRAIN_NAMES + VAL_NAMES + TEST_NAMES for folder in nested)
    # A folder train/ is never a class; Train/ or training/ may be one.
    train_folder = _named_folder(TRAIN_NAMES, (nested if are_splits else set()) | folders & {"train"})
    if train_folder is None:
        train = _class_folders(root, "", all_files, refuse_empty=True)
        return _with_skipped_files(DiscoveredData(name, train, None, names_matter=True), all_files) if train else None
    train = _class_folders(root, f"{train_folder}/", all_files, refuse_empty=True)
    if train is None:
        raise UserError(
            f"{root / train_folder} contains no subfolders with images.", "Create one subfolder per class in it."
        )
    val, test = (
        _class_folders(root, f"{folder}/", all_files) if (folder := _named_folder(names, folders)) else None
        for names in (VAL_NAMES, TEST_NAMES)
    )
    return _with_skipped_files(DiscoveredData(name, train, val, names_matter=True, test=test), all_files)


def _named_folder(names: Sequence[str], folders: set[str]) -> str | None:
    """Return the folder of the first of `names` that there is, in whatever case."""
    return next((each for name in names for each in sorted(folders, reverse=True) if each.lower() == name), None)


def _class_folders(
    root: Path, prefix: str, all_files: Sequence[File], *, refuse_empty: bool = False
) -> LabeledImages | None:
    in_folders = [file for file in all_files if file.name.startswith(prefix) and "/" in file.name.removeprefix(prefix)]
    class_of = {file.name: class_name(file.name.removeprefix(prefix).partition("/")[0]) for file in in_folders}
    images = sorted((file for file in in_folders if is_image(file.name)), key=lambda file: file.name)
    if not images:
        return None
    classes = sorted({class_of[file.name] for file in (in_folders if refuse_empty else images)})
    problems = [
        UserError(
            f"{root / prefix / empty} contains no images, so its class cannot be learned.",
            f"Add images ({', '.join(sorted(EXTENSIONS))}), or remove it.",
        )
        for empty in sorted(set(classes) - {class_of[file.name] for file in images})
    ]
    index = {name: number for number, name in enumerate(classes)}
    labels = np.array([index[class_of[file.name]] for file in images], np.int64)
    sizes = np.array([file.size for file in images], np.int64)
    encoded = FolderImages(root, tuple(file.name for file in images), labels, None if (sizes < 0).any() else sizes)
    return LabeledImages(encoded, tuple(classes), tuple(images), tuple(problems))


def _with_skipped_files(data: DiscoveredData, all_files: Sequence[File]) -> DiscoveredData:
    read = {file.name for part in data.parts for file in part.files}
    skipped = sorted(file.name for file in all_files if file.name not in read and not file.name.endswith("/"))
    return replace(data, skipped_files=tuple(skipped))


def is_image(name: str) -> bool:
    """Return whether a file's name ends as an image's does."""
    return not name.endswith("/") and PurePosixPath(name).suffix.lower() in EXTENSIONS


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
