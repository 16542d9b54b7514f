"""Images that preprocessing matters for, and a network whose answers depend on it: for the tests of `diagnose`."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from resnet_ops.export import graph
from resnet_ops.models import build
from resnet_ops.training import checkpoint as checkpoints
from resnet_ops.training.checkpoint import Checkpoint, CheckpointInfo
from tests.export.samples import EPOCH, OPSET, finish

SIDE, STORED = 24, 28
MEAN, STD = (0.42, 0.36, 0.3), (0.21, 0.24, 0.18)


def photo(random: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Coarse colors, redder on the left and brighter above, with fine stripes and noise: (H, W, 3) uint8."""
    coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), np.uint8)).resize(size[::-1], Image.Resampling.BICUBIC)
    pixels = np.asarray(coarse) * np.array([0.9, 0.7, 0.5]) * np.linspace(1, 0.6, size[0])[:, None, None]
    pixels[..., 0] *= np.linspace(1.1, 0.6, size[1])
    period = random.uniform(2, 5)
    stripes = np.sin(np.arange(size[1]) * 2 * np.pi / period) * random.uniform(0, 60)
    pixels += stripes[:, None] + random.normal(0, 25, (*size, 1))
    return pixels.clip(0, 255).astype(np.uint8)


def write_photos(folder: Path, count: int) -> list[Path]:
    """Write images of different shapes, in folders of classes."""
    random = np.random.default_rng(3)
    paths = []
    for index in range(count):
        path = folder / "abc"[index % 3] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = int(random.integers(40, 80)), int(random.integers(40, 80))
        Image.fromarray(photo(random, size)).save(path)
        paths.append(path)
    return paths


def sensitive_checkpoint(path: Path, x: torch.Tensor, class_names: tuple[str, ...]) -> Checkpoint:
    """Save a network with random weights whose classes are spread over inputs `x` (N, C, S, S), normalized."""
    torch.manual_seed(1)
    network = build("resnet8", num_classes=len(class_names), in_channels=x.shape[1]).train()
    with torch.no_grad():
        for _ in range(60):
            network(x)
        network.eval()
        logits = network(x)
        network.fc.weight *= 3 / logits.std(0)[:, None]
        network.fc.bias.zero_()
        network.fc.bias -= network(x).mean(0)
    channels = x.shape[1]
    info = CheckpointInfo(
        model="resnet8",
        shortcut=network.shortcut,
        class_names=class_names,
        channels=channels,
        height=SIDE,
        width=SIDE,
        stored=STORED,
        mean=MEAN[:channels],
        std=STD[:channels],
        data="photos",
        data_fingerprint="0",
        metrics=EPOCH,
    )
    checkpoints.save(path, info, {f"model/{name}": value for name, value in network.state_dict().items()})
    return checkpoints.read(path)


def write_model(path: Path, checkpoint: Checkpoint, **options: bool) -> Path:
    """Export it."""
    graph.write(finish(graph.to_onnx(checkpoint.info, checkpoint.model, OPSET), checkpoint, **options), path)
    return path
