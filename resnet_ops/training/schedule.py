"""The learning rate as a function of the step: nothing to save, nothing to restore."""

import math

from resnet_ops.config import TrainConfig

WARM_UP = 0.3  # share of the steps in which the cycle rises
START = 1 / 25  # of the peak
END = START / 1e4  # of the peak


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """Rate of step `step` of `steps`, counted from 0.

    one-cycle: as torch's OneCycleLR with its defaults (Smith and Topin 2017).
    steps: a tenth from half of the steps on, a hundredth from three quarters (He et al. 2015,
    sec. 4.2: 32k and 48k of 64k).
    """
    if config.schedule == "steps":
        return config.lr * (1 if step < steps / 2 else 0.1 if step < steps * 3 / 4 else 0.01)
    top = max(WARM_UP * steps - 1, 1e-9)
    if step <= top:
        return config.lr * _cosine(START, 1, step / top)
    return config.lr * _cosine(1, END, (step - top) / max(steps - 1 - top, 1e-9))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * min(share, 1.0)))
