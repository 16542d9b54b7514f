"""TensorBoard's files, read back by TensorBoard itself."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from resnet_ops.run_records import Epoch
from resnet_ops.runs import Run
from resnet_ops.tracking.payload import scalars
from resnet_ops.tracking.tensorboard import FOLDER, EventFile
from resnet_ops.training.job import TrainResult
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
    reader = EventAccumulator(str(folder))
    reader.Reload()
    content = reader.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    hyperparameters = metadata.parse_session_start_info_plugin_data(content).hparams
    assert hyperparameters["lr"].number_value == pytest.approx(0.1)
    assert hyperparameters["model"].string_value == "resnet8"
    assert "cluster" not in hyperparameters


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
