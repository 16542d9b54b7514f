"""Images come out as they went in, and what is wrong with them is an error of one line."""

import hashlib
import io
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from resnet_ops.config import DataConfig
from resnet_ops.data import dataset
from resnet_ops.data.class_labels import merge_classes
from resnet_ops.data.dataset import choose_validation, digest
from resnet_ops.data.discovery import EMBEDDED, discover
from resnet_ops.data.opening import open_source
from resnet_ops.errors import UserError
from resnet_ops.formatting import is_one_line
from tests.conftest import CIFAR10, needs_cifar10
from tests.data.make_digits import pixels_and_labels, table
from tests.data.samples import noise, write_class_folders, write_parquet

FINGERPRINT = "ad8d1a90f8ab7cc0d92296995a8d9969745c93878706012942d377097804dc66"
DECODED = "298945f3a04f37f0cf96c5478f06df32ecd2a91d76a3d6561183ecddeb40008e"


def test_digits_are_scikit_learns_pixel_for_pixel() -> None:
    source = open_source("digits")
    train, val = source.load("train"), source.load("val")
    ours = np.concatenate([train.pixels, val.pixels])[..., 0], np.concatenate([train.labels, val.labels])
    theirs = pixels_and_labels()

    def rows(pixels: np.ndarray, labels: np.ndarray) -> list[bytes]:
        return sorted(p.tobytes() + bytes([label]) for p, label in zip(pixels, labels, strict=True))

    assert rows(*ours) == rows(*theirs)
    assert pq.read_table(EMBEDDED["digits"]).equals(table(), check_metadata=True)


def test_digits_are_those_of_every_run_so_far() -> None:
    source = open_source("digits")
    assert source.record.fingerprint == FINGERPRINT
    total = hashlib.sha256()
    for split in ("train", "val"):
        images = source.load(split)
        total.update(images.pixels.tobytes() + images.labels.tobytes())
    assert total.hexdigest() == DECODED
    assert source.prepare() is source  # they are not cached, which would gain nothing


def test_digits_say_whose_they_are() -> None:
    attribution = EMBEDDED["digits"].with_name("DIGITS.md").read_text()
    assert "CC BY 4.0" in attribution
    assert "Kaynak" in attribution


def test_the_split_is_stratified_and_follows_the_images_not_their_order() -> None:
    hashes = np.array(
        [digest(row["bytes"]) for row in pq.read_table(EMBEDDED["digits"]).column("image").to_pylist()], "S32"
    )
    labels = pixels_and_labels()[1]
    chosen = choose_validation(hashes, labels)
    for digit in range(10):
        of_class = labels == digit
        assert abs(chosen[of_class].sum() - of_class.sum() / 5) <= 0.5
    order = np.random.default_rng(1).permutation(len(labels))
    shuffled = choose_validation(hashes[order], labels[order])
    assert np.array_equal(shuffled, chosen[order])


@needs_cifar10
def test_cifar10_is_read_from_parquet() -> None:
    source = open_source(str(CIFAR10))
    record = source.record
    assert (record.train_images, record.val_images, record.test_images) == (45_000, 5_000, 10_000)
    assert np.bincount(source.encoded("val").labels).tolist() == [500] * 10
    assert record.class_names[0] == "airplane"
    assert (record.channels, record.height, record.width) == (3, 32, 32)
    test = source.load("test")
    assert np.bincount(test.labels).tolist() == [1000] * 10
    rows = pq.read_table(CIFAR10 / "test-00000-of-00001.parquet").slice(4321, 1).to_pylist()[0]
    expected = np.asarray(Image.open(io.BytesIO(rows["img"]["bytes"])).convert("RGB"))
    assert np.array_equal(test.pixels[4321], expected)
    # The statistics that everyone who trains on CIFAR-10 knows.
    assert (test.pixels / 255).mean((0, 1, 2)) == pytest.approx([0.494, 0.485, 0.450], abs=1e-3)


def test_validation_files_are_told_by_their_names(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-0.parquet", noise(6), [0, 1, 0, 1, 0, 1])
    write_parquet(tmp_path / "train-1.parquet", noise(4, seed=1), [0, 1, 0, 1])
    write_parquet(tmp_path / "validation-0.parquet", noise(3, seed=2), [0, 1, 1])
    write_parquet(tmp_path / "test-0.parquet", noise(5, seed=3), [0, 1, 1, 0, 0])
    for data in (str(tmp_path), f"{tmp_path}/*.parquet"):
        source = open_source(data)
        record = source.record
        assert (record.train_images, record.val_images, record.test_images) == (10, 3, 5)
        assert np.array_equal(source.load("test").pixels, noise(5, seed=3))
        assert np.array_equal(source.load("val").pixels, noise(3, seed=2))
        assert np.array_equal(source.load("train").pixels, np.concatenate([noise(6), noise(4, seed=1)]))


SPLIT_NAMES = {
    "train-00000-of-2": "train", "Train": "train", "birds-train-1": "train", "trainable": "train", "part-0": "train",
    "flight-test-training-0": "train", "valley": "train", "values": "train", "testimony": "train", "contest": "train",
    "devices": "train", "invalid": "train", "retrieval": "train",
    "val": "val", "VAL_0": "val", "val2017": "val", "birds.val": "val", "train/val": "val",
    "validation-0": "validation", "valid": "valid", "dev-0": "dev", "birds-test-0-of-1": "test", "testing": "test",
    "eval": "test", "evaluation-1": "test", "test/0000": "test", "a/train/0000": "train", "a/b": "train",
}  # fmt: skip


@pytest.mark.parametrize("name", SPLIT_NAMES)
@pytest.mark.parametrize("is_bucket", [False, True])
def test_a_files_split_is_a_whole_word(name: str, is_bucket: bool, tmp_path: Path) -> None:
    """In its name or in that of a folder below the one that all are in: here that is called test."""
    write_parquet(tmp_path / "test" / "other.parquet", noise(6), [0, 1] * 3)
    write_parquet(tmp_path / "test" / f"{name}.parquet", noise(4, seed=1), [0, 1] * 2)
    data = f"{tmp_path}/test/**/*.parquet"
    if is_bucket:
        memory = fsspec.filesystem("memory")
        memory.put(str(tmp_path / "test"), f"/{tmp_path.name}/test", recursive=True)
        data = f"memory://{tmp_path.name}/test/**/*.parquet"
    source = open_source(data)
    if SPLIT_NAMES[name] == "train":
        assert set(source.splits) == {"train"}
        assert source.record.train_images + source.record.val_images == 10
    elif SPLIT_NAMES[name] == "test":
        assert set(source.splits) == {"train", "test"}
        assert (source.record.train_images + source.record.val_images, source.record.test_images) == (6, 4)
    else:
        assert (source.record.train_images, source.record.val_images) == (6, 4)


def test_files_number_their_classes_as_they_like(tmp_path: Path) -> None:
    """As shards that were written apart may; in the same file's splits and in `data check` too."""
    write_parquet(tmp_path / "train-0.parquet", noise(6), [0, 0, 1, 2, 1, 1], names=("cat", "dog", "owl"))
    write_parquet(tmp_path / "train-1.parquet", noise(5, seed=1), [0, 0, 1, 2, 1], names=("owl", "cat", "dog"))
    write_parquet(tmp_path / "val-0.parquet", noise(3, seed=2), [0, 1, 2], names=("dog", "cat", "owl"))
    write_parquet(tmp_path / "val-1.parquet", noise(3, seed=3), [0, 1, 2], names=("owl", "dog", "cat"))
    source = open_source(str(tmp_path))
    assert source.record.class_names == ("cat", "dog", "owl")
    assert source.encoded("train").labels.tolist() == [0, 0, 1, 2, 1, 1, 2, 2, 0, 1, 0]
    assert source.encoded("val").labels.tolist() == [1, 0, 2, 2, 1, 0]
    names, labels = merge_classes(discover(DataConfig(data=str(tmp_path))))
    assert [names[label] for label in labels[6:11]] == ["owl", "owl", "cat", "dog", "cat"]


@pytest.mark.parametrize(
    ("names", "labels", "message"),
    [
        (
            ("dog", "cow"),
            [0, 1],
            r"b.parquet has the classes dog, cow; the first file has cat, dog\..*same classes in all",
        ),
        (("dog", "cat", "cow"), [0, 1], r"b.parquet has the classes dog, cat, cow"),
        ((), [0, 1], r"b.parquet has the classes \(without names\)"),
        (("dog", "dog"), [0, 1], r"b.parquet has a name for two classes: dog, dog"),
        (("dog", "cat"), [0, 2], r"labels from 0 to 2, but 2 classes"),
        (("dog", "cat"), [0, -1], r"labels from -1 to 1, but 2 classes"),
    ],
)
def test_files_of_other_classes_are_refused(
    names: tuple[str, ...], labels: list[int], message: str, tmp_path: Path
) -> None:
    write_parquet(tmp_path / "a.parquet", noise(10), [0, 1] * 5)
    write_parquet(tmp_path / "b.parquet", noise(2, seed=1), labels, names=names)
    with pytest.raises(UserError, match=message):
        open_source(str(tmp_path))


@pytest.mark.parametrize("name", ["c\tat", "c\nat", "c\u2028at", "c\u202eat", "c\x07at"])
def test_a_class_whose_name_no_exported_file_could_have_is_refused(name: str, tmp_path: Path) -> None:
    folders = write_class_folders(tmp_path / "folders", {name: noise(5), "dog": noise(5, seed=1)})
    table = write_parquet(tmp_path / "a.parquet", noise(10), [0, 1] * 5, names=(name, "dog"))
    for data in (folders, table):
        with pytest.raises(UserError, match=r"The name of class 'c\\\w+at' has characters that.*Rename") as raised:
            open_source(str(data))
        assert is_one_line(str(raised.value))


def test_one_file_is_split(tmp_path: Path) -> None:
    source = open_source(str(write_parquet(tmp_path / "all.parquet", noise(20), [0, 1] * 10)))
    train, val = source.load("train"), source.load("val")
    assert (len(train), len(val)) == (source.record.train_images, source.record.val_images) == (16, 4)
    assert source.record.name == "all"


def test_a_column_may_be_called_otherwise(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "a.parquet", noise(10), [0, 1] * 5, columns=("img", "fine_label"))
    assert open_source(str(file)).record.class_names == ("cat", "dog")


def test_columns_of_any_name_can_be_named(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "a.parquet", noise(10), [0, 1] * 5, columns=("x", "y"))
    source = open_source(DataConfig(data=str(file), image_column="x", label_column="y"))
    assert source.record.class_names == ("cat", "dog")
    assert len(source.load("train")) == 8


def test_rows_come_back_whatever_order_and_row_groups_they_are_asked_in(tmp_path: Path) -> None:
    images = noise(30)
    write_parquet(tmp_path / "train-0.parquet", images[:20], [0, 1] * 10, row_group_size=7)
    write_parquet(tmp_path / "train-1.parquet", images[20:], [0, 1] * 5, row_group_size=3)
    encoded = open_source(str(tmp_path)).splits["train"]
    order = np.random.default_rng(1).permutation(30).tolist()
    read = [np.asarray(Image.open(io.BytesIO(image))) for image in encoded.read(order) if isinstance(image, bytes)]
    assert np.array_equal(read, images[order])
    assert encoded.name(22) == f"image 2 of {tmp_path}/train-1.parquet"


def test_validation_images_may_lie_elsewhere_with_classes_in_another_order(tmp_path: Path) -> None:
    train = write_parquet(tmp_path / "a.parquet", noise(10), [0, 1] * 5)
    val = write_parquet(tmp_path / "b.parquet", noise(4, seed=1), [0, 0, 0, 1], names=("dog", "cat"))
    source = open_source(DataConfig(data=str(train), val_data=str(val)))
    assert (source.record.train_images, source.record.val_images) == (10, 4)
    assert source.load("val").labels.tolist() == [1, 1, 1, 0]
    other = write_parquet(tmp_path / "c.parquet", noise(4, seed=1), [0, 0, 0, 1], names=("dog", "cow"))
    with pytest.raises(UserError, match="class 'cow', but no training images"):
        open_source(DataConfig(data=str(train), val_data=str(other)))


def test_the_fingerprint_follows_the_bytes(tmp_path: Path) -> None:
    first = open_source(str(write_parquet(tmp_path / "a.parquet", noise(10), [0, 1] * 5)))
    same = open_source(str(write_parquet(tmp_path / "b.parquet", noise(10), [0, 1] * 5)))
    other = open_source(str(write_parquet(tmp_path / "c.parquet", noise(10, seed=1), [0, 1] * 5)))
    assert first.record.fingerprint == same.record.fingerprint != other.record.fingerprint


def test_the_fingerprint_of_much_data_follows_bytes_of_equal_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "CONTENT_HASH_BYTES", 0)
    records = {}
    for name, seed in (("first", 0), ("same", 0), ("other", 1)):
        for row, pixels in enumerate(noise(6, seed=seed)):
            file = tmp_path / name / "ab"[row % 2] / f"{row}.bmp"  # not compressed
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
        records[name] = open_source(str(tmp_path / name)).record
    assert {record.fingerprint_of for record in records.values()} == {"names and sizes"}
    assert records["first"].fingerprint == records["same"].fingerprint != records["other"].fingerprint


def test_greyscale_stays_grey_and_palettes_become_color(tmp_path: Path) -> None:
    grey = open_source(str(write_parquet(tmp_path / "grey.parquet", noise(10)[..., 0], [0, 1] * 5)))
    assert grey.record.channels == 1
    loaded = np.concatenate([grey.load("train").pixels, grey.load("val").pixels])[..., 0]
    assert sorted(image.tobytes() for image in loaded) == sorted(image.tobytes() for image in noise(10)[..., 0])
    rows = []
    for index in range(10):
        buffer = io.BytesIO()
        Image.fromarray(noise(1, seed=index)[0]).quantize(16).save(buffer, format="PNG")
        rows.append({"bytes": buffer.getvalue(), "path": None})
    pq.write_table(pa.table({"image": rows, "label": [0, 1] * 5}), tmp_path / "palette.parquet")
    assert open_source(str(tmp_path / "palette.parquet")).load("train").pixels.shape == (8, 8, 8, 3)


def refused(data: object, *words: str) -> None:
    with pytest.raises(UserError) as error:
        open_source(str(data)).load("train")
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_wrong_with_the_data_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused("digist", "does not exist", "Did you mean digits?")
    refused(tmp_path / "nowhere.parquet", f"{tmp_path / 'nowhere.parquet'} does not exist")
    (tmp_path / "here").mkdir()
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    refused("photos", f"photos: {tmp_path / 'here/photos'} does not exist (../photos does). Give a folder")
    refused(tmp_path, "contains no images")
    (tmp_path / "text.parquet").write_text("not parquet")
    refused(tmp_path / "text.parquet", "cannot be read as Parquet")
    whole = write_parquet(tmp_path / "whole.parquet", noise(10), [0, 1] * 5).read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / "cut.parquet", "cannot be read as Parquet")
    (tmp_path / "zero.parquet").write_bytes(b"")
    refused(tmp_path / "zero.parquet", "cannot be read as Parquet")
    refused(write_parquet(tmp_path / "empty.parquet", noise(0), []), "no training images")
    refused(write_parquet(tmp_path / "one.parquet", noise(10), [1] * 10), "one class only (dog)")
    refused(write_parquet(tmp_path / "range.parquet", noise(10), [0, 5] * 5), "labels from 0 to 5, but 2 classes")
    refused(write_parquet(tmp_path / "minus.parquet", noise(10), [0, -1] * 5), "labels from -1 to 0")
    refused(write_parquet(tmp_path / "null.parquet", noise(10), [0, None] * 5), "no label")
    refused(write_parquet(tmp_path / "few.parquet", noise(4), [0, 1] * 2), "too small to hold out")
    refused(write_parquet(tmp_path / "columns.parquet", noise(4), [0, 1] * 2, columns=("x", "y")), "columns x, y")
    only_val = write_parquet(tmp_path / "v" / "test-0.parquet", noise(4), [0, 1] * 2)
    write_parquet(tmp_path / "v" / "test-1.parquet", noise(4), [0, 1] * 2)
    refused(only_val.parent, "only validation or test files")


def test_hot_pixels_take_no_levels_from_others(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (40, 16, 16)).astype(np.uint16)
    values[3, 5, 5] = values[8, 2, 2] = 65535
    for index, image in enumerate(values):
        path = tmp_path / "ab"[index % 2] / f"{index:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    source = open_source(str(tmp_path))
    assert source.record.bit_depth == 12
    assert "99.9% of the pixels" in source.notes[0]
    pixels = np.concatenate([source.load("train").pixels, source.load("val").pixels])
    assert len(np.unique(pixels)) == 256
    values[:, 0, 0] = 65535  # 1 of 256 pixels
    for index, image in enumerate(values):
        Image.fromarray(image).save(tmp_path / "ab"[index % 2] / f"{index:02}.png")
    assert open_source(str(tmp_path)).record.bit_depth == 16
