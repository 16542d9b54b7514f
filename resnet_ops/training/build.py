"""Builds a worker's `Trainer`: network on its device, DistributedDataParallel, compiler, optimizer, EMA."""

import inspect
from typing import Any, TypeVar, cast

import torch
from torch import nn

from resnet_ops.config import TrainConfig
from resnet_ops.data.loader import Loader
from resnet_ops.models import zero_init_residual
from resnet_ops.training.distributed import ProcessGroup
from resnet_ops.training.ema import ExponentialMovingAverage
from resnet_ops.training.trainer import Trainer

BUCKETS = 8  # that the gradients are added up in: the first ones while others are still computed
SMALLEST_BUCKET_MB, LARGEST_BUCKET_MB = 1, 25  # below, latency rules; above is torch's own
DECORATED = ("add_param_group", "step", "zero_grad")  # of what is called of an optimizer
AnyOptimizer = TypeVar("AnyOptimizer", bound=torch.optim.Optimizer)


def build_trainer(
    config: TrainConfig, network: nn.Module, loader: Loader, group: ProcessGroup, device: torch.device
) -> Trainer:
    """Put a fresh network on the device, with its optimizer, ready for the first epoch."""
    if config.zero_init_residual:
        zero_init_residual(network)
    network = network.to(device)
    if config.channels_last:
        network = network.to(memory_format=torch.channels_last)
    if config.sync_batchnorm and group.size > 1:
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    ema = ExponentialMovingAverage(network, config.ema) if config.ema else None
    ddp = _distributed(config, network, device) if group.size > 1 and device.type == "cuda" else None
    parallel: nn.Module = ddp or network
    if config.compile != "off":
        parallel = cast("nn.Module", torch.compile(parallel, mode=config.compile))
    totals = torch.zeros(2, dtype=torch.float64, device=device)
    optimizer = _optimizer(config, network)
    return Trainer(config, network, parallel, optimizer, loader, group, device, totals, ddp, ema)


def _distributed(config: TrainConfig, network: nn.Module, device: torch.device) -> nn.parallel.DistributedDataParallel:
    """Wrap the network so that gradients are reduced over the workers while others are still computed."""
    gradients_mb = sum(p.numel() * p.element_size() for p in network.parameters()) / 2**20
    return nn.parallel.DistributedDataParallel(
        network,
        device_ids=[device],
        broadcast_buffers=False,  # BatchNorm statistics are averaged once an epoch instead
        gradient_as_bucket_view=True,
        bucket_cap_mb=min(max(gradients_mb / BUCKETS, SMALLEST_BUCKET_MB), LARGEST_BUCKET_MB),
        # The same layers in every step. torch knows it neither with no_sync nor with its compiler.
        static_graph=config.accumulate == 1 and config.compile == "off",
    )


def _optimizer(config: TrainConfig, network: nn.Module) -> torch.optim.Optimizer:
    groups: Any = network.parameters()
    if config.norm_weight_decay is not None:  # BatchNorm's weights and all biases are the rows
        weights = [p for p in network.parameters() if p.dim() > 1]
        rows = [p for p in network.parameters() if p.dim() == 1]
        groups = [{"params": weights}, {"params": rows, "weight_decay": config.norm_weight_decay}]
    return without_dynamo(torch.optim.SGD)(
        groups,
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.nesterov,
        fused=config.fused,
    )


def without_dynamo(optimizer: type[AnyOptimizer]) -> type[AnyOptimizer]:
    """Return an optimizer's class with its own methods bare of torch's decorators, and its step without gradients.

    They would import torch's compiler, which takes each worker 1 s, only to keep it from compiling these very calls.
    """
    bare: dict[str, Any] = {name: inspect.unwrap(getattr(optimizer, name)) for name in DECORATED}
    bare["step"] = torch.no_grad()(bare["step"])
    return cast("type[AnyOptimizer]", type(optimizer.__name__, (optimizer,), bare))
