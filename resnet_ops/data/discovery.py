"""What lies under a path or goes by a name: a folder of class folders, Parquet files, a data set that is downloaded."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from glob import has_magic
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from resnet_ops import files, locks
from resnet_ops.config import DATA_SETS, DataConfig
from resnet_ops.data import listing, parquet
from resnet_ops.data.cache import cache_folder
from resnet_ops.data.dataset import VAL_NAMES, DiscoveredData, LabeledImages
from resnet_ops.data.listing import File
from resnet_ops.errors import UserError, did_you_mean

EMBEDDED = {"digits": Path(__file__).with_name("digits.parquet")}


def discover(config: DataConfig) -> DiscoveredData:
    """What lies under the paths of `config`, or goes by their names, fit for training or not.

    Raises:
        UserError: Nothing that could be looked at.
    """
    found = _find(config.data, "--data", config)
    if config.val_data is None:
        return found
    other = _find(config.val_data, "--val-data", config)
    return replace(
        found,
        val=other.val or other.train,
        named_files=found.named_files or other.named_files,
        passed_over=(*found.passed_over, *other.passed_over),
    )


def absolute_paths(config: DataConfig) -> dict[str, object]:
    """The options that name places, as these can be found from any directory; what is no path stays as it is."""
    dirs = {name: getattr(config, name) for name in ("data_root", "cache_dir")}
    return {
        "data": _absolute(config.data),
        "val_data": config.val_data and _absolute(config.val_data),
        **{name: path and path.expanduser().absolute() for name, path in dirs.items()},
    }


def _absolute(place: str) -> str:
    path = Path(place).expanduser()
    is_path = place not in DATA_SETS and "://" not in place and (has_magic(place) or path.exists())
    return str(path.absolute()) if is_path else place


def _find(data: str, option: str, config: DataConfig) -> DiscoveredData:
    """What lies under a path, or goes by a name."""
    columns = config.image_column, config.label_column
    if data in EMBEDDED:
        return parquet.find_parquet([EMBEDDED[data]], data, (None, None))
    if data in DATA_SETS:
        return find_named(data, config.data_root or cache_folder(config.cache_dir) / "data")
    place = files.to_path(data)
    if not files.is_remote(place):
        place = place.expanduser()
    files.check_reachable(next(path for path in (place, *place.parents) if not has_magic(str(path))))
    try:
        if has_magic(data):
            matched = listing.expand_glob(place)
            name = _name(matched[0].absolute().parent.name) if matched else ""
            found = parquet.find_parquet(matched, name, columns) if matched else None
        elif files.is_file(place):
            found = parquet.find_parquet([place], _name(place.name.removesuffix(".parquet")), columns)
        else:
            metadata = [path for folder in (place, place / "data") for path in files.listed(folder)]
            tables = [path for path in metadata if path.suffix == ".parquet"]
            first = [path for path in tables if path.parent == place] or tables
            name = _name(place.name if files.is_remote(place) else place.resolve().name)
            found = parquet.find_parquet(first, name, columns) if first else find_folders(place, name)
    except OSError as error:
        raise UserError(f"{option} {data} cannot be read: {error.strerror}.", "Check its permissions.") from None
    if found is not None:
        return found
    if not has_magic(data) and files.exists(place):
        raise UserError(
            f"{option} {data} contains no images.",
            "Use a folder of Parquet files, or one with a subfolder of images per class.",
        )
    raise UserError(
        f"{option} {data}: no such path, and no data set of that name.",
        f"{did_you_mean(data, DATA_SETS)} Data sets by name: {', '.join(DATA_SETS)}.",
    )


def _name(stem: str) -> str:
    """A short name that can be part of a run's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.") or "images"


TRAIN = "train"
# torchvision's IMG_EXTENSIONS, and .gif, whose first picture is taken.
EXTENSIONS = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif"}


@dataclass(frozen=True)
class FolderImages:
    """An `Encoded`: one file an image."""

    root: Path
    names: tuple[str, ...]
    labels: np.ndarray
    units: None = None

    def read(self, rows: Sequence[int]) -> list[bytes | OSError]:
        """As `Encoded.read`."""
        return listing.read_many(self.root, [self.names[row] for row in rows])

    def name(self, row: int) -> str:
        """As `Encoded.name`."""
        return str(self.root / self.names[row])


def find_folders(root: Path, name: str) -> DiscoveredData | None:
    """The images under `root`: class folders in train/ and in val/, or class folders only.

    A class folder of the training images without an image is a problem. torchvision refuses it as well: the class
    would be in the network, and never be learnt.

    Returns:
        None where there are no folders with images in them.

    Raises:
        UserError: There is a folder train/, and it holds none.
    """
    every = listing.find(root)
    tops = {file.name.partition("/")[0] for file in every if "/" in file.name}
    if TRAIN not in tops:
        train = _folder_images(root, "", every, refuse_empty=True)
        return _discovered(name, train, None, every) if train else None
    val = next((folder for folder in VAL_NAMES if folder in tops), None)
    train = _folder_images(root, f"{TRAIN}/", every, refuse_empty=True)
    if train is None:
        raise UserError(f"{root / TRAIN} contains no subfolders with images.", "Create one subfolder per class in it.")
    return _discovered(name, train, _folder_images(root, f"{val}/", every) if val else None, every)


def _discovered(name: str, train: LabeledImages, val: LabeledImages | None, every: Sequence[File]) -> DiscoveredData:
    read = {file.name for part in (train, val) if part for file in part.files}
    passed_over = sorted(file.name for file in every if file.name not in read and not file.name.endswith("/"))
    return DiscoveredData(name, train, val, named_files=True, passed_over=tuple(passed_over))


def _folder_images(
    root: Path, below: str, every: Sequence[File], *, refuse_empty: bool = False
) -> LabeledImages | None:
    metadata = [file for file in every if file.name.startswith(below) and "/" in file.name.removeprefix(below)]
    class_of = {file.name: file.name.removeprefix(below).partition("/")[0] for file in metadata}
    images = sorted((file for file in metadata if is_image(file.name)), key=lambda file: file.name)
    if not images:
        return None
    classes = sorted({class_of[file.name] for file in (metadata if refuse_empty else images)})
    problems = [
        UserError(
            f"{root / below / empty} contains no images, so its class cannot be learned.",
            f"Add images ({', '.join(sorted(EXTENSIONS))}), or remove it.",
        )
        for empty in sorted(set(classes) - {class_of[file.name] for file in images})
    ]
    number = {name: index for index, name in enumerate(classes)}
    labels = np.array([number[class_of[file.name]] for file in images], np.int64)
    encoded = FolderImages(root, tuple(file.name for file in images), labels)
    return LabeledImages(encoded, tuple(classes), tuple(images), tuple(problems))


def is_image(name: str) -> bool:
    """Whether a file is called as images are."""
    return not name.endswith("/") and PurePosixPath(name).suffix.lower() in EXTENSIONS


@dataclass(frozen=True)
class ArrayImages:
    """An `Encoded` of pixels (N, H, W, 3) uint8 that were never encoded; each is given out as a PPM."""

    pixels: np.ndarray
    labels: np.ndarray
    what: str
    units: None = None

    def read(self, rows: Sequence[int]) -> list[bytes | OSError]:
        """As `Encoded.read`."""
        height, width = self.pixels.shape[1:3]
        header = f"P6 {width} {height} 255\n".encode()
        return [header + self.pixels[row].tobytes() for row in rows]

    def name(self, row: int) -> str:
        """As `Encoded.name`."""
        return f"image {row} of {self.what}"


def find_named(data: str, root: Path) -> DiscoveredData:
    """CIFAR-10 or CIFAR-100 in the folder `root`, downloaded to it if it is not there.

    Raises:
        UserError: It is not there, or damaged, and cannot be downloaded; or the folder cannot be written.
    """
    from torchvision import datasets  # imports torch, which no other data needs

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[data]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with locks.exclusive(root / f".{data}.lock"):  # processes of one machine would unpack over each other
            train, test = (kind(root, train=train, download=True) for train in (True, False))
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{data} is missing or incomplete in {root} and could not be downloaded "
            f"({' '.join(str(error).split())[:200]}).",
            f"Extract {kind.base_folder} from {kind.filename} into {root}, or give the folder that contains it: "
            "--data-root.",
        ) from None
    return DiscoveredData(
        data, _named_images(data, train, kind.train_list, root), _named_images(data, test, kind.test_list, root)
    )


def _named_images(data: str, split: Any, checksums: list[tuple[str, str]], root: Path) -> LabeledImages:
    what = f"{data}'s {'training' if split.train else 'test'} images"
    images = ArrayImages(split.data, np.asarray(split.targets, np.int64), what)
    folder = root / split.base_folder
    files = [File(folder, name, (folder / name).stat().st_size) for name, _ in checksums]
    return LabeledImages(images, tuple(split.classes), tuple(files))
