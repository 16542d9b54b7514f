"""The order of images: which rows make up which batch, and which rank gets which of them.

Knows row numbers only; stream.py and loader.py read the images.
"""

import numpy as np
import torch
from torch import Tensor


def rank_batches(order: Tensor, batch_size: int, rank: int, world_size: int) -> list[Tensor]:
    """Return one rank's rows of each whole batch of `order`.

    The ranks' shares of one batch are disjoint, make up the batch, and differ in size by at most one.
    """
    starts = range(0, len(order) - batch_size + 1, batch_size)
    return [order[start : start + batch_size][rank::world_size] for start in starts]


def rank_batches_by_row_group(
    row_groups: np.ndarray, window: int, batch_size: int, rank: int, world_size: int, generator: torch.Generator
) -> list[Tensor]:
    """Return one rank's rows of each whole batch, in an order in which each row group is read by one rank, about once.

    The row groups are shuffled and dealt out, so that at most `world_size` - 1 of them are read by two ranks. The
    images of a rank's i-th row group are spread at random over the positions i to i + `window`, whose order they take.

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
    steps = len(row_groups) // batch_size
    share_sizes = [len(range(each, batch_size, world_size)) for each in range(world_size)]  # of each batch
    size, start = share_sizes[rank], steps * sum(share_sizes[:rank])
    own = slice(start, start + steps * size)
    positions = positions + window * torch.rand(len(row_groups), generator=generator, dtype=torch.float64).numpy()
    mixed = rows[own][np.argsort(positions[own], kind="stable")]
    return list(torch.from_numpy(mixed).split(size)) if steps and size else [torch.empty(0).long()] * steps


def sequential_batches(
    count: int, batch_size: int, rank: int, world_size: int, contiguous: bool = False
) -> list[Tensor]:
    """Return one rank's share of `count` rows in batches: every `world_size`-th row, or one contiguous part."""
    rows = torch.arange(count)
    share = rows.tensor_split(world_size)[rank] if contiguous else rows[rank::world_size]
    return list(share.split(batch_size))
