"""The recipe `fast` learns real images as it did when its curve was recorded.

Networks and parts of CIFAR-10 are in `CURVES`. `python -m tests.training.test_curve resnet8` records that curve anew:
mean and standard deviation over seeds of each epoch's losses and error.
"""

import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from resnet_ops.data.augment import Augmentation, pixel_statistics
from resnet_ops.data.loader import DeviceImages, Loader
from resnet_ops.models import build
from resnet_ops.recipes.reading import configure
from resnet_ops.training.build import build_trainer
from resnet_ops.training.distributed import ProcessGroup
from tests.conftest import CIFAR10, needs_cifar10

VAL_IMAGES = 2000
SEEDS = 4  # that were recorded; the test takes another one
METRICS = ("train_loss", "val_loss", "val_error")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Curve:
    model: str
    images: int
    epochs: int

    @property
    def file(self) -> Path:
        return Path(__file__).parent / "data" / f"fast-{self.model}-cifar10.json"


CURVES = {curve.model: curve for curve in (Curve("resnet8", 5000, 3), Curve("resnet20", 10000, 4))}


def first(file: str, images: int) -> DeviceImages:
    rows = next(pq.ParquetFile(CIFAR10 / file).iter_batches(images)).to_pylist()
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(row["img"]["bytes"])).convert("RGB")) for row in rows])
    return DeviceImages(torch.from_numpy(pixels), torch.tensor([row["label"] for row in rows]))


def trained(curve: Curve, seed: int) -> np.ndarray:
    """Losses and error (epochs, METRICS)."""
    config = configure(recipe="fast", epochs=curve.epochs, crop_padding=4, flip=True, seed=seed)
    train = first("train-00000-of-00002.parquet", curve.images)
    val = first("test-00000-of-00001.parquet", VAL_IMAGES)
    counts = np.stack([np.bincount(train.pixels[..., c].flatten(), minlength=256) for c in range(3)])
    statistics = pixel_statistics(counts)
    loader = Loader(train, val, *statistics, config.batch_size, Augmentation.of(config, 10), seed)
    torch.set_num_threads(1)  # two that share cores with other processes wait for each other
    torch.manual_seed(seed)
    training = build_trainer(config, build(curve.model, num_classes=10), loader, ProcessGroup(), CPU)
    epochs = [epoch.model_dump() for epoch in training.run(lambda _: None) if epoch]
    return np.array([[epoch[metric] for metric in METRICS] for epoch in epochs])


def record(curve: Curve) -> None:
    curves = np.stack([trained(curve, seed) for seed in range(1, SEEDS + 1)])
    content = {
        "metrics": METRICS, "seeds": SEEDS,
        "mean": curves.mean(0).round(4).tolist(), "deviation": curves.std(0, ddof=1).round(4).tolist(),
    }  # fmt: skip
    curve.file.parent.mkdir(exist_ok=True)
    curve.file.write_text(json.dumps(content, indent=2) + "\n")


@needs_cifar10
@pytest.mark.slow
@pytest.mark.parametrize("model", ["resnet8", pytest.param("resnet20", marks=pytest.mark.timeout(1200))])
def test_the_curve_is_the_recorded_one(model: str) -> None:
    recorded = json.loads(CURVES[model].file.read_text())
    mean, deviation = np.array(recorded["mean"]), np.array(recorded["deviation"])
    found = trained(CURVES[model], seed=0)
    # While the learning rate is high, validation jumps: one seed in five was 0.8 above the others after epoch 1.
    held = np.ones_like(mean, bool)
    held[:-1, 1:] = False
    # Another seed is within 4 deviations; the mean and the deviation themselves are known from few.
    allowed = 4 * deviation * np.sqrt(1 + 1 / recorded["seeds"]) + 0.01
    assert (np.abs(found - mean) < allowed)[held].all(), (found, mean, allowed)


if __name__ == "__main__":
    record(CURVES[sys.argv[1]])
