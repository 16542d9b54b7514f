"""The first lines of a training: they count the images that are used, and name what cannot be validated."""

import shutil
from pathlib import Path

import pytest

from resnet_ops.config import TrainConfig
from resnet_ops.data.discovery import absolute_paths
from resnet_ops.data.opening import open_source
from resnet_ops.data.sources import Source
from resnet_ops.run_records import RunRecord
from resnet_ops.runs import Run
from resnet_ops.training.defaults import explain_choices
from resnet_ops.training.image_preparation import decode_images
from resnet_ops.training.job import begin, resume, train
from resnet_ops.training.observer import Observer, Overview
from resnet_ops.training.overview import describe
from tests.data.samples import noise, write_class_folders
from tests.notes import Notes


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of 50 images, of which two are broken, and one of a single image."""
    images = noise(101)
    folder = tmp_path / "photos"
    write_class_folders(folder, {"cat": images[:50], "dog": images[50:100], "horse": images[100:]})
    for name in ("cat/03.png", "cat/04.png"):
        (folder / name).write_bytes(b"text")
    return folder


def prepared(config: TrainConfig) -> tuple[Source, list[str]]:
    observer = Notes()
    return decode_images(open_source(config), config, observer), observer.notes


def test_all_lines_count_the_images_that_are_used(photos: Path, tmp_path: Path) -> None:
    config = TrainConfig.of(data=str(photos), model="resnet20", batch_size=16)
    source, _ = prepared(config)
    images = source.record.train_images
    assert source.count_classes("train").sum() == images == len(source.load("train"))
    run = Run(tmp_path / "run")
    run.path.mkdir()
    rows = dict(describe(source, begin(run, config, source.record, 1, 1, "cpu")).rows)
    assert rows["data"].startswith(f"photos: {images} training")
    fewest, most = sorted(source.count_classes("train").tolist())[::2]
    assert f"{fewest} to {most} training images each" in rows["classes"]
    (batch,) = explain_choices(
        config.model_copy(update={"batch_size": 128, "flip": True}), config, source.record, "cpu"
    )
    assert batch.reason.startswith(f"{images} training images are too few")


class Overviews(Observer):
    """Keeps the rows that each start of a training shows."""

    def __init__(self) -> None:
        self.rows: list[dict[str, str]] = []

    def run_created(self, run: Run, record: RunRecord, overview: Overview | None = None) -> None:
        assert overview is not None
        self.rows.append(dict(overview.rows))


def test_a_resumed_training_counts_as_it_did_before(photos: Path, tmp_path: Path) -> None:
    """A copy of a run does so, too, and has the name of its folder from then on, also where a link leads there."""
    options = {"model": "resnet8", "name": "run", "runs_dir": tmp_path, "cpus_per_worker": 1}
    observer = Overviews()
    train(TrainConfig.of(data=str(photos), epochs=1, **options), observer=observer)
    copy = Run(shutil.copytree(tmp_path / "run", tmp_path / "copy"))
    (tmp_path / "link").symlink_to(copy.path)
    resume(tmp_path, "link", changes={"epochs": 2}, observer=observer)
    first, resumed = observer.rows
    assert (resumed["run"], copy.read().name, copy.read().config.name) == ("copy", "copy", "copy")
    assert resumed["data"] == first["data"]
    assert "79 training, 20 validation" in first["data"]


def test_classes_without_validation_images_are_named(photos: Path) -> None:
    config = TrainConfig.of(data=str(photos), model="resnet20")
    _, notes = prepared(config)
    assert "Not validated: horse: no validation images; add images, or remove the class." in notes
    _, notes = prepared(config.model_copy(update={"fit_all": True}))
    assert not [note for note in notes if "Not validated" in note]


def test_paths_lose_their_dots_unless_these_lead_elsewhere(photos: Path) -> None:
    (photos / "link").symlink_to("/usr/bin")
    for typed, meant in (("cat/../dog", "dog"), ("cat/../dog/*.png", "dog/*.png"), ("link/..", "link/..")):
        config = TrainConfig.of(data=f"{photos}/{typed}", cache_dir=photos / "cat/..")
        paths = absolute_paths(config)
        assert (paths["data"], paths["cache_dir"]) == (f"{photos}/{meant}", photos)
