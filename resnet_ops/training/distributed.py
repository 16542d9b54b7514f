"""Collectives of the workers that train together: sums, gathers, agreement, BatchNorm averages."""

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
        """Return the tensors of all workers, (size, *own.shape), on every worker."""
        if self.size == 1:
            return own.unsqueeze(0)
        parts = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(parts, own)
        return torch.stack(parts)

    def gather_text(self, own: str) -> list[str]:
        """Return the texts of all workers, on every worker.

        As bytes: torch's gathering of objects unpickles what arrives, and whoever reaches a port of the process group
        could send that.
        """
        if self.size == 1:
            return [own]
        device = _device()
        content = torch.tensor(list(own.encode()), dtype=torch.uint8, device=device)
        lengths = self.gather(torch.tensor(len(content), device=device)).tolist()
        padded = torch.zeros(max(lengths), dtype=torch.uint8, device=device)
        padded[: len(content)] = content
        rows = self.gather(padded).tolist()
        return [bytes(row[:length]).decode() for row, length in zip(rows, lengths, strict=True)]

    def agree(self, value: float) -> float:
        """Return rank 0's value on every worker."""
        if self.size == 1:
            return value
        agreed = _on_device(value)
        dist.broadcast(agreed, 0)
        return agreed.item()

    def largest(self, *values: float) -> tuple[float, ...]:
        """Return the largest over all workers of each value."""
        if self.size == 1:
            return values
        agreed = _on_device(*values)
        dist.all_reduce(agreed, dist.ReduceOp.MAX)
        return tuple(agreed.tolist())

    def average_batchnorm(self, network: nn.Module) -> None:
        """Give all workers the mean of their BatchNorm statistics; each has seen other images."""
        if self.size == 1:
            return
        flat = statistics(network).double()  # exact: the mean of statistics that are frozen is what they are
        if len(flat):
            dist.all_reduce(flat)
            set_statistics(network, flat / self.size)


def _on_device(*values: float) -> Tensor:
    """Return values as a tensor that can be sent to other workers."""
    return torch.tensor(values, dtype=torch.float64, device=_device())


def _device() -> str:
    return "cuda" if dist.get_backend() == "nccl" else "cpu"


def statistics(network: nn.Module) -> Tensor:
    """Return BatchNorm's running means and variances, flattened into one row; an empty one where there is none."""
    buffers = [b.flatten() for b in network.buffers() if b.is_floating_point()]
    return torch.cat(buffers) if buffers else torch.empty(0, device=next(network.parameters()).device)


def set_statistics(network: nn.Module, row: Tensor) -> None:
    """Write back a row as returned by `statistics`."""
    buffers = [b for b in network.buffers() if b.is_floating_point()]
    for buffer, part in zip(buffers, row.split([b.numel() for b in buffers]), strict=True):
        buffer.copy_(part.view_as(buffer))
