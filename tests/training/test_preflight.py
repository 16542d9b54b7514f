"""The batch size that is chosen: enough steps an epoch, so that more images do not make a worse network."""

import itertools
from dataclasses import replace

import pytest
import torch

from resnet_ops.config import TrainConfig
from resnet_ops.data.augment import Augmentation
from resnet_ops.data.loader import DeviceImages, open_loader
from resnet_ops.data.opening import open_source
from resnet_ops.data.sources import Source
from resnet_ops.errors import UserError
from resnet_ops.models import build
from resnet_ops.recipe_config import steps_per_epoch
from resnet_ops.recipes.reading import configure
from resnet_ops.training.build import build_trainer
from resnet_ops.training.distributed import ProcessGroup
from resnet_ops.training.preflight import check_shares, check_training

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits() -> Source:
    return open_source("digits")


def batch_size(digits: Source, images: int, config: TrainConfig | None = None) -> int:
    source = replace(digits, record=digits.record.model_copy(update={"train_images": images}))
    return check_training(config or TrainConfig(), "cpu", source)[1].batch_size


def test_an_epoch_has_enough_steps_however_few_the_images(digits: Source) -> None:
    sizes = {images: batch_size(digits, images) for images in range(2, 3000)}
    assert {images: sizes[images] for images in (5, 64, 127, 128, 176, 255, 256, 704, 1438, 2999)} == {
        5: 5, 64: 8, 127: 8, 128: 8, 176: 16, 255: 16, 256: 16, 704: 64, 1438: 128, 2999: 128,
    }  # fmt: skip
    for images, size in sizes.items():
        assert size <= sizes.get(images + 1, 128)
        assert images < 88 or steps_per_epoch(images, size) >= 11


def test_a_batch_size_that_is_given_stays(digits: Source) -> None:
    given = TrainConfig.of(batch_size=128)
    for config in (given, configure(recipe="fast", batch_size=128)):
        assert batch_size(digits, 200, config) == 128
        with pytest.raises(UserError, match=r"--batch-size 128 exceeds the 100 training images of digits.*at most 100"):
            batch_size(digits, 100, config)
    check_shares(given, 128)
    with pytest.raises(UserError, match=r"129 workers cannot share a batch of 128 images.*--batch-size 129 or more"):
        check_shares(given, 129)


def test_each_micro_batch_has_an_image(digits: Source) -> None:
    config = TrainConfig.of(accumulate=16)
    assert {images: batch_size(digits, images, config) for images in (16, 100, 1438)} == {16: 16, 100: 16, 1438: 128}
    with pytest.raises(UserError, match=r"--accumulate 16 splits a batch of 15 of the 15.*Use at most 15"):
        batch_size(digits, 15, config)


@pytest.mark.slow
def test_more_images_make_no_worse_network(digits: Source) -> None:
    """In 15 epochs each. With 128 images to a step from 128 images on it was 60% of the digits, from 9%."""
    loader, errors = open_loader(digits, CPU, batch_size=8, augmentation=Augmentation(1), seed=0), []
    for images in (64, 127, 128, 256):
        rows = torch.randperm(len(loader.train), generator=torch.Generator().manual_seed(1))[:images]
        pixels, labels, _ = loader.train.take(rows)  # type: ignore[attr-defined]
        size = batch_size(digits, images)
        config = TrainConfig.of(model="resnet8", epochs=15, batch_size=size)
        part = replace(loader, train=DeviceImages(pixels, labels), batch_size=size)
        torch.manual_seed(0)
        network = build("resnet8", num_classes=10, in_channels=1)
        epochs = list(build_trainer(config, network, part, ProcessGroup(), CPU).run(lambda _: None))
        assert epochs[-1] is not None
        errors.append(epochs[-1].val_error)
    assert all(more < fewer + 0.1 for fewer, more in itertools.pairwise(errors)), errors
    assert errors[-1] < 0.08 < 0.12 < errors[0]


def test_without_validation_images_there_is_nothing_to_select_by(digits: Source) -> None:
    with pytest.raises(UserError, match=r"--select macro-f1 chooses .* --fit-all leaves none\. Remove one of the two"):
        check_training(TrainConfig.of(select="macro-f1", fit_all=True), "cpu", digits)
