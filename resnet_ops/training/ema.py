"""Exponential moving average (EMA) of the weights, which often validates better than the last ones."""

import copy

import torch
from torch import Tensor, nn


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
        own_values = self.network.state_dict(keep_vars=True).values()  # the parameters themselves, to be moved
        both = list(zip(own_values, network.state_dict().values(), strict=True))
        floats = [pair for pair in both if pair[0].is_floating_point()]
        counts = [pair for pair in both if not pair[0].is_floating_point()]  # none without BatchNorm
        self.own_counts, self.counts = ([pair[side] for pair in counts] for side in (0, 1))
        # Both in one row, so that an update is two kernels however many layers there are.
        self.followed = [_row(value) for _, value in floats]
        self.row = torch.cat([_row(own) for own, _ in floats])
        self.latest = torch.empty_like(self.row)
        for (own, _), part in zip(floats, self.row.split([len(row) for row in self.followed]), strict=True):
            own.data = part.as_strided(own.shape, own.stride())

    def decay_after(self, step: int) -> float:
        """Return how much of the average is kept after step `step`, counted from 0 since the training began."""
        return min(self.decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self, share: Tensor) -> None:
        """Add the network's weights with the given share ()."""
        torch.cat(self.followed, out=self.latest)
        self.row.lerp_(self.latest, share)
        if self.counts:
            torch._foreach_copy_(self.own_counts, self.counts)


def _row(dense: Tensor) -> Tensor:
    """Return the elements of a dense tensor in the order in which they are stored."""
    return dense.detach().as_strided((dense.numel(),), (1,))
