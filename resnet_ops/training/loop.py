"""One process's training: batch, augment, network, loss, optimizer. Knows torch, not Ray.

With several workers each runs this loop on its share of every batch. Sums and counts are
added up over all workers, so that metrics are exact however uneven the shares are.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

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
    """One worker's training: its network, its data, and how far it got.

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
    totals: Tensor  # (2,) float64: this worker's sums of losses and errors in the epoch in hand
    beat: Callable[[], None] = lambda: None  # called at each batch, for whoever watches that work goes on
    epoch: int = 0  # epochs done
    step: int = 0  # steps done of the epoch in hand

    def run(
        self, after_step: Callable[[Progress], None], is_due: Callable[[int], bool] = lambda _: False
    ) -> Iterator[Epoch | None]:
        """Train epoch after epoch, yielding each one's metrics, the same on every worker.

        Whatever is yielded, the moment is one to save: `epoch`, `step`, `totals`, the network and
        the optimizer are all there is to go on from.

        Args:
            after_step: Told of the progress after an epoch's first and last step and a few times a second.
            is_due: Asked after each step but an epoch's last, with the number of all steps so far;
                where it says yes, None is yielded.

        Raises:
            UserError: The loss is no longer a finite number.
        """
        while self.epoch < self.config.epochs:
            started, begun = time.perf_counter(), self.step
            for _ in self.train_epoch(after_step, is_due):
                yield None
            steps, batch_size = self.loader.steps, self.config.batch_size
            train = Mean.of(self.world.add(self.totals), steps * batch_size)
            trained = time.perf_counter()
            self.world.average_batchnorm(self.network)
            val = self.evaluate()
            self.epoch, self.step = self.epoch + 1, 0
            self.totals.zero_()
            yield Epoch(
                epoch=self.epoch,
                step=self.epoch * steps,
                train_loss=self.finite(train.loss),
                train_error=train.error,
                val_loss=self.finite(val.loss),
                val_error=val.error,
                lr=learning_rate(self.config, self.epoch * steps - 1, self.config.epochs * steps),
                images_per_second=(steps - begun) * batch_size / (trained - started),
                seconds=time.perf_counter() - started,
                world_size=self.world.size,
            )

    def train_epoch(self, after_step: Callable[[Progress], None], is_due: Callable[[int], bool]) -> Iterator[None]:
        """Make the rest of one pass over the training images; error and loss are summed up as trained."""
        self.parallel.train()
        steps, batch_size = self.loader.steps, self.config.batch_size
        begun, started = self.step, time.perf_counter()
        told = started
        for x, y in self.loader.train_batches(self.epoch, begun, self.beat):
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.config, self.epoch * steps + self.step, self.config.epochs * steps)
            with self.autocast():
                logits = self.parallel(x)
            loss_sum = F.cross_entropy(logits.float(), y, reduction="sum")
            # Scaled by the whole batch, so that uneven shares still add up to the batch's mean.
            (loss_sum * (self.gradient_scale / batch_size)).backward()
            if self.adds_gradients:
                self.world.add_gradients(self.network)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.totals += torch.stack((loss_sum.detach(), (logits.detach().argmax(1) != y).sum()))
            self.step += 1
            self.beat()

            now = time.perf_counter()
            if self.step in (begun + 1, steps) or now - told > PROGRESS_INTERVAL_S:
                told, seen = now, (self.step - begun) * batch_size
                mean = Mean.of(self.totals, self.step * len(y))  # of this worker's share
                self.finite(mean.loss, self.step)
                after_step(Progress(self.epoch + 1, self.step, steps, mean.loss, mean.error, seen / (now - started)))
            if self.step < steps and is_due(self.epoch * steps + self.step):
                yield None

    @property
    def adds_gradients(self) -> bool:
        """Whether workers add their gradients up themselves, instead of DistributedDataParallel."""
        return self.world.size > 1 and self.parallel is self.network

    @property
    def gradient_scale(self) -> int:
        """DistributedDataParallel averages over workers, where a sum is wanted."""
        return self.world.size if self.parallel is not self.network else 1

    @torch.no_grad()
    def evaluate(self) -> "Mean":
        """Loss and top-1 error over the validation images."""
        self.network.eval()
        totals = torch.zeros(2, dtype=torch.float64, device=self.device)
        for x, y in self.loader.val_batches(self.beat):
            self.beat()
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
    if world.size > 1 and device.type == "cuda":  # it adds gradients up while others are still computed
        parallel = nn.parallel.DistributedDataParallel(
            network,
            device_ids=[device],
            broadcast_buffers=False,  # BatchNorm statistics are averaged once an epoch instead
            gradient_as_bucket_view=True,
        )
    with _compiler_left_alone():
        optimizer = torch.optim.SGD(
            network.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=True
        )
    totals = torch.zeros(2, dtype=torch.float64, device=device)
    return Training(config, network, parallel, optimizer, loader, world, device, totals)


@contextlib.contextmanager
def _compiler_left_alone() -> Iterator[None]:
    """Make an optimizer without importing torch's compiler, which takes each worker 1 s.

    It would be imported only to be kept from compiling this very call.
    """
    decorated: Any = torch.optim.Optimizer.add_param_group
    torch.optim.Optimizer.add_param_group = getattr(decorated, "__wrapped__", decorated)  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.optim.Optimizer.add_param_group = decorated  # type: ignore[method-assign]
