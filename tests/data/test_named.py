"""CIFAR by its name, from files such as torchvision unpacks; the real ones are a download away."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import CIFAR10

from resnet_ops.config import DataConfig
from resnet_ops.data.sources import open_source
from resnet_ops.errors import UserError


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
    assert (record.train_images, record.val_images, record.height, record.channels) == (60, 20, 32, 3)
    assert record.class_names[3] == "class 3"
    assert source.mirrors
    val = source.load("val")
    assert np.array_equal(val.pixels, rows[:20].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    assert val.labels.tolist() == labels[:20]
    assert source.notes == ("20 images of the 20 in the validation split are also in the training split.",)


def test_damaged_files_are_not_used(cifar: tuple[Path, np.ndarray, list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # where nothing answers
    (cifar[0] / CIFAR10.base_folder / "test_batch").write_bytes(b"")
    with pytest.raises(UserError, match="cifar10 is missing or incomplete in"):
        open_source(DataConfig(data="cifar10", data_root=cifar[0]))
