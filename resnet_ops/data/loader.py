"""Batches on the device: which images, in which order, on which worker.

The order and the augmentation of every step follow from (seed, epoch, step, rank) alone. No
generator's state lives from step to step, so there is none to save and restore.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from resnet_ops.data.augment import Augmentation, normalise, pixel_statistics
from resnet_ops.data.cache import Images
from resnet_ops.data.sources import Source

EVAL_BATCH = 500


@dataclass(frozen=True)
class DeviceImages:
    """One split: pixels (N, H, W, C) uint8, labels (N,) int64 in the device's memory.

    The pixels are there too, or, where they would take more than half of what is free, on the host, and each batch is
    copied.
    """

    pixels: Tensor
    labels: Tensor

    @classmethod
    def of(cls, images: Images, device: torch.device) -> "DeviceImages":
        """Put a decoded split where it fits."""
        pixels = torch.from_numpy(images.pixels)
        if device.type != "cuda" or pixels.nbytes <= torch.cuda.mem_get_info(device)[0] / 2:
            pixels = pixels.to(device)
        return cls(pixels, torch.from_numpy(images.labels).to(device))

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

    train: DeviceImages
    val: DeviceImages
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

    def train_batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """This worker's share of each batch from step `start` on: (n, C, H, W) float32 and (n,) int64.

        Labels are (n, classes) float32 where images are mixed. Shares of one batch are disjoint, make
        up the batch, and differ in size by at most one.
        """
        order = torch.randperm(len(self.train), generator=_generator(self.seed, epoch)).to(self.train.pixels.device)
        for step in range(start, self.steps):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            share = batch[self.rank :: self.world_size]
            pixels, labels = self.train.take(share)
            generator = _generator(self.seed, epoch, step + 1, self.rank)
            yield self.augmentation(pixels, labels, self.mean, self.std, generator)

    def val_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """This worker's share of the validation images, in order."""
        rows = torch.arange(len(self.val), device=self.val.pixels.device)[self.rank :: self.world_size]
        for batch in rows.split(EVAL_BATCH):
            x, y = self.val.take(batch)
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
) -> Loader:
    """Decode a source and put it on the device."""
    decoded = source.decoded("train")
    train = DeviceImages.of(decoded.images, device)
    val = DeviceImages.of(source.load("val"), device)
    mean, std = pixel_statistics(decoded.counts)
    return Loader(train, val, mean, std, batch_size, augmentation, seed, rank, world_size)


def _generator(*numbers: int) -> torch.Generator:
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))
