"""Batches on the device, augmented and normalized: one rank's share of each.

The order and the augmentation of every step follow from (seed, epoch, step, rank) alone. No generator's state lives
from step to step, so there is none to save and restore. Images that do not fit in memory are read in stream.py.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice, repeat
from typing import Protocol

import torch
from torch import Tensor

from resnet_ops.data import sampling
from resnet_ops.data.augment import Augmentation, Normalizer, pixel_statistics
from resnet_ops.data.batch_ring import Batch, BatchRing
from resnet_ops.data.dataset import Split
from resnet_ops.data.parallel_decode import ImageArray
from resnet_ops.data.sampling import Draws, RandomStream, stream_seed
from resnet_ops.data.sources import Source
from resnet_ops.data.stream import StreamedImages
from resnet_ops.recipe_config import steps_per_epoch
from resnet_ops.run_records import BadImage

EVAL_BATCH = 500
EVAL_BATCH_PIXELS = 2**23  # on a GPU, for which 500 small images are too few: 8,192 at 32x32, 167 at 224x224
HOST_SLOTS = 4  # batches in pinned memory, where the pixels are on the host
BLOCK_STEPS = 16  # whose random numbers are drawn and sent at once


class SplitImages(Protocol):
    """One split that batches are taken from, in memory or streamed."""

    @property
    def device(self) -> torch.device:
        """The device of its batches."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of its images."""

    @property
    def labels(self) -> Tensor:
        """The class of each image, (N,) int64."""

    @property
    def bad(self) -> tuple[BadImage, ...]:
        """Images that could not be decoded so far."""

    @property
    def cut(self) -> tuple[BadImage, ...]:
        """JPEGs without their end that were met in training, and are used."""

    @property
    def broken(self) -> Mapping[int, str]:
        """Their rows, and why."""

    def shuffled_batches(self, batch_size: int, rank: int, world_size: int, generator: torch.Generator) -> list[Tensor]:
        """Return one rank's rows (n,) int64 of each batch of an epoch in random order."""

    def sequential_batches(self, batch_size: int, rank: int, world_size: int) -> list[Tensor]:
        """Return one rank's share of all rows, ascending, in batches."""

    def load_batches(self, batches: Sequence[Tensor], beat: Callable[[], None]) -> Iterator[Batch]:
        """Yield each batch of rows, on the device.

        Where they are read meanwhile, `beat` is called as they come.
        """

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class DeviceImages:
    """One split in memory: pixels (N, H, W, C) uint8, labels (N,) int64 and aspects (N,) float32 on the device.

    The pixels are there too, or, where they would take more than half of its free memory, on the host, and each batch
    is copied.
    """

    pixels: Tensor
    labels: Tensor
    aspects: Tensor | None = None

    @classmethod
    def of(cls, images: ImageArray, device: torch.device) -> "DeviceImages":
        """Copy a decoded split to the device, or keep its pixels on the host where they do not fit."""
        pixels = torch.from_numpy(images.pixels)
        if device.type != "cuda" or pixels.nbytes <= torch.cuda.mem_get_info(device)[0] / 2:
            pixels = pixels.to(device)
        aspects = None if images.aspects is None else torch.from_numpy(images.aspects).to(device)
        return cls(pixels, torch.from_numpy(images.labels).to(device), aspects)

    @property
    def device(self) -> torch.device:
        """See `SplitImages.device`."""
        return self.labels.device

    @property
    def on_device(self) -> bool:
        """Return whether the pixels are in the device's memory too."""
        return self.pixels.device == self.device

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.pixels.shape[1], self.pixels.shape[2]

    @property
    def bad(self) -> tuple[BadImage, ...]:
        """None, as they were left out when the split was decoded."""
        return ()

    @property
    def cut(self) -> tuple[BadImage, ...]:
        """None: they were told when the images were stored."""
        return ()

    @property
    def broken(self) -> Mapping[int, str]:
        """None, too."""
        return {}

    def shuffled_batches(self, batch_size: int, rank: int, world_size: int, generator: torch.Generator) -> list[Tensor]:
        """See `SplitImages.shuffled_batches`."""
        return sampling.rank_batches(torch.randperm(len(self), generator=generator), batch_size, rank, world_size)

    def sequential_batches(self, batch_size: int, rank: int, world_size: int) -> list[Tensor]:
        """See `SplitImages.sequential_batches`."""
        return sampling.sequential_batches(len(self), batch_size, rank, world_size)

    def load_batches(self, batches: Sequence[Tensor], beat: Callable[[], None]) -> Iterator[Batch]:  # noqa: ARG002
        """See `SplitImages.load_batches`; the rows are on the CPU."""
        if self.on_device:
            yield from (self.take(rows.to(self.device)) for rows in batches)
            return
        ring = BatchRing(HOST_SLOTS, max(map(len, batches), default=0), tuple(self.pixels.shape[1:]), self.device)
        for batch, rows in enumerate(batches):
            pixels = torch.from_numpy(ring.slot(batch)[0])[: len(rows)]
            torch.index_select(self.pixels, 0, rows, out=pixels)
            yield self._labeled(ring.send(batch, len(rows)).pixels, rows.to(self.device))
            ring.release()

    def take(self, rows: Tensor) -> Batch:
        """Gather images whose rows (n,) int64 are on the device, as the pixels are."""
        return self._labeled(self.pixels.index_select(0, rows), rows)

    def _labeled(self, pixels: Tensor, rows: Tensor) -> Batch:
        aspects = None if self.aspects is None else self.aspects.index_select(0, rows)
        return Batch(pixels, self.labels.index_select(0, rows), aspects)

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Block:
    """Some steps of an epoch: what is known of them before their images are there.

    Args:
        columns: CPU tensors (steps, ...), one row for each step: its random numbers, and the `rows` of its images where
            the step itself takes them.
        images: The images of each step, or None for each where the step takes them.
        steps: Their number.
    """

    columns: dict[str, Tensor]
    images: Iterator[Batch | None]
    steps: int


@dataclass(frozen=True)
class Loader:
    """The splits that each epoch uses, for one rank: yields augmented and normalized batches on its device.

    `val` is None where the validation images are among the training images.
    """

    train: SplitImages
    val: SplitImages | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    batch_size: int  # images per step of all ranks together
    augmentation: Augmentation
    seed: int
    rank: int = 0
    world_size: int = 1
    balanced: bool = False  # whether classes are drawn equally often, instead of each image once

    @property
    def steps(self) -> int:
        """Steps per epoch; the last batch is filled up with images that were in it before."""
        return steps_per_epoch(len(self.train), self.batch_size)

    @property
    def device(self) -> torch.device:
        """The device of the batches."""
        return self.train.device

    @property
    def resident(self) -> DeviceImages | None:
        """The training images, where a step can take its own by their rows on the device."""
        return self.train if isinstance(self.train, DeviceImages) and self.train.on_device else None

    @cached_property
    def normalizer(self) -> Normalizer:
        """Normalizes the dataset's pixels on the device."""
        return Normalizer(self.mean, self.std, self.device)

    def blocks(self, epoch: int, start: int = 0, beat: Callable[[], None] = lambda: None) -> Iterator[Block]:
        """Yield the steps of an epoch from step `start` on, in blocks, for this rank.

        The ranks' shares of one batch are disjoint, make up the batch, and differ in size by at most one. Where images
        are read meanwhile, `beat` is called as they come.
        """
        generator = _generator(stream_seed(self.seed, RandomStream.ORDER, epoch))
        if self.balanced:
            order = sampling.balanced_order(self.train.labels.cpu(), self.steps * self.batch_size, generator)
            batches = sampling.rank_batches(order, self.batch_size, self.rank, self.world_size)
        else:
            batches = self.train.shuffled_batches(self.batch_size, self.rank, self.world_size, generator)
        images = None if self.resident else self.train.load_batches(batches[start:], beat)
        for first in range(start, len(batches), BLOCK_STEPS):
            rows = batches[first : first + BLOCK_STEPS]
            draws = [self._draw(epoch, step, len(each)) for step, each in enumerate(rows, first)]
            columns = {name: torch.stack([each[name] for each in draws]) for name in draws[0]}
            if images is None:
                yield Block(columns | {"rows": torch.stack(rows)}, repeat(None, len(rows)), len(rows))
            else:
                yield Block(columns, islice(images, len(rows)), len(rows))

    def _draw(self, epoch: int, step: int, images: int) -> Draws:
        seed = stream_seed(self.seed, RandomStream.AUGMENTATION, epoch, step, self.rank)
        return self.augmentation.draw(images, self.train.size, _generator(seed))

    def batch(self, inputs: Draws, images: Batch | None) -> tuple[Tensor, Tensor]:
        """Return the augmented batch of a step: (n, C, H, W) float32, and (n,) int64 or, mixed, (n, classes) float32.

        Args:
            inputs: The step's row of each column of its block, on the device.
            images: Its images; None where they are taken here.
        """
        if images is None:
            assert self.resident is not None
            images = self.resident.take(inputs["rows"])
        return self.augmentation(images.pixels, images.labels, inputs, self.normalizer, images.aspects)

    def train_batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the augmented batches of an epoch from step `start` on."""
        for block in self.blocks(epoch, start):
            for step, images in enumerate(block.images):
                yield self.batch({name: rows[step].to(self.device) for name, rows in block.columns.items()}, images)

    def val_batches(self, beat: Callable[[], None] = lambda: None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this rank's share of the validation images, in order, normalized; none where there are none."""
        if self.val is not None:
            yield from eval_batches(self.val, self.normalizer, self.rank, self.world_size, beat)

    def val_rows(self) -> Tensor:
        """Return the rows (n,) int64 of the images of `val_batches`, once those are through."""
        assert self.val is not None
        rows = torch.cat(_eval_rows(self.val, self.rank, self.world_size))
        return rows[~torch.isin(rows, torch.tensor(list(self.val.broken), dtype=rows.dtype))]


def eval_batches(
    split: SplitImages, normalizer: Normalizer, rank: int, world_size: int, beat: Callable[[], None]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield one rank's share of a split, in order, normalized."""
    for images in split.load_batches(_eval_rows(split, rank, world_size), beat):
        yield normalizer(images.pixels), images.labels


def _eval_rows(split: SplitImages, rank: int, world_size: int) -> list[Tensor]:
    batch_size = EVAL_BATCH
    if split.device.type == "cuda":
        batch_size = max(1, EVAL_BATCH_PIXELS // math.prod(split.size))
    return split.sequential_batches(batch_size, rank, world_size)


def open_split(
    source: Source, split: Split, device: torch.device, log_event: Callable[[str], None] = lambda _: None
) -> SplitImages:
    """Decode a split onto the device, or stream it, as the source's configuration says."""
    if source.config.stream == "on":
        return StreamedImages.of(source, split, device, log_event)
    return DeviceImages.of(source.load(split), device)


def open_loader(
    source: Source,
    device: torch.device,
    *,
    batch_size: int,
    augmentation: Augmentation,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    balanced: bool = False,
    log_event: Callable[[str], None] = lambda _: None,
) -> Loader:
    """Decode a source onto the device, or stream it while training, as its configuration says."""
    source = replace(source, whole=augmentation.random_resized_crop)
    val = open_split(source, "val", device, log_event) if "val" in source.used_splits else None
    mean, std = source.record.mean, source.record.std
    train: SplitImages
    if source.config.stream == "on":
        train = StreamedImages.of(source, "train", device, log_event)
    else:
        decoded = source.decoded("train")
        train = DeviceImages.of(decoded.images, device)
        if mean is None or std is None:
            mean, std = pixel_statistics(decoded.counts)
    assert mean is not None
    assert std is not None
    return Loader(train, val, mean, std, batch_size, augmentation, seed, rank, world_size, balanced)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
