"""Which images are trained on, selected on and measured on: splits of folders and Parquet, and what `fit_all` joins."""

import shutil
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
    plain = open_source(
        DataConfig(data=data, image_size=16, cache_dir=tmp_path / "cache")
    )  # photos: cropped from 20x20
    source = open_source(DataConfig(data=data, image_size=16, cache_dir=tmp_path / "cache", fit_all=True))
    everything = sum(count for part, count in parts.items() if part != "test")
    assert counts(source.prepare()) == (2 * everything, 0, 2 * parts.get("test", 0))
    assert names(source, "train") == names(plain, "train") | names(plain, "val")
    assert source.record.fingerprint == plain.record.fingerprint
    plain.prepare()  # whose cache is another
    images = source.load("train")
    assert images.pixels.shape == (2 * everything, 20, 20, 3)
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


def test_images_that_are_trained_or_selected_on_are_no_test_images(tmp_path: Path) -> None:
    root = folders(tmp_path / "images", train=20, test=6)
    link = tmp_path / "elsewhere"
    link.symlink_to(root / "test")
    for val_data in (root / "test", root, link):
        for options in ({}, {"fit_all": True}, {"stream": "on"}):
            config = DataConfig.model_validate({"data": str(root), "val_data": str(val_data)} | options)
            source = open_source(config)
            assert counts(source) == ((52, 0, 0) if "fit_all" in options else (40, 12, 0))
            assert source.notes == ("There is no test split: files of it are in the validation split.",)
    finding = next(f for f in check_data(DataConfig(data=str(root), val_data=str(link))).findings if f.name == "splits")
    assert finding.state == "warning"
    assert open_source(DataConfig(data=str(root), val_data="test")).notes == ()


def test_copies_of_validation_images_in_the_test_split_are_noted(tmp_path: Path) -> None:
    root = folders(tmp_path / "images", train=20, val=6)
    shutil.copytree(root / "val", root / "test")
    for fit_all, other in ((False, "validation"), (True, "training")):
        source = open_source(DataConfig(data=str(root), fit_all=fit_all, cache_dir=tmp_path / "cache"))
        assert source.prepare().notes == (f"12 images of the 12 in the test split are also in the {other} split.",)
    report = check_data(str(root))
    assert report.in_both == 12
    (finding,) = [each for each in report.findings if each.name == "in both splits"]
    assert finding.summary == "12 images of the test split also in the validation split"


def test_the_fingerprint_leaves_test_images_out_but_their_cache_does_not(tmp_path: Path) -> None:
    root = folders(tmp_path / "images", train=20, val=5)
    plain = open_source(str(root)).record.fingerprint
    folders(root, test=6)
    config = DataConfig(data=str(root), cache_dir=tmp_path / "cache")
    before = open_source(config)
    assert before.record.fingerprint == plain
    old = before.load("test").pixels.copy()
    shutil.rmtree(root / "test")
    write_class_folders(root / "test", {name: noise(6, seed=70 + k) for k, name in enumerate(("a", "b"))})
    after = open_source(config)
    assert after.record.fingerprint == plain
    assert not np.array_equal(after.load("test").pixels, old)


def test_test_images_of_classes_that_are_not_trained_are_left_out(tmp_path: Path) -> None:
    root = folders(tmp_path / "folders", train=20, val=5)
    write_class_folders(root / "test", {"Z": noise(4, seed=9), "b": noise(3, seed=8)})
    source = open_source(str(root))
    assert counts(source) == (40, 10, 3)
    assert source.notes == ("Left out 4 images of the test split, whose classes have no training images.",)
    assert source.prepare().load("test").labels.tolist() == [1, 1, 1]
    report = check_data(str(root))
    assert (report.fit, report.images) == (True, (40, 10, 7))
    assert [f.details for f in report.having("warning") if f.name == "unknown classes"] == [("Z: 4",)]
    tables = tmp_path / "tables"
    write_parquet(tables / "train-0.parquet", noise(20), [0, 1] * 10, names=())
    write_parquet(tables / "test-0.parquet", noise(6, seed=1), [1, -1, 7, 0, 0, 1], names=())
    source = open_source(str(tables))
    assert source.record.class_names == ("0", "1")
    assert source.load("test").labels.tolist() == [1, 0, 0, 1]


def test_every_file_of_validation_data_may_be_named_after_validation(tmp_path: Path) -> None:
    train = write_parquet(tmp_path / "train.parquet", noise(20), [0, 1] * 10)
    for word, images in (("validation", 8), ("test", 8)):
        for part in range(2):
            write_parquet(tmp_path / word / f"{word}-{part}.parquet", noise(4, seed=part + 1), [0, 1] * 2)
        for val_data in (f"{tmp_path}/{word}/*.parquet", f"{tmp_path}/{word}"):
            assert counts(open_source(DataConfig(data=str(train), val_data=val_data))) == (20, images, 0)
