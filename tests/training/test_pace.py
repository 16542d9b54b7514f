"""When checkpoints within an epoch are due."""

import itertools

from resnet_ops.config import TrainConfig
from resnet_ops.training.distributed import ProcessGroup
from resnet_ops.training.session import SaveSchedule


def test_steps_are_counted_from_the_runs_beginning() -> None:
    for begin in (1, 5):  # wherever a run is resumed, the same steps are saved
        schedule = SaveSchedule(ProcessGroup(), every_steps=4, every_s=None)
        assert [step for step in range(begin, 14) if schedule.is_due(step)] == [s for s in (4, 8, 12) if s >= begin]


def test_without_an_interval_none_is_due() -> None:
    schedule = SaveSchedule(ProcessGroup(), *TrainConfig().checkpoint_interval)
    assert not any(schedule.is_due(step) for step in range(1, 100))


def test_seconds_become_steps_by_the_clock() -> None:
    now = [0.0]
    schedule = SaveSchedule(
        ProcessGroup(), *TrainConfig(checkpoint_every="10s").checkpoint_interval, clock=lambda: now[0]
    )
    due = []
    for step in range(1, 200):
        now[0] += 0.25 if step < 100 else 0.5  # training becomes slower
        if schedule.is_due(step):
            due.append(now[0])
    assert due[:2] == [10, 20]
    assert all(5 <= later - earlier <= 20 for earlier, later in itertools.pairwise(due))
    assert due[-1] - due[-2] == 10
