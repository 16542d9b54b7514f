"""Images in folders named after their classes, as torchvision's ImageFolder reads them, on a disk or in a bucket."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from resnet_ops.data import listing
from resnet_ops.data.dataset import VAL_NAMES, DiscoveredData, LabeledImages
from resnet_ops.data.listing import File
from resnet_ops.errors import UserError

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
