"""Finds out whether torch.compile pays in a training, for --compile auto: by an epoch without it and one with it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

REPAID_AFTER_S = 600.0  # of training that is left: compiling takes up to two minutes, and what it gains is a part
FEWEST_STEPS = 20  # of an epoch that a speed is taken from


@dataclass
class CompileTrial:
    """Decides after each epoch which network the next one calls: the plain one, or the compiled one.

    Args:
        log_event: Called with what was decided.
    """

    log_event: Callable[[str], None]
    plain: nn.Module | None = None
    plain_speed: float = 0.0
    settled: bool = False

    def after_epoch(
        self,
        network: nn.Module,
        rehearse: Callable[[nn.Module], None],
        steps: int,
        speed: float,
        remaining_s: float,
    ) -> nn.Module | None:
        """Decide what the next epoch calls.

        Args:
            network: What the last epoch called.
            rehearse: Runs a network forward and backward on a batch that is not of the training.
            steps: Its steps that the speed is of.
            speed: Its images per second.
            remaining_s: Seconds that the rest of the training would take at this speed.

        Returns:
            The network to be called instead, or None where it stays.
        """
        if self.settled or steps < FEWEST_STEPS:  # an epoch was resumed near its end, or has few images
            return None
        if self.plain is None:
            if remaining_s < REPAID_AFTER_S or (compiled := self._compiled(network, rehearse)) is None:
                self.settled = True
                return None
            self.plain, self.plain_speed = network, speed
            return compiled
        self.settled = True
        gain, faster = speed / self.plain_speed - 1, speed > self.plain_speed
        self.log_event(f"--compile auto: compiled, steps are {abs(gain):.0%} {'faster' if faster else 'slower'}.")
        return None if faster else self.plain

    def _compiled(self, network: nn.Module, rehearse: Callable[[nn.Module], None]) -> nn.Module | None:
        try:
            compiled = cast("nn.Module", torch.compile(network))
            rehearse(compiled)
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            self.log_event(f"--compile auto: the network cannot be compiled here: {reason}")
            return None
        return compiled
