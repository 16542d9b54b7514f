"""One process's training: batch, augment, network, loss, optimizer. Knows torch, not Ray.

With several workers each runs this loop on its share of every batch. Sums and counts are
added up over all workers, so that metrics are exact however uneven the shares are.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_ops.config import TrainConfig
from resnet_ops.data.loader import Loader
from resnet_ops.errors import WORK_FAILED, UserError
from resnet_ops.models import ResNet
from resnet_ops.runs import Epoch
from resnet_ops.training.schedule import learning_rate

PROGRESS_INTERVAL_S = 0.25


@dataclass(frozen=True)
class World:
    """The workers that train together, seen from one of them."""

    rank: int = 0
    size: int = 1

    def add(self, totals: Tensor) -> Tensor:
        """Add `totals` up over all workers, in place."""
        if self.size > 1:
            dist.all_reduce(totals)
        return totals

    def average_batchnorm(self, network: nn.Module) -> None:
        """Give all workers the mean of their BatchNorm statistics; each has seen other images."""
        if self.size == 1:
            return
        statistics = [b for b in network.buffers() if b.is_floating_point()]
        flat = torch.cat([s.flatten() for s in statistics])
        dist.all_reduce(flat)
        for own, mean in zip(statistics, (flat / self.size).split([s.numel() for s in statistics]), strict=True):
            own.copy_(mean.view_as(own))


@dataclass(frozen=True)
class Progress:
    """Where the epoch in hand stands; loss and error are means since its start."""

    epoch: int
    step: int
    steps: int
    train_loss: float
    train_error: float
    images_per_second: float


@dataclass
class Training:
    """One worker's training: its network, its data, and the epoch reached.

    `network` holds the weights; `parallel` is what is called on a batch: the same network, or
    DistributedDataParallel around it.
    """

    config: TrainConfig
    network: ResNet
    parallel: nn.Module
    optimizer: torch.optim.Optimizer
    loader: Loader
    world: World
    device: torch.device
    epoch: int = 0

    def run(self, after_step: Callable[[Progress], None]) -> Iterator[Epoch]:
        """Train epoch after epoch, yielding each one's metrics, the same on every worker.

        Args:
            after_step: Told of the progress after an epoch's first and last step and a few times a second.

        Raises:
            UserError: The loss is no longer a finite number.
        """
        while self.epoch < self.config.epochs:
            started = time.perf_counter()
            train = self.train_epoch(after_step)
            trained = time.perf_counter()
            self.world.average_batchnorm(self.network)
            val = self.evaluate()
            steps = self.loader.steps
            self.epoch += 1
            yield Epoch(
                epoch=self.epoch,
                step=self.epoch * steps,
                train_loss=self.finite(train.loss),
                train_error=train.error,
                val_loss=self.finite(val.loss),
                val_error=val.error,
                lr=learning_rate(self.config, self.epoch * steps - 1, self.config.epochs * steps),
                images_per_second=steps * self.config.batch_size / (trained - started),
                seconds=time.perf_counter() - started,
            )

    def train_epoch(self, after_step: Callable[[Progress], None]) -> "Mean":
        """Make one pass over the training images; error and loss are running means, as trained."""
        self.parallel.train()
        steps, batch_size = self.loader.steps, self.config.batch_size
        totals = torch.zeros(2, dtype=torch.float64, device=self.device)
        started = told = time.perf_counter()
        for index, (x, y) in enumerate(self.loader.train_batches(self.epoch)):
            step = self.epoch * steps + index
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.config, step, self.config.epochs * steps)
            with self.autocast():
                logits = self.parallel(x)
            loss_sum = F.cross_entropy(logits.float(), y, reduction="sum")
            # DDP averages gradients over workers: scaled so, uneven shares still give the batch's mean.
            (loss_sum * (self.world.size / batch_size)).backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            totals += torch.stack((loss_sum.detach(), (logits.detach().argmax(1) != y).sum()))

            now = time.perf_counter()
            if index in (0, steps - 1) or now - told > PROGRESS_INTERVAL_S:
                told, seen = now, (index + 1) * batch_size
                mean = Mean.of(totals, (index + 1) * len(y))  # of this worker's share
                self.finite(mean.loss, index + 1)
                after_step(Progress(self.epoch + 1, index + 1, steps, mean.loss, mean.error, seen / (now - started)))
        return Mean.of(self.world.add(totals), steps * batch_size)

    @torch.no_grad()
    def evaluate(self) -> "Mean":
        """Loss and top-1 error over the validation images."""
        self.network.eval()
        totals = torch.zeros(2, dtype=torch.float64, device=self.device)
        for x, y in self.loader.val_batches():
            with self.autocast():
                logits = self.network(x)
            loss_sum = F.cross_entropy(logits.float(), y, reduction="sum")
            totals += torch.stack((loss_sum, (logits.argmax(1) != y).sum()))
        return Mean.of(self.world.add(totals), len(self.loader.val))

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """bf16 where asked for. On CPU 'auto' is fp32: bf16 autocast trains at 0.7 of its speed there."""
        wanted = self.config.precision
        if wanted == "auto" and self.device.type == "cuda" and torch.cuda.is_bf16_supported():
            wanted = "bf16"
        if wanted != "bf16":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def finite(self, loss: float, step: int | None = None) -> float:
        """Return `loss`, or stop the training if it is not a finite number."""
        if math.isfinite(loss):
            return loss
        epoch = self.epoch + 1 if step is not None else self.epoch
        raise UserError(f"Training diverged in epoch {epoch}: the loss is {loss}.", "Try a smaller --lr.", WORK_FAILED)


@dataclass(frozen=True)
class Mean:
    """Mean loss and top-1 error over some images."""

    loss: float
    error: float

    @classmethod
    def of(cls, totals: Tensor, images: int) -> "Mean":
        """From the sums of losses and of errors."""
        loss, errors = (totals / max(images, 1)).tolist()
        return cls(loss, errors)


def prepare(config: TrainConfig, network: ResNet, loader: Loader, world: World, device: torch.device) -> Training:
    """Put a fresh network on the device, with its optimizer, ready for the first epoch."""
    network = network.to(device).to(memory_format=torch.channels_last)
    parallel: nn.Module = network
    if world.size > 1:
        parallel = nn.parallel.DistributedDataParallel(
            network,
            device_ids=[device] if device.type == "cuda" else None,
            broadcast_buffers=False,  # BatchNorm statistics are averaged once an epoch instead
            gradient_as_bucket_view=True,
        )
    optimizer = torch.optim.SGD(
        network.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=True
    )
    return Training(config, network, parallel, optimizer, loader, world, device)
