"""Which images make up which batch, and which worker gets which of them; knows row numbers only."""

import numpy as np
import torch
from torch import Tensor


def shares(order: Tensor, batch_size: int, rank: int, world_size: int) -> list[Tensor]:
    """One worker's rows of each whole batch.

    Shares of one batch are disjoint, make up the batch, and differ in size by at most one.
    """
    starts = range(0, len(order) - batch_size + 1, batch_size)
    return [order[start : start + batch_size][rank::world_size] for start in starts]


def shares_by_unit(
    units: np.ndarray, window: int, batch_size: int, rank: int, world_size: int, generator: torch.Generator
) -> list[Tensor]:
    """As `shares`, of an order in which each unit (a row group of a Parquet file) is read by one worker, about once.

    The units are shuffled and dealt out, so that at most `world_size` - 1 of them are read by two workers. Of each
    worker's units the i-th has its images spread at random over the places i to i + `window`, whose order they take.

    So a batch is from about `window` units, and a unit is done with when `window` more have been begun. Images that
    are neighbours in a file stay within one window of each other: where files are sorted by class, each class comes in
    a few places of an epoch only, unless a window holds many.

    Args:
        units: The unit of each row, (N,) int64, not falling.
        window: Units that are mixed.
        batch_size: Of all workers together.
        rank: Which worker.
        world_size: How many.
        generator: The same for all workers.
    """
    sizes = np.bincount(units)
    firsts = np.cumsum(sizes) - sizes
    shuffled = torch.randperm(len(sizes), generator=generator).numpy()
    rows = np.concatenate([np.arange(firsts[unit], firsts[unit] + sizes[unit]) for unit in shuffled])
    places = np.repeat(np.arange(len(sizes)), sizes[shuffled])
    steps = len(units) // batch_size
    own = [len(range(each, batch_size, world_size)) for each in range(world_size)]  # of each batch
    begin = steps * sum(own[:rank])
    mine = slice(begin, begin + steps * own[rank])
    places = places + window * torch.rand(len(units), generator=generator, dtype=torch.float64).numpy()
    mixed = rows[mine][np.argsort(places[mine], kind="stable")]
    return list(torch.from_numpy(mixed).split(own[rank])) if steps and own[rank] else [torch.empty(0).long()] * steps


def sequential(count: int, batch: int, rank: int, world_size: int, contiguous: bool = False) -> list[Tensor]:
    """One worker's share of `count` rows, in their order and in batches: every `world_size`-th, or contiguous ones."""
    rows = torch.arange(count)
    share = rows.tensor_split(world_size)[rank] if contiguous else rows[rank::world_size]
    return list(share.split(batch))
