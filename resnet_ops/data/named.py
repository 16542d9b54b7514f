"""CIFAR-10 and CIFAR-100 by their names, as torchvision downloads them, checks them and reads them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from resnet_ops import locks
from resnet_ops.data.dataset import DiscoveredData, LabeledImages
from resnet_ops.data.listing import File
from resnet_ops.errors import UserError


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
