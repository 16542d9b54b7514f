"""Builds a worker's `Trainer`: network on its device, DistributedDataParallel, compiler, optimizer, EMA."""

import contextlib
import functools
import inspect
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from resnet_ops.config import TrainConfig
from resnet_ops.data.loader import Loader
from resnet_ops.errors import UserError
from resnet_ops.models import head_of, zero_init_residual
from resnet_ops.training.distributed import ProcessGroup
from resnet_ops.training.ema import ExponentialMovingAverage
from resnet_ops.training.freezing import freeze, frozen_layers, parameters_of
from resnet_ops.training.gradient_checkpointing import checkpoint_blocks
from resnet_ops.training.loss import Loss
from resnet_ops.training.loss_scaling import LossScaler
from resnet_ops.training.mixed_precision import mixed_precision
from resnet_ops.training.trainer import Parallel, Trainer

BUCKETS = 8  # that the gradients are added up in: the first ones while others are still computed
SMALLEST_BUCKET_MB, LARGEST_BUCKET_MB = 1, 25  # below, latency rules; above is torch's own
DECORATED = ("add_param_group", "step", "zero_grad")  # of what is called of an optimizer
AnyOptimizer = TypeVar("AnyOptimizer", bound=torch.optim.Optimizer)


def build_trainer(
    config: TrainConfig,
    network: nn.Module,
    loader: Loader,
    group: ProcessGroup,
    device: torch.device,
    log_event: Callable[[str], None] = lambda _: None,
    class_weights: Tensor | None = None,
) -> Trainer:
    """Put a network, fresh or with given weights, on the device, with its optimizer, ready for the first epoch.

    Args:
        config: How to train.
        network: The network.
        loader: Its images.
        group: The workers.
        device: That of the loader.
        log_event: Called with what the user should know.
        class_weights: (K,) float32, see `loss.weigh_classes`; None where classes count alike.

    Raises:
        UserError: Steps have to be captured in a CUDA graph and cannot be.
    """
    if config.zero_init_residual and config.weights is None:  # of given weights it would undo the training
        zero_init_residual(network)
    network = network.to(device)
    if config.channels_last:
        network = network.to(memory_format=torch.channels_last)
    if config.sync_batchnorm and group.size > 1:
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    ema = ExponentialMovingAverage(network, config.ema) if config.ema else None
    if config.gradient_checkpointing:
        checkpoint_blocks(network)
    freeze(network, config, 0)
    parallelize = functools.partial(_parallelize, config, network, group, device, log_event)
    parallel = parallelize()
    totals = torch.zeros(2, dtype=torch.float64, device=device)
    optimizer = _optimizer(config, network, device)
    scaler = LossScaler(device) if mixed_precision(config.precision, device) == "fp16" else None
    loss = Loss(None if class_weights is None else class_weights.to(device), config.label_smoothing, config.focal_gamma)
    return Trainer(
        config, network, parallel.network, optimizer, loader, group, device, totals, parallel.ddp, ema, scaler, loss,
        parallel.obstacle, log_event=log_event, parallelize=parallelize,
    )  # fmt: skip


def _parallelize(
    config: TrainConfig, network: nn.Module, group: ProcessGroup, device: torch.device, log_event: Callable[[str], None]
) -> Parallel:
    """Return what is called on a batch while the network's parameters have gradients as they do now."""
    ddp = _distributed(config, network, device) if group.size > 1 and _overlaps(config, network, device) else None
    parallel: nn.Module = ddp or network
    if config.compile not in ("off", "auto"):
        # Its own CUDA graphs would be in the way of that of the whole step.
        mode = "max-autotune-no-cudagraphs" if config.compile == "max-autotune" else config.compile
        parallel = cast("nn.Module", torch.compile(parallel, mode=mode))
    obstacle = obstacle_to_capture(config, group, device, overlaps=ddp is not None)
    if obstacle and device.type == "cuda" and config.cuda_graph == "auto" and group.rank == 0:
        log_event(f"Steps are not captured in a CUDA graph: {obstacle}.")
    return Parallel(parallel, ddp, obstacle)


def obstacle_to_capture(config: TrainConfig, group: ProcessGroup, device: torch.device, overlaps: bool) -> str | None:
    """Return why steps are not captured in a CUDA graph, in the middle of a sentence; None where they are.

    Args:
        config: The configuration.
        group: The workers.
        device: The device.
        overlaps: Whether gradients are added up over workers during the backward pass.

    Raises:
        UserError: They have to be, and cannot.
    """
    if device.type != "cuda":
        obstacle = "training runs on the CPU"
    elif config.cuda_graph == "off":
        return "--cuda-graph off"
    elif not config.fused:
        obstacle = "--no-fused: only the fused optimizer reads its learning rate on the GPU"
    elif config.sync_batchnorm and group.size > 1:
        obstacle = "--sync-batchnorm waits for the other workers within a step"
    elif overlaps:
        obstacle = "the gradients of this network are added up over the workers while others are still computed"
    else:
        return None
    if config.cuda_graph == "on":
        raise UserError(f"--cuda-graph on: {obstacle}.", "Use --cuda-graph auto.")
    return obstacle


@contextlib.contextmanager
def cuda_algorithms(config: TrainConfig, device: torch.device) -> Iterator[None]:
    """Choose algorithms on CUDA for the length of a `with` block: deterministic ones where asked for, else the fastest.

    The fastest are found by cuDNN with the first batch of each shape, and may differ from run to run.
    """
    if device.type != "cuda":
        yield
        return
    cudnn = torch.backends.cudnn
    memory: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    others_before = cudnn.benchmark, cudnn.deterministic, memory.fill_uninitialized_memory
    cudnn.benchmark = not config.deterministic
    if config.deterministic:  # only then, as to say even no to torch imports its compiler, which takes 1 s
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS is not; read at its first use
        torch.use_deterministic_algorithms(True)
        cudnn.deterministic, memory.fill_uninitialized_memory = True, False
    try:
        yield
    finally:
        if config.deterministic:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.benchmark, cudnn.deterministic, memory.fill_uninitialized_memory = others_before


def _overlaps(config: TrainConfig, network: nn.Module, device: torch.device) -> bool:
    """Return whether gradients are added up over workers during the backward pass, rather than after it.

    Not where they fit one bucket, of which nothing could overlap: then a step is captured in two parts around the sum.
    Not with --deterministic, see `ProcessGroup.add_gradients`.
    """
    if device.type != "cuda" or config.deterministic:
        return False
    if config.sync_batchnorm or config.cuda_graph == "off" or not config.fused:
        return True
    return config.cuda_graph == "auto" and _gradients_mb(network) > LARGEST_BUCKET_MB


def _gradients_mb(network: nn.Module) -> float:
    return sum(p.numel() * p.element_size() for p in network.parameters() if p.requires_grad) / 2**20


def _distributed(config: TrainConfig, network: nn.Module, device: torch.device) -> nn.parallel.DistributedDataParallel:
    """Wrap the network so that gradients are reduced over the workers while others are still computed."""
    return nn.parallel.DistributedDataParallel(
        network,
        device_ids=[device],
        broadcast_buffers=False,  # BatchNorm statistics are averaged once an epoch instead
        init_sync=False,  # all have the same weights already, and within an epoch statistics of their own
        gradient_as_bucket_view=True,
        bucket_cap_mb=min(max(_gradients_mb(network) / BUCKETS, SMALLEST_BUCKET_MB), LARGEST_BUCKET_MB),
        # The same layers in every step. torch knows it neither with no_sync nor with its compiler.
        static_graph=config.accumulate == 1 and config.compile in ("off", "auto"),
    )


def _optimizer(config: TrainConfig, network: nn.Module, device: torch.device) -> torch.optim.Optimizer:
    # Other optimizers than the fused one take a number, which they would wait for.
    on_gpu = device.type == "cuda" and config.fused
    lr = (
        torch.tensor(config.lr, dtype=torch.float32, device=device)
        if on_gpu
        else torch.tensor(config.lr, dtype=torch.float64)
    )
    groups = _parameter_groups(config, network, lr)
    common: dict[str, Any] = {"lr": lr, "weight_decay": config.weight_decay, "fused": config.fused}
    if config.optimizer == "adamw":
        adamw = without_dynamo(torch.optim.AdamW)(groups, capturable=on_gpu, **common)
        # torch would warn of steps that are not captured, such as those before the capture.
        vars(adamw)["_warned_capturable_if_run_uncaptured"] = True
        return adamw
    sgd = without_dynamo(torch.optim.SGD)(groups, momentum=config.momentum, nesterov=config.nesterov, **common)
    if config.momentum:
        # The fused one would make them itself in the first step, and leave them as the memory was if fp16 skips that.
        for parameter in (parameter for group in groups for parameter in group["params"]):
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return sgd


def _parameter_groups(config: TrainConfig, network: nn.Module, lr: Tensor) -> list[dict[str, Any]]:
    """Return the parameters that are trained in some epoch: the head and the others, weights and rows.

    BatchNorm's weights and all biases are the rows.
    """
    head = set(head_of(network).parameters()) if config.head_lr != 1 else set()
    always = parameters_of(frozen_layers(config, network, config.epochs - 1))
    groups: dict[tuple[bool, bool], dict[str, Any]] = {}
    for parameter in network.parameters():
        is_head, is_row = parameter in head, config.norm_weight_decay is not None and parameter.dim() == 1
        if parameter in always:
            continue
        if (is_head, is_row) not in groups:
            own_lr = {"lr": lr.clone() if is_head else lr, "lr_factor": config.head_lr if is_head else 1.0}
            own_decay = {"weight_decay": config.norm_weight_decay} if is_row else {}
            groups[is_head, is_row] = {"params": [], **own_lr, **own_decay}
        groups[is_head, is_row]["params"].append(parameter)
    return list(groups.values())


def without_dynamo(optimizer: type[AnyOptimizer]) -> type[AnyOptimizer]:
    """Return an optimizer's class with its own methods bare of torch's decorators, and its step without gradients.

    They would import torch's compiler, which takes each worker 1 s, only to keep it from compiling these very calls.
    """
    bare: dict[str, Any] = {name: inspect.unwrap(getattr(optimizer, name)) for name in DECORATED}
    bare["step"] = torch.no_grad()(bare["step"])
    return cast("type[AnyOptimizer]", type(optimizer.__name__, (optimizer,), bare))
