"""Training that begins with pretrained weights: from the option to every step, on a resume, and in a search."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from resnet_ops.config import TrainConfig
from resnet_ops.data.dataset import Split
from resnet_ops.data.opening import open_source
from resnet_ops.errors import UserError
from resnet_ops.export.metadata import Preprocessing
from resnet_ops.run_records import PretrainedRecord
from resnet_ops.runs import Run
from resnet_ops.significance import MeasuredAccuracy, p_value
from resnet_ops.tracking.payload import tags
from resnet_ops.training import job
from resnet_ops.training.checkpoint import read_best, saved_checkpoints
from resnet_ops.training.job import TrainResult
from resnet_ops.training.observer import Observer


class Heard(Observer):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said = ""

    def warn(self, message: str) -> None:
        self.said += message + "\n"


def write_digits(folder: Path, classes: range, images: dict[Split, int]) -> Path:
    """So many images of each of these digits, in folders of their names and splits."""
    source = open_source("digits")
    for split, count in images.items():
        encoded = source.encoded(split)
        for digit in classes:
            rows = [int(row) for row in np.flatnonzero(encoded.labels == digit)[:count]]
            place = folder / split / f"digit {digit}"
            place.mkdir(parents=True)
            for row, image in zip(rows, encoded.read(rows), strict=True):
                assert isinstance(image, bytes)
                (place / f"{row}.png").write_bytes(image)
    return folder


def train(runs_dir: Path, name: str, heard: Observer | None = None, **options: Any) -> TrainResult:
    common = {"runs_dir": runs_dir, "name": name, "model": "resnet8", "cpus_per_worker": 1}
    return job.train(TrainConfig.of(**common | options), observer=heard)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images of each of four digits, and all their validation images."""
    return write_digits(tmp_path_factory.mktemp("few"), range(6, 10), {"train": 10, "val": 100})


@pytest.fixture(scope="module")
def six_digits(tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """A network that knows the other six."""
    folder = tmp_path_factory.mktemp("six")
    data = write_digits(folder / "data", range(6), {"train": 100, "val": 20})
    return train(folder, "six", data=str(data), epochs=4)


def test_what_was_learned_is_carried_over(six_digits: TrainResult, few: Path, tmp_path: Path) -> None:
    """With the same steps on the same 40 images, weights that know other digits beat fresh ones beyond chance."""
    heard = Heard()
    options: dict[str, Any] = {"data": str(few), "epochs": 3, "batch_size": 20, "lr": 0.05}
    scratch = train(tmp_path, "scratch", **options)
    weights = str(six_digits.run.best / "model.safetensors")
    fine_tuned = train(tmp_path, "fine-tuned", heard, weights=weights, **options)
    assert "with a new head for 4 classes (that of the weights has 6)" in heard.said
    start = fine_tuned.record.start
    assert start is not None
    assert (start.head, start.origin) == ("new", weights)
    assert tags(fine_tuned.run, fine_tuned.record)["weights_sha256"] == start.sha256
    images = fine_tuned.record.data.val_images
    accuracies = [result.record.best.val_accuracy for result in (fine_tuned, scratch) if result.record.best]
    better, worse = (MeasuredAccuracy.of(accuracy or 0, images) for accuracy in accuracies)
    assert better.correct > worse.correct
    assert p_value(better, worse) < 0.01
    # Pixels are normalized as they were for the weights.
    expected = read_best(six_digits.run)[0].info
    infos = [read_best(result.run)[0].info for result in (fine_tuned, scratch)]
    assert infos[0].mean == expected.mean
    assert infos[1].mean != expected.mean
    base = PretrainedRecord(origin=weights, data_fingerprint=expected.data_fingerprint, began_from="")
    assert [info.began_from for info in infos] == [base, ""]


def test_weights_of_the_same_images_keep_their_head_and_prove_themselves(trained: TrainResult, tmp_path: Path) -> None:
    heard, runs_dir = Heard(), tmp_path / "runs"
    shutil.copytree(trained.run.path, runs_dir / "trained")
    again = train(runs_dir, "again", heard, weights="trained", expect=90, epochs=1, lr=1e-6)
    assert "Beginning from run trained, with their own head" in heard.said
    assert again.record.start is not None
    assert again.record.start.head == "kept"
    (event,) = (event.what for event in again.run.events() if "expected" in event.what)
    accuracy = read_best(trained.run)[0].info.validated.val_accuracy
    assert accuracy is not None
    assert f"reach {100 * accuracy:.2f}% on the 359 validation images of digits, before training; 90.00%" in event
    assert trained.record.best is not None
    with pytest.raises(UserError, match=r"less than the 100.00% expected, beyond chance"):
        train(runs_dir, "worse", weights="trained", expect=100, epochs=1, seed=1)
    assert Run(runs_dir / "worse").read().status == "failed"
    assert Run(runs_dir / "worse").epochs() == []


def test_a_resume_needs_the_weights_no_more(trained: TrainResult, few: Path, tmp_path: Path) -> None:
    """Not even where nothing was saved yet: the same bytes come out."""
    file = tmp_path / "weights.safetensors"
    shutil.copy(trained.run.best / "model.safetensors", file)
    first = train(tmp_path, "run", data=str(few), weights=str(file), epochs=1, batch_size=20)
    best = read_best(first.run)[0]
    file.unlink()
    for checkpoint in (*saved_checkpoints(first.run), first.run.best / "model.safetensors"):
        checkpoint.unlink()
    first.run.write(first.record.model_copy(update={"status": "interrupted", "best": None}))
    job.resume(tmp_path, "run")
    again = read_best(first.run)[0]
    assert all(torch.equal(value, again.model[name]) for name, value in best.model.items())


def test_weights_of_photos_hand_on_how_they_were_prepared(tmp_path: Path) -> None:
    """Mean, deviation and crop share of timm's config.json are those of the run, and of the file that it exports."""
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18(num_classes=5).state_dict(), tmp_path / "w.pth")
    config = {"pretrained_cfg": {"mean": [0.4] * 3, "std": [0.2] * 3, "crop_pct": 0.8, "interpolation": "bicubic"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(5):
            Image.fromarray(rng.integers(0, 256, (90, 80, 3), np.uint8)).save(tmp_path / f"photos/{name}/{number}.png")
    heard = Heard()
    options = {"data": str(tmp_path / "photos"), "image_size": 32, "epochs": 1}
    result = train(tmp_path, "run", heard, model="resnet18", weights=str(tmp_path / "w.pth"), **options)
    info = read_best(result.run)[0].info
    assert (info.mean, info.std, info.stored) == ((0.4,) * 3, (0.2,) * 3, (40, 40))
    assert Preprocessing.of(info, "raw").resize == (40, 40)
    assert "trained on images resized bicubic; here they are bilinear" in heard.said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "none"}, "--weights none: there is no such file, and no run of that name"),
        ({"weights": "imagenett"}, "Did you mean imagenet?"),
        ({"weights": "traind"}, "Did you mean trained?"),
        ({"weights": "trained", "model": "resnet14"}, "run trained has the weights of resnet8, not of resnet14."),
        ({"weights": "trained", "model": "plain8"}, "run trained has the weights of resnet8, not of plain8."),
        ({"weights": "imagenet"}, "There are no ImageNet weights of resnet8, a CIFAR network. Use --model resnet18"),
        ({"weights": "trained", "shortcut": "B"}, "has shortcuts of type A, not B. Use --shortcut A, or remove it."),
        ({"weights": "trained", "data": "FEW", "expect": 90}, "which has 10 classes; the images have 4."),
        ({"expect": 90}, "--expect is about pretrained weights. Add --weights."),
        ({"weights": "trained", "expect": 90, "fit_all": True}, "--fit-all leaves none"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    options: dict[str, Any], message: str, trained: TrainResult, few: Path
) -> None:
    before = {path.name for path in trained.run.path.parent.iterdir()}
    options = options | ({"data": str(few)} if options.get("data") else {})
    with pytest.raises(UserError) as refused:
        train(trained.run.path.parent, "refused", **options)
    assert message in str(refused.value)
    assert {path.name for path in trained.run.path.parent.iterdir()} == before
