"""Batches: which rank gets which images, and how they are augmented."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as reference

from resnet_ops.data.augment import Augmentation, normalize, pixel_statistics
from resnet_ops.data.crops import crop_and_flip, draw_crops
from resnet_ops.data.loader import DeviceImages, Loader
from resnet_ops.data.sampling import RandomStream, stream_seed


def pixels(n: int, h: int, w: int, c: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (n, h, w, c), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def loader(n: int, batch_size: int, rank: int = 0, world_size: int = 1, seed: int = 0) -> Loader:
    """Load images that hold their own number: red is its low byte, green its high one."""
    numbers = torch.arange(n)
    images = torch.stack((numbers % 256, numbers // 256), 1).to(torch.uint8)[:, None, None, :].expand(-1, 4, 4, -1)
    split = DeviceImages(images.contiguous(), numbers)
    return Loader(split, split, (0.0, 0.0), (1 / 255, 1 / 255), batch_size, Augmentation(), seed, rank, world_size)


@pytest.mark.parametrize("padding", [0, 1, 4])
@pytest.mark.parametrize("flip", [False, True])
def test_every_crop_is_one_that_can_be_cut_by_hand(padding: int, flip: bool) -> None:
    x = pixels(40, 6, 9, 3)
    draws = draw_crops(40, (6, 9), (6, 9), padding, flip, torch.Generator().manual_seed(1))
    out = crop_and_flip(x, draws["corners"], draws["mirrored"], padding, (6, 9))
    seen = set()
    for image, crop in zip(x, out, strict=True):
        padded = np.pad(image.numpy(), ((padding, padding), (padding, padding), (0, 0)))
        candidates = {
            (top, left, mirrored): cut[:, ::-1] if mirrored else cut
            for top in range(2 * padding + 1)
            for left in range(2 * padding + 1)
            for cut in [padded[top : top + 6, left : left + 9]]
            for mirrored in ([False, True] if flip else [False])
        }
        matches = [key for key, cut in candidates.items() if np.array_equal(cut, crop.numpy())]
        assert matches
        seen.add(matches[0])
    assert len({key[2] for key in seen}) == (2 if flip else 1)
    assert len(seen) > {0: 0, 1: 7, 4: 25}[padding]


def test_normalizing_is_torchvisions() -> None:
    x = pixels(3, 5, 7, 3)
    mean, std = (0.49, 0.48, 0.45), (0.2, 0.21, 0.26)
    theirs = reference.normalize(x.permute(0, 3, 1, 2).to(torch.float64) / 255, mean, std)
    ours = normalize(x, mean, std)
    assert ours.dtype == torch.float32
    assert ours.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=1e-6)


def test_statistics_are_numpys() -> None:
    x = pixels(50, 6, 5, 3)
    counts = np.stack([np.bincount(x[..., channel].flatten(), minlength=256) for channel in range(3)])
    mean, std = pixel_statistics(counts)
    values = x.numpy() / 255
    np.testing.assert_allclose(mean, values.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, values.std((0, 1, 2)), rtol=1e-12)
    assert pixel_statistics(np.eye(1, 256, dtype=np.int64) * 18) == ((0.0,), (1.0,))


def numbers(x: torch.Tensor) -> list[int]:
    return (x[:, 0, 0, 0] + 256 * x[:, 1, 0, 0]).round().int().tolist()


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 400), batch_size=st.integers(1, 64), world_size=st.integers(1, 5), epoch=st.integers(0, 3))
def test_workers_share_each_batch_without_overlap_or_loss(n: int, batch_size: int, world_size: int, epoch: int) -> None:
    alone = [numbers(x) for x, _ in loader(n, batch_size).train_batches(epoch)]
    shares = [
        [(numbers(x), y.tolist()) for x, y in loader(n, batch_size, rank, world_size).train_batches(epoch)]
        for rank in range(world_size)
    ]
    assert len(alone) == math.ceil(n / batch_size)
    for step, batch in enumerate(alone):
        parts = [share[step] for share in shares]
        assert all(images == labels for images, labels in parts)  # an image keeps its label
        assert sorted(i for images, _ in parts for i in images) == sorted(batch)
        sizes = [len(images) for images, _ in parts]
        assert max(sizes) - min(sizes) <= 1
    seen = [i for batch in alone for i in batch]
    assert set(seen[:n]) == set(range(n))  # each in every epoch
    assert {len(batch) for batch in alone} == {batch_size}
    assert all(again == first for again, first in zip(seen[n:], itertools.cycle(seen[:n]), strict=False))
    assert n < batch_size or all(len(set(batch)) == batch_size for batch in alone)  # none twice in a step
    val = [i for rank in range(world_size) for x, _ in loader(n, 1, rank, world_size).val_batches() for i in numbers(x)]
    assert sorted(val) == list(range(n))


def test_order_follows_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return [i for x, _ in loader(100, 10, seed=seed).train_batches(epoch) for i in numbers(x)]

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_no_two_steps_have_the_same_random_numbers() -> None:
    """However large the seed, with zeros anywhere, and for whatever they are used."""
    seeds = (0, 1, 7, 1 << 32, (7 << 32) + 1, (1 << 63) - 1)
    keys = list(itertools.product(seeds, RandomStream, (0, 1, 7), (0, 1, 2), (0, 1, 7)))
    chosen = {stream_seed(*key) for key in keys}
    assert len(chosen) == len(keys)
    assert all(0 <= each < 1 << 63 for each in chosen)
    # Forever: a run that is resumed draws what it would have drawn, in any process.
    assert stream_seed(0, RandomStream.DROPOUT, 3, 5, 1) == 1757959729924026282
