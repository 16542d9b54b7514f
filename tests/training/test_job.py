"""A job of training: the options that a run may change when it is resumed."""

import json
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

from resnet_ops.config import TrainConfig
from resnet_ops.data.opening import open_source
from resnet_ops.errors import UserError
from resnet_ops.runs import Run
from resnet_ops.training import checkpoint as checkpoints
from resnet_ops.training import job
from tests.data.samples import noise, write_class_folders
from tests.notes import Notes
from tests.test_runs import record


def test_options_that_change_on_resume_are_validated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path / "r")
    run.path.mkdir()
    run.write(record(status="interrupted"))

    def allocate(config: TrainConfig, *_: object) -> NoReturn:
        raise UserError(f"{config.nodes.most} nodes, {config.max_failures} failures")

    monkeypatch.setattr(job, "allocate", allocate)
    with pytest.raises(UserError, match=r"^4 nodes, 3 failures$"):
        job.resume(tmp_path, "r", changes={"nodes": "2:4"})  # as typed
    with pytest.raises(UserError, match="--max-failures"):
        job.resume(tmp_path, "r", changes={"max_failures": -1})


def test_runs_that_chose_on_test_images_are_refused_with_the_way_to_choose_on_them_again(tmp_path: Path) -> None:
    images = tmp_path / "images"
    for part, count in (("train", 20), ("test", 5)):
        write_class_folders(images / part, {"a": noise(count, seed=count), "b": noise(count, seed=count + 1)})
    run = Run(tmp_path / "r")
    run.path.mkdir()
    # As the version that selected on test images wrote it: their files were those of the validation split.
    data = open_source(str(images)).record.model_copy(
        update={"fingerprint": "0" * 64, "val_images": 10, "test_images": 0}
    )
    config = TrainConfig.of(data=str(images), batch_size=8, crop_padding=0, flip=False, device="cpu")
    before = record(status="interrupted").model_copy(update={"config": config, "data": data})
    run.write(before)
    with pytest.raises(UserError, match=r"chose on the test images.*--val-data test chooses on the test images"):
        job.resume(tmp_path, "r")
    run.write(before.model_copy(update={"data": data.model_copy(update={"test_images": 10})}))
    with pytest.raises(UserError, match="differ from those r was trained on"):
        job.resume(tmp_path, "r")


def test_a_run_goes_on_beside_the_same_validation_images(tmp_path: Path) -> None:
    """Test images are not in the fingerprint, but without them twice as many are held out for validation."""
    images = tmp_path / "images"
    for part, count in (("train", 20), ("test", 5)):
        write_class_folders(images / part, {"a": noise(count, seed=count), "b": noise(count, seed=count + 1)})
    before = open_source(str(images))
    assert before.held_out_images is not None
    run = Run(tmp_path / "r")
    run.best.mkdir(parents=True)
    config = TrainConfig.of(data=str(images), batch_size=8, crop_padding=0, flip=False, device="cpu")
    run.write(record(status="interrupted").model_copy(update={"config": config, "data": before.record}))
    (run.best / "model.json").write_text(json.dumps({"held_out": before.held_out_images.model_dump()}))
    shutil.rmtree(images / "test")
    assert open_source(str(images)).record.fingerprint == before.record.fingerprint
    with pytest.raises(UserError, match="other validation images would be held out than r has begun with"):
        job.resume(tmp_path, "r")


def test_where_a_training_goes_on_is_counted_as_its_bar_and_files_are(trained: job.TrainResult, tmp_path: Path) -> None:
    run, notes = Run(Path(shutil.copytree(trained.run.path, tmp_path / "r"))), Notes()
    last = checkpoints.read(checkpoints.saved_checkpoints(run)[0])
    job._report_resume_point(run, notes)
    within = last.info.model_copy(update={"step": 3})
    checkpoints.save(run.checkpoints / within.file_name, within, {f"model/{n}": each for n, each in last.model.items()})
    job._report_resume_point(run, notes)
    epochs = trained.epochs
    assert within.file_name == f"epoch-{epochs + 1:04}-step-000003.safetensors"
    assert notes.notes == [f"Resuming after epoch {epochs}.", f"Resuming after step 3 of epoch {epochs + 1}."]
