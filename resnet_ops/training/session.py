"""A run's training on one worker: opened where the run stands, gone on with, saved. Knows runs, not Ray."""

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from resnet_ops.data.augment import Augmentation
from resnet_ops.data.loader import open_loader
from resnet_ops.data.sources import Source
from resnet_ops.models import build
from resnet_ops.runs import BadImage, Epoch, Run, RunRecord
from resnet_ops.training import checkpoint as checkpoints
from resnet_ops.training.build import build_trainer
from resnet_ops.training.checkpoint import CheckpointInfo, Checkpoints
from resnet_ops.training.distributed import ProcessGroup
from resnet_ops.training.trainer import Progress, Trainer

PROBE_STEPS = 8  # after which the first interval in seconds is turned into steps


@dataclass
class Pace:
    """Says after which steps to save, the same on every worker.

    An interval in seconds becomes one in steps by rank 0's clock, agreed upon only after the first
    few steps and at each save: asking at each step would cost each step.
    """

    world: ProcessGroup
    every_steps: int | None
    every_s: float | None
    done: int = 0  # steps since the last agreement
    until: int = PROBE_STEPS
    clock: Callable[[], float] = time.monotonic
    since: float = 0.0
    saves: bool = False  # whether the next agreement is a save

    def __post_init__(self) -> None:
        self.since = self.clock()

    def is_due(self, step: int) -> bool:
        """Whether to save after `step` steps in all; to be asked after each."""
        if self.every_steps is not None:
            return step % self.every_steps == 0
        if self.every_s is None:
            return False
        self.done += 1
        if self.done < self.until:
            return False
        step_s = self.world.agree((self.clock() - self.since) / self.done)
        due, self.saves = self.saves, True
        elapsed_steps = 0 if due else self.done
        self.until = max(1, round(self.every_s / max(step_s, 1e-9)) - elapsed_steps)
        self.done, self.since = 0, self.clock()
        return due


class Writer:
    """Does one thing at a time, in order, on a thread of its own."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.pool = pool
        self.pending: Future[None] | None = None

    def start(self, write: Callable[..., None], *arguments: Any) -> None:
        """Begin to write, once what was begun before is done.

        Raises:
            PausedError: What was begun before met a full disk.
        """
        self.wait()
        self.pending = self.pool.submit(write, *arguments)

    def wait(self) -> None:
        """Wait until all is written.

        Raises:
            PausedError: It met a full disk.
        """
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()


@contextmanager
def writing() -> Iterator[Writer]:
    """Give a writer for the length of a `with` block, and leave when all is written."""
    with ThreadPoolExecutor(1, "checkpoint") as pool:
        writer = Writer(pool)
        yield writer
        writer.wait()


@dataclass
class TrainingSession:
    """A worker's part of a run; rank 0 writes what all have done.

    `metrics` are those of the last epoch that was done, `steps_at` when the first and the last step ended here, in
    seconds since 1970; [] where none was left to do.
    """

    run: Run
    record: RunRecord
    training: Trainer
    keeper: Checkpoints
    metrics: Epoch | None
    steps_at: list[float] = field(default_factory=list)
    writer: Writer | None = None

    @classmethod
    def open(
        cls, run: Run, record: RunRecord, source: Source, world: ProcessGroup, device: torch.device
    ) -> "TrainingSession":
        """Make network, optimizer and batches, and put them where the run's last whole checkpoint was taken."""
        config = record.config
        loader = open_loader(
            replace(source, record=record.data, config=config),
            device,
            batch_size=config.batch_size,
            augmentation=Augmentation.of(
                config, len(record.data.class_names), record.data.height if record.data.stored else None
            ),
            seed=config.seed,
            rank=world.rank,
            world_size=world.size,
            log_event=run.log_event,
        )
        torch.manual_seed(config.seed)
        network = build(
            config.model,
            num_classes=len(record.data.class_names),
            in_channels=record.data.channels,
            shortcut=config.shortcut,
        )
        training = build_trainer(config, network, loader, world, device)
        keeper = Checkpoints(run, config.num_to_keep)
        return cls(run, record, training, keeper, _resume(training, keeper))

    @property
    def bad(self) -> tuple[BadImage, ...]:
        """Broken images that were met here."""
        return (*self.training.loader.train.bad, *self.training.loader.val.bad)

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Write on a thread of its own for the length of a `with` block, and leave when all is written."""
        with writing() as self.writer:
            yield

    def epochs(self) -> Iterator[Epoch | None]:
        """Train to the end, within `saving`; each epoch's metrics, or None for a save within one, as its save begins.

        Raises:
            UserError: The loss is no longer a finite number.
            PausedError: The disk is full.
        """
        leads = self.training.world.rank == 0

        def after_step(progress: Progress) -> None:
            self.steps_at[1:] = [time.time()]  # the first one stays
            if leads:
                self.run.write_progress({"stage": "Trainer", **vars(progress)})

        pace = Pace(self.training.world, *self.record.config.checkpoint_interval)
        for epoch in self.training.run(after_step, pace.is_due):
            tensors = checkpoints.collect(self.training)
            self.metrics = epoch or self.metrics
            if leads:
                assert self.writer is not None
                self.writer.start(self.keeper.save, self._info(), tensors)
            yield epoch

    def wait(self) -> None:
        """Wait until all is written."""
        if self.writer is not None:
            self.writer.wait()

    def _info(self) -> CheckpointInfo:
        record, data, loader = self.record, self.record.data, self.training.loader
        return CheckpointInfo(
            model=record.config.model,
            shortcut=record.config.shortcut,
            class_names=data.class_names,
            channels=data.channels,
            height=data.height,
            width=data.width,
            stored=data.stored,
            mean=loader.mean,
            std=loader.std,
            data=data.name,
            data_fingerprint=data.fingerprint,
            metrics=self.metrics,
            step=self.training.step,
        )


def _resume(training: Trainer, keeper: Checkpoints) -> Epoch | None:
    """Go on from the last whole checkpoint, if there is one: rank 0 chooses, every rank reads it."""
    chosen: list[Path | None] = [None]
    if training.world.rank == 0:
        latest, refused = keeper.latest()
        for reason in refused:
            keeper.run.log_event(f"Skipping a checkpoint: {reason}")
        chosen = [latest.path if latest else None]
        keeper.rewind(latest)
    if training.world.size > 1:
        dist.broadcast_object_list(chosen)
    if chosen[0] is None:
        return None
    checkpoint = checkpoints.read(chosen[0])
    checkpoints.restore(checkpoint, training)
    return checkpoint.info.metrics
