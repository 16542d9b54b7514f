"""The order of images, which rows make up which batch, and which rank gets which of them; the seeds of all randomness.

Every image is in an epoch. All batches have one size, that of a captured step, so some images are in it twice where
their number is no multiple of it. Knows row numbers only; stream.py and loader.py read the images.
"""

from collections.abc import Mapping
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from resnet_ops.recipe_config import steps_per_epoch

Draws = Mapping[str, Tensor]  # the random numbers of a batch, by name


class RandomStream(IntEnum):
    """One use of random numbers, whose own are independent of the others'."""

    ORDER = 0
    AUGMENTATION = 1
    DROPOUT = 2


def stream_seed(seed: int, stream: RandomStream, epoch: int, step: int = 0, rank: int = 0) -> int:
    """Return the seed of one step's random numbers, from 0 to 2^63 - 1: another one for each combination."""
    # As a spawn key: in a list of entropy, zeros at the end count for nothing and a large seed runs into the epoch.
    sequence = np.random.SeedSequence(seed, spawn_key=(stream, epoch, step, rank))
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def rank_batches(order: Tensor, batch_size: int, rank: int, world_size: int) -> list[Tensor]:
    """Return one rank's rows of each batch of `order`; the last one is filled up with the first rows.

    The ranks' shares of one batch are disjoint, make up the batch, and differ in size by at most one.
    """
    count = steps_per_epoch(len(order), batch_size) * batch_size
    filled = order[torch.arange(count) % len(order)]
    return [batch[rank::world_size] for batch in filled.split(batch_size)]


def balanced_order(labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return `count` rows in random order, of each class equally many, give or take one.

    A class with more images than that gives a random part of them, one with fewer each of its images equally often,
    give or take once.

    Args:
        labels: The class of each row, (N,) int64; classes without rows are left out.
        count: Rows to return.
        generator: In the same state on all ranks.
    """
    rows = torch.argsort(labels, stable=True)
    of_class = rows.split(torch.unique(labels, return_counts=True)[1].tolist())
    shares = torch.full((len(of_class),), count // len(of_class))
    shares[torch.randperm(len(of_class), generator=generator)[: count % len(of_class)]] += 1  # another few each epoch
    drawn = []
    for own, share in zip(of_class, shares.tolist(), strict=True):
        rounds = [own[torch.randperm(len(own), generator=generator)] for _ in range(-(-share // len(own)))]
        drawn.append(torch.cat([own[:0], *rounds])[:share])
    return torch.cat(drawn)[torch.randperm(count, generator=generator)]


def rank_batches_by_row_group(
    row_groups: np.ndarray, window: int, batch_size: int, rank: int, world_size: int, generator: torch.Generator
) -> list[Tensor]:
    """Return one rank's rows of each batch, in an order in which each row group is read by one rank, about once.

    The row groups are shuffled and dealt out, so that at most `world_size` - 1 of them are read by two ranks. The
    images of a rank's i-th row group are spread at random over the positions i to i + `window`, whose order they take.
    Those that are in the epoch twice are from all row groups alike: a group is not read again for them.

    So a batch is from about `window` row groups, and one is done with when `window` more have been begun. Images that
    are neighbors in a file stay within one window of each other: where files are sorted by class, each class comes in
    a few places of an epoch only, unless a window holds many.

    Args:
        row_groups: The row group of each row, (N,) int64, ascending.
        window: Row groups that are mixed.
        batch_size: Of all ranks together.
        rank: The rank.
        world_size: Number of ranks.
        generator: In the same state on all ranks.
    """
    sizes = np.bincount(row_groups)
    firsts = np.cumsum(sizes) - sizes
    shuffled = torch.randperm(len(sizes), generator=generator).numpy()
    rows = np.concatenate([np.arange(firsts[group], firsts[group] + sizes[group]) for group in shuffled])
    positions = np.repeat(np.arange(len(sizes)), sizes[shuffled])
    steps = steps_per_epoch(len(rows), batch_size)
    filled = np.arange(steps * batch_size) * len(rows) // (steps * batch_size)  # each once or twice, side by side
    rows, positions = rows[filled], positions[filled]
    share_sizes = [len(range(each, batch_size, world_size)) for each in range(world_size)]  # of each batch
    size, start = share_sizes[rank], steps * sum(share_sizes[:rank])
    own = slice(start, start + steps * size)
    positions = positions + window * torch.rand(len(rows), generator=generator, dtype=torch.float64).numpy()
    mixed = rows[own][np.argsort(positions[own], kind="stable")]
    return list(torch.from_numpy(mixed).split(size)) if steps and size else [torch.empty(0).long()] * steps


def sequential_batches(
    count: int, batch_size: int, rank: int, world_size: int, contiguous: bool = False
) -> list[Tensor]:
    """Return one rank's share of `count` rows in batches: every `world_size`-th row, or one contiguous part."""
    rows = torch.arange(count)
    share = rows.tensor_split(world_size)[rank] if contiguous else rows[rank::world_size]
    return list(share.split(batch_size))
