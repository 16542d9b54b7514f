"""The recipe `fast` learns real images as it did when its curve was recorded.

ResNet-8 on 5,000 images of CIFAR-10, for 3 epochs. `python -m tests.training.test_curve` records
the curve anew: mean and standard deviation over seeds of each epoch's losses and error.
"""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image

from resnet_ops.data.augment import Augmentation, pixel_statistics
from resnet_ops.data.loader import DeviceImages, Loader
from resnet_ops.models import build
from resnet_ops.recipes.reading import configure
from resnet_ops.training.prepare import prepare
from resnet_ops.training.world import World
from tests.conftest import CIFAR10, needs_cifar10

RECORDED = Path(__file__).parent / "data" / "fast-resnet8-cifar10.json"
SEEDS = 4  # that were recorded; the test takes another one
METRICS = ("train_loss", "val_loss", "val_error")
CPU = torch.device("cpu")


def first(file: str, images: int) -> DeviceImages:
    rows = next(pq.ParquetFile(CIFAR10 / file).iter_batches(images)).to_pylist()
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(row["img"]["bytes"])).convert("RGB")) for row in rows])
    return DeviceImages(torch.from_numpy(pixels), torch.tensor([row["label"] for row in rows]))


def curve(train: DeviceImages, val: DeviceImages, seed: int) -> np.ndarray:
    """Losses and error (epochs, METRICS)."""
    config = configure(recipe="fast", epochs=3, crop_padding=4, flip=True, seed=seed)
    counts = np.stack([np.bincount(train.pixels[..., c].flatten(), minlength=256) for c in range(3)])
    statistics = pixel_statistics(counts)
    loader = Loader(train, val, *statistics, config.batch_size, Augmentation.of(config, 10), seed)
    torch.set_num_threads(1)  # two that share cores with other processes wait for each other
    torch.manual_seed(seed)
    training = prepare(config, build("resnet8", num_classes=10), loader, World(), CPU)
    epochs = [epoch.model_dump() for epoch in training.run(lambda _: None) if epoch]
    return np.array([[epoch[metric] for metric in METRICS] for epoch in epochs])


def record() -> None:
    train, val = first("train-00000-of-00002.parquet", 5000), first("test-00000-of-00001.parquet", 2000)
    curves = np.stack([curve(train, val, seed) for seed in range(1, SEEDS + 1)])
    content = {
        "metrics": METRICS, "seeds": SEEDS,
        "mean": curves.mean(0).round(4).tolist(), "deviation": curves.std(0, ddof=1).round(4).tolist(),
    }  # fmt: skip
    RECORDED.parent.mkdir(exist_ok=True)
    RECORDED.write_text(json.dumps(content, indent=2) + "\n")


@needs_cifar10
def test_the_curve_is_the_recorded_one() -> None:
    recorded = json.loads(RECORDED.read_text())
    mean, deviation = np.array(recorded["mean"]), np.array(recorded["deviation"])
    train, val = first("train-00000-of-00002.parquet", 5000), first("test-00000-of-00001.parquet", 2000)
    found = curve(train, val, seed=0)
    # While the learning rate is high, validation jumps: one seed in five was 0.8 above the others after epoch 1.
    held = np.ones_like(mean, bool)
    held[:-1, 1:] = False
    # Another seed is within 4 deviations; the mean and the deviation themselves are known from few.
    allowed = 4 * deviation * np.sqrt(1 + 1 / recorded["seeds"]) + 0.01
    assert (np.abs(found - mean) < allowed)[held].all(), (found, mean, allowed)


if __name__ == "__main__":
    record()
