"""The workers that train together, and what they add up, agree upon and average."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class ProcessGroup:
    """The workers that train together, seen from one of them."""

    rank: int = 0
    size: int = 1

    def add(self, totals: Tensor) -> Tensor:
        """Add `totals` up over all workers, in place."""
        if self.size > 1:
            dist.all_reduce(totals)
        return totals

    def add_gradients(self, network: nn.Module) -> None:
        """Add the gradients up over all workers, in place, always in the same order.

        DistributedDataParallel sorts its buckets anew after the first step, so that a resumed run
        would add up in another order than one that was never stopped.
        """
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        parts = flat.split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [part.view(g.shape) for part, g in zip(parts, gradients, strict=True)])

    def gather(self, own: Tensor) -> Tensor:
        """What every worker has, (size, *own.shape), on every worker."""
        if self.size == 1:
            return own.unsqueeze(0)
        parts = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(parts, own)
        return torch.stack(parts)

    def agree(self, word: float) -> float:
        """What rank 0 says, on every worker."""
        if self.size == 1:
            return word
        said = torch.tensor([word], dtype=torch.float64)
        if dist.get_backend() == "nccl":
            said = said.cuda()
        dist.broadcast(said, 0)
        return said.item()

    def average_batchnorm(self, network: nn.Module) -> None:
        """Give all workers the mean of their BatchNorm statistics; each has seen other images."""
        if self.size == 1:
            return
        flat = statistics(network)
        dist.all_reduce(flat)
        set_statistics(network, flat / self.size)


def statistics(network: nn.Module) -> Tensor:
    """BatchNorm's running means and variances, in one row."""
    return torch.cat([b.flatten() for b in network.buffers() if b.is_floating_point()])


def set_statistics(network: nn.Module, row: Tensor) -> None:
    """Put back what `statistics` gave."""
    buffers = [b for b in network.buffers() if b.is_floating_point()]
    for buffer, part in zip(buffers, row.split([b.numel() for b in buffers]), strict=True):
        buffer.copy_(part.view_as(buffer))
