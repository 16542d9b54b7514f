"""The learning rate as a function of the step: nothing to save, nothing to restore."""

import math

from resnet_ops.config import TrainConfig
from resnet_ops.recipe_config import parse_milestones

WARM_UP = 0.3  # share of the steps in which the cycle rises
START = 1 / 25  # of the peak
END = START / 1e4  # of the peak
CONSTANT = 0.1  # of the peak, in a constant warm-up (He et al. 2015, sec. 4.2, of ResNet-110)


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """Rate of step `step` of `steps`, counted from 0.

    one-cycle: as torch's OneCycleLR with its defaults (Smith and Topin 2017).
    steps: lower by `lr_decay` from each milestone on (He et al. 2015, sec. 4.2: a tenth from 32k
    and 48k of 64k); milestones are counted from the first step, warm-up or not.
    cosine: half a cosine from the end of the warm-up to the last step (Loshchilov and Hutter 2016).
    """
    if config.schedule == "one-cycle":
        return config.lr * _one_cycle(step, steps)
    warmup = config.warmup_steps or int(config.warmup_ratio * steps)
    if step < warmup:
        linear = (step + 1) / (warmup + 1)
        return config.lr * (linear if config.warmup == "linear" else CONSTANT)
    if config.schedule == "cosine":
        return config.lr * _cosine(1, 0, (step - warmup) / (steps - warmup))
    passed = sum(step >= share * steps for share in parse_milestones(config.milestones))
    return config.lr * config.lr_decay**passed


def _one_cycle(step: int, steps: int) -> float:
    top = max(WARM_UP * steps - 1, 1e-9)
    if step <= top:
        return _cosine(START, 1, step / top)
    return _cosine(1, END, (step - top) / max(steps - 1 - top, 1e-9))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * min(share, 1.0)))
