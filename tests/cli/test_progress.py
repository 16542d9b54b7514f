"""The progress of a training: when its duration is estimated, what is hinted, and how wide the bar is."""

import importlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress

from resnet_ops.config import TrainConfig
from tests.reporting import samples
from tests.test_runs import record

progress, data = (importlib.import_module(f"resnet_ops.cli.{name}") for name in ("progress", "data"))
PHOTOS = record().data.model_copy(update={"height": 224, "width": 224, "channels": 3})
Show = Callable[..., str]


@pytest.fixture
def show(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Show:
    """Show steps that each take some seconds, of a run of 30 epochs of 40 steps; return what is printed."""

    def run(steps: int, step_s: float, given: tuple[str, ...] = (), **update: object) -> str:
        shown = progress.TrainingProgress(given)
        shown.record = record(config=TrainConfig(epochs=30), data=PHOTOS).model_copy(update=update)
        for step in range(1, steps + 1):
            monkeypatch.setattr(progress.time, "monotonic", lambda step=step: step * step_s)
            shown.progress({"epoch": 1, "step": step, "steps": 40, "images_per_second": 8.0, "train_loss": 1.0})
        return capsys.readouterr().err

    return run


def test_slow_steps_are_estimated_after_three_of_them(show: Show) -> None:
    assert "about" not in show(3, 5.0)  # two since the first one that was seen
    assert "by the first 3 steps" in show(4, 5.0)
    assert "about" not in show(10, 0.5)
    assert "by the first 10 steps" in show(11, 0.5)


def test_a_long_training_on_a_cpu_is_told_how_to_take_less(show: Show) -> None:
    hint = "hint: --image-size 128 --epochs 10 takes about 1/9 of it; Ctrl-C saves a checkpoint, --resume continues"
    assert hint in show(4, 5.0)  # 100 minutes
    assert "hint: --epochs 10 takes about 1/3 of it" in show(4, 5.0, given=("image_size",))
    assert "hint: --image-size 128 takes about 1/3 of it" in show(4, 5.0, given=("epochs",))
    assert "hint" not in show(4, 5.0, given=("epochs", "image_size"))
    assert "hint" not in show(11, 0.9)  # 18 minutes
    assert "hint" not in show(4, 5.0, device="cuda")
    assert "hint" not in show(4, 5.0, data=PHOTOS.model_copy(update={"height": 128, "width": 128}))


@pytest.mark.parametrize("bar", [progress.TrainingProgress().bar, data._progress()])
def test_the_bar_leaves_room_for_what_the_terminal_adds_at_ctrl_c(bar: Progress) -> None:
    bar.add_task("Looking for images", total=None, share="", numbers="")
    console = Console(width=progress.err.width, force_terminal=True)
    lines = console.render_lines(bar.get_renderable(), pad=False)
    assert 0 < max(sum(segment.cell_length for segment in line) for line in lines) <= progress.err.width - 2


def test_a_search_is_estimated_by_the_steps_of_its_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """12 trials of 4 epochs each: long before one of them ends."""
    running = [samples.trial(number, "resnet8", [0.5], status="running") for number in (1, 2)]
    search = samples.search(tmp_path / "search", *running, data=PHOTOS)
    shown = progress.SearchProgress()
    shown.search, shown.record = search, search.read()

    def rendered(seconds: float, step: int) -> str:
        for trial, _ in running:
            search.trial_run(trial).write_progress({"epoch": 2, "step": step, "steps": 40})
            shown.trial_changed(trial)
        monkeypatch.setattr(progress.time, "monotonic", lambda: seconds)
        console = Console(width=100)
        with console.capture() as capture:
            console.print(shown._render())
        return capture.get()

    assert "left" not in rendered(0.0, 0)
    text = rendered(400.0, 20)  # an eighth of a training by each of two
    assert re.search(r"resnet8 +0\.1 +1/4 +38% +50\.00% +running", text)
    assert "0 of 12 trials done" in text
    assert "at most about 5 h 0 min left" in text  # 11.25 trainings, of which 0.25 took 400 s
    assert "hint: --image-size 128 takes about 1/3 of it" in text
