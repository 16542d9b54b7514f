"""Class folders are read as torchvision reads them, from a disk and from a bucket; so is CIFAR, by its name.

CIFAR's files are small ones in torchvision's format, as the real ones are a download away.
"""

import hashlib
import pickle
import shutil
from pathlib import Path

import fsspec
import numpy as np
import pytest
from torchvision.datasets import CIFAR10, ImageFolder

from resnet_ops.config import DataConfig
from resnet_ops.data.opening import open_source
from resnet_ops.errors import UserError
from tests.data.samples import encode_pixels, noise, write_class_folders, write_parquet


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    """Two classes, with what file managers leave behind."""
    root = tmp_path / "flowers"
    write_class_folders(root / "train", {"rose": noise(12), "daisy": noise(8, seed=1)})
    write_class_folders(root / "val", {"daisy": noise(2, seed=2), "rose": noise(3, seed=3)})
    (root / "train" / "rose" / "Thumbs.db").write_bytes(b"x")
    (root / "train" / "rose" / "._00.png").write_bytes(b"x")
    (root / "train" / "notes.txt").write_text("x")
    (root / "train" / "rose" / "more").mkdir()
    (root / "train" / "rose" / "more" / "PHOTO.JPG").write_bytes(encode_pixels(noise(1, seed=4)[0], "JPEG"))
    (root / "train" / ".ipynb_checkpoints").mkdir()
    return root


def test_folders_are_read_as_torchvision_reads_them(flowers: Path) -> None:
    source = open_source(str(flowers))
    shutil.rmtree(flowers / "train" / ".ipynb_checkpoints")  # which torchvision takes for a class
    (flowers / "train" / "rose" / "._00.png").unlink()
    for split in ("train", "val"):
        theirs, ours = ImageFolder(str(flowers / split)), source.encoded(split)
        assert source.record.class_names == tuple(theirs.classes)
        expected = sorted(theirs.samples)
        assert sorted((ours.name(i), int(ours.labels[i])) for i in range(len(ours.labels))) == expected
        pixels = {ours.name(i): image for i, image in enumerate(source.load(split).pixels)}
        assert all(np.array_equal(pixels[path], np.asarray(theirs.loader(path))) for path, _ in expected)


def test_without_validation_folders_a_fifth_is_held_out_by_content(flowers: Path, tmp_path: Path) -> None:
    held = open_source(str(flowers / "train")).load("val")
    assert np.bincount(held.labels).tolist() == [2, 3]
    again = tmp_path / "again"
    for file in (flowers / "train").rglob("*.png"):
        (again / file.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, again / file.parent.name / f"z{99 - int(file.stem.strip('._'))}.png")
    shutil.copy(flowers / "train/rose/more/PHOTO.JPG", again / "rose")
    renamed = open_source(str(again)).load("val")
    assert sorted(p.tobytes() for p in renamed.pixels) == sorted(p.tobytes() for p in held.pixels)


def test_a_bucket_is_read_like_a_disk(flowers: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(flowers), "/bucket/flowers", recursive=True)
    disk, bucket = open_source(str(flowers)), open_source("memory://bucket/flowers")
    assert bucket.record.fingerprint_of == "names and sizes"
    same = {"fingerprint": "", "fingerprint_of": "content"}
    assert bucket.record.model_copy(update=same) == disk.record.model_copy(update=same)
    for split in ("train", "val"):
        assert np.array_equal(bucket.load(split).pixels, disk.load(split).pixels)
    assert open_source("memory://bucket/flowers").record.fingerprint == bucket.record.fingerprint
    memory.pipe_file("/bucket/flowers/val/rose/new.png", encode_pixels(noise(1, seed=9)[0]))
    assert open_source("memory://bucket/flowers").record.fingerprint != bucket.record.fingerprint
    apart = DataConfig(data=str(flowers / "train"), val_data="memory://bucket/flowers/val")
    assert open_source(apart).record.val_images == 6


def test_parquet_in_a_bucket_is_read(tmp_path: Path) -> None:
    from tests.data.samples import noise

    file = write_parquet(tmp_path / "train.parquet", noise(10), [0, 1] * 5)
    fsspec.filesystem("memory").put(str(file), "/bucket/tables/train.parquet")
    for data in ("memory://bucket/tables", "memory://bucket/tables/*.parquet", "memory://bucket/tables/train.parquet"):
        assert np.array_equal(open_source(data).load("train").pixels, open_source(str(file)).load("train").pixels)


@pytest.mark.parametrize(
    ("train", "val", "error"),
    [
        ("train", "validation", ""), ("Train", "Val", ""), ("training", "dev", ""), ("TRAIN", "valid", ""),
        ("pets-train", "val_set", ""), ("training", "running", "it cannot be told whether training is a split"),
        ("trainable", "valley", r"\(trainable, valley\) contains the same folders \(daisy, rose\)"),
    ],
)  # fmt: skip
def test_folders_are_splits_where_a_whole_word_of_their_name_is_one(
    train: str, val: str, error: str, tmp_path: Path
) -> None:
    for folder, count in ((train, 10), (val, 4)):
        write_class_folders(tmp_path / folder, {"rose": noise(count), "daisy": noise(count, seed=1)})
    if error:
        with pytest.raises(UserError, match=error):
            open_source(str(tmp_path))
        return
    record = open_source(str(tmp_path)).record
    assert record.class_names == ("daisy", "rose")
    assert (record.train_images, record.val_images) == (20, 8)


def test_what_is_wrong_with_folders_is_an_error(flowers: Path) -> None:
    (flowers / "train" / "tulip").mkdir()
    with pytest.raises(UserError, match="train/tulip contains no images, so its class cannot be learned"):
        open_source(str(flowers))
    (flowers / "train" / "tulip" / "readme.txt").write_text("no tulips yet")
    with pytest.raises(UserError, match="train/tulip contains no images"):
        open_source(str(flowers))
    shutil.rmtree(flowers / "train" / "tulip")
    write_class_folders(flowers / "val", {"tulip": noise(1)})
    with pytest.raises(UserError, match="validation images of class 'tulip', but no training images"):
        open_source(str(flowers))
    shutil.rmtree(flowers / "train")
    (flowers / "train").mkdir()
    with pytest.raises(UserError, match="contains no subfolders with images"):
        open_source(str(flowers))


def test_the_fingerprint_knows_neither_place_nor_time(flowers: Path, tmp_path: Path) -> None:
    first = open_source(str(flowers)).record.fingerprint
    moved = Path(shutil.move(flowers, tmp_path / "elsewhere"))
    (moved / "train/rose/00.png").touch()
    assert open_source(str(moved)).record.fingerprint == first
    (moved / "train/rose/01.png").rename(moved / "train/daisy/01b.png")  # now of another class
    assert open_source(str(moved)).record.fingerprint != first


@pytest.mark.usefixtures("no_network")
def test_a_data_set_that_cannot_be_downloaded_says_what_to_put_where(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        open_source(DataConfig(data="cifar10", data_root=tmp_path))
    assert f"Extract cifar-10-batches-py from cifar-10-python.tar.gz into {tmp_path}" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, np.ndarray, list[int]]:
    """A small CIFAR-10 in torchvision's format, whose checksums torchvision is told to expect."""
    rng, folder = np.random.default_rng(0), tmp_path / CIFAR10.base_folder
    folder.mkdir()
    rows, labels = rng.integers(0, 256, (60, 3072), np.uint8), (list(range(10)) * 6)

    def store(name: str, content: object) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    train = [
        [f"data_batch_{i + 1}", store(f"data_batch_{i + 1}", {"data": rows[i::5], "labels": labels[i::5]})]
        for i in range(5)
    ]
    names = [f"class {index}" for index in range(10)]
    monkeypatch.setattr(CIFAR10, "train_list", train)
    monkeypatch.setattr(
        CIFAR10, "test_list", [["test_batch", store("test_batch", {"data": rows[:20], "labels": labels[:20]})]]
    )
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": store("batches.meta", {"label_names": names})})
    return tmp_path, rows, labels


def test_cifar_is_torchvisions(cifar: tuple[Path, np.ndarray, list[int]]) -> None:
    root, rows, labels = cifar
    source = open_source(DataConfig(data="cifar10", data_root=root)).prepare()
    record = source.record
    assert (record.train_images, record.val_images, record.test_images) == (50, 10, 20)
    assert (record.height, record.channels) == (32, 3)
    assert record.class_names[3] == "class 3"
    pixels = rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    test, val, train = (source.load(split) for split in ("test", "val", "train"))
    assert np.array_equal(test.pixels, pixels[:20])
    assert test.labels.tolist() == labels[:20]
    assert sorted(val.labels) == list(range(10))  # a tenth of each class, one image
    held_out = {image.tobytes() for image in val.pixels}
    assert held_out | {image.tobytes() for image in train.pixels} == {image.tobytes() for image in pixels}
    again = 20 - len(held_out & {image.tobytes() for image in test.pixels})
    (note,) = source.notes  # a benchmark is taken as it is
    assert note.startswith(
        f"{again} images of the 20 in the test split are also in the training split and {20 - again} images of the 20 "
        "in the test split are also in the validation split: image "
    )
    as_the_paper = open_source(DataConfig(data="cifar10", data_root=root, val_data="test")).prepare()
    assert np.array_equal(as_the_paper.load("val").pixels, test.pixels)
    assert len(as_the_paper.load("train")) == 60


@pytest.mark.usefixtures("no_network")
def test_damaged_files_are_not_used(cifar: tuple[Path, np.ndarray, list[int]]) -> None:
    (cifar[0] / CIFAR10.base_folder / "test_batch").write_bytes(b"")
    with pytest.raises(UserError, match="cifar10 is missing or incomplete in"):
        open_source(DataConfig(data="cifar10", data_root=cifar[0]))
