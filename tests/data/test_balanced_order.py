"""The balanced sampler: each class equally often, whatever the workers and wherever an epoch is resumed."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_ops.config import TrainConfig
from resnet_ops.data.augment import Augmentation
from resnet_ops.data.loader import DeviceImages, Loader, open_loader
from resnet_ops.data.opening import open_source
from resnet_ops.data.sampling import balanced_order

CPU = torch.device("cpu")


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any),
    count=st.integers(1, 200),
    seed=st.integers(0, 5),
)
def test_classes_and_their_images_are_drawn_equally_often(sizes: list[int], count: int, seed: int) -> None:
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    order = balanced_order(labels, count, torch.Generator().manual_seed(seed))
    assert len(order) == count
    drawn = torch.bincount(labels[order], minlength=len(sizes))
    present = drawn[torch.tensor(sizes) > 0]
    assert drawn.sum() == present.sum()
    assert present.max() - present.min() <= 1
    of_each_image = torch.bincount(order, minlength=len(labels))
    for number in labels.unique():
        times = of_each_image[labels == number]
        assert times.max() - times.min() <= 1


def loader(rank: int = 0, world_size: int = 1, seed: int = 0) -> Loader:
    """Load 203 images that hold their own number, of classes with 180, 20 and 3."""
    images = torch.arange(203, dtype=torch.uint8)[:, None, None, None].expand(-1, 2, 2, 1).contiguous()
    split = DeviceImages(images, torch.tensor([0] * 180 + [1] * 20 + [2] * 3))
    return Loader(split, split, (0.0,), (1 / 255,), 16, Augmentation(), seed, rank, world_size, balanced=True)


def numbers(made: Loader, epoch: int, start: int = 0) -> list[list[int]]:
    return [x[:, 0, 0, 0].round().long().tolist() for x, _ in made.train_batches(epoch, start)]


@pytest.mark.parametrize("world_size", [2, 3])
def test_workers_share_the_batches_of_one(world_size: int) -> None:
    whole = numbers(loader(), 1)
    assert [len(batch) for batch in whole] == [16] * 13  # as many steps as without, each of one size
    shares = [numbers(loader(rank, world_size), 1) for rank in range(world_size)]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert [batch[rank::world_size] for rank in range(world_size)] == parts
    drawn = torch.bincount(torch.tensor([0] * 180 + [1] * 20 + [2] * 3)[torch.tensor(whole).flatten()])
    assert sorted(drawn.tolist()) == [69, 69, 70]


def test_the_order_follows_from_seed_and_epoch_and_goes_on_in_the_middle() -> None:
    whole = numbers(loader(), 2)
    assert numbers(loader(), 2, start=5) == whole[5:]
    assert numbers(loader(), 3) != whole
    assert numbers(loader(seed=1), 2) != whole


def test_streamed_images_come_in_the_same_order() -> None:
    batches = []
    for stream in ("on", "off"):
        source = open_source(TrainConfig.of(stream=stream))
        source = replace(source, record=source.record.model_copy(update={"mean": (0.5,), "std": (0.2,)}))
        made = open_loader(source, CPU, batch_size=256, augmentation=Augmentation(), seed=0, balanced=True)
        batches.append([y.tolist() for _, y in made.train_batches(0)])
    assert batches[0] == batches[1]
