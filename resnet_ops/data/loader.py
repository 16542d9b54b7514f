"""Batches on the device, augmented and normalized: one rank's share of each.

The order and the augmentation of every step follow from (seed, epoch, step, rank) alone. No generator's state lives
from step to step, so there is none to save and restore. Images that do not fit in memory are read in stream.py.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from resnet_ops.data import sampling
from resnet_ops.data.augment import Augmentation, normalize, pixel_statistics
from resnet_ops.data.dataset import SPLITS
from resnet_ops.data.parallel_decode import ImageArray
from resnet_ops.data.sources import Source
from resnet_ops.data.stream import StreamedImages
from resnet_ops.run_records import BadImage

EVAL_BATCH = 500


class SplitImages(Protocol):
    """One split that batches are taken from, in memory or streamed."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of its images."""

    @property
    def bad(self) -> tuple[BadImage, ...]:
        """Images that could not be decoded so far."""

    def shuffled_batches(self, batch_size: int, rank: int, world_size: int, generator: torch.Generator) -> list[Tensor]:
        """Return one rank's rows (n,) int64 of each whole batch of an epoch in random order."""

    def sequential_batches(self, batch_size: int, rank: int, world_size: int) -> list[Tensor]:
        """Return one rank's share of all rows, ascending, in batches."""

    def load_batches(self, batches: Sequence[Tensor], beat: Callable[[], None]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield pixels (n, H, W, C) uint8 and labels (n,) int64 of each batch of rows, on the device.

        Where they are read meanwhile, `beat` is called as they come.
        """

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class DeviceImages:
    """One split in memory: pixels (N, H, W, C) uint8, labels (N,) int64 in the device's memory.

    The pixels are there too, or, where they would take more than half of its free memory, on the host, and each batch
    is copied.
    """

    pixels: Tensor
    labels: Tensor

    @classmethod
    def of(cls, images: ImageArray, device: torch.device) -> "DeviceImages":
        """Copy a decoded split to the device, or keep its pixels on the host where they do not fit."""
        pixels = torch.from_numpy(images.pixels)
        if device.type != "cuda" or pixels.nbytes <= torch.cuda.mem_get_info(device)[0] / 2:
            pixels = pixels.to(device)
        return cls(pixels, torch.from_numpy(images.labels).to(device))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.pixels.shape[1], self.pixels.shape[2]

    @property
    def bad(self) -> tuple[BadImage, ...]:
        """None, as they were left out when the split was decoded."""
        return ()

    def shuffled_batches(self, batch_size: int, rank: int, world_size: int, generator: torch.Generator) -> list[Tensor]:
        """See `SplitImages.shuffled_batches`; the rows are on the device of the pixels."""
        order = torch.randperm(len(self), generator=generator).to(self.pixels.device)
        return sampling.rank_batches(order, batch_size, rank, world_size)

    def sequential_batches(self, batch_size: int, rank: int, world_size: int) -> list[Tensor]:
        """See `SplitImages.sequential_batches`; the rows are on the device of the pixels."""
        batches = sampling.sequential_batches(len(self), batch_size, rank, world_size)
        return [rows.to(self.pixels.device) for rows in batches]

    def load_batches(self, batches: Sequence[Tensor], beat: Callable[[], None]) -> Iterator[tuple[Tensor, Tensor]]:  # noqa: ARG002
        """See `SplitImages.load_batches`."""
        return map(self.take, batches)

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return pixels and labels of some images, on the device. `rows` (n,) int64 are on the device of the pixels."""
        device = self.labels.device
        if self.pixels.device == device:
            return self.pixels.index_select(0, rows), self.labels.index_select(0, rows)
        picked = torch.empty((len(rows), *self.pixels.shape[1:]), dtype=torch.uint8, pin_memory=True)
        torch.index_select(self.pixels, 0, rows, out=picked)
        return picked.to(device, non_blocking=True), self.labels.index_select(0, rows.to(device, non_blocking=True))

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Loader:
    """Both splits of a dataset for one rank: yields augmented and normalized batches on its device."""

    train: SplitImages
    val: SplitImages
    mean: tuple[float, ...]
    std: tuple[float, ...]
    batch_size: int  # images per step of all ranks together
    augmentation: Augmentation
    seed: int
    rank: int = 0
    world_size: int = 1

    @property
    def steps(self) -> int:
        """Steps per epoch; images that do not fill a last batch are left out of this epoch."""
        return len(self.train) // self.batch_size

    def train_batches(
        self, epoch: int, start: int = 0, beat: Callable[[], None] = lambda: None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this rank's share of each batch from step `start` on: (n, C, H, W) float32 and (n,) int64.

        Labels are (n, classes) float32 where images are mixed. The ranks' shares of one batch are disjoint, make up the
        batch, and differ in size by at most one. Where images are read meanwhile, `beat` is called as they come.
        """
        batches = self.train.shuffled_batches(self.batch_size, self.rank, self.world_size, _generator(self.seed, epoch))
        for step, (pixels, labels) in enumerate(self.train.load_batches(batches[start:], beat), start):
            generator = _generator(self.seed, epoch, step + 1, self.rank)
            yield self.augmentation(pixels, labels, self.mean, self.std, generator)

    def val_batches(self, beat: Callable[[], None] = lambda: None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this rank's share of the validation images, in order."""
        batches = self.val.sequential_batches(EVAL_BATCH, self.rank, self.world_size)
        for x, y in self.val.load_batches(batches, beat):
            yield normalize(x, self.mean, self.std), y


def open_loader(
    source: Source,
    device: torch.device,
    *,
    batch_size: int,
    augmentation: Augmentation,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    log_event: Callable[[str], None] = lambda _: None,
) -> Loader:
    """Decode a source onto the device, or stream it while training, as its configuration says."""
    if source.config.stream == "on":
        train_images, val_images = (StreamedImages.of(source, split, device, log_event) for split in SPLITS)
        mean, std = source.record.mean, source.record.std
        assert mean is not None
        assert std is not None
        return Loader(train_images, val_images, mean, std, batch_size, augmentation, seed, rank, world_size)
    decoded = source.decoded("train")
    val = DeviceImages.of(source.load("val"), device)
    train = DeviceImages.of(decoded.images, device)
    if source.config.fit_all:
        train = DeviceImages(
            torch.cat((train.pixels, val.pixels.to(train.pixels.device))), torch.cat((train.labels, val.labels))
        )
    mean, std = pixel_statistics(decoded.counts)
    return Loader(train, val, mean, std, batch_size, augmentation, seed, rank, world_size)


def _generator(*entropy: int) -> torch.Generator:
    state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))
