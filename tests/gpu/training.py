"""A short training in this process, captured or not, and all that it leaves."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from resnet_ops.config import TrainConfig
from resnet_ops.data.augment import Augmentation, pixel_statistics
from resnet_ops.data.loader import Loader, open_loader
from resnet_ops.data.opening import open_source
from resnet_ops.models import build
from resnet_ops.run_records import Epoch
from resnet_ops.training import checkpoint
from resnet_ops.training.build import build_trainer
from resnet_ops.training.distributed import ProcessGroup
from resnet_ops.training.trainer import Trainer
from tests.gpu.hardware import DEVICE

SHORT: dict[str, Any] = {"model": "resnet8", "epochs": 2, "batch_size": 128, "crop_padding": 0, "flip": False}
MEASURED = ("train_loss", "train_error", "val_loss", "val_error", "lr")
Change = Callable[[nn.Module], None]


@dataclass(frozen=True)
class Outcome:
    """What a training leaves: sums of loss and errors after each step, metrics, every tensor of its checkpoint."""

    sums: list[list[float]]
    epochs: list[dict[str, float]]
    tensors: dict[str, Tensor]
    captured: bool


def settle(**options: Any) -> TrainConfig:
    """Make a configuration of a short training."""
    return TrainConfig.of(**(SHORT | options))


def load(config: TrainConfig, device: torch.device = DEVICE, group: ProcessGroup | None = None) -> Loader:
    """Open the configuration's images as a worker does."""
    source, group = replace(open_source(config), whole=config.random_resized_crop), group or ProcessGroup()
    if config.stream == "on":
        mean, std = pixel_statistics(source.sample_counts())
        source = replace(source, record=source.record.model_copy(update={"mean": mean, "std": std}))
    data = source.record
    augmentation = Augmentation.of(config, len(data.class_names), (data.height, data.width) if data.stored else None)
    return open_loader(
        source, device, batch_size=config.batch_size, augmentation=augmentation, seed=config.seed, rank=group.rank,
        world_size=group.size,
    )  # fmt: skip


def prepare(
    config: TrainConfig, change: Change | None = None, group: ProcessGroup | None = None, loader: Loader | None = None
) -> Trainer:
    """Build the trainer of a worker, with a network that `change` may alter first."""
    group = group or ProcessGroup()
    data = open_source(config).record
    torch.manual_seed(0)
    network = build(config.model, num_classes=len(data.class_names), in_channels=data.channels)
    if change is not None:
        change(network)
    return build_trainer(config, network, loader or load(config, group=group), group, DEVICE)


def run(trainer: Trainer) -> Outcome:
    """Train to the end."""
    sums: list[list[float]] = []

    def record(_: int) -> bool:
        sums.append(trainer.totals.tolist())
        return False

    epochs = [epoch for epoch in trainer.run(lambda _: None, record) if epoch is not None]
    return Outcome(sums, [metrics(e) for e in epochs], checkpoint.collect(trainer), trainer.step_runner.captured)


def metrics(epoch: Epoch) -> dict[str, float]:
    """Return what was measured of an epoch, without what depends on the clock."""
    return {name: getattr(epoch, name) for name in MEASURED}


def assert_same_bytes(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    differing = [name for name in one if not torch.equal(one[name], other[name])]
    assert not differing, f"{len(differing)} of {len(one)}: {differing[:5]}"


def replace_modules(network: nn.Module, kind: type[nn.Module], make: Callable[[], nn.Module]) -> None:
    """Replace all modules of a kind."""
    for name, module in network.named_children():
        if isinstance(module, kind):
            setattr(network, name, make())
        else:
            replace_modules(module, kind, make)


def with_dropout(network: nn.Module) -> None:
    """Drop half of what goes into the last layer."""
    network.fc = nn.Sequential(nn.Dropout(0.5), network.fc)  # type: ignore[arg-type]


def without_batchnorm(network: nn.Module) -> None:
    """Leave out BatchNorm, which sees each worker's share for itself."""
    replace_modules(network, nn.BatchNorm2d, nn.Identity)
