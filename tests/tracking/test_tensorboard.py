"""TensorBoard's files, read back by TensorBoard itself."""

from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from resnet_ops.run_records import Epoch
from resnet_ops.runs import Run
from resnet_ops.tracking.payload import scalars
from resnet_ops.tracking.tensorboard import FOLDER, EventFile
from resnet_ops.training.job import TrainResult
from resnet_ops.training.run_pictures import write_picture
from tests.test_runs import epoch, record


def read_curves(folder: Path | str) -> dict[str, list[tuple[int, float]]]:
    """Return each curve as TensorBoard would draw it: (step, value)."""
    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    reader.Reload()
    return {tag: [(e.step, e.value) for e in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def curves(epochs: list[Epoch]) -> dict[str, list[tuple[int, object]]]:
    """Return the curves that these epochs should have; event files hold single precision."""
    names = scalars(epochs[0])
    return {name: [(e.epoch, pytest.approx(scalars(e)[name], rel=1e-6)) for e in epochs] for name in names}


def test_every_run_leaves_its_curves_and_hyperparameters(trained: TrainResult) -> None:
    folder = trained.run.path / "tensorboard"
    drawn = read_curves(folder)
    assert drawn == curves(trained.run.epochs())
    assert {"loss/train", "loss/val", "error/train", "error/val", "lr", "images_per_second"} < set(drawn)
    assert len(drawn["loss/val"]) == trained.record.config.epochs
    assert [value for _, value in drawn["accuracy/val"]] == pytest.approx(
        [1 - value for _, value in drawn["error/val"]]
    )
    pictures = read_pictures(folder)
    assert [step for step, _ in pictures["images/train"]] == [1]
    assert pictures["confusion_matrix/val"][-1][0] == trained.record.best.epoch
    assert len(list(folder.iterdir())) == 1
    reader = EventAccumulator(str(folder))
    reader.Reload()
    content = reader.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    hyperparameters = metadata.parse_session_start_info_plugin_data(content).hparams
    assert hyperparameters["lr"].number_value == pytest.approx(0.1)
    assert hyperparameters["model"].string_value == "resnet8"
    assert "cluster" not in hyperparameters


def read_pictures(folder: Path) -> dict[str, list[tuple[int, bytes]]]:
    """Return each picture as TensorBoard would show it: (step, PNG)."""
    reader = EventAccumulator(str(folder), size_guidance={"images": 0})
    reader.Reload()
    return {tag: [(e.step, e.encoded_image_string) for e in reader.Images(tag)] for tag in reader.Tags()["images"]}


def test_the_confusion_matrix_of_each_best_epoch_is_written_once(tmp_path: Path) -> None:
    run = Run(tmp_path / "r")
    file, tag, done = EventFile(run, record()), "confusion_matrix/val", [epoch_of(n, 1.0) for n in range(1, 5)]
    for best in (1, 1, 3):  # the fourth is no better, and was written late
        write_picture(run, "confusion", Image.new("RGB", (best, 2)), best)
        file.update(done[: best + 1])
        file.update(done[: best + 1])
    with Image.open(run.picture_file("confusion")) as last:
        assert last.size == (3, 2)
    pictures = read_pictures(run.path / FOLDER)
    assert [step for step, _ in pictures[tag]] == [1, 3]
    assert pictures[tag][-1][1] == run.picture_file("confusion").read_bytes()
    write_picture(run, "confusion", Image.new("RGB", (9, 9)), 9)  # of epochs that are trained anew
    file.update(done)
    assert [step for step, _ in read_pictures(run.path / FOLDER)[tag]] == [1, 3]
    file.close()


def epoch_of(number: int, val_loss: float) -> Epoch:
    return epoch(number).model_copy(update={"val_loss": val_loss})


@pytest.mark.parametrize("same_process", [True, False])
def test_an_epoch_that_is_trained_anew_leaves_no_trace(tmp_path: Path, same_process: bool) -> None:
    run = Run(tmp_path / "r")
    before, after = (
        [epoch_of(n, 1.0) for n in range(1, 6)],
        [*(epoch_of(n, 1.0) for n in (1, 2)), epoch_of(3, 2.0)],
    )
    first = EventFile(run, record())
    first.update(before[:2])
    first.update(before)
    foreign = run.path / FOLDER / "events.out.tfevents.1.somebody"
    foreign.touch()
    reader = EventAccumulator(str(run.path / FOLDER))
    reader.Reload()
    assert read_curves(run.path / FOLDER) == curves(before)

    second = first if same_process else EventFile(run, record())  # its process was killed, or it was not
    second.update(after[:2])
    assert read_curves(run.path / FOLDER) == curves(after[:2])
    second.update(after)
    second.close()
    assert read_curves(run.path / FOLDER) == curves(after)
    reader.Reload()  # a TensorBoard that was open all the time
    assert [(e.step, e.value) for e in reader.Scalars("loss/val")] == [(1, 1.0), (2, 1.0), (3, 2.0)]
    for _ in range(3):
        again = EventFile(run, record())
        again.update(after)
        again.close()
    assert foreign.exists()
    assert len(list((run.path / FOLDER).iterdir())) == 3
