"""A training ends early where it was told to, says so, and goes on to the bytes of one that was never stopped."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from resnet_ops.config import TrainConfig
from resnet_ops.data.augment import Augmentation
from resnet_ops.data.loader import DeviceImages, Loader
from resnet_ops.errors import UserError
from resnet_ops.models import build
from resnet_ops.run_records import Epoch, RunRecord
from resnet_ops.training import job
from resnet_ops.training.build import build_trainer
from resnet_ops.training.checkpoint import read
from resnet_ops.training.distributed import ProcessGroup
from resnet_ops.training.early_end import early_end, extend, foresee_cut
from resnet_ops.training.observer import Observer
from resnet_ops.training.schedule import learning_rate
from resnet_ops.training.trainer import Trainer
from tests.conftest import Ended
from tests.data.samples import noise, write_class_folders
from tests.test_runs import record


def epochs(*errors: float, seconds: float = 10) -> list[Epoch]:
    return [
        Epoch(epoch=number, step=number, train_loss=1, train_error=0.5, val_loss=1, val_error=error, lr=0.1,
              images_per_second=1, seconds=seconds)
        for number, error in enumerate(errors, 1)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "errors", "extended_after", "option"),
    [
        ({"patience": 2}, (0.5, 0.4), 0, None),
        ({"patience": 2}, (0.4, 0.4, 0.5), 0, "--patience 4"),  # as good is not better
        ({"patience": 2}, (0.4, 0.5, 0.3), 0, None),
        ({"patience": 2}, (0.4, 0.5, 0.5), 2, None),  # counted from where the run was given more
        ({"patience": 2}, (0.4, 0.5, 0.5, 0.5), 2, "--patience 4"),
        ({"patience": 2, "epochs": 3}, (0.4, 0.5, 0.5), 0, None),  # the last one anyway
        ({"max_time": "40s"}, (0.5, 0.5, 0.5), 0, None),
        ({"max_time": "39s"}, (0.5, 0.5, 0.5), 0, "--max-time 78s"),  # 10 s an epoch: the fourth would end at 40 s
        ({"max_time": "1s"}, (0.5,), 0, "--max-time 20s"),  # the first is always trained
        ({"target_accuracy": 57}, (0.5, 0.43), 0, "--target-accuracy 78.5"),
        ({"target_accuracy": 57}, (0.4301,), 0, None),
        ({}, (0.5,) * 9, 0, None),
    ],
)
def test_what_ends_a_training(
    options: dict[str, Any], errors: tuple[float, ...], extended_after: int, option: str | None
) -> None:
    end = early_end(TrainConfig.of(**{"epochs": 10, **options}), epochs(*errors), extended_after)
    assert (end and end.option) == option
    if end:
        (name, value), *_ = options.items()
        assert f"ended after epoch {len(errors)} of 10" in end.reason
        assert f"(--{name.replace('_', '-')} {value})" in end.reason


def test_a_schedule_that_will_be_cut_is_foreseen_once() -> None:
    config = TrainConfig.of(epochs=30, max_time="2m")
    for done in (1, 3):
        assert foresee_cut(config, epochs(*[0.5] * done)) is None
    assert foresee_cut(config, epochs(0.5, 0.5, seconds=4)) is None
    warning = foresee_cut(config, epochs(0.5, 0.5))
    assert warning is not None
    assert "About 12 of 30 epochs fit into --max-time 2m" in warning
    assert "--epochs 12" in warning


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"patience": 3, "fit_all": True}, "--patience needs validation images, and --fit-all"),
        ({"target_accuracy": 95, "fit_all": True}, "--target-accuracy needs validation images"),
        ({"patience": 0}, "--patience should be greater than or equal to 1"),
        ({"target_accuracy": 0.95}, "--target-accuracy must be in percent, such as 95"),
        ({"expect": 0.95, "weights": "imagenet"}, "--expect must be in percent, such as 95"),
        ({"max_time": "30"}, "--max-time must be a time, such as 90s, 30m or 8h"),
    ],
)
def test_ends_that_cannot_come_are_refused(options: dict[str, Any], cause: str) -> None:
    with pytest.raises(UserError) as error:
        TrainConfig.of(**options)
    assert cause in error.value.cause


def trainer(**options: Any) -> Trainer:
    generator = torch.Generator().manual_seed(1)
    split = DeviceImages(
        torch.randint(0, 256, (24, 8, 8, 1), dtype=torch.uint8, generator=generator), torch.arange(24) % 2
    )
    config = TrainConfig.of(model="resnet8", batch_size=8, **options)
    torch.manual_seed(0)
    loader = Loader(split, replace(split), (0.5,), (0.2,), 8, Augmentation(), 0)
    return build_trainer(
        config, build("resnet8", num_classes=2, in_channels=1), loader, ProcessGroup(), torch.device("cpu")
    )


def test_patience_counts_the_epochs_without_a_better_one() -> None:
    whole = [e for e in trainer(epochs=12, lr=0.5, schedule="steps").run(lambda _: None) if e]
    best, expected = whole[0].score("top1"), None
    waited = 0
    for number, epoch in enumerate(whole[1:], 2):
        best, waited = max(best, epoch.score("top1")), 0 if epoch.score("top1") > best else waited + 1
        if waited == 2:
            expected = number
            break
    assert expected is not None, "the test needs a training that gets worse"
    assert expected < 12
    patient = trainer(epochs=12, lr=0.5, schedule="steps", patience=2)
    ended = [e for e in patient.run(lambda _: None) if e]
    assert [e.val_loss for e in ended] == [e.val_loss for e in whole[:expected]]
    assert patient.ended is not None


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine"])
def test_a_schedule_that_depends_on_the_length_begins_anew(schedule: str) -> None:
    extended = trainer(epochs=7, schedule=schedule)
    extended.extended_after = 3
    steps = extended.loader.steps
    fresh = TrainConfig.of(schedule=schedule)
    expected = [learning_rate(fresh, step, 4 * steps) for step in range(4 * steps)]
    assert [extended.learning_rate_of(step) for step in range(3 * steps, 7 * steps)] == expected


def planned(**options: Any) -> RunRecord:
    made = record()
    images = made.data.model_copy(update={"train_images": 640})
    return made.model_copy(update={"config": TrainConfig.of(batch_size=64, **options), "data": images})


@pytest.mark.parametrize("options", [{}, {"warmup_ratio": 0.07}, {"warmup_steps": 11}, {"lr_decay": 1}])
def test_milestones_and_warm_up_stay_at_their_steps(options: dict[str, Any]) -> None:
    before = planned(epochs=7, schedule="steps", milestones="1/3,0.75", **options)
    after = extend(before, 11, done=7)
    rates = [learning_rate(before.config, step, 70) for step in range(70)]
    assert [learning_rate(after.config, step, 110) for step in range(110)] == rates + rates[-1:] * 40
    # What is recorded is what one would type for a whole run.
    typed = after.config.model_dump()
    assert TrainConfig.of(**typed) == after.config
    if not options:
        assert after.config.milestones == f"{Fraction(7, 33)},{Fraction(21, 44)}"
        assert "milestones stay at epochs 2.33333, 5.25" in after.meaning


def test_a_warm_up_that_is_a_share_keeps_its_steps_where_floats_round() -> None:
    before = planned(epochs=20, schedule="steps", warmup_ratio=0.29)  # of 200 steps 57.99..., and 58 of 20 epochs of 10
    after = extend(before, 30, done=20)
    for step in range(200):
        assert learning_rate(after.config, step, 300) == learning_rate(before.config, step, 200)


def test_fewer_epochs_and_a_warm_up_without_room_are_refused() -> None:
    with pytest.raises(UserError, match="planned for 7 epochs, and 5 are done") as error:
        extend(planned(epochs=7), 6, done=5)
    assert "--epochs 8 or more" in str(error.value)
    cosine = planned(epochs=7, schedule="cosine", warmup_steps=25)
    with pytest.raises(UserError, match="warm-up of 25 steps does not fit into 2 epochs of 10") as error:
        extend(cosine, 9, done=7)
    assert "--epochs 11 or more" in str(error.value)
    assert extend(cosine, 11, done=7).after == 7


class Listener(Observer):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def warn(self, message: str) -> None:
        self.heard.append(message)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_class_folders(folder, {"a": noise(30, seed=1), "b": noise(30, seed=2)})
    return folder


def test_a_run_that_ended_early_goes_on_to_the_bytes_of_one_planned_so_long(
    images: Path, tmp_path: Path, cli: Callable[..., Ended]
) -> None:
    options = {
        "data": str(images), "model": "resnet8", "runs_dir": tmp_path, "batch_size": 16, "schedule": "steps",
        "lr": 0.05, "ema": 0.9, "warmup_ratio": 0.2, "sampler": "balanced",
    }  # fmt: skip
    ended = job.train(TrainConfig.of(name="r", epochs=3, target_accuracy=2, **options))
    assert (ended.status, ended.epochs) == ("finished", 1)
    assert "ended after epoch 1 of 3" in ended.reason
    assert ended.run.read().reason == ended.reason
    listener = Listener()
    assert job.resume(tmp_path, "r", observer=listener).epochs == 1
    assert any("r is finished" in line and "--target-accuracy 51" in line for line in listener.heard), listener.heard
    with pytest.raises(UserError, match=r"would train no further.* --target-accuracy 51 --epochs 5"):
        job.resume(tmp_path, "r", changes={"epochs": 5})
    with pytest.raises(UserError, match="--patience should be"):
        job.resume(tmp_path, "r", changes={"patience": -1})

    extended = cli("train", "--resume", "r", "--epochs", 5, "--target-accuracy", 100, "--runs-dir", tmp_path, "--json")
    assert extended.code == 0, extended.err
    assert "5 epochs instead of 3: milestones stay at epochs 1.5, 2.25" in extended.err
    assert extended.json["epochs"] == 5
    assert extended.json["reason"] == ""
    kept = ended.run.read()
    assert (kept.extended_after, kept.config.milestones) == (1, "3/10,9/20")
    whole = job.train(kept.config.model_copy(update={"name": "whole"}))
    one, other = (read(run.checkpoints / "epoch-0005.safetensors") for run in (ended.run, whole.run))
    for part in ("model", "optimizer", "trained"):
        ours, theirs = getattr(one, part), getattr(other, part)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), part
    assert [e.val_loss for e in ended.run.epochs()] == [e.val_loss for e in whole.run.epochs()]


def test_time_spent_before_counts(images: Path, tmp_path: Path) -> None:
    config = TrainConfig.of(
        data=str(images), model="resnet8", runs_dir=tmp_path, name="t", batch_size=16, epochs=5000, max_time="1s"
    )
    cut = job.train(config)
    spent = [epoch.seconds for epoch in cut.run.epochs()]
    assert sum(spent) + spent[-1] > 1
    assert sum(spent[:-1]) + spent[-2] <= 1
    assert "cuts the learning rate schedule short" in cut.reason
    assert any("fit into --max-time 1s" in event.what for event in cut.run.events())
    more = job.resume(tmp_path, "t", changes={"max_time": "2s", "epochs": 6000})
    assert len(spent) < more.epochs
    assert sum(epoch.seconds for epoch in more.run.epochs()) <= 2.2
    steps = -(-more.record.data.train_images // 16)
    anew = learning_rate(cut.record.config, steps - 1, (6000 - len(spent)) * steps)
    assert more.run.epochs()[len(spent)].lr == pytest.approx(anew)
    assert any("one-cycle schedule, which was made for 5000, begins anew" in e.what for e in more.run.events())
