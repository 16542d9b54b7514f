"""Exponential moving average (EMA) of the weights, which often validates better than the last ones."""

import copy

import torch
from torch import nn


class ExponentialMovingAverage:
    """A network whose weights and BatchNorm statistics follow those of another one.

    After step t (from 0) it is `d * average + (1 - d) * network`, with d the smaller of `decay` and
    (1 + t) / (10 + t), as in TensorFlow: otherwise the weights that a short training began with
    would make up much of it.

    Args:
        network: The network, before its first step.
        decay: How much of the average is kept at each step.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).eval()
        self.decay = decay
        both = list(zip(self.network.state_dict().values(), network.state_dict().values(), strict=True))
        self.own, self.followed = zip(*[pair for pair in both if pair[0].is_floating_point()], strict=True)
        self.own_counts, self.counts = zip(*[pair for pair in both if not pair[0].is_floating_point()], strict=True)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the weights after step `step`, counted from 0 since the training began."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.own, self.followed, 1 - decay)
        torch._foreach_copy_(self.own_counts, self.counts)
