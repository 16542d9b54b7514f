"""Gradient checkpointing (Chen et al. 2016): a block keeps its input only, and is computed again in the backward pass.

Gradients are the same to the bit: nothing is drawn at random inside a block.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.utils.checkpoint import checkpoint

from resnet_ops.models import BasicBlock, Bottleneck


def checkpoint_blocks(network: nn.Module) -> None:
    """Have each block of a plain or residual network computed twice, where there are gradients to compute."""
    for block in network.modules():
        if isinstance(block, BasicBlock | Bottleneck):
            block.forward = functools.partial(_forward, block, block.forward)  # type: ignore[method-assign]


def _forward(block: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(x)
    out: Tensor = checkpoint(
        forward,
        x,
        use_reentrant=False,
        preserve_rng_state=False,  # it cannot be read while a CUDA graph is captured
        context_fn=lambda: (contextlib.nullcontext(), _statistics_kept(block)),
    )
    return out


@contextlib.contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Compute a block again without another step of BatchNorm's running statistics."""
    norms = [module for module in block.modules() if isinstance(module, BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        # Not without running statistics at all: autograd would keep fewer tensors than the first time.
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, steps) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, steps
