"""When checkpoints within an epoch are due."""

import time

from resnet_ops.config import TrainConfig
from resnet_ops.training.loop import World
from resnet_ops.training.pace import PROBE_STEPS, Pace


def test_steps_are_counted_from_the_runs_beginning() -> None:
    for begin in (1, 5):  # wherever a run is resumed, the same steps are saved
        pace = Pace(World(), every_steps=4, every_s=None)
        assert [step for step in range(begin, 14) if pace.is_due(step)] == [s for s in (4, 8, 12) if s >= begin]


def test_without_an_interval_none_is_due() -> None:
    pace = Pace(World(), *TrainConfig().checkpoint_interval)
    assert not any(pace.is_due(step) for step in range(1, 100))


def test_seconds_become_steps_by_the_clock() -> None:
    pace = Pace(World(), *TrainConfig(checkpoint_every="1s").checkpoint_interval)
    due, started = [], time.monotonic()
    step = 0
    while time.monotonic() - started < 2.5:
        step += 1
        time.sleep(0.01)
        if pace.is_due(step):
            due.append(time.monotonic() - started)
    assert due[0] > PROBE_STEPS * 0.01
    assert len(due) == 2
    assert abs(due[0] - 1) < 0.4
    assert abs(due[1] - due[0] - 1) < 0.4
