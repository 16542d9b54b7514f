"""When to save within an epoch: after so many steps, or about so often."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from resnet_ops.training.distributed import ProcessGroup

PROBE_STEPS = 8  # after which the first interval in seconds is turned into steps


@dataclass
class Pace:
    """Says after which steps to save, the same on every worker.

    An interval in seconds becomes one in steps by rank 0's clock, agreed upon only after the first
    few steps and at each save: asking at each step would cost each step.
    """

    world: ProcessGroup
    every_steps: int | None
    every_s: float | None
    done: int = 0  # steps since the last agreement
    until: int = PROBE_STEPS
    clock: Callable[[], float] = time.monotonic
    since: float = 0.0
    saves: bool = False  # whether the next agreement is a save

    def __post_init__(self) -> None:
        self.since = self.clock()

    def is_due(self, step: int) -> bool:
        """Whether to save after `step` steps in all; to be asked after each."""
        if self.every_steps is not None:
            return step % self.every_steps == 0
        if self.every_s is None:
            return False
        self.done += 1
        if self.done < self.until:
            return False
        step_s = self.world.agree((self.clock() - self.since) / self.done)
        due, self.saves = self.saves, True
        elapsed_steps = 0 if due else self.done
        self.until = max(1, round(self.every_s / max(step_s, 1e-9)) - elapsed_steps)
        self.done, self.since = 0, self.clock()
        return due
