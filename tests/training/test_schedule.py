"""The schedules are torch's own, as functions of the step; warm-ups fit into the training."""

import contextlib
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR, OneCycleLR

from resnet_ops.config import TrainConfig
from resnet_ops.errors import UserError
from resnet_ops.recipes import reading
from resnet_ops.study.plan import WARM_UP
from resnet_ops.training.preflight import check_training
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


def test_milestones_and_decay_can_be_others() -> None:
    config = TrainConfig.of(lr=0.1, schedule="steps", milestones="1/3,2/3", lr_decay=0.5)
    assert [learning_rate(config, step, 9) for step in range(9)] == [0.1] * 3 + [0.05] * 3 + [0.025] * 3


def test_cosine_is_torchs() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    theirs = rates(CosineAnnealingLR(optimizer, T_max=50), 50)
    config = TrainConfig.of(lr=0.1, schedule="cosine")
    assert [learning_rate(config, step, 50) for step in range(50)] == pytest.approx(theirs)
    for warmup in ({"warmup_steps": 7}, {"warmup_ratio": 7.9 / 57}, {"warmup_steps": 7, "warmup_ratio": 0.5}):
        warm = config.model_copy(update=warmup)
        assert [learning_rate(warm, step, 57) for step in range(7, 57)] == pytest.approx(theirs)


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        # Linear: quarters of the way up. Constant: a tenth, as the paper's ResNet-110. Milestones stay where they are.
        ("steps", "linear", [0.1, 0.2, 0.3, 0.4, 0.04, 0.04, 0.004, 0.004]),
        ("steps", "constant", [0.04, 0.04, 0.04, 0.4, 0.04, 0.04, 0.004, 0.004]),
        ("cosine", "linear", [0.1, 0.2, 0.3, 0.4, 0.361803, 0.261803, 0.138197, 0.038197]),
    ],
)
def test_warming_up(schedule: str, warmup: str, expected: list[float]) -> None:
    config = TrainConfig.of(lr=0.4, schedule=schedule, warmup=warmup, warmup_steps=3)
    assert [learning_rate(config, step, 8) for step in range(8)] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", reading.recipe_names())
@pytest.mark.parametrize("deepest", [False, True])
@pytest.mark.parametrize("steps", [30, 200, 5_000])
def test_every_recipe_reaches_its_peak_however_short_the_training(name: str, deepest: bool, steps: int) -> None:
    """With the paper's warm-up of ResNet-110 too, where the schedule has one."""
    config = reading.configure(recipe=name)
    if deepest and config.schedule != "one-cycle":
        config = config.model_copy(update=WARM_UP)
    rates = [learning_rate(config, step, steps) for step in range(steps)]
    assert max(rates) == pytest.approx(config.lr, rel=1e-3)
    assert rates.index(max(rates)) < steps / 3
    assert rates[-1] < config.lr / 50


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup_ratio": 0.5}, r"--warmup-ratio 0.5 does not end before the first milestone, 1/2 of"),
        ({"warmup_ratio": 0.1, "schedule": "one-cycle"}, r"--warmup-ratio 0.1: the one-cycle schedule includes"),
        ({"warmup_ratio": 1.0, "schedule": "cosine"}, r"--warmup-ratio"),
    ],
)
def test_a_warm_up_that_never_reaches_the_peak_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainConfig.of(**{"schedule": "steps"} | options)


# 1,438 digits in batches of 719 are 2 steps an epoch.
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup_steps": 20}, r"--warmup-steps 20: the whole training is 20 steps .10 epochs of 2.*--warmup-ratio 0"),
        ({"warmup_steps": 10, "schedule": "steps"}, r"10 epochs of 2\), and its first milestone is 1/2 of it"),
        ({"checkpoint_every": "20"}, r"--checkpoint-every 20: the whole training is 20 steps.*Use fewer steps"),
        ({"warmup_steps": 19}, None),
        ({"warmup_steps": 9, "schedule": "steps"}, None),
        ({"checkpoint_every": "19"}, None),
        ({"checkpoint_every": "20m"}, None),
    ],
)
def test_what_is_counted_in_steps_fits_into_the_training(options: dict[str, Any], message: str | None) -> None:
    config = TrainConfig.of(**{"schedule": "cosine", "epochs": 10, "batch_size": 719} | options)
    with pytest.raises(UserError, match=message) if message else contextlib.nullcontext():
        check_training(config, "cpu")
    check_training(config, "cpu", resumes=True)  # a run of a version that allowed it goes on


@pytest.mark.parametrize("schedule", ["one-cycle", "steps", "cosine"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_short_trainings_have_a_rate_at_every_step(schedule: str, steps: int) -> None:
    config = TrainConfig.of(lr=0.1, schedule=schedule)
    assert all(0 < learning_rate(config, step, steps) <= 0.1 for step in range(steps))
