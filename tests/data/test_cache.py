"""Decoded images are cached: written once, shared, complete after a crash, written again when damaged."""

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from resnet_ops.config import DataConfig, TrainConfig
from resnet_ops.data.augment import Augmentation
from resnet_ops.data.loader import DeviceImages, open_loader
from resnet_ops.data.opening import open_source
from resnet_ops.data.sources import Source
from resnet_ops.errors import UserError
from resnet_ops.training.image_preparation import decode_images
from resnet_ops.training.observer import Observer
from tests.data.samples import noise, write_class_folders


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[], Source]:
    """Open the same small dataset each time, with a cache of its own."""
    write_class_folders(tmp_path / "data" / "train", {"cat": noise(20), "dog": noise(20, seed=1)})
    write_class_folders(tmp_path / "data" / "val", {"cat": noise(3, seed=2), "dog": noise(3, seed=3)})
    return lambda: open_source(DataConfig(data=str(tmp_path / "data"), cache_dir=tmp_path / "cache"))


def cached_files(tmp_path: Path) -> dict[str, int]:
    """Return the files of pixels in the cache, and the inode of each."""
    return {str(file): file.stat().st_ino for file in (tmp_path / "cache").rglob("pixels.npy")}


def test_what_was_decoded_is_mapped_and_not_decoded_again(tmp_path: Path, opened: Callable[[], Source]) -> None:
    first = opened().load("train").pixels
    before = cached_files(tmp_path)
    again = opened().load("train").pixels
    assert cached_files(tmp_path) == before
    assert isinstance(again, np.memmap)
    assert np.array_equal(first, again)
    assert np.array_equal(np.load(next(iter(before))), first)  # any .npy reader can use it


def test_other_images_and_other_sizes_are_cached_apart(tmp_path: Path, opened: Callable[[], Source]) -> None:
    opened().load("train")
    (tmp_path / "data" / "train" / "cat" / "00.png").write_bytes(
        (tmp_path / "data" / "train" / "cat" / "01.png").read_bytes()
    )
    changed = opened().load("train").pixels
    assert np.array_equal(changed[0], changed[1])
    larger = DataConfig(data=str(tmp_path / "data"), cache_dir=tmp_path / "cache", image_size=16)
    assert open_source(larger).load("train").pixels.shape == (40, 20, 20, 3)
    assert len(cached_files(tmp_path)) == 3


def test_whole_images_are_cached_apart_with_their_aspect_ratios(tmp_path: Path) -> None:
    wide = [np.repeat(image, 3, axis=1) for image in noise(24, 20)]
    write_class_folders(tmp_path / "data", {"cat": wide, "dog": noise(6, 40)})
    config = DataConfig(data=str(tmp_path / "data"), cache_dir=tmp_path / "cache", image_size=16)
    cut, whole = open_source(config).prepare(), replace(open_source(config), whole=True).prepare()
    assert cut.record == whole.record
    assert len(cached_files(tmp_path)) == 3  # the validation images are the same
    assert cut.load("train").aspects is None
    images = whole.load("train")
    assert images.aspects is not None
    assert images.aspects.dtype == np.float32
    square = images.labels == 1
    assert np.array_equal(images.aspects, np.where(square, 1, 3))
    assert np.array_equal(images.pixels[square], cut.load("train").pixels[square])
    assert not np.array_equal(images.pixels[~square], cut.load("train").pixels[~square])
    (file,) = (tmp_path / "cache").rglob("aspects.npy")
    file.unlink()
    again = replace(open_source(config), whole=True).load("train").aspects
    assert again is not None
    assert np.array_equal(again, images.aspects)


def test_what_is_decoded_before_a_training_is_what_it_crops_at_random_from(tmp_path: Path) -> None:
    images = [np.repeat(image, 3, axis=1) for image in noise(24, 20)]
    write_class_folders(tmp_path / "data", {"cat": images[:12], "dog": images[12:]})
    config = TrainConfig(
        data=str(tmp_path / "data"), cache_dir=tmp_path / "cache", image_size=16, random_resized_crop=True
    )
    source = decode_images(open_source(config), config, Observer())
    before = cached_files(tmp_path)
    augmentation = Augmentation.of(config, 2, (16, 16))
    loader = open_loader(source, torch.device("cpu"), batch_size=8, augmentation=augmentation, seed=0)
    assert cached_files(tmp_path) == before
    assert next(iter(loader.train_batches(0)))[0].shape == (8, 3, 16, 16)
    assert isinstance(loader.train, DeviceImages)
    assert loader.train.aspects is not None
    assert set(loader.train.aspects.tolist()) == {3}


def test_images_that_are_not_resized_are_the_same_for_random_resized_crops(
    tmp_path: Path, opened: Callable[[], Source]
) -> None:
    opened().load("train")
    assert replace(opened(), whole=True).load("train").aspects is None
    assert len(cached_files(tmp_path)) == 1


@pytest.mark.parametrize("damage", ["shorter", "header", "no index", "half an index", "no labels"])
def test_what_is_damaged_is_written_again(tmp_path: Path, opened: Callable[[], Source], damage: str) -> None:
    whole = np.array(opened().load("train").pixels)
    (folder,) = (Path(file).parent for file in cached_files(tmp_path))
    pixels, index = folder / "pixels.npy", folder / "index.json"
    if damage == "shorter":
        os.truncate(pixels, pixels.stat().st_size - 1)
    elif damage == "header":
        pixels.write_bytes(b"\0" * pixels.stat().st_size)
    elif damage == "no index":
        index.unlink()
    elif damage == "half an index":
        os.truncate(index, index.stat().st_size // 2)
    else:
        (folder / "labels.npy").unlink()
    assert np.array_equal(opened().load("train").pixels, whole)
    assert np.array_equal(np.load(pixels), whole)


def test_a_process_killed_half_way_leaves_nothing_that_counts(tmp_path: Path, opened: Callable[[], Source]) -> None:
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom resnet_ops.config import DataConfig\n"
        "from resnet_ops.data import cache, opening\n"
        "cache.files.sync = lambda path: os._exit(9)\n"  # all is written, nothing has its name
        "opening.open_source(DataConfig(data=sys.argv[1], cache_dir=Path(sys.argv[2]))).load('train')"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "data"), str(tmp_path / "cache")]
    assert subprocess.run(arguments, check=False).returncode == 9
    assert len(cached_files(tmp_path)) == 1  # under another name
    assert np.array_equal(opened().load("train").pixels[:20], noise(20))
    (file,) = cached_files(tmp_path)
    assert not Path(file).parent.name.startswith(".")


def test_many_who_ask_at_once_decode_once(tmp_path: Path, opened: Callable[[], Source]) -> None:
    reads: list[int] = []

    class Counted:
        def __init__(self, images: object) -> None:
            self.images = images

        def __getattr__(self, name: str) -> object:
            return getattr(self.images, name)

        def read(self, rows: object) -> object:
            reads.append(1)
            return self.images.read(rows)  # type: ignore[attr-defined]

    sources = [opened() for _ in range(4)]
    for source in sources:
        source.splits["train"] = Counted(source.splits["train"])  # type: ignore[assignment]
    with ThreadPoolExecutor(4) as pool:
        pixels = list(pool.map(lambda source: source.load("train").pixels, sources))
    assert len(reads) == 1
    assert all(np.array_equal(each, pixels[0]) for each in pixels)


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "data", {"cat": noise(5), "dog": noise(5, seed=1)})
    (tmp_path / "file").write_text("not a folder")
    source = open_source(DataConfig(data=str(tmp_path / "data"), cache_dir=tmp_path / "file"))
    with pytest.raises(UserError, match=r"Cannot write decoded images to .*Choose another folder with --cache-dir"):
        source.load("train")
