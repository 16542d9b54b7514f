"""Images that preprocessing matters for, and networks whose answers depend on it: for the tests of `diagnose`."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from resnet_ops.export import graph
from resnet_ops.models import build
from resnet_ops.training import checkpoint as checkpoints
from resnet_ops.training.checkpoint import CheckpointInfo
from tests.export.samples import EPOCH, OPSET, copy, finish

SIDE, STORED = 16, 20
MEAN, STD = np.array([0.42, 0.36, 0.3]), np.array([0.21, 0.24, 0.18])
NAMES = ("ant", "k10", "Bee", "k9", "cow", "k2")
ORIENTATION = 0x0112


def photo(random: np.random.Generator) -> Image.Image:
    """Coarse colors, redder on the left and brighter above, with fine stripes and noise, of any shape."""
    height, width = (int(side) for side in random.integers(28, 60, 2))
    coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) * np.array([0.9, 0.7, 0.5])
    pixels *= np.linspace(1, 0.6, height)[:, None, None]
    pixels[..., 0] *= np.linspace(1.1, 0.6, width)
    stripes = np.sin(np.arange(width) * 2 * np.pi / random.uniform(2, 5)) * random.uniform(0, 60)
    pixels += stripes[:, None] + random.normal(0, 25, (height, width, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_photos(folder: Path) -> list[Path]:
    """Write 30 images in folders: most are plain, some photos that were turned, transparent, or with a palette."""
    random, paths = np.random.default_rng(3), []
    for index in range(30):
        path = folder / "xyz"[index % 3] / f"{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = photo(random)
        if index % 9 == 6:
            path = path.with_suffix(".jpg")
            exif = Image.Exif()
            exif[ORIENTATION] = 6
            image.save(path, quality=95, exif=exif)
        elif index % 9 == 7:
            image.putalpha(photo(random).convert("L").resize(image.size))
            image.save(path)
        elif index % 9 == 8:
            image.quantize(64).save(path)
        else:
            image.save(path)
        paths.append(path)
    return paths


def write_model(path: Path, x: np.ndarray, raw: Path | None = None) -> Path:
    """Export a network with random weights whose classes are spread over inputs `x` (N, C, S, S), normalized.

    The same network is written to `raw` as a file that takes raw pixels.
    """
    torch.manual_seed(1)
    network = build("resnet8", num_classes=len(NAMES), in_channels=x.shape[1]).train()
    inputs = torch.from_numpy(x.astype(np.float32))
    with torch.no_grad():
        for _ in range(60):  # until BatchNorm's statistics are those of these images
            network(inputs)
        network.eval()
        network.fc.weight *= 2 / network(inputs).std(0)[:, None]
        network.fc.bias -= network(inputs).mean(0)
    channels = x.shape[1]
    info = CheckpointInfo(
        model="resnet8",
        shortcut=network.shortcut,
        class_names=NAMES,
        channels=channels,
        height=SIDE,
        width=SIDE,
        stored=STORED,
        mean=tuple(MEAN[:channels]),
        std=tuple(STD[:channels]),
        data="photos",
        data_fingerprint="0",
        metrics=EPOCH,
    )
    saved = path.with_suffix(".safetensors")
    checkpoints.save(saved, info, {f"model/{name}": value for name, value in network.state_dict().items()})
    checkpoint = checkpoints.read(saved)
    model = graph.to_onnx(info, checkpoint.model, OPSET)
    graph.write(finish(copy(model), checkpoint), path)
    if raw is not None:
        graph.write(finish(model, checkpoint, raw=True), raw)
    return path


# What a user's program has, in Pillow and numpy


def upright(path: Path, mode: str = "RGB") -> Image.Image:
    image = Image.open(path)
    if image.getexif().get(ORIENTATION) == 6:
        image = image.transpose(Image.Transpose.ROTATE_270)
    return image.convert(mode)


Resize = Callable[[Image.Image, tuple[int, int]], Image.Image]


def bilinear(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image.resize(size, Image.Resampling.BILINEAR)


def fit(image: Image.Image, box: int = STORED, resize: Resize = bilinear, *, top_left: bool = False) -> Image.Image:
    """Resize the shorter side to `box`, and cut the center out of it."""
    width, height = image.size
    size = (box, int(box * height / width)) if width <= height else (int(box * width / height), box)
    return crop(resize(image, size), 0 if top_left else None)


def crop(image: Image.Image, start: int | None = None, side: int = SIDE) -> Image.Image:
    # A square first, as is done here; CenterCrop of torchvision alone can be a pixel beside it.
    square = min(image.size)
    left, top = (round((length - square) / 2) if start is None else start for length in image.size)
    image = image.crop((left, top, left + square, top + square))
    offset = round((square - side) / 2) if start is None else start
    return image.crop((offset, offset, offset + side, offset + side))


def normalize(image: Image.Image | np.ndarray) -> np.ndarray:
    return (np.asarray(image) / 255 - MEAN) / STD


def chw(x: np.ndarray) -> np.ndarray:
    return x.transpose(2, 0, 1)
