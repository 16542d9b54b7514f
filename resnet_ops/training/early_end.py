"""When a training ends before its last epoch, and how one is given more epochs; imports no torch.

That it ends follows from its configuration and the epochs done alone, so there is nothing to save or restore.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from resnet_ops.config import TrainConfig
from resnet_ops.errors import UserError
from resnet_ops.formatting import percent
from resnet_ops.recipe_config import parse_milestones, steps_per_epoch
from resnet_ops.run_records import Epoch, RunRecord

ROUNDING = 1e-9  # of accuracies: 1 - 0.43 is less than 0.57


@dataclass(frozen=True)
class EarlyEnd:
    """An end before the last epoch: the `reason`, for users, and the `option` with which a resumed run goes on."""

    reason: str
    option: str


def early_end(config: TrainConfig, epochs: Sequence[Epoch], extended_after: int = 0) -> EarlyEnd | None:
    """Return why the training ends with the last of the epochs done, if that is not its last one anyway.

    Args:
        config: What is to be trained.
        epochs: The epochs done.
        extended_after: Epochs done when it was given more: patience counts from there.
    """
    if not epochs or epochs[-1].epoch >= config.epochs:
        return None
    last, cut = epochs[-1], f"ended after epoch {epochs[-1].epoch} of {config.epochs}"
    target, accuracy = config.target_accuracy, last.val_accuracy
    if target is not None and accuracy is not None and accuracy >= target / 100 - ROUNDING:
        reason = f"{cut}, which reached {percent(accuracy)} (--target-accuracy {target:g})"
        return EarlyEnd(reason, f"--target-accuracy {(target + 100) / 2:g}")
    if config.patience is not None:
        best = max(epochs, key=lambda epoch: epoch.score(config.select)).epoch
        if last.epoch - max(best, extended_after) >= config.patience:
            reason = f"{cut}, as none was better than epoch {best} (--patience {config.patience})"
            return EarlyEnd(reason, f"--patience {2 * config.patience}")
    if config.max_time_s is not None:
        spent_s = sum(epoch.seconds for epoch in epochs)
        if spent_s + last.seconds > config.max_time_s:
            is_cut = config.schedule != "steps" or config.lr_decay != 1
            schedule = ", which cuts the learning rate schedule short" if is_cut else ""
            reason = f"{cut}{schedule}: another one would not have been done in time (--max-time {config.max_time})"
            times = max(2, math.ceil((spent_s + last.seconds) / config.max_time_s))  # in which another one is done
            return EarlyEnd(reason, f"--max-time {times * int(str(config.max_time)[:-1])}{str(config.max_time)[-1]}")
    return None


def foresee_cut(config: TrainConfig, epochs: Sequence[Epoch]) -> str | None:
    """Return a warning after the second epoch, the first that is like all others, if `max_time` is too short."""
    if config.max_time_s is None or len(epochs) != 2 or config.epochs <= 2:
        return None
    first, second = epochs
    fitting = 1 + int((config.max_time_s - first.seconds) / max(second.seconds, 1e-9))
    if fitting >= config.epochs:
        return None
    fitting = max(fitting, 2)
    return (
        f"About {fitting} of {config.epochs} epochs fit into --max-time {config.max_time}: the learning rate schedule, "
        f"which is planned for all of them, will be cut. --epochs {fitting} would have a whole one."
    )


@dataclass(frozen=True)
class Extension:
    """A run's configuration with more epochs, after how many done ones it got them, and what that means, in a line."""

    config: TrainConfig
    after: int
    meaning: str


def extend(record: RunRecord, epochs: int, done: int) -> Extension:
    """Plan a run for more epochs than it was.

    With the schedule `steps`, milestones and warm-up stay where they were, in steps: every step is that of a run with
    the configuration returned. The others' learning rates depend on the length at each step, so they begin anew.

    Args:
        record: The run.
        epochs: What it is to have in all.
        done: Those that are done.

    Raises:
        UserError: These are fewer than planned, or a new warm-up does not fit.
    """
    config, planned = record.config, record.config.epochs
    if epochs < planned:
        raise UserError(
            f"--epochs {epochs}: {record.name} is planned for {planned} epochs, and {done} are done.",
            f"A run that is resumed can only be given more: --epochs {planned + 1} or more.",
        )
    steps = steps_per_epoch(record.data.train_images, config.batch_size)
    update: dict[str, Any] = {"epochs": epochs}
    if config.schedule != "steps":
        if config.warmup_steps >= (epochs - done) * steps:
            raise UserError(
                f"--epochs {epochs}: the {config.schedule} schedule begins anew, and its warm-up of "
                f"{config.warmup_steps:,} steps does not fit into {epochs - done} epochs of {steps:,}.",
                f"Use --epochs {done + config.warmup_steps // steps + 2} or more.",
            )
        meaning = (
            f"{epochs} epochs instead of {planned}: the {config.schedule} schedule, which was made for {planned}, "
            f"begins anew after epoch {done}, for {epochs - done}; a run of {epochs} from the start would be another."
        )
        return Extension(config.model_copy(update=update), done, meaning)
    if config.warmup_ratio and not config.warmup_steps:
        update |= {"warmup_steps": int(config.warmup_ratio * (planned * steps)), "warmup_ratio": 0.0}
    milestones = [share * planned for share in parse_milestones(config.milestones)]
    if config.lr_decay != 1:
        update["milestones"] = ",".join(str(Fraction(milestone, epochs)) for milestone in milestones)
    where = ", ".join(f"{float(milestone):g}" for milestone in milestones)
    kept = f"milestones stay at epochs {where}" if config.lr_decay != 1 else "the learning rate stays the same"
    meaning = f"{epochs} epochs instead of {planned}: {kept}, as in a run planned so from the start."
    return Extension(config.model_copy(update=update), done, meaning)
