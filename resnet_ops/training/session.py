"""A run's training on one worker: opened at the last checkpoint, saved while it goes on.

Knows run directories, not Ray; `trainer.py` is the training itself.
"""

import contextlib
import functools
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from resnet_ops.class_metrics import import_ahead
from resnet_ops.data.augment import Augmentation
from resnet_ops.data.loader import open_loader
from resnet_ops.data.sources import Source
from resnet_ops.models import build
from resnet_ops.run_records import Epoch, HeldOutRecord, RunRecord
from resnet_ops.runs import Run
from resnet_ops.stop_request import StopRequest
from resnet_ops.training import checkpoint as checkpoint_files
from resnet_ops.training.build import build_trainer
from resnet_ops.training.checkpoint import CheckpointInfo, CheckpointStore
from resnet_ops.training.distributed import ProcessGroup
from resnet_ops.training.early_end import foresee_cut
from resnet_ops.training.loss import weigh_classes
from resnet_ops.training.mixed_precision import measured_precision
from resnet_ops.training.run_pictures import EXAMPLES, draw_augmented, draw_confusion, write_picture
from resnet_ops.training.start import begin_from_weights
from resnet_ops.training.stop_agreement import StopAgreement
from resnet_ops.training.trainer import Progress, Trainer

PROBE_STEPS = 8  # after which the first interval in seconds is turned into steps


@dataclass
class SaveSchedule:
    """Decides after which steps to save within an epoch, the same on every worker.

    An interval in seconds becomes one in steps by rank 0's clock, agreed upon only after the first
    few steps and at each save: asking at each step would cost each step.
    """

    group: ProcessGroup
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
        """Return whether to save after `step` steps in all; to be called after each."""
        if self.every_steps is not None:
            return step % self.every_steps == 0
        if self.every_s is None:
            return False
        self.done += 1
        if self.done < self.until:
            return False
        step_s = self.group.agree((self.clock() - self.since) / self.done)
        due, self.saves = self.saves, True
        elapsed_steps = 0 if due else self.done
        self.until = max(1, round(self.every_s / max(step_s, 1e-9)) - elapsed_steps)
        self.done, self.since = 0, self.clock()
        return due


class BackgroundWriter:
    """Writes on a thread of its own, one thing at a time, in order."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.pool = pool
        self.pending: Future[None] | None = None

    def start(self, write: Callable[..., None], *arguments: Any) -> None:
        """Start to write, once the write before is done.

        Raises:
            PausedError: The write before met a full disk.
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


@contextlib.contextmanager
def writing() -> Iterator[BackgroundWriter]:
    """Yield a writer for the length of a `with` block, and leave when all is written."""
    with ThreadPoolExecutor(1, "checkpoint") as pool:
        writer = BackgroundWriter(pool)
        yield writer
        writer.wait()


@dataclass
class TrainingSession:
    """A worker's part of a run; rank 0 writes what all have done.

    `metrics` are those of the last finished epoch, `steps_at` when the first and the last step ended here, in seconds
    since 1970; [] where none was left to do.
    """

    run: Run
    record: RunRecord
    trainer: Trainer
    checkpoints: CheckpointStore
    metrics: Epoch | None
    save_schedule: SaveSchedule
    steps_at: list[float] = field(default_factory=list)
    writer: BackgroundWriter | None = None
    pictured: bool = False  # whether augmented images have been drawn
    held_out: HeldOutRecord | None = None

    @classmethod
    def open(
        cls,
        run: Run,
        record: RunRecord,
        source: Source,
        group: ProcessGroup,
        device: torch.device,
        request: StopRequest | None = None,
    ) -> "TrainingSession":
        """Build network, optimizer and loader, and restore the run's last intact checkpoint; `request` may stop it."""
        config = record.config
        if group.rank == 0 and not config.fit_all:
            import_ahead()
        loader = open_loader(
            replace(source, record=record.data, config=config),
            device,
            batch_size=config.batch_size,
            augmentation=Augmentation.of(
                config,
                len(record.data.class_names),
                (record.data.height, record.data.width) if record.data.stored else None,
            ),
            seed=config.seed,
            rank=group.rank,
            world_size=group.size,
            balanced=config.sampler == "balanced",
            log_event=run.log_event,
        )
        torch.manual_seed(config.seed)
        network = build(
            config.model,
            num_classes=len(record.data.class_names),
            in_channels=record.data.channels,
            shortcut=config.shortcut,
        )
        weights = weigh_classes(config, record.data.class_names, loader.train.labels)
        trainer = build_trainer(config, network, loader, group, device, run.log_event, weights)
        trainer.extended_after = record.extended_after
        checkpoints = CheckpointStore(run, config.num_to_keep)
        metrics = _resume(trainer, checkpoints)
        if record.start and not (trainer.epoch or trainer.step):
            begin_from_weights(run, record, trainer)
        # Last, as their clocks start.
        trainer.stop = StopAgreement(group, request or StopRequest())
        schedule = SaveSchedule(group, *config.checkpoint_interval, clock=functools.partial(_clock, device))
        held_out = source.held_out_images if group.rank == 0 else None
        return cls(run, record, trainer, checkpoints, metrics, schedule, held_out=held_out)

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Write on a thread of its own for the length of a `with` block, and leave when all is written."""
        with writing() as self.writer:
            yield

    def after_step(self, progress: Progress) -> None:
        """Record the time of a step, and, on rank 0, the progress; for `Trainer.run`."""
        self.steps_at[1:] = [time.time()]  # the first one stays
        if self.trainer.group.rank == 0:
            if progress.epoch == 1 and not self.pictured:
                self._draw_augmented()
            self.run.write_progress({"stage": "Training", **vars(progress)})

    def save_is_due(self, step: int) -> bool:
        """Return whether to save within an epoch after `step` steps in all; for `Trainer.run`."""
        return self.save_schedule.is_due(step)

    def save(self, epoch: Epoch | None) -> None:
        """Start to save what `Trainer.run` has just yielded, within `saving`; to be called by every worker.

        Raises:
            PausedError: The write before met a full disk.
        """
        tensors = checkpoint_files.collect(self.trainer)
        self.metrics = epoch or self.metrics
        if self.trainer.group.rank == 0:
            assert self.writer is not None
            if epoch and (warning := foresee_cut(self.record.config, self.trainer.history)):
                self.run.log_event(warning)
            answers = self.trainer.val_answers if epoch else None
            self.writer.start(self._write, self._info(), tensors, answers)

    def _write(self, info: CheckpointInfo, tensors: dict[str, torch.Tensor], answers: torch.Tensor | None) -> None:
        self.checkpoints.save(info, tensors)
        if answers is not None and self.checkpoints.best == info.score:
            label, predicted, _ = answers[answers[:, 0] > 0].numpy().T
            counts = np.zeros((len(info.class_names),) * 2, np.int64)
            np.add.at(counts, (label - 1, predicted), 1)
            write_picture(self.run, "confusion", draw_confusion(counts, info.class_names), info.epoch)

    def _draw_augmented(self) -> None:
        """Draw images of the step that was just done, augmented once more as they were for it."""
        assert self.writer is not None
        trainer, self.pictured = self.trainer, True
        with torch.no_grad():
            x, _ = trainer.loader.batch(trainer.row, trainer.inputs.images)
        first = x[:EXAMPLES].float().cpu()  # here, as the next step may overwrite what is on the device
        self.writer.start(self._write_augmented, first)

    def _write_augmented(self, x: torch.Tensor) -> None:
        loader = self.trainer.loader
        write_picture(self.run, "augmented", draw_augmented(x, loader.mean, loader.std), 1)

    def wait(self) -> None:
        """Wait until all is written."""
        if self.writer is not None:
            self.writer.wait()

    def _info(self) -> CheckpointInfo:
        record, data, loader = self.record, self.record.data, self.trainer.loader
        return CheckpointInfo(
            model=record.config.model,
            shortcut=record.config.shortcut,
            class_names=data.class_names,
            channels=data.channels,
            height=data.height,
            width=data.width,
            stored=data.stored,
            bit_depth=data.bit_depth,
            mean=loader.mean,
            std=loader.std,
            data=data.name,
            data_fingerprint=data.fingerprint,
            held_out=self.held_out,
            fitted_on_all=record.config.fit_all,
            began_from=record.start.pretrained if record.start else "",
            metrics=self.metrics,
            precision=measured_precision(record.config.precision, self.trainer.device),
            step=self.trainer.step,
            select=record.config.select,
            val_correct=_hexadecimal(self.trainer.val_correct) if self.trainer.val_correct is not None else "",
            val_classes=self.trainer.count_classes(len(data.class_names)),
        )


def _hexadecimal(bits: torch.Tensor) -> str:
    """Return (n,) uint8 of zeros and ones as the digits of a number, the first one its lowest bit."""
    return f"{int.from_bytes(np.packbits(bits.cpu().numpy(), bitorder='little').tobytes(), 'little'):x}"


def _clock(device: torch.device) -> float:
    """Return the seconds since some time at which all steps so far were done: a GPU is some behind."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic()


def _resume(trainer: Trainer, checkpoints: CheckpointStore) -> Epoch | None:
    """Restore the last intact checkpoint, if there is one: rank 0 chooses, every rank reads it."""
    chosen = ""
    if trainer.group.rank == 0:
        latest, refused = checkpoints.latest()
        for reason in refused:
            checkpoints.run.log_event(f"Skipping a checkpoint: {reason}")
        checkpoints.rewind(latest)
        epochs = [epoch.model_dump(mode="json") for epoch in checkpoints.run.epochs()]
        chosen = json.dumps({"checkpoint": latest.path.name if latest else None, "epochs": epochs})
    agreed = json.loads(trainer.group.gather_text(chosen)[0])
    trainer.history = [Epoch.model_validate(epoch) for epoch in agreed["epochs"]]
    if agreed["checkpoint"] is None:
        return None
    checkpoint = checkpoint_files.read(checkpoints.run.checkpoints / agreed["checkpoint"])
    checkpoint_files.restore(checkpoint, trainer)
    return checkpoint.info.metrics
