"""Batches on the GPU are those of the CPU, resized as Pillow resizes, from memory or streamed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from resnet_ops.data.loader import Loader
from resnet_ops.data.resize import crop_and_resize
from tests.data.samples import noise, shades, write_class_folders
from tests.gpu.hardware import DEVICE
from tests.gpu.training import load, settle

CPU = torch.device("cpu")
SIDE = 24
AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "crop and flip": {"crop_padding": 3, "flip": True},
    "random resized crop": {"random_resized_crop": True, "flip": True},
    "cutout": {"crop_padding": 2, "cutout": 5},
    "mixup": {"mixup": 0.4},
    "cutmix": {"cutmix": 1.0},
    "mixup or cutmix": {"mixup": 0.4, "cutmix": 1.0},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of other sizes than the network's: 96 to train on, 32 to validate."""
    root = tmp_path_factory.mktemp("images")
    for split, count, seed in (("train", 48, 0), ("val", 16, 1)):
        write_class_folders(root / split, shades({"dark": 90, "light": 160}, count, (40, 33), seed))
    return root


def open_images(folder: Path, device: torch.device = DEVICE, **options: Any) -> Loader:
    return load(settle(data=str(folder), image_size=SIDE, batch_size=32, **options), device)


def assert_same_batches(ours: Iterator[Any], theirs: Iterator[Any], atol: float = 0.0) -> None:
    count = 0
    for (x, y), (expected_x, expected_y) in zip(ours, theirs, strict=True):
        assert x.device == DEVICE
        torch.testing.assert_close(x.cpu(), expected_x.cpu(), rtol=0, atol=atol)
        torch.testing.assert_close(y.cpu(), expected_y.cpu(), rtol=0, atol=min(atol, 1e-6))
        count += 1
    assert count


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_batches_are_those_of_the_cpu(name: str, folder: Path) -> None:
    """What is drawn follows from seed, epoch and step alone; what is computed differs by rounding."""
    ours, theirs = (open_images(folder, device, **AUGMENTATIONS[name]) for device in (DEVICE, CPU))
    # A resized pixel may be rounded to the next level, which normalized is some 0.02.
    atol = 0.05 if name == "random resized crop" else 1e-5
    assert_same_batches(ours.train_batches(1, start=1), theirs.train_batches(1, start=1), atol)
    assert_same_batches(ours.val_batches(), theirs.val_batches(), 1e-5)


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("size", [(48, 40), (96, 128), (20, 16)])
def test_crops_are_resized_as_pillow_does_within_a_level(size: tuple[int, int], tf32: bool) -> None:
    count, random = 32, np.random.default_rng(0)
    pixels = np.stack([noise(1, max(size), seed)[0][: size[0], : size[1]] for seed in range(count)])
    high, wide = (random.integers(3, side + 1, count) for side in size)
    boxes = np.stack((random.integers(0, size[0] - high + 1), random.integers(0, size[1] - wide + 1), high, wide), 1)
    mirrored = random.random(count) < 0.5
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        arguments = (torch.from_numpy(array).to(DEVICE) for array in (pixels, boxes.astype(np.int32), mirrored))
        resized = crop_and_resize(*arguments, (28, 36))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    assert resized.device == DEVICE
    for image, box, mirror, ours in zip(pixels, boxes.tolist(), mirrored, resized.cpu().numpy(), strict=True):
        top, left, height, width = box
        part = Image.fromarray(image[top : top + height, left : left + width])
        theirs = np.asarray(part.resize((36, 28), Image.Resampling.BILINEAR), np.int16)
        assert np.abs(ours.astype(np.int16) - (theirs[:, ::-1] if mirror else theirs)).max() <= 1


@pytest.mark.parametrize("options", [{"flip": True}, {"random_resized_crop": True, "mixup": 0.2}], ids=["crop", "rrc"])
def test_streamed_batches_are_those_from_memory(options: dict[str, Any], folder: Path, ray_session: None) -> None:
    streamed, in_memory = (open_images(folder, stream=how, **options) for how in ("on", "off"))
    assert (streamed.mean, streamed.std) == (in_memory.mean, in_memory.std)
    for epoch, start in ((0, 0), (1, 2)):
        assert_same_batches(streamed.train_batches(epoch, start), in_memory.train_batches(epoch, start))
    assert_same_batches(streamed.val_batches(), in_memory.val_batches())


def test_streamed_batches_that_are_kept_do_not_change(folder: Path, ray_session: None) -> None:
    """Buffers are used again: what is on the GPU must be a copy, and complete."""
    loader = open_images(folder, stream="on", flip=True)
    kept = [x for epoch in range(4) for x, _ in loader.train_batches(epoch)]
    expected = [x for epoch in range(4) for x, _ in open_images(folder, flip=True).train_batches(epoch)]
    for ours, theirs in zip(kept, expected, strict=True):
        assert torch.equal(ours, theirs)
