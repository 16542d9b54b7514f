"""The batch that fits: counted by hand, and chosen by what is there."""

from pathlib import Path

import pytest
import torch

from resnet_ops.config import TrainConfig
from resnet_ops.errors import UserError
from resnet_ops.orchestration.allocation import allocate
from resnet_ops.run_records import DataRecord
from resnet_ops.training import job, memory

CPU = torch.device("cpu")


def data(side: int = 32, train_images: int = 50_000) -> DataRecord:
    return DataRecord(
        name="x", fingerprint="0", class_names=("a",) * 10, train_images=train_images, val_images=100, channels=3,
        height=side, width=side,
    )  # fmt: skip


def test_an_image_costs_what_is_kept_of_it() -> None:
    """In each block the outputs of two convolutions, and of the ReLUs after them; three maps are worked on."""
    kept = 3 * 32**2 + 2 * 16 * 32**2 + 4 * 16 * 32**2 + 4 * 32 * 16**2 + 4 * 64 * 8**2
    expected = 4 * (kept + 3 * 16 * 32**2)
    assert memory.memory_per_image(TrainConfig(model="resnet8"), data(), CPU) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize(
    ("options", "train_images", "expected"),
    [
        ({}, 10**6, 512),  # 800 fit
        ({"accumulate": 4}, 10**6, 2048),
        ({"workers_per_node": 2}, 10**6, 512),  # which share the memory
        ({}, 400, 256),
    ],
)
def test_the_largest_power_of_two_that_fits(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, int], train_images: int, expected: int
) -> None:
    config, record = TrainConfig.of(model="resnet8", device="cpu", **options), data(train_images=train_images)
    image = memory.memory_per_image(config, record, CPU)
    stored = (train_images + 100) * 3 * 32**2 * options.get("workers_per_node", 1)
    monkeypatch.setattr(memory, "free_bytes", lambda _: int(stored + 1000.5 * image))
    with allocate(config, lambda _: None) as placement:
        chosen, why = memory.largest_batch(config, record, placement)
        assert chosen == expected
        assert f"chose {expected:,} images per step" in why
        monkeypatch.setattr(memory, "free_bytes", lambda _: stored)
        with pytest.raises(UserError, match="Not even one image fits"):
            memory.largest_batch(config, record, placement)


def test_a_run_keeps_the_batch_that_was_chosen(tmp_path: Path) -> None:
    config = TrainConfig.of(model="resnet8", epochs=1, auto_batch=True, runs_dir=tmp_path, name="a")
    assert job.train(config).record.config.batch_size == 1024  # of 1,438 images
