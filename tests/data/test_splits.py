"""Which images are trained on, selected on and measured on: splits of folders and Parquet, and what `fit_all` joins."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from resnet_ops.config import DataConfig
from resnet_ops.data import listing
from resnet_ops.data.audit import check_data
from resnet_ops.data.copies import find_test_copies, hash_candidates, name_copies
from resnet_ops.data.discovery import discover
from resnet_ops.data.opening import open_source
from resnet_ops.data.sources import Source
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


@pytest.mark.parametrize("stream", ["off", "on"])
@pytest.mark.parametrize("stored", ["folders", "parquet"])
def test_test_images_that_are_in_another_split_are_named_and_refused(stored: str, stream: str, tmp_path: Path) -> None:
    root = folders(tmp_path / "images", train=20, val=6)
    shutil.copytree(root / "val", root / "test")
    (root / "test" / "a" / "07.png").write_bytes((root / "train" / "b" / "03.png").read_bytes())
    copy = f"{root}/test/a/07.png = {root}/train/b/03.png"
    if stored == "parquet":
        for part in ("train", "val", "test"):
            images = [sorted((root / part / name).iterdir()) for name in ("a", "b")]
            labels = [0] * len(images[0]) + [1] * len(images[1])
            encoded = [file.read_bytes() for file in (*images[0], *images[1])]
            write_parquet(tmp_path / f"tables/{part}-0.parquet", encoded, labels)
        root = tmp_path / "tables"
        copy = f"image 6 of {root}/test-0.parquet = image 23 of {root}/train-0.parquet"
    options = {"data": str(root), "cache_dir": tmp_path / "cache", "stream": stream}

    def check(**more: object) -> tuple[str, ...]:
        source = open_source(DataConfig.of(**options, **more))
        return source.check_test_images()

    if (stored, stream) == ("parquet", "on"):  # which would have to be read as a whole
        assert "were not compared" in check()[0]
        (root / "val-0.parquet").unlink()  # then all are hashed, to hold validation images out
        with pytest.raises(UserError, match="1 image of the 13 in the test split is also in the"):
            check()
        return
    with pytest.raises(
        UserError, match="1 image of the 13 in the test split is also in the training split and 12"
    ) as no:
        check()
    assert copy in no.value.cause
    assert "--allow-duplicates" in no.value.remedy
    with pytest.raises(UserError, match="13 images of the 13 in the test split are also in the training split"):
        check(fit_all=True)
    (note,) = check(allow_duplicates=True)
    assert "12 images of the 13 in the test split are also in the validation split" in note
    report = check_data(str(root))
    assert (report.in_both, report.fit) == (13, False)
    (finding,) = [each for each in report.findings if each.name == "in both splits"]
    assert finding.state == "error"
    assert check_data(DataConfig(data=str(root), allow_duplicates=True)).having("warning")


def test_only_images_of_a_size_that_another_split_has_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "images"
    for part, content in (("train", b"12345"), ("val", b"123456"), ("test", b"1234567")):
        write_class_folders(root / part, {name: [content + name.encode()] * 3 for name in ("a", "b")})
    (root / "test/a/00.png").write_bytes(b"12345b")
    read: list[str] = []
    of_disk = listing.read_files
    monkeypatch.setattr(listing, "read_files", lambda at, names: (read.extend(names), of_disk(at, names))[1])
    parts = {split: part.encoded for split, part in discover(DataConfig(data=str(root))).by_split.items()}
    copies = find_test_copies(hash_candidates(parts, {}))
    assert [list(name_copies(parts, copies, 9)), len(copies)] == [
        [f"{root}/test/a/00.png = {root}/train/b/00.png"], 1
    ]  # fmt: skip
    assert {name.split("/")[0] for name in read} == {"train", "test"}
    assert len(read) == 7


@pytest.mark.parametrize("stored", ["folders", "parquet"])
def test_a_test_part_is_held_out_by_the_images_alone(stored: str, tmp_path: Path) -> None:
    images = {name: noise(40, seed=k) for k, name in enumerate(("a", "b"))}
    root = tmp_path / "images"

    def write(order: np.ndarray) -> None:
        shutil.rmtree(root, ignore_errors=True)
        if stored == "folders":
            write_class_folders(root, {name: part[order] for name, part in images.items()})
        else:
            labels = [*[0] * len(order), *[1] * len(order)]
            write_parquet(root / "all.parquet", [*images["a"][order], *images["b"][order]], labels, names=("a", "b"))

    def contents(source: Source, split: str) -> set[bytes]:
        encoded = source.encoded(split)  # type: ignore[arg-type]
        return set(map(bytes, encoded.read(range(len(encoded.labels)))))

    write(np.arange(40))
    options = {"data": str(root), "cache_dir": tmp_path / "cache", "test_fraction": 0.2}
    source, plain = open_source(DataConfig.of(**options)), open_source(DataConfig(data=str(root), val_data=None))
    assert counts(source) == counts(source.prepare()) == (56, 8, 16)
    assert source.notes == ("Held out 16 images as test images: 20% of each class, chosen by a hash of their bytes.",)
    assert np.bincount(source.encoded("test").labels).tolist() == [8, 8]
    parts = {split: contents(source, split) for split in ("train", "val", "test")}
    assert sum(map(len, parts.values())) == len(set.union(*parts.values())) == 80
    assert parts["val"] < contents(plain, "val")  # the other tenth of the fifth is trained on
    assert source.load("train").pixels.shape[0] == 56
    everything = open_source(DataConfig.of(**options, fit_all=True)).prepare()
    assert counts(everything) == (64, 0, 16)
    assert (contents(everything, "test"), contents(everything, "train")) == (
        parts["test"],
        parts["train"] | parts["val"],
    )
    write(np.random.default_rng(0).permutation(40))
    shuffled = open_source(DataConfig.of(**options))
    assert {split: contents(shuffled, split) for split in parts} == parts
    report = check_data(DataConfig.of(**options))
    assert (report.images, report.held_out) == ((56, 8, 16), True)
    streamed = open_source(DataConfig.of(**options, stream="on"))
    assert {split: contents(streamed, split) for split in parts} == parts


def test_copies_are_not_torn_apart_by_the_border_of_the_test_part(tmp_path: Path) -> None:
    images = {name: [*noise(10, seed=k)] * 3 for k, name in enumerate(("a", "b"))}  # each three times
    write_class_folders(tmp_path / "images", images)
    write_class_folders(tmp_path / "val", {name: noise(4, seed=8 + k) for k, name in enumerate(images)})
    config = DataConfig.of(data=str(tmp_path / "images"), val_data=str(tmp_path / "val"), test_fraction=0.25)
    source = open_source(config).with_exact_counts()
    assert source.record.test_images == 12  # of a quarter, 16, what is whole
    assert counts(source) == (48, 8, 12)
    assert source.check_test_images() == ()


def test_a_test_part_that_cannot_be_held_out_is_refused(tmp_path: Path) -> None:
    root = folders(tmp_path / "images", train=20, test=6)
    with pytest.raises(UserError, match=r"12 images in a test split of its own\. Remove --test-fraction"):
        open_source(DataConfig.of(data=str(root), test_fraction=0.1))
    assert counts(open_source(DataConfig.of(data=str(root), val_data="test", test_fraction=0.1))) == (36, 12, 4)
    few = folders(tmp_path / "few", train=2, val=2)
    with pytest.raises(UserError, match="too small to hold out test images"):
        open_source(DataConfig.of(data=str(few), test_fraction=0.1))
    with pytest.raises(UserError, match="--test-fraction"):
        DataConfig.of(test_fraction=0.9)


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
