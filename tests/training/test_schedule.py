"""The schedules are torch's own, as functions of the step."""

import pytest
import torch
from torch.optim.lr_scheduler import MultiStepLR, OneCycleLR

from resnet_ops.config import TrainConfig
from resnet_ops.training.schedule import learning_rate


def rates(scheduler: torch.optim.lr_scheduler.LRScheduler, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("steps", [10, 330, 1001])
def test_one_cycle_is_torchs(steps: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    theirs = rates(OneCycleLR(optimizer, max_lr=0.4, total_steps=steps), steps - 1)
    config = TrainConfig.of(lr=0.4, schedule="one-cycle")
    ours = [learning_rate(config, step, steps) for step in range(steps)]
    assert ours[:-1] == pytest.approx(theirs, rel=1e-9)
    assert ours[-1] == pytest.approx(0.4 / 25 / 1e4)


@pytest.mark.parametrize("steps", [64_000, 7])
def test_steps_are_the_papers(steps: int) -> None:
    config = TrainConfig.of(lr=0.1, schedule="steps")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    milestones = [-(-steps // 2), -(-steps * 3 // 4)]  # 32k and 48k of 64k
    theirs = rates(MultiStepLR(optimizer, milestones), steps)
    assert [learning_rate(config, step, steps) for step in range(steps)] == pytest.approx(theirs)


@pytest.mark.parametrize("schedule", ["one-cycle", "steps"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_short_trainings_have_a_rate_at_every_step(schedule: str, steps: int) -> None:
    config = TrainConfig.of(lr=0.1, schedule=schedule)
    assert all(0 < learning_rate(config, step, steps) <= 0.1 for step in range(steps))
