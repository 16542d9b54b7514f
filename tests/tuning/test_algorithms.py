"""Early stopping by Ray Tune's own schedulers, fed with results in a chosen order."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler

from resnet_ops.errors import UserError
from resnet_ops.tuning.algorithms import EPOCH, METRIC, SHARE, build_scheduler
from resnet_ops.tuning.config import TuneConfig
from resnet_ops.tuning.preflight import longest_training
from resnet_ops.tuning.space import read_space


def schedule(longest: int, **options: Any) -> TrialScheduler:
    config = TuneConfig.of(**options)
    scheduler = build_scheduler(config, read_space(config), longest)
    scheduler.set_search_properties(METRIC, "max")
    return scheduler


@dataclass(frozen=True)
class NamedTrial:
    """All that the schedulers know of a trial."""

    trial_id: str


class FedTrial:
    """A trial of some epochs whose accuracies are reported by hand."""

    def __init__(self, scheduler: TrialScheduler, name: str, epochs: int) -> None:
        self.scheduler, self.epochs, self.done = scheduler, epochs, 0
        self.trial: Any = NamedTrial(name)
        self.controller: Any = SimpleNamespace(get_live_trials=list)
        scheduler.on_trial_add(self.controller, self.trial)

    def report(self, accuracy: float) -> str:
        self.done += 1
        result = {EPOCH: self.done, SHARE: self.done / self.epochs, METRIC: accuracy}
        return self.scheduler.on_trial_result(self.controller, self.trial, result)


def test_a_long_trial_is_not_stopped_for_what_short_ones_have_at_the_same_epoch() -> None:
    scheduler = schedule(8)
    short, long = FedTrial(scheduler, "short", 2), FedTrial(scheduler, "long", 8)
    assert [short.report(0.8), short.report(0.9)] == ["CONTINUE", "STOP"]  # at its end
    assert [long.report(accuracy) for accuracy in (0.1, 0.3, 0.5)] == ["CONTINUE"] * 3
    assert long.report(0.7) == "STOP"  # half of its own, where the short one had 0.8
    better = FedTrial(scheduler, "better", 8)
    assert [better.report(accuracy) for accuracy in (0.1, 0.3, 0.5, 0.85)] == ["CONTINUE"] * 4


@pytest.mark.parametrize("epochs", [3, 7, 12, 30])
def test_trials_of_one_length_are_compared_at_the_grace_period_and_each_time_it_doubles(epochs: int) -> None:
    for grace in range(1, epochs + 1):
        scheduler = schedule(epochs, grace=grace)
        for number in range(4):  # all of them the best so far, so that none is stopped early
            trial = FedTrial(scheduler, f"good{number}", epochs)
            assert all(trial.report(0.9 + number / 100) == "CONTINUE" for _ in range(epochs - 1))
        rungs = [n for n in (grace * 2**k for k in range(10)) if n < epochs]
        for rung in rungs:
            trial = FedTrial(scheduler, f"bad{rung}", epochs)
            ends = [trial.report(0.99 if n < rung else 0.0) for n in range(1, rung + 1)]
            assert ends == [*["CONTINUE"] * (rung - 1), "STOP"]


def test_medians_are_of_the_same_share_of_training() -> None:
    scheduler = schedule(8, scheduler="median", grace=2)
    for number in range(3):
        short = FedTrial(scheduler, f"short{number}", 4)
        assert [short.report(accuracy) for accuracy in (0.7, 0.8, 0.9, 0.9)] == ["CONTINUE"] * 4
    long = FedTrial(scheduler, "long", 8)
    assert [long.report(accuracy) for accuracy in (0.5, 0.72, 0.75)] == ["CONTINUE"] * 3
    assert long.report(0.74) == "CONTINUE"  # its best, 0.75, equals the others' mean at half of their epochs
    assert long.report(0.6) == "CONTINUE"
    assert FedTrial(scheduler, "bad", 8).report(0.1) == "CONTINUE"  # in the grace period
    bad = FedTrial(scheduler, "worse", 8)
    assert [bad.report(0.1), bad.report(0.1)] == ["CONTINUE", "STOP"]


def test_the_longest_trial_is_that_of_the_longest_recipe(tmp_path: Any) -> None:
    for name, epochs in (("a", 2), ("b", 8)):
        (tmp_path / f"{name}.toml").write_text(f"epochs = {epochs}\n")
    recipes = f"recipe={tmp_path}/a.toml,{tmp_path}/b.toml"
    space = read_space(TuneConfig.of(), [recipes])
    assert longest_training(space, {}) == 8
    assert longest_training(space, {"epochs": 5}) == 5  # given for all
    assert longest_training(read_space(TuneConfig.of()), {"recipe": f"{tmp_path}/a.toml"}) == 2
    assert longest_training(read_space(TuneConfig.of()), {}) == 30
    config = TuneConfig.of(scheduler="pbt", depths="8")
    with pytest.raises(UserError, match="recipes differ in their epochs"):
        build_scheduler(config, read_space(config, [recipes]), 8)
