"""The training loop of one process: batch, augmentation, network, loss, optimizer. Knows torch, not Ray.

`build.py` makes the parts, `session.py` saves them. With several workers each runs this loop on its share of every
batch. Sums and counts are added up over all workers, so that metrics are exact however uneven the shares are.
"""

import contextlib
import gc
import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from resnet_ops.class_metrics import ClassCount
from resnet_ops.config import TrainConfig
from resnet_ops.data.loader import BLOCK_STEPS, Loader
from resnet_ops.data.sampling import RandomStream, stream_seed
from resnet_ops.errors import WORK_FAILED, UserError
from resnet_ops.run_records import Epoch
from resnet_ops.stop_request import StopRequest
from resnet_ops.training.capture import Part, StepInputs, StepRunner
from resnet_ops.training.compile_trial import CompileTrial
from resnet_ops.training.distributed import ProcessGroup
from resnet_ops.training.early_end import EarlyEnd, early_end
from resnet_ops.training.ema import ExponentialMovingAverage
from resnet_ops.training.freezing import freeze, keep_statistics
from resnet_ops.training.loss import Loss
from resnet_ops.training.loss_scaling import SMALLEST_SCALE, LossScaler
from resnet_ops.training.schedule import learning_rate
from resnet_ops.training.stop_agreement import StopAgreement
from resnet_ops.training.validation_metrics import (
    MeanLoss,
    Validation,
    compute_logits,
    evaluate_batches,
    more_metrics,
)

PROGRESS_INTERVAL_S = 0.25


@dataclass(frozen=True)
class Progress:
    """Progress of the current epoch; loss and error are means since its start."""

    epoch: int
    step: int
    steps: int
    train_loss: float
    train_error: float
    images_per_second: float


@dataclass(frozen=True)
class Parallel:
    """The module that is called on a batch: the network, DistributedDataParallel around it, or either compiled.

    Args:
        network: This module.
        ddp: DistributedDataParallel, where it reduces the gradients.
        obstacle: Why steps are not captured in a CUDA graph; None where they are.
    """

    network: nn.Module
    ddp: nn.parallel.DistributedDataParallel | None = None
    obstacle: str | None = None


@dataclass
class Trainer:
    """One worker's training: its network, its data, and its position: epochs and steps done.

    `network` holds the weights; `parallel`, `ddp` and `obstacle` are a `Parallel`'s. `scaler` is that of fp16.
    """

    config: TrainConfig
    network: nn.Module
    parallel: nn.Module
    optimizer: torch.optim.Optimizer
    loader: Loader
    group: ProcessGroup
    device: torch.device
    totals: Tensor  # (2,) float64: this worker's sums of losses and errors in the current epoch
    ddp: nn.parallel.DistributedDataParallel | None = None  # where it reduces the gradients
    ema: ExponentialMovingAverage | None = None
    scaler: LossScaler | None = None
    loss: Loss = field(default_factory=Loss)
    obstacle: str | None = "training runs on the CPU"
    beat: Callable[[], None] = lambda: None  # a heartbeat, called at each batch
    epoch: int = 0  # epochs done
    step: int = 0  # steps done of the current epoch
    history: list[Epoch] = field(default_factory=list)  # the epochs done, the same on every worker
    extended_after: int = 0  # epochs done when the training was given more, see `RunRecord`
    # Of the last epoch, (validation images, 3) int32 on the CPU: label + 1, or 0 of one that cannot be decoded; the
    # class that it is taken for; whether the label is among the first 5.
    val_answers: Tensor | None = None
    log_event: Callable[[str], None] = lambda _: None
    parallelize: "Callable[[], Parallel] | None" = None  # what `parallel` comes from, where other layers are trained
    stop: StopAgreement = field(init=False)
    inputs: StepInputs = field(init=False)
    step_runner: StepRunner = field(init=False)
    compile_trial: CompileTrial | None = field(init=False, default=None)
    row: dict[str, Tensor] = field(init=False, default_factory=dict)  # of the inputs, in the current step
    replayed_from: tuple[int, float] | None = field(init=False, default=None)  # step and time, in the current epoch

    def __post_init__(self) -> None:
        self.inputs = StepInputs(self.device, BLOCK_STEPS)
        self.stop = StopAgreement(self.group, StopRequest())
        groups = self.optimizer.param_groups
        # Each tensor once, and what it is of the rate of the schedule.
        self.learning_rates = {id(group["lr"]): (group["lr"], group["lr_factor"]) for group in groups}
        self._begin_steps()

    def _begin_steps(self) -> None:
        """Have the next steps captured anew."""
        self.step_runner = self._new_runner()
        alone = self.group.size == 1 and not self.config.deterministic  # a clock decides
        if self.config.compile == "auto" and self.obstacle is None and alone:
            self.compile_trial = CompileTrial(self.log_event)

    def _new_runner(self) -> StepRunner:
        return StepRunner(self.device, self.obstacle, self.config.cuda_graph == "on", self.log_event)

    def run(
        self, after_step: Callable[[Progress], None], is_due: Callable[[int], bool] = lambda _: False
    ) -> Iterator[Epoch | None]:
        """Train to the last epoch, yielding each one's metrics, the same on every worker.

        Whenever something is yielded, it is time to save: `epoch`, `step`, `totals`, the network and the optimizer are
        all that is needed to resume. Where all workers have agreed to `stop`, it was the last time.

        Args:
            after_step: Called with the progress after an epoch's first and last step and a few times a second.
            is_due: Called after each step but an epoch's last, with the number of all steps so far; where it returns
                true, None is yielded.

        Raises:
            UserError: The loss is no longer a finite number.
        """
        if self.stop.settle():
            return
        while self.epoch < self.config.epochs and self.ended is None:
            started, first_step = time.perf_counter(), self.step
            for _ in self.train_epoch(after_step, is_due):
                yield None
            steps, batch_size = self.loader.steps, self.config.batch_size
            train = MeanLoss.of(self.group.add(self.totals.clone()), steps * batch_size)
            trained = time.perf_counter()
            if self.compile_trial is not None:
                self._settle_compiler(self.compile_trial, trained)
            for network in self.networks:
                self.group.average_batchnorm(network)
            val = self.evaluate()
            if self.stop.agreed:  # before its end: validation is done again
                yield None
                return
            skipped = self._skipped_steps()
            self.epoch, self.step = self.epoch + 1, 0
            self.totals.zero_()
            metrics = Epoch(
                epoch=self.epoch,
                step=self.epoch * steps,
                train_loss=self.finite(train.loss),
                train_error=train.error,
                val_loss=self.finite(val.loss) if val else None,
                val_error=val.error if val else None,
                val_top5_error=val.top5_error if val else None,
                val_macro_recall=val.macro_recall if val else None,
                val_macro_f1=val.macro_f1 if val else None,
                lr=self.learning_rate_of(self.epoch * steps - 1),
                images_per_second=(steps - first_step) * batch_size / (trained - started),
                seconds=self.group.agree(time.perf_counter() - started),  # which may end the training on all of them
                world_size=self.group.size,
                skipped_steps=skipped,
            )
            self.history.append(metrics)
            if self.epoch < self.config.epochs and self.ended is None:
                self.stop.settle()
            yield metrics

    @property
    def ended(self) -> EarlyEnd | None:
        """Return why the training ends with the epochs done, before its last one; None where it goes on."""
        return early_end(self.config, self.history, self.extended_after)

    def learning_rate_of(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0 since the training began."""
        steps = self.loader.steps
        # Milestones stay where they were; other schedules begin anew when a training is given more epochs.
        first = 0 if self.config.schedule == "steps" else self.extended_after * steps
        return learning_rate(self.config, max(step - first, 0), self.config.epochs * steps - first)

    def _skipped_steps(self) -> int:
        """Return how many steps of an epoch, which ends, loss scaling has skipped, and report it.

        Raises:
            UserError: Gradients are not finite at any scale.
        """
        if self.scaler is None:
            return 0
        skipped, scale = int(self.scaler.skipped), self.scaler.scale
        self.scaler.skipped.zero_()
        if scale < SMALLEST_SCALE:
            raise UserError(
                f"Training diverged in epoch {self.epoch + 1}: its gradients are not finite in fp16.",
                "Try a smaller --lr, or --precision fp32.",
                WORK_FAILED,
            )
        if skipped and self.group.rank == 0:
            self.log_event(
                f"fp16: {skipped} of {self.loader.steps} steps of epoch {self.epoch + 1} were skipped, as their "
                f"gradients overflowed; losses are now scaled by {scale:g}."
            )
        return skipped

    def _settle_compiler(self, trial: CompileTrial, trained: float) -> None:
        """Go on with the network that the trial decides on, after an epoch that ended at `trained`."""
        if self.replayed_from is None:
            return
        first, since = self.replayed_from
        steps, batch_size = self.loader.steps, self.config.batch_size
        speed = (steps - first) * batch_size / (trained - since)
        left_s = (self.config.epochs - self.epoch - 1) * steps * batch_size / max(speed, 1e-9)
        change = trial.after_epoch(self.parallel, self.rehearse, steps - first, speed, left_s)
        if change is not None:
            self.parallel = change
            self.drop_graph()

    def drop_graph(self) -> None:
        """Free the memory that a captured step keeps; the next steps are captured anew."""
        self.step_runner = self._new_runner()

    def rehearse(self, network: nn.Module) -> None:
        """Run a network of this training forward and backward on a batch of zeros; its buffers stay as they are."""
        self.drop_graph()
        kept = [(buffer, buffer.clone()) for buffer in self.network.buffers()]
        h, w = self.loader.augmentation.output_size(self.loader.train.size)
        images = -(-self.share // self.config.accumulate)
        x = torch.zeros(images, len(self.loader.mean), h, w, device=self.device)
        try:
            self.logits(network, x.to(memory_format=torch.channels_last)).sum().backward()
        finally:
            self.optimizer.zero_grad()
            for buffer, value in kept:
                buffer.copy_(value)

    def train_epoch(self, after_step: Callable[[Progress], None], is_due: Callable[[int], bool]) -> Iterator[None]:
        """Train the rest of an epoch, adding up loss and errors; yield where a save is due."""
        self._freeze()
        drops = any(isinstance(module, nn.Dropout) for module in self.network.modules())
        steps, batch_size = self.loader.steps, self.config.batch_size
        first_step, started = self.step, time.perf_counter()
        reported, self.replayed_from = started, None
        for block in self.loader.blocks(self.epoch, first_step, self.beat):
            done = self.epoch * steps + self.step
            self.inputs.load(block.columns | self.schedules(range(done, done + block.steps)))
            for images in block.images:
                if drops:  # seeded by the step, like augmentation, so that a resumed run drops the same
                    position = self.epoch, self.step, self.group.rank
                    torch.manual_seed(stream_seed(self.config.seed, RandomStream.DROPOUT, *position))
                self.inputs.receive(images)
                self.step_runner(self.parts)
                self.step += 1
                self.beat()

                now = time.perf_counter()
                if self.step in (first_step + 1, steps) or now - reported > PROGRESS_INTERVAL_S:
                    mean = MeanLoss.of(self.totals, self.step * self.share)
                    reported = time.perf_counter()
                    if self.step_runner.captured and self.replayed_from is None:
                        self.replayed_from = self.step, reported
                    self.finite(mean.loss, self.step)
                    speed = (self.step - first_step) * batch_size / (reported - started)
                    after_step(Progress(self.epoch + 1, self.step, steps, mean.loss, mean.error, speed))
                if self.step < steps:
                    due, stops = is_due(self.epoch * steps + self.step), self.stop.after_step()
                    if due or stops:
                        yield None

    def _freeze(self) -> None:
        """Prepare for the steps of an epoch, which may train other layers than the one before."""
        if freeze(self.network, self.config, self.epoch) and self.parallelize is not None:
            self.drop_graph()
            self.parallel, self.ddp = self.network, None
            gc.collect()  # the hooks of the old DistributedDataParallel go with it
            wrapped = self.parallelize()
            self.parallel, self.ddp, self.obstacle = wrapped.network, wrapped.ddp, wrapped.obstacle
            self._begin_steps()
        self.parallel.train()
        keep_statistics(self.network, self.config, self.epoch)

    @property
    def share(self) -> int:
        """Images of each batch that are this worker's."""
        return len(range(self.group.rank, self.config.batch_size, self.group.size))

    @property
    def parts(self) -> tuple[Part, ...]:
        """A step, in order."""
        if self.group.size > 1 and not self.ddp:
            return Part(self.compute_gradients), Part(self.add_gradients, capturable=False), Part(self.update)
        return (Part(self.compute_and_update),)

    def compute_and_update(self) -> None:
        """Run a whole step, where there is nothing to wait for in it."""
        self.compute_gradients()
        self.update()

    def schedules(self, steps: range) -> dict[str, Tensor]:
        """Return what follows from the number of a step, for some steps, counted from 0 since the training began."""
        rates = [self.learning_rate_of(step) for step in steps]
        dtype = self.optimizer.param_groups[0]["lr"].dtype
        columns = {"learning_rate": torch.tensor(rates, dtype=dtype)}
        if self.ema:
            columns["ema_share"] = torch.tensor([1 - self.ema.decay_after(step) for step in steps])
        return columns

    def compute_gradients(self) -> None:
        """Run forward and backward on this worker's share of the next batch, in micro-batches.

        The first part of a step, which CUDA captures: all that it reads and writes stays where it is.
        """
        self.optimizer.zero_grad()
        config = self.config
        self.row = self.inputs.row()
        x, y = self.loader.batch(self.row, self.inputs.images)
        micro_batches = min(config.accumulate, len(y))
        parts = zip(x.tensor_split(micro_batches), y.tensor_split(micro_batches), strict=True)
        for index, (images, labels) in enumerate(parts, start=1):
            # Gradients are added up over the workers once, with the last micro-batch.
            waits = self.ddp.no_sync() if self.ddp and index < micro_batches else contextlib.nullcontext()
            with waits:
                logits = self.logits(self.parallel, images)
                loss_sum = self.loss(logits, labels)
                # Scaled by the whole batch, so that uneven shares still add up to the batch's mean;
                # DistributedDataParallel averages over workers, where a sum is wanted.
                loss = loss_sum * ((self.group.size if self.ddp else 1) / config.batch_size)
                (self.scaler.scaled(loss) if self.scaler else loss).backward()
            classes = labels if labels.dim() == 1 else labels.argmax(1)
            self.totals += torch.stack((loss_sum.detach(), (logits.detach().argmax(1) != classes).sum()))

    def add_gradients(self) -> None:
        """Add the gradients up over all workers, where DistributedDataParallel does not."""
        self.group.add_gradients(self.network)

    def update(self) -> None:
        """Update the weights and their average; the last part of a step, which CUDA captures."""
        for rate, factor in self.learning_rates.values():
            rate.copy_(self.row["learning_rate"] * factor)
        if self.scaler:
            self.scaler.unscale(self.optimizer)
        if self.config.clip_grad_norm:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip_grad_norm)
        if self.scaler:
            self.scaler.step(self.optimizer)
        else:
            self.optimizer.step()
        if self.ema:
            self.ema.update(self.row["ema_share"])
        self.inputs.advance()

    def logits(self, network: nn.Module, x: Tensor) -> Tensor:
        """Return the logits (n, classes) float32 of images (n, C, H, W)."""
        return compute_logits(network, x, self.config, self.device)

    @property
    def networks(self) -> list[nn.Module]:
        """The network that is trained, and its average over time, if there is one."""
        return [self.network, self.ema.network] if self.ema else [self.network]

    @property
    def eval_network(self) -> nn.Module:
        """The network that is validated, kept as best and exported."""
        return self.networks[-1]

    def evaluate(self) -> "Validation | None":
        """Return the metrics of the validation images that can be decoded; None without any, or where it is to stop."""
        if self.loader.val is None:
            return None
        batches = itertools.takewhile(lambda _: not self.stop.request.requested, self.loader.val_batches(self.beat))
        share = evaluate_batches(self.eval_network, batches, self.config, self.device, self.beat)
        if self.stop.settle():
            return None
        answers = torch.zeros(len(self.loader.val), 3, dtype=torch.int32, device=self.device)
        answers[self.loader.val_rows().to(self.device)] = share.answers
        self.val_answers = self.group.add(answers).cpu()  # each rank has rows of its own
        mean = MeanLoss.of_evaluation(self.group.add(share.totals))
        more = more_metrics(self.val_answers, share.classes) if self.group.rank == 0 else (math.nan,) * 3
        top5_error, recall, f1 = (self.group.agree(metric) for metric in more)
        return Validation(mean.loss, mean.error, _unless_nan(top5_error), _unless_nan(recall), _unless_nan(f1))

    @property
    def val_correct(self) -> Tensor | None:
        """Validation images that are classified correctly after the last epoch, (validation images,) uint8."""
        return None if self.val_answers is None else (self.val_answers[:, 0] == self.val_answers[:, 1] + 1).byte()

    def count_classes(self, classes: int) -> tuple[ClassCount, ...]:
        """Count the validation images of each class: those right after the last epoch, and all; () before one."""
        if self.val_answers is None:
            return ()
        labels, correct = self.val_answers[:, 0].long(), self.val_correct
        counts = (torch.bincount(labels, correct, classes + 1), torch.bincount(labels, minlength=classes + 1))
        return tuple(
            (int(right), images) for right, images in zip(*(each[1:].tolist() for each in counts), strict=True)
        )

    def finite(self, loss: float, step: int | None = None) -> float:
        """Return `loss`, or stop the training if it is not a finite number."""
        if math.isfinite(loss):
            return loss
        epoch = self.epoch + 1 if step is not None else self.epoch
        raise UserError(f"Training diverged in epoch {epoch}: the loss is {loss}.", "Try a smaller --lr.", WORK_FAILED)


def _unless_nan(metric: float) -> float | None:
    return None if math.isnan(metric) else metric
