"""Batches on the device: which images, in which order, on which worker.

The order and the augmentation of every step follow from (seed, epoch, step, rank) alone. No
generator's state lives from step to step, so there is none to save and restore.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from resnet_ops.data import sampling
from resnet_ops.data.augment import Augmentation, normalise, pixel_statistics
from resnet_ops.data.cache import ImageArray
from resnet_ops.data.dataset import SPLITS
from resnet_ops.data.sources import Source
from resnet_ops.records import BadImage

EVAL_BATCH = 500


class Batched(Protocol):
    """One split that batches are taken from."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of its images."""

    @property
    def bad(self) -> tuple[BadImage, ...]:
        """Broken images that were met."""

    def shares(self, batch_size: int, rank: int, world_size: int, generator: torch.Generator) -> list[Tensor]:
        """One worker's rows (n,) int64 of each whole batch of a pass in random order."""

    def in_order(self, batch: int, rank: int, world_size: int) -> list[Tensor]:
        """One worker's share of all rows, in batches."""

    def batches(self, shares: Sequence[Tensor], beat: Callable[[], None]) -> Iterator[tuple[Tensor, Tensor]]:
        """Pixels (n, H, W, C) uint8 and labels (n,) int64 of each share, on the device.

        Where they are read meanwhile, `beat` is called as they come.
        """

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class DeviceImages:
    """One split in memory: pixels (N, H, W, C) uint8, labels (N,) int64 in the device's memory.

    The pixels are there too, or, where they would take more than half of what is free, on the host, and each batch is
    copied.
    """

    pixels: Tensor
    labels: Tensor

    @classmethod
    def of(cls, images: ImageArray, device: torch.device) -> "DeviceImages":
        """Put a decoded split where it fits."""
        pixels = torch.from_numpy(images.pixels)
        if device.type != "cuda" or pixels.nbytes <= torch.cuda.mem_get_info(device)[0] / 2:
            pixels = pixels.to(device)
        return cls(pixels, torch.from_numpy(images.labels).to(device))

    @property
    def size(self) -> tuple[int, int]:
        """As `Batched.size`."""
        return self.pixels.shape[1], self.pixels.shape[2]

    @property
    def bad(self) -> tuple[BadImage, ...]:
        """None: they were left out before."""
        return ()

    def shares(self, batch_size: int, rank: int, world_size: int, generator: torch.Generator) -> list[Tensor]:
        """As `Batched.shares`, where the pixels are."""
        rows = torch.randperm(len(self), generator=generator).to(self.pixels.device)
        return sampling.shares(rows, batch_size, rank, world_size)

    def in_order(self, batch: int, rank: int, world_size: int) -> list[Tensor]:
        """As `Batched.in_order`."""
        return [rows.to(self.pixels.device) for rows in sampling.sequential(len(self), batch, rank, world_size)]

    def batches(self, shares: Sequence[Tensor], beat: Callable[[], None]) -> Iterator[tuple[Tensor, Tensor]]:  # noqa: ARG002
        """As `Batched.batches`."""
        return map(self.take, shares)

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels and labels of some images, on the device. `rows` (n,) int64 are where the pixels are."""
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
    """Both splits of a data set on one worker's device, and how its images are prepared."""

    train: Batched
    val: Batched
    mean: tuple[float, ...]
    std: tuple[float, ...]
    batch_size: int  # images a step over all workers
    augmentation: Augmentation
    seed: int
    rank: int = 0
    world_size: int = 1

    @property
    def steps(self) -> int:
        """Steps an epoch; images that do not fill a last batch sit this epoch out."""
        return len(self.train) // self.batch_size

    def train_batches(
        self, epoch: int, start: int = 0, beat: Callable[[], None] = lambda: None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """This worker's share of each batch from step `start` on: (n, C, H, W) float32 and (n,) int64.

        Labels are (n, classes) float32 where images are mixed. Shares of one batch are disjoint, make up the batch,
        and differ in size by at most one. Where images are read meanwhile, `beat` is called as they come.
        """
        shares = self.train.shares(self.batch_size, self.rank, self.world_size, _generator(self.seed, epoch))
        for step, (pixels, labels) in enumerate(self.train.batches(shares[start:], beat), start):
            generator = _generator(self.seed, epoch, step + 1, self.rank)
            yield self.augmentation(pixels, labels, self.mean, self.std, generator)

    def val_batches(self, beat: Callable[[], None] = lambda: None) -> Iterator[tuple[Tensor, Tensor]]:
        """This worker's share of the validation images, in order."""
        for x, y in self.val.batches(self.val.in_order(EVAL_BATCH, self.rank, self.world_size), beat):
            yield normalise(x, self.mean, self.std), y


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
    """Decode a source and put it on the device, or have that done while training, as its configuration says."""
    if source.config.stream == "on":
        from resnet_ops.data.stream import StreamedImages  # imports Ray Data

        streamed, validating = (StreamedImages.of(source, split, device, log_event) for split in SPLITS)
        mean, std = source.record.mean, source.record.std
        assert mean is not None
        assert std is not None
        return Loader(streamed, validating, mean, std, batch_size, augmentation, seed, rank, world_size)
    decoded = source.decoded("train")
    val = DeviceImages.of(source.load("val"), device)
    train = DeviceImages.of(decoded.images, device)
    if source.config.fit_all:
        train = DeviceImages(
            torch.cat((train.pixels, val.pixels.to(train.pixels.device))), torch.cat((train.labels, val.labels))
        )
    mean, std = pixel_statistics(decoded.counts)
    return Loader(train, val, mean, std, batch_size, augmentation, seed, rank, world_size)


def _generator(*numbers: int) -> torch.Generator:
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))
