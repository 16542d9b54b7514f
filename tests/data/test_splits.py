"""Which images are trained on, selected on and measured on: splits of folders and Parquet, and what `fit_all` joins."""

from pathlib import Path

import numpy as np
import pytest

from resnet_ops.config import DataConfig
from resnet_ops.data.audit import check_data
from resnet_ops.data.sources import Source, open_source
from resnet_ops.errors import UserError
from tests.data.samples import noise, write_class_folders, write_parquet


def folders(root: Path, **counts: int) -> Path:
    """Class folders of two classes, with as many images of each in every part."""
    for seed, (part, count) in enumerate(counts.items()):
        write_class_folders(root / part, {name: noise(count, seed=10 * seed + k) for k, name in enumerate(("a", "b"))})
    return root


def names(source: Source, split: str) -> set[str]:
    encoded = source.encoded(split)  # type: ignore[arg-type]
    return {encoded.name(row) for row in range(len(encoded.labels))}


def counts(source: Source) -> tuple[int, int, int]:
    return source.record.train_images, source.record.val_images, source.record.test_images


def test_beside_a_test_split_a_tenth_of_each_class_is_held_out(tmp_path: Path) -> None:
    root = folders(tmp_path, train=40, test=15)
    source, again = open_source(str(root)), open_source(str(root))
    assert counts(source) == counts(source.prepare()) == (72, 8, 30)
    assert np.bincount(source.encoded("val").labels).tolist() == [4, 4]
    train, val, test = (names(source, split) for split in ("train", "val", "test"))
    assert val == names(again, "val")
    assert not train & val
    assert {name.split("/")[-3] for name in train | val} == {"train"}
    assert {name.split("/")[-3] for name in test} == {"test"}
    report = check_data(str(root))
    assert report.images == (72, 8, 30)
    assert report.held_out


def test_the_test_split_is_selected_on_only_where_that_is_asked_for(tmp_path: Path) -> None:
    root = folders(tmp_path, train=40, val=5, test=15)
    assert counts(open_source(str(root))) == (80, 10, 30)
    source = open_source(DataConfig(data=str(root), val_data="test"))
    assert counts(source) == (80, 30, 0)
    assert {name.split("/")[-3] for name in names(source, "val")} == {"test"}
    with pytest.raises(UserError, match="has no test images"):
        open_source(DataConfig(data=str(root / "train"), val_data="test"))


@pytest.mark.parametrize("parts", [{"train": 20, "test": 6}, {"train": 20, "val": 5}, {"train": 20}])
def test_with_fit_all_every_image_is_trained_on_but_those_of_the_test_split(
    parts: dict[str, int], tmp_path: Path
) -> None:
    root = folders(tmp_path / "images", **parts)
    data = str(root if len(parts) > 1 else root / "train")
    plain = open_source(DataConfig(data=data, image_size=6, cache_dir=tmp_path / "cache"))  # photos: cropped from 7x7
    source = open_source(DataConfig(data=data, image_size=6, cache_dir=tmp_path / "cache", fit_all=True))
    everything = sum(count for part, count in parts.items() if part != "test")
    assert counts(source.prepare()) == (2 * everything, 0, 2 * parts.get("test", 0))
    assert names(source, "train") == names(plain, "train") | names(plain, "val")
    assert source.record.fingerprint == plain.record.fingerprint
    plain.prepare()  # whose cache is another
    images = source.load("train")
    assert images.pixels.shape == (2 * everything, 7, 7, 3)
    assert np.bincount(images.labels).tolist() == [everything] * 2


def test_two_splits_are_read_as_one(tmp_path: Path) -> None:
    images = noise(30)
    write_parquet(tmp_path / "train-0.parquet", images[:20], [0, 1] * 10, row_group_size=7)
    write_parquet(tmp_path / "val-0.parquet", images[20:], [0, 1] * 5, row_group_size=3)
    source = open_source(DataConfig(data=str(tmp_path), fit_all=True))
    encoded = source.encoded("train")
    assert encoded.row_groups is not None
    assert encoded.row_groups.tolist() == [0] * 7 + [1] * 7 + [2] * 6 + [3] * 3 + [4] * 3 + [5] * 3 + [6]
    order = np.random.default_rng(1).permutation(30).tolist()
    one_by_one = [encoded.read([row])[0] for row in order]
    assert encoded.read(order) == one_by_one
    assert len(set(map(bytes, one_by_one))) == 30  # type: ignore[arg-type]
    assert encoded.name(22) == f"image 2 of {tmp_path}/val-0.parquet"
    assert np.array_equal(source.load("train").pixels, images)


def test_test_images_without_labels_are_left_out(tmp_path: Path) -> None:
    root = folders(tmp_path / "folders", train=20, val=5)
    write_class_folders(root / "test", {"unknown": noise(4, seed=9)})
    assert counts(open_source(str(root))) == (40, 10, 0)
    tables = tmp_path / "tables"
    write_parquet(tables / "train-0.parquet", noise(20), [0, 1] * 10)
    write_parquet(tables / "test-0.parquet", noise(4, seed=1), [-1] * 4)
    assert counts(open_source(str(tables))) == (16, 4, 0)
    write_class_folders(root / "test", {"a": noise(4, seed=8)})
    with pytest.raises(UserError, match="test images of class 'unknown', but no training images"):
        open_source(str(root))
